//! What the manuals say, as pure functions: nothing here keeps state.

pub mod required;
