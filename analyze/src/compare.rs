//! The same work under several policies, side by side ([`crate::replay::stream`] runs it).

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Serialize;

use crate::replay::{FLUSHES, Part, Replay, Summary};
use crate::tally::Key;

/// One line of the comparison of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Row {
    /// What is counted.
    pub name: &'static str,
    /// Its number under each policy.
    pub values: Vec<u64>,
    /// Whether the policies differ in it.
    pub differs: bool,
    /// Which of them are the best and the worst, where they differ.
    pub ranks: Vec<Option<Rank>>,
}

/// A place in a row. Every number of a comparison is the better the lower it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rank {
    /// The lowest.
    Best,
    /// The highest.
    Worst,
}

/// The rows of one vCPU, register or transition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Section {
    /// Whose they are.
    pub name: String,
    /// How many operations; 0 where it is not taken apart by them.
    pub operations: u64,
    /// Those that are not 0 under every policy.
    pub rows: Vec<Row>,
}

/// Which policies take part in the ranking of costs: one that misses a flush or leaves something
/// exposed is cheap for nothing.
#[must_use]
pub fn sound(summary: &Summary) -> bool {
    summary.missed_harmful == 0 && summary.exposed == 0
}

/// The comparison of summaries of one trace: verdicts first, then counts, then cycles. Counts that
/// are 0 under every policy are left out, verdicts never.
#[must_use]
pub fn rows(summaries: &[&Summary]) -> Vec<Row> {
    type Field = (&'static str, fn(&Summary) -> u64);
    const VERDICTS: [Field; 6] = [
        ("missed", |s| s.missed),
        ("missed, harmful", |s| s.missed_harmful),
        ("exposed", |s| s.exposed),
        ("latent", |s| s.latent),
        ("advised", |s| s.advised),
        ("excessive", |s| s.excessive),
    ];
    const COUNTS: [Field; 5] = [
        ("resets", |s| s.resets),
        ("root loads", |s| s.root_loads),
        ("exits", |s| s.exits),
        ("refills", |s| s.refills),
        ("cycles", |s| s.cycles),
    ];
    let all = vec![true; summaries.len()];
    let sound: Vec<bool> = summaries.iter().map(|s| sound(s)).collect();
    let values = |get: &dyn Fn(&Summary) -> u64| summaries.iter().map(|s| get(s)).collect();
    // A policy that leaves flushes out has fewer that are too much: it is not the better for it.
    let ranked = |name| if matches!(name, "latent" | "excessive") { &sound } else { &all };
    let mut rows: Vec<Row> =
        VERDICTS.iter().map(|(name, get)| row(name, values(get), ranked(name))).collect();
    let Some(first) = summaries.first() else {
        return rows;
    };
    for n in first.excessive_by.keys() {
        rows.push(row(n, values(&|s| s.excessive_by.get(n).copied().unwrap_or(0)), &sound));
    }
    if summaries.iter().any(|s| s.suppressed > 0) {
        rows.push(row("suppressed", values(&|s| s.suppressed), &vec![false; summaries.len()]));
    }
    let verdicts = rows.len();
    for n in first.flushes.keys() {
        rows.push(row(n, values(&|s| s.flushes.get(n).copied().unwrap_or(0)), &sound));
    }
    rows.extend(COUNTS.iter().map(|(name, get)| row(name, values(get), &sound)));
    let mut at = 0;
    rows.retain(|row| {
        at += 1;
        at <= verdicts || row.values.iter().any(|value| *value != 0)
    });
    rows
}

/// The comparison of runs of one trace, taken apart: what each vCPU, register or transition has of
/// it, in the order of their names.
#[must_use]
pub fn sections(runs: &[&Replay]) -> Vec<Section> {
    let names = names(runs);
    let sound: Vec<bool> = runs.iter().map(|run| sound(&run.summary)).collect();
    let nothing = Part::default();
    let of = |name: &String| {
        let parts: Vec<&Part> = runs
            .iter()
            .map(|run| run.parts.iter().find(|part| part.name == *name).unwrap_or(&nothing))
            .collect();
        Section {
            name: name.clone(),
            operations: parts.iter().map(|part| part.operations).max().unwrap_or(0),
            rows: part_rows(&parts, &sound),
        }
    };
    names.iter().map(of).filter(|section| !section.rows.is_empty()).collect()
}

/// The parts of every run: in the order of the first, those that only others have behind.
fn names(runs: &[&Replay]) -> Vec<String> {
    let (mut names, mut seen) = (Vec::new(), BTreeSet::new());
    for part in runs.iter().flat_map(|run| &run.parts) {
        if seen.insert(&part.name) {
            names.push(part.name.clone());
        }
    }
    names
}

fn part_rows(parts: &[&Part], sound: &[bool]) -> Vec<Row> {
    type Field = (&'static str, fn(&Part) -> u64);
    const VERDICTS: [Field; 5] = [
        ("missed", |p| p.verdicts.missed),
        ("exposed", |p| p.verdicts.exposed),
        ("latent", |p| p.verdicts.latent),
        ("advised", |p| p.verdicts.advised),
        ("excessive", |p| p.verdicts.excessive),
    ];
    const COUNTS: [Field; 5] = [
        ("resets", |p| p.counts.get(Key::MmuReset)),
        ("root loads", |p| p.counts.get(Key::RootLoad)),
        ("exits", |p| p.counts.get(Key::Exit)),
        ("refills", |p| p.counts.get(Key::Refill)),
        ("cycles", |p| p.cycles),
    ];
    let all = vec![true; parts.len()];
    let field = |(name, get): &Field, ranked: &[bool]| {
        row(name, parts.iter().map(|p| get(p)).collect(), ranked)
    };
    let ranked = |name| if matches!(name, "latent" | "excessive") { sound } else { &all };
    let mut rows: Vec<Row> = VERDICTS.iter().map(|f| field(f, ranked(f.0))).collect();
    for key in FLUSHES {
        let values = parts.iter().map(|p| p.counts.get(key)).collect();
        rows.push(row(key.name(), values, sound));
    }
    rows.extend(COUNTS.iter().map(|f| field(f, sound)));
    rows.retain(|row| row.values.iter().any(|value| *value != 0));
    rows
}

/// A row; `ranked` tells which of its values can be the best or the worst.
fn row(name: &'static str, values: Vec<u64>, ranked: &[bool]) -> Row {
    let differs = values.windows(2).any(|pair| pair[0] != pair[1]);
    let of = || values.iter().zip(ranked).filter(|(_, ranked)| **ranked).map(|(value, _)| *value);
    let (best, worst) = (of().min(), of().max());
    let rank = |(value, ranked): (&u64, &bool)| match () {
        () if !ranked || best == worst => None,
        () if Some(*value) == best => Some(Rank::Best),
        () if Some(*value) == worst => Some(Rank::Worst),
        () => None,
    };
    let ranks = values.iter().zip(ranked).map(rank).collect();
    Row { name, values, differs, ranks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_misses_is_not_the_best_of_a_cost() {
        let of = |values: &[u64], ranked: &[bool]| row("cycles", values.to_vec(), ranked);
        let (best, worst) = (Some(Rank::Best), Some(Rank::Worst));
        let all = [true; 4];
        assert_eq!(of(&[5, 7, 6, 5], &all).ranks, [best, worst, None, best]);
        assert_eq!(of(&[5, 7, 6, 1], &[true, true, true, false]).ranks, [best, worst, None, None]);
        assert_eq!(of(&[5, 5, 5, 1], &[true, true, true, false]).ranks, [None; 4]);
        assert!(of(&[5, 5, 5, 1], &[true, true, true, false]).differs);
        assert_eq!(of(&[4, 4, 4, 4], &all).ranks, [None; 4]);
    }
}
