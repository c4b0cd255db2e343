//! Faults that reach the hypervisor: shadow page faults, EPT violations, and the guest's stores to
//! tables that are write-protected (facts/kvm.md 2.6).

use tlbscope_trace::act::Act;
use tlbscope_trace::addr::{Gpa, Gva, PAGE_BYTES, Sp};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs};

use super::role::Role;
use super::shadow::{Leaf, Spte, index};
use crate::arch::access::Rights;
use crate::arch::mode::Mode;
use crate::engine::{Machine, Point};
use crate::paging::walk::{self, Walk};
use crate::policy::mechanics::{LinkUnsync, SetSpteRemoteFlush, WpClearUserWrite};

/// What a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fixed {
    /// An entry was installed or repaired; the access runs again.
    Retry,
    /// The guest's own tables forbid the access.
    Guest(u32),
    /// No memory stands behind it: emulated, nothing is cached.
    Mmio(Gpa),
    /// The host invalidates the frame, or somebody holds mmu_lock: the access waits.
    Wait,
}

impl Machine {
    /// The guest's tables as KVM's software walker reads them, with accessed and dirty bits set.
    fn guest_walk<O: Observer>(&mut self, regs: &Regs, access: &Access, o: &mut O) -> Walk {
        let walk = walk::walk(self, regs, access);
        if walk.result.is_ok() {
            self.set_accessed(&walk, regs, access.kind == AccessKind::Write);
            self.other_entry_size(&walk, regs, o);
        }
        walk
    }

    /// Sets accessed and dirty bits as the walk that uses these entries would.
    pub(crate) fn set_accessed(&mut self, walk: &Walk, regs: &Regs, write: bool) {
        let bytes = Mode::of(regs).entry_bytes();
        let marks: Vec<(Gpa, u64)> = walk::entries_to_mark(walk, write).collect();
        for (gpa, value) in marks {
            self.memory.write_entry(gpa, bytes, value);
        }
    }

    /// The accessed and dirty bits of 4-byte entries may be any bits of an 8-byte entry, and the other way
    /// round: where the frame is shadowed as a table of the other kind as well, those entries go, as for
    /// a store.
    fn other_entry_size<O: Observer>(&mut self, walk: &Walk, regs: &Regs, o: &mut O) {
        let four = Mode::of(regs) == Mode::Bits32;
        for step in &walk.steps[..walk.count as usize] {
            let other = |sp| (self.shadow.page(sp).role.0 & Role::GPTE4 != 0) != four;
            let pages: Vec<Sp> =
                self.shadow.shadowing(step.gpa.0 / PAGE_BYTES).filter(|sp| other(*sp)).collect();
            if !pages.is_empty() {
                self.drop_entries(&pages, step.gpa, o);
            }
        }
    }

