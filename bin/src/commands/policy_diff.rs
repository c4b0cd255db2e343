//! `policy diff`: two policies side by side without a trace.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde_json::{Map, json};
use tlbscope_analyze::diff::{self, Diff, Outcome, Row};
use tlbscope_analyze::tally::Key;
use tlbscope_sim::policy;
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::policy_diff_page::Page;
use crate::Verdict;
use crate::args::{Format, Global};
use crate::formats::escaped;
use crate::output;

/// Columns of the table.
const WIDTH: usize = 100;

/// `policy diff A B`.
pub fn run(names: [&str; 2], global: &Global) -> Result<Verdict> {
    let policies = [policy::load(names[0])?, policy::load(names[1])?];
    let diff = diff::diff([&policies[0], &policies[1]]);
    let text = match global.format {
        Format::Json => {
            let summary = json!({
                "policies": names,
                "transitions": diff.transitions,
                "differing": diff.differing,
                "missed": diff.missed,
            });
            let mut detail = Map::new();
            detail.insert("rows".to_owned(), serde_json::to_value(&diff.rows)?);
            let alike = serde_json::to_value(&diff.missed_alike)?;
            detail.insert("missed_alike".to_owned(), alike);
            output::envelope("policy-diff", &[], summary, detail)?
        }
        Format::Markdown => markdown(names, &diff),
        Format::Html => Page::new(names, &diff, global.verbose).html(),
        _ => table(names, &diff, global),
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}

fn table(names: [&str; 2], diff: &Diff, global: &Global) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} transitions, {} differ; missed: {} by {}, {} by {}",
        diff.transitions, diff.differing, diff.missed[0], names[0], diff.missed[1], names[1]
    );
    if global.quiet {
        return out;
    }
    rows(&mut out, names, &diff.rows, global);
    if !diff.missed_alike.is_empty() {
        let _ = writeln!(out, "\nMissed by both alike:");
        rows(&mut out, names, &diff.missed_alike, global);
    }
    out
}

/// The transitions that differ, one bit at a time, as a table.
fn markdown(names: [&str; 2], diff: &Diff) -> String {
    let mut out = String::from("## tlbscope policy diff\n\n");
    let names = names.map(escaped);
    let _ = writeln!(
        out,
        "{} transitions, {} differ; missed: {} by {}, {} by {}",
        diff.transitions, diff.differing, diff.missed[0], names[0], diff.missed[1], names[1]
    );
    for (title, rows) in [("differ", &diff.rows), ("missed by both alike", &diff.missed_alike)] {
        let single: Vec<&Row> = rows.iter().filter(|row| row.change.bits() == 1).collect();
        if single.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n### {title}\n\n| transition | {} | {} |", names[0], names[1]);
        out += "| --- | --- | --- |\n";
        for row in single {
            let both_exit =
                row.outcomes.iter().all(|o| o.acts.iter().any(|(key, _)| *key == Key::Exit));
            let of = |outcome: &Outcome| {
                escaped(&format!("{}: {}", words(outcome), acts(outcome, both_exit).join(", ")))
            };
            let [a, b] = [0, 1].map(|n| of(&row.outcomes[n]));
            let _ = writeln!(out, "| {} | {a} | {b} |", escaped(&head(row)));
        }
    }
    let pairs = diff.rows.iter().filter(|row| row.change.bits() > 1).count();
    if pairs > 0 {
        let _ =
            writeln!(out, "\n{pairs} more where two bits change at once; `--format json` has them");
    }
    out
}

