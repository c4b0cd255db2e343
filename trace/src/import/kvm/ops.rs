//! Lines that tell of an operation of guest, userspace or host.

use super::super::event::Event;
use super::super::number::{hex, number, word_after};
use super::Importer;
use super::exits::Exit;
use super::names::Shows;
use super::vcpu::{CR0, CR3, CR4, EFER, Place};
use crate::act::Act;
use crate::addr::{Gpa, Gva, PcpuId, VcpuId};
use crate::op::{Actor, HostOp, Invpcid, InvpcidType, Op, RegWrite, Sregs};
use crate::recording::{Body, Record};

/// CR0.PG.
const PG: u64 = 1 << 31;
const MSR_EFER: u64 = 0xc000_0080;
const MSR_PAT: u64 = 0x277;
const MSR_APIC_BASE: u64 = 0x1b;

impl Importer<'_> {
    /// What the host does, on whatever thread. Answers whether it was such.
    pub(super) fn host_event(&mut self, shows: Shows, event: &Event<'_>) -> bool {
        match shows {
            Shows::UnmapGfns => {
                let start = event.num(b"start");
                if let (Some(start), Some(end)) = (start, event.num(b"end")) {
                    let size = end.saturating_sub(start).saturating_mul(4096);
                    self.host(HostOp::Unmap { gpa: Gpa(start.saturating_mul(4096)), size });
                }
            }
            // The tracepoint of the same name lies within the function: one call where both are on.
            Shows::ZapAllFast if !event.function && self.zapping == Some(event.pid) => {
                self.zapping = None;
            }
            Shows::ZapAllFast => {
                self.zapping = event.function.then_some(event.pid);
                self.host(HostOp::ZapAll);
                self.push(Actor::Host, Body::Act(Act::ZapAll));
            }
            _ => return false,
        }
        true
    }

    /// Answers whether the line tells of an operation, or completes one.
    pub(super) fn operation(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) -> bool {
        match shows {
            Shows::SetCr0 => self.set_cr(vcpu, CR0, event),
            Shows::SetCr3 => self.set_cr(vcpu, CR3, event),
            Shows::SetCr4 => self.set_cr(vcpu, CR4, event),
            Shows::TraceCr => self.trace_cr(vcpu, event),
            Shows::VendorCr0 => self.vendor(vcpu, CR0, event),
            Shows::VendorCr4 => self.vendor(vcpu, CR4, event),
            Shows::VendorEfer => self.vendor(vcpu, EFER, event),
            Shows::SetSregs => {
                let number = self.op(vcpu, Op::Sregs(Box::default()));
                self.state(vcpu).sregs = Some(number);
            }
            Shows::VcpuReset => {
                let init = event.num(b"init") == Some(1);
                self.op(vcpu, if init { Op::Init } else { Op::Reset });
                self.state(vcpu).reset_hooks = [true, false, true, true];
            }
            Shows::VcpuLoad => self.vcpu_load(vcpu, event),
            Shows::Invlpg => self.invlpg(vcpu, event.num(b"gva")),
            Shows::HandleInvpcid => {
                let kind = match event.num(b"type") {
                    Some(0) => InvpcidType::Addr,
                    Some(1) => InvpcidType::Single,
                    Some(2) => InvpcidType::All,
                    Some(3) => InvpcidType::AllNonglobal,
                    other => InvpcidType::Reserved(other.unwrap_or(!0)),
                };
                // The `gva` of this probe is where the descriptor lies, not what it names. The
                // PCID, if no later line tells it (5.10), is taken to be the current one.
                let pcid = match kind {
                    InvpcidType::Single | InvpcidType::Addr => self.state(vcpu).cr3 & 0xfff,
                    _ => 0,
                };
                let number = self.op(vcpu, Op::Invpcid(Invpcid { kind, pcid, gva: Gva(0) }));
                self.state(vcpu).invpcid = Some(number);
            }
            Shows::TraceMsr => self.trace_msr(vcpu, event),
            Shows::SetCpuid => self.set_cpuid(vcpu),
            Shows::PostSetCr => {
                let register = if event.name.ends_with(b"cr0") { 0 } else { 4 };
                self.old_seen(vcpu, register, event);
            }
            _ => return false,
        }
        true
    }

    /// kvm_set_cr0, 3, 4: an attempted write, with the raw operand.
    fn set_cr(&mut self, vcpu: VcpuId, reg: usize, event: &Event<'_>) {
        let keys: [&[u8]; 4] = [b"val", b"cr3", b"val", b"efer"];
        let value = event.num(b"new").or_else(|| event.num(keys[reg]));
        let old = event.num(b"old").or_else(|| event.num(b"oldreg"));
        let Some(value) = value else { return };
        // CR0.PG 1->0: whether the guest runs 64-bit code is known when KVM has accepted it or not.
        let leaves = reg == CR0 && old.is_some_and(|old| old & !value & PG != 0);
        self.learn(vcpu, reg, old);
        let state = self.state(vcpu);
        state.writes(reg);
        let told = state.told.take().filter(|(r, _)| *r == reg).map(|(_, number)| number);
        let number = match told {
            Some(number) => {
                if let Some(op) = self.op_at(number) {
                    *op = write(reg, value);
                }
                number
            }
            None => self.op(vcpu, write(reg, value)),
        };
        let number = if leaves { self.code_before(number) } else { number };
        let state = self.state(vcpu);
        state.setting = Some((reg, number));
        if reg == CR3 {
            state.cr3 = value;
        }
    }

    /// Puts a load of CS before the operation of this number; answers the operation's new number.
    fn code_before(&mut self, number: u64) -> u64 {
        let Some(record) = self.window.get_mut(number) else { return number };
        let code = Record { body: Body::Op(Op::Code { long: true }), ..record.clone() };
        if !self.window.insert(number, code) {
            return number;
        }
        for vcpu in &mut self.vcpus {
            vcpu.inserted(number);
        }
        number + 1
    }

    /// KVM has accepted the write of this number: a load of CS before it was of 32-bit code.
    pub(super) fn code_is_32(&mut self, number: u64) {
        if let Some(Op::Code { long }) = number.checked_sub(1).and_then(|n| self.op_at(n)) {
            *long = false;
        }
    }

    /// kvm_cr: `cr_write 4 = 0x20`, before KVM looks at the value.
    fn trace_cr(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let Some((reg, value)) = written_cr(event) else { return };
        let number = self.op(vcpu, write(reg, value));
        self.state(vcpu).told = Some((reg, number));
    }

    /// The vendor's hook: a step of kvm_set_crN, of a reset, of WRMSR EFER, or userspace's write.
    fn vendor(&mut self, vcpu: VcpuId, reg: usize, event: &Event<'_>) {
        let value = event.num(b"val").or_else(|| event.num(b"efer")).or_else(|| event.num(b"new"));
        let Some(value) = value else { return };
        let old = event.num(b"old");
        let state = self.state(vcpu);
        if std::mem::take(&mut state.reset_hooks[reg]) {
            return;
        }
        let setting = state.setting.is_some();
        self.learn(vcpu, reg, old);
        let state = self.state(vcpu);
        if setting {
            if matches!(reg, CR0 | CR4) {
                let register = if reg == CR0 { 0 } else { 4 };
                self.old_seen(vcpu, register, event);
            }
            return;
        }
        if state.place == Place::Userspace {
            state.writes(reg);
            self.sregs(vcpu, reg, value);
        } else if reg == EFER && state.wrmsr && state.efer.is_none() {
            state.writes(EFER);
            let number = self.op(vcpu, Op::Efer(RegWrite::value(value)));
            self.state(vcpu).efer = Some(number);
        }
    }

    /// Userspace rewrites a register: one operation gathers them.
    fn sregs(&mut self, vcpu: VcpuId, reg: usize, value: u64) {
        let number = match self.state(vcpu).sregs {
            Some(number) => number,
            None => self.op(vcpu, Op::Sregs(Box::default())),
        };
        self.state(vcpu).sregs = Some(number);
        if let Some(Op::Sregs(sregs)) = self.op_at(number) {
            set_sreg(sregs, reg, value);
        }
    }

    /// KVM_SET_CPUID. Two functions tell of it, one calling the other.
    pub(super) fn set_cpuid(&mut self, vcpu: VcpuId) {
        if !std::mem::replace(&mut self.state(vcpu).cpuid, true) {
            self.op(vcpu, Op::Cpuid);
        }
    }

    /// A free of all roots that is about to be told.
    pub(super) fn bare_free(&mut self, vcpu: VcpuId, mask: u8) {
        let next = self.window.next();
        let state = self.state(vcpu);
        if mask == 0xf && !state.in_reset {
            state.bare_free.get_or_insert(next);
        }
    }

    /// kvm_init_mmu. Behind bare frees of all roots it ends a reset that was inlined, which is the
    /// one of KVM_SET_CPUID; where no probe told of that it is put before them.
    pub(super) fn inlined_reset(&mut self, vcpu: VcpuId) {
        let now = Record {
            time: self.now,
            actor: Actor::Vcpu(vcpu),
            line: self.line,
            body: Body::Op(Op::Cpuid),
        };
        let state = self.state(vcpu);
        let (bare, told) = (state.bare_free.take(), std::mem::take(&mut state.cpuid));
        state.in_reset = false;
        let Some(first) = bare.filter(|_| !told) else { return };
        let cpuid = match self.window.get_mut(first) {
            Some(record) => Record { body: Body::Op(Op::Cpuid), ..record.clone() },
            None => now,
        };
        if self.window.insert(first, cpuid) {
            for vcpu in &mut self.vcpus {
                vcpu.inserted(first);
            }
        }
    }

    /// SMM shows in who resets the MMU: enter_smm twice, RSM's emulation once.
    pub(super) fn smm(&mut self, vcpu: VcpuId, caller: &[u8]) {
        let enters = caller.starts_with(b"enter_smm");
        if enters && !std::mem::replace(&mut self.state(vcpu).smm, true) {
            self.op(vcpu, Op::Smi);
        } else if caller.starts_with(b"em_rsm") {
            self.state(vcpu).smm = false;
            self.op(vcpu, Op::Rsm);
        }
    }

    /// Without decode assists the emulator carries INVLPG out.
    pub(super) fn emulated_invlpg(&mut self, vcpu: VcpuId) {
        if let Some(number) = self.state(vcpu).invlpg
            && let Some(op @ Op::Invlpg(_)) = self.op_at(number)
        {
            *op = Op::Emul(Box::new(op.clone()));
        }
    }

    fn vcpu_load(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let cpu = event.num(b"newcpu").or_else(|| event.num(b"cpu"));
        let cpu = cpu.and_then(|cpu| u16::try_from(cpu).ok()).unwrap_or(event.cpu);
        let last = event.num(b"oldcpu").or_else(|| event.num(b"last"));
        let last = last.and_then(|cpu| u16::try_from(cpu).ok());
        let last = last.or(self.state(vcpu).pcpu);
        self.state(vcpu).pcpu = Some(cpu);
        if last.is_some_and(|last| last != cpu) {
            self.host(HostOp::Migrate { vcpu, pcpu: PcpuId(cpu) });
        }
        self.act(vcpu, Act::VcpuLoad(PcpuId(cpu)));
    }

    fn invlpg(&mut self, vcpu: VcpuId, gva: Option<u64>) {
        let Some(gva) = gva.map(Gva) else { return };
        match self.state(vcpu).invlpg.take() {
            Some(number) => match self.op_at(number) {
                Some(Op::Emul(op)) => **op = Op::Invlpg(gva),
                Some(op) => *op = Op::Invlpg(gva),
                None => {}
            },
            None => {
                self.op(vcpu, Op::Invlpg(gva));
            }
        }
    }

    /// kvm_msr: `msr_write c0000080 = 0x100`, after KVM has carried it out.
    fn trace_msr(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let Some((msr, value)) = written_msr(event) else { return };
        if msr == MSR_EFER {
            let write = Op::Efer(RegWrite::value(value));
            match self.state(vcpu).efer.take() {
                Some(number) => {
                    if let Some(op) = self.op_at(number) {
                        *op = write;
                    }
                }
                None => {
                    self.op(vcpu, write);
                }
            }
            self.state(vcpu).writes(EFER);
        } else if msr == MSR_APIC_BASE {
            self.op(vcpu, Op::MsrApicBase(value));
        } else if msr == MSR_PAT {
            self.op(vcpu, Op::MsrPat(value));
        } else if is_mtrr(msr) {
            self.op(vcpu, Op::MsrMtrr(value));
        }
    }

    /// An exit begins a window; some reasons are operations by themselves.
    pub(super) fn exit(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let exit = Exit::of(event, self.clues.is_amd());
        let entered = self.state(vcpu).place != Place::Guest;
        if entered {
            self.act(vcpu, Act::EntrySeen);
        }
        self.act(vcpu, Act::Exit(exit.number()));
        let state = self.state(vcpu);
        state.window(Place::Exit);
        if state.thread.is_some_and(|thread| thread != event.pid) {
            state.other_thread = Some(event.pid);
        }
        state.thread = Some(event.pid);
        state.wrmsr = exit.is_wrmsr();
        match (exit, exit.info1()) {
            // Exit qualification 5:4 = 2 is CLTS (SDM vol. 3, table 28-3).
            (Exit::Vmx(28, _), Some(info)) if info >> 4 & 3 == 2 => {
                self.op(vcpu, Op::Clts);
            }
            (Exit::Vmx(14, _), Some(gva)) => {
                let number = self.op(vcpu, Op::Invlpg(Gva(gva)));
                self.state(vcpu).invlpg = Some(number);
            }
            // With decode assists EXITINFO1 is the address (APM vol. 2, 15.10); without, 0.
            (Exit::Svm(0x79, _), Some(gva)) if gva != 0 => {
                let number = self.op(vcpu, Op::Invlpg(Gva(gva)));
                self.state(vcpu).invlpg = Some(number);
            }
            _ => {}
        }
    }

    /// A function returned.
    pub(super) fn returned(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        let reg = match shows {
            Shows::SetCr0 => CR0,
            Shows::SetCr3 => CR3,
            Shows::SetCr4 => CR4,
            Shows::Load => {
                self.state(vcpu).in_load = false;
                return;
            }
            _ => return,
        };
        let Some((r, number)) = self.state(vcpu).setting.take() else { return };
        if r == reg && event.num(b"ret") == Some(0) {
            self.code_is_32(number);
        }
        let emulated = event.caller.starts_with(b"em_") || event.caller.starts_with(b"emulator_");
        if r == reg
            && emulated
            && let Some(op) = self.op_at(number)
        {
            *op = Op::Emul(Box::new(std::mem::replace(op, Op::Clts)));
        }
    }
}

