//! The reachable orders of a scenario's events (`scenarios --interleave`): which of them break an
//! expectation.
//!
//! An order is a list of answers of the machine's chooser. The exhaustive search asks for those that
//! deviate least from the file first, as bugs seldom need more than two or three deviations, and
//! stops at a bound. A file's outcomes and counts hold for the order that it writes; under another
//! order the judge decides: a missed flush or an exposure that the expectation does not list breaks
//! it, and where it lists neither, every harmful miss that the order of the file does not have.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_sim::engine::{Choice, Chooser, Interleaved, Machine};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::op::Event;

use super::run::{Ordered, pair_text, run_order};
use super::{Expect, Kind, List, Scenario};
use crate::finding::{self, Finding};
use crate::oracle::Oracle;

/// Findings kept of one order.
const MAX_FINDINGS: usize = 1024;
/// Broken orders that are shown of one expectation; all are counted.
const SHOWN: usize = 8;

/// Which orders are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orders {
    /// All, up to this many.
    All(u64),
    /// This many, drawn by this seed; the order of the file is the first.
    Sampled {
        /// How many.
        orders: u64,
        /// The seed.
        seed: u64,
    },
}

/// What the orders of one expectation came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OrdersReport {
    /// The file.
    pub file: String,
    /// The scenario.
    pub scenario: String,
    /// The policy.
    pub policy: String,
    /// The list of events, where they have names.
    pub list: Option<String>,
    /// How many orders were run.
    pub orders: u64,
    /// Whether these are all there are.
    pub complete: bool,
    /// How many of them break the expectation.
    pub broken: u64,
    /// The first of those, each with what is new in it.
    pub breaks: Vec<Broken>,
}

/// An order that breaks the expectation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Broken {
    /// What was found.
    pub found: Vec<String>,
    /// The choices that make the order, where they differ from the file's.
    pub choices: Vec<String>,
    /// Every answer of the chooser.
    pub answers: Vec<u32>,
}

impl OrdersReport {
    /// Whether no order breaks the expectation.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.broken == 0
    }
}

impl fmt::Display for OrdersReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        write!(f, "{verdict} {} under {}", self.scenario, self.policy)?;
        if let Some(list) = &self.list {
            write!(f, ", events `{list}`")?;
        }
        let all = if self.complete { "all " } else { "" };
        write!(f, ": {all}{} orders, {} broken", self.orders, self.broken)?;
        for broken in &self.breaks {
            for found in &broken.found {
                write!(f, "\n  {found}")?;
            }
            if broken.choices.is_empty() {
                write!(f, "\n    in the order of the file")?;
            }
            for choice in &broken.choices {
                write!(f, "\n    {choice}")?;
            }
        }
        Ok(())
    }
}

impl Scenario {
    /// Runs other orders of the events of one expectation.
    #[must_use]
    pub fn run_orders(&self, expect: &Expect, orders: Orders) -> OrdersReport {
        let list = &self.lists[expect.list.min(self.lists.len() - 1)];
        let mut search = Search {
            scenario: self,
            list,
            expect,
            order: run_order(list),
            known: None,
            seen: BTreeSet::new(),
            report: OrdersReport {
                file: self.file.clone(),
                scenario: self.name.clone(),
                policy: expect.policy.clone(),
                list: list.name.clone(),
                orders: 0,
                complete: false,
                broken: 0,
                breaks: Vec::new(),
            },
        };
        match (self.policy(expect), orders) {
            (None, _) => search.report.fail(format!("no policy `{}`", expect.policy)),
            (Some(policy), Orders::All(bound)) => search.all(policy, bound),
            (Some(policy), Orders::Sampled { orders, seed }) => {
                search.sampled(policy, orders, seed);
            }
        }
        search.report
    }
}

impl OrdersReport {
    fn fail(&mut self, why: String) {
        self.broken += 1;
        self.breaks.push(Broken { found: vec![why], choices: Vec::new(), answers: Vec::new() });
    }
}

struct Search<'a> {
    scenario: &'a Scenario,
    list: &'a List,
    expect: &'a Expect,
    order: Vec<Ordered>,
    /// Harmful misses in the order of the file, where the expectation lists none.
    known: Option<BTreeSet<(u64, Option<u64>)>>,
    /// What was shown already.
    seen: BTreeSet<String>,
    report: OrdersReport,
}

