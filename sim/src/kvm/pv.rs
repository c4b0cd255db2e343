//! The guest's paravirtual remote flush through the steal-time byte (facts/kvm.md 4.4).
//!
//! A vCPU that the host has scheduled out needs no IPI: the guest leaves a bit for the host, which
//! flushes on its behalf before it runs again. CVE-2019-3016 was two ways to lose that bit; both
//! are mechanics here. The others get an IPI: a vCPU in the guest flushes itself at once, or when the IPI
//! arrives (`ipi-latency`), one outside as its first instruction, one that sleeps is woken for it. The
//! sender spins until all of these have flushed, and so it may free what they mapped
//! (`pv-flush-wait`). A target that shares the sender's pCPU gets it for that, as if the host had
//! preempted the sender.

use tlbscope_trace::act::ArchOp;
use tlbscope_trace::addr::{Gva, VcpuId};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Actor, Invpcid, InvpcidType};
use tlbscope_trace::regs::Cr4;

use crate::engine::{Machine, Point};
use crate::machine::config::Features;
use crate::policy::Ideal;
use crate::policy::mechanics::{PvFlush, PvPreemptStore};

/// KVM_VCPU_PREEMPTED.
const PREEMPTED: u8 = 1;
/// KVM_VCPU_FLUSH_TLB.
const FLUSH: u8 = 2;

/// The byte `preempted` of the steal-time record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Steal {
    /// As the guest sees it.
    pub byte: u8,
    /// The host's own copy says that PREEMPTED is published.
    pub published: bool,
}

impl Machine {
    /// kvm_steal_time_set_preempted: the vCPU is scheduled out.
    pub(crate) fn publish_preempted<O: Observer>(&mut self, v: usize, o: &mut O) {
        if !self.config.steal_time {
            return;
        }
        match self.policy.mechanics.pv_preempt_store {
            PvPreemptStore::Merge if self.vcpus[v].steal.published => {}
            PvPreemptStore::Merge => self.vcpus[v].steal.byte |= PREEMPTED,
            PvPreemptStore::Overwrite => {
                self.race(Point::PreemptStore, Some(v), o);
                self.vcpus[v].steal.byte = PREEMPTED;
            }
        }
        self.vcpus[v].steal.published = true;
        // Whoever takes it up again loads it first, and every load asks for this.
        self.post(v, tlbscope_trace::act::Request::StealUpdate, o);
    }

    /// record_steal_time: takes the byte, and flushes if the guest asked for it meanwhile.
    pub(crate) fn record_steal_time<O: Observer>(&mut self, v: usize, o: &mut O) {
        if !self.config.steal_time {
            return;
        }
        self.vcpus[v].steal.published = false;
        let byte = match self.policy.mechanics.pv_flush {
            PvFlush::Atomic => std::mem::take(&mut self.vcpus[v].steal.byte),
            PvFlush::ReadThenClear => {
                let byte = self.vcpus[v].steal.byte;
                self.race(Point::StealByte, Some(v), o);
                self.vcpus[v].steal.byte = 0;
                byte
            }
        };
        if byte & FLUSH != 0 {
            self.guest_flush(v, o);
        }
    }

    /// `pvflush`: kvm_flush_tlb_multi in the guest of vCPU `v`. True if it waits for somebody; it is
    /// called again then.
    pub(crate) fn pv_flush<O: Observer>(
        &mut self,
        v: usize,
        targets: &[VcpuId],
        o: &mut O,
    ) -> bool {
        if !self.vcpus[v].pause.awaits.is_empty() {
            let waits = self.awaits_flush(v);
            if !waits {
                self.vcpus[v].pause.awaits.clear();
            }
            return waits;
        }
        let interrupted = self.leave_bits(v, targets, o);
        if self.policy.mechanics.pv_flush_wait {
            return self.interrupt_and_wait(v, interrupted, o);
        }
        for target in interrupted {
            self.interrupt_only(v, target, o);
        }
        false
    }

    /// Leaves the bit for each vCPU that is marked as preempted. The others.
    fn leave_bits<O: Observer>(&mut self, v: usize, targets: &[VcpuId], o: &mut O) -> Vec<usize> {
        let mut interrupted = Vec::new();
        for target in self.targets(targets) {
            let marked = self.config.steal_time && self.vcpus[target].steal.byte & PREEMPTED != 0;
            if target != v && marked {
                if !self.owe_remote(target, None, o) {
                    self.vcpus[target].steal.byte |= FLUSH;
                }
            } else {
                interrupted.push(target);
            }
        }
        interrupted
    }

