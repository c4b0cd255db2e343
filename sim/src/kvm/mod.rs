//! KVM: requests, roots, shadow pages and the vendor's flush hooks, by policy.
//!
//! Each file is named for what a reader of KVM looks for. All are written from facts about the
//! kernel's behaviour (recorded or documented), none from its source.

pub mod amd_inv;
pub mod apic;
pub mod entry;
mod errata;
mod exact;
pub mod fault;
mod fault_injected;
pub mod flush;
pub mod halt;
pub mod hyperv;
pub mod ideal;
pub mod lockless;
pub mod mmu;
pub mod nested;
pub mod nested_inv;
pub mod notifier;
pub mod pv;
pub mod requests;
pub mod role;
pub mod root;
pub mod shadow;
pub mod smm;
pub mod sync;
pub mod tdp;
pub mod vcpu;
pub mod write;
