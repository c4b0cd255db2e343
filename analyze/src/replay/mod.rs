//! Runs the operations of a trace on a machine under one policy, judged by the oracle and counted.
//!
//! The trace is decoded once and shared by all runs; each run owns its machine.

mod cost;
mod native;
mod refused;
mod setup;
mod summary;
mod work;

use std::fmt;

use tlbscope_sim::engine::{EngineError, Machine, Refused};
use tlbscope_sim::policy::Policy;

use crate::explain::{Chain, Witness};
use crate::finding::{Finding, Findings};
use crate::oracle::Oracle;
use crate::tally::Tally;

pub use summary::Summary;
pub use work::{Work, WorkError};

/// A finished run.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The numbers.
    pub summary: Summary,
    /// The verdicts.
    pub findings: Findings,
    /// The counts.
    pub tally: Tally,
}

/// A run that could not be finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The machine cannot be made.
    Machine {
        /// The policy of the run.
        policy: String,
        /// Why.
        error: EngineError,
    },
    /// An event cannot be carried out.
    Event {
        /// The trace.
        trace: String,
        /// The policy of the run.
        policy: String,
        /// Index of the event, from 0.
        index: usize,
        /// Line in the source; 0 where it has none.
        line: u32,
        /// Why.
        refused: Refused,
    },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine { policy, error } => write!(f, "no machine for {policy}: {error}"),
            Self::Event { trace, policy, index, line: 0, refused } => {
                write!(f, "{trace}: event {index}, under {policy}: {refused}")
            }
            Self::Event { trace, policy, line, refused, .. } => {
                write!(f, "{trace}:{line}: under {policy}: {refused}")
            }
        }
    }
}

impl std::error::Error for ReplayError {}

/// Runs `work` under `policy`, keeping the first `max_findings` of each group. `progress` is told
/// the number of events done, now and then.
///
/// # Errors
///
/// The first event that the machine cannot carry out: nothing is skipped in silence.
pub fn run(
    work: &Work,
    policy: &Policy,
    max_findings: usize,
    progress: impl Fn(u64),
) -> Result<Replay, ReplayError> {
    /// Events between two reports of progress.
    const STEP: usize = 1 << 16;
    let vcpus = work.machine.vcpus;
    let mut watching =
        (Oracle::with_max_findings(vcpus, max_findings), Tally::new(usize::from(vcpus)));
    let mut machine = machine(work, policy)?;
    for (chunk, events) in work.events.chunks(STEP).enumerate() {
        for (at, event) in events.iter().enumerate() {
            let index = chunk * STEP + at;
            machine
                .run(event, index as u64, &mut watching)
                .map_err(|refused| at_event(work, policy, index, refused))?;
        }
        progress(events.len() as u64);
    }
    watching.0.finish(&machine);
    let (oracle, tally) = watching;
    let findings = oracle.findings().clone();
    let summary = Summary::new(work, policy, &findings, &tally, machine.digest());
    Ok(Replay { summary, findings, tally })
}

/// The chains of cause of findings that [`run`] made of the same work under the same policy, in
/// their order. The work is run again, as far as the last of them.
///
/// # Errors
///
/// Those of [`run`], which would have met them before.
pub fn explain(
    work: &Work,
    policy: &Policy,
    findings: &[Finding],
) -> Result<Vec<Chain>, ReplayError> {
    let mut witness = Witness::new(findings);
    if findings.is_empty() {
        return Ok(Vec::new());
    }
    let mut machine = machine(work, policy)?;
    let last = usize::try_from(witness.last_event()).unwrap_or(usize::MAX);
    for (index, event) in work.events.iter().enumerate().take(last.saturating_add(1)) {
        machine
            .run(event, index as u64, &mut witness)
            .map_err(|refused| at_event(work, policy, index, refused))?;
    }
    Ok(witness.chains())
}

fn machine(work: &Work, policy: &Policy) -> Result<Machine, ReplayError> {
    let machine = Machine::new(&work.machine, policy)
        .map_err(|error| ReplayError::Machine { policy: policy.name.clone(), error })?;
    Ok(machine.with_regs(&work.regs))
}

fn at_event(work: &Work, policy: &Policy, index: usize, refused: Refused) -> ReplayError {
    ReplayError::Event {
        trace: work.trace.clone(),
        policy: policy.name.clone(),
        index,
        line: work.line(index),
        refused,
    }
}
