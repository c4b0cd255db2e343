//! What was found under each policy, by kind, and where the first of each kind is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use tlbscope_analyze::finding::{Finding, Group, Kind};
use tlbscope_analyze::replay::Replay;
use tlbscope_trace::op::Event;
use tlbscope_trace::text;

use crate::render;

/// The findings of a comparison, grouped over its policies.
#[derive(Default)]
pub struct Places {
    groups: BTreeMap<Group, Place>,
    policies: usize,
    trace: String,
    events: BTreeMap<u64, (Event, u32)>,
}

#[derive(Default)]
struct Place {
    /// How many under which policy.
    counts: Vec<(String, u64)>,
    first: Option<Finding>,
}

impl Places {
    /// Groups the findings of the runs of one trace.
    pub fn new(trace: &str, runs: &[&Replay]) -> Self {
        let mut groups: BTreeMap<Group, Place> = BTreeMap::new();
        for run in runs {
            for (group, count) in run.findings.open() {
                let place = groups.entry(*group).or_default();
                place.counts.push((run.summary.policy.clone(), count));
                let mut of = run.findings.kept().iter().filter(|f| f.group() == *group);
                place.first = place.first.take().or_else(|| of.next().cloned());
            }
        }
        Self { groups, policies: runs.len(), trace: trace.to_owned(), events: BTreeMap::new() }
    }

    /// The events that are named.
    pub fn cited(&self) -> BTreeSet<u64> {
        self.groups.values().filter_map(|place| place.first.as_ref()).map(|f| f.cause).collect()
    }

    /// The same with the events that it names, by number.
    pub fn with_events(mut self, events: BTreeMap<u64, (Event, u32)>) -> Self {
        self.events = events;
        self
    }

    /// Two lines for each kind: how many under which policy, and the first.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (group, place) in &self.groups {
            let kind = render::verdict(group.kind);
            // How a copy was used tells more than the rule; that an entry exposed it does not.
            let rule = match group.kind {
                Kind::Missed { .. } => format!("{}, {}", group.rule, group.mechanism),
                _ => group.rule.to_owned(),
            };
            let lead = format!("{kind} [{rule}] at {}: ", group.op);
            let _ = writeln!(out, "{}", render::hanging(&lead, &self.counts(place)));
            if let Some(first) = &place.first {
                let _ = writeln!(out, "  --> {}", self.place(first.cause));
            }
        }
        out
    }

    /// Where an event is, and what it is.
    fn place(&self, event: u64) -> String {
        let trace = &self.trace;
        match self.events.get(&event) {
            None => format!("{trace}: event {event}"),
            Some((e, 0)) => format!("{trace}: event {event}: {}", untimed(e)),
            Some((e, line)) => format!("{trace}:{line}: {}", untimed(e)),
        }
    }

    fn counts(&self, place: &Place) -> String {
        let alike = place.counts.windows(2).all(|pair| pair[0].1 == pair[1].1);
        match place.counts.first() {
            Some((_, n)) if alike && place.counts.len() == self.policies && self.policies > 1 => {
                format!("{n} under every policy")
            }
            _ => {
                let one = |(policy, n): &(String, u64)| format!("{policy} {n}");
                place.counts.iter().map(one).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// An event as text, without its time.
fn untimed(event: &Event) -> String {
    let text = text::write_event(event);
    match text.strip_prefix('@').and_then(|timed| timed.split_once(' ')) {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    }
}
