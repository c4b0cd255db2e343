//! The vendor's flush hooks, and requests posted to other vCPUs (facts/kvm.md 5.2, 5.8, 6.2, 6.3).

use tlbscope_trace::act::{Act, Hook, HookBy, Inv, Request};
use tlbscope_trace::addr::{Asid, Ep4ta, Hpa, PAGE_BYTES, Vpid};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Actor;
use tlbscope_trace::regs::{MmuKind, Vendor};

use crate::engine::Machine;
use crate::machine::config::{InveptTypes, InvvpidTypes};

impl Machine {
    /// Sets a request bit of one vCPU.
    pub(crate) fn post<O: Observer>(&mut self, v: usize, request: Request, o: &mut O) {
        self.vcpus[v].requests.post(request);
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Post(request), self);
    }

    /// kvm_make_all_cpus_request: every vCPU, the caller's own among them; those in guest mode are
    /// interrupted. Returns whether an IPI was needed.
    pub(crate) fn request_all<O: Observer>(&mut self, request: Request, o: &mut O) -> bool {
        if self.hints.is_some() {
            // Whoever drives the machine tells the other vCPUs when the recording does.
            if let Actor::Vcpu(vcpu) = self.at.actor {
                self.post(usize::from(vcpu.0), request, o);
            }
            return false;
        }
        let mut ipi = false;
        for v in 0..self.vcpus.len() {
            self.post(v, request, o);
            if self.vcpus[v].in_guest {
                ipi = true;
                self.act(o, Act::Ipi(self.vcpus[v].pcpu));
                self.kick(v, o);
            }
        }
        ipi
    }

    /// kvm_flush_remote_tlbs.
    pub(crate) fn remote_flush<O: Observer>(&mut self, o: &mut O) {
        if self.never() {
            return;
        }
        for _ in 0..self.policy.mechanics.remote_flush.repeat {
            let ipi = self.request_all(Request::TlbFlush, o);
            self.act(o, Act::RemoteFlush { ipi: Some(ipi) });
        }
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

    /// The hooks of facts 6.2.
    fn vmx_flush<O: Observer>(&mut self, v: usize, hook: Hook, by: HookBy, o: &mut O) {
        let vpid = self.vcpus[v].vpid;
        let root = self.vcpus[v].mmu.root;
        let tdp = self.config.mmu == MmuKind::Tdp;
        let inv = match hook {
            Hook::All if tdp => Some(Inv::EptGlobal),
            Hook::All if vpid == Vpid(0) => None,
            Hook::All if self.config.invvpid.contains(InvvpidTypes::ALL_CONTEXTS) => {
                Some(Inv::VpidAll)
            }
            Hook::All => Some(Inv::VpidSingle(vpid)),
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

    /// INVVPID single-context, or all-context where the CPU lacks it; nothing without a VPID.
    fn invvpid_context(&self, vpid: Vpid) -> Option<Inv> {
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
        let vmcb = &mut self.vcpus[v].vmcb;
        let effective = if by_asid {
            let set = vmcb.tlb_control == 0;
            vmcb.tlb_control = vmcb.tlb_control.max(3);
            set
        } else {
            let set = vmcb.generation != 0;
            vmcb.generation = 0;
            set
        };
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Hook { hook, by, effective }, self);
    }

    /// The hardware invalidates on the vCPU's processor.
    pub(crate) fn invalidate<O: Observer>(&mut self, v: usize, inv: Inv, o: &mut O) {
        let at = self.at_vcpu(v);
        o.act(&at, &Act::Inv(inv), self);
        let tag = self.vcpus[v].context.tag;
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let event = self.at.event;
        let tlb = &mut self.pcpus[pcpu].tlb;
        tlb.invalidate(inv, &tag, event, &mut |tag, global, n| o.dropped(&at, tag, global, n));
    }

    /// pre_svm_run: the ASID of the next VMRUN, and a TLB_CONTROL that a wrap asks for.
    pub(crate) fn pre_svm_run<O: Observer>(&mut self, v: usize, o: &mut O) {
        let pcpu = self.vcpus[v].pcpu;
        let pool = &mut self.pcpus[pcpu.0 as usize].asids;
        let vmcb = &mut self.vcpus[v].vmcb;
        if vmcb.pcpu != Some(pcpu) {
            vmcb.pcpu = Some(pcpu);
            vmcb.generation = 0;
        }
        if vmcb.generation == pool.generation {
            return;
        }
        if pool.next > pool.max {
            pool.generation += 1;
            pool.next = 1;
            vmcb.tlb_control = 1;
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
        match control {
            1 => self.invalidate(v, Inv::TlbControlAll, o),
            3 => self.invalidate(v, Inv::TlbControlAsid(asid), o),
            7 => self.invalidate(v, Inv::TlbControlNonglobal(asid), o),
            _ => {}
        }
    }

    /// Whether the host lets the guest write this frame.
    pub(crate) fn guest_may_write(&self, gpa: tlbscope_trace::addr::Gpa) -> bool {
        self.host.writable(gpa.0 / PAGE_BYTES)
    }

    /// The host frame behind a guest page, made if the host has none yet.
    pub(crate) fn back(&mut self, gpa: tlbscope_trace::addr::Gpa) -> Option<Hpa> {
        (gpa.0 < self.config.memory).then(|| self.host.back(gpa.0 / PAGE_BYTES))
    }
}
