//! One vCPU as KVM sees it.

use tlbscope_trace::act::{Context, Request};
use tlbscope_trace::addr::{Asid, Hpa, PcpuId, Vpid};
use tlbscope_trace::regs::Regs;

use super::halt::Pause;
use super::hyperv::HvFifo;
use super::nested::Nested;
use super::pv::Steal;
use super::requests::Mode;
use super::root::Mmu;
use super::smm::Smram;

/// Pending requests: a bit for each [`Request`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Requests(u32);

impl Requests {
    /// Sets the bit.
    pub fn post(&mut self, request: Request) {
        self.0 |= 1 << request as u8;
    }

    /// Clears the bit; true if it was set (kvm_check_request).
    pub fn take(&mut self, request: Request) -> bool {
        let bit = 1 << request as u8;
        let was = self.0 & bit != 0;
        self.0 &= !bit;
        was
    }

    /// Whether the bit is set.
    #[must_use]
    pub fn has(self, request: Request) -> bool {
        self.0 & (1 << request as u8) != 0
    }

    /// All bits, each at the number of its [`Request`].
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether none is pending.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// AMD: what the VMCB says of the TLB.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Vmcb {
    /// The ASID of the next VMRUN.
    pub asid: Asid,
    /// Generation of that ASID; another than the pCPU's means a new ASID.
    pub generation: u64,
    /// TLB_CONTROL: 0, 1, 3 or 7.
    pub tlb_control: u8,
    /// Where it ran last.
    pub pcpu: Option<PcpuId>,
    /// Some VMRUN of it has succeeded.
    pub entered: bool,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Vcpu {
    /// The guest's registers, as the architecture has them: its writes have taken effect here
    /// whatever the hypervisor made of them.
    pub regs: Regs,
    /// The PDPTEs that KVM last loaded (load_pdptrs): its own walks and shadow roots use these.
    pub kvm_pdpte: [u64; 4],
    /// Intel with EPT: the PDPTE fields of the VMCS, which the guest's walks use. KVM writes them
    /// when it loads a root or serves LOAD_MMU_PGD (facts/kvm.md 6.4).
    pub vmcs_pdpte: [u64; 4],
    /// Pending requests.
    pub requests: Requests,
    /// Roots of the active MMU.
    pub mmu: Mmu,
    /// Where it is loaded.
    pub pcpu: PcpuId,
    /// Intel: vpid01; 0 if VPIDs are off or exhausted.
    pub vpid: Vpid,
    /// Intel: where its VMCS was last active.
    pub vmcs_pcpu: Option<PcpuId>,
    /// AMD.
    pub vmcb: Vmcb,
    /// Guest instructions run.
    pub in_guest: bool,
    /// vcpu->mode.
    pub mode: Mode,
    /// It ran since the last remote flush.
    pub ran: bool,
    /// The host has scheduled it out.
    pub descheduled: bool,
    /// It was destroyed, or never created.
    pub destroyed: bool,
    /// The steal-time record.
    pub steal: Steal,
    /// Hyper-V's fifo of addresses to flush.
    pub hv: HvFifo,
    /// The frame on whose invalidation an access of it waits.
    pub waits_for: Option<u64>,
    /// A flush IPI of the guest is pending: the guest flushes itself as soon as it runs.
    pub ipi_flush: bool,
    /// What else keeps it from going on.
    pub pause: Pause,
    /// `out`: stays in the host after its next exit.
    pub held: bool,
    /// The local APIC is in xAPIC mode.
    pub xapic: bool,
    /// The page that the VMCS names as APIC-access page; with AVIC the one that is not seen at its address
    /// now. `None` before the first use.
    pub apic_page: Option<Hpa>,
    /// In system management mode.
    pub smm: bool,
    /// What SMM keeps for RSM.
    pub smram: Smram,
    /// The nested half. While L2 runs, `regs`, `mmu`, `vmcs_pcpu` and `vmcb` are L2's.
    pub nested: Nested,
    /// What the hardware runs with since the last entry.
    pub context: Context,
}
