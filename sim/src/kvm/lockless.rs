//! Readers of shadow pages without a lock (facts/kvm.md 5.3, 5.8).
//!
//! The handler of an MMIO access, and the fast path of a page fault, go down the shadow tables without
//! mmu_lock: interrupts off, vcpu->mode = READING_SHADOW_PAGE_TABLES. Whoever frees a shadow page has
//! flushed every vCPU before (kvm_mmu_commit_zap_page), and that request waits for a reader as it does
//! for a guest: its IPI is not acknowledged before the walk is over. So a page that was zapped is not
//! freed as long as somebody who may have arrived at it reads on.
//!
//! `walk begin` and `walk end` are the two ends of such a walk. It has arrived at the page that holds
//! the address's leaf entry; what it reads there at its end is whatever the page's memory then holds.
//! Two-dimensional roots are read under RCU instead, and have no pages in this machine.
//!
//! Here the thread that frees pages does not stand still in its flush, for an event runs to its end:
//! only what it must not have done before the reader is gone, the freeing, is left over until then.
//! Freed memory goes to the next pages that are made, the first freed first.

use tlbscope_trace::act::{Accessed, Act, Outcome, Via};
use tlbscope_trace::addr::{Gpa, Gva, PAGE_BYTES, Sp};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Access, AccessKind};

use super::requests::Mode;
use super::shadow::{Spte, index};
use crate::engine::Machine;
use crate::policy::mechanics::LocklessWalk;

/// Where somebody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Reader {
    /// The address that is looked up.
    pub gva: Gva,
    /// The page at which the walk has arrived.
    pub sp: Sp,
}

impl Machine {
    /// Whether anybody reads shadow pages without a lock.
    fn read_without_lock(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.pause.reader.is_some())
    }

    /// `walk begin`: the walk goes down the active root as far as the tables reach. False if there is
    /// none to read.
    pub(crate) fn lockless_begin<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) -> bool {
        self.exit(v, None, o);
        let Some(root) = self.vcpus[v].mmu.root.and_then(|root| root.sp) else { return false };
        let mut sp = root;
        while let Spte::Link(child) =
            self.shadow.spte(sp, index(gva.0, self.shadow.page(sp).role.level()))
        {
            sp = child;
        }
        self.vcpus[v].pause.reader = Some(Reader { gva, sp });
        if self.policy.mechanics.lockless_walk == LocklessWalk::Reading {
            self.vcpus[v].mode = Mode::Reading;
        }
        true
    }

    /// `walk end`: the entry is read. A mapping is acted on, and the access emulated; with nothing there
    /// the access is taken again. `None`: it has to wait.
    pub(crate) fn lockless_end<O: Observer>(
        &mut self,
        v: usize,
        reader: Reader,
        o: &mut O,
    ) -> Option<Outcome> {
        let Reader { gva, sp } = reader;
        let access = Access { gva, kind: AccessKind::Read, user: false, ac: false };
        self.act(o, Act::SpRead { sp });
        let holds = self.shadow.stands_in(sp);
        let entry = self.shadow.spte(holds, index(gva.0, self.shadow.page(sp).role.level()));
        self.vcpus[v].pause.reader = None;
        self.vcpus[v].mode = Mode::Outside;
        self.released(v);
        if !self.read_without_lock() {
            self.shadow.free_zapped();
            self.shadow.forget_freed();
        }
        let Spte::Leaf(leaf) = entry else {
            // Back into the guest, which another vCPU of this pCPU may have been running in.
            self.schedule_in(v, o);
            self.take_pcpu(v, o);
            return self.access(v, &access, o);
        };
        let outcome = Outcome::Gpa(Gpa(leaf.gpa.0 | gva.0 & (PAGE_BYTES - 1)));
        let (via, hpa) = (Via::Walk, leaf.hpa);
        o.access(&self.at_vcpu(v), &Accessed { access, via, outcome, hpa }, self);
        Some(outcome)
    }

    /// A shadow page was zapped. Only a reader can tell when it is freed.
    pub(super) fn page_zapped(&mut self, sp: Sp) {
        // What stands for a PAE root comes from elsewhere.
        if self.read_without_lock() && !self.shadow.page(sp).special {
            self.shadow.leave(sp);
        }
    }

    /// kvm_mmu_commit_zap_page, after its flush: the zapped pages are free, once nobody is left for whom
    /// a flush waits.
    pub(crate) fn commit_zapped<O: Observer>(&mut self, flushed: bool, o: &mut O) {
        let waits = self.vcpus.iter().any(|vcpu| vcpu.mode == Mode::Reading);
        if flushed && waits {
            return;
        }
        for sp in self.shadow.free_zapped() {
            self.act(o, Act::SpFree { sp });
        }
    }
}
