//! The page at 0xfee00000 that the processor virtualizes, so that switching to it and moving it are
//! matters of the TLB (facts/kvm.md 5.7, 15.6).
//!
//! *VMX*: a page of the host backs it, and the VMCS holds its address (the APIC-access address; SDM vol. 3,
//! 30.4). An access is virtualized if its translation leads to that address. The host may take the
//! page like any other; KVM then has every vCPU look it up again. The address in the VMCS is a
//! reference that no page table and no TLB holds: its use is told as [`Act::HeldPage`].
//!
//! *AVIC*: while it is on for a vCPU the page is the vCPU's APIC backing page, while it is off whatever KVM's
//! slot holds. A translation made while it was off leads to the latter and stays until it is flushed.

use tlbscope_trace::act::{Act, ArchOp, Hook, HookBy, Request};
use tlbscope_trace::addr::{Gpa, PAGE_BYTES};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::Vendor;

use crate::engine::Machine;
use crate::policy::mechanics::ApicPageReload;

/// IA32_APIC_BASE: x2APIC mode (SDM vol. 3, 11.12.1).
const EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: enabled.
const ENABLED: u64 = 1 << 11;
/// Where the page is.
const APIC: Gpa = Gpa(0xfee0_0000);

impl Machine {
    /// WRMSR IA32_APIC_BASE. Entering xAPIC mode switches the VMCS to the APIC-access page:
    /// FLUSH_CURRENT, and the page itself is looked up before the next entry.
    pub(crate) fn apic_base<O: Observer>(&mut self, v: usize, value: u64, o: &mut O) {
        self.exit(v, None, o);
        let xapic = value & (EXTD | ENABLED) == ENABLED;
        let was = std::mem::replace(&mut self.vcpus[v].xapic, xapic);
        if self.config.vendor == Vendor::Amd {
            if self.config.apic_page && was != xapic {
                self.avic(v, xapic, o);
            }
            return;
        }
        // An ideal flushes for what the manuals demand of guest operations, and knows no page here.
        if !self.ideal() && was != xapic && xapic {
            self.post(v, Request::TlbFlushCurrent, o);
            self.post(v, Request::ApicPageReload, o);
        }
    }

    /// AVIC is switched on or off for the vCPU: the same guest-physical page is another one.
    fn avic<O: Observer>(&mut self, v: usize, on: bool, o: &mut O) {
        let gfn = APIC.0 / PAGE_BYTES;
        let other = match self.vcpus[v].apic_page {
            Some(page) => page,
            None => self.host.allocate(1, 1),
        };
        self.vcpus[v].apic_page = Some(self.host.back(gfn));
        if !on {
            // What is left of AVIC's page then, nothing documents: nothing is owed.
            self.host.set(gfn, other);
            self.trees.point(gfn, other);
            return;
        }
        let (gpa, size) = (APIC, PAGE_BYTES);
        self.arch(o, None, &ArchOp::HostChange { gpa, size, rights: false }, false);
        self.host.set(gfn, other);
        self.trees.point(gfn, other);
        if self.ideal() {
            self.remote_flush_range(gpa, size, o);
        } else if self.policy.mechanics.avic_flush {
            self.post(v, Request::TlbFlushCurrent, o);
        }
        self.arch(o, None, &ArchOp::HostDead { gpa, size }, false);
    }

    /// KVM_REQ_APIC_PAGE_RELOAD: the page is looked up. Up to 6.1 it is flushed by a direct call,
    /// uncounted.
    pub(crate) fn apic_page_reload<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.has_apic_access_page() {
            self.vcpus[v].apic_page = self.back(APIC);
        }
        if self.policy.mechanics.apic_page_flush {
            self.flush_hook(v, Hook::Current, HookBy::Direct, o);
        }
    }

    fn has_apic_access_page(&self) -> bool {
        self.config.apic_page && self.config.vendor == Vendor::Intel
    }

    /// The host is about to take pages, or has. Where the APIC-access page is among them every vCPU has to
    /// look it up again. A request that is raised before the page is gone is served by whoever
    /// is interrupted for it while the old one is still there.
    pub(crate) fn apic_page_taken<O: Observer>(
        &mut self,
        first: u64,
        frames: u64,
        now: ApicPageReload,
        o: &mut O,
    ) {
        let within = (APIC.0 / PAGE_BYTES).wrapping_sub(first) < frames;
        if !self.has_apic_access_page() || !within {
            return;
        }
        // An ideal is never late.
        let when = match self.ideal() {
            true => ApicPageReload::AfterUnmap,
            false => self.policy.mechanics.apic_page_reload,
        };
        if when != now {
            return;
        }
        self.request_all(Request::ApicPageReload, o);
        if now == ApicPageReload::BeforeUnmap {
            for v in 0..self.vcpus.len() {
                if !self.vcpus[v].destroyed && self.serve(v, Request::ApicPageReload, o) {
                    self.apic_page_reload(v, o);
                }
            }
        }
    }

    /// An access reached this page of the guest: the processor compares with the VMCS's address.
    pub(crate) fn apic_access<O: Observer>(&mut self, v: usize, gpa: Gpa, o: &mut O) {
        let on = self.has_apic_access_page() && self.vcpus[v].xapic;
        if !on || gpa.0 & !(PAGE_BYTES - 1) != APIC.0 {
            return;
        }
        if self.vcpus[v].apic_page.is_none() {
            self.vcpus[v].apic_page = self.back(APIC);
        }
        if let Some(hpa) = self.vcpus[v].apic_page {
            let at = self.at_vcpu(v);
            o.act(&at, &Act::HeldPage { gpa: APIC, hpa }, self);
        }
    }
}
