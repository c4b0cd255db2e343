//! Shadow pages: the arena, the hash by guest frame, reverse maps and parent links. No policy here.

use rustc_hash::FxHashMap;
use tlbscope_trace::addr::{Gpa, Hpa, PAGE_BYTES, Sp};

use super::role::Role;

/// Entries of a shadow page.
pub const ENTRIES: usize = 512;

/// A shadow page-table entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Spte {
    /// Not present.
    #[default]
    None,
    /// Points at another shadow page.
    Link(Sp),
    /// Maps a 4 KiB frame.
    Leaf(Leaf),
}

/// A leaf SPTE: rights as the hardware will use them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Leaf {
    /// Guest frame.
    pub gpa: Gpa,
    /// Host frame.
    pub hpa: Hpa,
    /// Writable: R/W of the guest's path and its dirty bit, or the WP=0 trick.
    pub write: bool,
    /// User.
    pub user: bool,
    /// No execute.
    pub xd: bool,
}

/// A page of the shadow tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Page {
    /// The guest table behind it, or for direct pages the first frame it maps.
    pub gfn: u64,
    /// Its role.
    pub role: Role,
    /// Its entries; empty until there is one, and once it is zapped.
    sptes: Vec<Spte>,
    /// The guest may write its table without an exit.
    pub unsync: bool,
    /// The guest wrote it while it was not write-protected.
    pub unprotected: bool,
    /// Who points at it.
    pub parents: Vec<(Sp, u16)>,
    /// Zapped: never found again.
    pub dead: bool,
    /// Stands for a PAE root: in no hash, not cacheable.
    pub special: bool,
}

/// What is found under the number of a page that is forgotten.
static GONE: Page = Page {
    gfn: u64::MAX,
    role: Role(1),
    sptes: Vec::new(),
    unsync: false,
    unprotected: false,
    parents: Vec::new(),
    dead: true,
    special: false,
};

/// Pages that are kept and forgotten together.
const CHUNK: usize = 256;
/// Zapped pages after which it is worth looking for chunks to forget.
const MANY: u32 = 4 * CHUNK as u32;

/// All shadow pages of a VM. They are numbered in the order in which they are made; the numbers of zapped
/// ones are not given again.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ShadowPages {
    /// By number, [`CHUNK`] at a time; a chunk of which every page is forgotten is empty.
    chunks: Vec<Vec<Page>>,
    /// How many were made.
    made: u32,
    /// How many were zapped since chunks were forgotten last.
    killed: u32,
    #[serde(with = "tlbscope_trace::state::map")]
    by_gfn: FxHashMap<u64, Vec<Sp>>,
    /// Leaf SPTEs by guest frame.
    #[serde(with = "tlbscope_trace::state::map")]
    rmap: FxHashMap<u64, Vec<(Sp, u16)>>,
    /// Unsync pages, sorted.
    unsync: Vec<Sp>,
    /// Guest frames that leaf SPTEs no longer map as they did, if anyone asks: see
    /// [`ShadowPages::take_lost`].
    lost: Option<Vec<u64>>,
    /// Zapped pages that are not freed yet; kept while somebody reads without a lock.
    zapped: Vec<Sp>,
    /// Freed pages, and those whose memory a page has that was made since; kept as long.
    freed: Vec<(Sp, Option<Sp>)>,
}

/// First byte of the simulated host memory that shadow pages and EPT roots live in.
pub const TABLES_BASE: u64 = 1 << 44;

impl ShadowPages {
    /// The page.
    #[must_use]
    pub fn page(&self, sp: Sp) -> &Page {
        let chunk = self.chunks.get(sp.0 as usize / CHUNK);
        chunk.and_then(|chunk| chunk.get(sp.0 as usize % CHUNK)).unwrap_or(&GONE)
    }

    /// The same, to change it; `None`: it is forgotten.
    fn page_mut(&mut self, sp: Sp) -> Option<&mut Page> {
        self.chunks.get_mut(sp.0 as usize / CHUNK)?.get_mut(sp.0 as usize % CHUNK)
    }

    /// The entry.
    #[must_use]
    pub fn spte(&self, sp: Sp, index: u16) -> Spte {
        self.page(sp).sptes.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// The page's own address.
    #[must_use]
    pub fn hpa(sp: Sp) -> Hpa {
        Hpa(TABLES_BASE + u64::from(sp.0) * PAGE_BYTES)
    }

    /// Live pages that shadow the guest table at `gfn`.
    pub fn shadowing(&self, gfn: u64) -> impl Iterator<Item = Sp> + '_ {
        let pages = self.by_gfn.get(&gfn).map_or(&[][..], Vec::as_slice);
        pages.iter().copied().filter(|sp| !self.page(*sp).role.direct())
    }

