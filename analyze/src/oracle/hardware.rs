//! Containers: what caches of the hardware may hold copies, since when, and how old at most.

use std::collections::{BTreeMap, BTreeSet};

use tlbscope_trace::act::{Class, Context, GuestInv, Inv, Tag};

/// A tag without its PCID.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct GroupKey {
    /// The processor.
    pub pcpu: u16,
    /// What kind of mapping.
    pub class: Class,
    /// VPID or ASID.
    pub id: u32,
    /// EP4TA.
    pub ep4ta: u64,
}

impl GroupKey {
    /// The group that a tag belongs to.
    #[must_use]
    pub const fn of(tag: &Tag) -> Self {
        Self { pcpu: tag.pcpu.0, class: tag.class, id: tag.id, ep4ta: tag.ep4ta.0 }
    }

    /// The guest-physical mappings under the same EP4TA.
    #[must_use]
    pub const fn guest_physical(self) -> Self {
        Self { class: Class::GuestPhysical, id: 0, ..self }
    }
}

/// What one container may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// Since when it can hold anything.
    pub since: u64,
    /// The oldest stamp that a copy in it may have.
    pub stamp: u64,
    /// The oldest stamp of a copy that was filled into it; `u64::MAX`: none was.
    pub filled: u64,
    /// Wide obligations up to here were judged for it.
    pub judged: u64,
}

/// Up to so many are looked through in their order, which is faster than to divide them.
const FEW: usize = 8;

/// Containers of a group, by PCID and whether global, in that order. Few, so that a flat list is
/// found through faster than a tree.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Group(Vec<((u16, bool), Held)>);

impl Group {
    /// The containers.
    pub fn iter(&self) -> impl Iterator<Item = (&(u16, bool), &Held)> {
        self.0.iter().map(|(of, held)| (of, held))
    }

    /// The containers, to note that they were judged.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&(u16, bool), &mut Held)> {
        self.0.iter_mut().map(|(of, held)| (&*of, held))
    }

    /// What they hold.
    pub fn values(&self) -> impl Iterator<Item = &Held> {
        self.0.iter().map(|(_, held)| held)
    }

    /// The container of this PCID, `new` if there was none.
    fn held(&mut self, of: (u16, bool), new: Held) -> &mut Held {
        let few = self.0.iter().take(if self.0.len() <= FEW { FEW } else { 0 });
        let place = few.into_iter().position(|(other, _)| *other == of).unwrap_or_else(|| {
            self.0.binary_search_by_key(&of, |(of, _)| *of).unwrap_or_else(|place| {
                self.0.insert(place, (of, new));
                place
            })
        });
        &mut self.0[place].1
    }
}

/// Whose a tag is: the vCPU and the tag of L1's processor that runs under it (0: L1).
pub type Owner = (u16, u16);

/// A tag's owner, and how it came by the tag.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Ownership {
    owner: Owner,
    /// Since when, if another had the tag before; else 0.
    since: u64,
    /// The event that gave the tag away, and its operation.
    #[serde(with = "tlbscope_trace::state::numbered_word")]
    given: Given,
}

/// A root page that was given to another EPT.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Birth {
    since: u64,
    /// The event that gave it away, and its operation.
    #[serde(with = "tlbscope_trace::state::numbered_word")]
    given: Given,
}

/// Event and name of the operation that gave a tag away.
pub type Given = (u64, &'static str);

/// Owns what a destroyed vCPU left behind: no vCPU has this number.
const NOBODY: Owner = (u16::MAX, 0);

/// All containers and who owns their tags.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Hardware {
    /// By pCPU; those of one pCPU in the order of their keys.
    groups: Vec<Vec<(GroupKey, Group)>>,
    /// By pCPU: what was declared fillable there last, while nothing was dropped.
    declared: Vec<Option<Fillable>>,
    /// Owner of (pCPU, VPID or ASID, EP4TA).
    owners: BTreeMap<(u16, u32, u64), Ownership>,
    /// Tags that their owner runs under no more: it was given another ASID.
    abandoned: BTreeSet<(u16, u32, u64)>,
    /// Root pages that were given to another EPT, and when last.
    roots: BTreeMap<u64, Birth>,
    /// Root pages seen.
    known_roots: BTreeSet<u64>,
    /// The latest change of owner.
    latest_birth: u64,
}

