//! Shadow pages as copies: live while write-protected, frozen from the instant they turn unsync.

use rustc_hash::FxHashMap;
use tlbscope_trace::act::Act;
use tlbscope_trace::addr::{Gpa, Sp};
use tlbscope_trace::observe::World;

use super::latest::Latest;

/// The bit of the raw role word that says that no guest table stands behind a page
/// (facts/kvm.md 7.2).
const DIRECT: u32 = 1 << 7;

/// Entries of a page.
const ENTRIES: usize = 512;

/// A link to another page.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Link {
    child: u32,
    /// When it was made.
    made: u64,
}

/// Entries of upper tables of which it is remembered what they point at.
const POINTED: usize = 1 << 17;

/// One shadow page.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Page {
    gfn: u64,
    level: u8,
    /// When each present leaf entry was made, 0 where none is; empty until there is one.
    set: Vec<u64>,
    /// Where each link points; empty until there is one.
    links: Vec<Option<Link>>,
    /// When it turned unsync.
    frozen: Option<u64>,
    /// The guest's table as it was then, entries renewed since taken over.
    #[serde(with = "tlbscope_trace::state::table_or_none")]
    snapshot: Option<Box<[u64; 512]>>,
    /// Present leaf entries, and how many of them are as old as the freeze.
    present: u32,
    old: u32,
    /// The first entry made after the freeze.
    newer: u64,
    /// Entries of the guest's table that were overwritten since the freeze, and when first.
    overwritten: Vec<(u16, u64)>,
    parents: Vec<(u32, u16)>,
    /// No guest table stands behind it.
    direct: bool,
}

impl Page {
    /// The oldest stamp of its entries; `None`: live.
    const fn stamp(&self) -> Option<u64> {
        match self.frozen {
            Some(frozen) if self.old > 0 => Some(frozen),
            Some(_) if self.present > 0 && self.newer != 0 => Some(self.newer),
            _ => None,
        }
    }

    /// When a leaf entry was made, if it is present.
    fn made(&self, index: u16) -> Option<u64> {
        self.set.get(place(index)).copied().filter(|made| *made != 0)
    }

    fn link(&self, index: u16) -> Option<Link> {
        self.links.get(place(index)).copied().flatten()
    }
}

/// Where an entry stands in its page.
const fn place(index: u16) -> usize {
    index as usize % ENTRIES
}

/// An entry of an upper table of the guest: what it points at, or did when it was present last.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Pointed {
    table: u64,
    /// When it was pointed there first: cleared and set again, old translations may have stayed.
    since: u64,
    event: u64,
}

/// The shadow pages of a machine.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Shadow {
    #[serde(with = "tlbscope_trace::state::map")]
    pages: FxHashMap<u32, Page>,
    /// How many links there are.
    links: usize,
    /// Unsync pages, sorted.
    unsync: Vec<u32>,
    /// Entries of the guest's upper tables, by address.
    pointed: Latest<u64, Pointed, POINTED>,
    /// When anything changed last.
    pub changed: u64,
    /// When something was taken away or write-protected last: the hypervisor's own invariants
    /// then want a flush of every vCPU (TLB_FLUSH).
    pub withdrawn: u64,
}

impl Shadow {
    /// Takes in what the hypervisor did to its shadow pages.
    pub fn act<W: World>(&mut self, act: &Act, now: u64, world: &W) {
        match *act {
            Act::SpNew { sp, gfn, level, role } => {
                self.forget(sp.0);
                let direct = role & DIRECT != 0;
                self.pages.insert(sp.0, Page { gfn, level, direct, ..Page::default() });
            }
            Act::SpLink { parent, index, child } => self.link(parent.0, index, child.0, now),
            Act::SpUnlink { parent, index, .. } => self.unlink(parent.0, index),
            Act::SpteSet { sp, index } => self.set_entry(sp.0, index, now, world),
            Act::SpteClear { sp, index } => self.clear_entry(sp.0, index),
            Act::SpUnsync { sp } => self.freeze(sp.0, now, world),
            Act::SpSync { sp, .. } => self.thaw(sp.0),
            Act::SpZap { sp } => self.forget(sp.0),
            _ => return,
        }
        self.changed = now;
        if !matches!(act, Act::SpLink { .. } | Act::SpteSet { .. } | Act::SpUnsync { .. }) {
            self.withdrawn = now;
        }
    }

