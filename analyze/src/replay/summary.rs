//! The numbers of a run, as `simulate` and `compare` print them (DESIGN section 10).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::work::Setup;
use crate::finding::{Class, Findings, Kind};
use crate::tally::{Key, Tally};

/// The numbers of one trace under one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Summary {
    /// The trace.
    pub trace: String,
    /// The machine: the name of its processor.
    pub machine: String,
    /// The policy.
    pub policy: String,
    /// Events carried out.
    pub events: u64,
    /// Missed flushes, harmful and benign.
    pub missed: u64,
    /// Those that changed an outcome.
    pub missed_harmful: u64,
    /// Exposures.
    pub exposed: u64,
    /// Outlawed copies never used.
    pub latent: u64,
    /// What only an advised rule outlaws.
    pub advised: u64,
    /// Unrequired, redundant and over-broad actions together.
    pub excessive: u64,
    /// The same by class.
    pub excessive_by: BTreeMap<&'static str, u64>,
    /// Findings that are accepted; they are in no other number.
    pub suppressed: u64,
    /// Flush hooks called and invalidations carried out, by kind.
    pub flushes: BTreeMap<&'static str, u64>,
    /// Calls of kvm_mmu_reset_context.
    pub resets: u64,
    /// Calls of kvm_mmu_load.
    pub root_loads: u64,
    /// VM exits.
    pub exits: u64,
    /// TLB refills.
    pub refills: u64,
    /// What all of it cost, in cycles of the machine's cost table.
    pub cycles: u64,
    /// How much of `cycles` rests on costs that no measurement supports.
    #[serde(serialize_with = "share")]
    #[schemars(with = "f64")]
    pub unverified_cost_share: PerMille,
    /// Of the final state and the findings, in hexadecimal.
    pub digest: String,
}

/// Thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerMille(pub u64);

/// A share is printed as a fraction of 1; the model itself knows no fractions.
fn share<S: Serializer>(share: &PerMille, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(share.0.min(1000) as f64 / 1000.0)
}

/// The kinds of flush that a summary lists.
pub const FLUSHES: [Key; 16] = [
    Key::FlushAll,
    Key::FlushCurrent,
    Key::FlushGuest,
    Key::FlushGva,
    Key::InvvpidAddress,
    Key::InvvpidSingle,
    Key::InvvpidAll,
    Key::InvvpidNonglobal,
    Key::InveptSingle,
    Key::InveptGlobal,
    Key::TlbControl1,
    Key::TlbControl3,
    Key::TlbControl7,
    Key::NewAsid,
    Key::Invlpga,
    Key::RemoteFlush,
];

impl Summary {
    pub(super) fn new(
        setup: &Setup,
        policy: &str,
        events: u64,
        findings: &Findings,
        tally: &Tally,
        machine_digest: u64,
    ) -> Self {
        let total = tally.total();
        let class = |class| findings.count(|kind| kind == Kind::Excessive(class));
        let excessive_by: BTreeMap<_, _> = [
            ("unrequired", class(Class::Unrequired)),
            ("redundant", class(Class::Redundant)),
            ("over-broad", class(Class::OverBroad)),
        ]
        .into();
        let cost = super::cost::total(&setup.processor, &total);
        Self {
            trace: setup.trace.clone(),
            machine: setup.processor.name.clone(),
            policy: policy.to_owned(),
            events,
            missed: findings.missed(),
            missed_harmful: findings.missed_harmful,
            exposed: findings.count(|kind| kind == Kind::Exposed),
            latent: findings.count(|kind| kind == Kind::Latent),
            advised: findings.count(|kind| kind == Kind::Advised),
            excessive: excessive_by.values().sum(),
            excessive_by,
            suppressed: findings.suppressed(),
            flushes: FLUSHES.iter().map(|key| (key.name(), total.get(*key))).collect(),
            resets: total.get(Key::MmuReset),
            root_loads: total.get(Key::RootLoad),
            exits: total.get(Key::Exit),
            refills: total.get(Key::Refill),
            cycles: cost.cycles,
            unverified_cost_share: PerMille(u64::from(cost.unverified_per_mille())),
            digest: digest(machine_digest, findings),
        }
    }
}

/// The digest of the final state and of the findings.
fn digest(machine: u64, findings: &Findings) -> String {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&machine.to_le_bytes());
    // Written field by field in a fixed order: the same findings give the same bytes.
    for finding in findings.sorted() {
        hasher.update(format!("{finding:?}\n").as_bytes());
    }
    for (group, count) in findings.groups() {
        hasher.update(format!("{group:?} {count}\n").as_bytes());
    }
    format!("{:016x}", hasher.digest())
}
