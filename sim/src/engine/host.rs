//! What backs guest memory: HPA = GPA until the host takes a page away; then a fresh page.

use rustc_hash::FxHashMap;
use tlbscope_trace::addr::{Hpa, PAGE_BYTES};

/// Fresh pages come from here, above all guest memory and below the hypervisor's tables.
const FRESH_BASE: u64 = 1 << 43;

/// The host's side of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// Frames whose backing is not the identity: another frame, or none.
    moved: FxHashMap<u64, Option<Hpa>>,
    read_only: FxHashMap<u64, ()>,
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
        let hpa = Hpa(FRESH_BASE + self.fresh * PAGE_BYTES);
        self.fresh += 1;
        self.moved.insert(gfn, Some(hpa));
        hpa
    }

    /// Takes the backing away.
    pub fn unmap(&mut self, gfn: u64) {
        self.moved.insert(gfn, None);
        self.read_only.remove(&gfn);
    }

    /// Whether the guest may write the frame.
    #[must_use]
    pub fn writable(&self, gfn: u64) -> bool {
        !self.read_only.contains_key(&gfn)
    }
}
