//! Unsync shadow pages and how they are made equal to the guest's tables again (facts/kvm.md 2.6).

use tlbscope_trace::act::{Act, ArchOp, FreeWhy, RootSlot};
use tlbscope_trace::addr::{Gpa, Gva, PAGE_BYTES, Sp};
use tlbscope_trace::observe::Observer;

use super::shadow::{Leaf, Spte};
use crate::engine::Machine;
use crate::paging::walk;
use crate::policy::Ideal;
use crate::policy::mechanics::{InvlpgKind, InvlpgRemoteFlush};

impl Machine {
    /// Bytes of one guest entry behind this page, and the address of the entry at `index`.
    fn guest_entry(&self, sp: Sp, index: u16) -> (Gpa, u8) {
        let page = self.shadow.page(sp);
        let bytes: u8 = if page.role.0 & super::role::Role::GPTE4 != 0 { 4 } else { 8 };
        let slot = if bytes == 4 { page.role.quadrant() * 512 + index } else { index };
        (Gpa(page.gfn * PAGE_BYTES + u64::from(slot) * u64::from(bytes)), bytes)
    }

    /// What the guest's present entry makes of a leaf SPTE, if it is still present, accessed, of the
    /// same frame, and has no bit set that is reserved for the vCPU which syncs: another one may run
    /// with other registers on the same tables.
    fn reread(&self, v: usize, sp: Sp, index: u16, old: Leaf) -> Option<Leaf> {
        let (gpa, bytes) = self.guest_entry(sp, index);
        let raw = self.memory.read_entry(gpa, bytes);
        let entry = match self.shadow.page(sp).role.nested_format() {
            Some(format) => crate::paging::nested::ordinary(format, raw),
            None if walk::reserved_in_page(self, &self.vcpus[v].regs, bytes, raw) => return None,
            None => raw,
        };
        let (present, accessed) = (entry & 1 != 0, entry & 1 << 5 != 0);
        let frame = entry & 0x000f_ffff_ffff_f000;
        if !present || !accessed || frame != old.gpa.0 {
            return None;
        }
        let (write, user, exec) = self.shadow.page(sp).role.access();
        let dirty = entry & 1 << 6 != 0;
        Some(Leaf {
            write: write
                && entry & 1 << 1 != 0
                && dirty
                && self.host_writable(old.gpa.0 / PAGE_BYTES)
                && !self.is_protected(old.gpa),
            user: user && entry & 1 << 2 != 0,
            xd: !exec || (bytes == 8 && entry >> 63 != 0),
            ..old
        })
    }

    /// Re-reads one leaf entry. True if it changed.
    fn sync_entry<O: Observer>(
        &mut self,
        v: usize,
        sp: Sp,
        index: u16,
        old: Leaf,
        o: &mut O,
    ) -> bool {
        let new = self.reread(v, sp, index, old);
        match new {
            Some(leaf) => {
                // A changed entry is taken away before the new one stands: other vCPUs may hold
                // copies with the old rights, which the remote flush is for.
                if leaf != old {
                    self.act(o, Act::SpteClear { sp, index });
                }
                self.shadow.set(sp, index, Spte::Leaf(leaf));
                self.act(o, Act::SpteSet { sp, index });
            }
            None => {
                self.shadow.set(sp, index, Spte::None);
                self.act(o, Act::SpteClear { sp, index });
            }
        }
        new != Some(old)
    }

    /// Write-protects the guest's table again and re-reads the whole page. True if some SPTE
    /// changed or went.
    pub(crate) fn sync_page<O: Observer>(&mut self, v: usize, sp: Sp, o: &mut O) -> bool {
        let mut changed = false;
        for index in 0..512 {
            if let Spte::Leaf(old) = self.shadow.spte(sp, index) {
                let new = self.reread(v, sp, index, old);
                self.shadow.set(sp, index, new.map_or(Spte::None, Spte::Leaf));
                match new {
                    None => self.act(o, Act::SpteClear { sp, index }),
                    // The right is of now, whatever took it away since the entry was made.
                    Some(leaf) if leaf.write && !old.write => {
                        self.act(o, Act::SpteSet { sp, index });
                    }
                    Some(_) => {}
                }
                changed |= new != Some(old);
            }
        }
        self.shadow.set_unsync(sp, false);
        self.act(o, Act::SpSync { sp, changed });
        changed
    }

