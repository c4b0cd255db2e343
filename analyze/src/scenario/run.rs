//! Carries out the expectations of a scenario and says what differs.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_sim::engine::{Machine, Step};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::act;
use tlbscope_trace::addr::Time;
use tlbscope_trace::op::{Event, Op};
use tlbscope_trace::text;

use super::Scenario;
use super::events::List;
use super::expect::{Expect, Kind};
use crate::finding::{self, Class, Findings};
use crate::oracle::Oracle;
use crate::tally::{Counts, Key, Tally};

/// Findings kept of each group: far more than a list written by hand can cause.
const MAX_FINDINGS: usize = 65_536;

/// How one expectation came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CaseReport {
    /// The file.
    pub file: String,
    /// The scenario.
    pub scenario: String,
    /// The policy.
    pub policy: String,
    /// The list of events, where they have names.
    pub list: Option<String>,
    /// What differs; none if it passed.
    pub failures: Vec<Failure>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Failure {
    /// Line in the file.
    pub line: usize,
    /// What was looked at: the text of an event, or a key of the expectation.
    pub what: String,
    /// What the file says.
    pub expected: String,
    /// What came out.
    pub got: String,
}

impl CaseReport {
    /// Whether everything is as expected.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        write!(f, "{verdict} {} under {}", self.scenario, self.policy)?;
        if let Some(list) = &self.list {
            write!(f, ", events `{list}`")?;
        }
        for failure in &self.failures {
            write!(f, "\n  {}:{}: {}", self.file, failure.line, failure.what)?;
            write!(f, "\n    expected {}", failure.expected)?;
            write!(f, "\n    got      {}", failure.got)?;
        }
        Ok(())
    }
}

impl Scenario {
    /// Runs every expectation, in the order of the file.
    #[must_use]
    pub fn run(&self) -> Vec<CaseReport> {
        self.expects.iter().map(|expect| self.run_case(expect)).collect()
    }

    /// Runs one of the scenario's expectations.
    #[must_use]
    pub fn run_case(&self, expect: &Expect) -> CaseReport {
        self.run_case_without(expect, None)
    }

    /// The same, judged by a table of requirements that lacks this row: the report fails where the
    /// expectation rests on it.
    #[must_use]
    pub fn run_case_without(&self, expect: &Expect, rule: Option<&'static str>) -> CaseReport {
        let list = &self.lists[expect.list.min(self.lists.len() - 1)];
        let failures = match self.policy(expect) {
            Some(policy) => Case { scenario: self, list, expect, without: rule }.failures(policy),
            None => vec![Failure {
                line: expect.line,
                what: format!("policy `{}`", expect.policy),
                expected: "a policy of this scenario".to_owned(),
                got: "none of that name".to_owned(),
            }],
        };
        CaseReport {
            file: self.file.clone(),
            scenario: self.name.clone(),
            policy: expect.policy.clone(),
            list: list.name.clone(),
            failures,
        }
    }
}

/// One expectation with what it speaks of.
struct Case<'a> {
    scenario: &'a Scenario,
    list: &'a List,
    expect: &'a Expect,
    without: Option<&'static str>,
}

