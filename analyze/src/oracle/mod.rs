//! The fast oracle: judges a run in constant time per access, by stamps and floors.
//!
//! A clock counts the calls of the [`Observer`]. Every cached copy carries the instant at which it
//! was last known equal to what it copies (its *stamp*, in the [`Mark`] that [`Oracle::fill`]
//! returns); every obligation raises a floor (`floors`). A copy below a floor that covers it is
//! outlawed. Containers (`hardware`) and shadow roots (`shadow`) carry the oldest stamp that
//! may be in them, so that an entry can be judged although no access follows. `credit` judges
//! what was too much.
//!
//! Limits. Address-sized obligations are judged as exposed for the root that is current at their
//! deadline, and for a PCID that becomes current later in the hardware's caches alone.
//! An SVM flush is expected as [`Act::Inv`] before [`Act::Entry`].
//! A guest-physical mapping of a page-table frame is tested through the leaf's frame only.

mod birth;
mod context;
mod credit;
mod entry;
mod excess;
mod floors;
pub mod fresh;
mod hardware;
mod host;
mod judge;
mod latest;
mod lockless;
mod nested;
mod physical;
mod possible;
mod recent;
mod shadow;
mod structures;

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tlbscope_sim::arch::required::{self, Owed, Rule, Strength};
use tlbscope_trace::act::{
    Accessed, Act, ArchOp, At, Class, Context, Fill, FillKind, FreeWhy, Instead, Mark, Source, Tag,
};
use tlbscope_trace::addr::{Ep4ta, Gpa, Hpa, PageSize, Sp, VcpuId};
use tlbscope_trace::observe::{Marks, Observer, World};
use tlbscope_trace::op::Actor;
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs};
use tlbscope_trace::state::Word;

use crate::finding::{Class as Excess, Findings, Slot};
use crate::suppress::Suppressions;
use context::Contexts;
use credit::{By, Open, Window};
use floors::Obligation;
use hardware::{GroupKey, Hardware};
use host::Host;
use latest::Latest;
use lockless::Lockless;
use physical::Physical;
use possible::Known;
use shadow::Shadow;
use structures::{Structure, Uses};

/// PCIDs of which a vCPU's judge remembers when they were current last, over all tags of L1's processor.
const LEFT: usize = 1 << 15;
/// Findings without an obligation of a vCPU that a further use still adds to.
const OTHERS: usize = 1 << 13;

