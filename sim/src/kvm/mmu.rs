//! Resets, unloads, root switches and LOAD (facts/kvm.md 0.3, 2.1 to 2.5, 5.5).

use std::collections::BTreeSet;

use tlbscope_trace::act::{Act, FreeWhy, Hook, HookBy, Request, RootLookup, RootSlot};
use tlbscope_trace::addr::{Gpa, Hpa, PAGE_BYTES, Pcid, Sp};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::{CR3_PCID_MASK, Cr4, MmuKind, Regs};

use super::role::{self, Role};
use super::root::{PREV_ROOTS_MAX, Root};
use super::shadow::{ShadowPages, Spte};
use super::tdp::Unused;
use crate::arch::mode::Mode;
use crate::arch::required::Scope;
use crate::engine::Machine;
use crate::engine::drive::LoadHint;
use crate::policy::mechanics::{
    GuestFlushShadow, InvalidatePcid, PrevRootRole, ResetKind, SyncWhen, TdpRootLifetime,
    WithoutPcide,
};

impl Machine {
    /// The role that a root for the present registers has.
    pub(crate) fn root_role(&self, v: usize) -> Role {
        let vcpu = &self.vcpus[v];
        let mechanics = &self.policy.mechanics;
        let own = match self.config.mmu {
            MmuKind::Tdp => role::tdp_root(mechanics, &vcpu.regs, vcpu.smm),
            MmuKind::Shadow => role::shadow_root(mechanics, &vcpu.regs, vcpu.smm),
        };
        match vcpu.nested.l2 {
            None => own,
            Some(l2) => role::nested_root(mechanics, own, l2.tables.map(|tables| tables.format)),
        }
    }

    /// kvm_mmu_reset_context.
    pub(crate) fn mmu_reset<O: Observer>(&mut self, v: usize, o: &mut O) {
        let role_changed = self.root_role(v) != self.vcpus[v].mmu.role;
        self.act(o, Act::Reset { role_changed: Some(role_changed) });
        match self.policy.mechanics.reset {
            ResetKind::Unload => {
                self.free_all(v, FreeWhy::Reset, o);
                self.mmu_init(v, o);
            }
            ResetKind::UpdateRoot => {
                self.mmu_init(v, o);
                self.post(v, Request::MmuUpdateRoot, o);
            }
        }
    }

