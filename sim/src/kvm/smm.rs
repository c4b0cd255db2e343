//! System management mode, and CPUID set by userspace: what changes the role of every root at once
//! (facts/kvm.md 3.3, 3.4).

use tlbscope_trace::act::ArchOp;
use tlbscope_trace::observe::Observer;
use tlbscope_trace::regs::{CR3_PCID_MASK, Cr0, Cr4, Efer, Regs};

use super::role::Role;
use crate::arch::fault::Gp;
use crate::engine::Machine;
use crate::policy::rule::{Change, Register};

/// What system management mode keeps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Smram {
    /// The registers that RSM restores.
    pub regs: Regs,
    /// An SMI that came while the vCPU was in SMM: latched, taken after RSM.
    pub latched: bool,
}

/// The registers in which the handler of an SMI starts: CR0.PE, EM, TS and PG, CR4 and EFER are
/// cleared, CR3 stays (enter_smm).
fn in_smm(regs: &Regs) -> Regs {
    let cleared = Cr0::PE | Cr0::EM | Cr0::TS | Cr0::PG;
    Regs { cr0: regs.cr0 & !cleared.bits(), cr4: 0, efer: 0, ..*regs }
}

impl Machine {
    /// An SMI. It interrupts the guest, so the vCPU exits; in SMM a further one waits for RSM.
    pub(crate) fn smi<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.exit(v, None, o);
        if self.vcpus[v].smm {
            self.vcpus[v].smram.latched = true;
            return;
        }
        let before = self.vcpus[v].regs;
        let inside = in_smm(&before);
        self.vcpus[v].smram = Smram { regs: before, latched: false };
        self.report_whole(v, ArchOp::Smi, &before, inside, o);
        // kvm_smm_changed first, with the old registers, then once more with the new ones.
        self.vcpus[v].smm = true;
        self.smm_rules(v, o);
        self.vcpus[v].regs = inside;
        self.vendor_set_cr4(v, before.cr4, 0, o);
        self.smm_rules(v, o);
        self.serve_ideal(v, &ArchOp::Smi, &before, o);
    }

    /// RSM, which KVM's emulator carries out through the setters of the guest's own instructions.
    pub(crate) fn rsm<O: Observer>(&mut self, v: usize, o: &mut O) -> Result<(), Gp> {
        self.exit(v, None, o);
        if !self.vcpus[v].smm {
            self.act(o, tlbscope_trace::act::Act::Inject { vector: 6, error: None });
            return Err(Gp("RSM outside of system management mode is #UD"));
        }
        let Smram { regs: saved, latched } = self.vcpus[v].smram;
        let inside = self.vcpus[v].regs;
        self.report_whole(v, ArchOp::Rsm, &inside, Regs { pkru: inside.pkru, ..saved }, o);
        self.vcpus[v].smm = false;
        self.vcpus[v].smram = Smram::default();
        self.smm_rules(v, o);
        for (register, value) in restored(&inside, &saved) {
            self.set_register(v, register, value, ArchOp::Rsm, o);
        }
        self.vcpus[v].context.tag.pcid = self.vcpus[v].regs.pcid();
        self.serve_ideal(v, &ArchOp::Rsm, &inside, o);
        if latched {
            self.smi(v, o);
        }
        Ok(())
    }

    /// Tells the judge of an operation that changes several registers, with the state it ends in;
    /// the states between exist in the hypervisor only, no instruction of the guest runs in them.
    fn report_whole<O: Observer>(
        &mut self,
        v: usize,
        op: ArchOp,
        before: &Regs,
        after: Regs,
        o: &mut O,
    ) {
        self.vcpus[v].regs = after;
        let at = self.at_vcpu(v);
        o.arch(&at, &op, before, false, self);
        self.vcpus[v].regs = *before;
    }

    pub(crate) fn smm_rules<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.role_rules(v, Register::Smm, o);
    }

    /// KVM_SET_CPUID: the roles no longer hold whatever they say. Kernels from 5.17 on refuse it after
    /// the first entry; a scenario that does it all the same shows what the reset is for.
    pub(crate) fn set_cpuid<O: Observer>(&mut self, v: usize, o: &mut O) {
        self.exit(v, None, o);
        let role = &mut self.vcpus[v].mmu.role;
        *role = Role(role.0 | Role::STALE);
        self.role_rules(v, Register::Cpuid, o);
    }

    fn role_rules<O: Observer>(&mut self, v: usize, register: Register, o: &mut O) {
        let regs = self.vcpus[v].regs;
        let change = Change {
            old: regs.cr0,
            new: regs.cr0,
            tdp: self.tdp(),
            vendor: self.config.vendor,
            pcide: regs.cr4().contains(Cr4::PCIDE),
            ..Change::default()
        };
        self.run_rules(v, register, &change, regs.pcid(), o);
    }
}

/// The register writes of RSM in their order: down to real mode, then up to what was saved. PCIDE goes
/// first and comes last, for it is legal in long mode only, and with CR3[11:0] = 0.
fn restored(inside: &Regs, saved: &Regs) -> impl Iterator<Item = (Register, u64)> {
    let has = |on: bool, register: Register, value: u64| on.then_some((register, value));
    let without_pcide = inside.cr4 & !Cr4::PCIDE.bits();
    let real = inside.cr0 & !(Cr0::PE | Cr0::PG).bits();
    let pcide = saved.cr4().contains(Cr4::PCIDE);
    let pcid = if pcide { saved.cr3 & CR3_PCID_MASK } else { 0 };
    [
        has(inside.cr4().contains(Cr4::PCIDE), Register::Cr4, without_pcide),
        has(inside.cr0().contains(Cr0::PE), Register::Cr0, real),
        has(inside.cr4().contains(Cr4::PAE), Register::Cr4, without_pcide & !Cr4::PAE.bits()),
        has(true, Register::Efer, 0),
        has(true, Register::Efer, saved.efer & !Efer::LMA.bits()),
        has(true, Register::Cr3, saved.cr3 & !pcid),
        has(true, Register::Cr4, saved.cr4 & !Cr4::PCIDE.bits()),
        has(true, Register::Cr0, saved.cr0),
        has(pcide, Register::Cr4, saved.cr4),
        has(pcid != 0, Register::Cr3, saved.cr3),
    ]
    .into_iter()
    .flatten()
}
