//! Where cached copies lie: an unbounded map, or real sets and ways with LRU. A slot is live while
//! its epoch is its container's; flushing a container is one increment.

use rustc_hash::FxHashMap;

use super::Geometry;

/// The epoch of a slot that an address-sized invalidation killed.
pub(super) const DEAD: u32 = u32::MAX;

/// What a slot is found by: a page (or region) of one size in one container.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub(super) struct Key {
    /// Address shifted right by the size.
    pub page: u64,
    /// Index of the container.
    pub container: u32,
    /// The size (TLB) or level (paging-structure cache).
    pub size: u8,
}

/// One cached copy, dead or alive.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Slot<V> {
    pub key: Key,
    pub epoch: u32,
    /// The event that killed it by address; meaningful if `epoch` is [`DEAD`].
    pub killer: u64,
    pub used: u64,
    pub value: V,
}

/// Slots by key.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Store<V> {
    pub slots: Vec<Option<Slot<V>>>,
    #[serde(with = "tlbscope_trace::state::map")]
    map: FxHashMap<Key, u32>,
    /// (sets, ways); `None`: unbounded.
    shape: Option<(usize, usize)>,
    clock: u64,
}

impl<V> Store<V> {
    pub fn new(geometry: Geometry) -> Self {
        let shape = match geometry {
            Geometry::Unbounded => None,
            Geometry::Sets { entries, ways } => {
                let ways = (ways as usize).max(1);
                Some(((entries as usize / ways).max(1), ways))
            }
        };
        let mut slots = Vec::new();
        if let Some((sets, ways)) = shape {
            slots.resize_with(sets * ways, || None);
        }
        Self { slots, map: FxHashMap::default(), shape, clock: 0 }
    }

    /// The slot with this key, dead or alive.
    pub fn find(&self, key: Key) -> Option<usize> {
        match self.shape {
            None => self.map.get(&key).map(|at| *at as usize),
            Some((sets, ways)) => {
                let first = (key.page % sets as u64) as usize * ways;
                let set = self.slots.get(first..first + ways)?;
                let way = set.iter().position(|s| s.as_ref().is_some_and(|s| s.key == key))?;
                Some(first + way)
            }
        }
    }

    /// Marks a slot most recently used.
    pub fn touch(&mut self, at: usize) {
        self.clock += 1;
        if let Some(slot) = &mut self.slots[at] {
            slot.used = self.clock;
        }
    }

    /// Puts a copy where its key belongs; gives back the slot that stood there, same key or not.
    pub fn put(&mut self, slot: Slot<V>, alive: impl Fn(&Slot<V>) -> bool) -> Option<Slot<V>> {
        self.clock += 1;
        let slot = Slot { used: self.clock, ..slot };
        let at = match (self.find(slot.key), self.shape) {
            (Some(at), _) => at,
            (None, None) => {
                self.map.insert(slot.key, self.slots.len() as u32);
                self.slots.push(Some(slot));
                return None;
            }
            (None, Some((sets, ways))) => {
                let first = (slot.key.page % sets as u64) as usize * ways;
                // An empty or dead way first, then the least recently used.
                let age = |at: &usize| match &self.slots[*at] {
                    None => (0, 0),
                    Some(s) => (1 + u8::from(alive(s)), s.used),
                };
                (first..first + ways).min_by_key(age).unwrap_or(first)
            }
        };
        self.slots[at].replace(slot)
    }

    /// Forgets every slot that is not kept (unbounded only: sets are bounded as they are).
    pub fn sweep(&mut self, keep: impl Fn(&Slot<V>) -> bool) {
        if self.shape.is_none() {
            self.slots.retain(|s| s.as_ref().is_some_and(&keep));
            let keys = self.slots.iter().flatten().map(|s| s.key);
            self.map = keys.zip(0..).collect();
        }
    }

    /// Whether this store never evicts.
    pub fn unbounded(&self) -> bool {
        self.shape.is_none()
    }
}
