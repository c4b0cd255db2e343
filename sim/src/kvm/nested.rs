//! L1 and L2 of one vCPU: vmcs01 and vmcs02 (vmcb01 and vmcb02), vpid02, root_mmu and guest_mmu, and
//! what is flushed when L1 and L2 change places (facts/kvm.md 3.5, 6.2, 6.3).
//!
//! Three ways to run L2: L0 shadows L2's own tables in root_mmu (guest_mode in the role); with TDP
//! and no nested tables L2 runs on a TDP tree of its own role; with TDP and nested tables guest_mmu
//! shadows those. L1 intercepts nothing of what this machine can do in L2. L2 keeps its registers
//! from one entry to the next; the first entry finds L1's.

use tlbscope_trace::act::{Act, ArchOp, Hook, HookBy, Inv, Request};
use tlbscope_trace::addr::{Gpa, PcpuId, Vpid};
use tlbscope_trace::nested::{L2, NestedOp, Tables};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::L2Enter;
use tlbscope_trace::regs::{CR3_NOFLUSH, MmuKind, Regs, Vendor};

use super::root::Mmu;
use super::vcpu::Vmcb;
use crate::arch::mode::Mode;
use crate::engine::{Machine, Refused};
use crate::policy::mechanics::{
    GuestFlushVpid, MigrateVmx, NestedCr3Bit63, NestedDrain, NestedTlbControl, NestedTransition,
    NestedTransitionWhen, SvmNestedAsid, SvmNestedTransition, Vpid02Alloc, Vpid12Change,
};

/// What of a vCPU belongs to the level that does not run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Away {
    /// Its registers; `None`: L2 has never run.
    pub regs: Option<Regs>,
    /// Where its VMCS was active last; `None`: nowhere yet.
    pub vmcs_pcpu: Option<PcpuId>,
    /// Its VMCB.
    pub vmcb: Vmcb,
}

/// The nested half of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Nested {
    /// L2 runs, and what L1's processor knows of it.
    pub l2: Option<L2>,
    /// The level that does not run.
    pub away: Away,
    /// The MMU that is not active: guest_mmu, or root_mmu while L2 runs on nested tables.
    pub parked: Mmu,
    /// L1 is in VMX operation.
    pub vmxon: bool,
    /// The tag of L2; 0: none (VPIDs off or exhausted).
    pub vpid02: Vpid,
    /// The VPID of vmcs12 at the last entry; 0: forgotten.
    pub last_vpid12: u16,
    /// The EPT that was entered or named last.
    pub loaded: Option<Gpa>,
}

impl Machine {
    /// The nested tables that this vCPU runs on.
    pub(crate) fn tables12(&self, v: usize) -> Option<Tables> {
        self.vcpus[v].nested.l2.and_then(|l2| l2.tables)
    }

    /// The VPID of the active VMCS.
    pub(crate) fn active_vpid(&self, v: usize) -> Vpid {
        let vcpu = &self.vcpus[v];
        match vcpu.nested.l2 {
            Some(l2) if l2.tag != 0 && vcpu.nested.vpid02 != Vpid(0) => vcpu.nested.vpid02,
            _ => vcpu.vpid,
        }
    }

    /// The VPID that a flush hook takes for the current one (facts 6.2).
    pub(crate) fn hook_vpid(&self, v: usize, hook: Hook) -> Vpid {
        let nested = &self.vcpus[v].nested;
        let in_l2 = nested.l2.is_some() && nested.vpid02 != Vpid(0);
        match (self.policy.mechanics.guest_flush_vpid, hook) {
            (GuestFlushVpid::Vpid01, Hook::Guest | Hook::Gva(_)) => self.vcpus[v].vpid,
            (GuestFlushVpid::ActiveIfEnabled, _) => self.active_vpid(v),
            _ if in_l2 => nested.vpid02,
            _ => self.vcpus[v].vpid,
        }
    }

    /// VMXON: allocates vpid02, the lowest number that is free.
    pub(crate) fn vmxon(&mut self, v: usize) {
        if std::mem::replace(&mut self.vcpus[v].nested.vmxon, true) {
            return;
        }
        let free = |id: u16| self.vcpus.iter().all(|c| c.vpid.0 != id && c.nested.vpid02.0 != id);
        let most = self.config.vpids.min(u32::from(u16::MAX)) as u16;
        let vpid = (1..=most).find(|id| free(*id)).filter(|_| self.vcpus[v].vpid != Vpid(0));
        let nested = &mut self.vcpus[v].nested;
        nested.vpid02 = Vpid(vpid.unwrap_or(0));
        if self.policy.mechanics.vpid02_alloc == Vpid02Alloc::FlushFirst {
            nested.last_vpid12 = 0;
        }
    }

