//! The expectations of a scenario: what each policy must show.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ScenarioError, Source};
use super::events::List;
use super::value::{integer, string, table};
use crate::tally::Key;

/// What one policy must show on one list of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// The policy, as it is named in the file.
    pub policy: String,
    /// Index of the list of events.
    pub list: usize,
    /// Line of the table in the file, from 1.
    pub line: usize,
    /// `missed`: pairs of use and cause.
    pub missed: Option<BTreeSet<(String, String)>>,
    /// `exposed`, `latent`, `advised`, `excessive`, in the order of [`Kind::ALL`]: the labels of
    /// the operations that caused them.
    pub causes: [Option<BTreeSet<String>>; Kind::ALL.len()],
    /// `counts` over the whole list.
    pub counts: Vec<(Key, u64)>,
    /// `at.LABEL.counts`.
    pub at: Vec<AtLabel>,
}

/// The kinds of finding that are expected as a set of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Past a deadline and reachable.
    Exposed,
    /// Outlawed, cached at the end, never used.
    Latent,
    /// Not owed by the letter of a manual.
    Advised,
    /// Unrequired, redundant or over-broad.
    Excessive,
}

impl Kind {
    /// All, in the order of [`Expect::causes`].
    pub const ALL: [Self; 4] = [Self::Exposed, Self::Latent, Self::Advised, Self::Excessive];

    /// The key in a scenario.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exposed => "exposed",
            Self::Latent => "latent",
            Self::Advised => "advised",
            Self::Excessive => "excessive",
        }
    }
}

/// Counts expected of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtLabel {
    /// Its label.
    pub label: String,
    /// Its index in the list of events.
    pub event: usize,
    /// What it must have caused.
    pub counts: Vec<(Key, u64)>,
}

const KEYS: [&str; 7] = ["missed", "exposed", "latent", "advised", "excessive", "counts", "at"];

/// Reads the table `[expect.POLICY]`, or `[expect.POLICY.LIST]`, for the list `list`.
pub(super) fn parse(
    source: Source<'_>,
    policy: &str,
    (lists, list): (&[List], usize),
    (span, entries): (&Range<usize>, &DeTable<'_>),
) -> Result<Expect, ScenarioError> {
    let mut expect = Expect {
        policy: policy.to_owned(),
        list,
        line: source.place(span.start).0,
        ..Expect::default()
    };
    let events = &lists[list];
    for (key, value) in entries {
        let name = key.get_ref().as_ref();
        let kind = Kind::ALL.iter().position(|k| k.name() == name);
        match (name, kind) {
            (_, Some(kind)) => expect.causes[kind] = Some(labels(source, events, value)?),
            ("missed", _) => expect.missed = Some(missed(source, events, value)?),
            ("counts", _) => expect.counts = counts(source, value)?,
            ("at", _) => expect.at = at(source, events, value)?,
            _ => {
                let error = source.error(
                    &key.span(),
                    format!("unknown key `{name}` in the expectation of `{policy}`"),
                );
                return Err(error.did_you_mean(name, KEYS));
            }
        }
    }
    Ok(expect)
}

/// A list of labels.
fn labels(
    source: Source<'_>,
    events: &List,
    value: &Spanned<DeValue<'_>>,
) -> Result<BTreeSet<String>, ScenarioError> {
    let Some(array) = value.get_ref().as_array() else {
        return Err(source
            .error(&value.span(), "expected a list of labels")
            .hint("write `[]` if there must be none"));
    };
    array.iter().map(|item| label(source, events, item)).collect()
}

/// One label, checked against the list.
fn label(
    source: Source<'_>,
    events: &List,
    value: &Spanned<DeValue<'_>>,
) -> Result<String, ScenarioError> {
    let text = string(source, value, "a label")?;
    events.find(text).map_err(|(message, hint)| {
        let mut error = source.error(&value.span(), message);
        error.hint = hint;
        error
    })?;
    Ok(text.to_owned())
}

/// `[{ use = "...", cause = "..." }, ...]`.
fn missed(
    source: Source<'_>,
    events: &List,
    value: &Spanned<DeValue<'_>>,
) -> Result<BTreeSet<(String, String)>, ScenarioError> {
    const SHAPE: &str = "write `missed = [{ use = \"LABEL\", cause = \"LABEL\" }]`";
    let Some(array) = value.get_ref().as_array() else {
        return Err(source.error(&value.span(), "`missed` must be a list").hint(SHAPE));
    };
    let mut set = BTreeSet::new();
    for item in array.iter() {
        let Some(pair) = item.get_ref().as_table() else {
            return Err(source.error(&item.span(), "expected a use and a cause").hint(SHAPE));
        };
        let mut ends: [Option<String>; 2] = [None, None];
        for (key, value) in pair {
            let slot = match key.get_ref().as_ref() {
                "use" => 0,
                "cause" => 1,
                other => {
                    let error = source.error(&key.span(), format!("unknown key `{other}`"));
                    return Err(error.did_you_mean(other, ["use", "cause"]));
                }
            };
            ends[slot] = Some(label(source, events, value)?);
        }
        let [Some(used), Some(cause)] = ends else {
            let error = source.error(&item.span(), "a missed flush has a use and a cause");
            return Err(error.hint(SHAPE));
        };
        set.insert((used, cause));
    }
    Ok(set)
}

/// `counts = { key = N, ... }`.
fn counts(
    source: Source<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<(Key, u64)>, ScenarioError> {
    let mut counts = Vec::new();
    for (key, value) in table(source, value, "`counts`")? {
        let name = key.get_ref().as_ref();
        let Some(known) = Key::from_name(name) else {
            let error = source.error(&key.span(), format!("unknown count `{name}`"));
            return Err(error.did_you_mean(name, Key::ALL.iter().map(|k| k.name())));
        };
        counts.push((known, integer(source, value, "a count")?));
    }
    Ok(counts)
}

/// `[expect.POLICY.at.LABEL] counts = {...}`.
fn at(
    source: Source<'_>,
    events: &List,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<AtLabel>, ScenarioError> {
    let mut all = Vec::new();
    for (key, value) in table(source, value, "`at`")? {
        let label = key.get_ref().as_ref();
        let event = events.find(label).map_err(|(message, hint)| {
            let mut error = source.error(&key.span(), message);
            error.hint = hint;
            error
        })?;
        let mut wanted = Vec::new();
        for (key, value) in table(source, value, &format!("`at.{label}`"))? {
            match key.get_ref().as_ref() {
                "counts" => wanted = counts(source, value)?,
                other => {
                    return Err(source
                        .error(&key.span(), format!("unknown key `{other}` in `at.{label}`"))
                        .hint("only `counts` may stand there"));
                }
            }
        }
        all.push(AtLabel { label: label.to_owned(), event, counts: wanted });
    }
    Ok(all)
}
