//! Where cached copies lie: an unbounded table, or real sets and ways with LRU. A slot is live while
//! its epoch is its container's; flushing a container is one increment.
//!
//! What is searched lies apart from what is found (`bodies`): a set is searched by `marks`, of which
//! those of eight ways are half a cache line, and a way whose mark fits by its head; the unbounded table
//! is one probe and one head.

use std::fmt;

use super::Geometry;

/// The epoch of a slot that an address-sized invalidation killed.
pub(super) const DEAD: u32 = u32::MAX;
/// Slots that an unbounded table begins with.
const FIRST: usize = 16;

/// What a slot is found by: a page (or region) of one size in one container. Two words, to be
/// compared without a branch.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub(super) struct Key {
    /// Address shifted right by the size.
    pub page: u64,
    /// Index of the container, then the size (TLB) or level (paging-structure cache) in 8 bits.
    of: u64,
}

impl Key {
    /// Of no copy.
    const NONE: Self = Self { page: 0, of: u64::MAX };

    #[inline]
    pub const fn new(page: u64, container: u32, size: u8) -> Self {
        Self { page, of: (container as u64) << 8 | size as u64 }
    }

    /// Index of the container.
    #[inline]
    pub const fn container(&self) -> usize {
        (self.of >> 8) as usize
    }

    /// The size (TLB) or level (paging-structure cache).
    #[inline]
    pub const fn size(&self) -> u8 {
        self.of as u8
    }

    /// A word that tells most keys of a set apart.
    #[inline]
    const fn mark(&self) -> u32 {
        let of = self.of as u32;
        self.page as u32 ^ (self.page >> 32) as u32 ^ of.rotate_left(16)
    }

    #[inline]
    const fn is(&self, other: &Self) -> bool {
        (self.page ^ other.page) | (self.of ^ other.of) == 0
    }
}

/// What a slot is searched by.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Head {
    pub key: Key,
    pub epoch: u32,
    used: u64,
}

impl Head {
    const EMPTY: Self = Self { key: Key::NONE, epoch: DEAD, used: 0 };

    /// Whether something was ever put here.
    #[inline]
    const fn occupied(&self) -> bool {
        self.key.of != Key::NONE.of
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Body<V> {
    value: V,
    /// The event that killed it by address; meaningful if the epoch is [`DEAD`].
    killer: u64,
}

/// A slot that something was put into, as a state is written down.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Used<V> {
    at: usize,
    head: Head,
    body: Body<V>,
}

/// A copy that had to make room, dead or alive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evicted<V> {
    pub key: Key,
    pub epoch: u32,
    pub killer: u64,
    pub value: V,
}

/// Slots by key.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(
    into = "Written<V>",
    from = "Written<V>",
    bound(
        serialize = "V: Copy + Default + serde::Serialize",
        deserialize = "V: Copy + Default + serde::Deserialize<'de>"
    )
)]
pub(super) struct Store<V> {
    heads: Vec<Head>,
    bodies: Vec<Body<V>>,
    /// The mark of each head, for sets of ways; else empty.
    marks: Vec<u32>,
    /// Slots that something was put into.
    occupied: usize,
    /// Sets and ways; `None`: unbounded, `heads` is a table with linear probing, half empty at least.
    shape: Option<(usize, usize)>,
    clock: u64,
}

/// A store without its empty slots.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Written<V> {
    slots: usize,
    shape: Option<(usize, usize)>,
    clock: u64,
    used: Vec<Used<V>>,
}

impl<V: Copy> From<Store<V>> for Written<V> {
    fn from(store: Store<V>) -> Self {
        let Store { heads, bodies, shape, clock, .. } = store;
        let slots = heads.len();
        let all = heads.into_iter().zip(bodies).enumerate();
        let used = all.filter(|(_, (head, _))| head.occupied());
        let used = used.map(|(at, (head, body))| Used { at, head, body }).collect();
        Self { slots, shape, clock, used }
    }
}

