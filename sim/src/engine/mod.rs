//! The engine: carries events out on a machine and reports to an observer.

mod stub;

use std::fmt;

use tlbscope_trace::act::Outcome;

pub use stub::{EngineError, Machine};

/// What one event came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The result of an access.
    pub outcome: Option<Outcome>,
    /// Why the operation faulted with #GP and had no effect.
    pub fault: Option<&'static str>,
}

/// An event that this machine cannot carry out; it names the operation, so that nothing is ever
/// skipped in silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The operation, as the text form names it.
    pub op: &'static str,
    /// Why, in words that complete "cannot carry out `op`: ...".
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot carry out `{}`: {}", self.op, self.why)
    }
}

impl std::error::Error for Refused {}
