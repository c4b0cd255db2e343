//! The two ideal policies: they read the manuals' table and do what it owes, no more.
//!
//! `hw-min` uses the instructions that exist, so a flush may be wider than what is owed; `arch-min`
//! invalidates the owed scope exactly (`scope = "exact"`). Neither is a test of the judge, which reads the same table.

use tlbscope_trace::act::{ArchOp, FreeWhy, GuestInv, Hook, HookBy, Inv, Request, RootSlot};
use tlbscope_trace::addr::{Gva, Pcid, Sp};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::{CR3_PCID_MASK, Cr4, MmuKind, Regs, Vendor};

use super::root::PREV_ROOTS_MAX;
use super::shadow::Spte;
use crate::arch::required::{Scope, Strength, of_guest};
use crate::engine::Machine;
use crate::policy::Ideal;
use crate::policy::mechanics::Scope as ScopeKind;

impl Machine {
    /// Whether the policy is an ideal one.
    pub(crate) fn ideal(&self) -> bool {
        self.policy.ideal != Ideal::No
    }

    /// Serves what `op` owes, if the policy is an ideal one; its rules have chosen the root before.
    /// `before` are the registers the operation found; the machine's are those after.
    pub(crate) fn serve_ideal<O: Observer>(
        &mut self,
        v: usize,
        op: &ArchOp,
        before: &Regs,
        o: &mut O,
    ) {
        if !self.ideal() {
            return;
        }
        let after = self.vcpus[v].regs;
        let owed = of_guest(self.config.vendor, op, before, &after, false);
        for owed in owed.filter(|owed| owed.strength == Strength::Must) {
            self.serve_scope(v, owed.scope, o);
        }
    }

    pub(super) fn serve_scope<O: Observer>(&mut self, v: usize, scope: Scope, o: &mut O) {
        match scope {
            Scope::Everything | Scope::EveryAsid => {
                // It serves what Hyper-V's list asks for with the rest.
                if self.tdp() {
                    self.vcpus[v].requests.take(Request::HvTlbFlush);
                    self.vcpus[v].hv.purge();
                }
                self.serve_wide(v, None, GuestInv::All, o);
            }
            Scope::NonGlobal => self.serve_wide(v, None, GuestInv::Nonglobal, o),
            Scope::Pcid(pcid) => self.serve_wide(v, Some(pcid), GuestInv::Pcid(pcid), o),
            Scope::PcidNonGlobal(pcid) => {
                self.serve_wide(v, Some(pcid), GuestInv::PcidNonglobal(pcid), o);
            }
            Scope::Address { pcid, gva, path: true } => {
                self.serve_address(v, None, gva, GuestInv::AddressPath { pcid, gva }, o);
            }
            // INVVPID 0 leaves the paging-structure entries of other addresses (facts D.2). Those of
            // shadow tables the hypervisor drops with the link they copy.
            Scope::Address { pcid, gva, path: false } => {
                let exact = GuestInv::Address { pcid, gva };
                let invvpid = self.config.vendor == Vendor::Intel && self.tdp();
                if invvpid && self.policy.mechanics.scope != ScopeKind::Exact {
                    return self.flush_hook(v, Hook::Guest, HookBy::Direct, o);
                }
                self.serve_address(v, None, gva, exact, o);
            }
            Scope::AddressNonGlobal { pcid, gva } => {
                let inv = GuestInv::AddressNonglobal { pcid, gva };
                self.serve_address(v, Some(pcid), gva, inv, o);
            }
            // Only a fault that the hypervisor injects comes here: the others are the hardware's own.
            Scope::Fault { pcid, gva } => {
                self.serve_address(v, None, gva, GuestInv::Fault { pcid, gva }, o);
            }
            // Frames are served by the host's remote flush.
            _ => {}
        }
    }

    /// Whether a shadow page has a present leaf entry.
    fn has_leaf(&self, sp: Sp) -> bool {
        (0..512).any(|index| matches!(self.shadow.spte(sp, index), Spte::Leaf(_)))
    }

    /// Whether a root of this CR3 value belongs to `pcid` (`None`: any).
    fn root_has(&self, v: usize, pgd: u64, pcid: Option<Pcid>) -> bool {
        let pcide = self.vcpus[v].regs.cr4().contains(Cr4::PCIDE);
        let of = if pcide { Pcid((pgd & CR3_PCID_MASK) as u16) } else { Pcid(0) };
        pcid.is_none_or(|p| p == of)
    }

    /// A scope wider than a page: frozen entries of the roots it covers go, then the copies made
    /// from them. With an invalid root LOAD syncs and flushes in the same entry.
    fn serve_wide<O: Observer>(
        &mut self,
        v: usize,
        pcid: Option<Pcid>,
        exact: GuestInv,
        o: &mut O,
    ) {
        for slot in 0..PREV_ROOTS_MAX {
            let Some(root) = self.vcpus[v].mmu.prev[slot] else { continue };
            // An unsync page without a present entry has nothing to outlaw.
            let frozen = root.sp.is_some_and(|sp| {
                let below = self.shadow.unsync_below(sp);
                below.iter().any(|page| self.has_leaf(*page))
            });
            if frozen && self.root_has(v, root.pgd, pcid) {
                self.free_root(v, RootSlot::Prev(slot as u8), FreeWhy::SyncPrev, o);
            }
        }
        let current = self.vcpus[v].mmu.root;
        if current.is_some_and(|r| self.root_has(v, r.pgd, pcid)) {
            self.sync_roots(v, o);
        }
        match (self.policy.mechanics.scope, current) {
            (ScopeKind::Exact, _) => self.invalidate(v, Inv::Guest(exact), o),
            // LOAD's flush is the guest flush of shadow paging, but not of EPT (facts/kvm.md 0.3).
            (_, None) if self.config.mmu == MmuKind::Shadow => {}
            _ => self.flush_hook(v, Hook::Guest, HookBy::Direct, o),
        }
    }

    fn serve_address<O: Observer>(
        &mut self,
        v: usize,
        pcid: Option<Pcid>,
        gva: Gva,
        exact: GuestInv,
        o: &mut O,
    ) {
        let mmu = self.vcpus[v].mmu;
        for root in mmu.root.iter().chain(mmu.prev.iter().flatten()) {
            if let Some(sp) = root.sp
                && self.root_has(v, root.pgd, pcid)
            {
                self.sync_address(v, sp, gva, o);
            }
        }
        match self.policy.mechanics.scope {
            ScopeKind::Exact => self.invalidate(v, Inv::Guest(exact), o),
            _ => self.flush_hook(v, Hook::Gva(gva), HookBy::Direct, o),
        }
    }
}