/// One vCPU, as the judge knows it.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Vcpu {
    floors: Contexts,
    window: Window,
    /// What runs, or ran last.
    context: Context,
    entered: bool,
    in_guest: bool,
    pcpu: u16,
    /// Shadow roots that may be cached: the page, its PCID and the tag of L1's processor.
    roots: Vec<(Sp, u16, u16)>,
    /// When each PCID of each tag of L1's processor was current last.
    left: Latest<(u16, u16), u64, LEFT>,
    /// Event and name of the last register write.
    #[serde(with = "tlbscope_trace::state::numbered_word")]
    register: (u64, &'static str),
    /// The operation that is being carried out, for what is excessive in it.
    #[serde(with = "tlbscope_trace::state::numbered_word")]
    op: (u64, &'static str),
    /// Excess reported for that event.
    #[serde(with = "crate::state::named")]
    reported: Vec<(Excess, &'static str)>,
    /// That event.
    excess_event: u64,
    /// PCIDE went 0 to 1 in this event.
    pcide_set: u64,
    /// One more than the event in which an INVLPGB of the host reached it last.
    broadcast: u64,
    /// The latest dead backing and the containers for which host exposures were judged.
    host_judged: (u64, GroupKey),
    /// When an explicit flush of all ran last.
    hooked: u64,
    /// When the births arose that were reported as exposed.
    births: Vec<u64>,
}

/// The fast oracle.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Oracle {
    #[serde(with = "crate::state::findings")]
    findings: Findings,
    now: u64,
    vcpus: Vec<Vcpu>,
    hardware: Hardware,
    shadow: Shadow,
    host: Host,
    /// The paging-structure copies that the access under way used.
    uses: Uses,
    /// `h` and `n` of the guest-physical copies that it used.
    used_h: [(u64, u64); 32],
    used_h_count: usize,
    /// The EP4TA or nested CR3 that they are kept by.
    used_root: Ep4ta,
    /// `h` and `n` of the guest-physical copies.
    physical: Physical,
    /// Verdict on the last access: whether it was a missed flush, and harmful.
    verdict: Option<bool>,
    /// The last access used a copy, and nothing outlawed it.
    approved: bool,
    /// What is known of shadow entries that are filled from again and again.
    #[serde(skip)]
    known: Known,
    /// When guest memory was stored to last.
    stored: u64,
    /// When each frame was stored to last, and by which event.
    #[serde(with = "tlbscope_trace::state::map")]
    stores: FxHashMap<u64, (u64, u64)>,
    /// What is judged is a recording: no access will show an advised obligation served or not.
    auditing: bool,
    /// Shadow pages that were freed under a reader.
    lockless: Lockless,
    /// The event of the latest remote flush, and when it was.
    remote: Option<(u64, u64)>,
    /// Findings without an obligation of a vCPU, by (event, rule, vCPU).
    others: Latest<(u64, Word, u16), (Slot, bool), OTHERS>,
    /// The row that this oracle's table lacks.
    #[serde(with = "tlbscope_trace::state::word_or_none")]
    without: Option<tlbscope_trace::state::Name>,
}

/// Codes of the bytes that a copy covers, within a mark.
const SHIFTS: [u32; 8] = [12, 21, 22, 30, 39, 48, 57, 63];

/// Stands for the mode of a copy that grants other rights than the guest's entries: never equal to a
/// mode, so that every use is compared.
const GENEROUS: u8 = 0xff;

/// Stands for the mode of a copy that was found through links which are gone (`structures`): LMA
/// without PG, which no mode is. Whether a walk could have given it is not asked.
const STRAYED: u8 = 1 << 7;

/// A mark taken apart: `g` = stamp << 4 | impossible << 3 | size, `h` = stamp << 8 | mode, `n` as it
/// is.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    g: u64,
    h: u64,
    /// Of L1's nested tables; 0 where there are none.
    n: u64,
    shift: u32,
    impossible: bool,
    mode: u8,
}

impl Stamp {
    fn mark(self) -> Mark {
        let size = SHIFTS.iter().position(|s| *s == self.shift).unwrap_or(0) as u64;
        Mark {
            g: self.g << 4 | u64::from(self.impossible) << 3 | size,
            h: self.h << 8 | u64::from(self.mode),
            n: self.n,
        }
    }

    /// The marks of possible copies, outside L2, with stamps no older than these, and of this mode.
    fn marks(g: u64, h: u64, mode: Option<u8>, note: u64) -> Marks {
        let bits = Mark { g: 8, h: mode.map_or(0, |_| 0xff), n: !0 };
        let are = Mark { h: mode.map_or(0, u64::from), ..Mark::ZERO };
        Marks { least: Mark { g: g << 4, h: h << 8, n: 0 }, bits, are, note }
    }

    const fn of(mark: Mark) -> Self {
        Self {
            g: mark.g >> 4,
            h: mark.h >> 8,
            n: mark.n,
            shift: SHIFTS[(mark.g & 7) as usize],
            impossible: mark.g & 8 != 0,
            mode: mark.h as u8,
        }
    }
}

/// What of the registers a shadow translation bakes in.
#[inline]
fn mode(regs: &Regs) -> u8 {
    let (cr0, cr4, efer) = (regs.cr0(), regs.cr4(), regs.efer());
    [
        cr0.contains(Cr0::WP),
        cr0.contains(Cr0::PG),
        cr4.contains(Cr4::SMEP),
        cr4.contains(Cr4::SMAP),
        cr4.contains(Cr4::PAE),
        cr4.contains(Cr4::PSE),
        efer.contains(Efer::NXE),
        efer.contains(Efer::LMA),
    ]
    .iter()
    .enumerate()
    .fold(0, |bits, (place, on)| bits | u8::from(*on) << place)
}

