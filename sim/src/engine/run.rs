//! Which operation does what: from the event to the machine's parts.

use tlbscope_trace::act::{ArchOp, Request};
use tlbscope_trace::addr::{Gva, PageSize};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Op, Sregs};
use tlbscope_trace::regs::{MmuKind, Regs};

use super::{Machine, Refused, Step};
use crate::arch::mode::Mode;
use crate::kvm::lockless::Reader;
use crate::policy::mechanics::Sregs as SregsRule;

/// The name of an operation in the text form.
pub(super) fn name(op: &Op) -> &'static str {
    match op {
        Op::Cr0(_) => "cr0",
        Op::Clts => "clts",
        Op::Lmsw(_) => "lmsw",
        Op::Cr3(_) => "cr3",
        Op::Cr4(_) => "cr4",
        Op::Efer(_) => "efer",
        Op::Map { .. } => "map",
        Op::Unmap { .. } => "unmap",
        Op::Protect { .. } => "protect",
        Op::Table { .. } => "table",
        Op::Link { .. } => "link",
        Op::Store { .. } => "store",
        Op::Access(_) => "read, write or exec",
        Op::Prefetch(_) => "prefetch",
        Op::PageFault { .. } => "fault",
        Op::Invlpg(_) => "invlpg",
        Op::Invpcid(_) => "invpcid",
        Op::Invlpga { .. } => "invlpga",
        Op::Invlpgb(_) => "invlpgb",
        Op::Tlbsync => "tlbsync",
        Op::Init => "init",
        Op::Reset => "reset",
        Op::Smi => "smi",
        Op::Rsm => "rsm",
        Op::TaskSwitch(_) => "taskswitch",
        Op::MsrMtrr(_) => "msr mtrr",
        Op::MsrPat(_) => "msr pat",
        Op::Pkru(_) => "pkru",
        Op::Cpuid => "cpuid",
        Op::Code { .. } => "code",
        Op::MsrApicBase(_) => "msr apicbase",
        Op::Sregs(_) => "sregs",
        Op::Emul(_) => "emul",
        Op::PvFlush(_) => "pvflush",
        Op::HvFlush(_) => "hvflush",
        Op::L2Enter(_) => "l2enter",
        Op::L2Exit(_) => "l2exit",
        Op::L1(_) => "l1",
        Op::Out => "out",
        Op::In => "in",
        Op::InFail => "in fail",
        Op::Exit(_) => "exit",
        Op::Release { .. } => "release",
        Op::Host(_) => "host",
        Op::HostBegin(_) => "host begin",
        Op::HostEnd(_) => "host end",
        Op::Hlt => "hlt",
        Op::InvlpgbLarge(_) => "invlpgb",
        Op::WalkBegin(_) => "walk begin",
        Op::WalkEnd => "walk end",
    }
}

fn not_yet(op: &Op) -> Refused {
    Refused { op: name(op), why: "this machine does not model it yet".into() }
}

impl Machine {
    pub(super) fn run_vcpu<O: Observer>(
        &mut self,
        v: usize,
        op: &Op,
        o: &mut O,
    ) -> Result<Step, Refused> {
        // The exit that the hypervisor is handling may be one between L1 and L2.
        let held = self.vcpus[v].held && !self.vcpus[v].in_guest;
        let switch = held && matches!(op, Op::L2Enter(_) | Op::L2Exit(_));
        let guest = !switch
            && !matches!(
                op,
                Op::In
                    | Op::InFail
                    | Op::Out
                    | Op::Sregs(_)
                    | Op::Cpuid
                    | Op::Init
                    | Op::Reset
                    | Op::Smi
                    | Op::Release { .. }
                    | Op::WalkEnd
            );
        if let Some(reader) = self.vcpus[v].pause.reader {
            return self.while_reading(v, reader, op, o);
        }
        if guest && !self.vcpus[v].in_guest && self.vcpus[v].held && !self.emulated {
            let why = "the vCPU is `out`: let it `in` first".into();
            return Err(Refused { op: name(op), why });
        }
        let pcpu = usize::from(self.vcpus[v].pcpu.0);
        let runs = self.vcpus[v].in_guest && self.presence.running(pcpu) == Some(v);
        if guest && !self.emulated && !runs {
            // As if the host had scheduled it in for this, or an interrupt had woken it.
            self.schedule_in(v, o);
            self.wake(v, o);
            self.take_pcpu(v, o);
            self.enter(v, false, o);
            let others = self.schedule.is_some() || self.kicks_take_time();
            if !self.vcpus[v].in_guest && others {
                return Ok(Step { waits: true, ..Step::default() });
            }
        }
        self.operate(v, op, o)
    }