    /// kvm_init_mmu: roles only, roots untouched.
    pub(crate) fn mmu_init<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.act(o, Act::Init);
        let role = self.root_role(v);
        if role != self.vcpus[v].mmu.role {
            self.vcpus[v].mmu.role = role;
            self.act(o, Act::RoleChange);
        }
    }

    /// kvm_mmu_unload.
    pub(crate) fn mmu_unload<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.act(o, Act::Unload);
        self.free_all(v, FreeWhy::Unload, o);
        self.hinted_obsolete(o);
    }

    /// kvm_mmu_unload frees the roots of root_mmu and of guest_mmu.
    fn free_all<O: Observer>(&mut self, v: usize, why: FreeWhy, o: &mut O) {
        self.free_roots_of_mmu(v, why, o);
        self.unload_parked(v, why, o);
    }

    /// The roots of the active MMU.
    pub(crate) fn free_roots_of_mmu<O: Observer>(&mut self, v: usize, why: FreeWhy, o: &mut O) {
        self.free_root(v, RootSlot::Current, why, o);
        for slot in 0..PREV_ROOTS_MAX {
            self.free_root(v, RootSlot::Prev(slot as u8), why, o);
        }
    }

    /// Drops one root reference, if the slot holds one.
    pub(crate) fn free_root<O: Observer>(
        &mut self,
        v: usize,
        slot: RootSlot,
        why: FreeWhy,
        o: &mut O,
    ) {
        let mmu = &mut self.vcpus[v].mmu;
        let root = match slot {
            RootSlot::Current => mmu.root.take(),
            RootSlot::Prev(n) => mmu.prev[n as usize].take(),
        };
        if let Some(root) = root {
            self.drop_root(root, slot, why, o);
        }
    }

    fn drop_root<O: Observer>(&mut self, root: Root, slot: RootSlot, why: FreeWhy, o: &mut O) {
        self.act(o, Act::FreeRoot { slot, root: root.hpa, sp: root.sp, why });
        match root.sp {
            Some(sp) if root.special => self.zap_page(sp, o),
            Some(_) => {}
            None => {
                let unused = match self.policy.mechanics.tdp_root_lifetime {
                    // Without the TDP MMU the root stays in the hash with all its SPTEs (facts 7.3).
                    _ if !self.tdp_mmu() => Unused::Stays,
                    TdpRootLifetime::Vm => Unused::Stays,
                    TdpRootLifetime::LastUser => Unused::Zapped,
                    TdpRootLifetime::LastUserAsync => Unused::Queued,
                };
                if self.trees.put(root.hpa, unused) {
                    self.root_work.get_or_insert(self.at.event);
                }
            }
        }
    }

    /// Whether the TDP MMU is in use: the machine has it on and the kernel too (facts 7.1).
    fn tdp_mmu(&self) -> bool {
        self.config.tdp_mmu && self.policy.mechanics.tdp_mmu
    }

    /// Takes a shadow page out of the tables: its entries, its links and itself.
    pub(crate) fn zap_page<O: Observer>(&mut self, sp: Sp, o: &mut O) {
        for at in 0..512 {
            self.clear_spte(sp, at, o);
        }
        for (parent, at) in self.shadow.page(sp).parents.clone() {
            self.clear_spte(parent, at, o);
        }
        self.shadow.kill(sp);
        self.act(o, Act::SpZap { sp });
        self.page_zapped(sp);
        if self.shadow.crowded() {
            self.forget_zapped();
        }
    }

    /// Zapped pages that nobody stands in are no longer kept.
    fn forget_zapped(&mut self) {
        let mut used = BTreeSet::new();
        for vcpu in &self.vcpus {
            for mmu in [&vcpu.mmu, &vcpu.nested.parked] {
                let roots = mmu.root.iter().chain(mmu.prev.iter().flatten());
                used.extend(roots.filter_map(|root| root.sp));
            }
            used.extend(vcpu.context.shadow_root);
            used.extend(vcpu.pause.reader.map(|reader| reader.sp));
        }
        self.shadow.forget(|sp| used.contains(&sp));
    }

    /// Clears an entry and says so. True if something stood there.
    pub(crate) fn clear_spte<O: Observer>(&mut self, sp: Sp, at: u16, o: &mut O) -> bool {
        match self.shadow.set(sp, at, Spte::None) {
            Spte::None => return false,
            Spte::Link(child) => {
                self.act(o, Act::SpUnlink { parent: sp, index: at, child });
            }
            Spte::Leaf(_) => self.act(o, Act::SpteClear { sp, index: at }),
        }
        true
    }

    /// kvm_mmu_new_pgd for a CR3 that is already in `regs`, or for the unmerged UPDATE_ROOT.
    pub(crate) fn new_pgd<O: Observer>(&mut self, v: usize, pgd: u64, o: &mut O) -> RootLookup {
        let mechanics = &self.policy.mechanics;
        let (slots, min_level) = (mechanics.prev_roots as usize, mechanics.prev_root_min_level);
        // On nested tables those are the guest's, and its CR3 names no root.
        let (pgd, guest_level) = match self.tables12(v) {
            Some(tables) => (tables.root.0, 4),
            None => (pgd, Mode::of(&self.vcpus[v].regs).levels()),
        };
        let role = self.vcpus[v].mmu.role;
        // V510 looks the cache up by a role without the and-not-WP bits (facts 15.9).
        let lookup_role = match mechanics.prev_root_role {
            PrevRootRole::Full => role,
            PrevRootRole::WithoutAndNotWp => role.without_and_not_wp(),
        };
        let level_rule = min_level > 0 && (role.level() < min_level || guest_level < min_level);
        if level_rule || self.vcpus[v].mmu.root.is_some_and(|r| r.special) {
            self.free_root(v, RootSlot::Current, FreeWhy::NotCacheable, o);
        }
        let found = if level_rule {
            RootLookup::Miss
        } else {
            let (found, out) = self.vcpus[v].mmu.lookup(pgd, lookup_role, slots);
            if let Some(root) = out {
                self.drop_root(root, RootSlot::Prev(slots.max(1) as u8 - 1), FreeWhy::Evict, o);
            }
            found
        };
        self.act(o, Act::NewPgd(Some(found)));
        if found != RootLookup::Miss {
            self.post(v, Request::LoadMmuPgd, o);
        }
        found
    }

    /// kvm_mmu_load: find or make the root, sync it, install it, flush the current context.
    pub(crate) fn mmu_load<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.act(o, Act::Load);
        let load = self.hinted_load();
        let role = self.vcpus[v].mmu.role;
        let regs = self.kvm_regs(v);
        let root = match (self.config.mmu, self.tables12(v)) {
            (_, Some(tables)) => self.nested_root(v, tables, o),
            (MmuKind::Tdp, None) => {
                let (hpa, made) = self.trees.take(role);
                if made {
                    self.act(o, Act::RootNew(hpa));
                }
                Root { pgd: regs.cr3, hpa, role, sp: None, special: false, obsolete: false }
            }
            (MmuKind::Shadow, None) => self.shadow_root(v, &regs, role, o),
        };
        self.hinted_pages(v, load, o);
        self.vcpus[v].mmu.root = Some(root);
        self.sync_roots(v, o);
        self.load_pgd(v, root.hpa, o);
        if self.policy.mechanics.load_flush {
            self.flush_hook(v, Hook::Current, HookBy::Load, o);
        }
    }

    /// What guest memory makes of the pages of LOAD, where the machine is told.
    fn hinted_pages<O: Observer>(&mut self, v: usize, load: Option<LoadHint>, o: &mut O) {
        let Some(load) = load else { return };
        for _ in 0..load.flushes {
            self.remote_flush(o);
        }
        if load.current && self.policy.mechanics.own_spte_flush {
            self.post(v, Request::TlbFlushCurrent, o);
        }
        if load.unsync && self.policy.mechanics.refind_requests_sync {
            self.post(v, Request::MmuSync, o);
        }
    }

    fn shadow_root<O: Observer>(&mut self, v: usize, regs: &Regs, role: Role, o: &mut O) -> Root {
        let gfn = regs.root().0 / PAGE_BYTES;
        let special = role.level() < 4;
        let sp =
            if special { self.pae_root(v, regs, role, o) } else { self.get_page(v, gfn, role, o) };
        let hpa = ShadowPages::hpa(sp);
        Root { pgd: regs.cr3, hpa, role, sp: Some(sp), special, obsolete: false }
    }

    /// A PAE root: four page directories under a page that stands in no hash.
    fn pae_root<O: Observer>(&mut self, v: usize, regs: &Regs, role: Role, o: &mut O) -> Sp {
        let root = self.shadow.create(regs.root().0 / PAGE_BYTES, role, true);
        self.act(
            o,
            Act::SpNew { sp: root, gfn: regs.root().0 / PAGE_BYTES, level: 3, role: role.0 },
        );
        let all = (true, true, true);
        for quadrant in 0..4u16 {
            let gfn = match Mode::of(regs) {
                Mode::Off => Some(u64::from(quadrant) << 18),
                Mode::Bits32 => Some(regs.root().0 / PAGE_BYTES),
                _ => {
                    let pdpte = regs.pdpte[usize::from(quadrant)];
                    (pdpte & 1 != 0).then_some((pdpte & 0x000f_ffff_ffff_f000) / PAGE_BYTES)
                }
            };
            let Some(gfn) = gfn else { continue };
            let part = if role.0 & Role::GPTE4 != 0 { quadrant } else { 0 };
            let child = self.get_page(v, gfn, role.child(2, part, all), o);
            self.link_page(root, quadrant, child, o);
        }
        root
    }

    /// The guest's registers as KVM's own walks see them.
    pub(crate) fn kvm_regs(&self, v: usize) -> Regs {
        let vcpu = &self.vcpus[v];
        Regs { pdpte: vcpu.kvm_pdpte, ..vcpu.regs }
    }

    /// The vendor's load_mmu_pgd: on VMX the PDPTEs go to the VMCS with it (facts 6.4).
    pub(crate) fn load_pgd<O: Observer>(&mut self, v: usize, root: Hpa, o: &mut O) {
        self.act(o, Act::LoadPgd { root });
        self.vcpus[v].vmcs_pdpte = self.vcpus[v].kvm_pdpte;
    }

    /// kvm_mmu_get_page: an existing page with this role, or a new one.
    pub(crate) fn get_page<O: Observer>(
        &mut self,
        v: usize,
        gfn: u64,
        role: Role,
        o: &mut O,
    ) -> Sp {
        use crate::policy::mechanics::LinkUnsync;
        if let Some(sp) = self.shadow.find(gfn, role, role::ignored(&self.policy.mechanics)) {
            self.act(o, Act::SpFound { sp });
            if self.hints.is_some() {
                return sp;
            }
            if self.policy.mechanics.refind_requests_sync
                && !self.shadow.unsync_below(sp).is_empty()
            {
                self.post(v, Request::MmuSync, o);
            }
            let sync = self.policy.mechanics.link_unsync == LinkUnsync::Sync && !self.never();
            let changed = self.shadow.page(sp).unsync && sync && self.sync_page(v, sp, o);
            if changed && self.policy.mechanics.remote_flush.sync {
                self.remote_flush(o);
            }
            return sp;
        }
        let sp = self.shadow.create(gfn, role, false);
        self.act(o, Act::SpNew { sp, gfn, level: role.level(), role: role.0 });
        let flush = self.policy.mechanics.remote_flush.write_protect;
        if self.hints.is_none() && !role.direct() {
            if self.write_protect(gfn, o) && flush {
                self.remote_flush(o);
            }
            self.protected_tables(&[sp], o);
        }
        sp
    }

    /// Points an entry at a page.
    pub(crate) fn link_page<O: Observer>(&mut self, parent: Sp, at: u16, child: Sp, o: &mut O) {
        self.clear_spte(parent, at, o);
        self.shadow.set(parent, at, Spte::Link(child));
        self.act(o, Act::SpLink { parent, index: at, child });
    }

    /// kvm_invalidate_pcid (facts 2.3).
    pub(crate) fn invalidate_pcid<O: Observer>(&mut self, v: usize, pcid: Pcid, o: &mut O) {
        self.act(o, Act::InvalidatePcid(pcid));
        if self.config.mmu == MmuKind::Tdp {
            self.post(v, Request::TlbFlushGuest, o);
            return;
        }
        let regs = self.vcpus[v].regs;
        if pcid == regs.pcid() {
            match self.policy.mechanics.invalidate_pcid_sync {
                SyncWhen::Request => self.post(v, Request::MmuSync, o),
                SyncWhen::Now => self.sync_roots(v, o),
            }
            self.post(v, Request::TlbFlushCurrent, o);
        }
        let pcide = regs.cr4().contains(Cr4::PCIDE);
        let mechanics = &self.policy.mechanics;
        let scan = if pcide {
            mechanics.invalidate_pcid == InvalidatePcid::CurrentAndCached
        } else {
            mechanics.invalidate_pcid_without_pcide == WithoutPcide::Cached
        };
        if scan {
            self.free_cached_of(v, pcid, pcide, o);
        }
    }

    /// Frees every cached root of this PCID.
    pub(crate) fn free_cached_of<O: Observer>(
        &mut self,
        v: usize,
        pcid: Pcid,
        pcide: bool,
        o: &mut O,
    ) {
        for slot in 0..PREV_ROOTS_MAX {
            let tag = |pgd: u64| if pcide { Pcid((pgd & CR3_PCID_MASK) as u16) } else { Pcid(0) };
            if self.vcpus[v].mmu.prev[slot].is_some_and(|r| tag(r.pgd) == pcid) {
                self.free_root(v, RootSlot::Prev(slot as u8), FreeWhy::InvalidatePcid, o);
            }
        }
    }

    /// load_pdptrs: the four registers are read again (facts 2.2).
    pub(crate) fn load_pdptrs<O: Observer>(&mut self, v: usize, o: &mut O) {
        // 32 bits, 32-byte aligned (SDM vol. 3, 4.4.1), also while the mode is about to be PAE.
        let root = self.vcpus[v].regs.cr3 & 0xffff_ffe0;
        let new: [u64; 4] = std::array::from_fn(|n| {
            let at = self.l1_gpa(v, Gpa(root + 8 * n as u64));
            at.map_or(0, |at| self.memory.read(at))
        });
        let changed = self.hinted_pdptes().unwrap_or(new != self.vcpus[v].kvm_pdpte);
        self.act(o, Act::LoadPdptrs { changed: Some(changed) });
        let mechanics = &self.policy.mechanics.load_pdptrs;
        let (free, request) = (mechanics.free_root, mechanics.request_pgd);
        if free && changed && self.config.mmu == MmuKind::Shadow {
            self.free_root(v, RootSlot::Current, FreeWhy::Pdptrs, o);
        }
        self.vcpus[v].kvm_pdpte = new;
        if request {
            self.post(v, Request::LoadMmuPgd, o);
        }
    }

    /// The guest flush handler in shadow mode and under TDP (facts 5.4, 5.6).
    pub(crate) fn guest_flush<O: Observer>(&mut self, v: usize, o: &mut O) {
        // A full guest flush serves what Hyper-V's fifo holds, too (facts 4.5).
        self.vcpus[v].requests.take(Request::HvTlbFlush);
        self.vcpus[v].hv.purge();
        if self.ideal() {
            return self.serve_scope(v, Scope::Everything, o);
        }
        if self.config.mmu == MmuKind::Shadow {
            match self.policy.mechanics.guest_flush_shadow {
                GuestFlushShadow::HwOnly => {}
                GuestFlushShadow::Unload => return self.mmu_unload(v, o),
                GuestFlushShadow::Sync => {
                    self.sync_roots(v, o);
                    self.sync_prev_roots(v, o);
                }
            }
        }
        self.flush_hook(v, Hook::Guest, HookBy::Request, o);
    }

    /// kvm_mmu_free_obsolete_roots.
    pub(crate) fn free_obsolete_roots<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.act(o, Act::FreeObsoleteRoots);
        self.free_obsolete_of_mmu(v, o);
        self.with_parked(v, |machine| machine.free_obsolete_of_mmu(v, o));
    }

    fn free_obsolete_of_mmu<O: Observer>(&mut self, v: usize, o: &mut O) {
        let old = |r: Option<Root>| r.is_some_and(|r| r.obsolete || r.special);
        if old(self.vcpus[v].mmu.root) {
            self.free_root(v, RootSlot::Current, FreeWhy::Obsolete, o);
        }
        for slot in 0..PREV_ROOTS_MAX {
            if old(self.vcpus[v].mmu.prev[slot]) {
                self.free_root(v, RootSlot::Prev(slot as u8), FreeWhy::Obsolete, o);
            }
        }
        self.hinted_obsolete(o);
    }

    /// The leaf of the active root's tables for this address: for INVLPG.
    pub(crate) fn roots_of(&self, v: usize, cached: bool) -> Vec<Sp> {
        let mmu = &self.vcpus[v].mmu;
        let prev = mmu.prev.iter().flatten().filter(|_| cached);
        mmu.root.iter().chain(prev).filter_map(|r| r.sp).collect()
    }

    /// The host address of the active root, or 0.
    pub(crate) fn root_hpa(&self, v: usize) -> Hpa {
        self.vcpus[v].mmu.root.map_or(Hpa(0), |r| r.hpa)
    }
}

