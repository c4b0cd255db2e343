//! Lines that tell of an operation of guest, userspace or host.

use super::line::{Event, arg, hex, number, word_after};
use super::names::Shows;
use super::vcpu::{CR0, CR3, CR4, EFER, Place};
use super::{Importer, exits};
use crate::act::Act;
use crate::addr::{Gpa, Gva, PcpuId, VcpuId};
use crate::op::{HostOp, Invpcid, InvpcidType, Op, RegWrite, Sregs};

const MSR_EFER: u64 = 0xc000_0080;
const MSR_PAT: u64 = 0x277;

impl Importer {
    /// What the host does, on whatever thread. Answers whether it was such.
    pub(super) fn host_event(&mut self, shows: Shows, event: &Event<'_>) -> bool {
        match shows {
            Shows::UnmapGfns => {
                let start = arg(event.args, b"start=");
                if let (Some(start), Some(end)) = (start, arg(event.args, b"end=")) {
                    let size = end.saturating_sub(start).saturating_mul(4096);
                    self.host(HostOp::Unmap { gpa: Gpa(start.saturating_mul(4096)), size });
                }
            }
            Shows::ZapAllFast => {
                self.host(HostOp::ZapAll);
                self.push(crate::op::Actor::Host, crate::Body::Act(Act::ZapAll));
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
                let index = self.op(vcpu, Op::Sregs(Box::default()));
                self.state(vcpu).sregs = Some(index);
            }
            Shows::VcpuReset => {
                let init = arg(event.args, b"init=") == Some(1);
                self.op(vcpu, if init { Op::Init } else { Op::Reset });
                self.state(vcpu).reset_hooks = [true, false, true, true];
            }
            Shows::VcpuLoad => self.vcpu_load(vcpu, event),
            Shows::Invlpg => self.invlpg(vcpu, arg(event.args, b"gva=")),
            Shows::HandleInvpcid => {
                let kind = match arg(event.args, b"type=") {
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
                let index = self.op(vcpu, Op::Invpcid(Invpcid { kind, pcid, gva: Gva(0) }));
                self.state(vcpu).invpcid = Some(index);
            }
            Shows::TraceMsr => self.trace_msr(vcpu, event),
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
        let keys: [&[u8]; 4] = [b"val=", b"cr3=", b"val=", b"efer="];
        let value = arg(event.args, b"new=").or_else(|| arg(event.args, keys[reg]));
        let old = arg(event.args, b"old=").or_else(|| arg(event.args, b"oldreg="));
        let Some(value) = value else { return };
        let state = self.state(vcpu);
        state.learn(reg, old);
        state.writes(reg);
        let told = state.told.take().filter(|(r, _)| *r == reg).map(|(_, index)| index);
        let index = match told {
            Some(index) => {
                if let Some(op) = self.op_at(index) {
                    *op = write(reg, value);
                }
                index
            }
            None => self.op(vcpu, write(reg, value)),
        };
        let state = self.state(vcpu);
        state.setting = Some((reg, index));
        if reg == CR3 {
            state.cr3 = value;
        }
    }

    /// kvm_cr: `cr_write 4 = 0x20`, before KVM looks at the value.
    fn trace_cr(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let Some(rest) = event.args.strip_prefix(b"cr_write ") else { return };
        let reg = match rest.first() {
            Some(b'0') => CR0,
            Some(b'3') => CR3,
            Some(b'4') => CR4,
            _ => return,
        };
        let Some(value) = word_after(rest, b"=").and_then(number) else { return };
        let index = self.op(vcpu, write(reg, value));
        self.state(vcpu).told = Some((reg, index));
    }

    /// The vendor's hook: a step of kvm_set_crN, of a reset, of WRMSR EFER, or userspace's write.
    fn vendor(&mut self, vcpu: VcpuId, reg: usize, event: &Event<'_>) {
        let value = arg(event.args, b"val=")
            .or_else(|| arg(event.args, b"efer="))
            .or_else(|| arg(event.args, b"new="));
        let Some(value) = value else { return };
        let old = arg(event.args, b"old=");
        let state = self.state(vcpu);
        if std::mem::take(&mut state.reset_hooks[reg]) {
            return;
        }
        state.learn(reg, old);
        if state.setting.is_some() {
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
            let index = self.op(vcpu, Op::Efer(RegWrite::value(value)));
            self.state(vcpu).efer = Some(index);
        }
    }

    /// Userspace rewrites a register: one operation gathers them.
    fn sregs(&mut self, vcpu: VcpuId, reg: usize, value: u64) {
        let index = match self.state(vcpu).sregs {
            Some(index) => index,
            None => self.op(vcpu, Op::Sregs(Box::default())),
        };
        self.state(vcpu).sregs = Some(index);
        if let Some(Op::Sregs(sregs)) = self.op_at(index) {
            set_sreg(sregs, reg, value);
        }
    }

    fn vcpu_load(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let cpu = arg(event.args, b"newcpu=").or_else(|| arg(event.args, b"cpu="));
        let cpu = cpu.and_then(|cpu| u16::try_from(cpu).ok()).unwrap_or(event.cpu);
        let last = arg(event.args, b"oldcpu=").or_else(|| arg(event.args, b"last="));
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
            Some(index) => {
                if let Some(op) = self.op_at(index) {
                    *op = Op::Invlpg(gva);
                }
            }
            None => {
                self.op(vcpu, Op::Invlpg(gva));
            }
        }
    }

    /// kvm_msr: `msr_write c0000080 = 0x100`, after KVM has carried it out.
    fn trace_msr(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let Some(rest) = event.args.strip_prefix(b"msr_write ") else { return };
        let value = word_after(rest, b"=").and_then(number);
        let (Some(msr), Some(value)) = (hex(rest), value) else { return };
        if msr == MSR_EFER {
            let write = Op::Efer(RegWrite::value(value));
            match self.state(vcpu).efer.take() {
                Some(index) => {
                    if let Some(op) = self.op_at(index) {
                        *op = write;
                    }
                }
                None => {
                    self.op(vcpu, write);
                }
            }
            self.state(vcpu).writes(EFER);
        } else if msr == MSR_PAT {
            self.op(vcpu, Op::MsrPat(value));
        } else if is_mtrr(msr) {
            self.op(vcpu, Op::MsrMtrr(value));
        }
    }

    /// An exit begins a window; some reasons are operations by themselves.
    pub(super) fn exit(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let reason = word_after(event.args, b"reason").unwrap_or(b"");
        let info1 = word_after(event.args, b"info1").and_then(number);
        let entered = self.state(vcpu).place != Place::Guest;
        if entered {
            self.act(vcpu, Act::EntrySeen);
        }
        let vmx = exits::vmx(reason);
        self.act(vcpu, Act::Exit(vmx.or_else(|| exits::svm(reason))));
        let state = self.state(vcpu);
        state.window(Place::Exit);
        if state.thread.is_some_and(|thread| thread != event.pid) {
            state.other_thread = Some(event.pid);
        }
        state.thread = Some(event.pid);
        state.wrmsr = reason == b"MSR_WRITE" || (reason == b"msr" && info1 == Some(1));
        match (vmx, info1) {
            // Exit qualification 5:4 = 2 is CLTS (SDM vol. 3, table 28-3).
            (Some(28), Some(info)) if info >> 4 & 3 == 2 => {
                self.op(vcpu, Op::Clts);
            }
            (Some(14), Some(gva)) => {
                let index = self.op(vcpu, Op::Invlpg(Gva(gva)));
                self.state(vcpu).invlpg = Some(index);
            }
            // With decode assists EXITINFO1 is the address (APM vol. 2, 15.10); without, 0.
            (None, Some(gva)) if reason == b"invlpg" && gva != 0 => {
                let index = self.op(vcpu, Op::Invlpg(Gva(gva)));
                self.state(vcpu).invlpg = Some(index);
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
        let Some((r, index)) = self.state(vcpu).setting.take() else { return };
        let emulated = event.caller.starts_with(b"em_") || event.caller.starts_with(b"emulator_");
        if r == reg
            && emulated
            && let Some(op) = self.op_at(index)
        {
            *op = Op::Emul(Box::new(std::mem::replace(op, Op::Clts)));
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
