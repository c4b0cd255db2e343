//! Where entries lie: a hash map that never evicts, or sets and ways with LRU.

use rustc_hash::FxHashMap;
use tlbscope_trace::addr::PageSize;

use super::{Entry, covers};

/// How much a TLB holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Geometry {
    /// Everything, for ever: the hardware by which correctness is judged.
    #[default]
    Unbounded,
    /// `entries` in sets of `ways`, LRU within a set.
    Sets {
        /// In all.
        entries: u32,
        /// In a set.
        ways: u32,
    },
}

/// The name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub container: u32,
    pub page: u64,
    pub size: PageSize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    key: Key,
    entry: Entry,
    born: u64,
    used: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Store {
    Unbounded(FxHashMap<Key, (Entry, u64)>),
    Sets { slots: Vec<Option<Slot>>, sets: usize, ways: usize, clock: u64 },
}

impl Store {
    pub fn new(geometry: Geometry) -> Self {
        match geometry {
            Geometry::Unbounded => Self::Unbounded(FxHashMap::default()),
            Geometry::Sets { entries, ways } => {
                let ways = ways.max(1) as usize;
                let sets = (entries as usize / ways).max(1);
                Self::Sets { slots: vec![None; sets * ways], sets, ways, clock: 0 }
            }
        }
    }

    fn set(key: Key, sets: usize, ways: usize) -> std::ops::Range<usize> {
        let set = (key.page as usize) % sets;
        set * ways..(set + 1) * ways
    }

    /// When the entry was filled, if it is there.
    pub fn born(&self, key: Key) -> Option<u64> {
        match self {
            Self::Unbounded(map) => map.get(&key).map(|(_, born)| *born),
            Self::Sets { slots, sets, ways, .. } => slots[Self::set(key, *sets, *ways)]
                .iter()
                .flatten()
                .find(|s| s.key == key)
                .map(|s| s.born),
        }
    }

    /// The entry, now the most recently used of its set.
    pub fn touch(&mut self, key: Key) -> Option<&Entry> {
        match self {
            Self::Unbounded(map) => map.get(&key).map(|(entry, _)| entry),
            Self::Sets { slots, sets, ways, clock } => {
                *clock += 1;
                let set = &mut slots[Self::set(key, *sets, *ways)];
                let slot = set.iter_mut().flatten().find(|s| s.key == key)?;
                slot.used = *clock;
                Some(&slot.entry)
            }
        }
    }

    /// Puts an entry in; returns the one that stood in its place, by its own name.
    pub fn insert(&mut self, key: Key, entry: Entry, born: u64) -> Option<(Key, u64)> {
        match self {
            Self::Unbounded(map) => map.insert(key, (entry, born)).map(|(_, born)| (key, born)),
            Self::Sets { slots, sets, ways, clock } => {
                *clock += 1;
                let set = &mut slots[Self::set(key, *sets, *ways)];
                let same = set.iter().position(|s| s.is_some_and(|s| s.key == key));
                let empty = || set.iter().position(Option::is_none);
                let oldest = || {
                    let used = |n: &usize| set[*n].map_or(0, |s| s.used);
                    (0..set.len()).min_by_key(used).unwrap_or(0)
                };
                let place = same.or_else(empty).unwrap_or_else(oldest);
                let slot = Slot { key, entry, born, used: *clock };
                set[place].replace(slot).map(|old| (old.key, old.born))
            }
        }
    }

    /// Takes an entry out; tells when it was filled.
    pub fn remove(&mut self, key: Key) -> Option<u64> {
        match self {
            Self::Unbounded(map) => map.remove(&key).map(|(_, born)| born),
            Self::Sets { slots, sets, ways, .. } => {
                let set = &mut slots[Self::set(key, *sets, *ways)];
                let slot = set.iter_mut().find(|s| s.is_some_and(|s| s.key == key))?;
                slot.take().map(|s| s.born)
            }
        }
    }

    /// Takes out every fragment of the guest page that covers `address`; counts those that lived.
    pub fn remove_fragments(&mut self, container: u32, address: u64, line: u64) -> u32 {
        let hit = |key: &Key, entry: &Entry| {
            key.container == container && covers(key.page, key.size, entry.guest_size, address)
        };
        let mut dropped = 0;
        match self {
            Self::Unbounded(map) => map.retain(|key, (entry, born)| {
                let goes = hit(key, entry);
                dropped += u32::from(goes && *born >= line);
                !goes
            }),
            Self::Sets { slots, .. } => {
                for slot in slots.iter_mut().filter(|s| s.is_some_and(|s| hit(&s.key, &s.entry))) {
                    dropped += u32::from(slot.take().is_some_and(|s| s.born >= line));
                }
            }
        }
        dropped
    }

    /// All entries with their birth, in no order.
    pub fn entries(&self) -> Box<dyn Iterator<Item = (Key, Entry, u64)> + '_> {
        match self {
            Self::Unbounded(map) => Box::new(map.iter().map(|(k, (e, b))| (*k, *e, *b))),
            Self::Sets { slots, .. } => {
                Box::new(slots.iter().flatten().map(|s| (s.key, s.entry, s.born)))
            }
        }
    }
}
