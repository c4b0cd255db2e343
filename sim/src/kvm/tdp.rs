//! EPT and NPT roots: one tree for each role, shared by the vCPUs of the VM (facts/kvm.md 7.1, 7.3).

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tlbscope_trace::addr::{Hpa, PAGE_BYTES};

use super::role::Role;

/// Where the pages of two-dimensional roots lie, apart from shadow pages.
const ROOTS_BASE: u64 = 1 << 45;

/// One tree.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tree {
    /// Its role.
    pub role: Role,
    /// Its root page: the EP4TA or nested CR3.
    pub hpa: Hpa,
    /// Root slots of vCPUs that hold it.
    pub users: u32,
    /// Guest frame to host frame.
    #[serde(with = "tlbscope_trace::state::map")]
    pub map: FxHashMap<u64, Hpa>,
    /// Huge SPTEs: (log2 of the size, page number at that size) to the first host frame.
    #[serde(with = "tlbscope_trace::state::map")]
    huge: FxHashMap<(u32, u64), Hpa>,
    /// No vCPU may find it again.
    pub invalid: bool,
    /// A zap of all roots that is under way holds a reference: its SPTEs stay until it ends.
    held: bool,
    /// Its last user handed it to the worker: its SPTEs stay until that comes to it.
    queued: bool,
}

/// What becomes of a tree that nobody uses any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    /// It stays: the VM holds a reference.
    Stays,
    /// It is zapped at once and its root page freed.
    Zapped,
    /// No vCPU finds it again; a worker zaps and frees it.
    Queued,
}

impl Tree {
    /// The host frame behind a guest frame.
    #[must_use]
    pub fn frame(&self, gfn: u64) -> Option<Hpa> {
        if let Some(hpa) = self.map.get(&gfn) {
            return Some(*hpa);
        }
        if self.huge.is_empty() {
            return None;
        }
        [21, 30].into_iter().find_map(|shift: u32| {
            let base = self.huge.get(&(shift, gfn >> (shift - 12)))?;
            Some(Hpa(base.0 + (gfn & ((1 << (shift - 12)) - 1)) * PAGE_BYTES))
        })
    }

    /// Maps the block of 2^`shift` bytes around a frame; `hpa` backs the frame itself.
    pub fn insert(&mut self, gfn: u64, hpa: Hpa, shift: u32) {
        if shift == 12 {
            self.map.insert(gfn, hpa);
            return;
        }
        let offset = (gfn & ((1 << (shift - 12)) - 1)) * PAGE_BYTES;
        self.huge.insert((shift, gfn >> (shift - 12)), Hpa(hpa.0 - offset));
    }

    fn split(&mut self, gfn: u64) -> bool {
        let Some(shift) =
            [30u32, 21].into_iter().find(|s| self.huge.contains_key(&(*s, gfn >> (s - 12))))
        else {
            return false;
        };
        let key = (shift, gfn >> (shift - 12));
        if let Some(base) = self.huge.remove(&key) {
            let first = key.1 << (shift - 12);
            let small =
                (0..1u64 << (shift - 12)).map(|n| (first + n, Hpa(base.0 + n * PAGE_BYTES)));
            self.map.extend(small);
        }
        true
    }

    /// Clears every SPTE that reaches into `first..end`; true if there was one.
    fn zap(&mut self, first: u64, end: u64) -> bool {
        let before = self.map.len() + self.huge.len();
        self.huge.retain(|(shift, page), _| {
            let from = page << (shift - 12);
            from >= end || from + (1 << (shift - 12)) <= first
        });
        if end - first > self.map.len() as u64 {
            self.map.retain(|gfn, _| !(first..end).contains(gfn));
        } else {
            for gfn in first..end {
                self.map.remove(&gfn);
            }
        }
        self.map.len() + self.huge.len() != before
    }
}

/// All trees of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trees {
    trees: Vec<Tree>,
    /// Root pages without a tree, in the order in which they were freed.
    freed: VecDeque<Hpa>,
}

impl Trees {
    /// The tree with this root page.
    pub fn get(&self, hpa: Hpa) -> Option<&Tree> {
        self.trees.get(usize::try_from((hpa.0.checked_sub(ROOTS_BASE)?) / PAGE_BYTES).ok()?)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, hpa: Hpa) -> Option<&mut Tree> {
        self.trees.get_mut(usize::try_from((hpa.0.checked_sub(ROOTS_BASE)?) / PAGE_BYTES).ok()?)
    }

