//! The slow oracle: every copy is kept with its value, instant and tags, and every operation
//! strikes out the copies in its binding scope by scanning them all. Using a struck-out copy is a
//! missed flush. It shares no floors, marks or walker with the fast oracle, only the table of
//! requirements, and answers one question: was this access missed, and was it harmful?

mod gone;
mod nested;
mod structures;
mod walk;

use tlbscope_sim::arch::nested::Whose;
use tlbscope_sim::arch::required::{Scope, Strength, of_guest};
use tlbscope_trace::act::{
    Accessed, Act, ArchOp, At, Class, Copied, Fill, FillKind, Instead, Mark, Outcome, Source, Tag,
    Via,
};
use tlbscope_trace::addr::{Gpa, VcpuId};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{AccessKind, Actor};
use tlbscope_trace::regs::{Cr4, Regs};

use gone::{Owners, Reuses};
use nested::Made;
use structures::Links;

/// One copy in some cache of the hardware.
#[derive(Clone, Debug)]
struct Cached {
    vcpu: u16,
    /// Under which tags of L1's processor it was made.
    made: Made,
    tag: Tag,
    global: bool,
    structure: bool,
    physical: bool,
    address: u64,
    bytes: u64,
    content: Copied,
    /// When it was last known equal to the guest's entries.
    read: u64,
    /// When the host's mapping was read.
    host_read: u64,
    /// A binding operation outlaws it.
    struck: bool,
    /// The EPT that it was made through is no more, and its EP4TA another's.
    orphan: bool,
}

/// One leaf entry of a shadow page.
#[derive(Clone, Copy, Debug)]
struct Spte {
    sp: u32,
    index: u16,
    made: u64,
}

/// What one vCPU owed, in full.
#[derive(Clone, Copy, Debug)]
struct Owed {
    vcpu: u16,
    whose: Whose,
    /// Software's own operation under its tag: it says nothing of the tables of who runs it.
    own: bool,
    time: u64,
    scope: Scope,
}

/// A host change in full.
#[derive(Clone, Copy, Debug)]
struct Changed {
    from: u64,
    end: u64,
    time: u64,
    /// Read-only copies may stay.
    rights: bool,
    dead: bool,
}

/// The slow oracle.
#[derive(Clone, Debug, Default)]
pub struct Naive {
    now: u64,
    copies: Vec<Cached>,
    sptes: Vec<Spte>,
    unsync: Vec<(u32, u64)>,
    owed: Vec<Owed>,
    changes: Vec<Changed>,
    /// Tags of L1's processor that each vCPU has used.
    tags: Vec<(u16, u16)>,
    /// The event in which a walk used a struck-out paging-structure copy last.
    used_struck: Option<u64>,
    links: Links,
    used_physical: bool,
    owners: Owners,
    reuses: Reuses,
    /// Shadow pages that were freed while somebody read them.
    freed: Vec<u32>,
    /// The vCPU that has read one of them, for the access that comes.
    read_freed: Option<u16>,
    verdict: Option<bool>,
    /// Missed accesses: (event, vCPU, harmful).
    missed: Vec<(u64, u16, bool)>,
}

/// Whether a binding scope reaches a copy of a page at `[address, address + bytes)`.
fn reaches(scope: &Scope, c: &Cached) -> bool {
    let mine = |pcid: u16| c.tag.pcid.0 == pcid;
    let page = |gva: u64| gva >= c.address && gva - c.address < c.bytes;
    if c.physical {
        return false;
    }
    match *scope {
        Scope::Everything | Scope::EveryAsid => true,
        Scope::NonGlobal => !c.global,
        Scope::Pcid(pcid) => mine(pcid.0),
        Scope::PcidNonGlobal(pcid) => mine(pcid.0) && !c.global,
        Scope::Address { pcid, gva, path } => {
            if c.structure {
                mine(pcid.0) && (page(gva.0) || !path)
            } else {
                page(gva.0) && (c.global || mine(pcid.0))
            }
        }
        Scope::AddressNonGlobal { pcid, gva } => page(gva.0) && mine(pcid.0) && !c.global,
        Scope::EveryPcidAddress(gva) => page(gva.0),
        Scope::Fault { pcid, gva } => page(gva.0) && mine(pcid.0),
        Scope::OtherGlobals(_) | Scope::AddressOtherGlobals { .. } | Scope::Frames { .. } => false,
    }
}

impl Naive {
    /// An oracle for a machine with this many vCPUs.
    #[must_use]
    pub fn new(vcpus: u16) -> Self {
        let _ = vcpus;
        Self::default()
    }

    /// Whether the last access was a missed flush, and if so whether a harmful one.
    #[must_use]
    pub const fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// All missed accesses: event, vCPU, harmful.
    #[must_use]
    pub fn missed(&self) -> &[(u64, u16, bool)] {
        &self.missed
    }

