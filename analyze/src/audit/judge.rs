//! The second pass: feeds what was recorded to the oracle.

use tlbscope_trace::act::{Act, At, Class, Context, Hook, HookBy, Inv, RootLookup, Tag};
use tlbscope_trace::addr::{Asid, Ep4ta, Hpa, PcpuId, Sp, Time, VcpuId};
use tlbscope_trace::observe::Observer as _;
use tlbscope_trace::op::{Actor, HostOp, Op};
use tlbscope_trace::recording::{Body, Meta, Record};
use tlbscope_trace::regs::{Cr4, MmuKind, Regs, Vendor};

use super::first::{First, bare};
use super::flush::{Around, Effect, effect};
use super::ops::{Step, counts, role_bits, step};
use super::pages::Pages;
use super::remote::{self, Remote};
use super::transitions::{Kinds, Under, name};
use super::world::Shown;
use super::{Audit, Found, Reason};
use crate::finding::{Class as Excess, Finding, Group, Kind};
use crate::oracle::Oracle;

/// The page number that tells the oracle that something was withdrawn, and nothing else.
const NO_PAGE: Sp = Sp(u32::MAX);
/// Guest "table" of a vCPU without paging: nothing shadows it, nothing below it turns unsync.
const NO_TABLE: u64 = u64::MAX;

/// One vCPU.
#[derive(Clone, Debug)]
struct Vcpu {
    pcpu: u16,
    /// VPID or ASID: the recording need not tell it, only that it is the vCPU's own.
    tag: u32,
    root: Hpa,
    root_valid: bool,
    /// SVM: the next VMRUN flushes.
    flush_at_entry: bool,
    /// An entry was seen since the recording's start or the last gap: what follows has its cause in
    /// the recording.
    settled: bool,
    /// Whether CR0 and CR4 are known, or may have changed in a gap.
    known: [bool; 2],
    efer_known: bool,
    /// The operation under way, by its record.
    op: Option<usize>,
    /// It is INVLPG or INVPCID 0.
    of_address: bool,
    /// What it is for the transitions.
    under: Under,
    /// The window saw a reset: frees and unloads in it belong to it.
    was_reset: bool,
    /// Operations judged since the last entry.
    open: u64,
    /// What of the registers the root's role depends on, at the last reset or load.
    role: (u64, u64, u64),
    /// What the host asked for.
    remote: Remote,
    /// The last record of its thread is a call of kvm_flush_remote_tlbs.
    calling: bool,
    /// The oracle was told something since the last entry.
    told: bool,
}

pub struct Auditor<'a> {
    first: &'a First,
    world: Shown,
    oracle: Oracle,
    max: usize,
    vpid_used: bool,
    vcpus: Vec<Vcpu>,
    pages: Pages,
    /// When a page turned unsync last, and on which vCPU.
    unsync: Option<(Time, usize)>,
    /// The next ASID that nobody had.
    next_tag: u32,
    /// Findings of the oracle that were taken over.
    taken: usize,
    /// Records judged.
    records: usize,
    audit: Audit,
}

impl<'a> Auditor<'a> {
    pub fn new(meta: &Meta, first: &'a First, vendor: Vendor, mmu: MmuKind, max: usize) -> Self {
        Self {
            first,
            world: Shown::new(meta, vendor, mmu),
            oracle: Oracle::auditor(meta.vcpus, max),
            max,
            vpid_used: meta.vpid != Some(false),
            vcpus: Vec::new(),
            pages: Pages::default(),
            unsync: None,
            next_tag: 1,
            taken: 0,
            records: 0,
            audit: Audit::default(),
        }
    }

    /// Judges the next records.
    pub fn judge(&mut self, records: &[Record]) {
        for (index, record) in (self.records..).zip(records) {
            self.record(index, record);
        }
        self.records += records.len();
    }

    /// There are no more.
    pub fn finish(mut self) -> Audit {
        self.end("recording-ends");
        self.audit.transitions.finish();
        self.audit
    }

