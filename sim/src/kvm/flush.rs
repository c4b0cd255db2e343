//! The vendor's flush hooks, and requests posted to other vCPUs (facts/kvm.md 5.2, 5.8, 6.2, 6.3).

use tlbscope_trace::act::{Act, Hook, HookBy, Inv, Request};
use tlbscope_trace::addr::{Asid, Ep4ta, Gpa, Gva, Hpa, PAGE_BYTES, Vpid};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::{MmuKind, Regs, Vendor};

use super::errata;
use crate::engine::Machine;
use crate::machine::config::{Errata, InveptTypes, InvvpidTypes};
use crate::policy::mechanics::{
    EnlightenedNptFlush, FlushAllContexts, MigrateSvm, RemoteRange, SvmAsidWrap, SvmFlush,
};

impl Machine {
    /// kvm_flush_remote_tlbs.
    pub(crate) fn remote_flush<O: Observer>(&mut self, o: &mut O) {
        if self.never() {
            return;
        }
        self.untold.clear();
        if self.config.enlightened_npt {
            (0..self.vcpus.len()).for_each(|v| self.flush_physical_space(v, o));
        }
        let range = self.policy.mechanics.remote_flush.range;
        for _ in 0..self.policy.mechanics.remote_flush.repeat {
            if range != RemoteRange::None {
                self.flush_frames(range, o);
                continue;
            }
            let ipi = self.request_all(Request::TlbFlush, o);
            self.act(o, Act::RemoteFlush { ipi: Some(ipi) });
        }
    }