/// The containers that what runs on a pCPU can fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fillable {
    /// Their group, of the class that its accesses go through.
    pub key: GroupKey,
    /// The current PCID.
    pub pcid: u16,
    /// Global translations too (CR4.PGE).
    pub globals: bool,
    /// The oldest stamp that a copy filled from here on may have.
    pub stamp: u64,
}

impl Hardware {
    /// These containers can be filled from now on. To say it again changes nothing, however much later
    /// the stamps are.
    pub fn fillable(&mut self, now: u64, of: Fillable) {
        let pcpu = usize::from(of.key.pcpu);
        if self.declared.len() <= pcpu {
            self.declared.resize(pcpu + 1, None);
        }
        let again =
            |last: Fillable| last.stamp <= of.stamp && last == Fillable { stamp: last.stamp, ..of };
        if self.declared[pcpu].is_some_and(again) {
            return;
        }
        self.resident(of.key, of.pcid, false, now, of.stamp);
        if of.globals {
            self.resident(of.key, of.pcid, true, now, of.stamp);
        }
        if of.key.class == Class::Combined {
            self.resident(of.key.guest_physical(), 0, false, now, now);
        }
        self.declared[pcpu] = Some(of);
    }

    /// From now on copies as old as `stamp` may be in this container.
    fn resident(&mut self, key: GroupKey, pcid: u16, global: bool, now: u64, stamp: u64) {
        let new = Held { since: now, stamp, filled: u64::MAX, judged: 0 };
        let held = self.group_or_new(key).held((pcid, global), new);
        if stamp < held.stamp {
            held.stamp = stamp;
            held.judged = 0;
        }
    }

    /// A copy was filled.
    pub fn filled(&mut self, tag: &Tag, global: bool, now: u64, stamp: u64) {
        let key = GroupKey::of(tag);
        let pcid = if tag.class == Class::GuestPhysical { 0 } else { tag.pcid.0 };
        let new = Held { since: now, stamp, filled: stamp, judged: 0 };
        let held = self.group_or_new(key).held((pcid, global), new);
        if stamp < held.stamp {
            held.stamp = stamp;
            held.judged = 0;
        }
        held.filled = held.filled.min(stamp);
    }

    /// Where a group stands among those of its pCPU, or would.
    fn place(&self, key: &GroupKey) -> Option<Result<usize, usize>> {
        let groups = self.groups.get(usize::from(key.pcpu))?;
        if groups.len() <= FEW
            && let Some(place) = groups.iter().position(|(of, _)| of == key)
        {
            return Some(Ok(place));
        }
        Some(groups.binary_search_by(|(of, _)| of.cmp(key)))
    }

    fn group_or_new(&mut self, key: GroupKey) -> &mut Group {
        let pcpu = usize::from(key.pcpu);
        if self.groups.len() <= pcpu {
            self.groups.resize(pcpu + 1, Vec::new());
        }
        let place = self.place(&key).unwrap_or(Err(0)).unwrap_or_else(|place| {
            self.groups[pcpu].insert(place, (key, Group::default()));
            place
        });
        &mut self.groups[pcpu][place].1
    }

    /// The containers of a group.
    #[must_use]
    pub fn group(&self, key: &GroupKey) -> Option<&Group> {
        let place = self.place(key)?.ok()?;
        Some(&self.groups[usize::from(key.pcpu)][place].1)
    }

    /// The containers of a group, to note that they were judged.
    pub fn group_mut(&mut self, key: &GroupKey) -> Option<&mut Group> {
        let place = self.place(key)?.ok()?;
        Some(&mut self.groups[usize::from(key.pcpu)][place].1)
    }

    /// All containers whose tag this owner has.
    pub fn owned(&self, owner: Owner) -> impl Iterator<Item = (&GroupKey, &Group)> {
        let groups = self.groups.iter().flatten().map(|(key, group)| (key, group));
        groups.filter(move |(key, _)| {
            key.class != Class::GuestPhysical
                && self
                    .owners
                    .get(&(key.pcpu, key.id, key.ep4ta))
                    .is_some_and(|of| of.owner == owner)
        })
    }

    /// Whether some tag of this pCPU belongs to this owner.
    #[must_use]
    pub fn has(&self, pcpu: u16, owner: Owner) -> bool {
        self.owners
            .range((pcpu, 0, 0)..=(pcpu, u32::MAX, u64::MAX))
            .any(|(key, of)| of.owner == owner && !self.abandoned.contains(key))
    }

