//! Scenarios (DESIGN section 6): a file is a list of events in text, a machine, and what each
//! policy must show on it. It is a regression test, a bug report and a teaching example at once.
//!
//! [`Scenario::parse`] reads a file and [`Scenario::run`] carries out each of its expectations.

mod error;
mod events;
mod expect;
mod file;
mod interleave;
mod policies;
mod run;
mod steps;
mod value;

use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::Policy;

pub use error::ScenarioError;
pub use events::List;
pub use expect::{AtLabel, Expect, Kind};
pub use interleave::{Broken, Orders, OrdersReport};
pub use run::{CaseReport, Failure};
pub use steps::{Story, Told};

/// A scenario file, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The file, as the caller named it.
    pub file: String,
    /// `name`.
    pub name: String,
    /// `about`: what it shows, in a sentence.
    pub about: String,
    /// `source`: where the expected values come from.
    pub source: String,
    /// The lists of events; one without a name where `events` is a string.
    pub lists: Vec<List>,
    /// The machine.
    pub machine: MachineConfig,
    /// The expectations, in the order of the file.
    pub expects: Vec<Expect>,
    /// The policies that the expectations name, each once.
    policies: Vec<(String, Policy)>,
}

impl Scenario {
    /// The same scenario with another policy behind a name that its expectations use.
    #[must_use]
    pub fn with_policy(mut self, name: &str, policy: &Policy) -> Self {
        for (_, known) in self.policies.iter_mut().filter(|(known, _)| known == name) {
            *known = policy.clone();
        }
        self
    }

    /// The policy of an expectation.
    #[must_use]
    pub fn policy(&self, expect: &Expect) -> Option<&Policy> {
        self.policies.iter().find(|(name, _)| *name == expect.policy).map(|(_, policy)| policy)
    }
}

#[cfg(test)]
mod tests;
