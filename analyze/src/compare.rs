//! The same work under several policies, side by side ([`crate::replay::stream`] runs it).

use serde::Serialize;

use crate::replay::Summary;

/// One line of the comparison of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What is counted.
    pub name: &'static str,
    /// Its number under each policy.
    pub values: Vec<u64>,
    /// Whether the policies differ in it.
    pub differs: bool,
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
    let field = |&(name, get): &Field| row(name, summaries.iter().map(|s| get(s)).collect());
    let named = |name: &'static str, get: fn(&Summary, &str) -> u64| {
        row(name, summaries.iter().map(|s| get(s, name)).collect())
    };
    let mut rows: Vec<Row> = VERDICTS.iter().map(field).collect();
    let Some(first) = summaries.first() else {
        return rows;
    };
    let classes = first.excessive_by.keys();
    rows.extend(classes.map(|n| named(n, |s, n| s.excessive_by.get(n).copied().unwrap_or(0))));
    let verdicts = rows.len();
    let flushes = first.flushes.keys();
    rows.extend(flushes.map(|n| named(n, |s, n| s.flushes.get(n).copied().unwrap_or(0))));
    rows.extend(COUNTS.iter().map(field));
    let mut at = 0;
    rows.retain(|row| {
        at += 1;
        at <= verdicts || row.values.iter().any(|value| *value != 0)
    });
    rows
}

fn row(name: &'static str, values: Vec<u64>) -> Row {
    let differs = values.windows(2).any(|pair| pair[0] != pair[1]);
    Row { name, values, differs }
}
