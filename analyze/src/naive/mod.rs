//! The slow oracle.

use tlbscope_trace::observe::Observer;

/// The slow oracle: keeps every copy explicitly.
#[derive(Clone, Debug, Default)]
pub struct Naive {}

impl Naive {
    /// An oracle for a machine with this many vCPUs.
    #[must_use]
    pub fn new(vcpus: u16) -> Self {
        let _ = vcpus;
        Self::default()
    }
}

impl Observer for Naive {}
