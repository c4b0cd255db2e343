//! Floors: up to which instant copies of each scope are outlawed on one vCPU, and the log of
//! obligations from which the cause is named.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tlbscope_sim::arch::required::{Rule, Scope};

use crate::finding::Slot;

/// Obligations of a vCPU that can still be named; older ones only raise floors.
const LOG: usize = 4096;
/// Address-sized floors of a vCPU kept apart.
const ADDRESSES: usize = 1 << 16;

/// One obligation of one vCPU.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Obligation {
    /// When it arose, on the oracle's clock.
    pub time: u64,
    /// The event whose operation owes it.
    pub event: u64,
    /// By which rule.
    #[serde(with = "crate::state::rule")]
    pub rule: &'static Rule,
    /// Whether it binds here; the rule's own strength may be lowered by how it was carried out.
    pub must: bool,
    /// The operation's name.
    #[serde(with = "tlbscope_trace::state::word")]
    pub op: tlbscope_trace::state::Name,
    /// Which copies.
    pub scope: Scope,
    /// The group (pCPU, VPID or ASID) in which an address was invalidated since.
    pub done: Option<(u16, u32)>,
    /// The finding of its first missed use, and whether it is harmful.
    pub missed: Option<(Slot, bool)>,
    /// Whether an exposure was reported.
    pub exposed: bool,
    /// Within which tag of L1's processor it is owed (0: L1, and all without nesting).
    pub tag: u16,
}

/// What a copy is, as far as scopes go.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Global translation.
    pub global: bool,
    /// A paging-structure-cache entry; these are never global.
    pub structure: bool,
    /// PCID at its creation.
    pub pcid: u16,
    /// An address that it translates.
    pub gva: u64,
    /// log2 of the bytes that it covers.
    pub shift: u32,
}

impl Target {
    fn same_page(&self, gva: u64) -> bool {
        self.gva >> self.shift == gva >> self.shift
    }
}

/// Whether `scope` reaches a copy.
#[must_use]
pub fn covers(scope: &Scope, t: &Target) -> bool {
    match *scope {
        Scope::Everything | Scope::EveryAsid => true,
        Scope::NonGlobal => !t.global,
        Scope::Pcid(p) => p.0 == t.pcid,
        Scope::PcidNonGlobal(p) => !t.global && p.0 == t.pcid,
        Scope::OtherGlobals(p) => t.global && p.0 != t.pcid,
        Scope::Address { pcid, gva, path } if t.structure => {
            pcid.0 == t.pcid && (!path || t.same_page(gva.0))
        }
        Scope::Address { pcid, gva, .. } => (t.global || pcid.0 == t.pcid) && t.same_page(gva.0),
        Scope::AddressNonGlobal { pcid, gva } => {
            !t.global && pcid.0 == t.pcid && t.same_page(gva.0)
        }
        Scope::EveryPcidAddress(gva) => t.same_page(gva.0),
        Scope::Fault { pcid, gva } => pcid.0 == t.pcid && t.same_page(gva.0),
        Scope::AddressOtherGlobals { pcid, gva } => {
            t.global && pcid.0 != t.pcid && t.same_page(gva.0)
        }
        Scope::Frames { .. } => false,
    }
}

/// Whether a scope is one page and its path.
#[must_use]
pub const fn address(scope: &Scope) -> Option<u64> {
    match *scope {
        Scope::Address { gva, .. }
        | Scope::AddressNonGlobal { gva, .. }
        | Scope::EveryPcidAddress(gva)
        | Scope::Fault { gva, .. }
        | Scope::AddressOtherGlobals { gva, .. } => Some(gva.0),
        _ => None,
    }
}

/// Floors of one PCID.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct OfPcid {
    all: u64,
    nonglobal: u64,
    structure: u64,
}

