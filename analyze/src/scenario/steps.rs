//! What the machine does at each event of a scenario under one policy, in words: to see why an
//! expectation fails, or how a defect works.

use std::fmt;

use serde::Serialize;
use tlbscope_sim::engine::Machine;
use tlbscope_trace::act::{Accessed, Act, At, Instead, Mark, Tag, Via};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::Actor;

use super::Scenario;
use super::expect::Expect;
use super::run::{outcome_text, run_order};
use crate::explain::words;
use crate::finding::{Class, Kind};
use crate::oracle::Oracle;

/// The events of one expectation's run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Story {
    /// The scenario.
    pub scenario: String,
    /// The policy.
    pub policy: String,
    /// The list of events, where they have names.
    pub list: Option<String>,
    /// Each event, in the order of the run.
    pub events: Vec<Told>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Line in the file.
    pub line: usize,
    /// Its text.
    pub event: String,
    /// What was done at it.
    pub steps: Vec<String>,
    /// What the judge found in it.
    pub verdicts: Vec<String>,
}

/// Notes what is done at each event.
struct Watch(Vec<Vec<String>>);

impl Watch {
    fn note(&mut self, at: &At, step: String) {
        let by = match at.actor {
            Actor::Vcpu(vcpu) => format!("{vcpu} "),
            Actor::Host => "host ".to_owned(),
        };
        if let Some(steps) = self.0.get_mut(at.event as usize) {
            steps.push(by + &step);
        }
    }
}

impl Observer for Watch {
    fn act<W: World>(&mut self, at: &At, act: &Act, _: &W) {
        let step = match act {
            Act::Exit(_) => Some("exits to KVM".to_owned()),
            Act::Entry(_) => Some("enters the guest".to_owned()),
            Act::EntryAborted { failed: false } => Some("tries the entry again".to_owned()),
            Act::Ipi(pcpu) => Some(format!("interrupts {pcpu}")),
            _ => words::act(act),
        };
        if let Some(step) = step {
            self.note(at, step);
        }
    }

    fn walk_uses(&mut self, at: &At, _: Mark, instead: Instead, _: &Tag) {
        let what = match instead {
            Instead::Structure { .. } => "a paging-structure cache",
            Instead::GuestPhysical => "a guest-physical mapping",
        };
        self.note(at, format!("walks with {what}"));
    }

    fn access<W: World>(&mut self, at: &At, access: &Accessed, _: &W) {
        let from = match access.via {
            Via::Copy { fresh: false, .. } => "the TLB",
            _ => "a walk",
        };
        self.note(at, format!("gets {} from {from}", outcome_text(access.outcome)));
    }
}

impl Scenario {
    /// Runs the events of an expectation under its policy and tells what is done. `None` if the
    /// machine cannot be made.
    #[must_use]
    pub fn story(&self, expect: &Expect) -> Option<Story> {
        let list = &self.lists[expect.list.min(self.lists.len() - 1)];
        let order = run_order(list);
        let oracle = Oracle::with_max_findings(self.machine.vcpus, order.len().max(16) * 16);
        let mut watching = (oracle, Watch(vec![Vec::new(); order.len()]));
        let mut machine = Machine::new(&self.machine, self.policy(expect)?).ok()?;
        for (index, ordered) in order.iter().enumerate() {
            if let Err(refused) = machine.run(&ordered.event, index as u64, &mut watching) {
                watching.1.0[index].push(format!("refused: {refused}"));
            }
            machine.take_late();
        }
        watching.0.finish(&machine);
        let (oracle, Watch(steps)) = watching;
        let mut events: Vec<Told> = order
            .iter()
            .zip(steps)
            .map(|(ordered, steps)| Told {
                line: list.file_line(list.lines[ordered.line].number),
                event: list.event_text(ordered.line).to_owned(),
                steps,
                verdicts: Vec::new(),
            })
            .collect();
        for finding in oracle.findings().kept() {
            let at = finding.use_.unwrap_or(finding.cause) as usize;
            let cause = events.get(finding.cause as usize).map_or(0, |told| told.line);
            let owed = match finding.kind {
                Kind::Missed { .. } | Kind::Exposed | Kind::Latent => {
                    format!(", owed since line {cause}")
                }
                _ => String::new(),
            };
            if let Some(told) = events.get_mut(at) {
                told.verdicts.push(format!("{}: {}{owed}", verdict(finding.kind), finding.rule));
            }
        }
        let (scenario, policy) = (self.name.clone(), expect.policy.clone());
        Some(Story { scenario, policy, list: list.name.clone(), events })
    }
}

const fn verdict(kind: Kind) -> &'static str {
    match kind {
        Kind::Missed { harmful: true } => "missed, harmful",
        Kind::Missed { harmful: false } => "missed, benign",
        Kind::Exposed => "exposed",
        Kind::Latent => "latent",
        Kind::Advised => "advised",
        Kind::Excessive(Class::Unrequired) => "unrequired",
        Kind::Excessive(Class::Redundant) => "redundant",
        Kind::Excessive(Class::OverBroad) => "over-broad",
        Kind::Excessive(Class::Bookkeeping) => "bookkeeping",
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} under {}", self.scenario, self.policy)?;
        if let Some(list) = &self.list {
            write!(f, ", events `{list}`")?;
        }
        for told in &self.events {
            write!(f, "\n{:>5}  {}", told.line, told.event)?;
            for step in &told.steps {
                write!(f, "\n         {step}")?;
            }
            for verdict in &told.verdicts {
                write!(f, "\n       * {verdict}")?;
            }
        }
        Ok(())
    }
}