    /// VMXOFF: vpid02 is given back, guest_mmu's roots are dropped.
    pub(crate) fn vmxoff<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.vcpus[v].nested.vmxon = false;
        self.vcpus[v].nested.vpid02 = Vpid(0);
        self.with_parked(v, |machine| {
            machine.free_roots_of_mmu(v, tlbscope_trace::act::FreeWhy::Unload, o);
        });
    }

    /// Runs something on the MMU that is not active.
    pub(crate) fn with_parked<T>(&mut self, v: usize, run: impl FnOnce(&mut Self) -> T) -> T {
        let vcpu = &mut self.vcpus[v];
        std::mem::swap(&mut vcpu.mmu, &mut vcpu.nested.parked);
        let result = run(self);
        let vcpu = &mut self.vcpus[v];
        std::mem::swap(&mut vcpu.mmu, &mut vcpu.nested.parked);
        result
    }

    /// What `l2enter` describes, or why this machine cannot enter it.
    fn described(&self, v: usize, enter: &L2Enter) -> Result<L2, Refused> {
        let refuse = |why: &str| Err(Refused { op: "l2enter", why: why.into() });
        let intel = self.config.vendor == Vendor::Intel;
        if self.vcpus[v].nested.l2.is_some() {
            return refuse("L2 runs already: `l2exit` first");
        }
        if enter.eptp.is_some() != intel && enter.eptp.or(enter.ncr3).is_some() {
            return refuse("`eptp` is Intel's and `ncr3` AMD's");
        }
        let tables = enter.eptp.map(Tables::ept).or(enter.ncr3.map(Tables::npt));
        if tables.is_some() && self.config.mmu == MmuKind::Shadow {
            return refuse("without TDP the hypervisor offers L1 no nested tables");
        }
        if intel && enter.tlb_control.is_some() {
            return refuse("`tlb-control` is AMD's");
        }
        // An ASID is not optional on AMD, and 0 is L1's own.
        let tag = if intel { enter.vpid.unwrap_or(0) } else { enter.vpid.unwrap_or(1).max(1) };
        Ok(L2 { tag, tables })
    }

    /// `l2enter`: L1 enters L2.
    pub(crate) fn l2_enter<O: Observer>(
        &mut self,
        v: usize,
        enter: &L2Enter,
        o: &mut O,
    ) -> Result<(), Refused> {
        let l2 = self.described(v, enter)?;
        self.exit(v, None, o);
        self.vmxon(v);
        if let Some(eptp) = enter.eptp
            && !self.eptps.contains(&eptp)
        {
            self.eptps.push(eptp);
        }
        self.drain_requests(v, o);
        let before = self.vcpus[v].regs;
        let loaded = self.vcpus[v].nested.away.regs.unwrap_or(before);
        let cr3 = enter.cr3.unwrap_or(loaded.cr3);
        let owes = cr3 & CR3_NOFLUSH == 0
            || self.policy.mechanics.nested_cr3_bit63 == NestedCr3Bit63::Drop;
        let regs = Regs { cr3: cr3 & !CR3_NOFLUSH, cr4: enter.cr4.unwrap_or(loaded.cr4), ..loaded };
        self.change_level(v, Some(l2), regs, o);
        let op = NestedOp::Enter { l2, tlb_control: enter.tlb_control.unwrap_or(0) };
        self.report_nested(v, op, &before, o);
        if owes {
            self.flush_now(v, l2, o);
            self.transition(v, l2, true, o);
        }
        self.nested_tlb_control(v, enter.tlb_control.unwrap_or(0), o);
        self.change_mmu(v, l2.tables.is_some(), o);
        if enter.fail {
            if self.policy.mechanics.nested_fail_drain {
                self.drain_requests(v, o);
            }
            self.leave(v, l2, true, o);
        }
        Ok(())
    }

    /// `l2exit`: L2 exits to L1.
    pub(crate) fn l2_exit<O: Observer>(&mut self, v: usize, o: &mut O) -> Result<(), Refused> {
        let Some(l2) = self.vcpus[v].nested.l2 else {
            return Err(Refused { op: "l2exit", why: "L1 runs: `l2enter` first".into() });
        };
        self.exit(v, None, o);
        self.drain_requests(v, o);
        self.leave(v, l2, false, o);
        Ok(())
    }

    fn leave<O: Observer>(&mut self, v: usize, l2: L2, failed: bool, o: &mut O) {
        let before = self.vcpus[v].regs;
        let regs = self.vcpus[v].nested.away.regs.unwrap_or(before);
        self.change_level(v, None, regs, o);
        self.report_nested(v, NestedOp::Exit { l2 }, &before, o);
        self.transition(v, l2, false, o);
        self.change_mmu(v, l2.tables.is_some(), o);
        self.flush_now(v, l2, o);
        if failed && self.config.vendor == Vendor::Intel {
            self.mmu_reset(v, o);
        }
    }

    fn report_nested<O: Observer>(&mut self, v: usize, op: NestedOp, before: &Regs, o: &mut O) {
        let at = self.at_vcpu(v);
        o.arch(&at, &ArchOp::Nested(op), before, false, self);
    }

    /// kvm_service_local_tlb_flush_requests: what is pending is served in the context that is left.
    fn drain_requests<O: Observer>(&mut self, v: usize, o: &mut O) {
        let drain = self.policy.mechanics.nested_drain;
        if drain != NestedDrain::None && self.serve(v, Request::TlbFlushCurrent, o) {
            self.flush_hook(v, Hook::Current, HookBy::Request, o);
        }
        if drain == NestedDrain::CurrentAndGuest && self.serve(v, Request::TlbFlushGuest, o) {
            self.guest_flush(v, o);
        }
    }

    /// The other VMCS or VMCB, and its registers.
    fn change_level<O: Observer>(&mut self, v: usize, l2: Option<L2>, mut regs: Regs, o: &mut O) {
        let pcpu = self.vcpus[v].pcpu;
        let vcpu = &mut self.vcpus[v];
        vcpu.nested.l2 = l2;
        let away = Away { regs: Some(vcpu.regs), vmcs_pcpu: vcpu.vmcs_pcpu, vmcb: vcpu.vmcb };
        let came = std::mem::replace(&mut vcpu.nested.away, away);
        vcpu.vmcs_pcpu = Some(pcpu);
        vcpu.vmcb = came.vmcb;
        match self.policy.mechanics.svm_nested_asid {
            SvmNestedAsid::PerVmcb => {}
            SvmNestedAsid::Shared => vcpu.vmcb.asid = away.vmcb.asid,
            SvmNestedAsid::New => {
                vcpu.vmcb = Vmcb { asid: away.vmcb.asid, generation: 0, ..came.vmcb };
            }
        }
        vcpu.regs = regs;
        if Mode::of(&regs) == Mode::Pae {
            regs.pdpte = std::array::from_fn(|n| {
                let at = Gpa(regs.root().0 + 8 * n as u64);
                self.l1_gpa(v, at).map_or(0, |at| self.memory.read(at))
            });
        }
        let vcpu = &mut self.vcpus[v];
        vcpu.regs = regs;
        (vcpu.kvm_pdpte, vcpu.vmcs_pdpte) = (regs.pdpte, regs.pdpte);
        // A VMCS that was last active elsewhere, or never, is loaded (facts 5.10).
        let moved = came.vmcs_pcpu != Some(pcpu);
        let vmx = self.config.vendor == Vendor::Intel;
        if vmx && moved && self.policy.mechanics.migrate_vmx == MigrateVmx::All {
            let at = self.at_vcpu(v);
            o.act(&at, &Act::VmcsLoad, self);
            self.post(v, Request::TlbFlush, o);
        }
    }

    /// root_mmu or guest_mmu, with the root of the level that is entered.
    fn change_mmu<O: Observer>(&mut self, v: usize, nested_tables: bool, o: &mut O) {
        if nested_tables {
            let vcpu = &mut self.vcpus[v];
            std::mem::swap(&mut vcpu.mmu, &mut vcpu.nested.parked);
        }
        if let Some(tables) = self.tables12(v) {
            self.vcpus[v].nested.loaded = Some(tables.root);
        }
        self.mmu_init(v, o);
        if self.tables12(v).is_some() || !nested_tables {
            let pgd = self.vcpus[v].regs.cr3;
            self.new_pgd(v, pgd, o);
        }
    }

    /// Whether a VMX transition is one that flushes, and whether as `how` says.
    fn flushes(&self, l2: L2, how: NestedTransition) -> bool {
        let mechanics = &self.policy.mechanics;
        let when = l2.tag == 0 || mechanics.nested_transition_when == NestedTransitionWhen::Always;
        self.config.vendor == Vendor::Intel && when && mechanics.nested_transition == how
    }

    /// Up to 4.19: the flush of a transition is carried out before the new root is loaded.
    fn flush_now<O: Observer>(&mut self, v: usize, l2: L2, o: &mut O) {
        if self.flushes(l2, NestedTransition::CurrentNow) {
            self.flush_hook(v, Hook::Current, HookBy::Direct, o);
        }
    }

    /// nested_vmx_transition_tlb_flush, nested_svm_transition_tlb_flush (facts 3.5).
    fn transition<O: Observer>(&mut self, v: usize, l2: L2, enter: bool, o: &mut O) {
        if self.config.vendor == Vendor::Amd {
            return self.svm_transition(v, o);
        }
        let has_vpid = self.vcpus[v].vpid != Vpid(0);
        if self.flushes(l2, NestedTransition::Guest) {
            self.post(v, Request::TlbFlushGuest, o);
        } else if self.flushes(l2, NestedTransition::All) && has_vpid {
            self.post(v, Request::TlbFlush, o);
        }
        if l2.tag == 0 {
            return;
        }
        let vpid02 = self.vcpus[v].nested.vpid02;
        let nested = &mut self.vcpus[v].nested;
        if enter && nested.last_vpid12 != l2.tag {
            nested.last_vpid12 = l2.tag;
            match self.policy.mechanics.vpid12_change {
                Vpid12Change::Guest => self.post(v, Request::TlbFlushGuest, o),
                Vpid12Change::HwOnly if vpid02 != Vpid(0) && !self.never() => {
                    self.invalidate(v, Inv::VpidSingle(vpid02), o);
                }
                Vpid12Change::HwOnly => {}
            }
        } else if has_vpid && vpid02 == Vpid(0) && l2.tables.is_none() {
            self.post(v, Request::TlbFlushCurrent, o);
        }
    }

    fn svm_transition<O: Observer>(&mut self, v: usize, o: &mut O) {
        let how = self.policy.mechanics.svm_nested_transition;
        if how == SvmNestedTransition::Nothing {
            return;
        }
        self.post(v, Request::MmuSync, o);
        self.post(v, Request::TlbFlushCurrent, o);
        if how == SvmNestedTransition::Both && !self.never() {
            let other = &mut self.vcpus[v].nested.away.vmcb;
            let effective = other.tlb_control == 0;
            other.tlb_control = other.tlb_control.max(3);
            let (hook, by) = (Hook::Current, HookBy::Direct);
            let at = self.at_vcpu(v);
            o.act(&at, &Act::Hook { hook, by, effective }, self);
        }
    }

    /// vmcb12's TLB_CONTROL (facts 4.6).
    fn nested_tlb_control<O: Observer>(&mut self, v: usize, control: u8, o: &mut O) {
        if !matches!(control, 1 | 3 | 7) || self.never() {
            return;
        }
        match self.policy.mechanics.nested_tlb_control {
            NestedTlbControl::Ignore => {}
            NestedTlbControl::Raw => {
                self.vcpus[v].vmcb.tlb_control = control;
            }
            NestedTlbControl::Decoded => {
                self.post(v, Request::MmuSync, o);
                self.post(v, Request::TlbFlushGuest, o);
            }
        }
    }

    /// LOAD of guest_mmu: the shadow of the top nested table.
    pub(crate) fn nested_root<O: Observer>(
        &mut self,
        v: usize,
        tables: Tables,
        o: &mut O,
    ) -> super::root::Root {
        let role = self.vcpus[v].mmu.role;
        let sp = self.get_page(v, tables.root.0 / tlbscope_trace::addr::PAGE_BYTES, role, o);
        let hpa = super::shadow::ShadowPages::hpa(sp);
        let pgd = tables.root.0;
        super::root::Root { pgd, hpa, role, sp: Some(sp), special: false, obsolete: false }
    }

    /// Drops the roots that kvm_mmu_unload also drops: those of the MMU that is not active.
    pub(crate) fn unload_parked<O: Observer>(
        &mut self,
        v: usize,
        why: tlbscope_trace::act::FreeWhy,
        o: &mut O,
    ) {
        self.with_parked(v, |machine| machine.free_roots_of_mmu(v, why, o));
    }

    /// An EPT violation or #NPF that L1's own tables explain: L1 gets an exit.
    pub(crate) fn nested_violation<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.l2_exit(v, o).is_ok() {
            self.enter(v, false, o);
        }
    }
}
