//! What the host owes: changes of what backs guest memory, due when the old backing is declared
//! dead; and frames that software declared reused.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::floors::Obligation;
use super::recent::Recent;
use crate::finding::Slot;

/// Changes that can still be named.
const LOG: usize = 1024;

/// One change of backing.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// The obligation, of every vCPU.
    pub obligation: Obligation,
    /// First byte.
    pub gpa: u64,
    /// One beyond the last byte.
    pub end: u64,
    /// Only the right to write is taken away: copies without it may stay.
    pub rights: bool,
    /// When the old backing was declared dead; 0: not yet.
    pub dead: u64,
    /// On which processors every copy that it concerns was dropped, whatever its tag.
    served: Vec<u16>,
    /// On which vCPUs an exposure was reported.
    pub exposed: Vec<u16>,
    /// On which vCPUs a missed use was reported, where, and whether it is harmful.
    pub missed: Vec<(u16, Slot, bool)>,
}

impl Change {
    /// Whether it concerns a copy of this frame, writable or not.
    const fn reaches(&self, gpa: u64, write: bool) -> bool {
        self.gpa <= gpa && gpa < self.end && (write || !self.rights)
    }
}

/// When copies of a frame were made, and of which page.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Filled {
    last: u64,
    before: u64,
    /// The page behind the last.
    hpa: u64,
    /// The page that was there before it, and when a copy of that was made last.
    left: (u64, u64),
}

impl Filled {
    /// When a copy of this page was made last.
    fn of(&self, hpa: u64) -> Option<u64> {
        if self.hpa == hpa {
            return Some(self.last);
        }
        let (page, time) = self.left;
        (page == hpa && time != 0).then_some(time)
    }
}

/// All changes, and which frames were ever cached.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Host {
    /// Oldest first.
    pub changes: VecDeque<Change>,
    /// The latest change that is past its deadline.
    pub latest_due: u64,
    /// When a backing was declared dead last.
    pub latest_dead: u64,
    /// Frames reused: (first byte, end, time, event), oldest first.
    releases: VecDeque<(u64, u64, u64, u64)>,
    /// The latest change of each frame that is past its deadline.
    due: Recent,
    /// The latest release of each frame.
    reused: Recent,
    /// When each frame (page number at its size, log2 of the size, by a copy that can be written
    /// through or not) was filled last, and before.
    #[serde(with = "tlbscope_trace::state::map")]
    fills: FxHashMap<(u64, u8, bool), Filled>,
    sizes: u64,
}

impl Host {
    /// The backing changes; nothing is due yet.
    pub fn change(&mut self, obligation: Obligation, gpa: u64, size: u64, rights: bool) {
        if self.changes.len() == LOG {
            self.changes.pop_front();
        }
        let end = gpa.saturating_add(size);
        self.changes.push_back(Change {
            obligation,
            gpa,
            end,
            rights,
            dead: 0,
            served: Vec::new(),
            exposed: Vec::new(),
            missed: Vec::new(),
        });
    }

    /// The old backing of these pages is dead.
    pub fn dead(&mut self, gpa: u64, size: u64, now: u64) {
        let end = gpa.saturating_add(size);
        self.latest_dead = now;
        for change in self.changes.iter_mut().filter(|c| c.dead == 0) {
            if change.gpa < end && gpa < change.end {
                change.dead = now;
                self.latest_due = self.latest_due.max(change.obligation.time);
                self.due.note(change.gpa, change.end, change.obligation.time);
            }
        }
    }

    /// Exactly what the changes so far concern was dropped on this processor.
    pub fn serve(&mut self, pcpu: u16) {
        for change in self.changes.iter_mut().rev().take_while(|c| !c.served.contains(&pcpu)) {
            change.served.push(pcpu);
        }
    }

    /// Software reuses frames.
    pub fn release(&mut self, gpa: u64, size: u64, now: u64, event: u64) {
        if self.releases.len() == LOG {
            self.releases.pop_front();
        }
        let end = gpa.saturating_add(size);
        self.releases.push_back((gpa, end, now, event));
        self.reused.note(gpa, end, now);
    }

    /// A frame was cached, by a copy that can be written through or not.
    pub fn filled(&mut self, gpa: u64, hpa: u64, shift: u32, write: bool, now: u64) {
        self.sizes |= 1 << shift;
        let filled = self.fills.entry((gpa >> shift, shift as u8, write)).or_default();
        let left = if filled.hpa == hpa { filled.left } else { (filled.hpa, filled.last) };
        *filled = Filled { last: now, before: filled.last, hpa, left };
    }

    /// Since when a processor can hold nothing of these bytes because of an earlier change: all that one
    /// concerned was dropped there, and with it these copies, which can be written through or not.
    fn gone_since(&self, change: &Change, pcpu: u16, from: u64, to: u64, write: bool) -> u64 {
        let earlier =
            self.changes.iter().rev().skip_while(|c| c.obligation.time >= change.obligation.time);
        let mut covering = earlier.filter(|c| c.gpa <= from && to <= c.end && (write || !c.rights));
        covering.find(|c| c.served.contains(&pcpu)).map_or(0, |c| c.obligation.time)
    }