impl<V: Copy + Default> From<Written<V>> for Store<V> {
    fn from(written: Written<V>) -> Self {
        let Written { slots, shape, clock, used } = written;
        let (mut heads, mut bodies) = (vec![Head::EMPTY; slots], vec![Body::default(); slots]);
        let mut occupied = 0;
        for Used { at, head, body } in used {
            if at < slots {
                (heads[at], bodies[at]) = (head, body);
                occupied += 1;
            }
        }
        let marks = marks(&heads, shape);
        Self { heads, bodies, marks, occupied, shape, clock }
    }
}

impl<V: Copy + Default + fmt::Debug> fmt::Debug for Store<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Written::from(self.clone()).fmt(f)
    }
}

impl<V: Copy + Default> Store<V> {
    pub fn new(geometry: Geometry) -> Self {
        let shape = match geometry {
            Geometry::Unbounded => None,
            Geometry::Sets { entries, ways } => {
                let ways = (ways as usize).max(1);
                Some(((entries as usize / ways).max(1), ways))
            }
        };
        let slots = shape.map_or(0, |(sets, ways)| sets * ways);
        let (heads, bodies) = (vec![Head::EMPTY; slots], vec![Body::default(); slots]);
        let marks = marks(&heads, shape);
        Self { heads, bodies, marks, occupied: 0, shape, clock: 0 }
    }

    /// The first way of the set of a page.
    fn set(page: u64, (sets, ways): (usize, usize)) -> usize {
        let sets = sets as u64;
        let set = if sets.is_power_of_two() { page & (sets - 1) } else { page % sets };
        set as usize * ways
    }

