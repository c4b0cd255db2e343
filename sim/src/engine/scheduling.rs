//! The host's scheduler and the life of vCPUs: preempt, run, migrate, create, destroy, and MSRs that
//! userspace writes (facts/kvm.md 4.4, 5.10, 6.1).

use tlbscope_trace::act::{Act, FreeWhy, Request, RootSlot};
use tlbscope_trace::addr::{PcpuId, VcpuId, Vpid};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Actor;
use tlbscope_trace::regs::Vendor;

use super::{Machine, Refused};
use crate::kvm::root::PREV_ROOTS_MAX;
use crate::policy::mechanics::MigrateVmx;

/// The most vCPUs that a machine may come to have: KVM_MAX_VCPUS of the widest kernels.
const VCPUS_MAX: usize = 4096;

impl Machine {
    fn existing(&self, vcpu: VcpuId, op: &'static str) -> Result<usize, Refused> {
        let v = usize::from(vcpu.0);
        if self.vcpus.get(v).is_none_or(|vcpu| vcpu.destroyed) {
            return Err(Refused { op, why: format!("{vcpu} does not exist in this machine") });
        }
        Ok(v)
    }

    /// `host preempt`: out of the guest, off its pCPU, and marked so. One that is off already was
    /// loaded and put again without an entry.
    pub(super) fn preempt<O: Observer>(&mut self, vcpu: VcpuId, o: &mut O) -> Result<(), Refused> {
        let v = self.existing(vcpu, "host preempt")?;
        self.exit(v, None, o);
        self.vcpus[v].descheduled = true;
        self.publish_preempted(v, o);
        Ok(())
    }