    fn record(&mut self, index: usize, record: &Record) {
        match (&record.body, record.actor) {
            (Body::Gap(_), _) => self.gap(),
            (Body::Op(op), Actor::Vcpu(vcpu)) => {
                let id = self.vcpu(vcpu);
                self.op(index, record.time, id, op);
            }
            (Body::Act(act), Actor::Vcpu(vcpu)) => {
                let id = self.vcpu(vcpu);
                self.act(index, record.time, id, act);
            }
            (Body::Op(Op::Host(op) | Op::HostBegin(op)), Actor::Host) => self.host(op),
            (Body::Act(Act::RemoteFlush { .. }), Actor::Host) => {
                self.remote_flush(index, record.time, None);
                self.withdrawn();
            }
            (Body::Act(Act::ZapAll), Actor::Host) => self.withdrawn(),
            _ => {}
        }
    }

    fn vcpu(&mut self, vcpu: VcpuId) -> usize {
        let id = usize::from(vcpu.0);
        while self.vcpus.len() <= id {
            let intel = self.world.vendor == Vendor::Intel;
            let tag = if intel && !self.vpid_used { 0 } else { self.next_tag };
            self.next_tag += 1;
            self.world.regs_mut(self.vcpus.len());
            self.vcpus.push(Vcpu {
                pcpu: 0,
                tag,
                root: Hpa(0),
                root_valid: true,
                flush_at_entry: false,
                settled: false,
                known: [true; 2],
                efer_known: true,
                op: None,
                of_address: false,
                under: Under::default(),
                was_reset: false,
                open: 0,
                role: (0, 0, 0),
                remote: Remote::default(),
                calling: false,
                told: true,
            });
        }
        id
    }

    fn at(&self, id: usize, index: usize, time: Time) -> At {
        let event = self.vcpus[id].op.unwrap_or(index) as u64;
        At { event, time, actor: Actor::Vcpu(VcpuId(id as u16)) }
    }

    fn regs(&self, id: usize) -> &Regs {
        &self.world.regs[id]
    }

    /// The guest table that the vCPU's shadow root shadows.
    fn table(&self, id: usize) -> u64 {
        let regs = self.regs(id);
        if regs.paging() { regs.cr3 & !0xfff } else { NO_TABLE }
    }

    fn tell(&mut self, at: &At, id: usize, act: &Act) {
        self.oracle.act(at, act, &self.world);
        self.vcpus[id].told = true;
    }

    /// Findings that the record at `index` led to.
    fn collect(&mut self, index: usize) {
        let kept = self.oracle.findings().kept();
        if kept.len() > self.taken {
            let new = kept[self.taken..].iter();
            self.audit
                .found
                .extend(new.map(|finding| Found { finding: finding.clone(), seen: index }));
            self.taken = kept.len();
        }
    }

    /// A finding that is not the oracle's.
    fn add(&mut self, finding: Finding, seen: usize) {
        let Finding { kind, rule, op, mechanism, .. } = finding;
        let count = self.audit.groups.entry(Group { kind, rule, op, mechanism }).or_default();
        *count += 1;
        self.audit.summary.exposed += u64::from(kind == Kind::Exposed);
        if *count <= self.max as u64 {
            self.audit.found.push(Found { finding, seen });
        }
    }

    fn unjudged(&mut self, reason: Reason, count: u64) {
        if count > 0 {
            *self.audit.summary.unjudged.entry(reason).or_default() += count;
        }
    }

