//! A machine that is driven by a recording which does not begin with a vCPU's creation, or which has
//! a hole: it goes on from what is seen next, and nobody is told of how it got there.

use tlbscope_trace::addr::{PcpuId, Time, VcpuId};
use tlbscope_trace::observe::Nobody;

use super::Machine;

impl Machine {
    /// The vCPU ran before the recording began: it has a root, and its VMCS or VMCB is at home on
    /// `pcpu`.
    pub fn resumed(&mut self, vcpu: VcpuId, pcpu: Option<PcpuId>, event: (u64, Time)) {
        if let Some(pcpu) = pcpu {
            // A pCPU that the machine does not have is met again, as an error, when it is used.
            let _ = self.loaded(vcpu, pcpu, event, &mut Nobody);
        }
        self.attempt(vcpu, event, &mut Nobody);
        self.entered(vcpu, event, &mut Nobody);
    }

    /// A register as the recording shows it behind a hole: 0, 3, 4, or 8 for EFER. What was written
    /// in the hole had its effect there, so that a root for the new value is in place.
    pub fn register_seen(&mut self, vcpu: VcpuId, register: u8, value: u64, event: (u64, Time)) {
        let regs = &mut self.vcpus[usize::from(vcpu.0)].regs;
        let slot = match register {
            0 => &mut regs.cr0,
            3 => &mut regs.cr3,
            4 => &mut regs.cr4,
            8 => &mut regs.efer,
            _ => return,
        };
        if std::mem::replace(slot, value) != value {
            self.mmu_reset(usize::from(vcpu.0), &mut Nobody);
            self.attempt(vcpu, event, &mut Nobody);
        }
    }

    /// CR3 as the active shadow root tells it.
    pub fn cr3_seen(&mut self, vcpu: VcpuId, pgd: u64) {
        self.vcpus[usize::from(vcpu.0)].regs.cr3 = pgd;
    }
}
