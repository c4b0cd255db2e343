//! A run that both oracles watch, compared after every access.

use tlbscope_analyze::finding::Findings;
use tlbscope_analyze::naive::Naive;
use tlbscope_analyze::oracle::Oracle;
use tlbscope_sim::engine::Machine;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::act::{Accessed, Act, ArchOp, At, Fill, Instead, Mark, Tag};
use tlbscope_trace::addr::Gpa;
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::Regs;

use super::{Case, policy};

/// Rules that only the fast oracle knows: nothing has struck the copy out.
const FAST_ONLY: [&str; 1] = ["impossible-translation"];

/// What a run came to.
pub struct Run {
    pub findings: Findings,
    pub digest: u64,
    /// Uses that the naive oracle calls missed.
    pub naive: usize,
    /// The first access on which they disagree.
    pub differ: Option<String>,
}

struct Watch {
    pair: (Oracle, Naive),
    /// Uses counted under the rules that only the fast oracle knows.
    alone: u64,
    differ: Option<String>,
}

impl Watch {
    fn alone(&self) -> u64 {
        let of = self.pair.0.findings().kept().iter();
        of.filter(|f| FAST_ONLY.contains(&f.rule)).map(|f| f.count).sum()
    }
}

impl Observer for Watch {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, w: &W) {
        self.pair.arch(at, op, before, native, w);
    }

    fn store<W: World>(&mut self, at: &At, gpa: Gpa, bytes: u8, old: u64, new: u64, w: &W) {
        self.pair.store(at, gpa, bytes, old, new, w);
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, w: &W) {
        self.pair.act(at, act, w);
    }

    fn dropped(&mut self, at: &At, tag: &Tag, global: bool, entries: u32) {
        self.pair.dropped(at, tag, global, entries);
    }

    fn walk_begin(&mut self, at: &At) {
        self.pair.walk_begin(at);
    }

    fn walk_uses(&mut self, at: &At, mark: Mark, instead: Instead, tag: &Tag) {
        self.pair.walk_uses(at, mark, instead, tag);
    }

    fn fill<W: World>(&mut self, at: &At, fill: &Fill, w: &W) -> Mark {
        self.pair.fill(at, fill, w)
    }

    fn access<W: World>(&mut self, at: &At, access: &Accessed, w: &W) {
        self.pair.access(at, access, w);
        let before = self.alone;
        self.alone = self.alone();
        let (fast, naive) = (self.pair.0.verdict(), self.pair.1.verdict());
        if fast != naive && self.alone == before && self.differ.is_none() {
            self.differ = Some(format!(
                "event {}: the fast oracle says {fast:?}, the naive one {naive:?} of {access:?}",
                at.event
            ));
        }
    }
}

/// Runs a case.
pub fn run(case: &Case) -> Run {
    run_list(&case.machine, &policy(&case.policy), &case.events)
}

/// Runs a list. Events that the machine refuses change nothing and are passed over.
pub fn run_list(config: &MachineConfig, policy: &Policy, events: &[Event]) -> Run {
    let vcpus = config.vcpus;
    let mut watch = Watch {
        pair: (Oracle::with_max_findings(vcpus, 10_000), Naive::new(vcpus)),
        alone: 0,
        differ: None,
    };
    let mut machine = Machine::new(config, policy).expect("a machine");
    for (index, event) in events.iter().enumerate() {
        let _refused = machine.run(event, index as u64, &mut watch);
    }
    watch.pair.0.finish(&machine);
    Run {
        findings: watch.pair.0.findings().clone(),
        digest: machine.digest(),
        naive: watch.pair.1.missed().len(),
        differ: watch.differ,
    }
}

/// The same case as a replay carries it out, runs of hits at once, watched by the fast oracle alone,
/// which need not be told of most accesses.
pub fn alone(case: &Case) -> (Findings, u64) {
    alone_list(&case.machine, &policy(&case.policy), &case.events)
}

/// The same of a list.
pub fn alone_list(config: &MachineConfig, policy: &Policy, events: &[Event]) -> (Findings, u64) {
    let mut oracle = Oracle::with_max_findings(config.vcpus, 10_000);
    let mut machine = Machine::new(config, policy).expect("a machine");
    let mut at = 0;
    loop {
        at += machine.hits(&events[at..], at as u64, &mut oracle);
        let Some(event) = events.get(at) else { break };
        let _refused = machine.run(event, at as u64, &mut oracle);
        at += 1;
    }
    oracle.finish(&machine);
    (oracle.findings().clone(), machine.digest())
}