/// The name of an operation in findings.
const fn op_name(op: &ArchOp) -> &'static str {
    match op {
        ArchOp::Cr0 { .. } => "cr0",
        ArchOp::Cr3 { task_switch: true, .. } => "taskswitch",
        ArchOp::Cr3 { .. } => "cr3",
        ArchOp::Cr4 { .. } => "cr4",
        ArchOp::Efer { .. } => "efer",
        ArchOp::Invlpg(_) => "invlpg",
        ArchOp::Invpcid(_) => "invpcid",
        ArchOp::PageFault(_) => "page-fault",
        ArchOp::Init => "init",
        ArchOp::Reset => "reset",
        ArchOp::Smi => "smi",
        ArchOp::Rsm => "rsm",
        ArchOp::Mtrr => "mtrr",
        ArchOp::Pat => "pat",
        ArchOp::Pkru => "pkru",
        ArchOp::Sregs => "sregs",
        ArchOp::Nested(op) => nested::op_name(op),
        ArchOp::HostChange { .. } => "host-change",
        ArchOp::HostDead { .. } => "host-dead",
        ArchOp::RemoteFlush { .. } => "remote-flush",
        ArchOp::Release { .. } => "release",
    }
}

impl Oracle {
    /// An oracle for a machine with this many vCPUs, that keeps 100 findings of each group.
    #[must_use]
    pub fn new(vcpus: u16) -> Self {
        Self::with_max_findings(vcpus, 100)
    }

    /// The same oracle with findings that are accepted under this policy.
    pub fn accept(&mut self, suppressions: Arc<Suppressions>, policy: &str) {
        self.findings.accept(suppressions, policy);
    }

    /// An oracle that keeps the first `max` findings of each group.
    #[must_use]
    pub fn with_max_findings(vcpus: u16, max: usize) -> Self {
        Self {
            findings: Findings::new(max),
            vcpus: vec![Vcpu::default(); usize::from(vcpus)],
            ..Self::default()
        }
    }

    /// The same oracle with a table that lacks this row: to try whether anybody would notice.
    #[must_use]
    pub fn without(self, rule: Option<&'static str>) -> Self {
        Self { without: rule, ..self }
    }

    /// An oracle for a recording, in which no access is seen: a NOFLUSH return through a root that
    /// turned unsync is reported at the entry.
    #[must_use]
    pub fn auditor(vcpus: u16, max: usize) -> Self {
        Self { auditing: true, ..Self::with_max_findings(vcpus, max) }
    }

    /// What was found.
    #[must_use]
    pub const fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Whether the last access was a missed flush, and if so whether a harmful one.
    #[must_use]
    pub const fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// What a copy that nothing outlaws on this vCPU carries until anything is owed, due, released or
    /// given away once more: each of these happens at an instant of its own. 0 under a tag of L1's
    /// processor, where other floors hold.
    fn note(&self, vcpu: VcpuId) -> u64 {
        let floors = &self.vcpus[usize::from(vcpu.0)].floors;
        if floors.tag() != 0 {
            return 0;
        }
        let ruled = self.hardware.latest_birth().max(self.host.latest_ruled());
        (ruled.max(floors.latest) + 1) << 16 | u64::from(vcpu.0)
    }

    /// The vCPU an observation is about; unknown ones are made.
    fn vcpu(&mut self, at: &At) -> Option<usize> {
        let Actor::Vcpu(VcpuId(id)) = at.actor else { return None };
        let id = usize::from(id);
        if id >= self.vcpus.len() {
            self.vcpus.resize_with(id + 1, Vcpu::default);
        }
        Some(id)
    }

    fn obligation(&self, at: &At, rule: &'static Rule, op: &'static str, owed: Owed) -> Obligation {
        Obligation {
            must: owed.strength == Strength::Must,
            time: self.now,
            event: at.event,
            rule,
            op,
            scope: owed.scope,
            done: None,
            missed: None,
            exposed: false,
            tag: 0,
        }
    }

    /// An obligation of one vCPU arises.
    fn raise(&mut self, at: &At, id: usize, op: &'static str, owed: Owed) {
        if self.without == Some(owed.rule.id) {
            return;
        }
        let tag = self.vcpus[id].floors.tag();
        let obligation = Obligation { tag, ..self.obligation(at, owed.rule, op, owed) };
        self.vcpus[id].window.owe(open(&obligation));
        self.vcpus[id].floors.raise(obligation);
    }

