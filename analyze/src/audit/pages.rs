//! Which shadow roots may hold translations that the guest has changed since.
//!
//! A recording shows when a shadow page turns unsync, is synced or dies, and when a root is synced as
//! a whole; it seldom shows which page lies below which root. So a page that turns unsync may lie
//! below every root known at that instant, until it is synced itself or the root is ("roots that
//! survive a sync are live", DESIGN section 4). A root is known by the guest table it shadows.
//!
//! The oracle is told of one page for each root, which stands for all below it.

use rustc_hash::FxHashMap;
use tlbscope_trace::act::Act;
use tlbscope_trace::addr::Sp;

/// Entries of a standing page: one for each half of the canonical addresses, and one that no
/// address of 4-level paging reaches, so that the page stays as old as its freeze.
const ENTRIES: [u16; 3] = [0, 511, 256];
/// The level at which the two halves are two entries.
const LEVEL: u8 = 5;

#[derive(Clone, Debug)]
struct Root {
    stands: Sp,
    /// Unsync pages that may lie below.
    unsync: Vec<Sp>,
    /// vCPUs that used it, modulo 64.
    users: u64,
}

/// The roots that the recording's guests used.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// In the order of their making: what the oracle is told never depends on a hash.
    roots: Vec<Root>,
    places: FxHashMap<u64, usize>,
}

impl Pages {
    /// The page that stands for the root of this guest table; `tell` is the oracle's ear.
    pub fn used(&mut self, table: u64, vcpu: usize, mut tell: impl FnMut(Act)) -> Sp {
        let place = *self.places.entry(table).or_insert(self.roots.len());
        if place == self.roots.len() {
            let stands = Sp(place as u32);
            tell(Act::SpNew { sp: stands, gfn: table >> 12, level: LEVEL, role: 0 });
            for index in ENTRIES {
                tell(Act::SpteSet { sp: stands, index });
            }
            self.roots.push(Root { stands, unsync: Vec::new(), users: 0 });
        }
        let root = &mut self.roots[place];
        root.users |= 1 << (vcpu % 64);
        root.stands
    }

    /// A page turns unsync: everything that may lead to it freezes.
    pub fn turned_unsync(&mut self, page: Sp, mut tell: impl FnMut(Act)) {
        for root in &mut self.roots {
            if root.unsync.is_empty() {
                tell(Act::SpUnsync { sp: root.stands });
            }
            if !root.unsync.contains(&page) {
                root.unsync.push(page);
            }
        }
    }

    /// A page is in sync again, or gone.
    pub fn settled(&mut self, page: Sp, mut tell: impl FnMut(Act)) {
        for root in &mut self.roots {
            let Some(place) = root.unsync.iter().position(|other| *other == page) else { continue };
            root.unsync.swap_remove(place);
            if root.unsync.is_empty() {
                tell(Act::SpSync { sp: root.stands, changed: true });
            }
        }
    }

    /// The root of this table was synced.
    pub fn synced(&mut self, table: u64, mut tell: impl FnMut(Act)) {
        if let Some(place) = self.places.get(&table) {
            thaw(&mut self.roots[*place], &mut tell);
        }
    }

    /// The cached roots of a vCPU that survive are in sync.
    pub fn synced_cached(&mut self, current: u64, vcpu: usize, mut tell: impl FnMut(Act)) {
        let current = self.places.get(&current).copied();
        for (place, root) in self.roots.iter_mut().enumerate() {
            if Some(place) != current && root.users >> (vcpu % 64) & 1 == 1 {
                thaw(root, &mut tell);
            }
        }
    }

    /// The leaf that translates an address below this root was dropped.
    pub fn dropped(&mut self, table: u64, gva: u64, mut tell: impl FnMut(Act)) {
        let Some(place) = self.places.get(&table) else { return };
        let root = &self.roots[*place];
        if !root.unsync.is_empty() {
            let index = (gva >> 48 & 511) as u16;
            tell(Act::SpteSet { sp: root.stands, index });
        }
    }
}

fn thaw(root: &mut Root, tell: &mut impl FnMut(Act)) {
    if !root.unsync.is_empty() {
        root.unsync.clear();
        tell(Act::SpSync { sp: root.stands, changed: true });
    }
}
