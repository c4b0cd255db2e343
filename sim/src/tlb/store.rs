//! Where cached copies lie: an unbounded table, or real sets and ways with LRU. A slot is live while
//! its epoch is its container's; flushing a container is one increment.
//!
//! What is searched lies apart from what is found (`bodies`): a set is searched by `marks`, of which
//! those of eight ways are one word, and a way whose mark fits by its head; the unbounded table is one
//! probe and one head.

use std::fmt;

use super::Geometry;

/// The epoch of a slot that an address-sized invalidation killed.
pub(super) const DEAD: u32 = u32::MAX;
/// Slots that an unbounded table begins with.
const FIRST: usize = 16;
/// In every mark of a way that something was put into.
const OCCUPIED: u8 = 0x80;
/// Ways whose marks are one word.
const ROW: usize = 8;
/// Pages of which it is remembered where one lay last.
const HINTS: usize = 1 << 10;

/// Sets and ways.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Shape {
    sets: usize,
    ways: usize,
    /// Words of marks of a set.
    rows: usize,
}

impl Shape {
    fn new(entries: u32, ways: u32) -> Self {
        let ways = (ways as usize).max(1);
        Self { sets: (entries as usize / ways).max(1), ways, rows: ways.div_ceil(ROW) }
    }

    /// The set of a page.
    #[inline]
    const fn set(self, page: u64) -> usize {
        let sets = self.sets as u64;
        (if sets.is_power_of_two() { page & (sets - 1) } else { page % sets }) as usize
    }
}