    /// The IPIs, and the wait for those that can acknowledge theirs now. True if others are left.
    fn interrupt_and_wait<O: Observer>(
        &mut self,
        v: usize,
        interrupted: Vec<usize>,
        o: &mut O,
    ) -> bool {
        let remote = |t: &usize| *t != v && self.vcpus[*t].in_guest;
        if self.kicks_take_time() && interrupted.iter().any(remote) {
            self.in_flight(o);
        }
        let actor = self.at.actor;
        for target in interrupted {
            self.at.actor = Actor::Vcpu(VcpuId(target as u16));
            if self.vcpus[target].in_guest {
                self.flush_itself(target, o);
            } else {
                self.vcpus[target].ipi_flush = true;
                self.wake(target, o);
                self.let_run(target, o);
                if self.vcpus[target].ipi_flush {
                    self.vcpus[v].pause.awaits.push(target);
                }
            }
        }
        self.at.actor = actor;
        self.awaits_flush(v)
    }

    /// The host's scheduler runs a vCPU that nothing but another on its pCPU keeps outside.
    fn let_run<O: Observer>(&mut self, v: usize, o: &mut O) {
        let vcpu = &self.vcpus[v];
        let kept = vcpu.held || vcpu.descheduled || vcpu.pause.reader.is_some();
        if !kept && !self.suspended(v) && !self.backlog.holds(v) {
            self.take_pcpu(v, o);
            self.enter(v, false, o);
        }
    }

    /// The IPI is sent, and nobody waits for it: the flush is owed from here on, and done when it lands.
    fn interrupt_only<O: Observer>(&mut self, v: usize, target: usize, o: &mut O) {
        if !self.vcpus[target].in_guest {
            self.vcpus[target].ipi_flush = true;
            return self.wake(target, o);
        }
        if target != v && self.kicks_take_time() {
            if !self.owe_remote(target, None, o) {
                let lands = self.at.time.0.saturating_add(self.config.ipi_latency);
                self.vcpus[target].pause.flush_lands = Some(lands);
            }
            return;
        }
        let actor = std::mem::replace(&mut self.at.actor, Actor::Vcpu(VcpuId(target as u16)));
        self.flush_itself(target, o);
        self.at.actor = actor;
    }

    /// Whether the vCPU's own paravirtual flush waits for somebody who has not flushed yet.
    pub(crate) fn awaits_flush(&self, v: usize) -> bool {
        let pending = |u: &usize| self.vcpus[*u].ipi_flush && !self.vcpus[*u].destroyed;
        self.vcpus[v].pause.awaits.iter().any(pending)
    }

    /// The flush IPIs that nobody waits for and that have landed by now.
    pub(crate) fn flushes_land<O: Observer>(&mut self, now: u64, o: &mut O) {
        for v in 0..self.vcpus.len() {
            if self.vcpus[v].pause.flush_lands.is_none_or(|lands| lands > now) {
                continue;
            }
            self.vcpus[v].pause.flush_lands = None;
            if self.vcpus[v].in_guest {
                let actor = std::mem::replace(&mut self.at.actor, Actor::Vcpu(VcpuId(v as u16)));
                self.flush_itself(v, o);
                self.at.actor = actor;
            } else {
                self.vcpus[v].ipi_flush = true;
            }
        }
    }

    /// A flush is owed on another vCPU. True if an ideal machine has done exactly that at once.
    pub(crate) fn owe_remote<O: Observer>(
        &mut self,
        v: usize,
        page: Option<Gva>,
        o: &mut O,
    ) -> bool {
        let op = ArchOp::RemoteFlush { page };
        self.arch(o, Some(v), &op, false);
        let at_once = self.policy.ideal == Ideal::ArchMin;
        if at_once {
            let actor = std::mem::replace(&mut self.at.actor, Actor::Vcpu(VcpuId(v as u16)));
            let regs = self.vcpus[v].regs;
            self.serve_ideal(v, &op, &regs, o);
            self.at.actor = actor;
        }
        at_once
    }

    /// The vCPUs of a list that exist, each once and in the order of their numbers.
    pub(crate) fn targets(&self, list: &[VcpuId]) -> Vec<usize> {
        let mut targets: Vec<usize> = list.iter().map(|id| usize::from(id.0)).collect();
        targets.sort_unstable();
        targets.dedup();
        targets.retain(|v| self.vcpus.get(*v).is_some_and(|vcpu| !vcpu.destroyed));
        targets
    }

    /// What the guest's own flush of everything is: INVPCID 2, or a toggle of CR4.PGE.
    pub(crate) fn flush_itself<O: Observer>(&mut self, v: usize, o: &mut O) {
        let regs = self.vcpus[v].regs;
        if !regs.paging() {
            return;
        }
        let emulated = std::mem::replace(&mut self.emulated, false);
        // Neither faults: the first is legal in every mode with paging, the second changes PGE alone.
        let _ = if self.config.features.contains(Features::INVPCID) {
            let all = Invpcid { kind: InvpcidType::All, pcid: 0, gva: Gva(0) };
            self.invpcid(v, &all, o)
        } else {
            let toggled = self.write_cr4(v, regs.cr4 ^ Cr4::PGE.bits(), o);
            toggled.and_then(|()| {
                self.enter(v, false, o);
                self.write_cr4(v, regs.cr4, o)
            })
        };
        self.emulated = emulated;
    }
}
