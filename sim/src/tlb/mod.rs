//! The hardware TLBs and paging-structure caches of one physical CPU (facts A.7, A.8, B to D).
//! Containers (class, id, EP4TA, PCID or global) have epochs, so wide flushes touch no entry.

pub mod instruction;
mod invalidate;
pub mod processors;
mod store;

use std::fmt;
use std::ops::RangeInclusive;

use rustc_hash::FxHashMap;
use tlbscope_trace::act::{Class, Copied, Mark, Path, Tag};
use tlbscope_trace::addr::{Gpa, Gva, Hpa, PageSize, Pcid};

use crate::arch::access::Rights;
use crate::arch::mode::Mode;
use crate::paging::memory::mix;
use store::{Body, DEAD, Head, Key, Store};

/// How many entries there are and how they are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Geometry {
    /// Never evicts: the hardware that correctness is judged on.
    #[default]
    Unbounded,
    /// Real sets with LRU.
    Sets {
        /// Entries in all.
        entries: u32,
        /// Entries of a set.
        ways: u32,
    },
}

/// A cached translation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Entry {
    /// What it translates to.
    pub copy: Copied,
    /// The observer's mark.
    pub mark: Mark,
    /// The size cached: the smaller of guest and host size.
    pub size: PageSize,
    /// The size of the guest's page: INVLPG drops all fragments of it.
    pub guest_size: PageSize,
    /// Usable under every PCID.
    pub global: bool,
    /// The PCID it was made under.
    pub pcid: Pcid,
    /// A write is forbidden by the host's mapping (EPT, NPT), whatever the guest's entries say.
    pub host_read_only: bool,
}

/// A cached upper-level entry: where the walk goes on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct PscEntry {
    /// Level of the entry that was cached (2 = PDE); the walk goes on at `level - 1`.
    pub level: u8,
    /// Guest-physical address of the next table.
    pub gpa: Gpa,
    /// Host-physical address of the next table.
    pub hpa: Hpa,
    /// The rights so far.
    pub rights: Rights,
    /// The tables that led here, for the observer alone.
    pub path: Path,
    /// The observer's mark.
    pub mark: Mark,
}

/// Which part of a tag's entries a container holds.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
enum Space {
    /// One PCID.
    Pcid,
    /// Global translations.
    Global,
    /// Mappings by guest-physical address.
    Physical,
}

type ContainerKey = (Class, u32, u64, u16, Space);

/// Flushes of one container remembered for ghosts.
const KILLS: usize = 32;

/// What is flushed together.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Container {
    tag: Tag,
    space: Space,
    epoch: u32,
    psc_epoch: u32,
    live: u32,
    /// Live translations by size.
    sizes: [u32; 4],
    /// Live fragments of larger guest pages.
    fragments: u32,
    /// Which event ended an epoch, by epoch modulo [`KILLS`].
    kills: [u64; KILLS],
}

impl Container {
    fn forget(&mut self, entry: &Entry) {
        self.live -= 1;
        self.sizes[entry.size as usize] -= 1;
        self.fragments -= u32::from(entry.guest_size > entry.size);
    }
}

/// The TLB and the paging-structure caches of one physical CPU.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Tlb {
    containers: Vec<Container>,
    #[serde(with = "tlbscope_trace::state::map")]
    by_key: FxHashMap<ContainerKey, u32>,
    entries: Store<Entry>,
    /// Guest-physical mappings: a nested TLB of their own. No vendor tells its size: it is the TLB's.
    nested: Store<Entry>,
    /// The paging-structure caches by level less 2; `None`: the processor has none.
    psc: [Option<Store<PscEntry>>; 4],
    /// The last tag looked up and its PCID and global containers.
    last: Option<(Tag, [Option<u32>; 2])>,
    #[serde(skip)]
    probes: Probes,
    /// The last tag of guest-physical mappings and its container.
    last_physical: Option<(Tag, u32)>,
    sweep_at: [usize; 2],
    psc_sweep_at: [usize; 4],
}

/// Slots of unbounded stores that are kept before dead ones are swept out.
const SWEEP: usize = 1 << 16;
const SIZES: [PageSize; 4] =
    [PageSize::Size4K, PageSize::Size2M, PageSize::Size4M, PageSize::Size1G];