    fn link(&mut self, parent: u32, index: u16, child: u32, now: u64) {
        self.unlink(parent, index);
        let page = self.pages.entry(parent).or_default();
        page.links.resize(ENTRIES, None);
        page.links[place(index)] = Some(Link { child, made: now });
        self.links += 1;
        self.pages.entry(child).or_default().parents.push((parent, index));
    }

    fn unlink(&mut self, parent: u32, index: u16) {
        let page = self.pages.get_mut(&parent);
        let link = page.and_then(|page| page.links.get_mut(place(index))?.take());
        if let Some(link) = link {
            self.links = self.links.saturating_sub(1);
            self.orphan(link.child, parent, index);
        }
    }

    /// A link to `child` is gone.
    fn orphan(&mut self, child: u32, parent: u32, index: u16) {
        if let Some(page) = self.pages.get_mut(&child) {
            page.parents.retain(|p| *p != (parent, index));
        }
    }

    fn set_entry<W: World>(&mut self, sp: u32, index: u16, now: u64, world: &W) {
        self.clear_entry(sp, index);
        let page = self.pages.entry(sp).or_default();
        page.set.resize(ENTRIES, 0);
        page.set[place(index)] = now;
        page.present += 1;
        if page.frozen.is_some() && page.newer == 0 {
            page.newer = now;
        }
        let at = Gpa((page.gfn << 12) + u64::from(index & 511) * 8);
        if let Some(snapshot) = &mut page.snapshot {
            snapshot[usize::from(index & 511)] = world.read(at);
            page.overwritten.retain(|(at, _)| *at != index);
        }
    }

    fn clear_entry(&mut self, sp: u32, index: u16) {
        let Some(page) = self.pages.get_mut(&sp) else { return };
        let Some(slot) = page.set.get_mut(place(index)).filter(|set| **set != 0) else { return };
        let set = std::mem::take(slot);
        page.present = page.present.saturating_sub(1);
        if page.frozen.is_some_and(|frozen| set <= frozen) {
            page.old = page.old.saturating_sub(1);
        }
    }

    fn freeze<W: World>(&mut self, sp: u32, now: u64, world: &W) {
        let page = self.pages.entry(sp).or_default();
        if page.frozen.is_some() {
            return;
        }
        page.frozen = Some(now);
        page.old = page.present;
        page.newer = 0;
        // A recording has no guest memory to keep.
        if world.memory_bytes() > 0 {
            page.snapshot = Some(Box::new(world.frame(Gpa(page.gfn << 12))));
        }
        if let Err(place) = self.unsync.binary_search(&sp) {
            self.unsync.insert(place, sp);
        }
    }

    fn thaw(&mut self, sp: u32) {
        if let Ok(place) = self.unsync.binary_search(&sp) {
            self.unsync.remove(place);
        }
        if let Some(page) = self.pages.get_mut(&sp) {
            page.frozen = None;
            page.snapshot = None;
            page.overwritten.clear();
            page.old = 0;
        }
    }

    fn forget(&mut self, sp: u32) {
        self.thaw(sp);
        let Some(page) = self.pages.remove(&sp) else { return };
        for (parent, index) in page.parents {
            let parent = self.pages.get_mut(&parent);
            let link = parent.and_then(|parent| parent.links.get_mut(place(index))?.take());
            self.links = self.links.saturating_sub(usize::from(link.is_some()));
        }
        for (index, link) in (0..).zip(page.links) {
            if let Some(link) = link {
                self.links = self.links.saturating_sub(1);
                self.orphan(link.child, sp, index);
            }
        }
    }

    /// Whether the link from `parent` to `child` on the way to `gva` has stood since.
    #[must_use]
    pub fn linked_since(&self, parent: Sp, child: Sp, gva: u64, since: u64) -> bool {
        let Some(page) = self.pages.get(&parent.0) else { return false };
        let index = gva >> (12 + 9 * u32::from(page.level.clamp(1, 5) - 1)) & 511;
        let link = page.link(index as u16);
        link.is_some_and(|link| link.child == child.0 && link.made < since)
    }

    /// The guest table behind a page.
    #[must_use]
    pub fn guest_table(&self, sp: Sp) -> Option<u64> {
        self.pages.get(&sp.0).filter(|page| !page.direct).map(|page| page.gfn << 12)
    }

