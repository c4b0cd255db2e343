//! L2 for the slow oracle: under which tags of L1's processor a copy was made, which operations of
//! L1 strike it out, and its own walk of L1's nested tables.

use tlbscope_sim::arch::nested::{Whose, required};
use tlbscope_trace::act::{Accessed, Outcome};
use tlbscope_trace::addr::{Gpa, Hpa, VcpuId};
use tlbscope_trace::nested::{Format, NestedOp, Tables, VIOLATION};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::AccessKind;
use tlbscope_trace::regs::{MmuKind, Regs, Vendor};

use super::walk::{self, Page};
use super::{Cached, Naive, Owed, reaches};

/// The tags of L1's processor that are current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// VPID or ASID; 0 is L1 itself.
    pub tag: u16,
    /// The top nested table.
    pub tables: Option<Gpa>,
    amd: bool,
}

impl Made {
    pub(super) fn now<W: World>(world: &W, vcpu: u16) -> Self {
        let l2 = world.l2(VcpuId(vcpu));
        Self {
            tag: l2.map_or(0, |l2| l2.tag),
            tables: l2.and_then(|l2| l2.tables).map(|tables| tables.root),
            amd: world.vendor() == Vendor::Amd,
        }
    }
}

impl Owed {
    /// Whether this outlaws a copy made before it.
    pub(super) fn strikes(&self, copy: &Cached) -> bool {
        if self.vcpu != copy.vcpu {
            return false;
        }
        let made = copy.made;
        let nested = made.tables.is_some();
        match self.whose {
            Whose::Tag(tag) | Whose::NewTag(tag) => {
                made.tag == tag
                    && (reaches(&self.scope, copy)
                        || made.amd && nested && copy.physical && !self.own)
            }
            Whose::Tags => made.tag != 0 && reaches(&self.scope, copy),
            Whose::TagsAndL1 => reaches(&self.scope, copy) || made.amd && nested,
            Whose::Tables(root) => made.tables == Some(Gpa(root)),
            Whose::AllTables => nested,
        }
    }
}

impl Naive {
    /// Whether a copy that these tags use is outlawed. One that was made under another tag, and that
    /// the hypervisor left where this one finds it, is measured by what this one's L1 was promised.
    pub(super) fn struck_for(&self, copy: &Cached, now: Made) -> bool {
        if copy.made.tag == now.tag {
            return copy.struck;
        }
        let as_own = Cached { made: now, ..copy.clone() };
        self.owed.iter().any(|owed| owed.time > copy.read && owed.strikes(&as_own))
    }

    pub(super) fn nested_op<W: World>(&mut self, vcpu: u16, op: &NestedOp, world: &W) {
        if let Some((whose, owed)) = required(world.vendor(), op) {
            let known = |tag: u16| self.tags.contains(&(vcpu, tag));
            if !matches!(whose, Whose::NewTag(tag) if known(tag)) {
                self.strike(vcpu, whose, false, owed.scope);
            }
        }
        let named = match *op {
            NestedOp::Enter { l2, .. } => l2.tag,
            NestedOp::Invvpid { vpid, kind: 0 | 1 | 3, .. } => vpid,
            _ => return,
        };
        if !self.tags.contains(&(vcpu, named)) {
            self.tags.push((vcpu, named));
        }
    }
}

/// L2's physical memory, read through L1's tables entry by entry.
struct Through<'a, W> {
    world: &'a W,
    tables: Tables,
}

impl<W: World> Through<'_, W> {
    /// Where `at` lies in L1's memory, if the access may go there.
    fn place(&self, at: u64, write: bool, fetch: bool) -> Option<u64> {
        let mut table = self.tables.root.0;
        for low in [39, 30, 21, 12] {
            let entry = self.world.read(Gpa(table + (at >> low & 511) * 8));
            let on = |n: u32| entry >> n & 1 == 1;
            let (execute, user) = match self.tables.format {
                Format::Ept => (on(2), true),
                Format::Plain => (!on(63), true),
                Format::Npt => (!on(63), on(2)),
            };
            if !on(0) || !user || write && !on(1) || fetch && !execute {
                return None;
            }
            let frame = entry & 0x000f_ffff_ffff_f000;
            if low == 12 || on(7) && (low == 21 || low == 30 && self.world.gbpages()) {
                return Some((frame >> low << low) + (at & ((1 << low) - 1)));
            }
            table = frame;
        }
        None
    }
}

impl<W: World> World for Through<'_, W> {
    fn vendor(&self) -> Vendor {
        self.world.vendor()
    }

    fn mmu(&self) -> MmuKind {
        self.world.mmu()
    }

    fn maxphyaddr(&self) -> u32 {
        self.world.maxphyaddr()
    }

    fn gbpages(&self) -> bool {
        self.world.gbpages()
    }

    fn regs(&self, vcpu: VcpuId) -> &Regs {
        self.world.regs(vcpu)
    }

    fn read(&self, gpa: Gpa) -> u64 {
        self.place(gpa.0, false, false).map_or(0, |at| self.world.read(Gpa(at)))
    }

    fn backing(&self, gpa: Gpa) -> Option<Hpa> {
        self.world.backing(Gpa(self.place(gpa.0, false, false)?))
    }

    fn memory_bytes(&self) -> u64 {
        self.world.memory_bytes()
    }
}

/// What the access comes to now, and the page it reaches with its address in L1's memory.
pub(super) fn translate<W: World>(
    world: &W,
    vcpu: u16,
    regs: &Regs,
    a: &Accessed,
) -> (Result<Page, u32>, Outcome) {
    let gva = a.access.gva.0;
    let Some(tables) = world.l2(VcpuId(vcpu)).and_then(|l2| l2.tables) else {
        let now = walk::translate(world, regs, gva);
        return (now, walk::outcome(regs, &a.access, &now));
    };
    let through = Through { world, tables };
    let now = walk::translate(&through, regs, gva);
    let outcome = walk::outcome(regs, &a.access, &now);
    let (Ok(mut page), Outcome::Gpa(at)) = (now, outcome) else { return (now, outcome) };
    let kind = a.access.kind;
    match through.place(at.0, kind == AccessKind::Write, kind == AccessKind::Exec) {
        Some(at) => {
            page.gpa = at;
            (Ok(page), Outcome::Gpa(Gpa(at)))
        }
        None => (now, Outcome::Fault(VIOLATION)),
    }
}
