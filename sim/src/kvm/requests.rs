//! Requests to other vCPUs: the flags of each, vcpu->mode, and who has to be interrupted
//! (facts/kvm.md 5.1 to 5.3).

use tlbscope_trace::act::{Act, Request};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Actor;

use crate::engine::Machine;
use crate::policy::mechanics::RemoteIpi;

/// vcpu->mode.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Mode {
    /// KVM or userspace code runs.
    #[default]
    Outside,
    /// Committed to enter, or in the guest.
    InGuest,
    /// Somebody kicked it.
    Exiting,
    /// A lockless walk of shadow pages with interrupts off.
    Reading,
}

/// How a request is made (the bits above its number).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// KVM_REQUEST_WAIT: the caller waits until every target has left guest mode.
    pub wait: bool,
    /// KVM_REQUEST_NO_WAKEUP: a sleeping vCPU is left asleep.
    pub no_wakeup: bool,
    /// KVM_REQUEST_NO_ACTION: no bit is stored; the target only has to leave guest mode.
    pub no_action: bool,
}

impl Flags {
    /// KVM_REQ_OUTSIDE_GUEST_MODE.
    pub const OUTSIDE_GUEST_MODE: Self = Self { wait: true, no_wakeup: true, no_action: true };

    /// The flags of a request (facts 5.1).
    #[must_use]
    pub const fn of(request: Request) -> Self {
        let both = match request {
            Request::TlbFlush
            | Request::MmuReload
            | Request::TlbFlushGuest
            | Request::MmuFreeObsoleteRoots
            | Request::HvTlbFlush => true,
            Request::TlbFlushCurrent
            | Request::MmuSync
            | Request::LoadMmuPgd
            | Request::MmuUpdateRoot
            | Request::StealUpdate => false,
            // Facts 5.1: WAIT, NO_WAKEUP.
            Request::ApicPageReload => true,
        };
        Self { wait: both, no_wakeup: both, no_action: false }
    }
}

/// kvm_request_needs_ipi: whether a vCPU in this mode is interrupted, and its mode after the
/// compare-exchange of IN_GUEST_MODE for EXITING_GUEST_MODE.
#[must_use]
pub const fn needs_ipi(mode: Mode, flags: Flags) -> (bool, Mode) {
    let after = match mode {
        Mode::InGuest => Mode::Exiting,
        other => other,
    };
    let ipi = match mode {
        Mode::InGuest => true,
        Mode::Exiting | Mode::Reading => flags.wait,
        Mode::Outside => false,
    };
    (ipi, after)
}

impl Machine {
    /// The flags of a request, as far as the kernel heeds them.
    fn flags(&self, request: Request) -> Flags {
        let flags = Flags::of(request);
        Flags { no_wakeup: flags.no_wakeup && self.policy.mechanics.no_wakeup, ..flags }
    }