    /// A live page for this frame with this very role, but for the bits that a defect ignores.
    #[must_use]
    pub fn find(&self, gfn: u64, role: Role, ignored: u32) -> Option<Sp> {
        let fits = |sp: &Sp| (self.page(*sp).role.0 ^ role.0) & !ignored == 0;
        self.by_gfn.get(&gfn)?.iter().copied().find(fits)
    }

    /// A new page.
    pub fn create(&mut self, gfn: u64, role: Role, special: bool) -> Sp {
        let sp = Sp(self.made);
        self.made += 1;
        let page = Page { gfn, role, special, dead: false, ..GONE.clone() };
        match self.chunks.last_mut() {
            Some(chunk) if !(sp.0 as usize).is_multiple_of(CHUNK) => chunk.push(page),
            _ => self.chunks.push(vec![page]),
        }
        if !special {
            self.by_gfn.entry(gfn).or_default().push(sp);
        }
        if let Some((_, tenant)) = self.freed.iter_mut().find(|(_, tenant)| tenant.is_none()) {
            *tenant = Some(sp);
        }
        sp
    }

    /// A page was zapped that somebody may be reading.
    pub fn leave(&mut self, sp: Sp) {
        self.zapped.push(sp);
    }

    /// The pages that were left so are freed: they, in the order of their zapping.
    pub fn free_zapped(&mut self) -> Vec<Sp> {
        self.freed.extend(self.zapped.iter().map(|sp| (*sp, None)));
        std::mem::take(&mut self.zapped)
    }

    /// Nobody reads any more: whose memory a page has is without meaning from here on.
    pub fn forget_freed(&mut self) {
        self.freed.clear();
    }

    /// The page that stands in the memory of this one now: itself, unless it was freed and another made
    /// there.
    #[must_use]
    pub fn stands_in(&self, sp: Sp) -> Sp {
        let mut now = sp;
        // A page that has another's memory was made after it: the chain goes upwards.
        while let Some((_, Some(tenant))) = self.freed.iter().find(|(freed, _)| *freed == now) {
            now = *tenant;
        }
        now
    }

    /// Writes an entry and keeps parents and reverse maps in step. Returns what stood there.
    pub fn set(&mut self, sp: Sp, index: u16, new: Spte) -> Spte {
        let Some(old) = self.replace(sp, index, new) else { return Spte::None };
        if self.lost.is_some() && old != new {
            self.note_lost(old);
        }
        if let (Spte::Leaf(was), Spte::Leaf(leaf)) = (old, new)
            && was.gpa.0 / PAGE_BYTES == leaf.gpa.0 / PAGE_BYTES
        {
            // Other rights: it maps the same frame from the same place.
            return old;
        }
        match old {
            Spte::Link(child) => {
                if let Some(child) = self.page_mut(child) {
                    child.parents.retain(|p| *p != (sp, index));
                }
            }
            Spte::Leaf(leaf) => {
                if let Some(list) = self.rmap.get_mut(&(leaf.gpa.0 / PAGE_BYTES)) {
                    list.retain(|p| *p != (sp, index));
                }
            }
            Spte::None => {}
        }
        match new {
            Spte::Link(child) => {
                if let Some(child) = self.page_mut(child) {
                    child.parents.push((sp, index));
                }
            }
            Spte::Leaf(leaf) => {
                self.rmap.entry(leaf.gpa.0 / PAGE_BYTES).or_default().push((sp, index));
            }
            Spte::None => {}
        }
        old
    }

    /// Writes an entry alone. `None`: the page is forgotten.
    fn replace(&mut self, sp: Sp, index: u16, new: Spte) -> Option<Spte> {
        let page = self.page_mut(sp)?;
        if page.sptes.is_empty() {
            if new == Spte::None {
                return Some(Spte::None);
            }
            page.sptes.resize(ENTRIES, Spte::None);
        }
        Some(std::mem::replace(&mut page.sptes[usize::from(index)], new))
    }

    /// From here on [`ShadowPages::take_lost`] knows which frames lost a mapping.
    pub fn track_lost(&mut self) {
        self.lost = Some(Vec::new());
    }

