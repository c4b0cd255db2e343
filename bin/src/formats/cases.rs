//! What passed and what failed, for CI: scenarios, architecture cases, conditions of `bench`.

use std::fmt::Write;

use anyhow::Result;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{escaped, fenced};
use crate::args::Format;

/// Cases of a command, in suites.
pub struct Suites {
    /// The command.
    pub command: &'static str,
    /// Suites by name, in order.
    pub suites: Vec<(String, Vec<Case>)>,
}

/// One case.
pub struct Case {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a case.
pub enum Outcome {
    /// It passed.
    Passed,
    /// It was not judged, and why.
    Skipped(String),
    /// It failed: in a line, and at full length.
    Failed(String, String),
}

impl Suites {
    /// No cases.
    pub const fn new(command: &'static str) -> Self {
        Self { command, suites: Vec::new() }
    }

    /// Adds a case to the suite of this name, which is the last or a new one.
    pub fn add(&mut self, suite: &str, name: String, outcome: Outcome) {
        let case = Case { name, outcome };
        match self.suites.last_mut() {
            Some((last, cases)) if last == suite => cases.push(case),
            _ => self.suites.push((suite.to_owned(), vec![case])),
        }
    }

    /// The cases as Markdown or JUnit.
    pub fn write(&self, format: Format) -> Result<String> {
        match format {
            Format::Junit => self.junit(),
            _ => Ok(self.markdown()),
        }
    }

    fn junit(&self) -> Result<String> {
        let mut report = Report::new(format!("tlbscope {}", self.command));
        for (name, cases) in &self.suites {
            let mut suite = TestSuite::new(name.as_str());
            for case in cases {
                let status = match &case.outcome {
                    Outcome::Passed => TestCaseStatus::success(),
                    Outcome::Skipped(why) => {
                        let mut status = TestCaseStatus::skipped();
                        status.set_message(why.as_str());
                        status
                    }
                    Outcome::Failed(line, text) => {
                        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                        status.set_message(line.as_str()).set_description(text.as_str());
                        status
                    }
                };
                let mut one = TestCase::new(case.name.as_str(), status);
                one.set_classname(name.as_str());
                suite.add_test_case(one);
            }
            report.add_test_suite(suite);
        }
        Ok(report.to_string()?)
    }

    fn markdown(&self) -> String {
        let all = || self.suites.iter().flat_map(|(_, cases)| cases);
        let failed = all().filter(|case| matches!(case.outcome, Outcome::Failed(..))).count();
        let skipped = all().filter(|case| matches!(case.outcome, Outcome::Skipped(_))).count();
        let passed = all().count() - failed - skipped;
        let mut out = format!("## tlbscope {}\n\n", self.command);
        let _ = writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 {
            out += "\n| suite | failed | what |\n| --- | --- | --- |\n";
        }
        for (suite, cases) in &self.suites {
            for case in cases {
                if let Outcome::Failed(line, _) = &case.outcome {
                    let cells = [suite, &case.name, line].map(|cell| escaped(cell));
                    let _ = writeln!(out, "| {} |", cells.join(" | "));
                }
            }
        }
        for case in all() {
            if let Outcome::Failed(_, text) = &case.outcome {
                let name = escaped(&case.name);
                let _ = writeln!(
                    out,
                    "\n<details><summary>{name}</summary>\n\n{}\n</details>",
                    fenced(text)
                );
            }
        }
        out
    }
}
