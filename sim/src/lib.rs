//! The machine: paging, TLBs and KVM under a flush policy.

pub mod arch;
pub mod engine;
pub mod machine;
pub mod policy;
