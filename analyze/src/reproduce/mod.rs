//! Turns one finding of a trace into a scenario that a person can read: the machine, the state at
//! the start, the few operations that it takes, and the expectation.
//!
//! `part` cuts the neighbourhood of the finding out of the trace, `start` writes the state that
//! it starts from as operations, `judge` says whether a list still shows the finding, `shrink`
//! drops what is not needed for it, and `write` makes the file, which is run before it is given
//! away.

mod judge;
mod own_policy;
mod part;
mod shrink;
mod start;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use tlbscope_sim::engine::BOOT;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::feed::Feed;
use tlbscope_trace::op::Event;

use crate::finding::Finding;
use crate::replay::{Setup, StreamError};
use crate::scenario::Scenario;
use judge::{Case, Wanted};
use part::Part;
use start::Form;

/// How far from the finding its reasons are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// So many operations.
    Operations(u64),
    /// So many nanoseconds.
    Time(u64),
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let wrong = || format!("`{text}` is neither a number of operations nor a time as `3ms`");
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let nanoseconds = match &text[digits.len()..] {
            "" => return Ok(Self::Operations(number)),
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(nanoseconds).map(Self::Time).ok_or_else(wrong)
    }
}

/// What of a trace is looked at, and whether it is made shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// How far before the cause.
    pub before: Reach,
    /// How far after the use, or after the cause of what was not used.
    pub after: Reach,
    /// Whether operations are dropped while the finding remains.
    pub reduce: bool,
}

impl Default for Around {
    fn default() -> Self {
        let far = Reach::Operations(10_000);
        Self { before: far, after: far, reduce: true }
    }
}

/// A finding of a run, with what its number was.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The finding.
    pub finding: &'a Finding,
    /// Its number, as `simulate` prints it.
    pub number: usize,
    /// The events that it names, with their lines.
    pub cited: &'a BTreeMap<u64, (Event, u32)>,
}

/// A scenario that shows the finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reproducer {
    /// The file.
    pub text: String,
    /// Operations in it.
    pub operations: usize,
    /// Operations of the trace that were looked at.
    pub looked_at: usize,
}

/// Why there is no scenario for a finding.
#[derive(Debug)]
pub enum ReproduceError {
    /// The finding is about the state before the first event.
    Boot,
    /// Its cause cannot be read again.
    Gone,
    /// The trace cannot be run.
    Stream(StreamError),
    /// What was looked at does not show it.
    NotShown(usize),
    /// The file that was written does not show it: a defect of this program.
    Broken(String),
}

impl fmt::Display for ReproduceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot => f.write_str(
                "the finding's cause is the state before the first event: there is no operation \
                 to show",
            ),
            Self::Gone => f.write_str(
                "the finding's events cannot be read again: a native trace from standard input \
                 is gone, give its file",
            ),
            Self::Stream(error) => error.fmt(f),
            Self::NotShown(looked_at) => write!(
                f,
                "the finding does not come about from the {looked_at} operations around it: look \
                 further with --before and --after"
            ),
            Self::Broken(why) => write!(f, "the scenario does not show the finding: {why}"),
        }
    }
}

impl std::error::Error for ReproduceError {}

/// The scenario of a finding that a run of `feed` under `policy` has shown. `feed` begins again.
///
/// # Errors
///
/// The finding does not come about from what is looked at.
pub fn reproduce(
    feed: &mut Feed,
    setup: &Setup,
    policy: &Policy,
    subject: &Subject<'_>,
    around: Around,
) -> Result<Reproducer, ReproduceError> {
    if subject.finding.cause == BOOT {
        return Err(ReproduceError::Boot);
    }
    let part = Part::cut(feed, setup, policy, subject, around)?;
    let Finding { cause, use_, vcpu, .. } = *subject.finding;
    let paging = part.paging(VcpuId(vcpu), [Some(cause), use_], setup.machine.vcpus);
    let wanted = Wanted { finding: subject.finding, policy, paging };
    let best = candidates(&part, setup, &wanted, around.reduce)
        .into_iter()
        .map(|case| if around.reduce { shrink::shrink(case, &wanted) } else { case })
        .min_by_key(|case| case.items.len());
    let Some(case) = best else { return Err(ReproduceError::NotShown(part.events.len())) };
    let text = write::scenario(&case, &wanted, setup, subject, part.events.len())
        .ok_or_else(|| ReproduceError::Broken("its run cannot be told".to_owned()))?;
    checked(&text)?;
    Ok(Reproducer { text, operations: case.items.len(), looked_at: part.events.len() })
}

/// Lists that show the finding: what the trace begins with, if that is short; and the shortest
/// window, of those that grow by four, that shows it from a state written as operations.
fn candidates(part: &Part, setup: &Setup, wanted: &Wanted<'_>, reduce: bool) -> Vec<Case> {
    /// A beginning up to this length is tried as it is.
    const SHORT: usize = 4096;
    let ends = part.ends(wanted.finding);
    let whole = |end: usize| {
        let case = start::from_the_beginning(part, setup, end);
        case.filter(|case| wanted.shown(case))
    };
    let mut found = Vec::new();
    if part.from_the_beginning && part.events.len() <= SHORT {
        found.extend(ends.iter().find_map(|end| whole(*end)));
    }
    let cause = part.position(wanted.finding.cause).unwrap_or(0);
    let mut width = if reduce { 0 } else { cause };
    loop {
        let from = cause.saturating_sub(width);
        let windows = [Form::Maps, Form::Stores]
            .into_iter()
            .flat_map(|form| ends.iter().map(move |end| (form, *end)));
        let case = windows
            .filter_map(|(form, end)| start::from_a_state(part, setup, from..end, form))
            .find(|case| wanted.shown(case));
        if case.is_some() || from == 0 {
            found.extend(case);
            break;
        }
        width = (width * 4).max(4);
    }
    if found.is_empty() && part.from_the_beginning {
        found.extend(ends.iter().find_map(|end| whole(*end)));
    }
    found
}

/// The file does what it says.
fn checked(text: &str) -> Result<(), ReproduceError> {
    let broken = |why: String| ReproduceError::Broken(why);
    let scenario = Scenario::parse("scenario", text).map_err(|error| broken(error.to_string()))?;
    match scenario.run().iter().find(|report| !report.passed()) {
        None => Ok(()),
        Some(report) => Err(broken(report.to_string())),
    }
}
