//! What the judge found: one finding per (obligation or excessive cause, class, vCPU), grouped by
//! (class, rule, operation, mechanism) with exact counts, the first of each group kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::suppress::Suppressions;

/// Why a flush, reset or root free was more than was owed (design, section 3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
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

impl Class {
    /// Its name, as summaries have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unrequired => "unrequired",
            Self::Redundant => "redundant",
            Self::OverBroad => "over-broad",
            Self::Bookkeeping => "bookkeeping",
        }
    }
}

/// The verdict.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Event of the operation that owed the invalidation, or that caused the excess.
    pub cause: u64,
    /// Which vCPU.
    pub vcpu: u16,
    /// The verdict.
    pub kind: Kind,
    /// The rule of the manual, or the name of the mechanism that was excessive.
    #[serde(with = "tlbscope_trace::state::word")]
    #[schemars(with = "String")]
    pub rule: tlbscope_trace::state::Name,
    /// The operation that is the cause.
    #[serde(with = "tlbscope_trace::state::word")]
    #[schemars(with = "String")]
    pub op: tlbscope_trace::state::Name,
    /// What was used or done: `tlb`, `paging-structure`, `shadow`, `hook-guest`, `reset`, ...
    #[serde(with = "tlbscope_trace::state::word")]
    #[schemars(with = "String")]
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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Group {
    /// The verdict, `harmful` left out.
    pub kind: Kind,
    /// The rule.
    #[serde(with = "tlbscope_trace::state::word")]
    #[schemars(with = "String")]
    pub rule: tlbscope_trace::state::Name,
    /// The operation.
    #[serde(with = "tlbscope_trace::state::word")]
    #[schemars(with = "String")]
    pub op: tlbscope_trace::state::Name,
    /// The mechanism.
    #[serde(with = "tlbscope_trace::state::word")]
    #[schemars(with = "String")]
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
    /// What is accepted, and the policy under which it was looked for.
    #[serde(skip)]
    accepts: Option<(Arc<Suppressions>, String)>,
    /// The suppression of each group that was seen, by number.
    #[serde(skip)]
    accepted: BTreeMap<Group, Option<usize>>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot(u32);

impl Slot {
    /// A finding that was counted but not kept.
    const UNKEPT: u32 = Self::ACCEPTED - 1;
    /// Marks the slot of a finding that is suppressed.
    const ACCEPTED: u32 = 1 << 31;

    const fn new(place: u32, accepted: bool) -> Self {
        Self(if accepted { place | Self::ACCEPTED } else { place })
    }

    /// The place among the findings kept.
    fn place(self) -> Option<usize> {
        let place = self.0 & !Self::ACCEPTED;
        (place != Self::UNKEPT).then_some(place as usize)
    }
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
            accepts: None,
            accepted: BTreeMap::new(),
            max,
            touched: (0, None),
        }
    }

    /// From here on, findings that are accepted under this policy are counted apart: they are in
    /// [`Findings::groups`] and in no other number.
    pub fn accept(&mut self, suppressions: Arc<Suppressions>, policy: &str) {
        self.accepts = (!suppressions.is_empty()).then(|| (suppressions, policy.to_owned()));
        // A run that goes on from a checkpoint has seen groups already.
        for group in self.groups.keys().copied().collect::<Vec<_>>() {
            self.accepted(group);
        }
    }

    /// The number of the suppression that accepts this group.
    #[must_use]
    pub fn suppression(&self, group: &Group) -> Option<usize> {
        self.accepted.get(group).copied().flatten()
    }

    /// How many findings are suppressed.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.groups().filter(|(group, _)| self.suppression(group).is_some()).map(|(_, n)| n).sum()
    }

    /// Looks a group up among what is accepted, once for each.
    fn accepted(&mut self, group: Group) -> bool {
        let Some((suppressions, policy)) = &self.accepts else { return false };
        let found = self.accepted.entry(group);
        found.or_insert_with(|| suppressions.find(&group, policy)).is_some()
    }

    /// Counts a finding and keeps it if its group has room. The caller sees to it that one
    /// obligation is added once.
    pub fn add(&mut self, finding: Finding) -> Slot {
        let group = finding.group();
        let accepted = self.accepted(group);
        if !accepted {
            self.missed_harmful += u64::from(finding.kind == Kind::Missed { harmful: true });
            *self.by_vcpu.entry((finding.vcpu, group.kind)).or_default() += 1;
        }
        let count = self.groups.entry(group).or_default();
        *count += 1;
        let slot = if *count > self.max as u64 || self.kept.len() >= Slot::UNKEPT as usize {
            Slot::new(Slot::UNKEPT, accepted)
        } else {
            self.kept.push(finding);
            Slot::new((self.kept.len() - 1) as u32, accepted)
        };
        self.touched = (self.touched.0 + 1, Some(slot));
        slot
    }

    /// Counts another use of a finding; a harmful one makes the finding harmful. `was` tells
    /// whether it was so already.
    pub fn again(&mut self, slot: Slot, harmful: bool, was: bool) {
        let accepted = slot.0 & Slot::ACCEPTED != 0;
        self.missed_harmful += u64::from(harmful && !was && !accepted);
        self.touched = (self.touched.0 + 1, Some(slot));
        if let Some(finding) = slot.place().and_then(|place| self.kept.get_mut(place)) {
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
        (times, slot.and_then(Slot::place))
    }

    /// The events that the kept findings name.
    #[must_use]
    pub fn cited(&self) -> BTreeSet<u64> {
        self.kept.iter().flat_map(|finding| [Some(finding.cause), finding.use_]).flatten().collect()
    }

    /// Exact numbers by group, sorted, those that are suppressed among them.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, u64)> {
        self.groups.iter().map(|(group, count)| (group, *count))
    }

    /// Exact numbers by vCPU and verdict (`harmful` reads false), sorted.
    pub fn by_vcpu(&self) -> impl Iterator<Item = (u16, Kind, u64)> {
        self.by_vcpu.iter().map(|((vcpu, kind), count)| (*vcpu, *kind, *count))
    }

    /// How many findings there are whose verdict satisfies `wanted` (`harmful` reads false), without
    /// those that are suppressed.
    pub fn count(&self, wanted: impl Fn(Kind) -> bool) -> u64 {
        self.open().filter(|(group, _)| wanted(group.kind)).map(|(_, count)| count).sum()
    }

    /// Exact numbers by group, sorted, without those that are suppressed.
    pub fn open(&self) -> impl Iterator<Item = (&Group, u64)> {
        self.groups().filter(|(group, _)| self.suppression(group).is_none())
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

/// All there is to [`Findings`] but for what is accepted, for a checkpoint: a resume is told again.
#[derive(Serialize, Deserialize)]
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
            accepts: _,
            accepted: _,
            max,
            touched,
        } = self;
        Saved {
            kept: kept.clone(),
            groups: groups.iter().map(|(group, count)| (*group, *count)).collect(),
            by_vcpu: by_vcpu.iter().map(|(key, count)| (*key, *count)).collect(),
            numbers: [*missed_harmful, *spurious_faults, *bookkeeping],
            max: *max as u64,
            touched: *touched,
        }
    }

    pub(crate) fn of_saved(saved: Saved) -> Self {
        let Saved { kept, groups, by_vcpu, touched, numbers, max } = saved;
        let [missed_harmful, spurious_faults, bookkeeping] = numbers;
        let groups = groups.into_iter().collect();
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let by_vcpu = by_vcpu.into_iter().collect();
        let new = Self::new(max);
        Self { kept, groups, by_vcpu, missed_harmful, spurious_faults, bookkeeping, touched, ..new }
    }
}