/// The wide floors of one strength.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Wide {
    everything: u64,
    nonglobal: u64,
    #[serde(with = "tlbscope_trace::state::map")]
    pcid: FxHashMap<u16, OfPcid>,
    /// The two latest floors of globals made under other PCIDs than the one named.
    others: [(u16, u64); 2],
}

impl Wide {
    fn raise(&mut self, scope: &Scope, time: u64) {
        match *scope {
            Scope::Everything | Scope::EveryAsid => self.everything = time,
            Scope::NonGlobal => self.nonglobal = time,
            Scope::Pcid(p) => self.pcid.entry(p.0).or_default().all = time,
            Scope::PcidNonGlobal(p) => self.pcid.entry(p.0).or_default().nonglobal = time,
            Scope::Address { pcid, path: false, .. } => {
                self.pcid.entry(pcid.0).or_default().structure = time;
            }
            Scope::OtherGlobals(p) => {
                if self.others[0].0 != p.0 {
                    self.others[1] = self.others[0];
                }
                self.others[0] = (p.0, time);
            }
            _ => {}
        }
    }

    fn floor(&self, t: &Target) -> u64 {
        let of = self.pcid.get(&t.pcid).copied().unwrap_or_default();
        let mut floor = self.everything.max(of.all);
        if t.global {
            let other = self.others.iter().find(|(pcid, _)| *pcid != t.pcid);
            return floor.max(other.map_or(0, |(_, time)| *time));
        }
        floor = floor.max(self.nonglobal).max(of.nonglobal);
        if t.structure { floor.max(of.structure) } else { floor }
    }
}

/// Which copies of a page an address floor reaches.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
enum Space {
    NonGlobal,
    OwnGlobal,
    AnyGlobal,
    AnyPcid,
    Structure,
}

type Page = (u64, u16, Space, u8);

/// Everything that outlaws copies of one vCPU.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Floors {
    must: Wide,
    advised: Wide,
    /// Latest address obligations: (must, advised).
    #[serde(with = "tlbscope_trace::state::map")]
    pages: FxHashMap<Page, (u64, u64)>,
    /// Whether some floor of a page spans the PCIDs.
    any_pcid: bool,
    /// Page sizes (log2) that were ever filled.
    sizes: u64,
    /// The latest obligation of any kind.
    pub latest: u64,
    /// Exposures of obligations up to here were judged.
    pub judged: u64,
    /// Obligations of one page in a PCID that was not current at their deadline, by their time:
    /// judged when the PCID is.
    pub deferred: Vec<u64>,
    /// What can be named, oldest first.
    pub log: VecDeque<Obligation>,
    /// The pages of the last of them, [`NO_PAGE`] where there is none: they are looked through at each
    /// invalidation of a page.
    recent: VecDeque<u64>,
}

/// How many obligations may wait for the invalidation that serves them.
const RECENT: usize = 64;
/// No page number.
const NO_PAGE: u64 = u64::MAX;

impl Floors {
    /// A copy of this size was filled: address floors are kept for the size from now on.
    pub fn saw_size(&mut self, shift: u32) {
        self.sizes |= 1 << shift;
    }

    /// An obligation arises.
    pub fn raise(&mut self, obligation: Obligation) {
        let (time, scope) = (obligation.time, obligation.scope);
        let must = obligation.must;
        self.latest = time;
        if must { &mut self.must } else { &mut self.advised }.raise(&scope, time);
        if let Some(gva) = address(&scope) {
            self.raise_page(&scope, gva, time, must);
        }
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(obligation);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(address(&scope).map_or(NO_PAGE, |gva| gva >> 12));
    }

    /// The page of this address was invalidated in the group `done`: so the latest obligations that
    /// are owed for it are served. Those of a page are always served together, so behind one that was
    /// served there before they all were.
    pub fn served(&mut self, gva: u64, done: (u16, u32)) {
        let first = self.log.len() - self.recent.len();
        let of_page = |(_, page): &(usize, &u64)| **page == gva >> 12;
        for (n, _) in self.recent.iter().enumerate().rev().filter(of_page) {
            if self.log[first + n].done.replace(done) == Some(done) {
                break;
            }
        }
    }

