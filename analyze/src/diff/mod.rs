//! Two policies side by side without a trace: every legal change of one or two flush-relevant bits
//! of CR0 and CR4, on both vendors, with shadow paging and with TDP, each judged by the oracle in
//! a `micro` scenario of its own.
//!
//! The breadth of every flush in the write's window is judged, LOAD's too: unlike an excessive
//! finding, the verdict says what became of the hardware, not who is to blame for it.
//!
//! Limits. A micro scenario has one vCPU on one pCPU. The hypervisor's guest-physical mappings do
//! not count.

mod micro;
mod steps;
mod transition;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Serialize, Serializer};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::regs::{MmuKind, Vendor};

pub use steps::{Matched, Steps, steps};
pub use transition::{Change, Register, State};

use crate::tally::Key;
use micro::Script;

/// What became of the flush that a write owes, or does not owe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Missed, and an access came out wrong.
    MissedHarmful,
    /// Missed, and every access came out as it should.
    MissedBenign,
    /// A stale copy stayed within reach and was not used.
    Exposed,
    /// A stale copy stayed out of reach.
    Latent,
    /// What was owed was carried out, and the hardware dropped nothing else.
    Served,
    /// What was owed was carried out, and translations were dropped that nothing owed.
    OverBroad,
    /// Not owed, and the oracle calls what was done excessive.
    Wasted,
    /// Not owed, and only an advised rule was left unserved.
    Advised,
    /// Not owed; what was done follows a role or keeps the hypervisor's books.
    NotOwed,
    /// Not owed, and nothing was done.
    NothingDone,
    /// The policy refuses the write with #GP.
    Fault,
}

impl Verdict {
    /// The words in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MissedHarmful => "MISSED, harmful",
            Self::MissedBenign => "MISSED, benign",
            Self::Exposed => "MISSED, exposed",
            Self::Latent => "latent, out of reach",
            Self::Served => "exactly served",
            Self::OverBroad => "served, over-broad",
            Self::Wasted => "not owed, wasted",
            Self::Advised => "not owed, advised",
            Self::NotOwed => "not owed",
            Self::NothingDone => "not owed, nothing done",
            Self::Fault => "#GP",
        }
    }

    /// Whether what was owed was missed.
    #[must_use]
    pub const fn missed(self) -> bool {
        matches!(self, Self::MissedHarmful | Self::MissedBenign | Self::Exposed)
    }
}

/// What one policy does at a write, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Outcome {
    /// What was done in the window of the write.
    #[serde(serialize_with = "acts_as_map")]
    pub acts: Vec<(Key, u64)>,
    /// The binding rules that the write calls upon.
    #[serde(skip)]
    pub owed: Vec<&'static str>,
    /// The verdict.
    pub verdict: Verdict,
    /// For a miss: the verdict if the guest did not edit its tables before the write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unedited: Option<Verdict>,
}

fn acts_as_map<S: Serializer>(acts: &[(Key, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(acts.iter().map(|(key, n)| (key.name(), n)))
}

/// One transition on which the policies differ, in every state in which it comes out the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Whose processor.
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    pub mmu: MmuKind,
    /// The write.
    pub change: Change,
    /// The states before it.
    pub states: Vec<State>,
    /// The rules of the manual that bind it.
    pub owed: Vec<&'static str>,
    /// Whether a pair of bits comes out as one of them alone does, in each of these states.
    pub as_single: bool,
    /// What either policy does.
    pub outcomes: [Outcome; 2],
}

/// The comparison of two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Transitions that at least one of the policies carries out.
    pub transitions: usize,
    /// Transitions on which they differ.
    pub differing: usize,
    /// Transitions on which each misses what is owed, whether they differ or not.
    pub missed: [usize; 2],
    /// The differences, grouped.
    pub rows: Vec<Row>,
    /// Transitions that both carry out alike and both miss, grouped.
    pub missed_alike: Vec<Row>,
}

/// A case: where, from what, what.
type Case = (Vendor, MmuKind, State, Change);

/// Compares two policies.
#[must_use]
pub fn diff(policies: [&Policy; 2]) -> Diff {
    let changes = transition::changes();
    let mut cases: Vec<Case> = Vec::new();
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
            for change in &changes {
                cases.extend(State::ALL.map(|state| (vendor, mmu, state, *change)));
            }
        }
    }
    let ran: Vec<Option<[Outcome; 2]>> = cases.par_iter().map(|c| run(c, policies)).collect();
    let mut out = Diff::default();
    let mut singles: BTreeMap<Case, &[Outcome; 2]> = BTreeMap::new();
    for (case, outcomes) in cases.iter().zip(&ran) {
        let Some(outcomes) = outcomes else { continue };
        out.transitions += 1;
        for (missed, outcome) in out.missed.iter_mut().zip(outcomes) {
            *missed += usize::from(outcome.verdict.missed());
        }
        let (vendor, mmu, state, change) = *case;
        let as_single = change.bits() > 1
            && change.singles().any(|single| {
                singles.get(&(vendor, mmu, state, single)).is_some_and(|s| same(s, outcomes))
            });
        if change.bits() == 1 {
            singles.insert(*case, outcomes);
        }
        let [a, b] = outcomes;
        if a.acts != b.acts || a.verdict != b.verdict {
            out.differing += 1;
            group(&mut out.rows, case, as_single, outcomes);
        } else if a.verdict.missed() {
            group(&mut out.missed_alike, case, as_single, outcomes);
        }
    }
    out
}

/// Adds a case to the row of the same change and outcome, if there is one: cases of one change
/// stand together.
fn group(rows: &mut Vec<Row>, case: &Case, as_single: bool, outcomes: &[Outcome; 2]) {
    let (vendor, mmu, state, change) = *case;
    let equal = rows.iter_mut().rev().take(State::ALL.len()).find(|row| {
        (row.vendor, row.mmu, row.change, row.as_single) == (vendor, mmu, change, as_single)
            && row.outcomes == *outcomes
    });
    match equal {
        Some(row) => row.states.push(state),
        None => rows.push(Row {
            vendor,
            mmu,
            change,
            states: vec![state],
            owed: outcomes[0].owed.clone(),
            as_single,
            outcomes: outcomes.clone(),
        }),
    }
}

/// Whether acts and verdicts of both policies are the same.
fn same(one: &[Outcome; 2], other: &[Outcome; 2]) -> bool {
    one.iter().zip(other).all(|(a, b)| a.acts == b.acts && a.verdict == b.verdict)
}

/// Runs one case under both policies; `None` if it cannot be reached or is illegal under both.
fn run(&(vendor, mmu, state, change): &Case, policies: [&Policy; 2]) -> Option<[Outcome; 2]> {
    let config = micro::config(vendor, mmu, state);
    let script = Script::new(state, change, true)?;
    let mut outcomes = [script.run(&config, policies[0])?, script.run(&config, policies[1])?];
    if outcomes.iter().all(|o| o.verdict == Verdict::Fault) {
        return None;
    }
    for (outcome, policy) in outcomes.iter_mut().zip(policies) {
        if outcome.verdict.missed() {
            let plain = Script::new(state, change, false)?.run(&config, policy);
            outcome.unedited = plain.map(|plain| plain.verdict);
        }
    }
    Some(outcomes)
}

#[cfg(test)]
mod tests;
