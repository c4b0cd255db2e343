//! One trace under one policy, fed piece by piece.

use std::io::Write;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tlbscope_sim::engine::{Machine, Refused, Step};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::codec::{self, CodecError};
use tlbscope_trace::native::Batch;
use tlbscope_trace::observe::World;
use tlbscope_trace::op::{Actor, Event, Op};

use super::breakdown::Breakdown;
use super::work::Setup;
use super::{Replay, ReplayError, Summary, Wanted};
use crate::oracle::Oracle;
use crate::tally::Tally;

/// A run under way: it owns its machine and what watches it, and nothing of the trace.
#[derive(Clone, Debug)]
pub struct Run {
    setup: Setup,
    policy: Policy,
    machine: Machine,
    watching: (Oracle, Tally),
    events: u64,
    left_out: u64,
    oddities: Oddities,
    breakdown: Option<Breakdown>,
}

/// Operations that were carried out and hardly meant so: a write that faults with #GP, a CR3
/// outside guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oddities {
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Oddity>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oddity {
    /// Number of the event.
    pub event: u64,
    /// Its line in the source, 0 where there is none.
    pub line: u32,
    /// What is odd.
    pub what: String,
}

impl Oddities {
    /// The first so many are kept.
    const KEPT: usize = 10;

    fn add(&mut self, event: u64, line: u32, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(Oddity { event, line, what: what() });
        }
    }
}

impl Run {
    /// A run of this machine under `policy`, keeping of it what is wanted.
    ///
    /// # Errors
    ///
    /// The machine cannot be made.
    pub fn new(setup: &Setup, policy: &Policy, wanted: &Wanted) -> Result<Self, ReplayError> {
        let vcpus = setup.machine.vcpus;
        let mut watching =
            (Oracle::with_max_findings(vcpus, wanted.max_findings), Tally::new(usize::from(vcpus)));
        watching.0.accept(wanted.suppressions.clone(), &policy.name);
        let machine = setup.machine(policy)?;
        let breakdown = wanted.by.map(|by| Breakdown::new(by, &watching.1));
        let policy = policy.clone();
        let (setup, oddities) = (setup.clone(), Oddities::default());
        Ok(Self { setup, policy, machine, watching, events: 0, left_out: 0, oddities, breakdown })
    }

    /// Carries a batch out. Behind a loss, an event that does not fit the machine is left out and
    /// counted: what made it fit may be lost.
    ///
    /// # Errors
    ///
    /// The first event that the machine cannot carry out, where nothing is lost.
    pub fn batch(&mut self, batch: &Batch) -> Result<(), ReplayError> {
        self.part(batch, 0..batch.events.len())
    }

    /// The same, of some events of a batch.
    ///
    /// # Errors
    ///
    /// As for [`Self::batch`].
    pub fn part(&mut self, batch: &Batch, range: Range<usize>) -> Result<(), ReplayError> {
        let first = batch.first + range.start as u64;
        let lines = batch.lines.get(range.clone()).unwrap_or_default();
        let events = batch.events.get(range).unwrap_or_default();
        if !batch.after_loss {
            return self.feed(first, events, lines);
        }
        for (index, event) in (first..).zip(events) {
            match self.step(event, index) {
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
        let mut at = 0;
        loop {
            // A run that is taken apart counts each event.
            if self.breakdown.is_none() {
                at += self.machine.hits(&events[at..], first + at as u64, &mut self.watching);
            }
            let Some(event) = events.get(at) else { break };
            let index = first + at as u64;
            let line = || lines.get(at).copied().unwrap_or(0);
            match self.step(event, index) {
                Ok(Step { fault: Some(fault), .. }) => self
                    .oddities
                    .add(index, line(), || format!("faults with #GP and has no effect: {fault}")),
                Ok(_) => self.root(event, index, line()),
                Err(refused) => {
                    return Err(self.setup.refused(&self.policy, index, line(), refused));
                }
            }
            at += 1;
        }
        self.events += events.len() as u64;
        Ok(())
    }

    /// Carries one event out, and counts it where the run is taken apart.
    #[inline]
    fn step(&mut self, event: &Event, index: u64) -> Result<Step, Refused> {
        let Some(breakdown) = &mut self.breakdown else {
            return self.machine.run(event, index, &mut self.watching);
        };
        let vcpus = self.setup.machine.vcpus;
        let regs = |vcpu: VcpuId| (vcpu.0 < vcpus).then(|| *self.machine.regs(vcpu));
        let before = breakdown.regs(event, regs);
        let step = self.machine.run(event, index, &mut self.watching)?;
        let change = match (&before, event.actor) {
            (Some(before), Actor::Vcpu(vcpu)) => Some((before, self.machine.regs(vcpu))),
            _ => None,
        };
        let (oracle, tally) = &self.watching;
        breakdown.done(event, change, step.fault.is_some(), tally, oracle.findings());
        Ok(step)
    }

    /// A CR3 whose tables would lie outside guest memory.
    fn root(&mut self, event: &Event, index: u64, line: u32) {
        let (Op::Cr3(_), Actor::Vcpu(vcpu)) = (&event.op, event.actor) else { return };
        let root = self.machine.regs(vcpu).root().0;
        let bytes = self.setup.machine.memory;
        if root >= bytes {
            self.oddities.add(index, line, || {
                format!(
                    "CR3 points to {root:#x}, outside the guest's {bytes:#x} bytes of memory: every \
                     walk finds an empty table"
                )
            });
        }
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
        let (left_out, oddities) = (self.left_out, self.oddities);
        let parts = self.breakdown.map_or_else(Vec::new, |breakdown| {
            breakdown.finish(&tally, &findings, &self.setup.processor)
        });
        Replay { summary, findings, tally, left_out, oddities, parts }
    }
}

/// All of a run that its trace, policy and machine do not say.
#[derive(Serialize, Deserialize)]
struct State<M, W, O, B> {
    machine: M,
    watching: W,
    events: u64,
    left_out: u64,
    oddities: O,
    breakdown: B,
}

impl Run {
    /// Writes the state of the run, for [`Self::resume`].
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn save(&self, out: &mut impl Write) -> Result<(), CodecError> {
        let Self { setup: _, policy: _, machine, watching, events, left_out, oddities, breakdown } =
            self;
        let (events, left_out) = (*events, *left_out);
        let state = State { machine, watching, events, left_out, oddities, breakdown };
        codec::encode_state(&state, out)
    }

    /// A run of the same machine and policy, in a state that was saved; `None` if the state is of
    /// another machine.
    ///
    /// # Errors
    ///
    /// The bytes are no state.
    pub fn resume(self, state: &[u8], wanted: &Wanted) -> Result<Option<Self>, CodecError> {
        type Whole = State<Machine, (Oracle, Tally), Oddities, Option<Breakdown>>;
        let state: Whole = codec::decode_state(state)?;
        let State { machine, mut watching, events, left_out, oddities, breakdown } = state;
        let Self { setup, policy, machine: new, .. } = self;
        watching.0.accept(wanted.suppressions.clone(), &policy.name);
        let Some(machine) = new.in_state_of(machine) else { return Ok(None) };
        Ok(Some(Self { setup, policy, machine, watching, events, left_out, oddities, breakdown }))
    }
}