/// One place where a translation is looked for: pages of one size in one container.
#[derive(Clone, Copy, Debug, Default)]
struct Probe {
    /// Of page 0.
    key: Key,
    shift: u32,
    epoch: u32,
}

impl Probe {
    /// The live slot of this address.
    #[inline]
    fn find(&self, store: &Store<Entry>, address: u64) -> Option<usize> {
        let at = store.find(self.key.of_page(address >> self.shift))?;
        (store.head(at).epoch == self.epoch).then_some(at)
    }
}

/// All places where a translation is looked for under one tag, its own PCID's before global ones. They
/// follow from the containers, and hold until one of these is flushed or gets its first page of a size.
#[derive(Clone, Default)]
struct Probes {
    /// `None`: to be made.
    tag: Option<Tag>,
    all: [Probe; 8],
    count: usize,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probes")
    }
}

#[inline]
fn key(container: u32, address: u64, size: PageSize) -> Key {
    Key::new(address >> size.shift(), container, size as u8)
}

impl Tlb {
    /// An empty TLB with unbounded paging-structure caches.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self::with_structures(geometry, [Some(Geometry::Unbounded); 4])
    }

    /// An empty TLB and its paging-structure caches for PDEs, PDPTEs, PML4Es and PML5Es.
    #[must_use]
    pub fn with_structures(geometry: Geometry, psc: [Option<Geometry>; 4]) -> Self {
        Self {
            containers: Vec::new(),
            by_key: FxHashMap::default(),
            entries: Store::new(geometry),
            nested: Store::new(geometry),
            psc: psc.map(|geometry| geometry.map(Store::new)),
            last: None,
            probes: Probes::default(),
            last_physical: None,
            sweep_at: [SWEEP; 2],
            psc_sweep_at: [SWEEP; 4],
        }
    }

    fn container(&self, tag: &Tag, space: Space) -> Option<u32> {
        self.by_key.get(&container_key(tag, space)).copied()
    }

    fn container_or_new(&mut self, tag: &Tag, space: Space) -> u32 {
        if let Some(at) = self.remembered(tag, space) {
            return at;
        }
        let next = self.containers.len() as u32;
        let at = *self.by_key.entry(container_key(tag, space)).or_insert(next);
        if at == next {
            self.last = None;
            self.probes.tag = None;
            self.containers.push(Container {
                tag: *tag,
                space,
                epoch: 0,
                psc_epoch: 0,
                live: 0,
                sizes: [0; 4],
                fragments: 0,
                kills: [0; KILLS],
            });
        }
        at
    }

    /// The container of a tag that was looked up last: most inserts follow a lookup.
    fn remembered(&self, tag: &Tag, space: Space) -> Option<u32> {
        if space == Space::Physical {
            return self.last_physical.filter(|(last, _)| last == tag).map(|(_, at)| at);
        }
        let (_, [pcid, global]) = self.last.filter(|(last, _)| last == tag)?;
        if space == Space::Pcid { pcid } else { global }
    }

    /// The container of guest-physical mappings, of which a walk looks up one for each table.
    fn physical(&mut self, tag: &Tag) -> Option<u32> {
        if let Some(at) = self.remembered(tag, Space::Physical) {
            return Some(at);
        }
        let at = self.container(tag, Space::Physical)?;
        self.last_physical = Some((*tag, at));
        Some(at)
    }

    #[inline]
    fn pair(&mut self, tag: &Tag) -> [Option<u32>; 2] {
        match self.last {
            Some((last, pair)) if last == *tag => pair,
            _ => {
                let pair = [self.container(tag, Space::Pcid), self.container(tag, Space::Global)];
                self.last = Some((*tag, pair));
                pair
            }
        }
    }

    /// Where translations of a container lie.
    fn store(&self, space: Space) -> &Store<Entry> {
        if space == Space::Physical { &self.nested } else { &self.entries }
    }

    /// The same, to change it.
    fn store_mut(&mut self, space: Space) -> &mut Store<Entry> {
        if space == Space::Physical { &mut self.nested } else { &mut self.entries }
    }

    /// Where translations of a container are looked for: one place for each size that it has any of.
    #[inline]
    fn places(&self, container: u32) -> impl Iterator<Item = Probe> {
        let c = &self.containers[container as usize];
        let sizes = if c.live == 0 { &[][..] } else { &SIZES };
        let held = sizes.iter().filter(|size| c.sizes[**size as usize] != 0);
        held.map(move |size| Probe {
            key: key(container, 0, *size),
            shift: size.shift(),
            epoch: c.epoch,
        })
    }

    /// The live slot that translates an address in a container, whose translations lie in `store`.
    #[inline]
    fn find_in(&self, store: &Store<Entry>, container: u32, address: u64) -> Option<usize> {
        self.places(container).find_map(|probe| probe.find(store, address))
    }

    /// Makes ready for lookups under this tag.
    #[inline]
    pub(crate) fn select(&mut self, tag: &Tag) {
        if self.probes.tag != Some(*tag) {
            self.make_probes(tag);
        }
    }

    fn make_probes(&mut self, tag: &Tag) {
        let mut probes = Probes { tag: Some(*tag), ..Probes::default() };
        for place in self.pair(tag).into_iter().flatten().flat_map(|of| self.places(of)) {
            probes.all[probes.count] = place;
            probes.count += 1;
        }
        self.probes = probes;
    }

    /// The slot of the translation of `gva` under the tag that was [selected](Tlb::select).
    #[inline]
    pub(crate) fn probe(&self, gva: Gva) -> Option<usize> {
        let Probes { all, count, .. } = &self.probes;
        all[..*count].iter().find_map(|probe| probe.find(&self.entries, gva.0))
    }

    #[inline]
    fn find(&mut self, tag: &Tag, gva: Gva) -> Option<usize> {
        self.select(tag);
        self.probe(gva)
    }

    /// The translation in a slot.
    #[inline]
    pub(crate) fn entry(&self, slot: usize) -> &Entry {
        self.entries.value(slot)
    }

    /// What the observer had noted on it.
    #[inline]
    pub(crate) fn note(&self, slot: usize) -> u64 {
        self.entries.note(slot)
    }

    /// Notes it.
    pub(crate) fn set_note(&mut self, slot: usize, note: u64) {
        self.entries.set_note(slot, note);
    }

    /// Marks a slot most recently used.
    #[inline]
    pub(crate) fn touch(&mut self, slot: usize) {
        self.entries.touch(slot);
    }

    /// The translation of `gva` under this tag's PCID, or a global one.
    #[inline]
    pub fn lookup(&mut self, tag: &Tag, gva: Gva) -> Option<&Entry> {
        let at = self.find(tag, gva)?;
        self.entries.touch(at);
        Some(self.entries.value(at))
    }

    /// The guest-physical mapping of `gpa` (EPT by EP4TA; on AMD by ASID).
    pub fn lookup_gpa(&mut self, tag: &Tag, gpa: Gpa) -> Option<&Entry> {
        let container = self.physical(tag)?;
        let at = self.find_in(&self.nested, container, gpa.0)?;
        self.nested.touch(at);
        Some(self.nested.value(at))
    }

    /// Caches a translation. Gives the event whose flush had dropped the same one (a ghost).
    pub fn insert(&mut self, tag: &Tag, gva: Gva, entry: Entry) -> Option<u64> {
        self.insert_noted(tag, gva, entry, 0)
    }

    /// The same, with the observer's note on it.
    pub(crate) fn insert_noted(
        &mut self,
        tag: &Tag,
        gva: Gva,
        entry: Entry,
        note: u64,
    ) -> Option<u64> {
        let space = if entry.global { Space::Global } else { Space::Pcid };
        self.insert_in(tag, space, gva.0, entry, note)
    }

    /// As [`Tlb::insert`] for a guest-physical mapping.
    pub fn insert_gpa(&mut self, tag: &Tag, gpa: Gpa, entry: Entry) -> Option<u64> {
        self.insert_in(tag, Space::Physical, gpa.0, entry, 0)
    }

    fn insert_in(
        &mut self,
        tag: &Tag,
        space: Space,
        address: u64,
        entry: Entry,
        note: u64,
    ) -> Option<u64> {
        self.sweep(space);
        let at = self.container_or_new(tag, space);
        let key = key(at, address, entry.size);
        let epoch = self.containers[at as usize].epoch;
        let store = if space == Space::Physical { &mut self.nested } else { &mut self.entries };
        let containers = &self.containers;
        // Most of a set is of the container that is being filled.
        let alive = |head: &Head| match head.key.container() == at as usize {
            true => head.epoch == epoch,
            false => alive(containers, head),
        };
        let slot = store.room(key, alive);
        let old = *store.head(slot);
        let mut ghost = None;
        if old.occupied() {
            let holder = &mut self.containers[old.key.container()];
            if old.epoch == holder.epoch {
                holder.forget(store.value(slot));
            } else if old.key == key {
                ghost = killer(holder, old.epoch, store.killer(slot));
            }
        }
        store.put(slot, key, epoch, Body { value: entry, word: note });
        let c = &mut self.containers[at as usize];
        c.live += 1;
        if c.sizes[entry.size as usize] == 0 {
            self.probes.tag = None;
        }
        c.sizes[entry.size as usize] += 1;
        c.fragments += u32::from(entry.guest_size > entry.size);
        ghost
    }

    /// Forgets the dead translations of an unbounded store that has grown.
    fn sweep(&mut self, space: Space) {
        let physical = space == Space::Physical;
        let store = if physical { &mut self.nested } else { &mut self.entries };
        let limit = &mut self.sweep_at[usize::from(physical)];
        if store.unbounded() && store.len() >= *limit {
            let containers = &self.containers;
            store.sweep(|head| alive(containers, head));
            *limit = SWEEP.max(2 * store.len());
        }
    }

    /// Sets D in the copy that [`Tlb::lookup`] would find; whether there was one.
    pub fn set_dirty(&mut self, tag: &Tag, gva: Gva) -> bool {
        let Some(at) = self.find(tag, gva) else { return false };
        self.entries.value_mut(at).copy.dirty = true;
        true
    }

    /// Whether there is a paging-structure cache for entries of this level.
    #[must_use]
    pub fn has_psc(&self, level: u8) -> bool {
        psc_place(level).is_some_and(|place| self.psc[place].is_some())
    }

    /// Whether there is one for any level.
    #[must_use]
    pub fn has_structures(&self) -> bool {
        self.psc.iter().any(Option::is_some)
    }

    /// Caches an upper-level entry; `mode` is that of the tables walked.
    pub fn psc_insert(&mut self, tag: &Tag, mode: Mode, gva: Gva, entry: PscEntry) {
        let container = self.container_or_new(tag, psc_space(tag));
        let containers = &self.containers;
        let alive = |head: &Head| containers[head.key.container()].psc_epoch == head.epoch;
        let Some(place) = psc_place(entry.level) else { return };
        let Some(store) = &mut self.psc[place] else { return };
        if store.unbounded() && store.len() >= self.psc_sweep_at[place] {
            store.sweep(alive);
            self.psc_sweep_at[place] = SWEEP.max(2 * store.len());
        }
        let key = psc_key(container, mode, gva.0, entry.level);
        let epoch = containers[container as usize].psc_epoch;
        let slot = store.room(key, alive);
        store.put(slot, key, epoch, Body { value: entry, word: 0 });
    }

    /// The lowest cached upper-level entry of these levels for `gva`.
    pub fn psc_lookup(
        &mut self,
        tag: &Tag,
        mode: Mode,
        gva: Gva,
        levels: RangeInclusive<u8>,
    ) -> Option<PscEntry> {
        let container = self.structures_of(tag)?;
        let epoch = self.containers[container as usize].psc_epoch;
        levels.filter_map(|level| Some((level, psc_place(level)?))).find_map(|(level, place)| {
            let store = self.psc[place].as_mut()?;
            let at = store.find(psc_key(container, mode, gva.0, level))?;
            if store.head(at).epoch != epoch {
                return None;
            }
            store.touch(at);
            Some(*store.value(at))
        })
    }

    /// The container of a tag's upper-level entries.
    fn structures_of(&mut self, tag: &Tag) -> Option<u32> {
        match psc_space(tag) {
            Space::Pcid => self.pair(tag)[0],
            _ => self.physical(tag),
        }
    }

    /// Whether this very translation is usable, whatever else translates the address.
    #[must_use]
    pub fn holds(&self, tag: &Tag, gva: Gva, entry: &Entry) -> bool {
        let space = if entry.global { Space::Global } else { Space::Pcid };
        self.holds_in(tag, space, gva.0, entry)
    }

    /// As [`Tlb::holds`] for a guest-physical mapping.
    #[must_use]
    pub fn holds_gpa(&self, tag: &Tag, gpa: Gpa, entry: &Entry) -> bool {
        self.holds_in(tag, Space::Physical, gpa.0, entry)
    }

    fn holds_in(&self, tag: &Tag, space: Space, address: u64, entry: &Entry) -> bool {
        let Some(at) = self.container(tag, space) else { return false };
        let store = self.store(space);
        let found = store.find(key(at, address, entry.size));
        found.is_some_and(|found| {
            let epoch = self.containers[at as usize].epoch;
            store.head(found).epoch == epoch && store.value(found) == entry
        })
    }

    /// Whether a translation may have to make room for another.
    pub(crate) const fn makes_room(&self) -> bool {
        !self.entries.unbounded()
    }

    /// Usable translations in all.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.containers.iter().map(|c| u64::from(c.live)).sum()
    }

    /// A digest of the usable translations, in order of key: the same on every machine.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let all = self.entries.iter().chain(self.nested.iter());
        let live = all.filter(|(head, _)| alive(&self.containers, head));
        let mut live: Vec<_> = live
            .map(|(Head { key, .. }, entry)| {
                let c = &self.containers[key.container()];
                (container_key(&c.tag, c.space), key.size(), key.page, entry)
            })
            .collect();
        live.sort_unstable_by_key(|(c, size, page, _)| (*c, *size, *page));
        live.iter().fold(0, |hash, ((class, id, ep4ta, pcid, space), size, page, e)| {
            let tag = u64::from(*id) << 32 | u64::from(*pcid) << 16;
            let tag = tag | (*class as u64) << 8 | (*space as u64) << 4 | u64::from(*size);
            let flags = u64::from(e.copy.write) | u64::from(e.copy.user) << 1;
            let flags = flags | u64::from(e.copy.xd) << 2 | u64::from(e.copy.dirty) << 3;
            let flags = flags | u64::from(e.copy.key) << 8 | (e.guest_size as u64) << 16;
            [tag, *ep4ta, *page, flags, e.copy.gpa.0, e.copy.hpa.0].into_iter().fold(hash, mix)
        })
    }
}