    fn op(&mut self, index: usize, time: Time, id: usize, op: &Op) {
        let op = bare(op);
        if !counts(op) {
            return;
        }
        self.audit.summary.operations += 1;
        let refused = self.first.refused(index);
        let old = self.first.old(index);
        let now = *self.regs(id);
        let it = step(op, &now, old);
        let owned = (it.before.cr0 ^ now.cr0) | (it.before.cr4 ^ now.cr4);
        self.audit.summary.owned_writes += u64::from(owned != 0 && old.is_some());
        let vcpu = &mut self.vcpus[id];
        vcpu.op = Some(index);
        vcpu.of_address = matches!(op, Op::Invlpg(_) | Op::Invpcid(_));
        let kind = Kinds::of(op, &it.before, &it.after, refused);
        vcpu.under
            .begin(kind, &mut self.audit.transitions, || name(op, &it.before, &it.after, refused));
        if refused {
            // It owes nothing, and that is judged.
            self.audit.summary.judged += 1;
            return;
        }
        let tie = self.unsync.is_some_and(|(at, other)| at == time && other != id);
        let reason = self.unjudgeable(index, id, op, &it, old).or(tie.then_some("tie"));
        *self.world.regs_mut(id) = it.after;
        self.now_known(id, op);
        if let Some(reason) = reason {
            self.unjudged(reason, 1);
            self.vcpus[id].settled = false;
            return;
        }
        self.audit.summary.judged += 1;
        self.vcpus[id].open += 1;
        if let Some(arch) = it.op {
            let at = self.at(id, index, time);
            self.oracle.arch(&at, &arch, &it.before, false, &self.world);
            self.vcpus[id].told = true;
        }
    }

    /// Why nothing can be said of an operation, if so.
    fn unjudgeable(
        &self,
        index: usize,
        id: usize,
        op: &Op,
        it: &Step,
        old: Option<u64>,
    ) -> Option<Reason> {
        let probes = &self.first.probes;
        if !probes.flushes() {
            return Some("no-flush-probes");
        }
        if self.first.blind(index) {
            return Some("operand-not-recorded");
        }
        let vcpu = &self.vcpus[id];
        let lost = match op {
            Op::Cr0(_) | Op::Clts | Op::Lmsw(_) => old.is_none() && !vcpu.known[0],
            Op::Cr4(_) => old.is_none() && !vcpu.known[1],
            Op::Efer(_) => !vcpu.efer_known,
            Op::Sregs(_) => !(vcpu.known[0] && vcpu.known[1]),
            _ => false,
        };
        if lost {
            return Some("gap");
        }
        let intel_tdp = self.world.vendor == Vendor::Intel && self.world.mmu == MmuKind::Tdp;
        let pge = (it.before.cr4 ^ it.after.cr4) & Cr4::PGE.bits() != 0;
        if matches!(op, Op::Cr4(_)) && old.is_none() && intel_tdp && pge {
            return Some("guest-owned-bits");
        }
        let gva = matches!(it.op, Some(tlbscope_trace::act::ArchOp::Invlpg(_)));
        (gva && !probes.flush_gva).then_some("no-probe-flush-gva")
    }

    fn now_known(&mut self, id: usize, op: &Op) {
        let vcpu = &mut self.vcpus[id];
        match op {
            Op::Cr0(_) => vcpu.known[0] = true,
            Op::Cr4(_) => vcpu.known[1] = true,
            Op::Efer(_) => vcpu.efer_known = true,
            Op::Init | Op::Reset => {
                vcpu.known = [true; 2];
                vcpu.efer_known = true;
            }
            _ => {}
        }
    }