    /// A host operation changes, buries or reuses frames.
    fn arch_host(&mut self, at: &At, op: &ArchOp) {
        match *op {
            ArchOp::HostChange { .. } if self.without == Some(required::HOST_CHANGE.id) => {}
            ArchOp::HostChange { gpa, size, rights } => {
                let scope = required::Scope::Frames { gpa, size };
                let owed = Owed { rule: &required::HOST_CHANGE, scope, strength: Strength::Must };
                let obligation = self.obligation(at, owed.rule, op_name(op), owed);
                for vcpu in &mut self.vcpus {
                    vcpu.window.owe(open(&obligation));
                }
                self.host.change(obligation, gpa.0, size, rights);
            }
            ArchOp::HostDead { gpa, size } => {
                self.host.dead(gpa.0, size, self.now);
                for id in 0..self.vcpus.len() {
                    if self.vcpus[id].in_guest {
                        self.expose_host(id);
                    }
                }
            }
            ArchOp::Release { gpa, size } => {
                self.host.release(gpa.0, size, self.now, at.event);
            }
            _ => {}
        }
    }

    /// Follows which PCID is current, and raises the advised floor of a NOFLUSH return: the PCID
    /// was not current since a flush of all PCIDs, so nothing older than now can be in it.
    fn residence<W: World>(&mut self, at: &At, id: usize, op: &ArchOp, before: &Regs, world: &W) {
        let old = before.pcid().0;
        let new = match at.actor {
            Actor::Vcpu(vcpu) => world.regs(vcpu).pcid().0,
            Actor::Host => return,
        };
        if old == new {
            return;
        }
        let now = self.now;
        let vcpu = &mut self.vcpus[id];
        let tag = vcpu.floors.tag();
        vcpu.left.insert((tag, old), now);
        let left = vcpu.left.get(&(tag, new)).copied().unwrap_or(0);
        let noflush = matches!(op, ArchOp::Cr3 { noflush: true, .. });
        if noflush && world.mmu() == MmuKind::Shadow && vcpu.floors.of_pcid(new) > left {
            let scope = required::Scope::PcidNonGlobal(tlbscope_trace::addr::Pcid(new));
            let rule = &required::NOFLUSH_RESIDENCE;
            self.raise(at, id, op_name(op), Owed { rule, scope, strength: rule.strength });
        }
    }

    /// The stamps of a copy that is being filled.
    fn stamp<W: World>(&mut self, id: usize, fill: &Fill, world: &W) -> Stamp {
        let now = self.now;
        let shift = match fill.kind {
            FillKind::Translation => fill.size.shift(),
            FillKind::Structure(2) if fill.size == PageSize::Size4M => 22,
            FillKind::Structure(level) => {
                SHIFTS[match level {
                    0..=2 => 1,
                    3 => 3,
                    4 => 4,
                    _ => 5,
                }]
            }
        };
        let mut stamp = Stamp { g: now, h: now, n: 0, shift, impossible: false, mode: 0 };
        match fill.source {
            _ if world.l2(VcpuId(id as u16)).is_some_and(|l2| l2.tables.is_some()) => {
                (stamp.n, stamp.h) = self.nested_stamp(fill.source);
            }
            Source::Guest => {
                stamp.h = self.physical_stamp(&fill.tag, fill.copy.gpa.0).1;
                stamp.impossible = self.other_pdptes(id, fill, world);
            }
            Source::Host => {}
            Source::Shadow { sp, index } => {
                let (g, h) = self.shadow.entry(sp, index);
                stamp.g = g.unwrap_or(now);
                stamp.h = h.unwrap_or(now);
                stamp.mode = mode(world.regs(VcpuId(id as u16)));
                if fill.kind == FillKind::Translation && self.uses.strayed {
                    stamp.mode = STRAYED;
                } else if fill.kind == FillKind::Translation {
                    let (impossible, generous) = self.possible(id, sp, index, fill, world);
                    stamp.impossible = impossible;
                    if generous {
                        stamp.mode = GENEROUS;
                    }
                }
            }
        }
        stamp
    }