    /// Whether a processor may hold a copy of a frame of the change's range, made after `since` and before
    /// the change, that it concerns.
    fn cached(&self, change: &Change, since: u64, pcpu: u16) -> bool {
        let (gpa, end, until) = (change.gpa, change.end, change.obligation.time);
        let held = |page: u64, shift: u8, write: bool, Filled { last, before, .. }: &Filled| {
            let within = |from: u64| (from..until).contains(last) || (from..until).contains(before);
            let from = page << shift;
            let to = from.saturating_add(1 << shift);
            within(since) && within(since.max(self.gone_since(change, pcpu, from, to, write)))
        };
        let pages = (end - gpa) >> 12;
        if pages > self.fills.len() as u64 {
            return self.fills.iter().any(|((page, shift, write), times)| {
                let from = page << shift;
                let concerned = *write || !change.rights;
                let reached = from < end && gpa < from.saturating_add(1 << shift);
                concerned && reached && held(*page, *shift, *write, times)
            });
        }
        (gpa >> 12..(end + 0xfff) >> 12).any(|page| {
            let mut sizes = self.sizes;
            while sizes != 0 {
                let shift = sizes.trailing_zeros();
                sizes &= sizes - 1;
                let page = page << 12 >> shift;
                let filled = |write| {
                    let times = self.fills.get(&(page, shift as u8, write));
                    times.is_some_and(|times| held(page, shift as u8, write, times))
                };
                if filled(true) || !change.rights && filled(false) {
                    return true;
                }
            }
            false
        })
    }

    /// The earliest change past its deadline that outlaws a copy of this frame, made at `stamp`, that
    /// can be written through or not.
    pub fn earliest(&mut self, gpa: u64, stamp: u64, write: bool) -> Option<&mut Change> {
        if stamp > self.latest_due {
            return None;
        }
        self.changes
            .iter_mut()
            .find(|c| c.dead != 0 && c.obligation.time > stamp && c.reaches(gpa, write))
    }

    /// Whether such a change exists.
    #[must_use]
    pub fn outlaws(&self, gpa: u64, stamp: u64, write: bool) -> bool {
        self.due.may_be_after(gpa, stamp)
            && self.newer(stamp).any(|c| c.dead != 0 && c.reaches(gpa, write))
    }

    /// The changes after an instant: they stand in the order of time.
    fn newer(&self, stamp: u64) -> impl Iterator<Item = &Change> {
        let from = self.changes.partition_point(|c| c.obligation.time <= stamp);
        self.changes.range(from..)
    }

    /// Changes past their deadline that a vCPU may violate from containers of this processor that are
    /// filled since `since`, and that were not reported for it.
    #[must_use]
    pub fn due(&self, since: u64, vcpu: u16, pcpu: u16) -> Vec<usize> {
        let due = self.changes.iter().enumerate().filter(|(_, c)| {
            c.dead != 0
                && c.obligation.time > since
                && !c.served.contains(&pcpu)
                && !c.exposed.contains(&vcpu)
                && self.cached(c, since, pcpu)
        });
        due.map(|(n, _)| n).collect()
    }

    /// The earliest change newer than `stamp` that reaches a copy of this frame, due or not: what owed
    /// it before a release did.
    pub fn owed_before(&self, gpa: u64, stamp: u64, write: bool) -> Option<&Obligation> {
        let newer = |c: &&Change| c.obligation.time > stamp && c.reaches(gpa, write);
        self.changes.iter().find(newer).map(|c| &c.obligation)
    }

    /// The latest instant from which on some frame forbids older copies.
    #[must_use]
    pub const fn latest(&self) -> u64 {
        let (due, reused) = (self.due.latest(), self.reused.latest());
        if due > reused { due } else { reused }
    }

    /// When anything last became due or was released.
    #[must_use]
    pub const fn latest_ruled(&self) -> u64 {
        let (dead, reused) = (self.latest_dead, self.reused.latest());
        if dead > reused { dead } else { reused }
    }

    /// When the backing of some frame changed last.
    #[must_use]
    pub fn latest_change(&self) -> u64 {
        self.changes.back().map_or(0, |change| change.obligation.time)
    }

    /// The latest change past its deadline that took this page away from behind this frame, if it was
    /// seen there: one before the page came is not meant.
    pub fn took(&mut self, gpa: u64, hpa: u64) -> Option<&mut Change> {
        let of = |write| self.fills.get(&(gpa >> 12, 12, write))?.of(hpa);
        let seen = [true, false].into_iter().filter_map(of).max()?;
        let reaches =
            |c: &&mut Change| c.dead != 0 && c.obligation.time > seen && c.reaches(gpa, false);
        self.changes.iter_mut().rev().find(reaches)
    }

    /// Whether any frame was released after this.
    #[must_use]
    pub const fn released_after(&self, stamp: u64) -> bool {
        self.reused.latest() > stamp
    }

    /// The release that forbids a copy of this frame made at `stamp`: its event.
    #[must_use]
    pub fn released(&self, gpa: u64, stamp: u64) -> Option<u64> {
        if !self.reused.may_be_after(gpa, stamp) {
            return None;
        }
        let of = self.releases.iter().find(|r| r.2 > stamp && r.0 <= gpa && gpa < r.1);
        of.map(|r| r.3)
    }
}