/// Whether a translation is usable: its container was not flushed since it was put there.
fn alive(containers: &[Container], head: &Head) -> bool {
    containers[head.key.container()].epoch == head.epoch
}

/// The event that killed a copy of this epoch; `killer`, if it was killed by its address.
fn killer(holder: &Container, epoch: u32, killer: u64) -> Option<u64> {
    if epoch == DEAD {
        return Some(killer);
    }
    let recent = holder.epoch.wrapping_sub(epoch) as usize <= KILLS;
    recent.then(|| holder.kills[epoch as usize % KILLS])
}

fn container_key(tag: &Tag, space: Space) -> ContainerKey {
    let pcid = if space == Space::Pcid { tag.pcid.0 } else { 0 };
    (tag.class, tag.id, tag.ep4ta.0, pcid, space)
}

const fn psc_space(tag: &Tag) -> Space {
    if matches!(tag.class, Class::GuestPhysical) { Space::Physical } else { Space::Pcid }
}

/// Which of the paging-structure caches holds entries of a level.
const fn psc_place(level: u8) -> Option<usize> {
    if level >= 2 && level <= 5 { Some(level as usize - 2) } else { None }
}

fn psc_key(container: u32, mode: Mode, gva: u64, level: u8) -> Key {
    // 32-bit tables cover other regions than 8-byte ones: told apart by bit 7.
    let size = if mode == Mode::Bits32 { level | 0x80 } else { level };
    Key::new(gva >> mode.shift(level), container, size)
}

/// The inverse of [`psc_key`]'s `size`.
const fn psc_region(size: u8) -> (Mode, u8) {
    (if size & 0x80 != 0 { Mode::Bits32 } else { Mode::Level5 }, size & 0x7f)
}

#[cfg(test)]
mod tests;
