//! What was found in traces, as every form but text and JSON is made of it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tlbscope_analyze::explain::Chain;
use tlbscope_analyze::finding::{Class, Finding, Findings, Group, Kind};
use tlbscope_analyze::replay::Replay;
use tlbscope_analyze::suppress::Suppression;
use tlbscope_sim::arch::required::elsewhere::elsewhere;
use tlbscope_sim::arch::required::{RULES, Rule};
use tlbscope_trace::op::Event;
use tlbscope_trace::text;

use crate::comparison::Comparison;
use crate::input::Input;
use crate::render::{self, Cited};
use crate::showing::Showing;

/// The answer of `simulate`, `compare` or `audit`.
pub struct Document<'a> {
    /// The command.
    pub command: &'static str,
    /// What was read.
    pub inputs: &'a [Input],
    /// One for each trace and policy, or for each recording.
    pub runs: Vec<Run>,
    /// The tables of `compare`.
    pub comparisons: &'a [Comparison<'a>],
}

/// One trace under one policy, or one recording.
#[derive(Default)]
pub struct Run {
    /// The trace.
    pub trace: String,
    /// The policy; none in an audit.
    pub policy: Option<String>,
    /// The object that `--format json` has of it in `summary`.
    pub summary: Value,
    /// What was lost of the trace.
    pub losses: Vec<String>,
    /// The findings that were kept.
    pub items: Vec<Item>,
    /// Exact numbers of every kind.
    pub groups: Vec<(Group, u64)>,
    /// Those that are accepted.
    pub suppressed: BTreeMap<Group, Suppression>,
    /// More lines of JSON Lines: their type and what they say.
    pub more: Vec<(&'static str, Value)>,
}

/// A finding with what it names.
pub struct Item {
    /// Its number among the findings of its run, from 1.
    pub number: usize,
    /// The verdict.
    pub finding: Finding,
    /// Where its cause is.
    pub cause: Place,
    /// Where the stale copy was used, or where it was seen.
    pub seen: Option<Place>,
    /// As text prints it.
    pub text: String,
    /// What JSON has of it beside the finding: the chain of cause.
    pub detail: Value,
    /// Why it is accepted, if it is.
    pub suppressed: Option<Suppression>,
}

impl Item {
    /// The finding as JSON.
    pub fn json(&self) -> Value {
        let mut value = serde_json::json!(self.finding);
        if let (Some(into), Some(from)) = (value.as_object_mut(), self.detail.as_object()) {
            into.extend(from.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        if let Some(by) = &self.suppressed {
            value["suppressed"] = serde_json::json!(by);
        }
        value
    }
}

/// A place in a trace.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Place {
    /// Number of the event; of the record in an audit.
    pub event: u64,
    /// Its line in the source; 0 where it has none.
    pub line: u32,
    /// Nanoseconds since the first event.
    pub time: u64,
    /// What it is.
    pub what: String,
}

impl Run {
    /// How many findings were counted and not kept.
    pub fn unlisted(&self) -> u64 {
        let total: u64 = self.groups.iter().map(|(_, count)| count).sum();
        total.saturating_sub(self.items.len() as u64)
    }

    /// The trace, and the policy where there is one.
    pub fn name(&self) -> String {
        match &self.policy {
            Some(policy) => format!("{} under {policy}", self.trace),
            None => self.trace.clone(),
        }
    }

