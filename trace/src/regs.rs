//! The bits of CR0, CR3, CR4 and EFER, and the registers that translate addresses (facts B.4).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::addr::{Gpa, Pcid, PcpuId};

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type, always 1.
        const ET = 1 << 4;
        /// Numeric error.
        const NE = 1 << 5;
        /// Write protect: supervisor writes obey R/W.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }

    /// CR4.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// Time-stamp disable.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Physical-address extension: 8-byte entries.
        const PAE = 1 << 5;
        /// Machine-check enable.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// Performance-counter enable.
        const PCE = 1 << 8;
        /// FXSAVE support.
        const OSFXSR = 1 << 9;
        /// SIMD exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// 5-level paging.
        const LA57 = 1 << 12;
        /// VMX enable.
        const VMXE = 1 << 13;
        /// SMX enable.
        const SMXE = 1 << 14;
        /// RDFSBASE and the like.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE enable.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
        /// Linear-address masking for supervisor pointers.
        const LAM_SUP = 1 << 28;
    }

    /// IA32_EFER.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Efer: u64 {
        /// SYSCALL enable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active; follows LME and CR0.PG, not writable.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// SVM enable.
        const SVME = 1 << 12;
        /// Long-mode segment limits (AMD).
        const LMSLE = 1 << 13;
        /// Fast FXSAVE (AMD).
        const FFXSR = 1 << 14;
        /// Translation-cache extension (AMD): INVLPG drops only the path.
        const TCE = 1 << 15;
    }
}

/// Bit 63 of the MOV CR3 operand with CR4.PCIDE = 1: no invalidation required. Never stored.
pub const CR3_NOFLUSH: u64 = 1 << 63;
/// CR3 bits 11:0 with CR4.PCIDE = 1.
pub const CR3_PCID_MASK: u64 = 0xfff;

/// The registers of one vCPU that decide how an address is translated.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
pub struct Regs {
    /// CR0.
    pub cr0: u64,
    /// CR3 as stored: without bit 63.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER, LMA included.
    pub efer: u64,
    /// CS.L = 0: in long mode the guest runs 16-bit or 32-bit code (compatibility mode). Without
    /// long mode it means nothing.
    pub code32: bool,
    /// PKRU.
    pub pkru: u32,
    /// The four PDPTE registers (SDM vol. 3, 4.4.1); meaningful in PAE paging on Intel only.
    pub pdpte: [u64; 4],
}

impl Regs {
    /// CR0 as flags; unknown bits are kept in the raw value only.
    #[must_use]
    pub const fn cr0(&self) -> Cr0 {
        Cr0::from_bits_truncate(self.cr0)
    }

    /// CR4 as flags.
    #[must_use]
    pub const fn cr4(&self) -> Cr4 {
        Cr4::from_bits_truncate(self.cr4)
    }

    /// EFER as flags.
    #[must_use]
    pub const fn efer(&self) -> Efer {
        Efer::from_bits_truncate(self.efer)
    }

    /// The current PCID: CR3 bits 11:0 if CR4.PCIDE, else 0.
    #[must_use]
    pub const fn pcid(&self) -> Pcid {
        if self.cr4 & Cr4::PCIDE.bits() != 0 {
            Pcid((self.cr3 & CR3_PCID_MASK) as u16)
        } else {
            Pcid(0)
        }
    }

    /// Whether paging is on.
    #[must_use]
    pub const fn paging(&self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0
    }

    /// The frame of the guest's top-level table, by the mask of the present paging mode
    /// (facts A.2: 32-bit 31:12, PAE 31:5, 4- and 5-level 51:12).
    #[must_use]
    pub const fn root(&self) -> Gpa {
        let pae = self.cr4 & Cr4::PAE.bits() != 0;
        let long = self.efer & Efer::LMA.bits() != 0;
        Gpa(self.cr3
            & if long {
                0x000f_ffff_ffff_f000
            } else if pae {
                0xffff_ffe0
            } else {
                0xffff_f000
            })
    }
}

/// The vendor whose manual rules.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// Intel: VMX, VPID, EPT.
    #[default]
    Intel,
    /// AMD: SVM, ASID, NPT.
    Amd,
}

/// How the hypervisor translates guest addresses.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum MmuKind {
    /// Shadow page tables.
    #[default]
    Shadow,
    /// Two-dimensional paging: EPT or NPT.
    Tdp,
}

/// Where a vCPU runs now, if anywhere.
pub type Placement = Option<PcpuId>;