    /// A shadow #PF: walk the guest, inject or install (kvm_mmu_page_fault).
    pub(crate) fn shadow_fault<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        o: &mut O,
    ) -> Fixed {
        let regs = self.kvm_regs(v);
        self.act(o, Act::PageFault { address: access.gva.0, error: 0 });
        let walk = self.guest_walk(&regs, access, o);
        let leaf = match walk.result {
            Ok(leaf) => leaf,
            Err(code) => {
                self.inject_own_fault(v, access.gva, code, o);
                return Fixed::Guest(code);
            }
        };
        let offset = access.gva.0 & (leaf.size.bytes() - 1) & !(PAGE_BYTES - 1);
        let gpa = Gpa(leaf.gpa.0 + offset);
        if self.must_wait(v, gpa) {
            return Fixed::Wait;
        }
        if access.kind == AccessKind::Write {
            self.host_write_fault(gpa.0 / PAGE_BYTES, o);
        }
        let Some(hpa) = self.back(gpa) else {
            return Fixed::Mmio(Gpa(gpa.0 | access.gva.0 & 0xfff));
        };
        // What others did meanwhile may have made host page, root or guest entries stale.
        if self.race(Point::FaultResolved, Some(v), o) {
            return Fixed::Retry;
        }
        let wp_clear = self.policy.mechanics.wp_clear_user_write;
        if wp_clear == WpClearUserWrite::EmulateUnderSmap
            && regs.cr4().contains(Cr4::SMAP)
            && becomes_supervisor(leaf.rights, &regs, access)
        {
            return Fixed::Mmio(Gpa(gpa.0 | access.gva.0 & 0xfff));
        }
        let Some(root) = self.vcpus[v].mmu.root.and_then(|r| r.sp) else { return Fixed::Retry };
        let sp = self.shadow_path(v, root, &regs, &walk, access.gva, o);
        let dirty = leaf.dirty || access.kind == AccessKind::Write;
        let rights = shadow_rights(leaf.rights, &regs, access);
        let mmu_writable = rights.write && dirty && !self.is_protected(gpa);
        let write = mmu_writable && self.host_writable(gpa.0 / PAGE_BYTES);
        let spte = Leaf { gpa, hpa, write, user: rights.user, xd: rights.xd };
        let at = index(access.gva.0, 1);
        let old = self.shadow.spte(sp, at);
        let moved = matches!(old, Spte::Leaf(old) if old.hpa != hpa);
        if moved {
            self.act(o, Act::SpteClear { sp, index: at });
        }
        self.shadow.set(sp, at, Spte::Leaf(spte));
        self.act(o, Act::SpteSet { sp, index: at });
        let mechanics = &self.policy.mechanics;
        let populated = old == Spte::None && mechanics.remote_flush.populate;
        if populated
            || moved && mechanics.remote_flush.pfn_change
            || self.set_over(old, spte, access, mmu_writable)
        {
            self.remote_flush(o);
        }
        if access.kind == AccessKind::Write && !write && self.is_protected(gpa) {
            // The guest writes its own table through a mapping: let it, as for any store.
            self.table_write_fault(gpa, o);
            let spte = Leaf { write: rights.write && dirty && !self.is_protected(gpa), ..spte };
            self.shadow.set(sp, at, Spte::Leaf(spte));
            self.act(o, Act::SpteSet { sp, index: at });
        }
        Fixed::Retry
    }

    /// Whether mmu_set_spte flushes every vCPU for what it puts over `old`.
    fn set_over(&mut self, old: Spte, new: Leaf, access: &Access, mmu_writable: bool) -> bool {
        let Spte::Leaf(old) = old else { return false };
        if old.hpa != new.hpa {
            return false;
        }
        let lost_write = old.write && !new.write && !mmu_writable;
        if self.ideal() {
            if lost_write {
                self.untold.insert(new.gpa.0 / PAGE_BYTES);
            }
            return false;
        }
        let refreshed =
            access.kind != AccessKind::Write && mmu_writable && (old.write || !new.write);
        match self.policy.mechanics.set_spte_remote_flush {
            SetSpteRemoteFlush::Never => false,
            SetSpteRemoteFlush::LostWrite => lost_write,
            SetSpteRemoteFlush::Refreshed => lost_write || refreshed,
        }
    }

    /// The shadow pages down to the page table of `gva`, made and linked where they are missing.
    pub(crate) fn shadow_path<O: Observer>(
        &mut self,
        v: usize,
        root: Sp,
        regs: &Regs,
        walk: &Walk,
        gva: Gva,
        o: &mut O,
    ) -> Sp {
        let mut sp = root;
        let leaf = walk.result.ok();
        let mut access = (true, true, true);
        let top = self.shadow.page(root).role;
        for level in (2..=top.level()).rev() {
            let (gfn, role, below) = self.child_of(regs, walk, level, gva, top, access);
            access = below;
            let at = index(gva.0, level);
            let present = match self.shadow.spte(sp, at) {
                Spte::Link(child) => {
                    let page = self.shadow.page(child);
                    (page.gfn == gfn && page.role == role).then_some(child)
                }
                _ => None,
            };
            sp = match present {
                Some(child) => child,
                None => {
                    let child = self.get_page(v, gfn, role, o);
                    // An address that was not present owes no flush, so nothing else would make
                    // what hangs below a found table equal to the guest's (65855ed8b034).
                    if self.policy.mechanics.link_unsync == LinkUnsync::Sync && !self.never() {
                        self.sync_below(v, child, o);
                    }
                    self.link_page(sp, at, child, o);
                    child
                }
            };
        }
        debug_assert!(leaf.is_some());
        sp
    }

    /// Frame, role and path rights of the shadow page below `level` on the way to `gva`.
    fn child_of(
        &self,
        regs: &Regs,
        walk: &Walk,
        level: u8,
        gva: Gva,
        top: Role,
        access: (bool, bool, bool),
    ) -> (u64, Role, (bool, bool, bool)) {
        let mode = Mode::of(regs);
        let step = walk.steps[..walk.count as usize].iter().find(|s| s.level == level);
        let leaf = walk.result.ok();
        let size = leaf.map_or(PAGE_BYTES, |l| l.size.bytes());
        let child_span = PAGE_BYTES << (9 * u32::from(level - 1));
        let table_below = match step {
            Some(_) => size < child_span << u32::from(mode == Mode::Bits32),
            // The pseudo level 3 above a 32-bit guest's directory, and Intel's PDPTE registers.
            None => matches!(mode, Mode::Bits32 | Mode::Pae) && level == 3,
        };
        if mode == Mode::Off {
            // A direct page stands for the frames of its whole span, whichever is accessed.
            let base = gva.0 & !(child_span - 1);
            let role = Role(top.0 | Role::DIRECT).child(level - 1, 0, access);
            return (base / PAGE_BYTES, role, access);
        }
        if !table_below {
            let base = leaf.map_or(0, |l| l.gpa.0) + (gva.0 & (size - 1) & !(child_span - 1));
            let rights = leaf.map_or(Rights::default(), |l| l.rights);
            let below = (rights.write, rights.user, !rights.xd);
            let role = Role(top.0 | Role::DIRECT).child(level - 1, 0, below);
            return (base / PAGE_BYTES, role, below);
        }
        let Some(step) = step else {
            let quadrant = (gva.0 >> 30) as u16 & 3;
            if mode == Mode::Pae {
                let pdpte = regs.pdpte[usize::from(quadrant)];
                let gfn = (pdpte & 0x000f_ffff_ffff_f000) / PAGE_BYTES;
                return (gfn, top.child(2, 0, access), access);
            }
            return (regs.root().0 / PAGE_BYTES, top.child(2, quadrant, access), access);
        };
        let pdpte = mode == Mode::Pae && level == 3;
        let nxe = regs.efer().contains(Efer::NXE) && mode != Mode::Bits32;
        let below = if pdpte {
            access
        } else {
            let xd = nxe && step.value >> 63 != 0;
            (access.0 && step.value & 2 != 0, access.1 && step.value & 4 != 0, access.2 && !xd)
        };
        let quadrant = if mode == Mode::Bits32 { (gva.0 >> 21) as u16 & 1 } else { 0 };
        let gfn = (step.value & 0x000f_ffff_ffff_f000) / PAGE_BYTES;
        (gfn, top.child(level - 1, quadrant, below), below)
    }

    /// Whether the host needs to see stores to this frame: a synced shadow page stands for it.
    pub(crate) fn is_protected(&self, gpa: Gpa) -> bool {
        self.shadow.shadowing(gpa.0 / PAGE_BYTES).any(|sp| !self.shadow.page(sp).unsync)
    }

    /// A store hits a write-protected table: page tables turn unsync, upper tables stay protected
    /// and the store is emulated. True if the guest itself may now store.
    pub(crate) fn table_write_fault<O: Observer>(&mut self, gpa: Gpa, o: &mut O) -> bool {
        let pages: Vec<Sp> = self.shadow.shadowing(gpa.0 / PAGE_BYTES).collect();
        let leaves = pages.iter().all(|sp| self.shadow.page(*sp).role.level() == 1);
        if !leaves || !self.config.unsync {
            return false;
        }
        for sp in pages {
            if !self.shadow.page(sp).unsync {
                self.shadow.set_unsync(sp, true);
                self.act(o, Act::SpUnsync { sp });
            }
        }
        true
    }

    /// kvm_mmu_pte_write: an emulated store drops what stands for the entry. Called after memory
    /// has changed.
    pub(crate) fn pte_write<O: Observer>(&mut self, gpa: Gpa, o: &mut O) {
        let pages: Vec<Sp> = self.shadow.shadowing(gpa.0 / PAGE_BYTES).collect();
        self.drop_entries(&pages, gpa, o);
    }

    /// Drops what these pages hold for the guest entry at `gpa`.
    fn drop_entries<O: Observer>(&mut self, pages: &[Sp], gpa: Gpa, o: &mut O) {
        let mut dropped = false;
        for &sp in pages {
            let role = self.shadow.page(sp).role;
            let offset = gpa.0 & (PAGE_BYTES - 1);
            let slots = if role.0 & Role::GPTE4 == 0 {
                [Some((offset / 8) as u16), None]
            } else {
                quadrant_slots(role, offset / 4)
            };
            for at in slots.into_iter().flatten() {
                dropped |= self.clear_spte(sp, at, o);
            }
        }
        if dropped && self.policy.mechanics.remote_flush.zap {
            self.remote_flush(o);
        }
    }

    /// An EPT violation or nested page fault: maps the frame.
    pub(crate) fn tdp_fault<O: Observer>(
        &mut self,
        v: usize,
        gpa: Gpa,
        write: bool,
        o: &mut O,
    ) -> Fixed {
        self.act(o, Act::PageFault { address: gpa.0, error: u64::from(write) << 1 });
        if self.must_wait(v, gpa) {
            return Fixed::Wait;
        }
        let gfn = gpa.0 / PAGE_BYTES;
        if write {
            self.host_write_fault(gfn, o);
        }
        let Some(hpa) = self.back(gpa) else { return Fixed::Mmio(gpa) };
        self.host.accessed(gfn);
        if self.race(Point::FaultResolved, Some(v), o) {
            return Fixed::Retry;
        }
        let (root, shift) = (self.root_hpa(v), self.host.shift(gfn));
        let Some(tree) = self.trees.get_mut(root) else { return Fixed::Retry };
        let populated = tree.frame(gfn).is_none();
        tree.insert(gfn, hpa, shift);
        if populated && self.policy.mechanics.remote_flush.populate {
            self.remote_flush(o);
        }
        Fixed::Retry
    }

    /// Whether a fault on this address has to wait (facts 5.9). The vCPU is outside the guest then,
    /// and its access is taken again when the invalidation has ended.
    pub(crate) fn must_wait(&mut self, v: usize, gpa: Gpa) -> bool {
        let wait = self.notifier.lock_held() || self.waits_for(gpa.0 / PAGE_BYTES);
        if wait {
            self.vcpus[v].waits_for = Some(gpa.0 / PAGE_BYTES);
        }
        wait
    }
}

