//! The hardware's caches of one physical CPU: each invalidation is implemented here by its own
//! code; no table of what the manuals require is read.
//!
//! Entries live in *containers*: (class, VPID or ASID, EP4TA, PCID or global). A wide invalidation
//! raises the container's birth line, so that it costs a few operations whatever it drops; what
//! was born before the line is dead, and is remembered as the ghost of the flush that raised it.

use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};
use tlbscope_trace::act::{Class, Copied, GuestInv, Inv, Mark, Tag};
use tlbscope_trace::addr::{Gpa, Gva, PageSize, Pcid};

mod store;

pub use store::Geometry;
use store::{Key, Store};

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub copy: Copied,
    /// The judge's mark.
    pub mark: Mark,
    /// The size of the page that is cached.
    pub size: PageSize,
    /// The size in the guest's tables; larger than `size` for a fragment.
    pub guest_size: PageSize,
    /// Usable under every PCID.
    pub global: bool,
    /// The PCID it was made under.
    pub pcid: Pcid,
}

impl Entry {
    /// An entry that is no fragment.
    #[must_use]
    pub const fn new(copy: Copied, mark: Mark, size: PageSize, global: bool, pcid: Pcid) -> Self {
        Self { copy, mark, size, guest_size: size, global, pcid }
    }
}

/// PCID or global: the last part of a container's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Under {
    Pcid(Pcid),
    Global,
}

/// A container's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name {
    class: Class,
    id: u32,
    ep4ta: u64,
    under: Under,
}

#[derive(Clone, Copy, Debug)]
struct Container {
    name: Name,
    /// Entries born before are dead.
    line: u64,
    /// The event whose flush raised the line.
    killer: u64,
    /// Entries that live.
    live: u32,
    /// Bit for each page size that was ever filled.
    sizes: u8,
    /// Whether some entry is a fragment of a larger guest page.
    fragments: bool,
}

/// The caches of one physical CPU.
#[derive(Clone, Debug)]
pub struct Tlb {
    names: FxHashMap<Name, u32>,
    containers: Vec<Container>,
    store: Store,
    clock: u64,
}

const SIZES: [PageSize; 4] =
    [PageSize::Size4K, PageSize::Size2M, PageSize::Size4M, PageSize::Size1G];