    /// The stamps of a leaf entry: of the guest's entry (`None`: live) and of the frame in it
    /// (`None`: not known).
    #[must_use]
    pub fn entry(&self, sp: Sp, index: u16) -> (Option<u64>, Option<u64>) {
        let Some(page) = self.pages.get(&sp.0) else { return (None, None) };
        let (set, frozen) = (page.made(index), page.frozen);
        (frozen.map(|frozen| frozen.max(set.unwrap_or(0))), set)
    }

    /// Takes in a store of the guest to 8 bytes, of a table perhaps.
    pub fn store(&mut self, gpa: Gpa, new: u64, now: u64, event: u64) {
        let (gfn, index) = (gpa.0 >> 12, (gpa.0 >> 3 & 511) as u16);
        let mut leaf = false;
        for sp in &self.unsync {
            let Some(page) = self.pages.get_mut(sp).filter(|page| page.gfn == gfn) else {
                continue;
            };
            leaf = true;
            if page.overwritten.iter().all(|(at, _)| *at != index) {
                page.overwritten.push((index, now));
            }
        }
        if !leaf && new & 1 != 0 {
            let pointed = Pointed { table: new & 0x000f_ffff_ffff_f000, since: now, event };
            let place = gpa.0 >> 3;
            if self.pointed.get(&place).is_none_or(|known| known.table != pointed.table) {
                self.pointed.insert(place, pointed);
            }
        }
    }

    /// When an entry of an unsync page's table was overwritten first since the freeze.
    #[must_use]
    pub fn overwritten(&self, sp: Sp, index: u16) -> Option<u64> {
        let page = self.pages.get(&sp.0)?;
        page.overwritten.iter().find(|(at, _)| *at == index).map(|(_, when)| *when)
    }

    /// Since when the path over these entries has existed, and by which event; `None`: always.
    #[must_use]
    pub fn pointed(&self, entries: &[Gpa]) -> Option<(u64, u64)> {
        let known = entries.iter().filter_map(|at| self.pointed.get(&(at.0 >> 3)));
        known.map(|pointed| (pointed.since, pointed.event)).max()
    }

    /// The guest's table under an unsync page as it was at its freeze.
    #[must_use]
    pub fn snapshot(&self, sp: Sp) -> Option<(u64, &[u64; 512])> {
        let page = self.pages.get(&sp.0)?;
        Some((page.gfn, page.snapshot.as_deref()?))
    }

    /// The oldest frozen stamp below a root; `None`: all live.
    #[must_use]
    pub fn root_stamp(&self, root: Sp) -> Option<u64> {
        // A recording shows no links: each page stands for itself.
        if self.links == 0 {
            return self.pages.get(&root.0)?.stamp();
        }
        let mut oldest = None;
        for sp in &self.unsync {
            let Some(stamp) = self.pages.get(sp).and_then(Page::stamp) else { continue };
            // The way up is asked for only where the answer matters.
            if oldest.is_none_or(|oldest| stamp < oldest) && self.reaches(*sp, root.0, 5) {
                oldest = Some(stamp);
            }
        }
        oldest
    }

    /// Whether `sp` lies below `root`, at most `depth` links up.
    fn reaches(&self, sp: u32, root: u32, depth: u32) -> bool {
        sp == root
            || depth > 0
                && self.pages.get(&sp).is_some_and(|page| {
                    page.parents.iter().any(|(up, _)| self.reaches(*up, root, depth - 1))
                })
    }

    /// The stamp of the leaf entry that translates an address below a root, if it is frozen.
    #[must_use]
    pub fn frozen_entry(&self, root: Sp, gva: u64) -> Option<u64> {
        if self.unsync.is_empty() {
            return None;
        }
        let mut sp = root.0;
        loop {
            let page = self.pages.get(&sp)?;
            let level = page.level;
            if !(1..=5).contains(&level) {
                return None;
            }
            let index = (gva >> (12 + 9 * (u32::from(level) - 1)) & 511) as u16;
            match page.link(index) {
                Some(link) if level > 1 => sp = link.child,
                _ => {
                    page.made(index)?;
                    return self.entry(Sp(sp), index).0;
                }
            }
            if self.pages.get(&sp)?.level >= level {
                return None;
            }
        }
    }
}
