//! Which effects are kept where there are too many: those of the events that findings name, then
//! those around them, then the first of the run. All are counted.

use std::collections::BTreeSet;

use super::density::Density;
use super::effect::{Effect, Kind, Lane};

/// Events before and after one that a finding names that are kept with it.
const AROUND: u64 = 32;

/// The effects of a run, in the order in which they happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Those that are kept.
    pub effects: Vec<Effect>,
    /// How many there were.
    pub total: u64,
    /// Before this event none is left out; `None`: none is left out at all.
    pub whole_until: Option<u64>,
    /// The last event that was watched.
    pub last_event: u64,
    /// The last instant, in nanoseconds.
    pub last_time: u64,
    /// All effects by event.
    pub by_event: Density,
    /// All effects by time, in nanoseconds.
    pub by_time: Density,
    /// What was watched is not the whole run.
    pub cut: bool,
}

/// Why an effect is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// A finding names its event.
    Named,
    /// It is close to such an event.
    Near,
    /// It was early.
    Plain,
}

/// Keeps effects within a budget.
pub(super) struct Keeper {
    budget: usize,
    /// The events that findings name, sorted.
    named: Vec<u64>,
    /// With the number of each among all effects.
    held: Vec<(Rank, Effect)>,
    /// How many of each rank are held beyond the first `budget`.
    later: [usize; 2],
    told: Timeline,
}

impl Keeper {
    /// Keeps `budget` effects of a run whose findings name these events.
    pub fn new(budget: usize, named: &BTreeSet<u64>) -> Self {
        let named = named.iter().copied().collect();
        Self { budget, named, held: Vec::new(), later: [0; 2], told: Timeline::default() }
    }

    /// An event was carried out.
    pub fn event(&mut self, event: u64, time: u64) {
        self.told.last_event = self.told.last_event.max(event);
        self.told.last_time = self.told.last_time.max(time);
    }

    /// An effect; its words are made only if it is kept. Whoever pushes sees to it that `event` is
    /// that of an event, not what a machine does before the first.
    pub fn push(
        &mut self,
        (event, time): (u64, u64),
        lane: Lane,
        kind: Kind,
        finding: Option<u32>,
        what: impl FnOnce() -> String,
    ) {
        self.told.total += 1;
        self.told.by_event.add(event);
        self.told.by_time.add(time);
        let rank = self.rank(event);
        if self.held.len() >= self.budget {
            let room = match rank {
                Rank::Named => self.budget,
                Rank::Near => self.budget / 2,
                Rank::Plain => 0,
            };
            let Some(held) = self.later.get_mut(rank as usize).filter(|held| **held < room) else {
                self.left_out(event);
                return;
            };
            *held += 1;
        }
        self.held.push((rank, Effect { event, time, lane, kind, what: what(), finding }));
    }

    fn left_out(&mut self, event: u64) {
        let until = self.told.whole_until.get_or_insert(event);
        *until = event.min(*until);
    }

    fn rank(&self, event: u64) -> Rank {
        let from = event.saturating_sub(AROUND);
        let at = self.named.partition_point(|named| *named < from);
        match self.named.get(at) {
            Some(named) if *named <= event.saturating_add(AROUND) => {
                if self.named.binary_search(&event).is_ok() { Rank::Named } else { Rank::Near }
            }
            _ => Rank::Plain,
        }
    }

    /// What is kept in the end.
    pub fn finish(mut self) -> Timeline {
        let held = std::mem::take(&mut self.held);
        let number = |rank| held.iter().filter(|(r, _)| *r == rank).count();
        let named = number(Rank::Named).min(self.budget);
        let near = number(Rank::Near).min(self.budget / 2).min(self.budget - named);
        let mut room = [named, near, self.budget - named - near];
        for (rank, effect) in held {
            // What finds no room as one of its rank may still be early.
            let own = room[rank as usize] > 0;
            let of = if own { rank as usize } else { Rank::Plain as usize };
            if room[of] > 0 {
                room[of] -= 1;
                self.told.effects.push(effect);
            } else {
                self.left_out(effect.event);
            }
        }
        self.told
    }

    /// What was watched is not the whole run.
    pub const fn cut(&mut self) {
        self.told.cut = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(budget: usize, named: &[u64], events: u64) -> Timeline {
        let mut keeper = Keeper::new(budget, &named.iter().copied().collect());
        for event in 0..events {
            keeper.event(event, 10 * event);
            keeper
                .push((event, 10 * event), Lane::Vcpu(0), Kind::Write, None, || event.to_string());
        }
        keeper.finish()
    }

    #[test]
    fn all_are_kept_where_they_fit() {
        let told = kept(100, &[7], 100);
        assert_eq!((told.total, told.effects.len(), told.whole_until), (100, 100, None));
        assert_eq!((told.last_event, told.last_time), (99, 990));
    }

    #[test]
    fn what_findings_name_comes_first_then_what_is_around_then_what_is_early() {
        // 500, and of 468..=532 around it the first 50 (half the budget); the rest is early.
        let told = kept(100, &[500], 1000);
        let events: Vec<u64> = told.effects.iter().map(|e| e.event).collect();
        assert_eq!(events.len(), 100);
        assert_eq!(events[..49], (0..49).collect::<Vec<_>>()[..]);
        assert_eq!(events[49..], (468..519).collect::<Vec<_>>()[..]);
        assert_eq!((told.total, told.whole_until), (1000, Some(49)));
    }

    #[test]
    fn more_named_events_than_fit_leave_no_room_for_others() {
        let named: Vec<u64> = (0..1000).collect();
        let told = kept(10, &named, 1000);
        assert_eq!(told.effects.len(), 10);
        assert_eq!((told.total, told.whole_until), (1000, Some(10)));
    }
}