    /// The operation of a vCPU that is where it takes place: in the guest, or for some of them outside.
    pub(super) fn operate<O: Observer>(
        &mut self,
        v: usize,
        op: &Op,
        o: &mut O,
    ) -> Result<Step, Refused> {
        let regs = &self.vcpus[v].regs;
        let step = match op {
            Op::Cr0(w) => Self::step(self.write_cr0(v, w.apply(regs.cr0), o)),
            Op::Clts => Self::step(self.write_cr0(v, self.clts(v), o)),
            Op::Lmsw(value) => Self::step(self.write_cr0(v, self.lmsw(v, *value), o)),
            Op::Cr3(operand) => Self::step(self.write_cr3(v, *operand, false, o)),
            Op::TaskSwitch(cr3) => Self::step(self.write_cr3(v, *cr3, true, o)),
            Op::Cr4(w) => Self::step(self.write_cr4(v, w.apply(regs.cr4), o)),
            Op::Efer(w) => Self::step(self.write_efer(v, w.apply(regs.efer), o)),
            Op::Invpcid(operands) => Self::step(self.invpcid(v, operands, o)),
            Op::Rsm => Self::step(self.rsm(v, o)),
            Op::Invlpga { gva, .. } => Self::step(self.invlpga(v, *gva, o)),
            Op::Invlpgb(operands) => Self::step(self.invlpgb(v, operands, PageSize::Size4K, o)),
            Op::InvlpgbLarge(operands) => {
                Self::step(self.invlpgb(v, operands, PageSize::Size2M, o))
            }
            Op::Tlbsync => Self::step(self.tlbsync(v, o)),
            Op::Access(access) => {
                let outcome = self.access(v, access, o);
                Step { outcome, waits: outcome.is_none(), ..Step::default() }
            }
            Op::Emul(inner) => self.emulate(v, inner, o)?,
            Op::PvFlush(targets) => Step { waits: self.pv_flush(v, targets, o), ..Step::default() },
            other => {
                self.run_other(v, other, o)?;
                Step::default()
            }
        };
        Ok(step)
    }

