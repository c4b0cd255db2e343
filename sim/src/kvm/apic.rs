//! The APIC-access page of VMX: a page of guest-physical memory that the processor virtualizes, so
//! that switching to it and moving it are matters of the TLB (facts/kvm.md 5.7, 15.6).

use tlbscope_trace::act::{Hook, HookBy, Request};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::Vendor;

use crate::engine::Machine;

/// IA32_APIC_BASE: x2APIC mode (SDM vol. 3, 11.12.1).
const EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: enabled.
const ENABLED: u64 = 1 << 11;

impl Machine {
    /// WRMSR IA32_APIC_BASE. Entering xAPIC mode switches the VMCS to the APIC-access page:
    /// FLUSH_CURRENT, and the page itself is looked up before the next entry.
    pub(crate) fn apic_base<O: Observer>(&mut self, v: usize, value: u64, o: &mut O) {
        self.exit(v, None, o);
        let xapic = value & (EXTD | ENABLED) == ENABLED;
        let was = std::mem::replace(&mut self.vcpus[v].xapic, xapic);
        // An ideal flushes for what the manuals demand of guest operations, and knows no page here.
        let flushes = self.config.vendor == Vendor::Intel && !self.ideal();
        if flushes && was != xapic && xapic {
            self.post(v, Request::TlbFlushCurrent, o);
            self.post(v, Request::ApicPageReload, o);
        }
    }

    /// KVM_REQ_APIC_PAGE_RELOAD: up to 6.1 the page is flushed by a direct call, uncounted.
    pub(crate) fn apic_page_reload<O: Observer>(&mut self, v: usize, o: &mut O) {
        if self.policy.mechanics.apic_page_flush {
            self.flush_hook(v, Hook::Current, HookBy::Direct, o);
        }
    }
}
