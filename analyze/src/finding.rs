//! What the judge found: one finding per (obligation or excessive cause, class, vCPU), grouped by
//! (class, rule, operation, mechanism) with exact counts, the first of each group kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// Why a flush, reset or root free was more than was owed (design, section 3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nothing owed it.
    Unrequired,
    /// What it served was discharged already in the same exit window.
    Redundant,
    /// It dropped live entries outside the obligation's scope.
    OverBroad,
    /// It protects the reuse of something that the hypervisor does not track. No finding.
    Bookkeeping,
}

/// The verdict.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An outlawed copy was used.
    Missed {
        /// Whether a fresh walk would have come out otherwise.
        harmful: bool,
    },
    /// Past the deadline an outlawed copy may still be reachable.
    Exposed,
    /// Outlawed and still cached at the end, never used.
    Latent,
    /// A copy was used that only an advised rule outlaws.
    Advised,
    /// More than was owed.
    Excessive(Class),
}

impl Kind {
    /// The same verdict without `harmful`, which may change while a finding is counted.
    const fn base(self) -> Self {
        match self {
            Self::Missed { .. } => Self::Missed { harmful: false },
            other => other,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
pub struct Finding {
    /// Event of the operation that owed the invalidation, or that caused the excess.
    pub cause: u64,
    /// Which vCPU.
    pub vcpu: u16,
    /// The verdict.
    pub kind: Kind,
    /// The rule of the manual, or the name of the mechanism that was excessive.
    #[serde(with = "tlbscope_trace::state::word")]
    pub rule: tlbscope_trace::state::Name,
    /// The operation that is the cause.
    #[serde(with = "tlbscope_trace::state::word")]
    pub op: tlbscope_trace::state::Name,
    /// What was used or done: `tlb`, `paging-structure`, `shadow`, `hook-guest`, `reset`, ...
    #[serde(with = "tlbscope_trace::state::word")]
    pub mechanism: tlbscope_trace::state::Name,
    /// Event of the first use, if there was one.
    #[serde(rename = "use")]
    pub use_: Option<u64>,
    /// The linear or guest-physical address of the first use.
    pub address: Option<u64>,
    /// How often it was seen: uses through one obligation, or flushes of one cause.
    pub count: u64,
}

impl Finding {
    /// What it has in common with others.
    #[must_use]
    pub const fn group(&self) -> Group {
        let Self { kind, rule, op, mechanism, .. } = *self;
        Group { kind: kind.base(), rule, op, mechanism }
    }
}

/// What findings of one group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
pub struct Group {
    /// The verdict, `harmful` left out.
    pub kind: Kind,
    /// The rule.
    #[serde(with = "tlbscope_trace::state::word")]
    pub rule: tlbscope_trace::state::Name,
    /// The operation.
    #[serde(with = "tlbscope_trace::state::word")]
    pub op: tlbscope_trace::state::Name,
    /// The mechanism.
    #[serde(with = "tlbscope_trace::state::word")]
    pub mechanism: tlbscope_trace::state::Name,
}

/// All findings of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The kept ones, in the order in which they were found.
    kept: Vec<Finding>,
    /// How many there are of each group, kept or not.
    #[serde(serialize_with = "groups_as_list")]
    groups: BTreeMap<Group, u64>,
    /// How many there are of each vCPU and verdict, kept or not.
    #[serde(skip)]
    by_vcpu: BTreeMap<(u16, Kind), u64>,
    /// Number of harmful misses.
    pub missed_harmful: u64,
    /// Faults through copies that memory no longer bore out, legal.
    pub spurious_faults: u64,
    /// Flushes and root drops that only keep the hypervisor's books.
    pub bookkeeping: u64,
    #[serde(skip)]
    max: usize,
    /// How often a finding was added or seen again, and which one was last.
    #[serde(skip)]
    touched: (u64, Option<Slot>),
}

fn groups_as_list<S: serde::Serializer>(
    groups: &BTreeMap<Group, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(groups)
}

/// Where a finding sits, so that later uses can be counted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slot(u32);

impl Slot {
    /// A finding that was counted but not kept.
    const UNKEPT: Self = Self(u32::MAX);
}

impl Default for Findings {
    fn default() -> Self {
        Self::new(100)
    }
}

impl Findings {
    /// No findings; the first `max` of each group will be kept.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self {
            kept: Vec::new(),
            groups: BTreeMap::new(),
            by_vcpu: BTreeMap::new(),
            missed_harmful: 0,
            spurious_faults: 0,
            bookkeeping: 0,
            max,
            touched: (0, None),
        }
    }

