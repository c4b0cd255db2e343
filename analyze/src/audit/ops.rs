//! A recorded operation as the manuals speak of it.

use tlbscope_sim::arch::mode::Mode;
use tlbscope_trace::act::ArchOp;
use tlbscope_trace::op::{InvpcidType, Op};
use tlbscope_trace::regs::{CR3_NOFLUSH, Cr0, Cr4, Efer, MmuKind, Regs};

use super::world::{follow_lma, reset, written_efer};

/// An operation, the registers that it found and those that it left.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What took effect; `None`: it owes nothing by any manual.
    pub op: Option<ArchOp>,
    /// Before.
    pub before: Regs,
    /// After.
    pub after: Regs,
}

/// Whether an operation is one of those that may oblige somebody to invalidate.
pub const fn counts(op: &Op) -> bool {
    matches!(
        op,
        Op::Cr0(_)
            | Op::Clts
            | Op::Lmsw(_)
            | Op::Cr3(_)
            | Op::Cr4(_)
            | Op::Efer(_)
            | Op::Invlpg(_)
            | Op::Invpcid(_)
            | Op::Init
            | Op::Reset
            | Op::Smi
            | Op::Rsm
            | Op::TaskSwitch(_)
            | Op::MsrMtrr(_)
            | Op::MsrPat(_)
            | Op::Sregs(_)
    )
}

/// Carries out an operation on registers. `old` is what a write of CR0 or CR4 replaced.
pub fn step(op: &Op, regs: &Regs, old: Option<u64>) -> Step {
    let mut before = *regs;
    match (op, old) {
        (Op::Cr0(_) | Op::Clts | Op::Lmsw(_), Some(old)) => before.cr0 = old,
        (Op::Cr4(_), Some(old)) => before.cr4 = old,
        _ => {}
    }
    // Only with CR4.PCIDE = 1 may bit 63 be set (SDM vol. 3, 4.10.4.1): it proves the mode.
    if matches!(op, Op::Cr3(value) if value & CR3_NOFLUSH != 0) {
        before.cr4 |= Cr4::PCIDE.bits();
    }
    let mut after = before;
    let arch = match op {
        Op::Cr0(write) => cr0(&before, &mut after, write.apply(before.cr0)),
        Op::Clts => cr0(&before, &mut after, before.cr0 & !Cr0::TS.bits()),
        // LMSW writes the four lowest bits and cannot clear PE.
        Op::Lmsw(value) => {
            let kept = before.cr0 & !0xe;
            cr0(&before, &mut after, kept | u64::from(*value) & 0xf)
        }
        Op::Cr3(value) => cr3(&before, &mut after, *value, false),
        Op::TaskSwitch(value) => cr3(&before, &mut after, *value, true),
        Op::Cr4(write) => {
            after.cr4 = write.apply(before.cr4);
            Some(ArchOp::Cr4 { old: before.cr4, new: after.cr4 })
        }
        Op::Efer(write) => {
            after.efer = written_efer(before.efer, *write);
            follow_lma(&mut after);
            Some(ArchOp::Efer { old: before.efer, new: after.efer })
        }
        Op::Invlpg(gva) if Mode::of(&before).canonical(*gva) => Some(ArchOp::Invlpg(*gva)),
        Op::Invpcid(op) if !matches!(op.kind, InvpcidType::Reserved(_)) => {
            Some(ArchOp::Invpcid(*op))
        }
        Op::Init | Op::Reset => {
            let init = matches!(op, Op::Init);
            after = reset(&before, init);
            Some(if init { ArchOp::Init } else { ArchOp::Reset })
        }
        Op::Smi => Some(ArchOp::Smi),
        Op::Rsm => Some(ArchOp::Rsm),
        Op::MsrMtrr(_) => Some(ArchOp::Mtrr),
        Op::MsrPat(_) => Some(ArchOp::Pat),
        Op::Sregs(sregs) => {
            after.cr0 = sregs.cr0.unwrap_or(after.cr0);
            after.cr3 = sregs.cr3.unwrap_or(after.cr3);
            after.cr4 = sregs.cr4.unwrap_or(after.cr4);
            after.efer = sregs.efer.unwrap_or(after.efer);
            follow_lma(&mut after);
            Some(ArchOp::Sregs)
        }
        _ => None,
    };
    Step { op: arch, before, after }
}

fn cr0(before: &Regs, after: &mut Regs, new: u64) -> Option<ArchOp> {
    // ET is hardwired to 1 (SDM vol. 3, 2.5).
    let new = new | Cr0::ET.bits();
    after.cr0 = new;
    follow_lma(after);
    Some(ArchOp::Cr0 { old: before.cr0, new })
}

fn cr3(before: &Regs, after: &mut Regs, value: u64, task_switch: bool) -> Option<ArchOp> {
    let noflush = value & CR3_NOFLUSH != 0;
    after.cr3 = value & !CR3_NOFLUSH;
    Some(ArchOp::Cr3 { old: before.cr3, new: after.cr3, noflush, task_switch })
}

/// The bits of the registers on which the role of a root depends in some version of KVM (facts/kvm.md
/// 7.2): TDP roots of old versions on CR0.WP and EFER.NX while paging is on.
pub const fn role_bits(regs: &Regs, mmu: MmuKind) -> (u64, u64, u64) {
    let cr0 = regs.cr0 & (Cr0::PG.bits() | Cr0::WP.bits());
    if matches!(mmu, MmuKind::Tdp) {
        return (cr0, 0, regs.efer & Efer::NXE.bits());
    }
    let cr4 = Cr4::PAE.bits()
        | Cr4::PSE.bits()
        | Cr4::LA57.bits()
        | Cr4::SMEP.bits()
        | Cr4::SMAP.bits()
        | Cr4::PKE.bits();
    (cr0, regs.cr4 & cr4, regs.efer & (Efer::NXE.bits() | Efer::LMA.bits()))
}
