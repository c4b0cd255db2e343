//! One trace under one policy, fed piece by piece.

use tlbscope_sim::engine::Machine;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::native::Batch;
use tlbscope_trace::op::Event;

use super::work::Setup;
use super::{Replay, ReplayError, Summary};
use crate::oracle::Oracle;
use crate::tally::Tally;

/// A run under way: it owns its machine and what watches it, and nothing of the trace.
pub struct Run {
    setup: Setup,
    policy: Policy,
    machine: Machine,
    watching: (Oracle, Tally),
    events: u64,
    left_out: u64,
}

impl Run {
    /// A run of this machine under `policy`, keeping the first `max_findings` of each group.
    ///
    /// # Errors
    ///
    /// The machine cannot be made.
    pub fn new(setup: &Setup, policy: &Policy, max_findings: usize) -> Result<Self, ReplayError> {
        let vcpus = setup.machine.vcpus;
        let watching =
            (Oracle::with_max_findings(vcpus, max_findings), Tally::new(usize::from(vcpus)));
        let machine = setup.machine(policy)?;
        let policy = policy.clone();
        Ok(Self { setup: setup.clone(), policy, machine, watching, events: 0, left_out: 0 })
    }

    /// Carries a batch out. Behind a loss, an event that does not fit the machine is left out and
    /// counted: what made it fit may be lost.
    ///
    /// # Errors
    ///
    /// The first event that the machine cannot carry out, where nothing is lost.
    pub fn batch(&mut self, batch: &Batch) -> Result<(), ReplayError> {
        if !batch.after_loss {
            return self.feed(batch.first, &batch.events, &batch.lines);
        }
        for (index, event) in (batch.first..).zip(&batch.events) {
            match self.machine.run(event, index, &mut self.watching) {
                Ok(_) => self.events += 1,
                Err(_) => self.left_out += 1,
            }
        }
        Ok(())
    }

    /// Carries events out. `first` is the number of the first in the trace, `lines` are their lines
    /// in the source.
    ///
    /// # Errors
    ///
    /// The first event that the machine cannot carry out.
    pub fn feed(&mut self, first: u64, events: &[Event], lines: &[u32]) -> Result<(), ReplayError> {
        for (at, event) in events.iter().enumerate() {
            let index = first + at as u64;
            if let Err(refused) = self.machine.run(event, index, &mut self.watching) {
                let line = lines.get(at).copied().unwrap_or(0);
                return Err(self.setup.refused(&self.policy, index, line, refused));
            }
        }
        self.events += events.len() as u64;
        Ok(())
    }

    /// Ends the run.
    #[must_use]
    pub fn finish(mut self) -> Replay {
        self.watching.0.finish(&self.machine);
        let (oracle, tally) = self.watching;
        let findings = oracle.findings().clone();
        let digest = self.machine.digest();
        let summary =
            Summary::new(&self.setup, &self.policy.name, self.events, &findings, &tally, digest);
        Replay { summary, findings, tally, left_out: self.left_out }
    }
}
