//! Whether a list of operations shows a finding.

use std::collections::BTreeSet;

use tlbscope_sim::arch::mode::Mode;
use tlbscope_sim::engine::{Machine, Step};
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::addr::{Time, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::{Event, Op};
use tlbscope_trace::regs::Cr4;
use tlbscope_trace::text;

use crate::finding::{Finding, Findings, Kind};
use crate::oracle::Oracle;

/// Findings kept of each group.
const MAX_FINDINGS: usize = 65_536;

/// An operation of a scenario to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub event: Event,
    /// Number and line in the trace; `None`: it stands for the state at the start.
    pub origin: Option<(u64, u32)>,
}

/// A machine and what happens on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub machine: MachineConfig,
    pub items: Vec<Item>,
}

/// How a vCPU translates. A list in which this is another one shows another finding, even where
/// verdict and rule are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paging {
    mode: Mode,
    pcide: bool,
}

impl Paging {
    pub fn of(machine: &Machine, vcpu: VcpuId) -> Self {
        let regs = machine.regs(vcpu);
        Self { mode: Mode::of(regs), pcide: regs.cr4().contains(Cr4::PCIDE) }
    }
}

/// A finished run.
pub(super) struct Run {
    pub findings: Findings,
    /// How the watched vCPU translates before each operation, where it exists.
    pub paging: Vec<Option<Paging>>,
    /// What each operation came to.
    pub steps: Vec<Step>,
}

impl Case {
    /// Where the operation of this number in the trace stands.
    pub fn position(&self, event: u64) -> Option<u64> {
        let at = self.items.iter().position(|item| item.origin.is_some_and(|(n, _)| n == event));
        at.map(|at| at as u64)
    }

    /// Runs it as the runner of scenarios does; `None`: it could not be carried out.
    pub fn run(&self, policy: &Policy, watched: VcpuId) -> Option<Run> {
        let mut machine = Machine::new(&self.machine, policy).ok()?;
        let mut oracle = Oracle::with_max_findings(self.machine.vcpus, MAX_FINDINGS);
        let mut steps = Vec::with_capacity(self.items.len());
        let mut paging = Vec::with_capacity(self.items.len());
        let exists = watched.0 < self.machine.vcpus;
        let mut waiting = BTreeSet::new();
        for (n, item) in (0_u64..).zip(&self.items) {
            let event = Event { time: Time(n + 1), ..item.event.clone() };
            paging.push(exists.then(|| Paging::of(&machine, watched)));
            let step = machine.run(&event, n, &mut oracle).ok()?;
            if step.waits {
                waiting.insert(n);
            }
            steps.push(step);
            for (late, step) in machine.take_late() {
                waiting.remove(&late);
                *steps.get_mut(usize::try_from(late).ok()?)? = step;
            }
        }
        if !waiting.is_empty() {
            return None;
        }
        oracle.finish(&machine);
        Some(Run { findings: oracle.findings().clone(), paging, steps })
    }

    /// Whether it can be written: `host end` needs its `host begin`.
    fn can_be_written(&self) -> bool {
        let halves = |item: &&Item| matches!(item.event.op, Op::HostBegin(_) | Op::HostEnd(_));
        let lines: Vec<String> =
            self.items.iter().filter(halves).map(|item| text::write_event(&item.event)).collect();
        lines.is_empty() || text::parse(&lines.join("\n")).is_ok()
    }
}

/// The finding that a list must show, and under which policy.
pub(super) struct Wanted<'a> {
    pub finding: &'a Finding,
    pub policy: &'a Policy,
    /// How the finding's vCPU translated before the cause and before the use.
    pub paging: [Option<Paging>; 2],
}

impl Wanted<'_> {
    /// Whether the list shows the finding: the same verdict by the same rule on the same vCPU, of
    /// the same operation and in the same use.
    pub fn shown(&self, case: &Case) -> bool {
        let wanted = self.finding;
        let Some(cause) = case.position(wanted.cause) else { return false };
        let used = wanted.use_.map(|used| case.position(used));
        if used == Some(None) || !case.can_be_written() {
            return false;
        }
        let Some(run) = case.run(self.policy, VcpuId(wanted.vcpu)) else { return false };
        let paging = |at: u64| usize::try_from(at).ok().and_then(|at| *run.paging.get(at)?);
        let alike_before = |at: u64, was: Option<Paging>| was.is_none() || paging(at) == was;
        let [at_cause, at_use] = self.paging;
        if !alike_before(cause, at_cause)
            || !used.flatten().is_none_or(|used| alike_before(used, at_use))
        {
            return false;
        }
        run.findings.kept().iter().any(|found| {
            alike(found, wanted) && found.cause == cause && found.use_ == used.flatten()
        })
    }
}

/// Whether two findings differ in their events alone.
fn alike(found: &Finding, wanted: &Finding) -> bool {
    let verdict = match (found.kind, wanted.kind) {
        (Kind::Missed { harmful: found }, Kind::Missed { harmful: wanted }) => found || !wanted,
        (found, wanted) => found == wanted,
    };
    let key = |f: &Finding| (f.rule, f.op, f.mechanism, f.vcpu);
    verdict && key(found) == key(wanted)
}