    /// A vCPU gets another ASID: those that it had on this pCPU are no longer its own.
    pub fn abandon(&mut self, pcpu: u16, vcpu: u16) {
        let of = self.owners.range((pcpu, 0, 0)..=(pcpu, u32::MAX, u64::MAX));
        self.abandoned.extend(of.filter(|(_, of)| of.owner.0 == vcpu).map(|(key, _)| *key));
    }

    /// A vCPU is destroyed in this event: its tags are free on every pCPU, and whoever is given one,
    /// be it a vCPU of the same number, must find it clean.
    pub fn orphan(&mut self, vcpu: u16, event: u64) {
        for of in self.owners.values_mut().filter(|of| of.owner.0 == vcpu) {
            of.owner = NOBODY;
            of.given = (event, "vcpu-destroy");
        }
    }

    /// A vCPU enters under this tag, on a shadow root or not, in this event. A tag of another owner is
    /// born anew.
    pub fn own(&mut self, tag: &Tag, owner: Owner, shadow: bool, now: u64, event: u64) {
        let key = (tag.pcpu.0, tag.id, tag.ep4ta.0);
        self.abandoned.remove(&key);
        let fresh = Ownership { owner, since: 0, given: (event, "entry") };
        // VPID 0 is everybody's: every entry and exit drops it.
        if tag.id == 0 {
            self.owners.insert(key, fresh);
            return;
        }
        match self.owners.get_mut(&key) {
            None => {
                self.owners.insert(key, fresh);
            }
            Some(of) if of.owner == owner => {}
            // What shadow pages froze keeps its stamp whichever tag of L1 uses it: within a vCPU
            // the floors of each tag say what may be used.
            Some(of) if of.owner.0 == owner.0 && shadow => of.owner = owner,
            Some(of) => {
                let given = if of.owner == NOBODY { of.given } else { fresh.given };
                *of = Ownership { owner, since: now, given };
                self.latest_birth = now;
            }
        }
    }

    /// A page becomes the root of a new EPT. On every processor, what is cached under its EP4TA is of the
    /// one before (SDM vol. 3, 28.3.3.4: INVEPT when the address is given another meaning).
    pub fn root_born(&mut self, root: u64, now: u64, given: Given) {
        if !self.known_roots.insert(root) {
            self.roots.insert(root, Birth { since: now, given });
            self.latest_birth = now;
        }
    }

    /// When a tag or a root changed its owner last.
    #[must_use]
    pub const fn latest_birth(&self) -> u64 {
        self.latest_birth
    }

    /// The operation that gave the tag away to its owner, if a copy with these stamps is the old
    /// owner's: `g` tells when the tag was used, the older of both when its EPT was.
    #[must_use]
    pub fn birth(&self, tag: &Tag, g: u64, h: u64) -> Option<Given> {
        if g.min(h) >= self.latest_birth {
            return None;
        }
        let of = self.owners.get(&(tag.pcpu.0, tag.id, tag.ep4ta.0));
        let owner = of.filter(|of| of.since > g).map(|of| of.given);
        owner.or_else(|| {
            let born = self.roots.get(&tag.ep4ta.0)?;
            (born.since > g.min(h)).then_some(born.given)
        })
    }

    /// The births since which the containers of a tag may hold copies that are older, at an entry of
    /// `owner` at `now`: of the tag, in this very entry, and of its EPT.
    pub fn exposed_births(&self, tag: &Tag, now: u64) -> [Option<(u64, Given)>; 2] {
        let key = GroupKey::of(tag);
        let of = self.owners.get(&(tag.pcpu.0, tag.id, tag.ep4ta.0));
        let owner = of.filter(|of| of.since == now && self.group(&key).is_some());
        let older = |since: u64| {
            let groups = [self.group(&key), self.group(&key.guest_physical())];
            groups.into_iter().flatten().flat_map(Group::values).any(|held| held.stamp < since)
        };
        let root = self.roots.get(&tag.ep4ta.0).filter(|born| older(born.since));
        [owner.map(|of| (of.since, of.given)), root.map(|born| (born.since, born.given))]
    }