    fn strike(&mut self, vcpu: u16, whose: Whose, own: bool, scope: Scope) {
        let owed = Owed { vcpu, whose, own, time: self.now, scope };
        for copy in &mut self.copies {
            copy.struck |= owed.strikes(copy);
        }
        self.owed.push(owed);
    }

    fn host(&mut self, op: &ArchOp) -> bool {
        let now = self.now;
        match *op {
            ArchOp::HostChange { gpa, size, rights } => {
                let (from, end) = (gpa.0, gpa.0.saturating_add(size));
                self.changes.push(Changed { from, end, time: now, rights, dead: false });
                true
            }
            ArchOp::HostDead { gpa, size } => {
                let end = gpa.0.saturating_add(size);
                for change in &mut self.changes {
                    change.dead |= change.from < end && gpa.0 < change.end;
                }
                true
            }
            ArchOp::Release { gpa, size } => {
                self.reused(gpa.0, size);
                true
            }
            _ => false,
        }
    }

    /// Whether a copy of this frame, its host mapping read at `read`, is outlawed by the host.
    fn host_struck(&self, copy: &Copied, read: u64) -> bool {
        let (gpa, write) = (copy.gpa.0, copy.write);
        let of = |c: &&Changed| c.from <= gpa && gpa < c.end && (write || !c.rights);
        self.changes.iter().filter(of).any(|c| c.dead && c.time > read)
    }

    /// A copy read from a frozen shadow entry is struck out if anything since was owed for it.
    fn strike_frozen(&self, copy: &mut Cached, sp: u32, index: u16) {
        let made = self.sptes.iter().find(|s| s.sp == sp && s.index == index).map(|s| s.made);
        copy.host_read = made.unwrap_or(self.now);
        let Some((_, frozen)) = self.unsync.iter().find(|u| u.0 == sp) else { return };
        let known_equal = (*frozen).max(made.unwrap_or(0));
        // In L2 the shadow page stands for L1's tables: L2's own were read now, and what it asked for
        // concerns them alone.
        let nested = copy.made.tables.is_some();
        if !nested {
            copy.read = known_equal;
        }
        for owed in self.owed.iter().filter(|owed| !(nested && owed.own)) {
            if owed.time > known_equal && owed.strikes(copy) {
                copy.struck = true;
            }
        }
    }

    /// The guest-physical copies through which a frame was reached: when the host's mapping was
    /// read, whether L1 outlawed one, and whether one is of an EPT that is no more.
    fn physical_read(&self, tag: &Tag, frame: &Copied) -> Option<(u64, bool, bool)> {
        let of = self.copies.iter().filter(|c| {
            c.physical
                && c.tag.pcpu == tag.pcpu
                && c.tag.ep4ta == tag.ep4ta
                && (c.content.gpa, c.content.hpa) == (frame.gpa, frame.hpa)
        });
        let read = of.map(|c| (c.host_read, c.struck, c.orphan));
        read.reduce(|a, b| (a.0.min(b.0), a.1 | b.1, a.2 | b.2))
    }

    /// The copy that an access used: the vCPU's own, else one that another has left under the tag.
    fn find(
        &self,
        vcpu: u16,
        tag: &Tag,
        global: bool,
        gva: u64,
        content: &Copied,
    ) -> Option<usize> {
        let of = |mine: bool| {
            self.copies.iter().rposition(|c| {
                (c.vcpu == vcpu) == mine
                    && !c.structure
                    && !c.physical
                    && c.global == global
                    && c.tag == *tag
                    && gva >= c.address
                    && gva - c.address < c.bytes
                    && (c.content.gpa, c.content.hpa) == (content.gpa, content.hpa)
            })
        };
        of(true).or_else(|| of(false))
    }

    /// Whether an access came out otherwise than by the guest's tables as they are now.
    fn harmful<W: World>(
        &self,
        (vcpu, regs): (u16, &Regs),
        a: &Accessed,
        used: Option<&Copied>,
        w: &W,
    ) -> bool {
        let (now, outcome) = nested::translate(w, vcpu, regs, a);
        if outcome != a.outcome {
            return true;
        }
        let (Outcome::Gpa(gpa), Ok(page)) = (outcome, now) else { return false };
        let frame = w.backing(Gpa(gpa.0 & !0xfff)).map_or(0, |hpa| hpa.0);
        let other_frame = frame != 0 && frame != a.hpa.0;
        let key = regs.cr4().contains(Cr4::PKE) && used.is_some_and(|u| u.key != page.key);
        let dirty = a.access.kind == AccessKind::Write && !page.dirty;
        other_frame || key || regs.paging() && (dirty || !page.accessed)
    }
}

