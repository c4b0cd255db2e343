//! Audit: was what a real host did enough, and was it too much? Nothing is simulated: the recorded
//! operations and acts go through the oracle that also judges replays.
//!
//! `first` reads the recording once for what is known only later (a write that ends in #GP, what it
//! replaced), `ops` and `flush` say what a recorded line means to the architecture, `pages` keeps
//! which shadow roots may be stale, `remote` what the host asked for on its own account, `judge` feeds
//! the oracle, and `transitions` counts what the host did for each kind of operation.
//!
//! An audit claims less than a replay (DESIGN, section 4): accesses are not recorded, so that a miss
//! shows as an exposure; what cannot be judged is counted with its reason; after lost events
//! everything is taken to be clean; events of two CPUs that tie in time are in no order. Limits: which shadow page lies below which root is not recorded,
//! so a page that turns unsync makes every root suspect until it is synced; what the host changes
//! (notifiers, memory slots, dirty log) is judged only as far as it called kvm_flush_remote_tlbs: whether
//! anything was mapped there, so that it had to, is not recorded.

mod first;
mod flush;
mod judge;
mod ops;
mod pages;
mod probes;
mod remote;
mod story;
mod transitions;
mod world;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;
use tlbscope_trace::recording::{Record, Recording};
use tlbscope_trace::regs::{MmuKind, Vendor};

use crate::finding::{Finding, Group, Kind};
use crate::suppress::Suppressions;

use first::First;
use judge::Auditor;
pub use probes::Lack;
use story::Teller;
pub use story::{Line, Story};
pub(crate) use transitions::name as transition_name;
pub use transitions::{COLUMNS, Row, Transitions};

/// Why an operation was not judged.
pub type Reason = &'static str;

/// A recording that cannot be audited.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{trace}: the recording does not show {what}: {hint}")]
pub struct AuditError {
    /// The recording.
    pub trace: String,
    /// What is not known.
    pub what: &'static str,
    /// How to make it known.
    pub hint: &'static str,
}

/// The numbers of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Summary {
    /// The recording.
    pub trace: String,
    /// Whose hardware.
    #[schemars(with = "String")]
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    #[schemars(with = "String")]
    pub mmu: MmuKind,
    /// The recorded kernel, where it shows.
    pub kernel: Option<String>,
    /// Records read.
    pub events: u64,
    /// Operations of guest, userspace and host that may oblige somebody to invalidate.
    pub operations: u64,
    /// Those that were judged.
    pub judged: u64,
    /// Those that were not, by reason. A reason with 0 tells of operations that leave no line.
    pub unjudged: BTreeMap<Reason, u64>,
    /// Uses of outlawed translations: recordings show none.
    pub missed: u64,
    /// Obligations past their deadline with something reachable that may violate them.
    pub exposed: u64,
    /// NOFLUSH returns through a root that turned unsync (`noflush-residence`).
    pub advised: u64,
    /// Flushes and resets that nothing required.
    pub excessive: u64,
    /// The same by class.
    pub excessive_by: BTreeMap<&'static str, u64>,
    /// Findings that are accepted; they are in no other number.
    pub suppressed: u64,
    /// Flushes and root drops that only keep the hypervisor's books.
    pub bookkeeping: u64,
    /// Flushes in windows without an operation: what asked for them is not recorded.
    pub unattributed: u64,
    /// Flushes that vCPUs owe because kvm_flush_remote_tlbs was called on another thread.
    pub remote_owed: u64,
    /// Those of which the recording shows whether they were served in time. Of the others the vCPU
    /// did not enter again, or events were lost before.
    pub remote_judged: u64,
    /// Entries into the guest.
    pub entries: u64,
    /// Times that guest-owned bits of CR0 or CR4 were found changed: the guest's own writes.
    pub owned_writes: u64,
}

/// A finding and the records it rests on, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The verdict. `cause` is the index of the operation's record.
    pub finding: Finding,
    /// The record at which it was found: an entry, or the act that was too much.
    pub seen: usize,
}

