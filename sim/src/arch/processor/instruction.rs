//! What a logical processor can be told to do, or meets with, that matters to what it caches.

use tlbscope_trace::addr::{Asid, Gpa, Gva, Pcid, Vpid};

/// The step between the pages of an INVLPGB (ECX bit 31).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stride {
    /// 4 KiB.
    #[default]
    Small,
    /// 2 MiB.
    Large,
}

impl Stride {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => 1 << 12,
            Self::Large => 1 << 21,
        }
    }
}

/// Operands of INVLPGB (facts C.3). A component that is `None` matches anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broadcast {
    /// First address.
    pub va: Option<Gva>,
    /// PCID.
    pub pcid: Option<Pcid>,
    /// ASID. In a guest the processor puts the guest's own here.
    pub asid: Option<Asid>,
    /// Global translations too.
    pub global: bool,
    /// Pages beyond the first.
    pub extra: u16,
    /// From one page to the next.
    pub stride: Stride,
}

/// An instruction or an event of one logical processor. Register operands are full new values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// MOV CR0.
    MovCr0(u64),
    /// MOV CR3, with PCID and bit 63.
    MovCr3(u64),
    /// MOV CR4.
    MovCr4(u64),
    /// WRMSR of EFER.
    WrmsrEfer(u64),
    /// WRMSR of an MTRR that changes it.
    WrmsrMtrr,
    /// WRMSR of IA32_PAT that changes it.
    WrmsrPat,
    /// WRPKRU that changes it.
    Wrpkru,
    /// INVLPG.
    Invlpg(Gva),
    /// INVPCID.
    Invpcid {
        /// The register operand.
        kind: u64,
        /// The low half of the descriptor: PCID in 11:0.
        descriptor: u64,
        /// The high half.
        gva: Gva,
    },
    /// INVLPGA.
    Invlpga {
        /// rAX.
        gva: Gva,
        /// ECX.
        asid: Asid,
    },
    /// INVLPGB.
    Invlpgb(Broadcast),
    /// TLBSYNC.
    Tlbsync,
    /// INVVPID.
    Invvpid {
        /// The register operand.
        kind: u64,
        /// The low half of the descriptor: VPID in 15:0.
        descriptor: u64,
        /// The high half.
        gva: Gva,
    },
    /// INVEPT.
    Invept {
        /// The register operand.
        kind: u64,
        /// The EPTP of the descriptor, or an EP4TA alone.
        eptp: u64,
    },
    /// VMFUNC 0: another EPTP.
    VmfuncEptp(u64),
    /// VMXON.
    Vmxon,
    /// VMXOFF.
    Vmxoff,
    /// VMLAUNCH or VMRESUME.
    VmEntry {
        /// "Enable VPID" with this number (`Some(None)`: the number of the last guest); `None`:
        /// disabled.
        vpid: Option<Option<Vpid>>,
        /// CR3 that the entry loads.
        cr3: Option<u64>,
        /// CR4 that the entry loads.
        cr4: Option<u64>,
    },
    /// A VM exit of VMX.
    VmExit {
        /// "Enable VPID"; `None`: as the guest was entered.
        vpids: Option<bool>,
    },
    /// VMRUN.
    Vmrun {
        /// The ASID of the VMCB.
        asid: u32,
        /// Its TLB_CONTROL.
        control: u64,
    },
    /// #VMEXIT.
    SvmExit,
    /// A page fault for this address is delivered.
    PageFault(Gva),
    /// An EPT violation, which is a VM exit.
    EptViolation {
        /// The linear address that was translated.
        gva: Gva,
        /// The guest-physical address that was not.
        gpa: Gpa,
    },
    /// A hardware task switch that loads this CR3.
    TaskSwitch(u64),
    /// INIT.
    Init,
    /// RESET or power-up.
    Reset,
    /// SMI entry.
    Smi,
    /// RSM.
    Rsm,
    /// A20M# is asserted.
    A20m,
    /// A store to a paging structure, the guest's, EPT or NPT. No processor watches for it.
    Store,
}
