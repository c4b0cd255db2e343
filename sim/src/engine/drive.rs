//! The machine by hand: an operation, one entry attempt, the hardware entry, each by itself, for
//! whoever feeds it the operations of a recording and compares what KVM did in between.
//!
//! A recording does not show guest memory. What KVM found there is told by [`Hints`]; everything
//! else is the machine's own doing.

use std::collections::VecDeque;

use tlbscope_trace::act::{At, Request};
use tlbscope_trace::addr::{Gva, Hpa, PcpuId, Time, VcpuId};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::regs::{CR3_PCID_MASK, MmuKind, Regs, Vendor};

use super::{Machine, Refused, Step};
use crate::arch::mode::Mode;
use crate::kvm::root::{PREV_ROOTS_MAX, Root};
use crate::kvm::shadow::ShadowPages;
use crate::policy::mechanics::{GuestFlushShadow, ZapAllRequest};

/// What guest memory and the host's memory management decide, in the order of its use. An empty
/// list means that nothing was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hints {
    /// For each sync of a root: remote flushes, because entries changed or lost their rights.
    pub syncs: VecDeque<u8>,
    /// For each sync of a root: whether entries changed that no other vCPU needs to know of.
    pub sync_current: VecDeque<bool>,
    /// For each look at the cached roots during a guest flush: which are unsync, bit n =
    /// `prev_roots[n]`.
    pub unsync_roots: VecDeque<u8>,
    /// For each LOAD: what its pages were.
    pub loads: VecDeque<LoadHint>,
    /// For each kvm_mmu_free_obsolete_roots and kvm_mmu_unload: remote flushes, because pages went with the roots.
    pub obsolete: VecDeque<u8>,
    /// For each load of the PDPTEs: whether one differs from before.
    pub pdptes: VecDeque<bool>,
    /// The operation under way is carried out by KVM's emulator.
    pub emulator: bool,
    /// Remote flushes of the next INVLPG or INVPCID 0, or of the next #PF that is injected.
    pub address: u8,
}

/// What LOAD found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadHint {
    /// Remote flushes: a new page write-protects its guest table, or an unsync one was synced.
    pub flushes: u8,
    /// A page that was found has unsync children.
    pub unsync: bool,
    /// Entries changed that no other vCPU needs to know of.
    pub current: bool,
    /// The root's page was new; `None`: not shown, the machine's own books decide.
    pub new: Option<bool>,
}

/// A root as it can be compared with a recorded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RootView {
    /// The guest CR3 it is for.
    pub pgd: u64,
    /// The page, by the machine's own address.
    pub hpa: Hpa,
}

impl From<Root> for RootView {
    fn from(root: Root) -> Self {
        Self { pgd: root.pgd, hpa: root.hpa }
    }
}

impl Machine {
    /// From here on the machine is driven by hand: nobody is in the guest, no vCPU has a VMCS on
    /// any processor, and `hints` stand for memory.
    pub fn drive(&mut self) {
        self.booted = true;
        self.hints = Some(Hints::default());
        for vcpu in &mut self.vcpus {
            vcpu.held = true;
            vcpu.vmcs_pcpu = None;
        }
    }

    /// What memory decides, to be filled before an operation.
    pub fn hints(&mut self) -> &mut Hints {
        self.hints.get_or_insert_default()
    }

