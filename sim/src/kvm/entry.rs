//! vcpu_enter_guest: requests in their order, LOAD, the last check, the hardware entry
//! (facts/kvm.md 5.4, 10.3).

use tlbscope_trace::act::{
    Act, Class, Context, FreeWhy, Hook, HookBy, Inv, Request, RootSlot, Tag,
};
use tlbscope_trace::addr::{Ep4ta, Vpid};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::requests::Mode;
use crate::engine::{Machine, Point};
use crate::policy::Control;

/// Attempts before the machine calls an entry that never succeeds a defect of the policy.
const ATTEMPTS: u32 = 64;

impl Machine {
    /// A VM exit, unless the vCPU is out already.
    pub(crate) fn exit<O: Observer>(&mut self, v: usize, reason: Option<u16>, o: &mut O) {
        if !self.vcpus[v].in_guest {
            return;
        }
        self.vcpus[v].in_guest = false;
        self.vcpus[v].mode = Mode::Outside;
        self.presence.left(v, usize::from(self.vcpus[v].pcpu.0));
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Exit(reason), self);
        self.vpid_zero_transition(v, o);
        if self.policy.control == Control::FlushAll {
            for request in [Request::MmuReload, Request::TlbFlush, Request::TlbFlushGuest] {
                self.post(v, request, o);
            }
        }
    }

    /// An IPI makes a vCPU exit; it re-enters when the operation under way is over.
    pub(crate) fn kick<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.exit(v, None, o);
    }

    fn vpid_zero_transition<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.config.vendor == Vendor::Intel && self.active_vpid(v) == Vpid(0) {
            self.invalidate(v, Inv::VpidZeroTransition, o);
        }
    }

    /// Runs entry attempts until one succeeds. False if the hardware refused it (`fail`), or if
    /// requests never came to rest.
    pub(crate) fn enter<O: Observer>(&mut self, v: usize, fail: bool, o: &mut O) -> bool {
        if self.vcpus[v].in_guest {
            return true;
        }
        for _ in 0..ATTEMPTS {
            self.race(Point::Loaded, Some(v), o);
            if self.vcpus[v].descheduled || self.notifier.lock_held() {
                return false;
            }
            self.serve_requests(v, o);
            if self.vcpus[v].mmu.root.is_none() {
                self.mmu_load(v, o);
            }
            self.vcpus[v].mode = Mode::InGuest;
            self.race(Point::Committed, Some(v), o);
            if self.vcpus[v].mode == Mode::InGuest && self.vcpus[v].requests.is_empty() {
                if !self.hardware_entry(v, fail, o) {
                    self.vcpus[v].mode = Mode::Outside;
                    return false;
                }
                if std::mem::take(&mut self.vcpus[v].ipi_flush) {
                    self.flush_itself(v, o);
                }
                if self.vcpus[v].in_guest {
                    return true;
                }
                continue;
            }
            self.vcpus[v].mode = Mode::Outside;
            let at = self.at_vcpu(v);
            o.act(&at, &Act::EntryAborted { failed: false }, self);
        }
        false
    }

    pub(crate) fn serve<O: Observer>(&mut self, v: usize, request: Request, o: &mut O) -> bool {
        let pending = self.vcpus[v].requests.take(request);
        if pending {
            let at = self.at_vcpu(v);
            o.act(&at, &Act::Serve(request), self);
        }
        pending
    }

    /// Steps 5 to 14 of facts 5.4. Only the order is KVM's; a request raised by a later step waits
    /// for the next attempt.
    pub(crate) fn serve_requests<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.serve(v, Request::MmuReload, o) {
            self.mmu_unload(v, o);
        }
        if self.serve(v, Request::MmuFreeObsoleteRoots, o) {
            self.free_obsolete_roots(v, o);
        }
        // Patch 18 of the seed's series, never merged: after RELOAD (facts 9.4).
        if self.serve(v, Request::MmuUpdateRoot, o) {
            self.update_root(v, o);
        }
        if self.serve(v, Request::MmuSync, o) {
            self.sync_roots(v, o);
        }
        if self.serve(v, Request::LoadMmuPgd, o) {
            let root = self.root_hpa(v);
            if self.vcpus[v].mmu.root.is_some() {
                self.load_pgd(v, root, o);
            }
        }
        if self.serve(v, Request::TlbFlush, o) {
            self.vcpus[v].requests.take(Request::TlbFlushCurrent);
            self.flush_hook(v, Hook::All, HookBy::Request, o);
            if self.ideal() && self.tdp() && self.vcpus[v].requests.take(Request::HvTlbFlush) {
                // KVM goes through the list all the same; an ideal has flushed its pages with the rest.
                self.vcpus[v].hv.purge();
            }
        }
        if self.serve(v, Request::TlbFlushCurrent, o) {
            self.flush_hook(v, Hook::Current, HookBy::Request, o);
        }
        if self.serve(v, Request::TlbFlushGuest, o) {
            self.guest_flush(v, o);
        }
        if self.serve(v, Request::HvTlbFlush, o) {
            self.hv_tlb_flush(v, o);
        }
        if self.serve(v, Request::StealUpdate, o) {
            self.record_steal_time(v, o);
        }
        if self.serve(v, Request::ApicPageReload, o) {
            self.apic_page_reload(v, o);
        }
    }

    /// The root follows the role. An ideal policy takes no cached root of another role in shadow
    /// mode: what the TLB holds was made from the root before, and only LOAD flushes it.
    fn update_root<O: Observer>(&mut self, v: usize, o: &mut O) {
        let mmu = self.vcpus[v].mmu;
        let other_role = mmu.root.is_some_and(|root| root.role != mmu.role);
        if self.ideal() && other_role && self.config.mmu == MmuKind::Shadow {
            return self.free_root(v, RootSlot::Current, FreeWhy::NotCacheable, o);
        }
        let pgd = self.vcpus[v].regs.cr3;
        self.new_pgd(v, pgd, o);
    }

    pub(crate) fn hardware_entry<O: Observer>(&mut self, v: usize, fail: bool, o: &mut O) -> bool {
        let amd = self.config.vendor == Vendor::Amd;
        if amd {
            self.pre_svm_run(v, o);
        }
        let context = self.context(v);
        self.vcpus[v].context = context;
        if fail {
            self.failed_entry(v, o);
            return false;
        }
        if amd {
            self.vmrun_flush(v, o);
        }
        self.vpid_zero_transition(v, o);
        self.vcpus[v].in_guest = true;
        self.vcpus[v].ran = true;
        self.presence.entered(v, usize::from(self.vcpus[v].pcpu.0));
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Entry(context), self);
        true
    }

    /// VMLAUNCH or VMRUN fails: TLB_CONTROL has had no effect; whether KVM clears it is a mechanic.
    fn failed_entry<O: Observer>(&mut self, v: usize, o: &mut O) {
        use crate::policy::mechanics::TlbControlClear;
        if self.policy.mechanics.svm_tlb_control_clear == TlbControlClear::Always {
            self.vcpus[v].vmcb.tlb_control = 0;
        }
        let at = self.at_vcpu(v);
        o.act(&at, &Act::EntryAborted { failed: true }, self);
    }

    /// The context that the hardware enters.
    fn context(&self, v: usize) -> Context {
        let vcpu = &self.vcpus[v];
        let root = self.root_hpa(v);
        let tdp = self.config.mmu == MmuKind::Tdp;
        let (class, id) = match self.config.vendor {
            Vendor::Amd => (Class::Asid, vcpu.vmcb.asid.0),
            Vendor::Intel if tdp => (Class::Combined, u32::from(self.active_vpid(v).0)),
            Vendor::Intel => (Class::Linear, u32::from(self.active_vpid(v).0)),
        };
        let ep4ta = if class == Class::Combined { Ep4ta(root.0) } else { Ep4ta(0) };
        let tag = Tag { pcpu: vcpu.pcpu, class, id, ep4ta, pcid: vcpu.regs.pcid() };
        // Under TDP the pages of guest_mmu are no linear root.
        let shadow_root = vcpu.mmu.root.and_then(|r| r.sp).filter(|_| !tdp);
        Context { tag, root, shadow_root }
    }
}
