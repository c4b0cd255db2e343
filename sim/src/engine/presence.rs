//! Which vCPU runs on which physical CPU, and which are outside and wait to enter: kept as sets, so
//! that an event costs the same however many vCPUs there are.

use std::collections::BTreeSet;

use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Actor;

use super::Machine;

/// The occupation of the physical CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Presence {
    /// Who executes guest instructions on each pCPU.
    running: Vec<Option<usize>>,
    /// vCPUs outside the guest, by the pCPU on which they are loaded.
    outside: Vec<BTreeSet<usize>>,
    /// pCPUs on which somebody may be able to enter.
    idle: BTreeSet<usize>,
}

impl Presence {
    /// Everybody is outside.
    pub fn new(vcpus: u16, pcpus: u16) -> Self {
        let pcpus = usize::from(pcpus.max(1));
        let mut outside = vec![BTreeSet::new(); pcpus];
        for v in 0..usize::from(vcpus) {
            outside[v % pcpus].insert(v);
        }
        Self { running: vec![None; pcpus], outside, idle: (0..pcpus).collect() }
    }

    /// Who executes guest instructions on this pCPU.
    pub fn running(&self, pcpu: usize) -> Option<usize> {
        self.running[pcpu]
    }

    /// Whether nobody waits to enter.
    pub fn nobody_enters(&self) -> bool {
        self.idle.is_empty()
    }

    /// A vCPU entered the guest.
    pub fn entered(&mut self, v: usize, pcpu: usize) {
        self.running[pcpu] = Some(v);
        self.outside[pcpu].remove(&v);
    }

    /// A vCPU left the guest.
    pub fn left(&mut self, v: usize, pcpu: usize) {
        self.running[pcpu] = None;
        self.outside[pcpu].insert(v);
        self.idle.insert(pcpu);
    }

    /// A vCPU that is outside moves, or is new, or may enter again.
    pub fn placed(&mut self, v: usize, from: usize, to: usize) {
        self.outside[from].remove(&v);
        self.outside[to].insert(v);
        self.idle.insert(to);
    }

    /// A vCPU is no more.
    pub fn removed(&mut self, v: usize, pcpu: usize) {
        self.outside[pcpu].remove(&v);
    }
}

impl Machine {
    /// Whether a vCPU that is outside goes on by itself: neither held, nor scheduled out, nor asleep,
    /// nor in the middle of something, nor with an operation that waits.
    fn may_enter(&self, v: usize) -> bool {
        let vcpu = &self.vcpus[v];
        let off = vcpu.held || vcpu.descheduled || vcpu.pause.halted;
        !off && vcpu.pause.reader.is_none() && !self.suspended(v) && !self.backlog.holds(v)
    }

    /// The lowest vCPU from `from` on that can enter now.
    fn next_to_enter(&self, from: usize) -> Option<usize> {
        let free = self.presence.idle.iter().filter(|p| self.presence.running[**p].is_none());
        free.filter_map(|p| {
            self.presence.outside[*p].range(from..).copied().find(|v| self.may_enter(*v))
        })
        .min()
    }

    /// Every vCPU that is neither held nor in the guest enters it, one on each pCPU.
    pub(super) fn settle<O: Observer>(&mut self, o: &mut O) {
        if self.notifier.lock_held() || self.presence.idle.is_empty() {
            return;
        }
        let at = self.at.actor;
        let mut from = 0;
        while let Some(v) = self.next_to_enter(from) {
            self.at.actor = Actor::Vcpu(VcpuId(v as u16));
            self.enter(v, false, o);
            from = v + 1;
        }
        self.at.actor = at;
        // A kick may have sent out one that had entered before: it is looked at again next time.
        let idle = std::mem::take(&mut self.presence.idle);
        let still = |p: &usize| {
            self.presence.running[*p].is_none()
                && self.presence.outside[*p]
                    .iter()
                    .any(|v| self.may_enter(*v) || self.suspended(*v))
        };
        let idle = idle.into_iter().filter(still).collect();
        self.presence.idle = idle;
    }

    /// The vCPU that is in the guest on the pCPU of this one exits, as if preempted.
    pub(crate) fn take_pcpu<O: Observer>(&mut self, v: usize, o: &mut O) {
        let pcpu = usize::from(self.vcpus[v].pcpu.0);
        if let Some(u) = self.presence.running(pcpu)
            && u != v
        {
            let at = std::mem::replace(&mut self.at.actor, Actor::Vcpu(VcpuId(u as u16)));
            self.exit(u, None, o);
            self.publish_preempted(u, o);
            self.at.actor = at;
        }
    }

    /// A vCPU that was held or scheduled out may go on.
    pub(crate) fn released(&mut self, v: usize) {
        if !self.vcpus[v].in_guest {
            let pcpu = usize::from(self.vcpus[v].pcpu.0);
            self.presence.placed(v, pcpu, pcpu);
        }
    }
}