/// A finished audit.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// The numbers.
    pub summary: Summary,
    /// The findings that were kept, in the order in which they were found.
    pub found: Vec<Found>,
    /// Their stories.
    pub stories: Vec<Story>,
    /// Exact numbers of each kind.
    pub groups: BTreeMap<Group, u64>,
    /// Those of them that are accepted, with the number of the suppression.
    pub suppressed: BTreeMap<Group, usize>,
    /// What the host did for each kind of operation.
    pub transitions: Transitions,
    /// What the recording lacks, and what cannot be judged for it.
    pub lacks: Vec<Lack>,
}

impl Audit {
    /// Takes what is accepted for the recorded kernel out of the numbers of the summary.
    pub fn accept(&mut self, suppressions: &Suppressions) {
        let kernel = self.summary.kernel.clone().unwrap_or_default();
        for (group, count) in &self.groups {
            let Some(number) = suppressions.find(group, &kernel) else { continue };
            if self.suppressed.insert(*group, number).is_some() {
                continue;
            }
            let summary = &mut self.summary;
            let field = match group.kind {
                Kind::Missed { .. } => &mut summary.missed,
                Kind::Exposed => &mut summary.exposed,
                Kind::Advised => &mut summary.advised,
                Kind::Excessive(class) => {
                    if let Some(of) = summary.excessive_by.get_mut(class.name()) {
                        *of = of.saturating_sub(*count);
                    }
                    &mut summary.excessive
                }
                Kind::Latent => continue,
            };
            *field = field.saturating_sub(*count);
            summary.suppressed += count;
        }
    }
}

/// Takes some records, in order.
pub type Each<'a> = dyn FnMut(&[Record]) + Send + 'a;

/// Audits a recording, keeping the first `max_findings` of each kind.
///
/// # Errors
///
/// The recording does not show whose hardware it is, or whether it shadows.
pub fn run(recording: &Recording, trace: &str, max_findings: usize) -> Result<Audit, AuditError> {
    let whole = |each: &mut Each<'_>| {
        each(&recording.records);
        Ok(())
    };
    over(recording, whole, trace, max_findings)
}

/// Audits a recording whose records need not be in memory: `pass` hands all of them on each time it
/// is called. Of `head` the records are not looked at.
///
/// # Errors
///
/// As for [`run`], and what `pass` gives.
pub fn over<E: From<AuditError>>(
    head: &Recording,
    mut pass: impl FnMut(&mut Each<'_>) -> Result<(), E>,
    trace: &str,
    max_findings: usize,
) -> Result<Audit, E> {
    let missing = |what, hint| AuditError { trace: trace.to_owned(), what, hint };
    let meta = &head.meta;
    let vendor = meta.vendor.ok_or_else(|| {
        missing("the vendor", "record exits (kvm:kvm_exit) or functions of kvm_intel or kvm_amd")
    })?;
    let mmu = meta.mmu.ok_or_else(|| {
        missing("whether it shadows or uses TDP", "record exits (kvm:kvm_exit) or page faults")
    })?;
    let mut first = First::default();
    pass(&mut |records| first.read(records))?;
    let mut auditor = Auditor::new(meta, &first, vendor, mmu, max_findings);
    pass(&mut |records| auditor.judge(records))?;
    let mut audit = auditor.finish();
    audit.lacks = probes::lacks(head, &first, vendor, mmu);
    let summary = &mut audit.summary;
    trace.clone_into(&mut summary.trace);
    (summary.vendor, summary.mmu) = (vendor, mmu);
    summary.kernel.clone_from(&meta.kernel);
    summary.events = first.records as u64;
    probes::silent(&first, vendor, mmu, &mut summary.unjudged);
    if !audit.found.is_empty() {
        let mut teller = Teller::new(&audit.found);
        pass(&mut |records| teller.read(records))?;
        audit.stories = teller.finish();
    }
    Ok(audit)
}