#[cfg(test)]
mod tests {
    use tlbscope_trace::addr::{Time, VcpuId};
    use tlbscope_trace::observe::Nobody;
    use tlbscope_trace::op::{Actor, Event, Op};

    use super::*;
    use crate::machine::config::{MachineConfig, Mode};
    use crate::policy;

    /// A PAE root is never found again (facts 2.4): each write of CR3 makes another. What is zapped must not stay
    /// for as long as the machine runs.
    #[test]
    fn roots_that_are_dropped_do_not_pile_up() {
        let (mmu, mode) = (MmuKind::Shadow, Mode::Pae);
        let config = MachineConfig { mmu, mode, ..MachineConfig::default() };
        let policy = policy::load("kvm-7.3").unwrap();
        let mut machine = Machine::new(&config, &policy).unwrap();
        for n in 0..8000 {
            let op = Op::Cr3(0x10000 << (n % 2));
            let event = Event { time: Time(n), actor: Actor::Vcpu(VcpuId(0)), op };
            machine.run(&event, n, &mut Nobody).unwrap();
        }
        let (made, kept) = (machine.shadow.next().0, machine.shadow.kept());
        assert!(made > 4000, "{made} pages: the test is of no use");
        assert!(kept < 2000, "{kept} of {made} pages are kept");
    }
}
