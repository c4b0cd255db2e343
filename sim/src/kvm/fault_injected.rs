//! Page faults of the guest's own that a recording tells of. Under TDP the processor delivers them;
//! under shadow paging every #PF exits, and KVM injects those that the guest's tables call for.
//!
//! Faults that the machine finds by itself are injected the same way.

use tlbscope_trace::act::{Act, ArchOp, GuestInv, Hook, HookBy, Inv};
use tlbscope_trace::addr::Gva;
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::MmuKind;

use crate::engine::Machine;

/// Bits of the error code: the entry was present; a reserved bit was set.
const PRESENT: u32 = 1;
const RESERVED: u32 = 1 << 3;

impl Machine {
    /// A fault that a recording tells of: the machine's own tables do not know of it.
    pub(crate) fn own_page_fault<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        error: u32,
        o: &mut O,
    ) {
        if self.config.mmu == MmuKind::Tdp {
            self.page_fault_effects(v, gva, o);
            return;
        }
        // The processor drops its own copies at every #PF, whoever handles it (x86-tlb B.1).
        let pcid = self.vcpus[v].context.tag.pcid;
        self.invalidate(v, Inv::Guest(GuestInv::Fault { pcid, gva }), o);
        self.exit(v, None, o);
        self.inject_own_fault(v, gva, error, o);
    }

    /// kvm_inject_emulated_page_fault: an entry that was present may be cached with too few rights,
    /// and the fault has to drop it as the processor's would, from the active root and the TLB.
    pub(crate) fn inject_own_fault<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        error: u32,
        o: &mut O,
    ) {
        let shadow = self.config.mmu == MmuKind::Shadow;
        if shadow && error & (PRESENT | RESERVED) == PRESENT {
            let (regs, at) = (self.vcpus[v].regs, self.at_vcpu(v));
            let op = ArchOp::PageFault(gva);
            o.arch(&at, &op, &regs, false, self);
            if self.ideal() {
                self.serve_ideal(v, &op, &regs, o);
            } else if !self.never() && self.policy.mechanics.fault_invalidates {
                self.act(o, Act::InvalidateGva(gva));
                self.flush_hook(v, Hook::Gva(gva), HookBy::Direct, o);
                self.sync_active(v, gva, o);
            }
        }
        self.act(o, Act::Inject { vector: 14, error: Some(error) });
    }

    /// The shadow side, in the active root alone.
    fn sync_active<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) {
        match self.vcpus[v].mmu.root.and_then(|root| root.sp) {
            Some(root) => self.sync_address(v, root, gva, o),
            None => {
                self.hinted_address(o);
            }
        }
    }
}