    /// The tree of this role, made if there is none; counts one more user. True if it was made, in a page
    /// that may have been another tree's root.
    pub fn take(&mut self, role: Role) -> (Hpa, bool) {
        if let Some(tree) = self.trees.iter_mut().find(|t| t.role == role && !t.invalid) {
            tree.users += 1;
            return (tree.hpa, false);
        }
        let hpa = match self.spare() {
            Some(hpa) => hpa,
            None => Hpa(ROOTS_BASE + self.trees.len() as u64 * PAGE_BYTES),
        };
        let (map, huge) = Default::default();
        let (invalid, held, queued) = (false, false, false);
        let tree = Tree { role, hpa, users: 1, map, huge, invalid, held, queued };
        match self.get_mut(hpa) {
            Some(dead) => *dead = tree,
            None => self.trees.push(tree),
        }
        (hpa, true)
    }

    /// The page that was freed first, if another was since: a root page is freed after a grace period,
    /// so that the next root never gets the page of the last one.
    fn spare(&mut self) -> Option<Hpa> {
        (self.freed.len() > 1).then(|| self.freed.pop_front())?
    }

    /// One user less; what the last one does with the tree. True if it went to the worker.
    pub fn put(&mut self, hpa: Hpa, unused: Unused) -> bool {
        let Some(tree) = self.get_mut(hpa).filter(|tree| tree.users > 0) else { return false };
        tree.users -= 1;
        if tree.users > 0 || tree.held || unused == Unused::Stays && !tree.invalid {
            return false;
        }
        // One that a zap of all roots went over holds nothing any more.
        let queue = unused == Unused::Queued && !tree.invalid;
        tree.invalid = true;
        if queue {
            tree.queued = true;
            return true;
        }
        tree.map = FxHashMap::default();
        tree.huge = FxHashMap::default();
        self.freed.push_back(hpa);
        false
    }

    /// The worker zaps and frees what was handed to it.
    pub fn work(&mut self) {
        for tree in self.trees.iter_mut().filter(|tree| tree.queued) {
            tree.queued = false;
            tree.map.clear();
            tree.huge.clear();
            self.freed.push_back(tree.hpa);
        }
    }

    /// Invalidates every tree (zap-all): no vCPU finds it again, and its SPTEs are still there.
    pub fn invalidate_all(&mut self) {
        for tree in self.trees.iter_mut().filter(|tree| !tree.invalid) {
            (tree.invalid, tree.held) = (true, true);
        }
    }

    /// The SPTEs of the trees that were invalidated go: guest and host frames of the small ones, in
    /// order.
    pub fn zap_invalid(&mut self) -> Vec<(u64, Hpa)> {
        let mut gone = Vec::new();
        for tree in self.trees.iter_mut().filter(|tree| tree.held) {
            tree.held = false;
            if tree.users == 0 {
                self.freed.push_back(tree.hpa);
            }
            gone.extend(tree.map.drain());
            tree.huge.clear();
        }
        gone.sort_unstable();
        gone
    }

    /// Another frame is behind the SPTEs of this one.
    pub fn point(&mut self, gfn: u64, hpa: Hpa) {
        for frame in self.trees.iter_mut().filter_map(|tree| tree.map.get_mut(&gfn)) {
            *frame = hpa;
        }
    }

    /// [`Trees::zap`] of a walk that passes by the trees that were invalidated.
    pub fn zap_valid(&mut self, first: u64, frames: u64) -> bool {
        let valid = self.trees.iter_mut().filter(|tree| !tree.invalid);
        valid.fold(false, |any, tree| tree.zap(first, first + frames) | any)
    }

    /// Forgets what these frames map to, in every tree. True if something was mapped; what only a root
    /// maps that is invalid counts `also_invalid`.
    pub fn zap(&mut self, first: u64, frames: u64, also_invalid: bool) -> bool {
        let mut any = false;
        for tree in &mut self.trees {
            any |= tree.zap(first, first + frames) && (also_invalid || !tree.invalid);
        }
        any
    }

    /// The range, widened to the huge SPTEs that it meets: (first frame, how many).
    #[must_use]
    pub fn reach(&self, first: u64, frames: u64) -> (u64, u64) {
        let (mut from, mut end) = (first, first + frames);
        for (shift, page) in self.trees.iter().flat_map(|tree| tree.huge.keys()) {
            let base = page << (shift - 12);
            let above = base + (1 << (shift - 12));
            if base < first + frames && first < above {
                (from, end) = (from.min(base), end.max(above));
            }
        }
        (from, end - from)
    }

    /// Whether some tree maps a frame of the range.
    #[must_use]
    pub fn maps_any(&self, frames: &std::ops::Range<u64>) -> bool {
        self.trees.iter().any(|t| frames.clone().any(|gfn| t.frame(gfn).is_some()))
    }

    /// Breaks the huge SPTEs over this frame up. True if there were any.
    pub fn split(&mut self, gfn: u64) -> bool {
        self.trees.iter_mut().fold(false, |any, tree| tree.split(gfn) | any)
    }
}