    fn raise_page(&mut self, scope: &Scope, gva: u64, time: u64, must: bool) {
        use Space::{AnyGlobal, AnyPcid, NonGlobal, OwnGlobal, Structure};
        if self.pages.len() > ADDRESSES {
            let half = time - time / 4;
            self.pages.retain(|_, (must, advised)| (*must).max(*advised) > half);
        }
        let (pcid, spaces): (u16, &[Space]) = match *scope {
            Scope::Address { pcid, path: false, .. } => (pcid.0, &[NonGlobal, AnyGlobal]),
            Scope::Address { pcid, path: true, .. } => (pcid.0, &[NonGlobal, AnyGlobal, Structure]),
            Scope::AddressNonGlobal { pcid, .. } => (pcid.0, &[NonGlobal, Structure]),
            Scope::Fault { pcid, .. } => (pcid.0, &[NonGlobal, OwnGlobal, Structure]),
            Scope::EveryPcidAddress(_) => (0, &[AnyGlobal, AnyPcid]),
            // Which PCIDs are meant is decided by the log.
            Scope::AddressOtherGlobals { .. } => (0, &[AnyGlobal]),
            _ => return,
        };
        self.any_pcid |= spaces.contains(&AnyPcid);
        let mut sizes = self.sizes | 1 << 12;
        while sizes != 0 {
            let shift = sizes.trailing_zeros();
            sizes &= sizes - 1;
            for space in spaces {
                let pcid = if matches!(space, AnyGlobal | AnyPcid) { 0 } else { pcid };
                let key = (gva >> shift, pcid, *space, shift as u8);
                let floor = self.pages.entry(key).or_default();
                if must { floor.0 = time } else { floor.1 = time }
            }
        }
    }

    /// Whether a copy with this stamp is outlawed by a binding and by an advised obligation. In
    /// constant time; [`Self::earliest`] then names the cause.
    #[must_use]
    pub fn outlawed(&self, t: &Target, stamp: u64) -> (bool, bool) {
        if stamp > self.latest {
            return (false, false);
        }
        let (mut must, mut advised) = (self.must.floor(t), self.advised.floor(t));
        let spaces = match (t.structure, t.global) {
            (true, _) => [Some(Space::Structure), self.any_pcid.then_some(Space::AnyPcid)],
            (_, false) => [Some(Space::NonGlobal), self.any_pcid.then_some(Space::AnyPcid)],
            (_, true) => [Some(Space::OwnGlobal), Some(Space::AnyGlobal)],
        };
        for space in spaces.into_iter().flatten() {
            let any = matches!(space, Space::AnyGlobal | Space::AnyPcid);
            let pcid = if any { 0 } else { t.pcid };
            let key = (t.gva >> t.shift, pcid, space, t.shift as u8);
            if let Some((m, a)) = self.pages.get(&key) {
                must = must.max(*m);
                advised = advised.max(*a);
            }
        }
        (must > stamp, advised > stamp)
    }

    /// The earliest obligation of this strength, newer than the stamp, that reaches the copy.
    pub fn earliest(&mut self, t: &Target, stamp: u64, must: bool) -> Option<&mut Obligation> {
        let from = self.log.partition_point(|o| o.time <= stamp);
        self.log.range_mut(from..).find(|o| o.must == must && covers(&o.scope, t))
    }

    /// The latest wide binding floor over copies like this.
    #[must_use]
    pub fn wide(&self, t: &Target) -> u64 {
        self.must.floor(t)
    }

    /// The latest binding floor over a PCID as a whole.
    #[must_use]
    pub fn of_pcid(&self, pcid: u16) -> u64 {
        let t = Target { global: false, structure: false, pcid, gva: 0, shift: 12 };
        self.must.floor(&t)
    }
}