/// kvm_cr: register and value of a write.
fn written_cr(event: &Event<'_>) -> Option<(usize, u64)> {
    let (cr, value) = match (event.num(b"rw"), event.num(b"cr"), event.num(b"val")) {
        (Some(1), Some(cr), Some(value)) => (cr, value),
        (Some(_), ..) => return None,
        _ => {
            let rest = event.text().strip_prefix(b"cr_write ")?;
            (number(rest)?, word_after(rest, b"=").and_then(number)?)
        }
    };
    let reg = match cr {
        0 => CR0,
        3 => CR3,
        4 => CR4,
        _ => return None,
    };
    Some((reg, value))
}

/// kvm_msr: number and value of a write.
fn written_msr(event: &Event<'_>) -> Option<(u64, u64)> {
    match (event.num(b"write"), event.num(b"ecx"), event.num(b"data")) {
        (Some(1), Some(msr), Some(value)) => Some((msr, value)),
        (Some(_), ..) => None,
        _ => {
            let rest = event.text().strip_prefix(b"msr_write ")?;
            Some((hex(rest)?, word_after(rest, b"=").and_then(number)?))
        }
    }
}

/// A guest's write of a whole register.
fn write(reg: usize, value: u64) -> Op {
    match reg {
        CR0 => Op::Cr0(RegWrite::value(value)),
        CR3 => Op::Cr3(value),
        CR4 => Op::Cr4(RegWrite::value(value)),
        _ => Op::Efer(RegWrite::value(value)),
    }
}

fn set_sreg(sregs: &mut Sregs, reg: usize, value: u64) {
    let slot = match reg {
        CR0 => &mut sregs.cr0,
        CR3 => &mut sregs.cr3,
        CR4 => &mut sregs.cr4,
        _ => &mut sregs.efer,
    };
    *slot = Some(value);
}

/// MTRR capability, variable, fixed and default-type registers (SDM vol. 3, 12.11).
fn is_mtrr(msr: u64) -> bool {
    matches!(msr, 0x200..=0x21f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f | 0x2ff)
}
