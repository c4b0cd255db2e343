//! Findings for people, as a compiler would put them: the first of each kind with its story, of the
//! others where they are.

use std::fmt::Write;

use tlbscope_analyze::finding::{Group, Kind};

use super::document::{Item, Run};
use crate::render::{hanging, verdict};

/// Places of others of the same kind that are told.
const OTHERS: usize = 12;

/// The findings of a run; of verdicts that `told` leaves out none. `verbose` tells each in full.
pub fn findings(run: &Run, verbose: bool, told: impl Fn(Kind) -> bool) -> String {
    let mut out = String::new();
    let mut seen: Vec<Group> = Vec::new();
    for item in run.items.iter().filter(|item| told(item.finding.kind)) {
        let group = item.finding.group();
        if item.suppressed.is_some() {
            continue;
        }
        let first = !seen.contains(&group);
        if first {
            seen.push(group);
        }
        if first || verbose {
            let _ = writeln!(out, "{}", item.text.trim_end());
        }
        if first && !verbose {
            out += &others(run, item, &group);
        }
        if first || verbose {
            out.push('\n');
        }
    }
    out += &suppressed(run);
    out
}

/// Where the others of a kind are.
fn others(run: &Run, first: &Item, group: &Group) -> String {
    let alike = |item: &&Item| item.finding.group() == *group && item.number != first.number;
    let count = run.groups.iter().find(|(g, _)| g == group).map_or(0, |(_, count)| *count);
    let kept: Vec<&Item> = run.items.iter().filter(alike).collect();
    let more = count.saturating_sub(1).max(kept.len() as u64);
    if more == 0 {
        return String::new();
    }
    let mut places: Vec<String> = kept.iter().take(OTHERS).map(|item| short(run, item)).collect();
    if more > places.len() as u64 {
        places.push("...".to_owned());
    }
    let places = if kept.is_empty() { String::new() } else { places.join(", ") };
    hanging(&format!("  and {more} more like it:"), &places) + "\n"
}

/// A place in few letters: the number under which `--explain` tells it, and the line.
fn short(run: &Run, item: &Item) -> String {
    let place = match item.cause.line {
        0 => format!("event {}", item.cause.event),
        line => format!("line {line}"),
    };
    if run.policy.is_some() { format!("{} at {place}", item.number) } else { place }
}

/// What is accepted, with the reason.
fn suppressed(run: &Run) -> String {
    let mut out = String::new();
    for (group, count) in &run.groups {
        let Some(by) = run.suppressed.get(group) else { continue };
        let lead = format!(
            "suppressed: {count} {} [{}] at {}:",
            verdict(group.kind),
            group.rule,
            group.op
        );
        let why = format!("{} ({}:{})", by.reason.trim(), by.file, by.line);
        let _ = writeln!(out, "{}", hanging(&format!("{lead} "), &why));
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}
