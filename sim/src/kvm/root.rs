//! The active root and the cache of previous roots ("fast PGD switch", facts/kvm.md 2.4).

use tlbscope_trace::act::RootLookup;
use tlbscope_trace::addr::{Hpa, Sp};

use super::role::Role;

/// A root: what a CR3 value and a role were translated into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Root {
    /// The guest CR3 it was made for, PCID included; without meaning for direct roots.
    pub pgd: u64,
    /// The page.
    pub hpa: Hpa,
    /// The role it was made under.
    pub role: Role,
    /// Its shadow page; `None` under TDP.
    pub sp: Option<Sp>,
    /// A PAE root or the like: no backing page, never cached.
    pub special: bool,
    /// Invalidated by a zap-all.
    pub obsolete: bool,
}

/// Slots that the largest `prev-roots` of a policy may use.
pub const PREV_ROOTS_MAX: usize = 3;

/// One `struct kvm_mmu`, as far as roots go.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Mmu {
    /// The role that the next root must have.
    pub role: Role,
    /// The active root; `None`: invalid, LOAD at the next entry.
    pub root: Option<Root>,
    /// The cache, most recent first.
    pub prev: [Option<Root>; PREV_ROOTS_MAX],
}

impl Mmu {
    fn usable(root: Option<Root>, pgd: u64, role: Role) -> bool {
        root.is_some_and(|r| {
            !r.obsolete && !r.special && r.role == role && (role.direct() || r.pgd == pgd)
        })
    }

    /// Looks `pgd` up with a valid or invalid active root, in a cache of `slots` entries, and
    /// rotates: true LRU. The second result is the root that fell out.
    pub fn lookup(&mut self, pgd: u64, role: Role, slots: usize) -> (RootLookup, Option<Root>) {
        if Self::usable(self.root, pgd, role) {
            return (RootLookup::Current, None);
        }
        let slots = slots.min(PREV_ROOTS_MAX);
        let hit = self.prev[..slots].iter().position(|p| Self::usable(*p, pgd, role));
        let Some(current) = self.root else {
            let Some(i) = hit else { return (RootLookup::Miss, None) };
            self.root = self.prev[i];
            self.prev[i..slots].rotate_left(1);
            self.prev[slots - 1] = None;
            return (RootLookup::Prev(i as u8), None);
        };
        match hit {
            Some(i) => {
                self.root = self.prev[i];
                self.prev[..=i].rotate_right(1);
                self.prev[0] = Some(current);
                (RootLookup::Prev(i as u8), None)
            }
            None => {
                self.root = None;
                if slots == 0 {
                    return (RootLookup::Miss, Some(current));
                }
                let out = self.prev[slots - 1];
                self.prev[..slots].rotate_right(1);
                self.prev[0] = Some(current);
                (RootLookup::Miss, out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(pgd: u64) -> Root {
        let (hpa, role) = (Hpa(pgd | 1 << 40), Role(4));
        Root { pgd, hpa, role, sp: None, special: false, obsolete: false }
    }

    /// The table of facts 2.4: C, [p0, p1, p2].
    #[test]
    fn rotates_as_lru() {
        let mmu = Mmu {
            role: Role(4),
            root: Some(root(1)),
            prev: [Some(root(2)), Some(root(3)), Some(root(4))],
        };
        let pgds = |m: &Mmu| [m.root, m.prev[0], m.prev[1], m.prev[2]].map(|r| r.map(|r| r.pgd));
        for (pgd, slots, found, after, out) in [
            (1, 3, RootLookup::Current, [Some(1), Some(2), Some(3), Some(4)], None),
            (2, 3, RootLookup::Prev(0), [Some(2), Some(1), Some(3), Some(4)], None),
            (3, 3, RootLookup::Prev(1), [Some(3), Some(1), Some(2), Some(4)], None),
            (4, 3, RootLookup::Prev(2), [Some(4), Some(1), Some(2), Some(3)], None),
            (9, 3, RootLookup::Miss, [None, Some(1), Some(2), Some(3)], Some(4)),
            (9, 0, RootLookup::Miss, [None, Some(2), Some(3), Some(4)], Some(1)),
        ] {
            let mut m = mmu;
            assert_eq!(m.lookup(pgd, Role(4), slots), (found, out.map(root)), "pgd {pgd}");
            assert_eq!(pgds(&m), after, "pgd {pgd}");
        }
    }

    #[test]
    fn an_invalid_current_root_is_filled_from_the_cache() {
        let prev = [Some(root(2)), Some(root(3)), None];
        let mut m = Mmu { role: Role(4), root: None, prev };
        assert_eq!(m.lookup(2, Role(4), 3), (RootLookup::Prev(0), None));
        assert_eq!(m.root, Some(root(2)));
        assert_eq!(m.prev, [Some(root(3)), None, None]);
    }

    #[test]
    fn another_role_or_an_obsolete_root_is_no_hit() {
        let mut obsolete = root(2);
        obsolete.obsolete = true;
        let prev = [Some(obsolete), None, None];
        let mut m = Mmu { role: Role(4), root: Some(root(1)), prev };
        assert_eq!(m.lookup(2, Role(4), 3).0, RootLookup::Miss);
        let mut m = Mmu { role: Role(5), root: Some(root(1)), prev: [None; 3] };
        assert_eq!(m.lookup(1, Role(5), 3).0, RootLookup::Miss);
    }

    #[test]
    fn a_direct_root_ignores_the_pgd() {
        let role = Role(4 | Role::DIRECT);
        let direct = Root { role, ..root(1) };
        let mut m = Mmu { role, root: Some(direct), prev: [None; 3] };
        assert_eq!(m.lookup(7, role, 3).0, RootLookup::Current);
    }
}
