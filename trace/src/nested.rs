//! What L1 told its processor about L2: the tag and the nested tables of vmcs12 or vmcb12, and the
//! operations of L1 that concern them.

use crate::addr::{Gpa, Gva};

/// How the entries of nested tables are written.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Format {
    /// EPT entries: R, W, X in bits 2:0. Named by an EPTP as the manual writes it: bits 5:0 are 0x1e,
    /// write-back and a page walk of 4 levels.
    Ept,
    /// Ordinary 4-level entries whose U/S bit is ignored: an `eptp=` without those bits, for
    /// scenarios that do not care how entries are written.
    Plain,
    /// Ordinary 4-level entries under a nested CR3: every access counts as a user access.
    Npt,
}

/// The nested tables that L2 runs on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Tables {
    /// The top table, in L1's memory: virtual EP4TA or nested CR3.
    pub root: Gpa,
    /// How they are written.
    pub format: Format,
}

/// Stands in the place of a #PF code: nothing is wrong with L2's own tables, L1 gets an EPT violation
/// or #NPF.
pub const VIOLATION: u32 = 1 << 31;

const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Whether a root is written as an EPTP, write-back and 4 levels, and names tables of EPT entries.
#[must_use]
pub const fn is_eptp(root: u64) -> bool {
    root & 0x3f == 0x1e
}

impl Tables {
    /// The tables that an EPTP names.
    #[must_use]
    pub const fn ept(eptp: u64) -> Self {
        let format = if is_eptp(eptp) { Format::Ept } else { Format::Plain };
        Self { root: Gpa(eptp & FRAME), format }
    }

    /// The tables that a nested CR3 names.
    #[must_use]
    pub const fn npt(ncr3: u64) -> Self {
        Self { root: Gpa(ncr3 & FRAME), format: Format::Npt }
    }
}

/// L2 as L1's processor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct L2 {
    /// vmcs12's VPID or vmcb12's ASID. 0: L2 has none and shares VPID 0 with L1.
    pub tag: u16,
    /// Its nested tables; `None`: what L2 takes for physical is L1's guest-physical.
    pub tables: Option<Tables>,
}

/// An operation of L1 on its processor's translations of L2, or the passage between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum NestedOp {
    /// VM entry or VMRUN of L1.
    Enter {
        /// What is entered.
        l2: L2,
        /// vmcb12's TLB_CONTROL.
        tlb_control: u8,
    },
    /// VM exit or #VMEXIT to L1.
    Exit {
        /// What is left.
        l2: L2,
    },
    /// INVVPID of L1.
    Invvpid {
        /// 0 address, 1 single, 2 all, 3 single but globals.
        kind: u64,
        /// The VPID.
        vpid: u16,
        /// The address of type 0.
        gva: Gva,
    },
    /// INVEPT of L1: one EP4TA, or all.
    Invept(Option<Gpa>),
    /// VMFUNC 0 of L2: other tables, nothing invalidated.
    Vmfunc(L2),
}