    fn act(&mut self, index: usize, time: Time, id: usize, act: &Act) {
        self.vcpus[id].under.act(act);
        if std::mem::take(&mut self.vcpus[id].calling) {
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.remote.returned(id, time));
        }
        match *act {
            Act::EntrySeen | Act::Entry(_) => return self.entry(index, time, id),
            // What follows a page fault may be the fault's doing.
            Act::Exit(_) | Act::PageFault { .. } => self.vcpus[id].op = None,
            Act::Hook { hook, by, effective } => self.hook(index, time, id, hook, by, effective),
            Act::Serve(request) => {
                let at = self.at(id, index, time);
                if self.sure(id) {
                    self.tell(&at, id, act);
                }
                if !self.first.probes.serves(request) && self.first.probes.flushes() {
                    self.unseen_flush(id, &at);
                }
            }
            Act::Reset { .. } => self.reset(index, time, id),
            Act::Unload => {
                self.vcpus[id].root_valid = false;
                if self.sure(id) && !self.vcpus[id].was_reset {
                    let at = self.at(id, index, time);
                    self.tell(&at, id, act);
                }
            }
            Act::FreeRoots { mask } if mask & 1 == 1 => self.vcpus[id].root_valid = false,
            Act::NewPgd(found) => self.vcpus[id].root_valid = found != Some(RootLookup::Miss),
            Act::Load => {
                let role = role_bits(self.regs(id), self.world.mmu);
                let vcpu = &mut self.vcpus[id];
                (vcpu.root_valid, vcpu.role) = (true, role);
            }
            Act::LoadPgd { root } => {
                let vcpu = &mut self.vcpus[id];
                vcpu.told |= vcpu.root != root;
                (vcpu.root, vcpu.root_valid) = (root, true);
            }
            Act::VcpuLoad(pcpu) => self.placed(index, time, id, pcpu),
            Act::RemoteFlush { .. } => {
                self.vcpus[id].remote.called(index);
                self.remote_flush(index, time, Some(id));
                self.withdrawn();
            }
            Act::SpUnsync { .. } => {
                self.unsync = Some((time, id));
                self.page(id, act);
            }
            _ => self.page(id, act),
        }
        self.collect(index);
    }

    /// What happens to shadow pages and roots.
    fn page(&mut self, id: usize, act: &Act) {
        let table = self.table(id);
        let Self { pages, oracle, world, .. } = self;
        let at = At { event: 0, time: Time(0), actor: Actor::Host };
        let tell = |act: Act| oracle.act(&at, &act, world);
        match *act {
            Act::SpUnsync { sp } => pages.turned_unsync(sp, tell),
            Act::SpSync { sp, .. } | Act::SpZap { sp } => {
                pages.settled(sp, tell);
                self.withdrawn();
            }
            Act::SyncRoots => pages.synced(table, tell),
            Act::SyncPrevRoots => pages.synced_cached(table, id, tell),
            Act::InvalidateGva(gva) => pages.dropped(table, gva.0, tell),
            Act::ZapAll | Act::FreeObsoleteRoots => self.withdrawn(),
            _ => {}
        }
    }

    /// The host took something away: its own invariants want a flush of every vCPU.
    fn withdrawn(&mut self) {
        let at = At { event: 0, time: Time(0), actor: Actor::Host };
        self.oracle.act(&at, &Act::SpteClear { sp: NO_PAGE, index: 0 }, &self.world);
    }

    /// kvm_flush_remote_tlbs: every other vCPU owes a flush, too.
    fn remote_flush(&mut self, index: usize, time: Time, by: Option<usize>) {
        if !self.first.probes.flush_all {
            return;
        }
        for (id, vcpu) in self.vcpus.iter_mut().enumerate() {
            if by != Some(id) && vcpu.remote.asked(index, by, time) {
                self.audit.summary.remote_owed += 1;
            }
        }
        if let Some(by) = by {
            self.vcpus[by].calling = self.vcpus.len() > 1;
        }
    }

    /// Whether what is done now has its cause in the recording: an operation of this window.
    fn sure(&self, id: usize) -> bool {
        self.vcpus[id].settled && self.vcpus[id].op.is_some()
    }

    /// Whether a hook can be the answer to the operation under way: flush_gva answers INVLPG and
    /// INVPCID 0, and else the fault that KVM injects.
    fn asked(&self, id: usize, hook: Hook) -> bool {
        !matches!(hook, Hook::Gva(_)) || self.vcpus[id].of_address
    }

    fn around(&self, id: usize) -> Around {
        let vcpu = &self.vcpus[id];
        Around {
            vendor: self.world.vendor,
            mmu: self.world.mmu,
            vpid_used: self.vpid_used,
            tag: vcpu.tag,
            ep4ta: Ep4ta(vcpu.root.0),
            root: vcpu.root_valid,
        }
    }

    fn hook(
        &mut self,
        index: usize,
        time: Time,
        id: usize,
        hook: Hook,
        by: HookBy,
        effective: bool,
    ) {
        let around = self.around(id);
        let mut effect = effect(hook, by, &around);
        // Without VPIDs hooks still flush what EPT maps; else the recording knows best.
        if !effective && (self.vpid_used || self.world.mmu == MmuKind::Shadow) {
            effect = Effect::Nothing;
        }
        let at = self.at(id, index, time);
        let effective = effect != Effect::Nothing;
        if self.sure(id) && self.asked(id, hook) {
            self.tell(&at, id, &Act::Hook { hook, by, effective });
        } else if by != HookBy::Load {
            self.audit.summary.unattributed += u64::from(effective);
        }
        if effective {
            let (vendor, mmu) = (self.world.vendor, self.world.mmu);
            let outcome = self.vcpus[id].remote.hook(hook, time, vendor, mmu);
            self.audit.summary.remote_judged += u64::from(outcome.settled);
        }
        match effect {
            Effect::Nothing => {}
            Effect::Now(inv) => self.tell(&at, id, &Act::Inv(inv)),
            Effect::AtEntry => {
                self.vcpus[id].flush_at_entry = true;
                self.vcpus[id].told = true;
            }
        }
        // The probe that tells of the shadow side may be missing; the hook is called with it.
        if let Hook::Gva(gva) = hook
            && !self.first.probes.invalidate_gva
        {
            self.page(id, &Act::InvalidateGva(gva));
        }
    }

    /// A flush was asked for and served by a hook that the recording never shows.
    fn unseen_flush(&mut self, id: usize, at: &At) {
        let open = std::mem::take(&mut self.vcpus[id].open);
        self.audit.summary.judged -= open;
        self.unjudged("no-probe-of-the-hook", open);
        self.vcpus[id].remote = Remote::default();
        self.clean(id, at);
    }

    /// Takes everything that this vCPU may have cached for flushed.
    fn clean(&mut self, id: usize, at: &At) {
        let invs: &[Inv] = match self.world.vendor {
            Vendor::Intel => &[Inv::VpidAll, Inv::EptGlobal, Inv::VpidZeroTransition],
            Vendor::Amd => &[Inv::TlbControlAll],
        };
        for inv in invs {
            self.tell(at, id, &Act::Inv(*inv));
        }
    }

    fn reset(&mut self, index: usize, time: Time, id: usize) {
        let role = role_bits(self.regs(id), self.world.mmu);
        let sure = self.sure(id);
        let vcpu = &mut self.vcpus[id];
        let same = vcpu.role == role;
        (vcpu.root_valid, vcpu.role, vcpu.was_reset) = (false, role, true);
        // Only a register write that changed no bit of the role makes a reset needless for sure.
        if sure && same {
            let at = self.at(id, index, time);
            self.tell(&at, id, &Act::Reset { role_changed: Some(false) });
        }
    }

    fn placed(&mut self, index: usize, time: Time, id: usize, pcpu: PcpuId) {
        let moved = self.vcpus[id].pcpu != pcpu.0;
        if moved && self.world.vendor == Vendor::Amd {
            // A VMCB that moves gets a new ASID (facts/kvm.md 6.3).
            self.vcpus[id].tag = self.next_tag;
            self.next_tag += 1;
        }
        self.vcpus[id].pcpu = pcpu.0;
        let at = self.at(id, index, time);
        if moved || !self.vcpus[id].settled {
            self.tell(&at, id, &Act::VcpuLoad(pcpu));
        }
    }

    fn entry(&mut self, index: usize, time: Time, id: usize) {
        self.audit.summary.entries += 1;
        let before = self.audit.found.len();
        let at = self.at(id, index, time);
        if self.vcpus[id].told {
            if std::mem::take(&mut self.vcpus[id].flush_at_entry) {
                let asid = Asid(self.vcpus[id].tag);
                self.tell(&at, id, &Act::Inv(Inv::TlbControlAsid(asid)));
            }
            if self.vcpus[id].tag == 0 {
                self.tell(&at, id, &Act::Inv(Inv::VpidZeroTransition));
            }
            let context = self.context(id);
            self.tell(&at, id, &Act::Entry(context));
            self.collect(index);
        }
        let shadow = self.world.mmu == MmuKind::Shadow;
        let vcpu = &mut self.vcpus[id];
        let outcome = vcpu.remote.entry(time, vcpu.tag == 0 && shadow);
        self.audit.summary.remote_judged += u64::from(outcome.settled);
        if let Some(call) = outcome.unanswered
            && self.first.probes.flush_all
            // One flush would have served the guest and the host: one miss.
            && self.audit.found.len() == before
        {
            self.add(remote::finding(call, id), index);
        }
        let Self { vcpus, audit, .. } = self;
        let vcpu = &mut vcpus[id];
        vcpu.told = false;
        vcpu.settled = true;
        vcpu.open = 0;
        vcpu.op = None;
        vcpu.was_reset = false;
        vcpu.under.end(&mut audit.transitions);
    }

    fn context(&mut self, id: usize) -> Context {
        let shadow = self.world.mmu == MmuKind::Shadow;
        let table = self.table(id);
        let Self { pages, oracle, world, .. } = self;
        let at = At { event: 0, time: Time(0), actor: Actor::Host };
        let shadow_root = shadow.then(|| pages.used(table, id, |act| oracle.act(&at, &act, world)));
        let class = match (self.world.vendor, shadow) {
            (Vendor::Amd, _) => Class::Asid,
            (Vendor::Intel, true) => Class::Linear,
            (Vendor::Intel, false) => Class::Combined,
        };
        let vcpu = &self.vcpus[id];
        let ep4ta = Ep4ta(if class == Class::Combined { vcpu.root.0 } else { 0 });
        let pcid = self.regs(id).pcid();
        let tag = Tag { pcpu: PcpuId(vcpu.pcpu), class, id: vcpu.tag, ep4ta, pcid };
        Context { tag, root: vcpu.root, shadow_root }
    }

    fn host(&mut self, op: &HostOp) {
        let changes = matches!(
            op,
            HostOp::Map { .. }
                | HostOp::Unmap { .. }
                | HostOp::Protect { .. }
                | HostOp::Ro { .. }
                | HostOp::DirtyLog { .. }
                | HostOp::ZapAll
                | HostOp::Memslot { .. }
        );
        if changes {
            self.audit.summary.operations += 1;
            self.unjudged("host-change", 1);
            self.withdrawn();
        }
    }

    /// Events are missing: nothing that came before may be held against what comes after.
    fn gap(&mut self) {
        self.end("gap");
        self.oracle = Oracle::auditor(self.vcpus.len() as u16, self.max);
        self.pages = Pages::default();
        for vcpu in &mut self.vcpus {
            vcpu.settled = false;
            vcpu.known = [false; 2];
            vcpu.efer_known = false;
            vcpu.op = None;
            vcpu.under.forget();
            vcpu.told = true;
            vcpu.flush_at_entry = false;
            vcpu.remote = Remote::default();
            vcpu.calling = false;
            vcpu.root_valid = true;
        }
    }

    /// What is open stays so: its verdict is lost. The oracle's numbers are taken over.
    fn end(&mut self, reason: Reason) {
        let open: u64 = self.vcpus.iter().map(|vcpu| vcpu.open).sum();
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.open = 0);
        self.audit.summary.judged -= open;
        self.unjudged(reason, open);
        let findings = self.oracle.findings();
        self.taken = 0;
        for (group, count) in findings.groups() {
            *self.audit.groups.entry(*group).or_default() += count;
        }
        let summary = &mut self.audit.summary;
        summary.missed += findings.missed();
        summary.exposed += findings.count(|kind| kind == Kind::Exposed);
        summary.advised += findings.count(|kind| kind == Kind::Advised);
        summary.excessive += findings.excessive();
        summary.bookkeeping += findings.bookkeeping;
        for (class, name) in [
            (Excess::Unrequired, "unrequired"),
            (Excess::Redundant, "redundant"),
            (Excess::OverBroad, "over-broad"),
        ] {
            let count = findings.count(|kind| kind == Kind::Excessive(class));
            *summary.excessive_by.entry(name).or_default() += count;
        }
    }
}