    /// The guest frames whose leaf SPTEs changed or went since the last call, links to whole tables
    /// counted with all that lies below.
    pub fn take_lost(&mut self) -> Vec<u64> {
        self.lost.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note_lost(&mut self, old: Spte) {
        let mut below = vec![old];
        while let Some(spte) = below.pop() {
            match spte {
                Spte::None => {}
                Spte::Leaf(leaf) => {
                    self.lost.get_or_insert_default().push(leaf.gpa.0 / PAGE_BYTES);
                }
                // A table is no ancestor of itself: levels go down with every link.
                Spte::Link(child) => {
                    let present = self.page(child).sptes.iter().filter(|s| **s != Spte::None);
                    below.extend(present);
                }
            }
        }
    }

    /// Leaf SPTEs that map this guest frame.
    #[must_use]
    pub fn mapping(&self, gfn: u64) -> Vec<(Sp, u16)> {
        self.rmap.get(&gfn).cloned().unwrap_or_default()
    }

    /// Marks a page unsync or synced.
    pub fn set_unsync(&mut self, sp: Sp, unsync: bool) {
        let Some(page) = self.page_mut(sp) else { return };
        if page.unsync == unsync {
            return;
        }
        page.unsync = unsync;
        page.unprotected = unsync;
        match self.unsync.binary_search(&sp) {
            Ok(place) if !unsync => drop(self.unsync.remove(place)),
            Err(place) if unsync => self.unsync.insert(place, sp),
            _ => {}
        }
    }

    /// Takes a page out of the hash; its entries and links are the caller's to clear.
    pub fn kill(&mut self, sp: Sp) {
        self.set_unsync(sp, false);
        let Some(page) = self.page_mut(sp) else { return };
        page.dead = true;
        if page.sptes.iter().all(|spte| *spte == Spte::None) {
            page.sptes = Vec::new();
        }
        let gfn = page.gfn;
        if let Some(list) = self.by_gfn.get_mut(&gfn) {
            list.retain(|s| *s != sp);
            if list.is_empty() {
                self.by_gfn.remove(&gfn);
            }
        }
        self.killed += 1;
    }

    /// Whether so many pages were zapped that some can be [forgotten](Self::forget).
    #[must_use]
    pub const fn crowded(&self) -> bool {
        self.killed >= MANY
    }

    /// Forgets zapped pages, a chunk at a time, but for those that are `used`. A walk that still comes
    /// to one, through a cached entry, finds nothing there, as it did before: a page is emptied when it
    /// is zapped.
    pub fn forget(&mut self, used: impl Fn(Sp) -> bool) {
        self.killed = 0;
        let kept = |sp: Sp| self.zapped.contains(&sp) || self.freed.iter().any(|f| f.0 == sp);
        let whole = self.made as usize / CHUNK;
        for (n, chunk) in self.chunks.iter_mut().enumerate().take(whole) {
            let sp = |at: usize| Sp((n * CHUNK + at) as u32);
            let gone = |(at, page): (usize, &Page)| {
                page.dead && page.sptes.is_empty() && !used(sp(at)) && !kept(sp(at))
            };
            if chunk.iter().enumerate().all(gone) {
                *chunk = Vec::new();
            }
        }
    }

    /// Unsync pages below (and with) `root`, in the order of their numbers.
    #[must_use]
    pub fn unsync_below(&self, root: Sp) -> Vec<Sp> {
        self.unsync.iter().copied().filter(|sp| self.reaches(root, *sp)).collect()
    }

    /// Whether `page` is `root` or hangs below it.
    fn reaches(&self, root: Sp, page: Sp) -> bool {
        let mut seen = Vec::new();
        let mut open = vec![page];
        while let Some(sp) = open.pop() {
            if sp == root {
                return true;
            }
            for (parent, _) in &self.page(sp).parents {
                if !seen.contains(parent) {
                    seen.push(*parent);
                    open.push(*parent);
                }
            }
        }
        false
    }

    /// The leaf SPTE that the hardware's walk of `gva` finds below `root`, if the path is present.
    #[must_use]
    pub fn walk(&self, root: Sp, gva: u64) -> Option<(Sp, u16, Leaf)> {
        let mut sp = root;
        loop {
            let index = index(gva, self.page(sp).role.level());
            match self.spte(sp, index) {
                Spte::None => return None,
                Spte::Leaf(leaf) => return Some((sp, index, leaf)),
                Spte::Link(child) => sp = child,
            }
        }
    }

    /// No page that lives is found again: each is of an obsolete generation.
    pub fn hide_all(&mut self) {
        self.by_gfn.clear();
    }

    /// The number of the next page.
    #[must_use]
    pub fn next(&self) -> Sp {
        Sp(self.made)
    }

    /// Pages in memory, zapped ones among them.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    /// Numbers of all pages that live.
    pub fn live(&self) -> impl Iterator<Item = Sp> + '_ {
        (0..).zip(&self.chunks).flat_map(|(n, chunk)| {
            let pages = (n * CHUNK as u32..).map(Sp).zip(chunk);
            pages.filter(|(_, page)| !page.dead).map(|(sp, _)| sp)
        })
    }
}