    /// kvm_flush_remote_tlbs_range: whatever `remote-flush.range` makes of it.
    pub(crate) fn remote_flush_range<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        self.note_lost(gpa.0 / PAGE_BYTES, size.div_ceil(PAGE_BYTES).max(1));
        self.remote_flush(o);
    }

    /// Calls a flush hook of the vendor.
    pub(crate) fn flush_hook<O: Observer>(&mut self, v: usize, hook: Hook, by: HookBy, o: &mut O) {
        if self.never() {
            return;
        }
        match self.config.vendor {
            Vendor::Intel => self.vmx_flush(v, hook, by, o),
            Vendor::Amd => self.svm_flush(v, hook, by, o),
        }
    }

    fn hook_act<O: Observer>(
        &mut self,
        v: usize,
        hook: Hook,
        by: HookBy,
        inv: Option<Inv>,
        o: &mut O,
    ) {
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Hook { hook, by, effective: inv.is_some() }, self);
        if let Some(inv) = inv {
            self.invalidate(v, inv, o);
        }
    }

    /// vmx_vcpu_reset flushes vpid01 by itself (facts 3.2).
    pub(super) fn vmx_reset_flush<O: Observer>(&mut self, v: usize, before: &Regs, o: &mut O) {
        if self.never() {
            return;
        }
        let inv = self.invvpid_context(self.vcpus[v].vpid);
        let inv = inv.map(|inv| errata::of_init(self.config.errata, inv, before));
        self.hook_act(v, Hook::Guest, HookBy::Direct, inv, o);
    }

    /// The hooks of facts 6.2.
    fn vmx_flush<O: Observer>(&mut self, v: usize, hook: Hook, by: HookBy, o: &mut O) {
        let vpid = self.hook_vpid(v, hook);
        let root = self.vcpus[v].mmu.root;
        let tdp = self.config.mmu == MmuKind::Tdp;
        let inv = match hook {
            Hook::All if self.policy.mechanics.flush_all_contexts != FlushAllContexts::Every => {
                return self.vmx_flush_one_context(v, by, o);
            }
            Hook::All if tdp => Some(Inv::EptGlobal),
            Hook::All if vpid == Vpid(0) => None,
            Hook::All if self.config.invvpid.contains(InvvpidTypes::ALL_CONTEXTS) => {
                Some(Inv::VpidAll)
            }
            Hook::All => {
                let other = self.vcpus[v].nested.vpid02;
                if other != Vpid(0) {
                    self.invalidate(v, Inv::VpidSingle(other), o);
                }
                Some(Inv::VpidSingle(self.vcpus[v].vpid))
            }
            Hook::Current => match root {
                None => None,
                Some(_) if tdp && !self.config.invept.contains(InveptTypes::SINGLE) => {
                    Some(Inv::EptGlobal)
                }
                Some(root) if tdp => Some(Inv::EptSingle(Ep4ta(root.hpa.0))),
                Some(_) => self.invvpid_context(vpid),
            },
            Hook::Guest => self.invvpid_context(vpid),
            Hook::Gva(gva)
                if vpid != Vpid(0) && self.config.invvpid.contains(InvvpidTypes::ADDRESS) =>
            {
                Some(Inv::VpidAddress { vpid, gva })
            }
            Hook::Gva(_) => self.invvpid_context(vpid),
        };
        self.hook_act(v, hook, by, inv, o);
    }

    /// The flush_tlb_all of kernels that knew one context only: the active one's, or L1's.
    fn vmx_flush_one_context<O: Observer>(&mut self, v: usize, by: HookBy, o: &mut O) {
        let vcpu = &self.vcpus[v];
        let l1 = self.policy.mechanics.flush_all_contexts == FlushAllContexts::L1;
        let parked = l1 && self.tables12(v).is_some();
        let root = if parked { vcpu.nested.parked.root } else { vcpu.mmu.root };
        let vpid = if l1 { vcpu.vpid } else { self.hook_vpid(v, Hook::Current) };
        let inv = match root {
            Some(root) if self.config.mmu == MmuKind::Tdp => {
                Some(Inv::EptSingle(Ep4ta(root.hpa.0)))
            }
            Some(_) => self.invvpid_context(vpid),
            None => None,
        };
        self.hook_act(v, Hook::All, by, inv, o);
    }

    /// INVVPID single-context, or all-context where the CPU lacks it; nothing without a VPID.
    pub(crate) fn invvpid_context(&self, vpid: Vpid) -> Option<Inv> {
        match vpid {
            Vpid(0) => None,
            _ if self.config.invvpid.contains(InvvpidTypes::SINGLE) => Some(Inv::VpidSingle(vpid)),
            _ => Some(Inv::VpidAll),
        }
    }

    /// The hooks of facts 6.3: all but gva are one "ASID flush" at the next VMRUN.
    fn svm_flush<O: Observer>(&mut self, v: usize, hook: Hook, by: HookBy, o: &mut O) {
        if let Hook::Gva(gva) = hook {
            let asid = self.vcpus[v].vmcb.asid;
            return self.hook_act(v, hook, by, Some(Inv::Invlpga { asid, gva }), o);
        }
        let by_asid = self.config.flushbyasid;
        // The wide TLB_CONTROL needs no FLUSHBYASID, and drops every ASID of the processor.
        let wide = self.policy.mechanics.svm_flush == SvmFlush::All;
        let vmcb = &mut self.vcpus[v].vmcb;
        let effective = if wide {
            let set = vmcb.tlb_control != 1;
            vmcb.tlb_control = 1;
            set
        } else if by_asid {
            let set = vmcb.tlb_control == 0;
            if set {
                vmcb.tlb_control = 3;
            }
            set
        } else {
            let set = vmcb.generation != 0;
            vmcb.generation = 0;
            set
        };
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Hook { hook, by, effective }, self);
        if hook != Hook::Guest
            && self.policy.mechanics.enlightened_npt_flush == EnlightenedNptFlush::Current
        {
            self.flush_physical_space(v, o);
        }
    }

    /// The hypercall by which an enlightened KVM has the hypervisor below forget what it made of the
    /// nested tables of the active root (HvCallFlushGuestPhysicalAddressSpace).
    fn flush_physical_space<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.config.enlightened_npt
            && let Some(root) = self.vcpus[v].mmu.root
        {
            self.invalidate(v, Inv::EptSingle(Ep4ta(root.hpa.0)), o);
        }
    }

    /// The gva hook for an address that is not canonical: INVVPID fails, INVLPGA ignores it.
    pub(super) fn flush_noncanonical<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        by: HookBy,
        o: &mut O,
    ) {
        if !self.never() {
            self.hook_act(v, Hook::Gva(gva), by, None, o);
        }
    }

    /// The hardware invalidates on the vCPU's processor.
    pub(crate) fn invalidate<O: Observer>(&mut self, v: usize, inv: Inv, o: &mut O) {
        let regs = &self.vcpus[v].regs;
        let Some(inv) = errata::carried_out(self.config.errata, inv, regs) else { return };
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Inv(inv), self);
        let tag = self.vcpus[v].context.tag;
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let event = self.at.event;
        let tlb = &mut self.pcpus[pcpu].tlb;
        tlb.invalidate(inv, &tag, event, &mut |tag, global, n| o.dropped(&at, tag, global, n));
    }

    /// svm_vcpu_load: V510 gives the ASID up whenever the vCPU is loaded on another pCPU than before,
    /// later kernels look at the VMCB when it runs (facts 5.10).
    pub(crate) fn svm_vcpu_load(&mut self, v: usize) {
        if self.policy.mechanics.migrate_svm == MigrateSvm::PerVcpu {
            self.vcpus[v].vmcb.generation = 0;
            self.vcpus[v].nested.away.vmcb.generation = 0;
        }
    }

    /// pre_svm_run: the ASID of the next VMRUN, and a TLB_CONTROL that a wrap asks for.
    pub(crate) fn pre_svm_run<O: Observer>(&mut self, v: usize, o: &mut O) {
        let pcpu = self.vcpus[v].pcpu;
        let per_vmcb = match self.policy.mechanics.migrate_svm {
            MigrateSvm::PerVmcb | MigrateSvm::BothVmcbs => true,
            MigrateSvm::PerVcpu | MigrateSvm::None => false,
        };
        let both = self.policy.mechanics.migrate_svm == MigrateSvm::BothVmcbs;
        if both && self.vcpus[v].vmcb.pcpu.is_some_and(|last| last != pcpu) {
            self.vcpus[v].nested.away.vmcb.generation = 0;
        }
        let pool = &mut self.pcpus[pcpu.0 as usize].asids;
        let vmcb = &mut self.vcpus[v].vmcb;
        if vmcb.pcpu != Some(pcpu) {
            vmcb.pcpu = Some(pcpu);
            if per_vmcb {
                vmcb.generation = 0;
            }
        }
        if vmcb.generation == pool.generation {
            return;
        }
        if pool.next > pool.max {
            pool.generation += 1;
            pool.next = 1;
            // 1 drops the numbers that others held before the wrap; 3 leaves those in the TLB.
            vmcb.tlb_control = match self.policy.mechanics.svm_asid_wrap {
                SvmAsidWrap::All => 1,
                SvmAsidWrap::Asid => 3,
            };
        }
        vmcb.generation = pool.generation;
        vmcb.asid = Asid(pool.next);
        pool.next += 1;
        let asid = vmcb.asid;
        let at = self.at_vcpu(v);
        o.act(&at, &Act::NewAsid(asid), self);
    }

    /// A successful VMRUN acts on TLB_CONTROL and KVM clears it.
    pub(crate) fn vmrun_flush<O: Observer>(&mut self, v: usize, o: &mut O) {
        let asid = self.vcpus[v].vmcb.asid;
        let control = std::mem::take(&mut self.vcpus[v].vmcb.tlb_control);
        let first = !std::mem::replace(&mut self.vcpus[v].vmcb.entered, true);
        if first && self.config.errata.contains(Errata::AMD_SEV_VMCB_FLUSH) {
            return;
        }
        match control {
            1 => self.invalidate(v, Inv::TlbControlAll, o),
            3 => self.invalidate(v, Inv::TlbControlAsid(asid), o),
            7 => self.invalidate(v, Inv::TlbControlNonglobal(asid), o),
            _ => {}
        }
    }

    /// Whether the host's mapping of this frame grants write access now.
    pub(crate) fn host_writable(&self, gfn: u64) -> bool {
        !self.host.read_only(gfn) && (!self.host.clean(gfn) || self.logs_by_dirty_bit())
    }

    /// The guest writes a frame through a fault: a read-only backing is copied, and the dirty log
    /// learns of it.
    pub(crate) fn host_write_fault<O: Observer>(&mut self, gfn: u64, o: &mut O) {
        if self.host.read_only(gfn) {
            self.break_copy_on_write(gfn, o);
        }
        self.host.dirtied(gfn);
    }

    /// The host frame behind a guest page, made if the host has none yet; `None` outside every
    /// memory slot.
    pub(crate) fn back(&mut self, gpa: Gpa) -> Option<Hpa> {
        let gfn = gpa.0 / PAGE_BYTES;
        let memory = gpa.0 < self.config.memory && self.host.has_slot(gfn);
        memory.then(|| self.host.back(gfn))
    }
}
