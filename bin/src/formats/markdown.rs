//! Markdown that a pull request can show.

use std::fmt::Write;

use tlbscope_analyze::compare::{Rank, Row};
use tlbscope_analyze::finding::Group;

use super::document::{Document, Item, Run};
use super::{escaped, fenced};
use crate::comparison::Comparison;
use crate::render;

/// Findings of a run that are told at full length; tables list every kind.
const TOLD: usize = 20;

/// The document.
pub fn write(document: &Document<'_>) -> String {
    let mut out = format!("## tlbscope {}\n", document.command);
    for comparison in document.comparisons {
        compared(&mut out, comparison);
    }
    for run in &document.runs {
        one(&mut out, run, document.command == "compare");
    }
    out
}

/// The numbers of a run and its findings; of a comparison, the table says the numbers.
fn one(out: &mut String, run: &Run, numbers_told: bool) {
    if numbers_told && run.groups.is_empty() {
        return;
    }
    let verdict = match (run.losses.is_empty(), run.found()) {
        (false, _) => "DAMAGED",
        (true, true) => "FAILED",
        (true, false) => "passed",
    };
    let _ = writeln!(out, "\n### {}: {verdict}\n", escaped(&run.name()));
    for loss in &run.losses {
        let _ = writeln!(out, "* {}", escaped(loss));
    }
    if !run.losses.is_empty() {
        out.push('\n');
    }
    if !numbers_told {
        numbers(out, run);
    }
    if run.groups.is_empty() {
        *out += "\nNothing was found.\n";
        return;
    }
    *out += "\n| verdict | rule | operation | through | how many | first |\n";
    *out += "| --- | --- | --- | --- | ---: | --- |\n";
    for (group, count) in &run.groups {
        let first = first(run, group).map(|item| place(run, item)).unwrap_or_default();
        let accepted = match run.suppressed.get(group) {
            Some(by) => format!(", suppressed: {}", escaped(by.reason.trim())),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "| {}{accepted} | {} | {} | {} | {count} | {first} |",
            render::verdict(group.kind),
            group.rule,
            group.op,
            group.mechanism,
        );
    }
    told(out, run);
}

/// The first finding of each kind, at full length.
fn told(out: &mut String, run: &Run) {
    let open = run.groups.iter().filter(|(group, _)| !run.suppressed.contains_key(group));
    let firsts = open.filter_map(|(group, _)| first(run, group));
    for item in firsts.take(TOLD) {
        let _ = write!(
            out,
            "\n<details><summary>{} [{}] at {}</summary>\n\n{}\n</details>\n",
            render::verdict(item.finding.kind),
            item.finding.rule,
            item.finding.op,
            fenced(&item.text)
        );
    }
    if run.groups.len() > TOLD {
        let _ = writeln!(out, "\n... and {} more kinds", run.groups.len() - TOLD);
    }
}

fn first<'a>(run: &'a Run, group: &Group) -> Option<&'a Item> {
    run.items.iter().find(|item| item.finding.group() == *group)
}

fn place(run: &Run, item: &Item) -> String {
    match item.cause.line {
        0 => format!("{}: event {}", escaped(&run.trace), item.cause.event),
        line => format!("{}:{line}", escaped(&run.trace)),
    }
}

/// Every number of a summary.
fn numbers(out: &mut String, run: &Run) {
    *out += "| number | value |\n| --- | ---: |\n";
    let fields = run.summary.as_object().into_iter().flatten();
    for (name, value) in fields.filter(|(_, value)| value.is_u64()) {
        let _ = writeln!(out, "| {} | {value} |", name.replace('_', " "));
    }
}

fn compared(out: &mut String, comparison: &Comparison<'_>) {
    let _ = writeln!(out, "\n### {}\n", escaped(comparison.trace));
    table(out, comparison, &comparison.rows);
    for section in &comparison.sections {
        let _ = writeln!(out, "\n#### {}\n", escaped(&section.name));
        table(out, comparison, &section.rows);
    }
    let first = comparison.policies().next().unwrap_or_default();
    let _ = writeln!(out, "\n\\* differs from {}; **bold** is the best of its row", escaped(first));
}

fn table(out: &mut String, comparison: &Comparison<'_>, rows: &[Row]) {
    let names: Vec<String> = comparison.policies().map(escaped).collect();
    let _ = writeln!(out, "| | {} |", names.join(" | "));
    let _ = writeln!(out, "| --- |{}", " ---: |".repeat(names.len()));
    for row in rows {
        let cell = |(value, rank): (&u64, &Option<Rank>)| {
            let mark = if *value == row.values[0] { "" } else { "\\*" };
            match rank {
                Some(Rank::Best) => format!("**{value}**{mark}"),
                _ => format!("{value}{mark}"),
            }
        };
        let cells: Vec<String> = row.values.iter().zip(&row.ranks).map(cell).collect();
        let _ = writeln!(out, "| {} | {} |", row.name, cells.join(" | "));
    }
}