    /// Where the probing of an unbounded table that is not empty begins.
    fn probe(&self, key: Key) -> usize {
        let hash = (key.page ^ key.of.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - self.heads.len().trailing_zeros())) as usize
    }

    /// The slot of an unbounded table that has this key, or the empty one where it belongs.
    fn place(&self, key: Key) -> usize {
        let mask = self.heads.len() - 1;
        let mut at = self.probe(key);
        while self.heads[at].occupied() && !self.heads[at].key.is(&key) {
            at = (at + 1) & mask;
        }
        at
    }

    /// The slot with this key, dead or alive.
    #[inline]
    pub fn find(&self, key: Key) -> Option<usize> {
        if let Some(shape) = self.shape {
            let first = Self::set(key.page, shape);
            return self.way_of(key, first, shape.1);
        }
        if self.heads.is_empty() {
            return None;
        }
        let at = self.place(key);
        self.heads[at].occupied().then_some(at)
    }

    /// The slot of this key among these ways.
    #[inline]
    fn way_of(&self, key: Key, first: usize, ways: usize) -> Option<usize> {
        let set = self.marks.get(first..first + ways)?;
        let mark = key.mark();
        for (n, eight) in set.chunks(8).enumerate() {
            // Every way is looked at: which of them it is cannot be foreseen, and a wrong guess costs
            // more than the rest of the set.
            let mut fits = match <[u32; 8]>::try_from(eight) {
                Ok(eight) => fitting(eight, mark),
                Err(_) => fitting(eight.iter().copied(), mark),
            };
            while fits != 0 {
                let at = first + n * 8 + fits.trailing_zeros() as usize;
                if self.heads[at].key.is(&key) {
                    return Some(at);
                }
                fits &= fits - 1;
            }
        }
        None
    }

    /// What a slot is searched by.
    pub fn head(&self, at: usize) -> &Head {
        &self.heads[at]
    }

    /// The copy in a slot.
    pub fn value(&self, at: usize) -> &V {
        &self.bodies[at].value
    }

    /// The same, to change it.
    pub fn value_mut(&mut self, at: usize) -> &mut V {
        &mut self.bodies[at].value
    }

    /// The numbers of all slots.
    pub fn slots(&self) -> std::ops::Range<usize> {
        0..self.heads.len()
    }

    /// The copies, dead or alive.
    pub fn iter(&self) -> impl Iterator<Item = (&Head, &V)> {
        let slots = self.heads.iter().zip(&self.bodies);
        slots.filter(|(head, _)| head.occupied()).map(|(head, body)| (head, &body.value))
    }

    /// An address-sized invalidation drops a copy in this event.
    pub fn kill(&mut self, at: usize, event: u64) {
        self.heads[at].epoch = DEAD;
        self.bodies[at].killer = event;
    }

    /// Marks a slot most recently used, where that decides what is evicted.
    #[inline]
    pub fn touch(&mut self, at: usize) {
        if self.shape.is_some() {
            self.clock += 1;
            self.heads[at].used = self.clock;
        }
    }

    /// Puts a copy where its key belongs; gives back the one that lay there, of the same key or not.
    pub fn put(
        &mut self,
        key: Key,
        epoch: u32,
        value: V,
        alive: impl Fn(&Head) -> bool,
    ) -> Option<Evicted<V>> {
        let at = match self.shape {
            Some(shape) => self.way(key, shape, alive),
            None => {
                if (self.occupied + 1) * 2 > self.heads.len() {
                    self.rebuild(|_| true);
                }
                self.place(key)
            }
        };
        if let Some(mark) = self.marks.get_mut(at) {
            *mark = key.mark();
        }
        self.clock += 1;
        let head = std::mem::replace(&mut self.heads[at], Head { key, epoch, used: self.clock });
        let body = std::mem::replace(&mut self.bodies[at], Body { value, killer: 0 });
        if !head.occupied() {
            self.occupied += 1;
            return None;
        }
        let (Head { key, epoch, .. }, Body { value, killer }) = (head, body);
        Some(Evicted { key, epoch, killer, value })
    }

    /// The way of its set that a key goes to: its own, else an empty or dead one, else the least
    /// recently used.
    fn way(&self, key: Key, shape: (usize, usize), alive: impl Fn(&Head) -> bool) -> usize {
        let first = Self::set(key.page, shape);
        let set = &self.heads[first..first + shape.1];
        // One word, to be compared at once: the clock stays far below its two high bits.
        let age = |head: &Head| match head {
            _ if head.key.is(&key) => 0,
            _ if !head.occupied() => 1,
            _ => (2 + u64::from(alive(head))) << 62 | head.used,
        };
        let mut best = (u64::MAX, 0);
        for (way, head) in set.iter().enumerate() {
            let age = age(head);
            if age < best.0 {
                best = (age, way);
            }
        }
        first + best.1
    }

    /// Forgets every copy that is not kept (unbounded only: sets are bounded as they are).
    pub fn sweep(&mut self, keep: impl Fn(&Head) -> bool) {
        if self.shape.is_none() {
            self.rebuild(keep);
        }
    }

    /// Lays the copies that are kept into a table with room for as many again.
    fn rebuild(&mut self, keep: impl Fn(&Head) -> bool) {
        let kept = |head: &&Head| head.occupied() && keep(head);
        let room = self.heads.iter().filter(kept).count() * 4;
        let room = room.max(FIRST).next_power_of_two();
        let heads = std::mem::replace(&mut self.heads, vec![Head::EMPTY; room]);
        let bodies = std::mem::replace(&mut self.bodies, vec![Body::default(); room]);
        self.occupied = 0;
        for (head, body) in heads.into_iter().zip(bodies).filter(|(head, _)| kept(&head)) {
            let at = self.place(head.key);
            (self.heads[at], self.bodies[at]) = (head, body);
            self.occupied += 1;
        }
    }

    /// How many copies there are, dead or alive.
    pub const fn len(&self) -> usize {
        self.occupied
    }

    /// Whether this store never evicts.
    pub const fn unbounded(&self) -> bool {
        self.shape.is_none()
    }
}

/// The marks of heads that lie in sets.
fn marks(heads: &[Head], shape: Option<(usize, usize)>) -> Vec<u32> {
    let all = heads.iter().map(|head| head.key.mark());
    all.take(if shape.is_some() { heads.len() } else { 0 }).collect()
}

/// Which of up to eight marks fit: a bit for each.
#[inline]
fn fitting(marks: impl IntoIterator<Item = u32>, mark: u32) -> u32 {
    let bits = marks.into_iter().zip([1, 2, 4, 8, 16, 32, 64, 128]);
    bits.fold(0, |all, (of, bit)| all | if of == mark { bit } else { 0 })
}
