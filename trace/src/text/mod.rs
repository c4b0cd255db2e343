//! The event list of scenarios: one event a line, `[label:] [@TIME] vN OP ARGS` or
//! `[label:] [@TIME] host OP ARGS`; `#` begins a comment.

mod cursor;
mod guest;
mod host;
mod nearest;
mod write;

use std::collections::BTreeMap;
use std::fmt;

use crate::addr::{Gpa, Time};
use crate::op::{Actor, Op};
use cursor::Cursor;
pub use nearest::nearest;
pub use write::{write_event, write_op};

/// One event of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Line number, from 1, inside the list.
    pub number: u32,
    /// Its label, if it has one.
    pub label: Option<String>,
    /// Its time, if it has one.
    pub time: Option<Time>,
    /// Who.
    pub actor: Actor,
    /// What.
    pub op: Op,
    /// What an access comes to on a correct machine; any of them will do. Empty: not said.
    pub outcomes: Vec<Outcome>,
}

/// What an access is expected to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It reaches this guest-physical address.
    Gpa(Gpa),
    /// It faults, with this #PF error code if one is named.
    Fault(Option<u32>),
}

/// A line that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Line, from 1, inside the list.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// The nearest name that is known.
    pub suggestion: Option<String>,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}{}", self.line, self.column, self.message, self.hint())
    }
}

impl TextError {
    /// `; did you mean ...?`, or nothing.
    pub(crate) fn hint(&self) -> String {
        let hint = |name| format!("; did you mean `{name}`?");
        self.suggestion.as_ref().map(hint).unwrap_or_default()
    }
}

impl std::error::Error for TextError {}

/// Reads an event list.
///
/// # Errors
/// The first line that cannot be understood.
pub fn parse(list: &str) -> Result<Vec<Line>, TextError> {
    let mut lines: Vec<Line> = Vec::new();
    let mut labels: BTreeMap<&str, u32> = BTreeMap::new();
    let mut begun = host::Begun::new();
    for (number, source) in (1..).zip(list.lines()) {
        let mut words = Cursor::new(number, source);
        if words.peek().is_none() {
            continue;
        }
        let label = label(&mut words, &mut labels, number)?;
        let time = time(&mut words)?;
        let (actor, op, outcomes) = event(&mut words, &mut begun)?;
        words.finish()?;
        lines.push(Line { number, label: label.map(str::to_owned), time, actor, op, outcomes });
    }
    Ok(lines)
}

/// `[label:]`, of letters, digits, `-`, `_` and `.`, once in a list.
fn label<'a>(
    words: &mut Cursor<'a>,
    labels: &mut BTreeMap<&'a str, u32>,
    number: u32,
) -> Result<Option<&'a str>, TextError> {
    let Some(word) = words.peek() else { return Ok(None) };
    let Some(label) = word.text.strip_suffix(':') else { return Ok(None) };
    words.take();
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if label.is_empty() || !label.chars().all(allowed) {
        let message = format!("`{label}` is no label: letters, digits, `-`, `_` and `.`");
        return Err(words.error(word, message));
    }
    match labels.insert(label, number) {
        None => Ok(Some(label)),
        Some(first) => {
            let message = format!("label `{label}` is in use since line {first}");
            Err(words.error(word, message))
        }
    }
}

/// `[@TIME]`.
fn time(words: &mut Cursor<'_>) -> Result<Option<Time>, TextError> {
    let Some(word) = words.peek() else { return Ok(None) };
    let Some(text) = word.text.strip_prefix('@') else { return Ok(None) };
    words.take();
    match cursor::time(text) {
        Some(time) => Ok(Some(time)),
        None => {
            let message = format!("`@{text}` is no time such as `@1500` (ns), `@2us` or `@3ms`");
            Err(words.error(word, message))
        }
    }
}

/// `vN OP ARGS` or `host OP ARGS`.
fn event(
    words: &mut Cursor<'_>,
    begun: &mut host::Begun,
) -> Result<(Actor, Op, Vec<Outcome>), TextError> {
    let word = words.need("`vN` or `host`")?;
    if word.text == "host" {
        return Ok((Actor::Host, host::host(words, begun)?, Vec::new()));
    }
    let Some(vcpu) = cursor::vcpu(word.text) else {
        return Err(words.unknown(word, "actor", word.text, &["host", "v0"]));
    };
    let (op, outcomes) = guest::guest(words, false)?;
    Ok((Actor::Vcpu(vcpu), op, outcomes))
}
