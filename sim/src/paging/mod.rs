//! Guest memory and the page-table walker.

pub mod memory;
pub mod nested;
pub mod walk;
