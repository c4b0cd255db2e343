//! The fixed suite of `bench`: generated guests and recordings under the released kernels, its
//! comparison with an earlier result, and what makes it fail.
//!
//! Counts and modelled costs are deterministic: a number that changed is behaviour that changed,
//! never noise. So a gate on them does not flicker.

mod fail_on;

use std::collections::BTreeMap;

use serde_json::Value;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::feed::Feed;
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::{Body, Record, Recording};

use crate::replay::{self, Setup, StreamError, Summary, WorkError};

pub use fail_on::{Condition, ConditionError};

/// Events of each generated guest.
pub const EVENTS: u64 = 20_000;
/// The policies of the suite, the oldest first.
pub const POLICIES: [&str; 7] =
    ["kvm-5.17", "kvm-patch-v2", "kvm-5.19", "kvm-6.1-lts", "kvm-6.12-lts", "kvm-7.3", "hw-min"];

/// The generated guests of the suite: name, operations and machine.
///
/// # Errors
///
/// There is no such processor.
pub fn generated(processor: Option<&str>) -> Result<Vec<(Feed, Setup)>, WorkError> {
    Profile::ALL.iter().map(|(profile, name)| guest(*profile, name, processor)).collect()
}

fn guest(
    profile: Profile,
    name: &str,
    processor: Option<&str>,
) -> Result<(Feed, Setup), WorkError> {
    let options = Options::new(profile, EVENTS);
    let header = options.header();
    let records = Generator::new(&options)
        .map(|event| Record {
            time: event.time,
            actor: event.actor,
            line: 0,
            body: Body::Op(event.op),
        })
        .collect();
    let recording = Recording { meta: header.meta, records, ..Recording::default() };
    let feed = Feed::of(recording);
    let setup = Setup::new(feed.meta(), header.pcpus, name, processor)?;
    Ok((feed, setup))
}

/// Runs guests under every policy.
///
/// # Errors
///
/// An operation cannot be carried out.
pub fn run(guests: &mut [(Feed, Setup)], policies: &[Policy]) -> Result<Vec<Summary>, StreamError> {
    let mut all = Vec::new();
    for (feed, setup) in guests {
        let runs = replay::stream(feed, setup, policies, 10, |_| ())?;
        all.extend(runs.into_iter().map(|run| run.summary));
    }
    Ok(all)
}

/// The numbers of one trace under one policy, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The trace.
    pub trace: String,
    /// The policy.
    pub policy: String,
    /// Each number.
    pub values: BTreeMap<String, u64>,
}

impl Numbers {
    /// Reads an entry of `summary` as results print it: every whole number of it, kinds of flush and
    /// classes of excess by their own names.
    #[must_use]
    pub fn of(entry: &Value) -> Option<Self> {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let (trace, policy) = (text("trace")?, text("policy")?);
        let mut values = BTreeMap::new();
        for (key, value) in entry.as_object()? {
            match value {
                Value::Object(below) => {
                    let whole = below.iter().filter_map(|(k, v)| Some((k.clone(), v.as_u64()?)));
                    values.extend(whole);
                }
                _ => values.extend(value.as_u64().map(|n| (key.replace('_', "-"), n))),
            }
        }
        Some(Self { trace, policy, values })
    }
}

/// A number that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The trace.
    pub trace: String,
    /// The policy.
    pub policy: String,
    /// Which number.
    pub metric: String,
    /// What it was.
    pub before: u64,
    /// What it is.
    pub after: u64,
}

/// What changed from one result to another, in the order of the new one. A trace or policy that only
/// one of them has is left out.
#[must_use]
pub fn changes(before: &[Numbers], after: &[Numbers]) -> Vec<Changed> {
    let mut all = Vec::new();
    for now in after {
        let Some(was) = before.iter().find(|b| b.trace == now.trace && b.policy == now.policy)
        else {
            continue;
        };
        for (metric, after) in &now.values {
            let before = was.values.get(metric).copied().unwrap_or(0);
            if before != *after {
                all.push(Changed {
                    trace: now.trace.clone(),
                    policy: now.policy.clone(),
                    metric: metric.clone(),
                    before,
                    after: *after,
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn numbers(missed: u64, flushes: u64) -> Numbers {
        let entry = json!({
            "trace": "boot", "policy": "p", "missed": missed, "root_loads": 3,
            "flushes": { "flush-guest": flushes }, "unverified_cost_share": 0.5, "digest": "00",
        });
        Numbers::of(&entry).unwrap()
    }

    #[test]
    fn numbers_are_read_by_name() {
        let n = numbers(1, 7);
        let names: Vec<&str> = n.values.keys().map(String::as_str).collect();
        assert_eq!(names, ["flush-guest", "missed", "root-loads"]);
        assert_eq!(Numbers::of(&json!({ "policy": "p" })), None);
    }

    #[test]
    fn only_what_differs_is_a_change() {
        assert_eq!(changes(&[numbers(0, 7)], &[numbers(0, 7)]), []);
        let changed = changes(&[numbers(0, 7)], &[numbers(2, 7)]);
        let [one] = &changed[..] else { panic!("{changed:?}") };
        assert_eq!((one.metric.as_str(), one.before, one.after), ("missed", 0, 2));
        let other = Numbers { trace: "else".into(), ..numbers(5, 5) };
        assert_eq!(changes(&[other], &[numbers(0, 0)]), []);
    }
}