/// What a slot is found by: a page (or region) of one size in one container. Two words, to be
/// compared without a branch.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
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

    /// The same of another page.
    #[inline]
    pub const fn of_page(self, page: u64) -> Self {
        Self { page, ..self }
    }

    /// A word of which every part tells keys apart.
    #[inline]
    const fn hash(&self) -> u64 {
        (self.page ^ self.of.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// A byte that tells most keys of a set apart, and is none of an empty way.
    #[inline]
    const fn mark(&self) -> u8 {
        (self.hash() >> 56) as u8 | OCCUPIED
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
    pub const fn occupied(&self) -> bool {
        self.key.of != Key::NONE.of
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Body<V> {
    pub value: V,
    /// Of a dead one, whose epoch is [`DEAD`]: the event that killed it by address. Of a live one: what the
    /// observer noted on it.
    pub word: u64,
}

/// A slot that something was put into, as a state is written down.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Used<V> {
    at: usize,
    head: Head,
    body: Body<V>,
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
    /// The marks of the heads of each set, in rows of eight bytes, 0 where there is no copy or no way;
    /// empty for an unbounded table.
    marks: Vec<u64>,
    /// Where a page with these low bits was put or used last: what most lookups want. A hint is no more
    /// than that; the head says what lies there. Empty until there is one.
    hints: Vec<u32>,
    /// Slots that something was put into.
    occupied: usize,
    /// `None`: unbounded, `heads` is a table with linear probing, half empty at least.
    shape: Option<Shape>,
    clock: u64,
}

/// A store without its empty slots.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Written<V> {
    slots: usize,
    shape: Option<Shape>,
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
        Self { heads, bodies, marks, hints: Vec::new(), occupied, shape, clock }
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
            Geometry::Sets { entries, ways } => Some(Shape::new(entries, ways)),
        };
        let slots = shape.map_or(0, |Shape { sets, ways, .. }| sets * ways);
        let (heads, bodies) = (vec![Head::EMPTY; slots], vec![Body::default(); slots]);
        let marks = marks(&heads, shape);
        Self { heads, bodies, marks, hints: Vec::new(), occupied: 0, shape, clock: 0 }
    }

    /// Where the probing of an unbounded table that is not empty begins.
    fn probe(&self, key: Key) -> usize {
        (key.hash() >> (64 - self.heads.len().trailing_zeros())) as usize
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
        if let Some(&hint) = self.hints.get(key.page as usize % HINTS)
            && let Some(head) = self.heads.get(hint as usize)
            && head.key.is(&key)
        {
            return Some(hint as usize);
        }
        self.search(key)
    }

    fn search(&self, key: Key) -> Option<usize> {
        if let Some(shape) = self.shape {
            return self.way_of(key, shape);
        }
        if self.heads.is_empty() {
            return None;
        }
        let at = self.place(key);
        self.heads[at].occupied().then_some(at)
    }

    /// The slot of this key in its set.
    #[inline]
    fn way_of(&self, key: Key, shape: Shape) -> Option<usize> {
        let Shape { ways, rows, .. } = shape;
        let set = shape.set(key.page);
        let marks = &self.marks[set * rows..][..rows];
        for (row, marks) in marks.iter().enumerate() {
            // Every way is looked at: which of them it is cannot be foreseen, and a wrong guess costs
            // more than the rest of the set.
            let mut fits = fitting(*marks, key.mark());
            while fits != 0 {
                let at = set * ways + row * ROW + fits.trailing_zeros() as usize / 8;
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

    /// What is noted on the live copy in a slot.
    #[inline]
    pub fn note(&self, at: usize) -> u64 {
        self.bodies[at].word
    }

    /// The event that killed the dead copy in a slot, whose epoch is [`DEAD`].
    pub fn killer(&self, at: usize) -> u64 {
        self.bodies[at].word
    }

    /// Notes it.
    pub fn set_note(&mut self, at: usize, note: u64) {
        self.bodies[at].word = note;
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
        self.bodies[at].word = event;
    }

    /// Marks a slot most recently used.
    #[inline]
    pub fn touch(&mut self, at: usize) {
        let head = &mut self.heads[at];
        if self.shape.is_some() {
            self.clock += 1;
            head.used = self.clock;
        }
        if let Some(hint) = self.hints.get_mut(head.key.page as usize % HINTS) {
            *hint = at as u32;
        }
    }

    /// The slot that a copy of this key goes to: its own, else an empty or dead one, else the least
    /// recently used of its set. What lies there has to make room.
    pub fn room(&mut self, key: Key, alive: impl Fn(&Head) -> bool) -> usize {
        match self.shape {
            Some(shape) => {
                self.way_of(key, shape).unwrap_or_else(|| self.oldest(key, shape, alive))
            }
            None => {
                if (self.occupied + 1) * 2 > self.heads.len() {
                    self.rebuild(|_| true);
                }
                self.place(key)
            }
        }
    }

    fn oldest(&self, key: Key, shape: Shape, alive: impl Fn(&Head) -> bool) -> usize {
        let first = shape.set(key.page) * shape.ways;
        let set = &self.heads[first..][..shape.ways];
        if self.occupied < self.heads.len()
            && let Some(empty) = set.iter().position(|head| !head.occupied())
        {
            return first + empty;
        }
        // One word, to be compared at once: the clock stays far below the high bit.
        let mut best = (u64::MAX, 0);
        for (way, head) in set.iter().enumerate() {
            let age = u64::from(alive(head)) << 63 | head.used;
            if age < best.0 {
                best = (age, way);
            }
        }
        first + best.1
    }

    /// Puts a copy into the slot that is its [room](Self::room).
    pub fn put(&mut self, at: usize, key: Key, epoch: u32, body: Body<V>) {
        if let Some(shape) = self.shape {
            let set = shape.set(key.page);
            let way = at - set * shape.ways;
            set_mark(&mut self.marks[set * shape.rows + way / ROW], way % ROW, key.mark());
        }
        if self.hints.is_empty() {
            self.hints.resize(HINTS, 0);
        }
        self.hints[key.page as usize % HINTS] = at as u32;
        self.clock += 1;
        self.occupied += usize::from(!self.heads[at].occupied());
        self.heads[at] = Head { key, epoch, used: self.clock };
        self.bodies[at] = body;
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
fn marks(heads: &[Head], shape: Option<Shape>) -> Vec<u64> {
    let Some(shape) = shape else { return Vec::new() };
    let mut marks = vec![0; shape.sets * shape.rows];
    for (at, head) in heads.iter().enumerate().filter(|(_, head)| head.occupied()) {
        let (set, way) = (at / shape.ways, at % shape.ways);
        set_mark(&mut marks[set * shape.rows + way / ROW], way % ROW, head.key.mark());
    }
    marks
}

/// Writes one mark of a row.
#[inline]
const fn set_mark(row: &mut u64, place: usize, mark: u8) {
    let shift = 8 * place as u32;
    *row = *row & !(0xff << shift) | (mark as u64) << shift;
}

/// The marks of a row that equal this one: the top bit of each byte that does. A byte above one that
/// does may be among them though it differs; a byte that is 0 never is.
#[inline]
const fn fitting(row: u64, mark: u8) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    // A byte is 0 where the marks are equal. Taking 1 from each sets the top bit of these, and of none
    // that had it set: of no byte where one mark is occupied and the other empty.
    let differs = row ^ (ONES * mark as u64);
    differs.wrapping_sub(ONES) & !differs & ONES << 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_the_places_of_a_mark_and_no_empty_one() {
        let mut row = 0;
        for (place, mark) in [(0, 0x93), (2, 0x80), (3, 0x81), (7, 0x93)] {
            set_mark(&mut row, place, mark);
        }
        assert_eq!(row, 0x9300_0000_8180_0093);
        assert_eq!(fitting(row, 0x93), 1 << 63 | 1 << 7);
        assert_eq!(fitting(row, 0x94), 0);
        // 0x81 in the place above differs in one bit: it may be named, and the key then refuses it.
        assert_eq!(fitting(row, 0x80) & (1 << 23), 1 << 23);
        assert_eq!(fitting(row, 0x80) & !(1 << 23 | 1 << 31), 0);
        set_mark(&mut row, 7, 0x85);
        assert_eq!(row, 0x8500_0000_8180_0093);
        assert_eq!(fitting(row, 0x93), 1 << 7);
        assert_eq!(fitting(0, OCCUPIED), 0);
    }

    /// Every way of every set is found again, and the least recently used makes room.
    #[test]
    fn sets_of_any_width_find_what_they_hold() {
        for (entries, ways) in [(1, 1), (6, 3), (64, 8), (96, 12), (40, 20), (16, 16)] {
            let mut store = Store::<u32>::new(Geometry::Sets { entries, ways });
            let sets = u64::from(entries / ways);
            let put = |store: &mut Store<u32>, page: u64| {
                let (key, value) = (Key::new(page, 0, 0), page as u32);
                let at = store.room(key, |_| true);
                let before = *store.head(at);
                store.put(at, key, 1, Body { value, word: 0 });
                before
            };
            for page in 0..u64::from(entries) {
                assert!(!put(&mut store, page).occupied());
            }
            for page in 0..u64::from(entries) {
                let at = store.find(Key::new(page, 0, 0)).expect("it was put there");
                assert_eq!(*store.value(at), page as u32);
                assert_eq!(store.find(Key::new(page, 1, 0)), None);
                store.touch(at);
            }
            let evicted = put(&mut store, u64::from(entries));
            assert!(evicted.occupied(), "the set is full");
            assert_eq!(evicted.key.page, u64::from(entries) % sets);
            let again = Store::from(Written::from(store.clone()));
            assert_eq!(again.marks, store.marks);
        }
    }
}
