//! What running case files came to.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// Who failed a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The TLB model, or the fault rules before it.
    Hardware,
    /// The table of requirements.
    Table,
    /// The case says something that the model cannot express.
    Model,
}

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Failure {
    /// Whose.
    pub by: By,
    /// About which entry, if about one.
    pub entry: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            By::Hardware => "hardware",
            By::Table => "table",
            By::Model => "model",
        };
        match &self.entry {
            Some(entry) => write!(f, "{by}: entry `{entry}`: {}", self.message),
            None => write!(f, "{by}: {}", self.message),
        }
    }
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Hardware and table both do as it says.
    Passed,
    /// One of them does not.
    Failed,
    /// Marked contradictory: not judged.
    Skipped,
}

/// One case.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CaseReport {
    /// The file.
    pub file: String,
    /// Its name.
    pub id: String,
    /// The name without its last part.
    pub group: String,
    /// What it is about.
    pub title: String,
    /// Where the manual says so.
    pub source: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it failed.
    pub failures: Vec<Failure>,
    /// Entries that may remain.
    pub may_remain: usize,
    /// Those of them that the hardware dropped: legal, but more than was asked for.
    pub dropped: usize,
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        write!(f, "  {verdict} {}: {}", self.id, self.title)?;
        for failure in &self.failures {
            write!(f, "\n      {failure}")?;
        }
        if !self.failures.is_empty() && !self.source.is_empty() {
            write!(f, "\n      ({})", self.source)?;
        }
        Ok(())
    }
}

/// The cases whose names begin alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Group {
    /// The common part.
    pub name: String,
    /// Cases passed.
    pub passed: usize,
    /// Cases failed.
    pub failed: usize,
    /// Cases not judged.
    pub skipped: usize,
    /// Cases that the hardware failed.
    pub failed_by_hardware: usize,
    /// Cases that the table failed.
    pub failed_by_table: usize,
    /// Entries that may remain.
    pub may_remain: usize,
    /// Those of them that were dropped.
    pub dropped: usize,
}

/// Groups in the order of their first case.
#[must_use]
pub fn groups(cases: &[CaseReport]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for case in cases {
        let at = groups.iter().position(|group| group.name == case.group);
        let at = at.unwrap_or_else(|| {
            groups.push(Group {
                name: case.group.clone(),
                passed: 0,
                failed: 0,
                skipped: 0,
                failed_by_hardware: 0,
                failed_by_table: 0,
                may_remain: 0,
                dropped: 0,
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        match case.verdict {
            Verdict::Passed => group.passed += 1,
            Verdict::Failed => group.failed += 1,
            Verdict::Skipped => group.skipped += 1,
        }
        let by = |by: By| usize::from(case.failures.iter().any(|failure| failure.by == by));
        group.failed_by_hardware += by(By::Hardware);
        group.failed_by_table += by(By::Table);
        group.may_remain += case.may_remain;
        group.dropped += case.dropped;
    }
    groups
}
