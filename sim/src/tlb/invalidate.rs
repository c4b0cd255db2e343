//! What each invalidation drops, by its own code (facts B.1, C.1, C.4, D.2).

use tlbscope_trace::act::{Class, GuestInv, Inv, Tag};
use tlbscope_trace::addr::{Gva, PAGE_BYTES, Pcid};

use super::store::{DEAD, Key};
use super::{Container, KILLS, Space, Tlb};
use crate::arch::mode::Mode;

/// What happens to a container's paging-structure entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Upper {
    Keep,
    All,
    Path,
}

/// The next epoch of a container; never [`DEAD`].
const fn next_epoch(epoch: u32) -> u32 {
    if epoch + 1 == DEAD { 0 } else { epoch + 1 }
}

impl Tlb {
    /// Carries out an invalidation. `current` names the VPID or ASID of [`Inv::Guest`]; `event`
    /// is what ghosts will be charged to; `dropped(tag, global, n)` is told of each container
    /// that lost usable translations. [`Inv::Exact`] drops nothing here: see
    /// [`Tlb::drop_entry`].
    pub fn invalidate(
        &mut self,
        inv: Inv,
        current: &Tag,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        let vpid = |c: &Container, id: u32| {
            matches!(c.tag.class, Class::Linear | Class::Combined) && c.tag.id == id
        };
        let any_vpid = |c: &Container| matches!(c.tag.class, Class::Linear | Class::Combined);
        let asid = |c: &Container, id: u32| c.tag.class == Class::Asid && c.tag.id == id;
        let keeps_global = |c: &Container| c.space == Space::Pcid;
        match inv {
            Inv::VpidAddress { vpid: v, gva } => {
                self.address(|c| vpid(c, v.0.into()), Upper::Path, gva, None, event, dropped);
            }
            Inv::VpidSingle(v) => self.wide(|c| vpid(c, v.0.into()), event, dropped),
            Inv::VpidAll => self.wide(|c| any_vpid(c) && c.tag.id != 0, event, dropped),
            Inv::VpidNonglobal(v) => {
                self.wide(|c| vpid(c, v.0.into()) && keeps_global(c), event, dropped);
            }
            Inv::EptSingle(root) => {
                let ept = |c: &Container| {
                    matches!(c.tag.class, Class::Combined | Class::GuestPhysical)
                        && c.tag.ep4ta == root
                };
                self.wide(ept, event, dropped);
            }
            Inv::EptGlobal => {
                let ept =
                    |c: &Container| matches!(c.tag.class, Class::Combined | Class::GuestPhysical);
                self.wide(ept, event, dropped);
            }
            Inv::VpidZeroTransition => self.wide(|c| vpid(c, 0), event, dropped),
            Inv::TlbControlAll => self.wide(|c| c.tag.class == Class::Asid, event, dropped),
            Inv::TlbControlAsid(a) => self.wide(|c| asid(c, a.0), event, dropped),
            Inv::TlbControlNonglobal(a) => {
                let hit = |c: &Container| asid(c, a.0) && c.space != Space::Global;
                self.wide(hit, event, dropped);
            }
            Inv::Invlpga { asid: a, gva } => {
                let hit = |c: &Container| asid(c, a.0) && c.space != Space::Physical;
                self.address(hit, Upper::All, gva, None, event, dropped);
            }
            Inv::Guest(guest) => self.guest(guest, current, event, dropped),
            Inv::Exact => {}
        }
    }