    /// An invalidation of more than a page on this pCPU; `context` is what ran there last.
    pub fn invalidate(&mut self, pcpu: u16, context: &Context, inv: &Inv) {
        let virt = |k: &GroupKey| matches!(k.class, Class::Linear | Class::Combined);
        let asid = |k: &GroupKey, a: u32| k.class == Class::Asid && k.id == a;
        let nested = |k: &GroupKey| matches!(k.class, Class::Combined | Class::GuestPhysical);
        let id = context.tag.id;
        let Some(groups) = self.groups.get_mut(usize::from(pcpu)) else { return };
        if let Some(declared) = self.declared.get_mut(usize::from(pcpu)) {
            *declared = None;
        }
        groups.retain_mut(|(key, group)| {
            let mine = key.class != Class::GuestPhysical && key.id == id;
            let all = match *inv {
                Inv::VpidSingle(v) => virt(key) && key.id == u32::from(v.0),
                Inv::VpidAll => virt(key) && key.id != 0,
                Inv::VpidZeroTransition => virt(key) && key.id == 0,
                Inv::EptSingle(e) => nested(key) && key.ep4ta == e.0,
                Inv::EptGlobal => nested(key),
                Inv::TlbControlAll => key.class == Class::Asid,
                Inv::TlbControlAsid(a) => asid(key, a.0),
                Inv::Guest(GuestInv::All) => mine,
                _ => false,
            };
            let nonglobal = match *inv {
                Inv::VpidNonglobal(v) => virt(key) && key.id == u32::from(v.0),
                Inv::TlbControlNonglobal(a) => asid(key, a.0),
                Inv::Guest(GuestInv::Nonglobal) => mine,
                _ => false,
            };
            group.0.retain(|((pcid, global), _)| match *inv {
                Inv::Guest(GuestInv::Pcid(p)) if mine => p.0 != *pcid,
                Inv::Guest(GuestInv::PcidNonglobal(p)) if mine => *global || p.0 != *pcid,
                _ => !nonglobal || *global,
            });
            !all && !group.0.is_empty()
        });
    }
}

/// The group (VPID or ASID) in which an invalidation drops one page, and which page.
#[must_use]
pub fn one_page(inv: &Inv, context: &Context) -> Option<(u32, u64)> {
    match *inv {
        Inv::VpidAddress { vpid, gva } => Some((u32::from(vpid.0), gva.0)),
        Inv::Invlpga { asid, gva } => Some((asid.0, gva.0)),
        Inv::Guest(
            GuestInv::Address { gva, .. }
            | GuestInv::AddressNonglobal { gva, .. }
            | GuestInv::AddressPath { gva, .. }
            | GuestInv::Fault { gva, .. },
        ) => Some((context.tag.id, gva.0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: GroupKey = GroupKey { pcpu: 0, class: Class::Linear, id: 1, ep4ta: 0 };
    const OF: Fillable = Fillable { key: KEY, pcid: 0, globals: true, stamp: 5 };

    /// PCID or global, since when, and how old at most.
    fn containers(hardware: &Hardware) -> Vec<(bool, u64, u64)> {
        let group = hardware.group(&KEY).into_iter().flat_map(Group::iter);
        group.map(|((_, global), held)| (*global, held.since, held.stamp)).collect()
    }

    #[test]
    fn what_can_be_filled_is_declared_once_and_anew_when_it_was_dropped() {
        let mut hardware = Hardware::default();
        hardware.fillable(5, OF);
        hardware.fillable(6, Fillable { stamp: 6, ..OF });
        assert_eq!(containers(&hardware), [(false, 5, 5), (true, 5, 5)]);
        let context = Context { tag: Tag { id: 1, ..Tag::default() }, ..Context::default() };
        hardware.invalidate(0, &context, &Inv::VpidAll);
        assert_eq!(containers(&hardware), []);
        hardware.fillable(9, Fillable { stamp: 9, ..OF });
        assert_eq!(containers(&hardware), [(false, 9, 9), (true, 9, 9)]);
    }

    #[test]
    fn an_older_stamp_another_pcid_or_no_globals_are_another_declaration() {
        let mut hardware = Hardware::default();
        hardware.fillable(5, Fillable { globals: false, ..OF });
        assert_eq!(containers(&hardware), [(false, 5, 5)]);
        hardware.fillable(6, OF);
        assert_eq!(containers(&hardware), [(false, 5, 5), (true, 6, 5)]);
        hardware.fillable(7, Fillable { stamp: 3, ..OF });
        assert_eq!(containers(&hardware), [(false, 5, 3), (true, 6, 3)]);
        hardware.fillable(8, Fillable { pcid: 1, globals: false, stamp: 8, ..OF });
        assert_eq!(containers(&hardware), [(false, 5, 3), (true, 6, 3), (false, 8, 8)]);
    }
}
