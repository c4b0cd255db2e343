//! What backs guest memory: HPA = GPA until the host takes a page away; then a fresh page. Here is
//! the host's state; what it does is in `hostops`.

use rustc_hash::{FxHashMap, FxHashSet};
use tlbscope_trace::addr::{Hpa, PAGE_BYTES};

/// Fresh pages come from here, above all guest memory and below the hypervisor's tables.
const FRESH_BASE: u64 = 1 << 43;

/// The host's side of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HostMemory {
    /// Frames whose backing is not the identity: another frame, or none.
    #[serde(with = "tlbscope_trace::state::map")]
    moved: FxHashMap<u64, Option<Hpa>>,
    #[serde(with = "tlbscope_trace::state::set")]
    read_only: FxHashSet<u64>,
    /// Frames that the dirty log returned and that were not written since.
    #[serde(with = "tlbscope_trace::state::set")]
    clean: FxHashSet<u64>,
    /// Frames whose accessed bits were cleared and that were not walked to since.
    #[serde(with = "tlbscope_trace::state::set")]
    aged: FxHashSet<u64>,
    /// Frames whose SPTEs had their dirty bits cleared outside a dirty log, and not set since.
    #[serde(with = "tlbscope_trace::state::set", default)]
    undirty: FxHashSet<u64>,
    /// Frames in no memory slot.
    #[serde(with = "tlbscope_trace::state::set")]
    holes: FxHashSet<u64>,
    /// Frames of huge pages: (log2 of the size, page number at that size).
    #[serde(with = "tlbscope_trace::state::set")]
    huge: FxHashSet<(u32, u64)>,
    fresh: u64,
}

impl HostMemory {
    /// The host frame that backs `gfn` now.
    #[must_use]
    pub fn backing(&self, gfn: u64) -> Option<Hpa> {
        self.moved.get(&gfn).copied().unwrap_or(Some(Hpa(gfn * PAGE_BYTES)))
    }

    /// The same; an unmapped frame gets a fresh page.
    pub fn back(&mut self, gfn: u64) -> Hpa {
        if let Some(hpa) = self.backing(gfn) {
            return hpa;
        }
        let hpa = self.allocate(1, 1);
        self.moved.insert(gfn, Some(hpa));
        hpa
    }

    /// Fresh host memory of this many pages, aligned to as many.
    pub fn allocate(&mut self, pages: u64, align: u64) -> Hpa {
        self.fresh = self.fresh.next_multiple_of(align.max(1));
        let hpa = Hpa(FRESH_BASE + self.fresh * PAGE_BYTES);
        self.fresh += pages;
        hpa
    }

    /// Backs a frame with this page.
    pub fn set(&mut self, gfn: u64, hpa: Hpa) {
        self.moved.insert(gfn, Some(hpa));
    }

    /// Takes the backing away.
    pub fn unmap(&mut self, gfn: u64) {
        self.moved.insert(gfn, None);
        self.read_only.remove(&gfn);
        self.clean.remove(&gfn);
        self.undirty.remove(&gfn);
        self.split(gfn);
    }

    /// Makes the backing read-only: the first write gets a copy.
    pub fn make_read_only(&mut self, gfn: u64) {
        self.read_only.insert(gfn);
    }

    /// Whether the backing is read-only.
    #[must_use]
    pub fn read_only(&self, gfn: u64) -> bool {
        !self.read_only.is_empty() && self.read_only.contains(&gfn)
    }

    /// The dirty log returned this frame. True if it was dirty.
    pub fn make_clean(&mut self, gfn: u64) -> bool {
        self.clean.insert(gfn)
    }

    /// Whether the dirty log waits for a write to this frame.
    #[must_use]
    pub fn clean(&self, gfn: u64) -> bool {
        !self.clean.is_empty() && self.clean.contains(&gfn)
    }

    /// The frame was written.
    pub fn dirtied(&mut self, gfn: u64) {
        if !self.clean.is_empty() {
            self.clean.remove(&gfn);
        }
        if !self.undirty.is_empty() {
            self.undirty.remove(&gfn);
        }
    }

    /// Clears the dirty bit of its SPTEs. True if it was set.
    pub fn clear_dirty(&mut self, gfn: u64) -> bool {
        self.undirty.insert(gfn)
    }

    /// Clears the accessed bit. True if it was set.
    pub fn age(&mut self, gfn: u64) -> bool {
        self.aged.insert(gfn)
    }

    /// A walk used the mapping of this frame. True if its accessed bit was clear.
    pub fn accessed(&mut self, gfn: u64) -> bool {
        !self.aged.is_empty() && self.aged.remove(&gfn)
    }

    /// Whether the accessed bit is clear.
    #[must_use]
    pub fn is_aged(&self, gfn: u64) -> bool {
        !self.aged.is_empty() && self.aged.contains(&gfn)
    }

    /// Whether a memory slot holds the frame.
    #[must_use]
    pub fn has_slot(&self, gfn: u64) -> bool {
        self.holes.is_empty() || !self.holes.contains(&gfn)
    }

    /// The slot of this frame goes or comes.
    pub fn set_slot(&mut self, gfn: u64, present: bool) {
        if present {
            self.holes.remove(&gfn);
        } else {
            self.holes.insert(gfn);
        }
    }

    /// log2 of the huge page that backs the frame, 12 if none does.
    #[must_use]
    pub fn shift(&self, gfn: u64) -> u32 {
        if self.huge.is_empty() {
            return 12;
        }
        [30, 21].into_iter().find(|s| self.huge.contains(&(*s, gfn >> (s - 12)))).unwrap_or(12)
    }

    /// A huge page backs the block of this size around the frame.
    pub fn collapse(&mut self, gfn: u64, shift: u32) {
        self.huge.insert((shift, gfn >> (shift - 12)));
    }

    /// The huge page around the frame is broken up. True if there was one.
    pub fn split(&mut self, gfn: u64) -> bool {
        let shift = self.shift(gfn);
        shift > 12 && self.huge.remove(&(shift, gfn >> (shift - 12)))
    }

    /// Whether the block of `frames` at `first` is backed by one aligned run of host memory.
    #[must_use]
    pub fn contiguous(&self, first: u64, frames: u64) -> bool {
        let Some(base) = self.backing(first) else { return false };
        base.0.is_multiple_of(frames * PAGE_BYTES)
            && (1..frames).all(|n| self.backing(first + n) == Some(Hpa(base.0 + n * PAGE_BYTES)))
    }
}
