//! PLACEHOLDER

pub mod machine;
pub mod policy;
