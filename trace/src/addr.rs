//! Addresses, tags and identities: one type each, no behaviour, so that a guest-virtual address can
//! never be taken for a guest-physical one, nor a PCID for a VPID.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares a newtype over an integer that prints in the way its field is usually written.
macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($int:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            bincode::Encode, bincode::Decode,
        )]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

newtype!(
    /// A guest-virtual (linear) address, in bytes.
    Gva(u64), "{:#x}"
);
newtype!(
    /// A guest-physical address, in bytes.
    Gpa(u64), "{:#x}"
);
newtype!(
    /// A host-physical address, in bytes. Also names a root page (EP4TA, nCR3 or shadow root).
    Hpa(u64), "{:#x}"
);
newtype!(
    /// A process-context identifier, 12 bits; 0 while CR4.PCIDE = 0 (SDM vol. 3, 4.10.1).
    Pcid(u16), "{:#x}"
);
newtype!(
    /// A virtual-processor identifier (Intel), 16 bits; 0 is the host and vCPUs without VPID.
    Vpid(u16), "{}"
);
newtype!(
    /// An address-space identifier (AMD); 0 is the host.
    Asid(u32), "{}"
);
newtype!(
    /// Bits 51:12 of an EPTP as an address: the tag of guest-physical and combined mappings.
    Ep4ta(u64), "{:#x}"
);
newtype!(
    /// A virtual machine, numbered in the order of first appearance.
    VmId(u16), "vm{}"
);
newtype!(
    /// A vCPU of the machine, as KVM numbers it.
    VcpuId(u16), "v{}"
);
newtype!(
    /// A physical (logical) processor.
    PcpuId(u16), "p{}"
);
newtype!(
    /// Nanoseconds since the start of the trace.
    Time(u64), "{}ns"
);
newtype!(
    /// A shadow page, named by the machine that made it; numbers are never used again.
    Sp(u32), "sp{}"
);

impl Sp {
    /// A shadow page of which a recording does not say which one it is.
    pub const UNNAMED: Self = Self(u32::MAX);
}

/// Bytes of the smallest page.
pub const PAGE_BYTES: u64 = 4096;

/// The size of a page or of the region that a paging-structure entry covers.
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
pub enum PageSize {
    /// 4 KiB.
    #[default]
    #[serde(rename = "4k")]
    Size4K,
    /// 2 MiB: a PDE leaf with 8-byte entries.
    #[serde(rename = "2m")]
    Size2M,
    /// 4 MiB: a PDE leaf with 4-byte entries (32-bit paging with CR4.PSE).
    #[serde(rename = "4m")]
    Size4M,
    /// 1 GiB: a PDPTE leaf.
    #[serde(rename = "1g")]
    Size1G,
}

impl PageSize {
    /// log2 of the size in bytes.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size2M => 21,
            Self::Size4M => 22,
            Self::Size1G => 30,
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4k",
            Self::Size2M => "2m",
            Self::Size4M => "4m",
            Self::Size1G => "1g",
        })
    }
}