    /// The `n` and `h` stamps of a copy made through the guest-physical mapping of its frame, if the
    /// walk used a cached one, else now. Mappings of page-table frames do not count for the leaf.
    fn physical_stamp(&self, tag: &Tag, gpa: u64) -> (u64, u64) {
        let used = &self.used_h[..self.used_h_count];
        let now = (self.now, self.now);
        if used.is_empty() {
            return now;
        }
        // The tag of an AMD translation has no nested CR3.
        let tag = Tag { ep4ta: self.used_root, ..*tag };
        let of = [12, 21, 30]
            .into_iter()
            .filter_map(|shift: u8| self.physical.get(&tag, gpa >> shift, shift));
        of.filter(|h| used.contains(h)).min().map_or(now, |(h, n)| (n, h))
    }
}

/// An obligation as its window sees it.
const fn open(o: &Obligation) -> Open {
    Open { time: o.time, scope: o.scope, by: By::Nobody, done: false, judged: false }
}

impl Observer for Oracle {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        self.now += 1;
        if matches!(
            op,
            ArchOp::HostChange { .. } | ArchOp::HostDead { .. } | ArchOp::Release { .. }
        ) {
            return self.arch_host(at, op);
        }
        let Some(id) = self.vcpu(at) else { return };
        let after = *world.regs(VcpuId(id as u16));
        let vcpu = &mut self.vcpus[id];
        vcpu.op = (at.event, op_name(op));
        if before != &after {
            vcpu.register = vcpu.op;
        }
        if !before.cr4().contains(Cr4::PCIDE) && after.cr4().contains(Cr4::PCIDE) {
            vcpu.pcide_set = at.event + 1;
        }
        for owed in required::of_guest(world.vendor(), op, before, &after, native) {
            self.raise(at, id, op_name(op), owed);
        }
        if let ArchOp::Nested(op) = op {
            return self.nested_op(at, id, op, world);
        }
        self.residence(at, id, op, before, world);
    }

    fn store<W: World>(&mut self, at: &At, gpa: Gpa, bytes: u8, _: u64, new: u64, world: &W) {
        self.now += 1;
        if bytes == 8 && world.mmu() == MmuKind::Shadow {
            self.shadow.store(gpa, new, self.now, at.event);
        }
        self.stored = self.now;
        self.stores.insert(gpa.0 >> 12, (self.now, at.event));
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, world: &W) {
        self.now += 1;
        self.shadow.act(act, self.now, world);
        match act {
            Act::HeldPage { gpa, hpa } => return self.held_page(at, *gpa, *hpa, world),
            Act::RemoteFlush { .. } => return self.remote_flush(at),
            _ => {}
        }
        let id = self.vcpu(at);
        self.lockless.act(at, act, id);
        let Some(id) = id else { return };
        match act {
            Act::Entry(context) => self.entry(at, id, context, world),
            Act::EntrySeen => {
                let context = self.vcpus[id].context;
                self.entry(at, id, &context, world);
            }
            Act::EntryAborted { failed: true } => self.vcpus[id].window.failed(),
            Act::Exit(_) => self.vcpus[id].in_guest = false,
            Act::FreeRoot { why: FreeWhy::Destroy, .. } => {
                self.hardware.orphan(id as u16, at.event);
                self.excess(at, id, act, world);
                // One of the same number that is created later runs L1, and never entered.
                let vcpu = &mut self.vcpus[id];
                vcpu.floors.switch(0, None);
                (vcpu.entered, vcpu.in_guest) = (false, false);
            }
            Act::VcpuLoad(pcpu) => {
                let vcpu = &mut self.vcpus[id];
                vcpu.window.moved |= vcpu.pcpu != pcpu.0 || !vcpu.entered;
                vcpu.pcpu = pcpu.0;
            }
            Act::VmcsLoad => self.vcpus[id].window.moved = true,
            Act::RootNew(root) => {
                let given = self.vcpus[id].op_of(at);
                self.hardware.root_born(root.0, self.now, given);
            }
            Act::NewAsid(_) => self.hardware.abandon(self.vcpus[id].pcpu, id as u16),
            Act::Inv(inv) => self.invalidate(id, inv, world),
            _ => self.excess(at, id, act, world),
        }
    }

    fn dropped(&mut self, at: &At, tag: &Tag, global: bool, entries: u32) {
        if let Some(id) = self.vcpu(at)
            && entries > 0
        {
            self.over_broad(at, id, tag, global, entries);
        }
    }

    fn walk_begin(&mut self, _: &At) {
        self.uses.walk_begins();
        self.used_h_count = 0;
    }

    fn walk_uses(&mut self, at: &At, mark: Mark, instead: Instead, tag: &Tag) {
        if mark.g == 0 && mark.h == 0 {
            return;
        }
        let stamp = Stamp::of(mark);
        match instead {
            Instead::GuestPhysical if self.used_h_count < self.used_h.len() => {
                self.used_h[self.used_h_count] = (stamp.h, stamp.n);
                self.used_h_count += 1;
                self.used_root = tag.ep4ta;
            }
            Instead::GuestPhysical => {}
            Instead::Structure { gva, shift, path } => {
                let (g, h, n, tag) = (stamp.g, stamp.h, stamp.n, *tag);
                let used = Structure { g, h, n, tag, gva, shift, path };
                match self.vcpu(at) {
                    Some(id) if tag.class == Class::GuestPhysical => {
                        self.nested_structure_used(at, id, used);
                    }
                    Some(id) => self.structure_used(at, id, used),
                    None => {}
                }
            }
        }
    }

    fn fill<W: World>(&mut self, at: &At, fill: &Fill, world: &W) -> Mark {
        self.now += 1;
        let Some(id) = self.vcpu(at) else { return Mark::default() };
        let stamp = self.stamp(id, fill, world);
        self.vcpus[id].floors.saw_size(stamp.shift);
        if fill.kind != FillKind::Translation {
            return stamp.mark();
        }
        let guest_physical = fill.tag.class == Class::GuestPhysical;
        let of = if guest_physical { stamp.h } else { stamp.g };
        self.hardware.filled(&fill.tag, fill.global, self.now, of);
        let (frame, shift) = (fill.copy.gpa.0, fill.size.shift());
        self.host.filled(frame, fill.copy.hpa.0, shift, fill.copy.write, self.now);
        if guest_physical {
            let stamps = (stamp.h, stamp.n);
            self.physical.insert(&fill.tag, frame >> shift, shift as u8, stamps);
            // In L2 the walk goes on through it (`nested`).
            if stamp.n != 0 && self.used_h_count < self.used_h.len() {
                self.used_h[self.used_h_count] = (stamp.h, stamp.n);
                self.used_h_count += 1;
            }
        }
        stamp.mark()
    }

    fn access<W: World>(&mut self, at: &At, access: &Accessed, world: &W) {
        self.now += 1;
        self.verdict = None;
        self.approved = false;
        if let Some(id) = self.vcpu(at) {
            self.judge(at, id, access, world);
            self.judge_freed_table(at, id, access, world);
        }
        self.uses.clear();
        self.used_h_count = 0;
    }

    /// The copy is younger than everything which could outlaw one. Nothing is left of the access
    /// before, so nothing has to be noted.
    #[inline]
    fn indifferent<W: World>(&self, vcpu: VcpuId, world: &W) -> Option<Marks> {
        let of = self.vcpus.get(usize::from(vcpu.0))?;
        if self.verdict.is_some() || !self.uses.is_empty() || self.lockless.reads() {
            return None;
        }
        let since = self.hardware.latest_birth().max(self.host.latest());
        let (g, h) = (since.max(of.floors.latest + 1), since);
        let shadow = world.mmu() == MmuKind::Shadow;
        let mode = shadow.then(|| mode(world.regs(vcpu)));
        Some(Stamp::marks(g, h, mode, self.note(vcpu)))
    }

    fn approves(&self) -> bool {
        self.approved
    }
}

/// Host frames are compared only where one is known.
fn frames_differ(reached: Hpa, fresh: Hpa) -> bool {
    reached != fresh && fresh.0 != 0
}