    /// Counts a finding and keeps it if its group has room. The caller sees to it that one
    /// obligation is added once.
    pub fn add(&mut self, finding: Finding) -> Slot {
        let group = finding.group();
        self.missed_harmful += u64::from(finding.kind == Kind::Missed { harmful: true });
        *self.by_vcpu.entry((finding.vcpu, group.kind)).or_default() += 1;
        let count = self.groups.entry(group).or_default();
        *count += 1;
        let slot = if *count > self.max as u64 || self.kept.len() >= u32::MAX as usize {
            Slot::UNKEPT
        } else {
            self.kept.push(finding);
            Slot((self.kept.len() - 1) as u32)
        };
        self.touched = (self.touched.0 + 1, Some(slot));
        slot
    }

    /// Counts another use of a finding; a harmful one makes the finding harmful. `was` tells
    /// whether it was so already.
    pub fn again(&mut self, slot: Slot, harmful: bool, was: bool) {
        self.missed_harmful += u64::from(harmful && !was);
        self.touched = (self.touched.0 + 1, Some(slot));
        if let Some(finding) = self.kept.get_mut(slot.0 as usize) {
            finding.count += 1;
            if harmful {
                finding.kind = Kind::Missed { harmful: true };
            }
        }
    }

    /// The kept findings, sorted by cause, vCPU and verdict.
    #[must_use]
    pub fn sorted(&self) -> Vec<Finding> {
        let mut all = self.kept.clone();
        all.sort();
        all
    }

    /// The kept findings in the order in which they were found.
    #[must_use]
    pub fn kept(&self) -> &[Finding] {
        &self.kept
    }

    /// How many of each group are kept.
    #[must_use]
    pub const fn max(&self) -> usize {
        self.max
    }

    /// How often a finding was added or seen again so far, and which was last, by its place among
    /// [`Findings::kept`]; `None` for one that was not kept.
    #[must_use]
    pub fn touched(&self) -> (u64, Option<usize>) {
        let (times, slot) = self.touched;
        (times, slot.filter(|slot| *slot != Slot::UNKEPT).map(|slot| slot.0 as usize))
    }

    /// The events that the kept findings name.
    #[must_use]
    pub fn cited(&self) -> BTreeSet<u64> {
        self.kept.iter().flat_map(|finding| [Some(finding.cause), finding.use_]).flatten().collect()
    }

    /// Exact numbers by group, sorted.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, u64)> {
        self.groups.iter().map(|(group, count)| (group, *count))
    }

    /// Exact numbers by vCPU and verdict (`harmful` reads false), sorted.
    pub fn by_vcpu(&self) -> impl Iterator<Item = (u16, Kind, u64)> {
        self.by_vcpu.iter().map(|((vcpu, kind), count)| (*vcpu, *kind, *count))
    }

    /// How many findings there are whose verdict satisfies `wanted` (`harmful` reads false).
    pub fn count(&self, wanted: impl Fn(Kind) -> bool) -> u64 {
        self.groups.iter().filter(|(group, _)| wanted(group.kind)).map(|(_, count)| count).sum()
    }

    /// Missed flushes, harmful and benign.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.count(|kind| matches!(kind, Kind::Missed { .. }))
    }

    /// Unrequired, redundant and over-broad actions.
    #[must_use]
    pub fn excessive(&self) -> u64 {
        self.count(|kind| matches!(kind, Kind::Excessive(_)))
    }
}

/// All there is to [`Findings`], for a checkpoint.
#[derive(Serialize, serde::Deserialize)]
pub(crate) struct Saved {
    kept: Vec<Finding>,
    groups: Vec<(Group, u64)>,
    by_vcpu: Vec<((u16, Kind), u64)>,
    touched: (u64, Option<Slot>),
    /// Harmful misses, spurious faults, bookkeeping.
    numbers: [u64; 3],
    max: u64,
}

impl Findings {
    pub(crate) fn save(&self) -> Saved {
        let Self {
            kept,
            groups,
            by_vcpu,
            missed_harmful,
            spurious_faults,
            bookkeeping,
            max,
            touched,
        } = self;
        Saved {
            kept: kept.clone(),
            groups: groups.iter().map(|(group, count)| (*group, *count)).collect(),
            by_vcpu: by_vcpu.iter().map(|(of, count)| (*of, *count)).collect(),
            touched: *touched,
            numbers: [*missed_harmful, *spurious_faults, *bookkeeping],
            max: *max as u64,
        }
    }

    pub(crate) fn of_saved(saved: Saved) -> Self {
        let Saved { kept, groups, by_vcpu, touched, numbers, max } = saved;
        let [missed_harmful, spurious_faults, bookkeeping] = numbers;
        let (groups, by_vcpu) = (groups.into_iter().collect(), by_vcpu.into_iter().collect());
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Self { kept, groups, by_vcpu, missed_harmful, spurious_faults, bookkeeping, max, touched }
    }
}