    /// Sets a request bit of one vCPU.
    pub(crate) fn post<O: Observer>(&mut self, v: usize, request: Request, o: &mut O) {
        self.vcpus[v].requests.post(request);
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Post(request), self);
    }

    /// kvm_make_all_cpus_request: every vCPU, the caller's own among them; those in guest mode are
    /// interrupted. Returns whether an IPI was needed.
    pub(crate) fn request_all<O: Observer>(&mut self, request: Request, o: &mut O) -> bool {
        if self.hints.is_some() {
            // Whoever drives the machine tells the other vCPUs when the recording does.
            if let Actor::Vcpu(vcpu) = self.at.actor {
                self.post(usize::from(vcpu.0), request, o);
            }
            return false;
        }
        let own = match self.at.actor {
            Actor::Vcpu(vcpu) if !self.policy.mechanics.remote_flush.own => usize::from(vcpu.0),
            _ => usize::MAX,
        };
        let mut ipi = false;
        let mut flying = Vec::new();
        for v in 0..self.vcpus.len() {
            if !self.vcpus[v].destroyed && (v != own || request != Request::TlbFlush) {
                self.post(v, request, o);
                let flags = self.flags(request);
                let wakes = self.vcpus[v].pause.halted && !flags.no_wakeup;
                ipi |= match self.vcpus[v].mode {
                    Mode::Outside if request == Request::TlbFlush && !wakes => {
                        self.interrupt_dirty(v, o)
                    }
                    _ => self.interrupt(v, flags, &mut flying, o),
                };
            }
        }
        self.deliver(&flying, o);
        ipi
    }

    /// `remote-flush.ipi = "ever-ran"`: the processor is interrupted although the vCPU has left it.
    fn interrupt_dirty<O: Observer>(&mut self, v: usize, o: &mut O) -> bool {
        let ran = std::mem::take(&mut self.vcpus[v].ran);
        let ipi = ran && self.policy.mechanics.remote_flush.ipi == RemoteIpi::EverRan;
        if ipi {
            self.act(o, Act::Ipi(self.vcpus[v].pcpu));
        }
        ipi
    }

    /// kvm_make_vcpus_request_mask.
    pub(crate) fn request_some<O: Observer>(
        &mut self,
        targets: &[usize],
        request: Request,
        o: &mut O,
    ) -> bool {
        let mut flying = Vec::new();
        let ipi = self.send(targets, request, &mut flying, o);
        self.deliver(&flying, o);
        ipi
    }

    /// The same for a caller that has waited for the kicks already.
    pub(crate) fn request_arrived<O: Observer>(
        &mut self,
        targets: &[usize],
        request: Request,
        o: &mut O,
    ) {
        let mut flying = Vec::new();
        self.send(targets, request, &mut flying, o);
        for v in flying {
            self.kick(v, o);
        }
    }

    fn send<O: Observer>(
        &mut self,
        targets: &[usize],
        request: Request,
        flying: &mut Vec<usize>,
        o: &mut O,
    ) -> bool {
        let (mut ipi, flags) = (false, self.flags(request));
        for v in targets {
            self.post(*v, request, o);
            ipi |= self.interrupt(*v, flags, flying, o);
        }
        ipi
    }

    /// Every vCPU leaves guest mode; no request is stored (facts 5.1, OUTSIDE_GUEST_MODE).
    pub(crate) fn force_outside<O: Observer>(&mut self, o: &mut O) {
        let mut flying = Vec::new();
        for v in 0..self.vcpus.len() {
            if !self.vcpus[v].destroyed {
                self.interrupt(v, Flags::OUTSIDE_GUEST_MODE, &mut flying, o);
            }
        }
        self.deliver(&flying, o);
    }

    /// The IPI of a request, if one is needed. A vCPU that has committed itself to enter finds the
    /// mode changed at its last check; one that executes guest instructions exits: at once, or when the
    /// kicks that are `flying` are delivered.
    fn interrupt<O: Observer>(
        &mut self,
        v: usize,
        flags: Flags,
        flying: &mut Vec<usize>,
        o: &mut O,
    ) -> bool {
        if !flags.no_wakeup && self.vcpus[v].pause.halted {
            self.wake(v, o);
            return false;
        }
        let (ipi, mode) = needs_ipi(self.vcpus[v].mode, flags);
        self.vcpus[v].mode = mode;
        if ipi {
            self.act(o, Act::Ipi(self.vcpus[v].pcpu));
            if self.kicks_take_time() {
                flying.push(v);
            } else {
                self.kick(v, o);
            }
        }
        ipi
    }

    /// Kicks that were sent together arrive together; their sender has waited for them.
    fn deliver<O: Observer>(&mut self, flying: &[usize], o: &mut O) {
        if !flying.is_empty() {
            self.in_flight(o);
            for v in flying {
                self.kick(*v, o);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of facts 5.2 and 5.3.
    #[test]
    fn who_is_interrupted() {
        let wait = Flags::of(Request::TlbFlush);
        let plain = Flags::of(Request::MmuSync);
        for (mode, flags, ipi, after) in [
            (Mode::Outside, wait, false, Mode::Outside),
            (Mode::Outside, plain, false, Mode::Outside),
            (Mode::InGuest, wait, true, Mode::Exiting),
            (Mode::InGuest, plain, true, Mode::Exiting),
            (Mode::Exiting, wait, true, Mode::Exiting),
            (Mode::Exiting, plain, false, Mode::Exiting),
            (Mode::Reading, wait, true, Mode::Reading),
            (Mode::Reading, plain, false, Mode::Reading),
            (Mode::InGuest, Flags::OUTSIDE_GUEST_MODE, true, Mode::Exiting),
        ] {
            assert_eq!(needs_ipi(mode, flags), (ipi, after), "{mode:?} {flags:?}");
        }
    }
}
