//! A vCPU that executed HLT: it sleeps in the host, off its pCPU, until something wakes it
//! (facts/kvm.md 5.2).
//!
//! What wakes it is an operation of its own (an interrupt has arrived for it), an IPI of its guest,
//! `host run`, or a request that is made without KVM_REQUEST_NO_WAKEUP. A request that has that flag
//! only leaves its bit: what the sleeper owes is served before it next enters the guest, once for any
//! number of such requests.

use std::hash::{Hash, Hasher};

use tlbscope_trace::act::Request;
use tlbscope_trace::observe::Observer;

use super::lockless::Reader;
use crate::engine::Machine;
use crate::policy::mechanics::PvPreemptWhen;

/// VMX exit reason and SVM exit code of HLT.
const HLT: [u16; 2] = [12, 0x78];

/// What keeps a vCPU from going on, or waits for it to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pause {
    /// It executed HLT, and nothing has woken it.
    pub halted: bool,
    /// The vCPUs that have to flush before its own paravirtual flush is over.
    pub awaits: Vec<usize>,
    /// A flush IPI of the guest is on its way and lands at this time: nobody waits for it.
    pub flush_lands: Option<u64>,
    /// Its exit handler reads shadow pages without a lock.
    pub reader: Option<Reader>,
}

/// A vCPU that nothing keeps adds nothing: the digest of a run in which none of this occurs does not
/// depend on it.
impl Hash for Pause {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if *self != Self::default() {
            (self.halted, &self.awaits, self.flush_lands, self.reader).hash(state);
        }
    }
}

impl Machine {
    /// HLT: the vCPU exits, and its task goes to sleep.
    pub(crate) fn halt<O: Observer>(&mut self, v: usize, o: &mut O) {
        let amd = self.config.vendor == tlbscope_trace::regs::Vendor::Amd;
        self.exit(v, Some(HLT[usize::from(amd)]), o);
        self.vcpus[v].pause.halted = true;
        if self.policy.mechanics.pv_preempt_when == PvPreemptWhen::EveryPut {
            self.publish_preempted(v, o);
        }
    }

    /// Something wakes the vCPU, if it sleeps: it is loaded, and enters when its pCPU is free.
    pub(crate) fn wake<O: Observer>(&mut self, v: usize, o: &mut O) {
        if std::mem::replace(&mut self.vcpus[v].pause.halted, false) {
            if self.config.steal_time {
                self.post(v, Request::StealUpdate, o);
            }
            self.released(v);
        }
    }
}
