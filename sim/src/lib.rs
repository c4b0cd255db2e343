//! The machine: paging, TLBs and KVM under a flush policy.

pub mod arch;
