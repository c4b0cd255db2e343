//! What is kept of a run.

use super::breakdown::By;

/// What is kept of a run beside its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The first so many findings of each group.
    pub max_findings: usize,
    /// The numbers taken apart.
    pub by: Option<By>,
}

/// So many findings of each group, and the numbers as they are.
impl From<usize> for Wanted {
    fn from(max_findings: usize) -> Self {
        Self { max_findings, by: None }
    }
}
