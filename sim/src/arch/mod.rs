//! What the manuals say, as pure functions: nothing here keeps state.

pub mod access;
pub mod fault;
pub mod mode;
pub mod nested;
pub mod processor;
pub mod required;
