//! One trace under one policy, fed piece by piece.

use tlbscope_sim::engine::Machine;
use tlbscope_sim::policy::Policy;
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
        Ok(Self { setup: setup.clone(), policy, machine, watching, events: 0 })
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
        Replay { summary, findings, tally }
    }
}
