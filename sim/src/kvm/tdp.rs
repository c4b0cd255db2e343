//! EPT and NPT roots: one tree for each role, shared by the vCPUs of the VM (facts/kvm.md 7.1, 7.3).

use rustc_hash::FxHashMap;
use tlbscope_trace::addr::{Hpa, PAGE_BYTES};

use super::role::Role;

/// Where the pages of two-dimensional roots lie, apart from shadow pages.
const ROOTS_BASE: u64 = 1 << 45;

/// One tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its role.
    pub role: Role,
    /// Its root page: the EP4TA or nested CR3.
    pub hpa: Hpa,
    /// Root slots of vCPUs that hold it.
    pub users: u32,
    /// Guest frame to host frame.
    pub map: FxHashMap<u64, Hpa>,
    /// No vCPU may find it again.
    pub invalid: bool,
}

/// All trees of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trees {
    trees: Vec<Tree>,
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

    /// The tree of this role, made if there is none; counts one more user.
    pub fn take(&mut self, role: Role) -> Hpa {
        if let Some(tree) = self.trees.iter_mut().find(|t| t.role == role && !t.invalid) {
            tree.users += 1;
            return tree.hpa;
        }
        let hpa = Hpa(ROOTS_BASE + self.trees.len() as u64 * PAGE_BYTES);
        self.trees.push(Tree { role, hpa, users: 1, map: FxHashMap::default(), invalid: false });
        hpa
    }

    /// One user less; the last one takes the tree with it unless the VM holds a reference.
    pub fn put(&mut self, hpa: Hpa, vm_holds: bool) {
        if let Some(tree) = self.get_mut(hpa) {
            tree.users = tree.users.saturating_sub(1);
            if tree.users == 0 && (!vm_holds || tree.invalid) {
                tree.invalid = true;
                tree.map = FxHashMap::default();
            }
        }
    }

    /// Invalidates every tree (zap-all).
    pub fn invalidate_all(&mut self) {
        for tree in &mut self.trees {
            tree.invalid = true;
            tree.map.clear();
        }
    }

    /// Forgets what these frames map to, in every tree. True if something was mapped.
    pub fn zap(&mut self, first: u64, frames: u64) -> bool {
        let mut any = false;
        for tree in &mut self.trees {
            if frames > tree.map.len() as u64 {
                let before = tree.map.len();
                tree.map.retain(|gfn, _| !(first..first + frames).contains(gfn));
                any |= tree.map.len() != before;
            } else {
                for gfn in first..first + frames {
                    any |= tree.map.remove(&gfn).is_some();
                }
            }
        }
        any
    }
}