impl Observer for Naive {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        self.now += 1;
        if self.host(op) {
            return;
        }
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return };
        let after = world.regs(VcpuId(vcpu));
        if let ArchOp::Nested(op) = op {
            return self.nested_op(vcpu, op, world);
        }
        let whose = Whose::Tag(Made::now(world, vcpu).tag);
        for owed in of_guest(world.vendor(), op, before, after, native) {
            if owed.strength == Strength::Must {
                self.strike(vcpu, whose, true, owed.scope);
            }
        }
    }

    fn store<W: World>(&mut self, _: &At, _: Gpa, _: u8, _: u64, _: u64, _: &W) {
        self.now += 1;
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, world: &W) {
        self.now += 1;
        self.links.act(at, act, self.now);
        self.tags_change(at, act, world);
        match *act {
            Act::SpteSet { sp, index } => {
                self.sptes.retain(|s| (s.sp, s.index) != (sp.0, index));
                self.sptes.push(Spte { sp: sp.0, index, made: self.now });
            }
            Act::SpteClear { sp, index } => {
                self.sptes.retain(|s| (s.sp, s.index) != (sp.0, index));
            }
            Act::SpUnsync { sp } if self.unsync.iter().all(|u| u.0 != sp.0) => {
                self.unsync.push((sp.0, self.now));
            }
            Act::SpSync { sp, .. } => self.unsync.retain(|u| u.0 != sp.0),
            Act::SpZap { sp } | Act::SpNew { sp, .. } => {
                self.unsync.retain(|u| u.0 != sp.0);
                self.sptes.retain(|s| s.sp != sp.0);
            }
            Act::SpFree { sp } => self.freed.push(sp.0),
            Act::SpRead { sp } if self.freed.contains(&sp.0) => {
                self.read_freed = match at.actor {
                    Actor::Vcpu(VcpuId(vcpu)) => Some(vcpu),
                    Actor::Host => None,
                };
            }
            _ => {}
        }
    }

    fn walk_begin(&mut self, _: &At) {
        self.used_physical = false;
    }

    fn walk_uses(&mut self, at: &At, _: Mark, instead: Instead, tag: &Tag) {
        self.used_physical |= instead == Instead::GuestPhysical;
        if self.structure_struck(at, tag, instead) {
            self.used_struck = Some(at.event);
        }
    }

    fn fill<W: World>(&mut self, at: &At, fill: &Fill, world: &W) -> Mark {
        self.now += 1;
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return Mark::default() };
        let bytes = match fill.kind {
            FillKind::Structure(3) => 1 << 30,
            FillKind::Structure(4) => 1 << 39,
            FillKind::Structure(5) => 1 << 48,
            _ => fill.size.bytes(),
        };
        let mut copy = Cached {
            vcpu,
            made: Made::now(world, vcpu),
            tag: fill.tag,
            global: fill.global,
            structure: fill.kind != FillKind::Translation,
            physical: fill.tag.class == Class::GuestPhysical,
            address: fill.address & !(bytes - 1),
            bytes,
            content: fill.copy,
            read: self.now,
            host_read: self.now,
            struck: false,
            orphan: false,
        };
        match fill.source {
            Source::Shadow { sp, index } => self.strike_frozen(&mut copy, sp.0, index),
            Source::Guest if self.used_physical => {
                let read = self.physical_read(&fill.tag, &fill.copy);
                let (read, struck, orphan) = read.unwrap_or((self.now, false, false));
                copy.host_read = read;
                copy.struck |= struck;
                copy.orphan |= orphan;
            }
            Source::Guest | Source::Host => {}
        }
        // In L2 the walk goes on through the mapping that it has just made, which is as old as the
        // shadow of L1's entry that it copies.
        self.used_physical |= copy.physical && fill.source != Source::Host;
        // A guest-physical mapping is the EP4TA's, whatever VPID, PCID or vCPU it was made under.
        let same = |c: &Cached| match copy.physical {
            true => (c.tag.pcpu, c.tag.ep4ta) == (copy.tag.pcpu, copy.tag.ep4ta),
            false => c.tag == copy.tag && c.vcpu == vcpu,
        };
        self.copies.retain(|c| {
            !(same(c)
                && (c.global, c.structure, c.physical)
                    == (copy.global, copy.structure, copy.physical)
                && (c.address, c.bytes) == (copy.address, copy.bytes))
        });
        self.copies.push(copy);
        Mark::default()
    }

    fn access<W: World>(&mut self, at: &At, a: &Accessed, world: &W) {
        self.now += 1;
        self.verdict = None;
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return };
        let gva = a.access.gva.0;
        let mut struck = self.used_struck == Some(at.event);
        struck |= self.read_freed.take_if(|reader| *reader == vcpu).is_some();
        let mut used = None;
        if let Via::Copy { tag, global, copy, .. } = &a.via
            && let Some(place) = self.find(vcpu, tag, *global, gva, copy)
        {
            let found = &self.copies[place];
            struck |= found.vcpu == vcpu && self.struck_for(found, Made::now(world, vcpu))
                || self.host_struck(copy, found.host_read)
                || self.outlived(found, tag);
            used = Some(copy);
        }
        if struck {
            let harmful = self.harmful((vcpu, world.regs(VcpuId(vcpu))), a, used, world);
            self.verdict = Some(harmful);
            self.missed.push((at.event, vcpu, harmful));
        }
        self.used_struck = None;
        self.used_physical = false;
    }
}