/// Index of `gva` in a shadow page of this level: 9 bits a level, whatever the guest's format.
#[must_use]
pub const fn index(gva: u64, level: u8) -> u16 {
    ((gva >> (12 + 9 * (level as u32 - 1))) & 511) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(frame: u64) -> Spte {
        Spte::Leaf(Leaf { gpa: Gpa(frame * PAGE_BYTES), ..Leaf::default() })
    }

    #[test]
    fn zapped_pages_are_forgotten_by_chunks_that_nobody_uses() {
        let mut pages = ShadowPages::default();
        let all: Vec<Sp> =
            (0..3 * CHUNK as u64 + 5).map(|gfn| pages.create(gfn, Role(1), false)).collect();
        let (lives, root) = (all[CHUNK + 7], all[2 * CHUNK]);
        for sp in all.iter().filter(|sp| **sp != lives) {
            pages.set(*sp, 3, leaf(9));
            pages.set(*sp, 3, Spte::None);
            pages.kill(*sp);
        }
        assert!(!pages.crowded(), "fewer than are worth the search");
        pages.set(lives, 3, leaf(9));
        pages.forget(|sp| sp == root);
        let sizes: Vec<usize> = pages.chunks.iter().map(Vec::len).collect();
        assert_eq!(sizes, [0, CHUNK, CHUNK, 5], "the last chunk is not yet full");
        assert_eq!(pages.spte(lives, 3), leaf(9));
        assert_eq!(pages.mapping(9), [(lives, 3)]);
        assert_eq!((pages.page(root).dead, pages.page(root).gfn), (true, 2 * CHUNK as u64));
        // A walk that comes to a forgotten page finds nothing, and nothing can be put there.
        assert!(pages.page(all[0]).dead);
        assert_eq!(pages.spte(all[0], 3), Spte::None);
        assert_eq!(pages.set(all[0], 3, leaf(8)), Spte::None);
        assert_eq!((pages.spte(all[0], 3), pages.mapping(8)), (Spte::None, Vec::new()));
        assert_eq!(pages.live().collect::<Vec<_>>(), [lives]);
        assert_eq!(pages.find(0, Role(1), 0), None);
        // No number is given again.
        assert_eq!(pages.create(0, Role(1), false), Sp(3 * CHUNK as u32 + 5));
    }

    #[test]
    fn a_page_with_entries_or_a_reader_is_kept() {
        let mut pages = ShadowPages::default();
        let all: Vec<Sp> =
            (0..2 * CHUNK as u64).map(|gfn| pages.create(gfn, Role(1), false)).collect();
        pages.set(all[1], 0, leaf(4));
        for sp in &all {
            pages.kill(*sp);
        }
        pages.leave(all[CHUNK]);
        pages.forget(|_| false);
        assert_eq!(pages.spte(all[1], 0), leaf(4), "the caller has not cleared it");
        assert_eq!(pages.chunks[1].len(), CHUNK, "somebody may be reading it");
        pages.free_zapped();
        pages.forget(|_| false);
        assert_eq!(pages.chunks[1].len(), CHUNK, "it is told whose memory it has");
        pages.forget_freed();
        pages.set(all[1], 0, Spte::None);
        pages.forget(|_| false);
        assert!(pages.chunks[1].is_empty());
        assert_eq!(pages.page(all[1]).gfn, 1, "its entries went after it was zapped");
    }

    #[test]
    fn unsync_pages_below_a_root_come_in_the_order_of_their_numbers() {
        let mut pages = ShadowPages::default();
        let [root, other, a, b] = [4, 4, 1, 1].map(|level| pages.create(0, Role(level), false));
        for sp in [b, a] {
            pages.set_unsync(sp, true);
            pages.set_unsync(sp, true);
        }
        assert!(pages.unsync_below(root).is_empty(), "neither hangs below it");
        pages.set(root, 0, Spte::Link(b));
        pages.set(root, 1, Spte::Link(a));
        assert_eq!(pages.unsync_below(root), [a, b]);
        assert!(pages.unsync_below(other).is_empty());
        pages.set_unsync(a, false);
        assert_eq!(pages.unsync_below(root), [b]);
        pages.kill(b);
        assert!(pages.unsync_below(root).is_empty());
    }
}