impl Case<'_> {
    fn failures(&self, policy: &Policy) -> Vec<Failure> {
        let order = run_order(self.list);
        let windows: Vec<_> = self
            .expect
            .at
            .iter()
            .filter_map(|at| order.iter().position(|o| o.line == at.event))
            .map(|position| (position as u64, order[position].event.actor))
            .collect();
        let vcpus = self.scenario.machine.vcpus;
        let mut watching = (
            Oracle::with_max_findings(vcpus, MAX_FINDINGS).without(self.without),
            Tally::with_windows(usize::from(vcpus), &windows),
        );
        let mut machine = match Machine::new(&self.scenario.machine, policy) {
            Ok(machine) => machine,
            Err(error) => return vec![self.of_expect("machine", "one that can be made", error)],
        };
        let mut failures = Vec::new();
        let mut waiting = BTreeSet::new();
        let timed = |o: &Ordered| self.list.lines[o.line].time.is_some();
        machine.foresee(order.iter().map(|o| (o.event.clone(), timed(o))));
        for (index, ordered) in order.iter().enumerate() {
            if machine.carried_out_early(index as u64) {
                continue;
            }
            match machine.run(&ordered.event, index as u64, &mut watching) {
                Ok(step) if step.waits => _ = waiting.insert(index as u64),
                Ok(step) => failures.extend(self.outcome(ordered.line, &step)),
                Err(refused) => {
                    failures.push(self.of_event(ordered.line, "carried out", refused));
                    return failures;
                }
            }
            for (late, step) in machine.take_late() {
                waiting.remove(&late);
                failures.extend(self.outcome(order[late as usize].line, &step));
            }
        }
        let still = waiting.iter().map(|index| order[*index as usize].line);
        failures.extend(still.map(|line| self.of_event(line, "carried out", "it waits still")));
        watching.0.finish(&machine);
        let (oracle, tally) = &watching;
        failures.extend(self.findings(oracle.findings(), &order));
        failures.extend(self.counts("counts", &self.expect.counts, &tally.total()));
        for at in &self.expect.at {
            let position = order.iter().position(|o| o.line == at.event);
            let counted = position.and_then(|p| tally.window(p as u64));
            let what = format!("at.{}.counts", at.label);
            failures.extend(self.counts(&what, &at.counts, counted.unwrap_or(&Counts::default())));
        }
        failures
    }

    /// The outcome of an access, against the alternatives of its line. A use that this policy is
    /// expected to miss comes out wrong by intent.
    fn outcome(&self, line: usize, step: &Step) -> Option<Failure> {
        let allowed = &self.list.lines[line].outcomes;
        let name = self.list.event_name(line as u64);
        let excused = self.expect.missed.iter().flatten().any(|(used, _)| *used == name);
        if allowed.is_empty() || excused {
            return None;
        }
        let came = step.outcome;
        if came.is_some_and(|came| allowed.iter().any(|wanted| fits(*wanted, came))) {
            return None;
        }
        let wanted: Vec<String> = allowed.iter().map(|wanted| wanted_text(*wanted)).collect();
        let got = match (came, step.fault) {
            (Some(came), _) => outcome_text(came),
            (None, Some(fault)) => format!("#GP: {fault}"),
            (None, None) => "no outcome".to_owned(),
        };
        Some(self.of_event(line, wanted.join(" or "), got))
    }

    /// The verdicts, as sets of names.
    fn findings(&self, findings: &Findings, order: &[Ordered]) -> Vec<Failure> {
        let name = |event: u64| {
            let at = usize::try_from(event).ok().and_then(|event| order.get(event));
            self.list.event_name(at.map_or(u64::MAX, |o| o.line as u64))
        };
        let mut failures = Vec::new();
        if let Some(expected) = &self.expect.missed {
            let expected = expected.iter().map(|(used, cause)| pair_text(used, cause)).collect();
            let got = findings
                .kept()
                .iter()
                .filter(|f| matches!(f.kind, finding::Kind::Missed { .. }))
                .map(|f| pair_text(&f.use_.map_or_else(|| "?".to_owned(), name), &name(f.cause)))
                .collect();
            failures.extend(self.sets("missed", &expected, &got));
        }
        for (kind, expected) in Kind::ALL.into_iter().zip(&self.expect.causes) {
            let Some(expected) = expected else { continue };
            let expected = expected.iter().map(|label| format!("`{label}`")).collect();
            let got = findings
                .kept()
                .iter()
                .filter(|f| is_kind(f.kind, kind))
                .map(|f| format!("`{}`", name(f.cause)))
                .collect();
            failures.extend(self.sets(kind.name(), &expected, &got));
        }
        failures
    }

    fn sets(
        &self,
        what: &str,
        expected: &BTreeSet<String>,
        got: &BTreeSet<String>,
    ) -> Option<Failure> {
        (expected != got).then(|| self.of_expect(what, set_text(expected), set_text(got)))
    }

    fn counts<'c>(
        &'c self,
        what: &'c str,
        expected: &'c [(Key, u64)],
        got: &'c Counts,
    ) -> impl Iterator<Item = Failure> + 'c {
        let differing = expected.iter().filter(|(key, n)| got.get(*key) != *n);
        differing.map(move |(key, n)| self.of_expect(&format!("{what}.{key}"), n, got.get(*key)))
    }

    fn of_event(
        &self,
        line: usize,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Failure {
        let number = self.list.lines[line].number;
        Failure {
            line: self.list.file_line(number),
            what: format!("`{}`", self.list.event_text(line)),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    fn of_expect(
        &self,
        what: &str,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Failure {
        Failure {
            line: self.expect.line,
            what: what.to_owned(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// An event of a list, in the order of the run.
pub(super) struct Ordered {
    /// Its index in the list.
    pub line: usize,
    pub event: Event,
}

/// The events in the order of (time, actor, place in the file); one without a time follows the
/// line before it by a nanosecond.
pub(super) fn run_order(list: &List) -> Vec<Ordered> {
    let mut time = Time(0);
    let mut order = Vec::with_capacity(list.lines.len());
    for (at, line) in list.lines.iter().enumerate() {
        time = line.time.unwrap_or(Time(time.0.saturating_add(1)));
        let op: Op = line.op.clone();
        order.push(Ordered { line: at, event: Event { time, actor: line.actor, op } });
    }
    order.sort_by_key(|o| (o.event.time, o.event.actor, o.line));
    order
}

fn is_kind(found: finding::Kind, wanted: Kind) -> bool {
    match wanted {
        Kind::Exposed => found == finding::Kind::Exposed,
        Kind::Latent => found == finding::Kind::Latent,
        Kind::Advised => found == finding::Kind::Advised,
        Kind::Excessive => matches!(
            found,
            finding::Kind::Excessive(Class::Unrequired | Class::Redundant | Class::OverBroad)
        ),
    }
}

fn fits(wanted: text::Outcome, came: act::Outcome) -> bool {
    match (wanted, came) {
        (text::Outcome::Gpa(wanted), act::Outcome::Gpa(came)) => wanted == came,
        (text::Outcome::Fault(None), act::Outcome::Fault(_)) => true,
        (text::Outcome::Fault(Some(wanted)), act::Outcome::Fault(came)) => wanted == came,
        _ => false,
    }
}

fn wanted_text(wanted: text::Outcome) -> String {
    match wanted {
        text::Outcome::Gpa(gpa) => gpa.to_string(),
        text::Outcome::Fault(None) => "fault".to_owned(),
        text::Outcome::Fault(Some(code)) => format!("fault:{code:#x}"),
    }
}

pub(super) fn outcome_text(came: act::Outcome) -> String {
    match came {
        act::Outcome::Gpa(gpa) => gpa.to_string(),
        act::Outcome::Fault(code) => format!("fault:{code:#x}"),
    }
}

pub(super) fn pair_text(used: &str, cause: &str) -> String {
    format!("use `{used}` of cause `{cause}`")
}

fn set_text(set: &BTreeSet<String>) -> String {
    if set.is_empty() {
        return "none".to_owned();
    }
    set.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
