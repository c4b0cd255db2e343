//! The machine: paging, TLBs and KVM under a flush policy.

pub mod arch;
pub mod engine;
pub mod kvm;
pub mod machine;
pub mod paging;
pub mod policy;
pub mod tlb;
