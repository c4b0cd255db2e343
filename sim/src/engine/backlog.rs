//! Operations that cannot go on yet: a guest fault inside an mmu_notifier invalidation, or an
//! operation of a vCPU that the host has scheduled out. They keep their order on each vCPU and are
//! carried out as soon as nothing holds them.

use std::collections::{BTreeMap, VecDeque};

use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Event;

use super::{Machine, Step};

/// What waits, and what has come of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Backlog {
    waiting: BTreeMap<usize, VecDeque<(u64, Event)>>,
    late: Vec<(u64, Step)>,
}

impl Backlog {
    /// Whether an operation of this vCPU waits: what follows has to wait too.
    pub fn holds(&self, v: usize) -> bool {
        self.waiting.contains_key(&v)
    }

    /// An operation waits behind those that wait already.
    pub fn push(&mut self, v: usize, index: u64, event: Event) {
        self.waiting.entry(v).or_default().push_back((index, event));
    }

    /// An event was carried out out of its turn.
    pub fn came_late(&mut self, index: u64, step: Step) {
        self.late.push((index, step));
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Machine {
    /// Results of operations that had to wait, with the index of their event, since the last call.
    pub fn take_late(&mut self) -> Vec<(u64, Step)> {
        std::mem::take(&mut self.backlog.late)
    }

    /// Carries out what waited, as far as it can go on now.
    pub(super) fn drain<O: Observer>(&mut self, o: &mut O) {
        if self.backlog.is_empty() || self.notifier.lock_held() {
            return;
        }
        let at = self.at;
        let vcpus: Vec<usize> = self.backlog.waiting.keys().copied().collect();
        for v in vcpus {
            if self.goes_on(v) {
                self.vcpus[v].waits_for = None;
                self.drain_vcpu(v, o);
            }
        }
        self.at = at;
        self.settle(o);
    }

    fn goes_on(&self, v: usize) -> bool {
        let vcpu = &self.vcpus[v];
        let held = vcpu.held && !vcpu.in_guest || vcpu.descheduled || vcpu.destroyed;
        let invalidated = vcpu.waits_for.is_some_and(|gfn| self.waits_for(gfn));
        !self.suspended(v) && !held && !invalidated && !self.awaits_flush(v)
    }

    fn drain_vcpu<O: Observer>(&mut self, v: usize, o: &mut O) {
        let Some(mut waiting) = self.backlog.waiting.remove(&v) else { return };
        while let Some((index, event)) = waiting.pop_front() {
            match self.carry_out(&event, index, o) {
                // It is back in the backlog by its own hand; the rest stays behind it.
                Ok(step) if step.waits => {
                    self.backlog.waiting.entry(v).or_default().extend(waiting);
                    return;
                }
                Ok(step) => self.backlog.late.push((index, step)),
                Err(refused) => {
                    let step = Step { fault: Some(refused.op), ..Step::default() };
                    self.backlog.late.push((index, step));
                }
            }
        }
        self.released(v);
    }
}