    /// mmu_sync_children over the unsync pages of `root`.
    pub(crate) fn sync_below<O: Observer>(&mut self, v: usize, root: Sp, o: &mut O) {
        let pages = self.shadow.unsync_below(root);
        if pages.is_empty() {
            return;
        }
        let mut protected = false;
        for sp in &pages {
            if self.shadow.page(*sp).unprotected {
                self.write_protect(self.shadow.page(*sp).gfn, o);
                protected = true;
            }
        }
        let flush = self.policy.mechanics.remote_flush.write_protect;
        if protected && flush {
            self.remote_flush(o);
        }
        self.protected_tables(&pages, o);
        // All of them are tables again before the first entry is read: one may map another.
        for sp in &pages {
            self.shadow.set_unsync(*sp, false);
        }
        let mut changed = false;
        for sp in pages {
            changed |= self.sync_page(v, sp, o);
        }
        if changed && self.policy.mechanics.remote_flush.sync {
            self.remote_flush(o);
        }
    }

    /// From here on the host counts on seeing every store to these tables.
    pub(crate) fn protected_tables<O: Observer>(&mut self, pages: &[Sp], o: &mut O) {
        for sp in pages {
            let gpa = Gpa(self.shadow.page(*sp).gfn * PAGE_BYTES);
            let op = ArchOp::HostDead { gpa, size: PAGE_BYTES };
            self.arch(o, None, &op, false);
        }
    }

    /// Clears W in every SPTE that maps a guest frame. True if one had it set, or if a copy may be writable
    /// of which none tells.
    pub(crate) fn clear_write(&mut self, gfn: u64) -> bool {
        let mut changed = self.untold.contains(&gfn);
        for (sp, index) in self.shadow.mapping(gfn) {
            if let Spte::Leaf(leaf) = self.shadow.spte(sp, index)
                && leaf.write
            {
                self.shadow.set(sp, index, Spte::Leaf(Leaf { write: false, ..leaf }));
                changed = true;
            }
        }
        changed
    }

    /// Takes write access to a guest frame away in every SPTE that maps it. True if one had it, or if
    /// the flush that this is for is exact: it may have spared what no SPTE tells of any more.
    pub(crate) fn write_protect<O: Observer>(&mut self, gfn: u64, o: &mut O) -> bool {
        let mut changed = self.clear_write(gfn) || self.policy.ideal == Ideal::ArchMin;
        self.note_lost(gfn, 1);
        // Under TDP, where this is one of L1's nested tables, L1's own mapping of it loses the right.
        changed |= self.trees.maps_any(&(gfn..gfn + 1));
        let gpa = Gpa(gfn * PAGE_BYTES);
        let op = ArchOp::HostChange { gpa, size: PAGE_BYTES, rights: true };
        self.arch(o, None, &op, false);
        changed
    }

    /// kvm_mmu_sync_roots of the active root: a no-op for direct and invalid roots.
    pub(crate) fn sync_roots<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.never() {
            return;
        }
        let Some(root) = self.vcpus[v].mmu.root else { return };
        self.act(o, Act::SyncRoots);
        if self.hinted_sync(o) {
            return;
        }
        if let Some(sp) = root.sp {
            self.sync_below(v, sp, o);
        }
    }

    /// kvm_mmu_sync_prev_roots: cached roots that are unsync are freed, not synced.
    pub(crate) fn sync_prev_roots<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.act(o, Act::SyncPrevRoots);
        if let Some(unsync) = self.hinted_unsync() {
            for slot in (0..super::root::PREV_ROOTS_MAX).filter(|slot| unsync >> slot & 1 != 0) {
                self.free_root(v, RootSlot::Prev(slot as u8), FreeWhy::SyncPrev, o);
            }
            return;
        }
        for slot in 0..super::root::PREV_ROOTS_MAX {
            if let Some(sp) = self.vcpus[v].mmu.prev[slot].and_then(|r| r.sp)
                && !self.shadow.unsync_below(sp).is_empty()
            {
                self.free_root(v, RootSlot::Prev(slot as u8), FreeWhy::SyncPrev, o);
            }
        }
    }

    /// The shadow side of INVLPG in one root: the leaf is re-read if its page is unsync.
    pub(crate) fn sync_address<O: Observer>(&mut self, v: usize, root: Sp, gva: Gva, o: &mut O) {
        if self.hinted_address(o) {
            return;
        }
        let Some((sp, index, leaf)) = self.shadow.walk(root, gva.0) else { return };
        if !self.shadow.page(sp).unsync {
            return;
        }
        let changed = self.sync_entry(v, sp, index, leaf, o);
        let mechanics = &self.policy.mechanics;
        let always = mechanics.invlpg_remote_flush == InvlpgRemoteFlush::Always;
        let wanted = always || changed && mechanics.remote_flush.sync;
        if wanted && mechanics.invlpg != InvlpgKind::None {
            self.remote_flush(o);
        }
    }
}