    /// A guest instruction: within the current VPID (linear and combined, every EP4TA) or ASID;
    /// never guest-physical mappings.
    fn guest(
        &mut self,
        inv: GuestInv,
        current: &Tag,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        let (amd, id) = (current.class == Class::Asid, current.id);
        let own = |c: &Container| {
            let class = c.tag.class;
            let same = if amd {
                class == Class::Asid
            } else {
                matches!(class, Class::Linear | Class::Combined)
            };
            same && c.tag.id == id && c.space != Space::Physical
        };
        let of = |c: &Container, p: Pcid| own(c) && c.space == Space::Pcid && c.tag.pcid == p;
        let global = |c: &Container| own(c) && c.space == Space::Global;
        match inv {
            GuestInv::All => self.wide(own, event, dropped),
            GuestInv::Nonglobal => {
                self.wide(|c| own(c) && c.space == Space::Pcid, event, dropped);
            }
            GuestInv::PcidNonglobal(p) => self.wide(|c| of(c, p), event, dropped),
            GuestInv::Pcid(p) => {
                self.wide(|c| of(c, p), event, dropped);
                self.globals_of(global, p, event, dropped);
            }
            GuestInv::Address { pcid, gva } => {
                self.address(|c| of(c, pcid), Upper::All, gva, None, event, dropped);
                self.address(global, Upper::Keep, gva, None, event, dropped);
            }
            GuestInv::AddressPath { pcid, gva } => {
                self.address(|c| of(c, pcid), Upper::Path, gva, None, event, dropped);
                self.address(global, Upper::Keep, gva, None, event, dropped);
            }
            GuestInv::AddressNonglobal { pcid, gva } => {
                self.address(|c| of(c, pcid), Upper::Path, gva, None, event, dropped);
            }
            GuestInv::Fault { pcid, gva } => {
                self.address(|c| of(c, pcid), Upper::Path, gva, None, event, dropped);
                self.address(global, Upper::Keep, gva, Some(pcid), event, dropped);
            }
        }
    }

    /// Drops whole containers, their paging-structure entries included: one increment each.
    pub(super) fn wide(
        &mut self,
        hit: impl Fn(&Container) -> bool,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        self.probes.tag = None;
        for c in self.containers.iter_mut().filter(|c| hit(c)) {
            c.psc_epoch = next_epoch(c.psc_epoch);
            if c.live == 0 {
                continue;
            }
            dropped(&c.tag, c.space == Space::Global, c.live);
            c.kills[c.epoch as usize % KILLS] = event;
            c.epoch = next_epoch(c.epoch);
            c.live = 0;
            c.sizes = [0; 4];
            c.fragments = 0;
        }
    }

    /// Drops global translations made under one PCID. Rare (CR4.PAE, CR4.SMEP): it scans.
    fn globals_of(
        &mut self,
        hit: impl Fn(&Container) -> bool,
        pcid: Pcid,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        for index in 0..self.containers.len() {
            if hit(&self.containers[index]) && self.containers[index].live != 0 {
                self.kill_where(index, event, dropped, |_, e| e.pcid == pcid);
            }
        }
    }

    /// Drops the page of `gva`, all fragments of a larger guest page with it.
    pub(super) fn address(
        &mut self,
        hit: impl Fn(&Container) -> bool,
        upper: Upper,
        gva: Gva,
        made_under: Option<Pcid>,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        for index in 0..self.containers.len() {
            let c = &mut self.containers[index];
            if !hit(c) || c.space == Space::Physical {
                continue;
            }
            match upper {
                Upper::All => c.psc_epoch = next_epoch(c.psc_epoch),
                Upper::Path => self.drop_path(index, gva),
                Upper::Keep => {}
            }
            self.drop_page(index, gva, made_under, event, dropped);
        }
    }

    pub(super) fn drop_page(
        &mut self,
        index: usize,
        gva: Gva,
        made_under: Option<Pcid>,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        let wanted = |e: &super::Entry| made_under.is_none_or(|p| e.pcid == p);
        if self.containers[index].fragments != 0 {
            // Fragments lie anywhere in the guest's page: look at every entry.
            self.kill_where(index, event, dropped, |address, e| {
                let shift = e.guest_size.max(e.size).shift();
                address >> shift == gva.0 >> shift && wanted(e)
            });
            return;
        }
        let mut n = 0;
        for size in super::SIZES {
            let store = self.store(self.containers[index].space);
            if let Some(at) = store.find(super::key(index as u32, gva.0, size)) {
                n += u32::from(self.kill(at, index, event, |_, e| wanted(e)));
            }
        }
        self.report(index, n, dropped);
    }

