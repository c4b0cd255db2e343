//! Guest memory as far as page tables go, and the walker.

pub mod memory;
pub mod walk;
