//! Runs the operations of a trace on a machine under one policy, judged by the oracle and counted.
//!
//! The trace is decoded once and shared by all runs; each run owns its machine. [`run`] takes a
//! trace that is in memory, [`stream`] one of any length.

mod breakdown;
mod checkpoint;
mod cost;
mod creation;
mod held;
mod native;
mod own_faults;
mod recorded;
mod refused;
mod run;
mod stream;
mod summary;
mod wanted;
mod work;

use std::fmt;

use tlbscope_sim::engine::{EngineError, Machine, Refused};
use tlbscope_sim::policy::Policy;

use crate::explain::{Chain, Witness};
use crate::finding::{Finding, Findings};
use crate::tally::Tally;

pub use breakdown::{By, Part, Verdicts};
pub use checkpoint::{CheckpointError, Checkpoints, IdentityPart, checkpointed};
pub use cost::{CAUSES, cycles_by_cause};
pub use run::{Oddities, Oddity, Run};
pub use stream::{StreamError, explain_stream, open, stream};
pub use summary::{FLUSHES, Summary};
pub use wanted::Wanted;
pub(crate) use work::mode;
pub use work::{Setup, Work, WorkError};

/// A finished run.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The numbers.
    pub summary: Summary,
    /// The verdicts.
    pub findings: Findings,
    /// The counts.
    pub tally: Tally,
    /// Events behind a loss that did not fit the machine any more and were left out.
    pub left_out: u64,
    /// Operations that were hardly meant so.
    pub oddities: Oddities,
    /// The numbers taken apart, if that was wanted.
    pub parts: Vec<Part>,
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
        index: u64,
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

/// Runs `work` under `policy`; `wanted` says what is kept of it. `progress` is told
/// the number of events done, now and then.
///
/// # Errors
///
/// The first event that the machine cannot carry out: nothing is skipped in silence.
pub fn run(
    work: &Work,
    policy: &Policy,
    wanted: impl Into<Wanted>,
    progress: impl Fn(u64),
) -> Result<Replay, ReplayError> {
    /// Events between two reports of progress.
    const STEP: usize = 1 << 16;
    let mut run = Run::new(&work.setup(), policy, &wanted.into())?;
    let chunks = work.events.chunks(STEP).zip(work.lines().chunks(STEP));
    for (chunk, (events, lines)) in chunks.enumerate() {
        run.feed((chunk * STEP) as u64, events, lines)?;
        progress(events.len() as u64);
    }
    Ok(run.finish())
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
    let setup = work.setup();
    let mut machine = setup.machine(policy)?;
    let last = usize::try_from(witness.last_event()).unwrap_or(usize::MAX);
    for (index, event) in work.events.iter().enumerate().take(last.saturating_add(1)) {
        machine
            .run(event, index as u64, &mut witness)
            .map_err(|refused| setup.refused(policy, index as u64, work.line(index), refused))?;
    }
    Ok(witness.chains())
}

impl Setup {
    /// The machine under a policy.
    pub(crate) fn machine(&self, policy: &Policy) -> Result<Machine, ReplayError> {
        let machine = Machine::new(&self.machine, policy)
            .map_err(|error| ReplayError::Machine { policy: policy.name.clone(), error })?;
        Ok(machine.with_regs(&self.regs))
    }

    /// The error of an event that cannot be carried out.
    pub(crate) fn refused(
        &self,
        policy: &Policy,
        index: u64,
        line: u32,
        refused: Refused,
    ) -> ReplayError {
        let (trace, policy) = (self.trace.clone(), policy.name.clone());
        ReplayError::Event { trace, policy, index, line, refused }
    }
}