impl Search<'_> {
    fn events(&self) -> Vec<Event> {
        self.order.iter().map(|o| o.event.clone()).collect()
    }

    /// Every order once, those with fewer deviations first.
    fn all(&mut self, policy: &Policy, bound: u64) {
        let events = self.events();
        let mut open = VecDeque::from([Vec::new()]);
        let mut left_out = false;
        while let Some(answers) = open.pop_front() {
            if self.report.orders >= bound {
                return;
            }
            let fixed = answers.len();
            let Some(came) = self.run(policy, &events, Chooser::Script(answers)) else { return };
            // Deviations after the last one that this order was made for; enough are kept to
            // reach the bound.
            let room = bound.saturating_sub(self.report.orders) as usize;
            for (at, choice) in came.iter().enumerate().skip(fixed) {
                for other in 1..choice.options {
                    left_out |= open.len() >= room;
                    if open.len() < room {
                        let before = came[..at].iter().map(|c| c.taken);
                        open.push_back(before.chain([other]).collect());
                    }
                }
            }
        }
        self.report.complete = !left_out;
    }

    fn sampled(&mut self, policy: &Policy, orders: u64, seed: u64) {
        let events = self.events();
        for n in 0..orders {
            let chooser = match n {
                0 => Chooser::Script(Vec::new()),
                _ => Chooser::seeded(seed.wrapping_add(n.wrapping_mul(0xd134_2543_de82_ef95))),
            };
            if self.run(policy, &events, chooser).is_none() {
                return;
            }
        }
    }

    /// One order: its choices, or `None` if there is no sense in going on.
    fn run(&mut self, policy: &Policy, events: &[Event], chooser: Chooser) -> Option<Vec<Choice>> {
        let config = &self.scenario.machine;
        let mut oracle = Oracle::with_max_findings(config.vcpus, MAX_FINDINGS);
        let mut machine = match Machine::new(config, policy) {
            Ok(machine) => machine,
            Err(error) => {
                self.report.fail(error.to_string());
                return None;
            }
        };
        let came = machine.run_interleaved(events, chooser, &mut oracle);
        if came.stuck {
            return Some(came.choices);
        }
        self.report.orders += 1;
        oracle.finish(&machine);
        let found = oracle.findings().kept();
        self.known.get_or_insert_with(|| found.iter().map(|f| (f.cause, f.use_)).collect());
        self.judge(&came, found);
        Some(came.choices)
    }

    fn judge(&mut self, came: &Interleaved, findings: &[Finding]) {
        let mut found: BTreeSet<String> =
            findings.iter().filter_map(|finding| self.breaks(finding)).collect();
        if let Some((index, refused)) = &came.refused {
            found.insert(format!("{}: {refused}", self.name(*index)));
        }
        if found.is_empty() {
            return;
        }
        self.report.broken += 1;
        let fresh = found.iter().any(|what| !self.seen.contains(what));
        if fresh && self.report.breaks.len() < SHOWN {
            self.seen.extend(found.iter().cloned());
            let odd = came.choices.iter().filter(|c| c.taken != 0);
            let broken = Broken {
                found: found.into_iter().collect(),
                choices: odd.map(|choice| self.choice(choice)).collect(),
                answers: came.choices.iter().map(|c| c.taken).collect(),
            };
            self.report.breaks.push(broken);
        }
    }

    /// What is wrong about a finding, if the expectation does not have it.
    fn breaks(&self, found: &Finding) -> Option<String> {
        let exposed = &self.expect.causes[Kind::Exposed as usize];
        let neither = self.expect.missed.is_none() && exposed.is_none();
        let cause = self.name(found.cause);
        match found.kind {
            finding::Kind::Missed { harmful } => {
                let used = found.use_.map_or_else(|| "?".to_owned(), |event| self.name(event));
                let listed = self.expect.missed.as_ref();
                let bad = match listed {
                    Some(listed) => !listed.contains(&(used.clone(), cause.clone())),
                    None => {
                        let pair = (found.cause, found.use_);
                        neither && harmful && !self.known.iter().any(|k| k.contains(&pair))
                    }
                };
                bad.then(|| format!("missed: {}", pair_text(&used, &cause)))
            }
            finding::Kind::Exposed => {
                let bad = exposed.as_ref().is_some_and(|listed| !listed.contains(&cause));
                bad.then(|| format!("exposed: v{} by `{cause}`", found.vcpu))
            }
            _ => None,
        }
    }

    fn name(&self, event: u64) -> String {
        let at = usize::try_from(event).ok().and_then(|event| self.order.get(event));
        self.list.event_name(at.map_or(u64::MAX, |o| o.line as u64))
    }

    fn text(&self, event: u64) -> &str {
        let at = usize::try_from(event).ok().and_then(|event| self.order.get(event));
        at.map_or("", |o| self.list.event_text(o.line))
    }

    /// A choice in words.
    fn choice(&self, choice: &Choice) -> String {
        let event = choice.event.map_or("nothing", |event| self.text(event));
        if choice.point == tlbscope_sim::engine::Point::Between {
            return format!("`{event}` runs ahead of its turn");
        }
        let of = choice.vcpu.map_or_else(|| "the host".to_owned(), |vcpu| vcpu.to_string());
        let during = self.text(choice.during);
        format!("`{event}` falls into `{during}` ({of}: {})", choice.point)
    }
}