    /// `walk begin`: only shadow tables are read so.
    fn walk_begins<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) -> Result<(), Refused> {
        if self.config.mmu == MmuKind::Tdp || !self.lockless_begin(v, gva, o) {
            let why = "two-dimensional tables are not read so: mmu = \"shadow\"".into();
            return Err(Refused { op: "walk begin", why });
        }
        Ok(())
    }

    /// Interrupts are off while the handler reads shadow pages: the vCPU does nothing else.
    fn while_reading<O: Observer>(
        &mut self,
        v: usize,
        reader: Reader,
        op: &Op,
        o: &mut O,
    ) -> Result<Step, Refused> {
        if *op != Op::WalkEnd {
            let why = "the vCPU reads shadow pages: let it `walk end` first".into();
            return Err(Refused { op: name(op), why });
        }
        let outcome = self.lockless_end(v, reader, o);
        Ok(Step { outcome, waits: outcome.is_none(), ..Step::default() })
    }

    /// The operation exits whatever the interception matrix says, and the emulator carries it out
    /// through the same handlers.
    fn emulate<O: Observer>(&mut self, v: usize, op: &Op, o: &mut O) -> Result<Step, Refused> {
        let known = matches!(
            op,
            Op::Cr0(_)
                | Op::Clts
                | Op::Lmsw(_)
                | Op::Cr3(_)
                | Op::Cr4(_)
                | Op::Efer(_)
                | Op::TaskSwitch(_)
                | Op::Invlpg(_)
                | Op::Invpcid(_)
                | Op::Invlpga { .. }
                | Op::Rsm
        );
        if !known {
            let why = format!("the emulator of this machine does not know `{}` yet", name(op));
            return Err(Refused { op: "emul", why });
        }
        self.exit(v, None, o);
        self.emulated = true;
        let step = self.run_vcpu(v, op, o);
        self.emulated = false;
        step
    }

    fn run_other<O: Observer>(&mut self, v: usize, op: &Op, o: &mut O) -> Result<(), Refused> {
        match op {
            Op::Map { gva, gpa, size, perms, root } => {
                self.map(v, *gva, *gpa, *size, *perms, *root, o)?;
            }
            Op::Unmap { gva, root } => self.protect(v, *gva, None, *root, o)?,
            Op::Protect { gva, perms, root } => self.protect(v, *gva, Some(*perms), *root, o)?,
            Op::Table { gpa, level } => self.memory.declare_table(*gpa, *level),
            Op::Link { gva, level, table, perms, root } => {
                self.link(v, *gva, *level, *table, *perms, *root, o)?;
            }
            Op::Store { gpa, value } => self.store(v, *gpa, *value, o),
            Op::Prefetch(gva) => self.prefetch(v, *gva, o),
            Op::PageFault { gva, error } => self.own_page_fault(v, *gva, *error, o),
            Op::Invlpg(gva) => self.invlpg(v, *gva, o),
            Op::Init => self.init(v, true, o),
            Op::Reset => self.init(v, false, o),
            Op::Smi => self.smi(v, o),
            Op::Cpuid => self.set_cpuid(v, o),
            Op::MsrMtrr(_) => self.msr(v, &ArchOp::Mtrr, o),
            Op::MsrPat(_) => self.msr(v, &ArchOp::Pat, o),
            Op::Pkru(value) => {
                self.vcpus[v].regs.pkru = *value;
                self.arch(o, Some(v), &ArchOp::Pkru, true);
            }
            Op::Code { long } => self.vcpus[v].regs.code32 = !long,
            Op::MsrApicBase(value) => self.apic_base(v, *value, o),
            Op::Sregs(sregs) => self.sregs(v, sregs, o),
            Op::Out => self.vcpus[v].held = true,
            Op::In | Op::InFail => {
                self.schedule_in(v, o);
                self.wake(v, o);
                self.take_pcpu(v, o);
                let entered = self.enter(v, matches!(op, Op::InFail), o);
                self.vcpus[v].held = !entered;
                self.released(v);
            }
            Op::Hlt => self.halt(v, o),
            Op::WalkBegin(gva) => self.walk_begins(v, *gva, o)?,
            Op::WalkEnd => {
                return Err(Refused { op: name(op), why: "no `walk begin` came before".into() });
            }
            Op::HvFlush(flush) => self.hv_flush(v, flush, o),
            Op::Exit(reason) => self.exit(v, reason.map(|r| r as u16), o),
            Op::Release { gpa, size } => {
                let op = ArchOp::Release { gpa: *gpa, size: *size };
                self.arch(o, Some(v), &op, false);
            }
            Op::L2Enter(enter) => self.l2_enter(v, enter, o)?,
            Op::L2Exit(_) => self.l2_exit(v, o)?,
            Op::L1(l1) => self.l1(v, l1, o)?,
            _ => return Err(not_yet(op)),
        }
        Ok(())
    }

    /// A write of a memory-type register exits; KVM flushes nothing for it (facts C.1, C.4).
    fn msr<O: Observer>(&mut self, v: usize, op: &ArchOp, o: &mut O) {
        self.exit(v, None, o);
        self.arch(o, Some(v), op, false);
    }

    /// KVM_SET_SREGS (facts/kvm.md 3.4).
    fn sregs<O: Observer>(&mut self, v: usize, new: &Sregs, o: &mut O) {
        self.exit(v, None, o);
        let old = self.vcpus[v].regs;
        let cr0 = new.cr0.unwrap_or(old.cr0);
        let regs = Regs {
            cr0,
            cr3: new.cr3.unwrap_or(old.cr3),
            cr4: new.cr4.unwrap_or(old.cr4),
            efer: Self::long_mode_active(cr0, new.efer.unwrap_or(old.efer)),
            ..old
        };
        self.vcpus[v].regs = regs;
        if Mode::of(&regs) == Mode::Pae {
            // Userspace gives none here, so KVM reads them from memory.
            self.reload_pdptes(v, false);
            self.vcpus[v].kvm_pdpte = self.vcpus[v].regs.pdpte;
        }
        let at = self.at_vcpu(v);
        o.arch(&at, &ArchOp::Sregs, &old, false, self);
        if self.ideal() {
            self.mmu_init(v, o);
            self.post(v, Request::MmuUpdateRoot, o);
            self.serve_ideal(v, &ArchOp::Sregs, &old, o);
        } else if regs != old {
            self.mmu_reset(v, o);
            if self.policy.mechanics.sregs == SregsRule::ResetAndGuest {
                self.post(v, Request::TlbFlushGuest, o);
            }
        }
    }
}
