//! The names of register bits in policies.

use tlbscope_trace::regs::{Cr0, Cr4, Efer};

/// Lists flags by their names.
macro_rules! names {
    ($ty:ident: $($bit:ident)*) => { &[$((stringify!($bit), $ty::$bit.bits())),*] };
}

/// CR0.
pub const CR0: &[(&str, u64)] = names!(Cr0: PE MP EM TS ET NE WP AM NW CD PG);
/// CR4.
pub const CR4: &[(&str, u64)] = names!(Cr4: VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT
    UMIP LA57 VMXE SMXE FSGSBASE PCIDE OSXSAVE SMEP SMAP PKE CET PKS LAM_SUP);
/// EFER.
pub const EFER: &[(&str, u64)] = names!(Efer: SCE LME LMA NXE SVME);
