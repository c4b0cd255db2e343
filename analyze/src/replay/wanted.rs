//! What is kept of a run.

use std::sync::Arc;

use super::breakdown::By;
use crate::suppress::Suppressions;

/// What is kept of a run beside its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The first so many findings of each group.
    pub max_findings: usize,
    /// The numbers taken apart.
    pub by: Option<By>,
    /// Findings that are accepted.
    pub suppressions: Arc<Suppressions>,
}

/// So many findings of each group, and the numbers as they are.
impl From<usize> for Wanted {
    fn from(max_findings: usize) -> Self {
        Self { max_findings, ..Self::default() }
    }
}
