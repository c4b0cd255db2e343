//! The host's own obligation: kvm_flush_remote_tlbs tells that entries which the hardware may have
//! cached were withdrawn or write-protected, and asks every vCPU for a flush of all (facts/kvm.md
//! 5.8).
//!
//! The vCPU on whose thread it is called owes the flush before its own next entry. Another vCPU may be
//! on its way in while the call is under way, and is kicked out again; the call returns when every
//! vCPU knows. So what it owes is due at an entry behind the return, which shows where the
//! caller does something else; on a thread of the host, which may be any, at its second entry.

use tlbscope_sim::arch::required::HOST_CHANGE;
use tlbscope_trace::act::Hook;
use tlbscope_trace::addr::Time;
use tlbscope_trace::regs::{MmuKind, Vendor};

use crate::finding::{Finding, Kind};

/// A call by somebody else that a vCPU has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// The record of the call.
    call: usize,
    /// The vCPU on whose thread it was made; `None`: on a thread of the host.
    by: Option<usize>,
    /// When the caller was seen to go on.
    returned: Option<Time>,
    /// The vCPU has entered since.
    entered: bool,
}

/// What one vCPU owes for the host's sake.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remote {
    /// The guest ran since everything was flushed: something may be cached.
    cached: bool,
    /// The record of the vCPU's own call that is not answered yet.
    owed: Option<usize>,
    /// The oldest call of somebody else that is not answered yet.
    asked: Option<Asked>,
    /// When everything was flushed last.
    flushed: Option<Time>,
}

/// What came of the calls that were open at an entry or a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The call that was left unanswered, if there is one.
    pub unanswered: Option<usize>,
    /// A call of somebody else is settled, one way or the other.
    pub settled: bool,
}

impl Remote {
    /// kvm_flush_remote_tlbs is called on this vCPU's thread.
    pub fn called(&mut self, index: usize) {
        if self.cached && self.owed.is_none() {
            self.owed = Some(index);
        }
    }

    /// It is called on another thread: a vCPU's (`by`) or one of the host. True if that makes this
    /// vCPU owe a flush that it did not owe.
    pub fn asked(&mut self, call: usize, by: Option<usize>, time: Time) -> bool {
        // A flush at the same instant may have come after it.
        let owes = self.cached && self.asked.is_none() && self.flushed != Some(time);
        if owes {
            self.asked = Some(Asked { call, by, returned: None, entered: false });
        }
        owes
    }

    /// The caller `by` does something else: its call has returned.
    pub fn returned(&mut self, by: usize, time: Time) {
        if let Some(asked) = &mut self.asked
            && asked.by == Some(by)
        {
            asked.returned.get_or_insert(time);
        }
    }

    /// A hook that executes something. Whether it reaches what the host may have changed: hooks of
    /// one page do not, and a flush by VPID leaves guest-physical mappings.
    pub fn hook(&mut self, hook: Hook, time: Time, vendor: Vendor, mmu: MmuKind) -> Outcome {
        let whole = match hook {
            Hook::Gva(_) => false,
            Hook::Guest => mmu == MmuKind::Shadow || vendor == Vendor::Amd,
            Hook::All | Hook::Current => true,
        };
        if !whole {
            return Outcome::default();
        }
        let settled = self.asked.is_some();
        *self = Self { flushed: Some(time), ..Self::default() };
        Outcome { unanswered: None, settled }
    }

    /// The vCPU enters; `flushes`: the entry itself drops everything.
    pub fn entry(&mut self, time: Time, flushes: bool) -> Outcome {
        self.cached = true;
        let own = self.owed.take().filter(|_| !flushes);
        let Some(asked) = &mut self.asked else {
            return Outcome { unanswered: own, settled: false };
        };
        let returned = asked.returned.is_some_and(|returned| returned < time);
        let due = returned || asked.by.is_none() && asked.entered;
        asked.entered = true;
        if !due && !flushes {
            return Outcome { unanswered: own, settled: false };
        }
        let call = asked.call;
        self.asked = None;
        Outcome { unanswered: own.or((!flushes).then_some(call)), settled: true }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has run and was then asked at record 7, at instant 10, by `by`.
    fn asked(by: Option<usize>) -> Remote {
        let mut remote = Remote::default();
        remote.entry(Time(1), false);
        assert!(remote.asked(7, by, Time(10)));
        remote
    }

    const NOTHING: Outcome = Outcome { unanswered: None, settled: false };
    const MISSED: Outcome = Outcome { unanswered: Some(7), settled: true };
    const SERVED: Outcome = Outcome { unanswered: None, settled: true };

    #[test]
    fn an_entry_behind_the_callers_return_is_too_late() {
        let mut remote = asked(Some(0));
        assert_eq!(remote.entry(Time(11), false), NOTHING, "it may have been on its way in");
        remote.returned(0, Time(12));
        assert_eq!(remote.entry(Time(12), false), NOTHING, "a tie is in no order");
        assert_eq!(remote.entry(Time(13), false), MISSED);
        assert_eq!(remote.entry(Time(14), false), NOTHING, "told once");
    }

    #[test]
    fn a_whole_flush_answers() {
        let mut remote = asked(Some(0));
        let gva = Hook::Gva(tlbscope_trace::addr::Gva(0));
        let (intel, tdp) = (Vendor::Intel, MmuKind::Tdp);
        assert_eq!(remote.hook(gva, Time(11), intel, tdp), NOTHING);
        assert_eq!(remote.hook(Hook::Guest, Time(11), intel, tdp), NOTHING, "INVVPID");
        assert_eq!(remote.hook(Hook::All, Time(11), intel, tdp), SERVED);
        remote.returned(0, Time(12));
        assert_eq!(remote.entry(Time(13), false), NOTHING);
    }

    #[test]
    fn of_a_host_thread_the_second_entry_tells() {
        let mut remote = asked(None);
        assert_eq!(remote.entry(Time(11), false), NOTHING);
        assert_eq!(remote.entry(Time(12), false), MISSED);
        let mut remote = asked(None);
        assert_eq!(remote.entry(Time(11), true), SERVED, "VPID 0: the entry flushes");
    }

    #[test]
    fn nothing_cached_owes_nothing() {
        let mut remote = Remote::default();
        assert!(!remote.asked(7, None, Time(10)), "it never ran");
        remote.entry(Time(11), false);
        remote.hook(Hook::All, Time(12), Vendor::Amd, MmuKind::Tdp);
        remote.entry(Time(13), false);
        assert!(!remote.asked(8, None, Time(12)), "the flush may have come after it");
        assert!(remote.asked(9, None, Time(14)));
    }
}