impl Tlb {
    /// Empty caches.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let (names, containers) = (FxHashMap::default(), Vec::new());
        Self { names, containers, store: Store::new(geometry), clock: 1 }
    }

    fn name(tag: &Tag, under: Under) -> Name {
        let id = if tag.class == Class::GuestPhysical { 0 } else { tag.id };
        Name { class: tag.class, id, ep4ta: tag.ep4ta.0, under }
    }

    fn container(&mut self, name: Name) -> u32 {
        if let Some(n) = self.names.get(&name) {
            return *n;
        }
        let n = self.containers.len() as u32;
        let (line, killer, live, sizes, fragments) = (0, 0, 0, 0, false);
        self.containers.push(Container { name, line, killer, live, sizes, fragments });
        self.names.insert(name, n);
        n
    }

    /// The entry that translates `gva` under `tag`: of its PCID, or global.
    pub fn lookup(&mut self, tag: &Tag, gva: Gva) -> Option<&Entry> {
        let found = [Under::Pcid(tag.pcid), Under::Global]
            .into_iter()
            .find_map(|under| self.probe(Self::name(tag, under), gva.0));
        found.and_then(|key| self.store.touch(key))
    }

    /// The guest-physical mapping of `gpa`.
    pub fn lookup_gpa(&mut self, tag: &Tag, gpa: Gpa) -> Option<&Entry> {
        let key = self.probe(Self::name(tag, Under::Global), gpa.0)?;
        self.store.touch(key)
    }

    /// The key of the live entry of one container that covers `address`.
    fn probe(&self, name: Name, address: u64) -> Option<Key> {
        let n = *self.names.get(&name)?;
        let container = &self.containers[n as usize];
        SIZES.into_iter().find_map(|size| {
            if container.sizes & 1 << size as u8 == 0 {
                return None;
            }
            let key = Key { container: n, page: address >> size.shift(), size };
            self.store.born(key).filter(|born| *born >= container.line).map(|_| key)
        })
    }

    /// Caches a translation. Returns the event whose flush had dropped the same one, if one had.
    pub fn insert(&mut self, tag: &Tag, gva: Gva, entry: Entry) -> Option<u64> {
        let under = if entry.global { Under::Global } else { Under::Pcid(tag.pcid) };
        self.insert_in(Self::name(tag, under), gva.0, entry)
    }

    /// Caches a guest-physical mapping.
    pub fn insert_gpa(&mut self, tag: &Tag, gpa: Gpa, entry: Entry) -> Option<u64> {
        self.insert_in(Self::name(tag, Under::Global), gpa.0, entry)
    }

    fn insert_in(&mut self, name: Name, address: u64, entry: Entry) -> Option<u64> {
        let n = self.container(name);
        self.clock += 1;
        let container = &mut self.containers[n as usize];
        container.sizes |= 1 << entry.size as u8;
        container.fragments |= entry.guest_size > entry.size;
        container.live += 1;
        let (line, killer) = (container.line, container.killer);
        let key = Key { container: n, page: address >> entry.size.shift(), size: entry.size };
        let out = self.store.insert(key, entry, self.clock);
        let mut ghost = None;
        if let Some((old, born)) = out {
            let holder = &mut self.containers[old.container as usize];
            if born >= holder.line {
                holder.live -= 1;
            } else if old == key && born < line {
                ghost = Some(killer);
            }
        }
        ghost
    }

    /// Drops the entry of `gva` under `tag`, PCID-tagged and global.
    pub fn drop_entry(&mut self, tag: &Tag, gva: Gva) {
        for under in [Under::Pcid(tag.pcid), Under::Global] {
            self.drop_page(Self::name(tag, under), gva.0);
        }
    }

    /// Drops what covers `address` in one container, every fragment of its guest page too. Returns
    /// how many lived.
    fn drop_page(&mut self, name: Name, address: u64) -> u32 {
        let Some(&n) = self.names.get(&name) else { return 0 };
        let container = self.containers[n as usize];
        let mut dropped = 0;
        for size in SIZES {
            if container.sizes & 1 << size as u8 != 0 {
                let key = Key { container: n, page: address >> size.shift(), size };
                dropped += u32::from(self.store.remove(key).is_some_and(|b| b >= container.line));
            }
        }
        if container.fragments {
            dropped += self.store.remove_fragments(n, address, container.line);
        }
        self.containers[n as usize].live -= dropped;
        dropped
    }

    /// Kills every entry of the containers that `which` names.
    fn kill(
        &mut self,
        which: impl Fn(&Name) -> bool,
        event: u64,
        tag: &Tag,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        self.clock += 1;
        for container in &mut self.containers {
            if container.live == 0 || !which(&container.name) {
                continue;
            }
            container.line = self.clock;
            container.killer = event;
            let lost = std::mem::take(&mut container.live);
            report(&container.name, tag, lost, dropped);
        }
    }

    fn kill_page(
        &mut self,
        which: impl Fn(&Name) -> bool,
        address: u64,
        tag: &Tag,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        let names: Vec<Name> = self
            .containers
            .iter()
            .filter(|c| c.live > 0 && which(&c.name))
            .map(|c| c.name)
            .collect();
        for name in names {
            let lost = self.drop_page(name, address);
            if lost > 0 {
                report(&name, tag, lost, dropped);
            }
        }
    }

    /// Carries out an invalidation on this CPU. `current` is the context of the vCPU on whose
    /// behalf it happens; `dropped` hears how many live translations each container lost.
    pub fn invalidate(
        &mut self,
        inv: Inv,
        current: &Tag,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        let gva_mapping = |n: &Name| n.class != Class::GuestPhysical;
        let vpid =
            |n: &Name, id: u32| matches!(n.class, Class::Linear | Class::Combined) && n.id == id;
        let asid = |n: &Name, id: u32| n.class == Class::Asid && n.id == id;
        match inv {
            Inv::VpidSingle(v) => self.kill(|n| vpid(n, v.0.into()), event, current, dropped),
            Inv::VpidNonglobal(v) => {
                let which = |n: &Name| vpid(n, v.0.into()) && n.under != Under::Global;
                self.kill(which, event, current, dropped);
            }
            Inv::VpidAll => {
                let which = |n: &Name| gva_mapping(n) && n.class != Class::Asid && n.id != 0;
                self.kill(which, event, current, dropped);
            }
            Inv::VpidZeroTransition => self.kill(|n| vpid(n, 0), event, current, dropped),
            Inv::VpidAddress { vpid: v, gva } => {
                self.kill_page(|n| vpid(n, v.0.into()), gva.0, current, dropped);
            }
            Inv::EptSingle(e) => {
                let derived = |n: &Name| matches!(n.class, Class::GuestPhysical | Class::Combined);
                let which = |n: &Name| derived(n) && n.ep4ta == e.0;
                self.kill(which, event, current, dropped);
            }
            Inv::EptGlobal => {
                let which = |n: &Name| matches!(n.class, Class::GuestPhysical | Class::Combined);
                self.kill(which, event, current, dropped);
            }
            Inv::TlbControlAll => self.kill(|n| n.class == Class::Asid, event, current, dropped),
            Inv::TlbControlAsid(a) => self.kill(|n| asid(n, a.0), event, current, dropped),
            Inv::TlbControlNonglobal(a) => {
                let which = |n: &Name| asid(n, a.0) && n.under != Under::Global;
                self.kill(which, event, current, dropped);
            }
            Inv::Invlpga { asid: a, gva } => {
                self.kill_page(|n| asid(n, a.0), gva.0, current, dropped);
            }
            Inv::Guest(guest) => self.invalidate_guest(guest, current, event, dropped),
            Inv::Exact => {}
        }
    }

    /// What a guest instruction invalidates: its own VPID (all EP4TAs) or ASID.
    fn invalidate_guest(
        &mut self,
        inv: GuestInv,
        current: &Tag,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        let mine = |n: &Name| {
            n.class != Class::GuestPhysical
                && n.id == current.id
                && (n.class == Class::Asid) == (current.class == Class::Asid)
        };
        let of = |n: &Name, pcid: Pcid| mine(n) && n.under == Under::Pcid(pcid);
        let global = |n: &Name| mine(n) && n.under == Under::Global;
        match inv {
            GuestInv::All => self.kill(mine, event, current, dropped),
            GuestInv::Nonglobal => {
                self.kill(|n| mine(n) && n.under != Under::Global, event, current, dropped);
            }
            // A global entry does not say under which PCID it was made: all of them go.
            GuestInv::Pcid(p) => {
                self.kill(|n| of(n, p) || global(n), event, current, dropped);
            }
            GuestInv::PcidNonglobal(p) => self.kill(|n| of(n, p), event, current, dropped),
            GuestInv::Address { pcid, gva } | GuestInv::Fault { pcid, gva } => {
                self.kill_page(|n| of(n, pcid) || global(n), gva.0, current, dropped);
            }
            GuestInv::AddressNonglobal { pcid, gva } => {
                self.kill_page(|n| of(n, pcid), gva.0, current, dropped);
            }
        }
    }

    /// A digest of what lives in the caches.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hasher = FxHasher::default();
        let mut live: Vec<_> = self
            .store
            .entries()
            .filter(|(key, _, born)| *born >= self.containers[key.container as usize].line)
            .map(|(key, entry, _)| {
                let name = self.containers[key.container as usize].name;
                (name, key.page, key.size, entry.copy.gpa, entry.copy.hpa)
            })
            .collect();
        live.sort_unstable();
        live.hash(&mut hasher);
        hasher.finish()
    }
}

/// Tells `dropped` of a container in the words of the judge.
fn report(name: &Name, current: &Tag, lost: u32, dropped: &mut impl FnMut(&Tag, bool, u32)) {
    let pcid = match name.under {
        Under::Pcid(pcid) => pcid,
        Under::Global => Pcid(0),
    };
    let ep4ta = tlbscope_trace::addr::Ep4ta(name.ep4ta);
    let tag = Tag { pcpu: current.pcpu, class: name.class, id: name.id, ep4ta, pcid };
    dropped(&tag, name.under == Under::Global, lost);
}

/// Whether a cached page is part of the guest page that covers `address`.
const fn covers(page: u64, size: PageSize, guest: PageSize, address: u64) -> bool {
    (page << size.shift()) >> guest.shift() == address >> guest.shift()
}
