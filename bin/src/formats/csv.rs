//! CSV: one table with a header. Findings one a line; of `compare` its numbers one a line, ready for
//! a spreadsheet's pivot.

use anyhow::{Result, anyhow};
use csv::Writer;
use tlbscope_analyze::compare::{Rank, Row};
use tlbscope_analyze::finding::Kind;

use super::document::{Document, message, word};

/// The columns of findings.
const FINDINGS: [&str; 17] = [
    "trace",
    "policy",
    "line",
    "event",
    "time_ns",
    "vcpu",
    "verdict",
    "harmful",
    "rule",
    "operation",
    "mechanism",
    "seen_line",
    "seen_event",
    "address",
    "count",
    "suppressed",
    "message",
];

/// The columns of a comparison.
const NUMBERS: [&str; 8] =
    ["trace", "part", "operations", "number", "policy", "value", "first", "rank"];

/// The table.
pub fn write(document: &Document<'_>) -> Result<String> {
    let mut table = Writer::from_writer(Vec::new());
    if document.command == "compare" {
        numbers(&mut table, document)?;
    } else {
        findings(&mut table, document)?;
    }
    let bytes = table.into_inner().map_err(|error| anyhow!("{}", error.error()))?;
    Ok(String::from_utf8(bytes)?)
}

fn findings(table: &mut Writer<Vec<u8>>, document: &Document<'_>) -> Result<()> {
    table.write_record(FINDINGS)?;
    for run in &document.runs {
        for item in &run.items {
            let f = &item.finding;
            let harmful = match f.kind {
                Kind::Missed { harmful } => harmful.to_string(),
                _ => String::new(),
            };
            let line = |line: u32| if line == 0 { String::new() } else { line.to_string() };
            let seen = item.seen.as_ref();
            table.write_record([
                run.trace.clone(),
                run.policy.clone().unwrap_or_default(),
                line(item.cause.line),
                f.cause.to_string(),
                item.cause.time.to_string(),
                f.vcpu.to_string(),
                word(f.kind).to_owned(),
                harmful,
                f.rule.to_owned(),
                f.op.to_owned(),
                f.mechanism.to_owned(),
                seen.map(|seen| line(seen.line)).unwrap_or_default(),
                seen.map(|seen| seen.event.to_string()).unwrap_or_default(),
                f.address.map(|address| format!("{address:#x}")).unwrap_or_default(),
                f.count.to_string(),
                item.suppressed.as_ref().map(|by| by.reason.clone()).unwrap_or_default(),
                message(f),
            ])?;
        }
    }
    Ok(())
}

fn numbers(table: &mut Writer<Vec<u8>>, document: &Document<'_>) -> Result<()> {
    table.write_record(NUMBERS)?;
    for comparison in document.comparisons {
        let policies: Vec<&str> = comparison.policies().collect();
        let trace = comparison.trace;
        for row in &comparison.rows {
            one(table, &policies, trace, ("", 0), row)?;
        }
        for section in &comparison.sections {
            for row in &section.rows {
                one(table, &policies, trace, (&section.name, section.operations), row)?;
            }
        }
    }
    Ok(())
}

fn one(
    table: &mut Writer<Vec<u8>>,
    policies: &[&str],
    trace: &str,
    (part, operations): (&str, u64),
    row: &Row,
) -> Result<()> {
    let operations = if operations == 0 { String::new() } else { operations.to_string() };
    let first = row.values.first().copied().unwrap_or(0).to_string();
    for ((&policy, value), rank) in policies.iter().zip(&row.values).zip(&row.ranks) {
        let rank = match rank {
            Some(Rank::Best) => "best",
            Some(Rank::Worst) => "worst",
            None => "",
        };
        let value = value.to_string();
        let (operations, value, first) = (operations.as_str(), value.as_str(), first.as_str());
        table.write_record([trace, part, operations, row.name, policy, value, first, rank])?;
    }
    Ok(())
}