    /// A number of the summary.
    pub fn number(&self, name: &str) -> u64 {
        self.summary.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Whether it makes `simulate` and `audit` exit with 1.
    pub fn found(&self) -> bool {
        self.number("missed_harmful") > 0
            || self.number("exposed") > 0
            || self.policy.is_none() && self.number("missed") > 0
    }

    /// A run of a replay. `chains` are those of its findings, in their order.
    pub fn of_replay(
        run: &Replay,
        cited: &Cited<'_>,
        chains: &[Chain],
        showing: &Showing,
    ) -> anyhow::Result<Self> {
        let by = |group: &Group| showing.suppression(run.findings.suppression(group)).cloned();
        let place = |event| place(&cited.events, event);
        let item = |(n, (finding, chain)): (usize, (&Finding, &Chain))| {
            let mut detail = serde_json::json!({ "chain": chain });
            if let Some(what) = elsewhere(finding.rule, cited.vendor) {
                detail["other_vendor"] = what.into();
            }
            Item {
                cause: place(finding.cause),
                seen: finding.use_.map(place),
                number: n + 1,
                text: render::finding(cited, n + 1, finding, chain),
                detail,
                suppressed: by(&finding.group()),
                finding: finding.clone(),
            }
        };
        let kept = run.findings.sorted();
        let none = Chain::default();
        let chains = chains.iter().chain(std::iter::repeat(&none));
        Ok(Self {
            trace: run.summary.trace.clone(),
            policy: Some(run.summary.policy.clone()),
            summary: serde_json::to_value(&run.summary)?,
            losses: Vec::new(),
            items: kept.iter().zip(chains).enumerate().map(item).collect(),
            groups: groups(&run.findings),
            suppressed: run
                .findings
                .groups()
                .filter_map(|(group, _)| Some((*group, by(group)?)))
                .collect(),
            more: Vec::new(),
        })
    }

    /// Exact numbers of every kind, as JSON has them.
    pub fn groups_json(&self) -> Vec<Value> {
        let one = |(group, count): &(Group, u64)| {
            let mut value = serde_json::json!({ "group": group, "count": count });
            if let Some(by) = self.suppressed.get(group) {
                value["suppressed"] = serde_json::json!(by);
            }
            value
        };
        self.groups.iter().map(one).collect()
    }

    /// Leaves out what is not to be shown; the numbers stay.
    pub fn show(&mut self, showing: &Showing) {
        self.items.retain(|item| {
            let times = [Some(&item.cause), item.seen.as_ref()];
            showing.wants(item.finding.vcpu, times.into_iter().flatten().map(|place| place.time))
        });
    }
}

fn groups(findings: &Findings) -> Vec<(Group, u64)> {
    findings.groups().map(|(group, count)| (*group, count)).collect()
}

/// An event as a place.
fn place(events: &BTreeMap<u64, (Event, u32)>, number: u64) -> Place {
    match events.get(&number) {
        Some((event, line)) => {
            Place { event: number, line: *line, time: event.time.0, what: text::write_event(event) }
        }
        None => Place { event: number, what: format!("event {number}"), ..Place::default() },
    }
}

/// One word for a verdict.
pub const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Missed { .. } => "missed",
        Kind::Exposed => "exposed",
        Kind::Latent => "latent",
        Kind::Advised => "advised",
        Kind::Excessive(Class::Unrequired) => "unrequired",
        Kind::Excessive(Class::Redundant) => "redundant",
        Kind::Excessive(Class::OverBroad) => "over-broad",
        Kind::Excessive(Class::Bookkeeping) => "bookkeeping",
    }
}

/// Whether a finding of this kind is a failure: a harmful miss, or an exposure.
pub const fn fails(kind: Kind) -> bool {
    matches!(kind, Kind::Missed { harmful: true } | Kind::Exposed)
}

/// What a finding means, in a sentence.
pub fn message(finding: &Finding) -> String {
    let Finding { vcpu, op, mechanism, .. } = finding;
    match finding.kind {
        Kind::Missed { harmful } => {
            let so = if harmful { "the outcome is wrong" } else { "with the same outcome" };
            format!("v{vcpu} used a stale copy ({mechanism}) that `{op}` had outlawed: {so}")
        }
        Kind::Exposed => format!(
            "v{vcpu} ran guest instructions while a translation that `{op}` had outlawed may be cached"
        ),
        Kind::Latent => format!(
            "at the end v{vcpu} still caches a translation that `{op}` had outlawed, never used"
        ),
        Kind::Advised => {
            format!("v{vcpu} used a copy that only an advised rule outlaws, by `{op}`")
        }
        Kind::Excessive(Class::Unrequired) => {
            format!("{mechanism} at `{op}` on v{vcpu}: nothing owed it")
        }
        Kind::Excessive(Class::Redundant) => {
            format!("{mechanism} at `{op}` on v{vcpu}: what it served was done already")
        }
        Kind::Excessive(Class::OverBroad) => {
            format!(
                "{mechanism} at `{op}` on v{vcpu}: it dropped live entries that nothing outlawed"
            )
        }
        Kind::Excessive(Class::Bookkeeping) => {
            format!("{mechanism} at `{op}` on v{vcpu}: it keeps the hypervisor's books")
        }
    }
}

/// The rule of the manual that a finding names.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().copied().find(|rule| rule.id == id)
}
