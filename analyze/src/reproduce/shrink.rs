//! Drops operations while the finding remains: delta debugging (Zeller and Hildebrandt, 2002) by
//! complements alone, from halves down to single operations.

use tlbscope_sim::engine::Machine;
use tlbscope_trace::observe::{Nobody, World};
use tlbscope_trace::op::{Actor, Op, RegWrite};

use super::judge::{Case, Wanted};

/// Operations that all attempts together may run. Counted, not timed: the same finding gives the
/// same scenario on every machine.
const BUDGET: u64 = 40_000_000;

/// The shortest list that is found, on the plainest machine.
pub(super) fn shrink(case: Case, wanted: &Wanted<'_>) -> Case {
    let mut attempts = Attempts { wanted, left: BUDGET };
    let case = attempts.items(case);
    let case = attempts.machine(case);
    attempts.written_as_changes(case)
}

struct Attempts<'a> {
    wanted: &'a Wanted<'a>,
    left: u64,
}

impl Attempts<'_> {
    fn shown(&mut self, case: &Case) -> bool {
        let cost = case.items.len() as u64 + 1;
        if self.left < cost {
            return false;
        }
        self.left -= cost;
        self.wanted.shown(case)
    }

    fn items(&mut self, mut case: Case) -> Case {
        let mut size = case.items.len().div_ceil(2).max(1);
        loop {
            let dropped = self.drop_chunks(&mut case, size);
            if size == 1 && !dropped || self.left == 0 {
                return case;
            }
            size = size.div_ceil(2).min(case.items.len().max(1));
        }
    }

    /// Tries to drop each run of `size` operations, the finding's own kept.
    fn drop_chunks(&mut self, case: &mut Case, size: usize) -> bool {
        let (cause, used) = (self.wanted.finding.cause, self.wanted.finding.use_);
        let (mut at, mut dropped) = (0, false);
        while at < case.items.len() {
            let end = (at + size).min(case.items.len());
            let mut n = 0;
            let mut without = case.clone();
            without.items.retain(|item| {
                let own = item.origin.is_some_and(|(n, _)| n == cause || Some(n) == used);
                let inside = (at..end).contains(&n);
                n += 1;
                own || !inside
            });
            if without.items.len() < case.items.len() && self.shown(&without) {
                *case = without;
                dropped = true;
            } else {
                at = end;
            }
        }
        dropped
    }

    /// No more vCPUs and pCPUs than it takes, and hardware that never evicts.
    fn machine(&mut self, mut case: Case) -> Case {
        let named = case.items.iter().filter_map(|item| match item.event.actor {
            Actor::Vcpu(v) => Some(v.0 + 1),
            Actor::Host => None,
        });
        let vcpus = named.max().unwrap_or(1).min(case.machine.vcpus);
        let mut plainer = Vec::new();
        for pcpus in [1, vcpus] {
            plainer.push((vcpus, pcpus.min(case.machine.pcpus)));
        }
        plainer.push((vcpus, case.machine.pcpus));
        // One pCPU for several vCPUs means switches that nobody wrote.
        plainer.retain(|(vcpus, pcpus)| pcpus >= vcpus || *pcpus == case.machine.pcpus);
        for (vcpus, pcpus) in plainer {
            let mut tried = case.clone();
            (tried.machine.vcpus, tried.machine.pcpus) = (vcpus, pcpus);
            if self.shown(&tried) {
                case = tried;
                break;
            }
        }
        if case.machine.tlb != "unbounded" {
            let mut tried = case.clone();
            tried.machine.tlb = "unbounded".to_owned();
            if self.shown(&tried) {
                case = tried;
            }
        }
        case
    }

    /// Writes of whole registers as what they change, which says more.
    fn written_as_changes(&mut self, case: Case) -> Case {
        let changed = as_changes(&case, self.wanted);
        if self.shown(&changed) { changed } else { case }
    }
}

fn as_changes(case: &Case, wanted: &Wanted<'_>) -> Case {
    let mut changed = case.clone();
    let Ok(mut machine) = Machine::new(&case.machine, wanted.policy) else { return changed };
    for (n, item) in (0_u64..).zip(&mut changed.items) {
        let before = item.event.clone();
        if let Actor::Vcpu(vcpu) = before.actor
            && vcpu.0 < case.machine.vcpus
        {
            let regs = *machine.regs(vcpu);
            match &mut item.event.op {
                Op::Cr0(write) => *write = change(*write, regs.cr0),
                Op::Cr4(write) => *write = change(*write, regs.cr4),
                Op::Efer(write) => *write = change(*write, regs.efer),
                _ => {}
            }
        }
        let _ = machine.run(&before, n, &mut Nobody);
        machine.take_late();
    }
    changed
}

fn change(write: RegWrite, old: u64) -> RegWrite {
    let new = write.apply(old);
    let bits = new ^ old;
    // A write of the same value stays what it is.
    if bits == 0 { write } else { RegWrite { clear: bits, set: new & bits } }
}