/// Which entries of a shadow page stand for entry `slot` of a 32-bit guest table.
fn quadrant_slots(role: Role, slot: u64) -> [Option<u16>; 2] {
    let slot = slot as u16;
    if role.level() == 1 {
        return [(slot / 512 == role.quadrant()).then_some(slot % 512), None];
    }
    if slot / 256 != role.quadrant() {
        return [None, None];
    }
    let first = slot % 256 * 2;
    [Some(first), Some(first + 1)]
}

/// Whether an access is a write that the guest's entry allows through CR0.WP = 0 alone.
fn becomes_supervisor(rights: Rights, regs: &Regs, access: &Access) -> bool {
    let write = access.kind == AccessKind::Write && !access.user && !rights.write;
    write && !regs.cr0().contains(Cr0::WP)
}

/// The guest's rights as a shadow entry carries them: hardware runs with WP = 1, so a supervisor
/// write that WP = 0 allows gets a writable supervisor entry, not executable under SMEP.
fn shadow_rights(rights: Rights, regs: &Regs, access: &Access) -> Rights {
    if !becomes_supervisor(rights, regs, access) {
        return rights;
    }
    let smep = regs.cr4().contains(Cr4::SMEP);
    Rights { write: true, user: false, xd: rights.xd || rights.user && smep, ..rights }
}