    /// Carries out one operation of a vCPU that has exited for it, up to where KVM would begin an
    /// entry attempt.
    ///
    /// # Errors
    /// [`Refused`] if the machine cannot carry it out.
    pub fn perform<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        op: &Op,
        event: (u64, Time),
        o: &mut O,
    ) -> Result<Step, Refused> {
        let v = self.driven(vcpu, event, o);
        if *op == Op::Rsm {
            // The setters that RSM goes through are shown as writes of their own (facts 3.3).
            self.vcpus[v].smm = false;
            self.smm_rules(v, o);
            return Ok(Step::default());
        }
        let (op, emulator) = if let Op::Emul(inner) = op { (&**inner, true) } else { (op, false) };
        self.hints().emulator = emulator;
        // It has exited, whatever this machine thinks of it.
        self.emulated = true;
        let step = self.run_vcpu(v, op, o);
        self.emulated = false;
        step
    }

    /// The vCPU exits, if it has not yet.
    fn driven<O: Observer>(&mut self, vcpu: VcpuId, event: (u64, Time), o: &mut O) -> usize {
        let v = usize::from(vcpu.0);
        self.at = At { event: event.0, time: event.1, actor: Actor::Vcpu(vcpu) };
        self.exit(v, None, o);
        v
    }

    /// A vCPU before its power-up reset.
    pub fn power_on(&mut self, vcpu: VcpuId) {
        self.vcpus[usize::from(vcpu.0)].regs = Regs::default();
    }

    /// The guest's CR3 where it writes it without an exit, as far as a fault tells of it: whether
    /// its PCID bits are clear.
    pub fn pcid_bits_seen(&mut self, vcpu: VcpuId, clear: bool) {
        if self.config.mmu == MmuKind::Tdp {
            let cr3 = &mut self.vcpus[usize::from(vcpu.0)].regs.cr3;
            *cr3 = *cr3 & !CR3_PCID_MASK | u64::from(!clear);
        }
    }

    /// kvm_arch_vcpu_create ends in kvm_init_mmu.
    pub fn created<O: Observer>(&mut self, vcpu: VcpuId, o: &mut O) {
        self.mmu_init(usize::from(vcpu.0), o);
    }

    /// kvm_arch_vcpu_load on this processor.
    pub fn loaded<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        pcpu: PcpuId,
        event: (u64, Time),
        o: &mut O,
    ) -> Result<(), Refused> {
        let v = self.driven(vcpu, event, o);
        self.migrate(v, pcpu, o)
    }

    /// A page fault of the guest's own, which KVM found in shadow mode and injects: for a present
    /// entry without reserved bits the active root's copy goes first
    /// (kvm_inject_emulated_page_fault).
    pub fn inject_page_fault<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        fault: (Gva, u32),
        event: (u64, Time),
        o: &mut O,
    ) {
        let v = self.driven(vcpu, event, o);
        self.inject_own_fault(v, fault.0, fault.1, o);
    }

    /// A request that somebody else posts.
    pub fn posted<O: Observer>(&mut self, vcpu: VcpuId, request: Request, o: &mut O) {
        self.post(usize::from(vcpu.0), request, o);
    }

    /// A request that comes of a changed entry or of an unsync page, which guest memory decides:
    /// taken only if this policy's kernel makes it.
    pub fn posted_by_memory<O: Observer>(&mut self, vcpu: VcpuId, request: Request, o: &mut O) {
        let mechanics = &self.policy.mechanics;
        let made = match request {
            Request::TlbFlushCurrent => mechanics.own_spte_flush,
            // From 5.17 a sync that is interrupted asks to be done again (facts 2.6).
            Request::MmuSync => {
                mechanics.refind_requests_sync
                    || mechanics.guest_flush_shadow == GuestFlushShadow::Sync
            }
            // A software walk reads the PDPTEs again where they lie in memory (SVM with NPT), by
            // load_pdptrs (facts 2.2).
            Request::LoadMmuPgd => {
                let regs = &self.vcpus[usize::from(vcpu.0)].regs;
                mechanics.load_pdptrs.request_pgd
                    && self.config.vendor == Vendor::Amd
                    && self.config.mmu == MmuKind::Tdp
                    && Mode::of(regs) == Mode::Pae
            }
            _ => false,
        };
        if made {
            self.post(usize::from(vcpu.0), request, o);
        }
    }

    /// Bits that the guest owns, as KVM read them before the write under way.
    pub fn owned_bits_seen(&mut self, vcpu: VcpuId, register: u8, old: u64) {
        let mechanics = &self.policy.mechanics;
        let regs = &mut self.vcpus[usize::from(vcpu.0)].regs;
        let (value, owned) = match register {
            0 => (&mut regs.cr0, mechanics.own_cr0),
            _ => (&mut regs.cr4, mechanics.own_cr4),
        };
        *value = *value & !owned | old & owned;
    }

    /// Every root of the VM turns obsolete: no vCPU finds one again.
    pub fn forget_roots(&mut self) {
        self.trees.invalidate_all();
        self.shadow.hide_all();
    }

    /// Single roots of one vCPU turn obsolete: bit 0 the active one, bits 1 to 3 prev_roots.
    pub fn pages_zapped(&mut self, vcpu: VcpuId, slots: u8) {
        let mmu = &mut self.vcpus[usize::from(vcpu.0)].mmu;
        let roots = std::iter::once(&mut mmu.root).chain(&mut mmu.prev);
        for (_, root) in roots.enumerate().filter(|(n, _)| slots >> n & 1 != 0) {
            let Some(root) = root else { continue };
            root.obsolete = true;
            if let Some(sp) = root.sp.filter(|_| !root.special) {
                self.shadow.kill(sp);
            }
        }
    }

    /// What a zap of all roots means for one vCPU.
    pub fn roots_zapped<O: Observer>(&mut self, vcpu: VcpuId, o: &mut O) {
        let v = usize::from(vcpu.0);
        let mmu = &mut self.vcpus[v].mmu;
        for root in mmu.root.iter_mut().chain(mmu.prev.iter_mut().flatten()) {
            root.obsolete = true;
        }
        let request = match self.policy.mechanics.zap_all_request {
            ZapAllRequest::Reload => Request::MmuReload,
            ZapAllRequest::Obsolete => Request::MmuFreeObsoleteRoots,
        };
        self.post(v, request, o);
    }

    /// The requests that are pending, as bits of [`Request`].
    #[must_use]
    pub fn pending(&self, vcpu: VcpuId) -> u32 {
        self.vcpus[usize::from(vcpu.0)].requests.bits()
    }

    /// Whether an entry attempt has anything to do.
    #[must_use]
    pub fn wants_attempt(&self, vcpu: VcpuId) -> bool {
        let vcpu = &self.vcpus[usize::from(vcpu.0)];
        !vcpu.requests.is_empty() || vcpu.mmu.root.is_none()
    }

    /// One entry attempt up to its last check: requests, then LOAD.
    pub fn attempt<O: Observer>(&mut self, vcpu: VcpuId, event: (u64, Time), o: &mut O) {
        let v = self.driven(vcpu, event, o);
        self.serve_requests(v, o);
        if self.vcpus[v].mmu.root.is_none() {
            self.mmu_load(v, o);
        }
    }

    /// The hardware entry.
    pub fn entered<O: Observer>(&mut self, vcpu: VcpuId, event: (u64, Time), o: &mut O) {
        let v = self.driven(vcpu, event, o);
        self.hardware_entry(v, false, o);
    }

    /// The active root and the cached ones.
    #[must_use]
    pub fn roots(&self, vcpu: VcpuId) -> [Option<RootView>; 1 + PREV_ROOTS_MAX] {
        let mmu = &self.vcpus[usize::from(vcpu.0)].mmu;
        let slot = |n: usize| if n == 0 { mmu.root } else { mmu.prev[n - 1] };
        std::array::from_fn(|n| slot(n).map(RootView::from))
    }

    /// Takes over the roots that a recording shows after the machine went another way, so that
    /// one disagreement is counted once.
    pub fn take_over(&mut self, vcpu: VcpuId, slots: [Option<u64>; 4]) {
        let v = usize::from(vcpu.0);
        let role = self.root_role(v);
        let special = self.config.mmu == MmuKind::Shadow && role.level() < 4;
        let roots = slots.map(|slot| {
            slot.map(|pgd| match self.config.mmu {
                MmuKind::Tdp => {
                    let (hpa, _) = self.trees.take(role);
                    Root { pgd, hpa, role, sp: None, special: false, obsolete: false }
                }
                MmuKind::Shadow => {
                    let gfn = (pgd & 0x000f_ffff_ffff_f000) >> 12;
                    let found = self.shadow.find(gfn, role, 0).filter(|_| !special);
                    let sp = found.unwrap_or_else(|| self.shadow.create(gfn, role, special));
                    let (hpa, sp) = (ShadowPages::hpa(sp), Some(sp));
                    Root { pgd, hpa, role, sp, special, obsolete: false }
                }
            })
        });
        let vcpu = &mut self.vcpus[v];
        vcpu.requests = Default::default();
        vcpu.mmu.role = role;
        vcpu.mmu.root = roots[0];
        for (slot, root) in vcpu.mmu.prev.iter_mut().zip(&roots[1..]) {
            *slot = *root;
        }
    }

    /// The remote flushes that a hint names for an address.
    pub(crate) fn hinted_address<O: Observer>(&mut self, o: &mut O) -> bool {
        let Some(hints) = &mut self.hints else { return false };
        let flushes = std::mem::take(&mut hints.address);
        for _ in 0..flushes {
            self.remote_flush(o);
        }
        true
    }

    /// The remote flushes that a hint names for the sync of a root.
    pub(crate) fn hinted_sync<O: Observer>(&mut self, o: &mut O) -> bool {
        let Some(hints) = &mut self.hints else { return false };
        let current = hints.sync_current.pop_front().unwrap_or(false);
        for _ in 0..hints.syncs.pop_front().unwrap_or(0) {
            self.remote_flush(o);
        }
        if let (true, Actor::Vcpu(vcpu)) = (current, self.at.actor) {
            self.posted_by_memory(vcpu, Request::TlbFlushCurrent, o);
        }
        true
    }

    /// The remote flushes that a hint names for the pages that go with obsolete roots.
    pub(crate) fn hinted_obsolete<O: Observer>(&mut self, o: &mut O) {
        let Some(hints) = &mut self.hints else { return };
        for _ in 0..hints.obsolete.pop_front().unwrap_or(0) {
            self.remote_flush(o);
        }
    }

    /// The cached roots that a hint calls unsync, as bits.
    pub(crate) fn hinted_unsync(&mut self) -> Option<u8> {
        self.hints.as_mut().map(|hints| hints.unsync_roots.pop_front().unwrap_or(0))
    }

    /// Whether a hint calls the PDPTEs changed.
    pub(crate) fn hinted_pdptes(&mut self) -> Option<bool> {
        self.hints.as_mut().map(|hints| hints.pdptes.pop_front().unwrap_or(false))
    }

    /// Whether KVM's emulator, and no exit handler of its own, carries the operation out.
    pub(crate) fn by_emulator(&self) -> bool {
        self.emulated && self.hints.as_ref().is_none_or(|hints| hints.emulator)
    }

    /// The same of INVLPG, whose operand SVM tells only with decode assists.
    pub(crate) fn invlpg_by_emulator(&self) -> bool {
        let undecoded = self.config.vendor == Vendor::Amd && !self.config.decode_assists;
        self.by_emulator() || undecoded && self.hints.is_none()
    }

    /// What a hint says of the pages of a LOAD.
    pub(crate) fn hinted_load(&mut self) -> Option<LoadHint> {
        self.hints.as_mut().map(|hints| hints.loads.pop_front().unwrap_or_default())
    }
}