fn rows(out: &mut String, names: [&str; 2], rows: &[Row], global: &Global) {
    let width = names.map(|name| name.chars().count()).into_iter().max().unwrap_or(0).min(24);
    let mut pairs: BTreeMap<Pairs, (usize, &Row)> = BTreeMap::new();
    for row in rows {
        if row.change.bits() > 1 && !global.verbose {
            let key = (row.vendor, row.mmu, [0, 1].map(|n| words(&row.outcomes[n])));
            pairs.entry(key).or_insert((0, row)).0 += row.states.len();
            continue;
        }
        let _ = writeln!(out, "\n{}", head(row));
        let both_exit =
            row.outcomes.iter().all(|o| o.acts.iter().any(|(key, _)| *key == Key::Exit));
        for (name, outcome) in names.iter().zip(&row.outcomes) {
            let name: String = name.chars().take(width).collect();
            let lead = format!("  {name:width$}  ");
            wrap(out, &lead, &acts(outcome, both_exit), &words(outcome));
        }
    }
    if !pairs.is_empty() {
        let _ = writeln!(out, "\nTwo bits at once (-v lists each):");
    }
    for ((vendor, mmu, [a, b]), (count, row)) in &pairs {
        let machine = machine(*vendor, *mmu);
        let state = row.states.first().map_or("", |state| state.name());
        let _ = writeln!(out, "  {count:3} on {machine}: {a} | {b}");
        let _ = writeln!(out, "      such as {} in {state}", row.change);
    }
}

/// What pairs of bits have in common that are counted together.
type Pairs = (Vendor, MmuKind, [String; 2]);

pub(super) fn machine(vendor: Vendor, mmu: MmuKind) -> &'static str {
    match (vendor, mmu) {
        (Vendor::Intel, MmuKind::Tdp) => "intel ept",
        (Vendor::Amd, MmuKind::Tdp) => "amd npt",
        (Vendor::Intel, MmuKind::Shadow) => "intel shadow",
        (Vendor::Amd, MmuKind::Shadow) => "amd shadow",
    }
}

fn head(row: &Row) -> String {
    let machine = machine(row.vendor, row.mmu);
    let states: Vec<&str> = row.states.iter().map(|state| state.name()).collect();
    let owed = if row.owed.is_empty() {
        String::new()
    } else {
        format!(", owed by {}", row.owed.join(", "))
    };
    format!("{machine}: {} in {}{owed}", row.change, states.join(", "))
}

/// The verdict in words.
pub(super) fn words(outcome: &Outcome) -> String {
    match outcome.unedited {
        Some(unedited) if unedited != outcome.verdict && !unedited.missed() => {
            format!("{} (only after edits)", outcome.verdict.name())
        }
        Some(unedited) if unedited != outcome.verdict => {
            format!("{} (else benign)", outcome.verdict.name())
        }
        _ => outcome.verdict.name().to_owned(),
    }
}

/// The acts by name. A reset's own init, and an exit that both policies take, say nothing.
pub(super) fn acts(outcome: &Outcome, both_exit: bool) -> Vec<String> {
    let reset = outcome.acts.iter().any(|(key, _)| *key == Key::MmuReset);
    let told = |key: Key| !(key == Key::MmuInit && reset || key == Key::Exit && both_exit);
    let one = |(key, n): &(Key, u64)| match n {
        1 => key.name().to_owned(),
        n => format!("{n}x{}", key.name()),
    };
    let acts: Vec<String> = outcome.acts.iter().filter(|(key, _)| told(*key)).map(one).collect();
    if acts.is_empty() { vec!["nothing".to_owned()] } else { acts }
}

/// Acts on the left, broken between words, the verdict on the right of the first line.
fn wrap(out: &mut String, lead: &str, acts: &[String], verdict: &str) {
    /// Columns of the verdict.
    const VERDICT: usize = 36;
    let room = WIDTH.saturating_sub(lead.chars().count() + VERDICT);
    let mut lines = vec![String::new()];
    for act in acts {
        let last = lines.last().map_or(0, String::len);
        if last > 0 && last + 1 + act.len() > room {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(act);
        }
    }
    for (n, line) in lines.iter().enumerate() {
        if n == 0 {
            let line = format!("{lead}{line:room$} {verdict}");
            let _ = writeln!(out, "{}", line.trim_end());
        } else {
            let _ = writeln!(out, "{:1$}{line}", "", lead.chars().count());
        }
    }
}
