//! What userspace does to a vCPU between its creation and its first entry: power-up reset, CPUID,
//! registers. No guest ran, so nothing is owed for it and nothing of it is guest work: a replay
//! starts behind it, with the registers that it left.

use tlbscope_trace::Recording;
use tlbscope_trace::act::Act;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::recording::{Body, Meta, Record};
use tlbscope_trace::regs::{Cr0, Regs};

/// The set-up of each vCPU that a recording shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Creation {
    /// By vCPU: how many of its records belong to it, and the registers after it.
    vcpus: Vec<Option<(usize, Regs)>>,
}

impl Creation {
    /// Reads a recording. A vCPU whose creation is not in it has no set-up.
    pub fn of(recording: &Recording) -> Self {
        let vcpus = (0..recording.meta.vcpus).map(|v| of_vcpu(recording, VcpuId(v))).collect();
        Self { vcpus }
    }

    /// What a recording shows, with the registers of each vCPU after its set-up as those it starts
    /// with.
    pub fn left(&self, meta: &Meta) -> Meta {
        let mut meta = meta.clone();
        for (v, regs) in meta.initial_regs.iter_mut().enumerate() {
            *regs = self.regs(v).unwrap_or(*regs);
        }
        meta
    }

    /// The registers of a vCPU after its set-up.
    pub fn regs(&self, vcpu: usize) -> Option<Regs> {
        self.vcpus.get(vcpu).copied().flatten().map(|(_, regs)| regs)
    }

    /// Whether a record belongs to a set-up; `index` is its place in the recording.
    pub fn has(&self, record: &Record, index: usize) -> bool {
        let Actor::Vcpu(vcpu) = record.actor else { return false };
        let setup = self.vcpus.get(usize::from(vcpu.0)).copied().flatten();
        setup.is_some_and(|(end, _)| index < end)
    }
}

/// The index of a vCPU's first entry and the registers there, if its power-up reset comes before.
fn of_vcpu(recording: &Recording, vcpu: VcpuId) -> Option<(usize, Regs)> {
    let first = recording.initial_regs(vcpu);
    let mut regs = None;
    for (index, record) in recording.records.iter().enumerate() {
        if record.actor != Actor::Vcpu(vcpu) {
            continue;
        }
        match &record.body {
            Body::Act(Act::EntrySeen) => return regs.map(|regs| (index, regs)),
            // SDM vol. 3, table 10-1: CR0 = 60000010H, the others 0.
            Body::Op(Op::Reset) => {
                let cr0 = Cr0::CD | Cr0::NW | Cr0::ET;
                regs = Some(Regs { cr0: cr0.bits(), ..Regs::default() });
            }
            // What no probe shows is what the vCPU is first seen with.
            Body::Op(Op::Sregs(sregs)) => {
                regs = regs.map(|_| Regs {
                    cr0: sregs.cr0.unwrap_or(first.cr0),
                    cr3: sregs.cr3.unwrap_or(first.cr3),
                    cr4: sregs.cr4.unwrap_or(first.cr4),
                    efer: sregs.efer.unwrap_or(first.efer),
                    ..Regs::default()
                });
            }
            _ => {}
        }
    }
    None
}
