//! A logical processor as the manuals describe it, without a hypervisor: registers, where it stands
//! between host and guest, and what an instruction makes of them. What is cached is not its
//! business: the TLB model and the table of requirements each read the same [`Step`].

mod execute;
mod instruction;

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use tlbscope_trace::addr::{Asid, Ep4ta, Vpid};
use tlbscope_trace::regs::{Regs, Vendor};

use super::fault::{Gp, Limits};

pub use execute::{ep4ta, invpcid_type};
pub use instruction::{Broadcast, Instruction, Stride};

/// Where a logical processor stands, with the tags of what it caches there (facts D.1, C.4). A VPID
/// or ASID of 0 belongs to the host, so a guest cannot carry it by name: on VMX a guest without a
/// VPID shares the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// No virtualization, VMX root operation, or the SVM host: VPID 0 or ASID 0.
    Host,
    /// VMX non-root operation.
    VmxGuest {
        /// `None`: "enable VPID" is 0 and every entry and exit flushes VPID 0.
        vpid: Option<NonZeroU16>,
        /// The current EP4TA; `None`: no EPT.
        eptp: Option<Ep4ta>,
    },
    /// An SVM guest.
    SvmGuest {
        /// Its ASID.
        asid: NonZeroU32,
    },
}

impl Place {
    /// The current VPID.
    #[must_use]
    pub fn vpid(self) -> Vpid {
        match self {
            Self::VmxGuest { vpid: Some(vpid), .. } => Vpid(vpid.get()),
            _ => Vpid(0),
        }
    }

    /// The current ASID.
    #[must_use]
    pub const fn asid(self) -> Asid {
        match self {
            Self::SvmGuest { asid } => Asid(asid.get()),
            _ => Asid(0),
        }
    }

    /// Whether a guest runs.
    #[must_use]
    pub const fn in_guest(self) -> bool {
        !matches!(self, Self::Host)
    }
}

/// The state of one logical processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Processor {
    /// What CPUID allows, and whose manual rules.
    pub limits: Limits,
    /// The registers that translate addresses.
    pub regs: Regs,
    /// Host or which guest.
    pub place: Place,
    /// The VPID of the last VMX guest: that of the next entry, if none is named.
    pub guest_vpid: NonZeroU16,
    /// The EP4TA of the next VMX guest.
    pub guest_eptp: Option<Ep4ta>,
    /// The current privilege level.
    pub cpl: u8,
    /// CS.L = 0: compatibility mode while EFER.LMA = 1.
    pub compatibility: bool,
    /// Every PDPTE that a load would find has a reserved bit set.
    pub bad_pdptes: bool,
    /// What the guest does causes a VM exit instead.
    pub intercepted: bool,
    /// TLB_CONTROL 3 and 7 exist (AMD, 8000_000A EDX bit 6).
    pub flush_by_asid: bool,
}

impl Processor {
    /// Whose manual rules.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.limits.vendor
    }

    /// An INVLPGB as this processor carries it out: in a guest the ASID is the guest's own.
    #[must_use]
    pub const fn broadcast(&self, broadcast: Broadcast) -> Broadcast {
        match self.place {
            Place::SvmGuest { .. } => Broadcast { asid: Some(self.place.asid()), ..broadcast },
            _ => broadcast,
        }
    }

    /// Whether AMD's manual rules.
    #[must_use]
    pub const fn amd(&self) -> bool {
        matches!(self.limits.vendor, Vendor::Amd)
    }
}

/// What an instruction or event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It took effect; the state after it.
    Done(Processor),
    /// It caused a VM exit and did nothing itself. The guest is taken to be resumed.
    Exited,
    /// It had no effect and did not fault: INVLPG of an address that is not canonical.
    Nothing,
}

/// An instruction that faults or fails: nothing changes, nothing is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// #GP(0).
    Gp(Gp),
    /// #UD: the processor does not know the instruction.
    Undefined(&'static str),
    /// VMfail with an error number.
    VmFail(u8, &'static str),
    /// VMRUN ends in VMEXIT_INVALID.
    VmexitInvalid(&'static str),
}

impl From<Gp> for Refusal {
    fn from(gp: Gp) -> Self {
        Self::Gp(gp)
    }
}

impl Refusal {
    /// Its name as case files write it, without the reason.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Gp(_) => "#GP(0)".to_owned(),
            Self::Undefined(_) => "#UD".to_owned(),
            Self::VmFail(error, _) => format!("VMfail({error})"),
            Self::VmexitInvalid(_) => "VMEXIT_INVALID".to_owned(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Gp(Gp(why))
        | Self::Undefined(why)
        | Self::VmFail(_, why)
        | Self::VmexitInvalid(why)) = self;
        write!(f, "{}: {why}", self.name())
    }
}
