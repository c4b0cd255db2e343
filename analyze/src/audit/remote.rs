//! The host's own obligation: kvm_flush_remote_tlbs tells that entries which the hardware may have
//! cached were withdrawn or write-protected, and asks every vCPU for a flush of all. The vCPU that
//! called it owes that before its own next entry (facts/kvm.md 5.8); of the others the recording
//! does not show whether they were on their way in.

use tlbscope_sim::arch::required::HOST_CHANGE;
use tlbscope_trace::act::Hook;
use tlbscope_trace::regs::{MmuKind, Vendor};

use crate::finding::{Finding, Kind};

/// What one vCPU owes for the host's sake.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remote {
    /// The guest ran since everything was flushed: something may be cached.
    cached: bool,
    /// The record of the call that is not answered yet.
    owed: Option<usize>,
}

impl Remote {
    /// kvm_flush_remote_tlbs is called on this vCPU's thread.
    pub fn called(&mut self, index: usize) {
        if self.cached && self.owed.is_none() {
            self.owed = Some(index);
        }
    }

    /// A hook that executes something. Whether it reaches what the host may have changed: hooks of
    /// one page do not, and a flush by VPID leaves guest-physical mappings.
    pub fn hook(&mut self, hook: Hook, vendor: Vendor, mmu: MmuKind) {
        let whole = match hook {
            Hook::Gva(_) => false,
            Hook::Guest => mmu == MmuKind::Shadow || vendor == Vendor::Amd,
            Hook::All | Hook::Current => true,
        };
        if whole {
            *self = Self::default();
        }
    }

    /// The vCPU enters. The call that it left unanswered, if there is one; `flushes`: the entry
    /// itself drops everything.
    pub fn entry(&mut self, flushes: bool) -> Option<usize> {
        let owed = self.owed.take().filter(|_| !flushes);
        self.cached = true;
        owed
    }
}

/// The finding of a call that was left unanswered.
pub fn finding(index: usize, vcpu: usize) -> Finding {
    Finding {
        cause: index as u64,
        vcpu: vcpu as u16,
        kind: Kind::Exposed,
        rule: HOST_CHANGE.id,
        op: "remote-flush",
        mechanism: "entry",
        use_: None,
        address: None,
        count: 1,
    }
}
