//! JUnit: a suite for each run, a failed case for each kind of harmful miss or exposure, and one
//! that passes where there is none.

use anyhow::Result;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::document::{Document, Item, Run, fails, word};
use crate::render;

/// The report.
pub fn write(document: &Document<'_>) -> Result<String> {
    let mut report = Report::new(format!("tlbscope {}", document.command));
    for run in &document.runs {
        report.add_test_suite(suite(run));
    }
    Ok(report.to_string()?)
}

fn suite(run: &Run) -> TestSuite {
    let mut suite = TestSuite::new(run.name());
    for (name, field) in [("no harmful missed flush", "missed"), ("nothing exposed", "exposed")] {
        let of: Vec<TestCase> = cases(run, field);
        if of.iter().all(|case| matches!(case.status, TestCaseStatus::Skipped { .. })) {
            suite.add_test_case(case(run, name, TestCaseStatus::success()));
        }
        suite.add_test_cases(of);
    }
    if !run.losses.is_empty() {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_type("damaged").set_message(run.losses.join("; "));
        suite.add_test_case(case(run, "the whole trace was read", status));
    }
    suite
}

/// A failed case for each kind.
fn cases(run: &Run, field: &str) -> Vec<TestCase> {
    let mut cases = Vec::new();
    for (group, count) in run.groups.iter().filter(|(group, _)| word(group.kind) == field) {
        let of = |item: &&Item| item.finding.group() == *group && fails(item.finding.kind);
        let Some(first) = run.items.iter().find(of) else { continue };
        let name = format!("{} [{}] at {}", render::verdict(group.kind), group.rule, group.op);
        if let Some(by) = run.suppressed.get(group) {
            let mut status = TestCaseStatus::skipped();
            let reason = by.reason.trim();
            status.set_message(format!("suppressed by {}:{}: {reason}", by.file, by.line));
            cases.push(case(run, &name, status));
            continue;
        }
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        let message = super::document::message(&first.finding);
        status.set_type(field).set_message(format!("{count} times; first: {message}"));
        status.set_description(first.text.clone());
        cases.push(case(run, &name, status));
    }
    // Harmful ones of which none was kept.
    let number = if field == "missed" { "missed_harmful" } else { field };
    let told = |case: &TestCase| !matches!(case.status, TestCaseStatus::Skipped { .. });
    if !cases.iter().any(told) && run.number(number) > 0 {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_type(field).set_message(format!("{} times", run.number(number)));
        cases.push(case(run, field, status));
    }
    cases
}

fn case(run: &Run, name: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(name, status);
    case.set_classname(run.name());
    case
}