    /// `host run`: the vCPU is loaded, and enters unless it is held.
    pub(super) fn run_again<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        pcpu: Option<PcpuId>,
        o: &mut O,
    ) -> Result<(), Refused> {
        let v = self.existing(vcpu, "host run")?;
        self.wake(v, o);
        let pcpu = pcpu.unwrap_or(self.vcpus[v].pcpu);
        if pcpu != self.vcpus[v].pcpu {
            self.migrate(v, pcpu, o)?;
        }
        let moved = self.presence.running(usize::from(pcpu.0)).is_some_and(|u| u != v);
        if moved && !self.vcpus[v].held {
            self.take_pcpu(v, o);
        }
        self.schedule_in(v, o);
        Ok(())
    }

    /// vcpu_load after the vCPU was scheduled out.
    pub(crate) fn schedule_in<O: Observer>(&mut self, v: usize, o: &mut O) {
        if std::mem::replace(&mut self.vcpus[v].descheduled, false) {
            if self.config.steal_time {
                self.post(v, Request::StealUpdate, o);
            }
            self.released(v);
        }
    }

    /// The vCPU is loaded on another pCPU (facts/kvm.md 5.10).
    pub(super) fn migrate<O: Observer>(
        &mut self,
        v: usize,
        pcpu: PcpuId,
        o: &mut O,
    ) -> Result<(), Refused> {
        self.existing(VcpuId(v as u16), "host migrate")?;
        if usize::from(pcpu.0) >= self.pcpus.len() {
            let why = format!("{pcpu} does not exist in this machine");
            return Err(Refused { op: "host migrate", why });
        }
        self.exit(v, None, o);
        if self.vcpus[v].pcpu != pcpu {
            self.svm_vcpu_load(v);
        }
        let from = usize::from(self.vcpus[v].pcpu.0);
        self.presence.placed(v, from, usize::from(pcpu.0));
        self.vcpus[v].pcpu = pcpu;
        self.vcpus[v].context.tag.pcpu = pcpu;
        let at = self.at_vcpu(v);
        o.act(&at, &Act::VcpuLoad(pcpu), self);
        let moved = self.vcpus[v].vmcs_pcpu != Some(pcpu);
        self.vcpus[v].vmcs_pcpu = Some(pcpu);
        let vmx = self.config.vendor == Vendor::Intel;
        if vmx && moved && self.policy.mechanics.migrate_vmx == MigrateVmx::All {
            self.post(v, Request::TlbFlush, o);
        }
        Ok(())
    }

    /// The lowest VPID that nobody has (allocate_vpid); 0 if they are exhausted or unused.
    fn free_vpid(&self) -> Vpid {
        if !self.config.vpid || self.config.vendor != Vendor::Intel {
            return Vpid(0);
        }
        let taken = |vpid: u16| self.vcpus.iter().any(|v| !v.destroyed && v.vpid == Vpid(vpid));
        let last = self.config.vpids.min(u32::from(u16::MAX)) as u16;
        (1..=last).find(|vpid| !taken(*vpid)).map_or(Vpid(0), Vpid)
    }

    /// `host vcpu create`: a vCPU in the state of the machine's mode, with the lowest free VPID and
    /// a VMCS that was nowhere: its first load flushes.
    pub(super) fn vcpu_create<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        o: &mut O,
    ) -> Result<(), Refused> {
        let op = "host vcpu create";
        let v = usize::from(vcpu.0);
        if self.vcpus.get(v).is_some_and(|vcpu| !vcpu.destroyed) {
            return Err(Refused { op, why: format!("{vcpu} exists already") });
        }
        if v >= VCPUS_MAX {
            return Err(Refused { op, why: format!("a VM has at most {VCPUS_MAX} vCPUs") });
        }
        let regs = self.config.initial_regs();
        for n in self.vcpus.len()..=v {
            let mut absent = Self::vcpu(&self.config, &self.policy, n as u16, regs);
            absent.destroyed = true;
            self.vcpus.push(absent);
        }
        let vpid = self.free_vpid();
        self.vcpus[v] = Self::vcpu(&self.config, &self.policy, vcpu.0, regs);
        self.vcpus[v].vpid = vpid;
        self.vcpus[v].vmcs_pcpu = None;
        self.vcpus[v].mmu.role = self.root_role(v);
        let pcpu = self.vcpus[v].pcpu;
        let at = std::mem::replace(&mut self.at.actor, Actor::Vcpu(vcpu));
        self.migrate(v, pcpu, o)?;
        if self.config.vendor == Vendor::Intel && self.policy.mechanics.vendor_reset_flush {
            use tlbscope_trace::act::{Hook, HookBy};
            self.flush_hook(v, Hook::Guest, HookBy::Direct, o);
        }
        self.at.actor = at;
        Ok(())
    }

    /// `host vcpu destroy`: its roots go, its VPID is free again; no flush.
    pub(super) fn vcpu_destroy<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        o: &mut O,
    ) -> Result<(), Refused> {
        let v = self.existing(vcpu, "host vcpu destroy")?;
        self.exit(v, None, o);
        let at = std::mem::replace(&mut self.at.actor, Actor::Vcpu(vcpu));
        self.free_root(v, RootSlot::Current, FreeWhy::Destroy, o);
        for slot in 0..PREV_ROOTS_MAX {
            self.free_root(v, RootSlot::Prev(slot as u8), FreeWhy::Destroy, o);
        }
        self.at.actor = at;
        self.presence.removed(v, usize::from(self.vcpus[v].pcpu.0));
        self.vcpus[v].destroyed = true;
        self.vcpus[v].pause = Default::default();
        self.vcpus[v].requests = Default::default();
        Ok(())
    }

    /// KVM_SET_MSRS of EFER: the same handler as for the guest's own WRMSR.
    pub(super) fn msr_efer<O: Observer>(
        &mut self,
        vcpu: VcpuId,
        value: u64,
        o: &mut O,
    ) -> Result<(), Refused> {
        let op = "host msr";
        let v = self.existing(vcpu, op)?;
        let at = std::mem::replace(&mut self.at.actor, Actor::Vcpu(vcpu));
        self.exit(v, None, o);
        let written = self.write_efer(v, value, o);
        self.at.actor = at;
        written.map_err(|gp| Refused { op, why: format!("EFER {value:#x}: {}", gp.0) })
    }
}
