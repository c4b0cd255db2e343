//! Guest memory and the page-table walker.

pub mod memory;
pub mod walk;