    pub(super) fn kill_where(
        &mut self,
        index: usize,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
        wanted: impl Fn(u64, &super::Entry) -> bool,
    ) {
        let mut n = 0;
        for at in self.store(self.containers[index].space).slots() {
            n += u32::from(self.kill(at, index, event, &wanted));
        }
        self.report(index, n, dropped);
    }

    fn report(&self, index: usize, n: u32, dropped: &mut impl FnMut(&Tag, bool, u32)) {
        if n != 0 {
            let c = &self.containers[index];
            dropped(&c.tag, c.space == Space::Global, n);
        }
    }

    /// Kills one slot if it is a live one of this container and wanted.
    fn kill(
        &mut self,
        at: usize,
        index: usize,
        event: u64,
        wanted: impl Fn(u64, &super::Entry) -> bool,
    ) -> bool {
        let store = self.store(self.containers[index].space);
        let (head, entry) = (store.head(at), *store.value(at));
        let address = head.key.page << entry.size.shift();
        let own = head.key.container() == index && head.epoch == self.containers[index].epoch;
        if !own || !wanted(address, &entry) {
            return false;
        }
        let c = &mut self.containers[index];
        c.forget(&entry);
        let space = c.space;
        self.store_mut(space).kill(at, event);
        true
    }

    /// Drops the paging-structure entries that translate `gva`, of tables of either entry size.
    pub(super) fn drop_path(&mut self, index: usize, gva: Gva) {
        for mode in [Mode::Level5, Mode::Bits32] {
            for level in 2..=mode.levels() {
                let key: Key = super::psc_key(index as u32, mode, gva.0, level);
                let store = super::psc_place(level).and_then(|place| self.psc[place].as_mut());
                let Some(store) = store else { continue };
                if let Some(at) = store.find(key) {
                    store.kill(at, 0);
                }
            }
        }
    }

    /// Drops the paging-structure entries whose region meets `first..=last`, of either entry size.
    pub(super) fn drop_paths(&mut self, index: usize, first: u64, last: u64) {
        for store in self.psc.iter_mut().flatten() {
            for at in store.slots() {
                let key = store.head(at).key;
                if key.container() != index {
                    continue;
                }
                let (mode, level) = super::psc_region(key.size());
                let shift = mode.shift(level);
                if (first >> shift..=last >> shift).contains(&key.page) {
                    store.kill(at, 0);
                }
            }
        }
    }

    /// An ideal flush: drops every translation of these guest frames, under whatever tag, and every
    /// paging-structure entry.
    pub fn drop_frames(
        &mut self,
        hit: &impl Fn(u64) -> bool,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        for index in 0..self.containers.len() {
            let c = &mut self.containers[index];
            c.psc_epoch = next_epoch(c.psc_epoch);
            if c.live != 0 {
                self.kill_where(index, event, dropped, |_, e| {
                    let first = e.copy.gpa.0 / PAGE_BYTES;
                    (first..first + e.size.bytes() / PAGE_BYTES).any(hit)
                });
            }
        }
    }

    /// Drops the paging-structure entries that a walk of `gva` would use.
    pub fn drop_structures(&mut self, tag: &Tag, gva: Gva) {
        if let Some(index) = self.structures_of(tag) {
            self.drop_path(index as usize, gva);
        }
    }

    /// Drops what [`Tlb::lookup`] would use for `gva`, PCID-tagged and global, all fragments.
    pub fn drop_entry(
        &mut self,
        tag: &Tag,
        gva: Gva,
        event: u64,
        dropped: &mut impl FnMut(&Tag, bool, u32),
    ) {
        for index in self.pair(tag).into_iter().flatten() {
            self.drop_page(index as usize, gva, None, event, dropped);
        }
    }
}
