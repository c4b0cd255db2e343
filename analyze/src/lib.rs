//! The judge: missed, exposed and excessive TLB flushes.
//!
//! [`oracle`] is the fast judge, [`naive`] the slow one that keeps every copy explicitly, and
//! [`finding`] what both report.

pub mod finding;
pub mod naive;
pub mod oracle;
