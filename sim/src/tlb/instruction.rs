//! From instructions and events to what the hardware drops for them: the processor's own behaviour,
//! by its own code, here the least that each vendor's manual lets it do (facts B, C, D). The table
//! of requirements has no part in it.

use tlbscope_trace::act::{ArchOp, GuestInv, Inv};
use tlbscope_trace::addr::{Asid, Ep4ta, Gpa, Gva, Pcid, Vpid};
use tlbscope_trace::op::{Invpcid, InvpcidType};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs, Vendor};

use crate::arch::processor::{Broadcast, Instruction, Place, Processor, Step, ep4ta, invpcid_type};

/// Why the hardware drops something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// MOV CR0 clears PG.
    PgClear,
    /// MOV CR0 sets PG (AMD).
    PgSet,
    /// MOV CR3 without PCIDs.
    Cr3,
    /// MOV CR3 with PCIDs.
    Cr3Pcid,
    /// A task switch changes CR3.
    TaskSwitch,
    /// MOV CR4 changes PGE.
    Pge,
    /// MOV CR4 clears PCIDE.
    PcideClear,
    /// MOV CR4 changes PAE (Intel).
    PaeIntel,
    /// MOV CR4 sets SMEP (Intel).
    SmepSet,
    /// MOV CR4 changes PAE (AMD).
    PaeAmd,
    /// MOV CR4 changes PSE (AMD).
    Pse,
    /// MOV CR4 sets PKE (AMD).
    PkeSet,
    /// INVLPG.
    Invlpg,
    /// INVLPG with EFER.TCE (AMD).
    InvlpgTce,
    /// INVPCID 0.
    InvpcidAddr,
    /// INVPCID 1.
    InvpcidSingle,
    /// INVPCID 2.
    InvpcidAll,
    /// INVPCID 3.
    InvpcidNonglobal,
    /// A page fault.
    PageFault,
    /// RESET.
    Reset,
    /// INIT.
    Init,
    /// SMI entry (AMD).
    Smi,
    /// RSM (AMD).
    Rsm,
    /// WRMSR of an MTRR (AMD).
    Mtrr,
    /// A20M# (AMD).
    A20m,
    /// VM entry with VPIDs disabled.
    EntryVpid0,
    /// VM exit with VPIDs disabled.
    ExitVpid0,
    /// INVVPID 0.
    InvvpidAddr,
    /// INVVPID 1.
    InvvpidSingle,
    /// INVVPID 2.
    InvvpidAll,
    /// INVVPID 3.
    InvvpidNonglobal,
    /// INVEPT 1.
    InveptSingle,
    /// INVEPT 2.
    InveptGlobal,
    /// EPT violation: the combined mappings of the linear address.
    ViolationCombined,
    /// EPT violation: the guest-physical mapping.
    ViolationPhysical,
    /// TLB_CONTROL 1.
    Control1,
    /// TLB_CONTROL 3.
    Control3,
    /// TLB_CONTROL 7.
    Control7,
    /// INVLPGA.
    Invlpga,
    /// INVLPGA with EFER.TCE.
    InvlpgaTce,
    /// INVLPGB, completed by TLBSYNC.
    Invlpgb,
}

impl Effect {
    /// Every one.
    pub const ALL: [Self; 41] = [
        Self::PgClear,
        Self::PgSet,
        Self::Cr3,
        Self::Cr3Pcid,
        Self::TaskSwitch,
        Self::Pge,
        Self::PcideClear,
        Self::PaeIntel,
        Self::SmepSet,
        Self::PaeAmd,
        Self::Pse,
        Self::PkeSet,
        Self::Invlpg,
        Self::InvlpgTce,
        Self::InvpcidAddr,
        Self::InvpcidSingle,
        Self::InvpcidAll,
        Self::InvpcidNonglobal,
        Self::PageFault,
        Self::Reset,
        Self::Init,
        Self::Smi,
        Self::Rsm,
        Self::Mtrr,
        Self::A20m,
        Self::EntryVpid0,
        Self::ExitVpid0,
        Self::InvvpidAddr,
        Self::InvvpidSingle,
        Self::InvvpidAll,
        Self::InvvpidNonglobal,
        Self::InveptSingle,
        Self::InveptGlobal,
        Self::ViolationCombined,
        Self::ViolationPhysical,
        Self::Control1,
        Self::Control3,
        Self::Control7,
        Self::Invlpga,
        Self::InvlpgaTce,
        Self::Invlpgb,
    ];
}

/// What the hardware drops. [`Inv`] has what hypervisors do; the rest is what only a whole
/// processor knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// An invalidation of the common vocabulary.
    Inv(Inv),
    /// Every tag, guest-physical mappings too.
    Processor,
    /// Every ASID.
    EveryAsid,
    /// The combined mappings of an address under these tags, and the path to it.
    Combined {
        /// Whose.
        vpid: Vpid,
        /// Through which EPT.
        root: Ep4ta,
        /// Under which PCID.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// The guest-physical mapping of an address.
    Physical {
        /// Through which EPT.
        root: Ep4ta,
        /// Which page.
        gpa: Gpa,
    },
    /// A page in this ASID, and the path to it.
    Page {
        /// In which ASID.
        asid: Asid,
        /// Which page.
        gva: Gva,
    },
    /// An INVLPGB; its ASID is the guest's own already.
    Broadcast(Broadcast),
}

/// What a register write of this vendor's processor drops, found the registers `before` and left
/// `after`.
#[must_use]
pub fn register_write(
    vendor: Vendor,
    op: &ArchOp,
    before: &Regs,
    after: &Regs,
) -> Option<(Effect, GuestInv)> {
    let amd = vendor == Vendor::Amd;
    match *op {
        ArchOp::Cr3 { old, new, task_switch: true, .. } => {
            (old != new).then_some((Effect::TaskSwitch, GuestInv::PcidNonglobal(Pcid(0))))
        }
        ArchOp::Cr3 { noflush: true, .. } => None,
        ArchOp::Cr3 { .. } => {
            let pcide = before.cr4().contains(Cr4::PCIDE);
            let effect = if pcide { Effect::Cr3Pcid } else { Effect::Cr3 };
            Some((effect, GuestInv::PcidNonglobal(after.pcid())))
        }
        ArchOp::Cr0 { old, new } => {
            let (was, now) = (old & Cr0::PG.bits() != 0, new & Cr0::PG.bits() != 0);
            match (was, now) {
                (true, false) => Some((Effect::PgClear, GuestInv::All)),
                (false, true) if amd => Some((Effect::PgSet, GuestInv::All)),
                _ => None,
            }
        }
        ArchOp::Cr4 { old, new } => cr4_write(amd, old, new, after.pcid()),
        _ => None,
    }
}

fn cr4_write(amd: bool, old: u64, new: u64, pcid: Pcid) -> Option<(Effect, GuestInv)> {
    let changed = Cr4::from_bits_truncate(old ^ new);
    let set = Cr4::from_bits_truncate(new & !old);
    let cleared = Cr4::from_bits_truncate(old & !new);
    let everything = if changed.contains(Cr4::PGE) {
        Some(Effect::Pge)
    } else if cleared.contains(Cr4::PCIDE) {
        Some(Effect::PcideClear)
    } else if amd && changed.contains(Cr4::PAE) {
        Some(Effect::PaeAmd)
    } else if amd && changed.contains(Cr4::PSE) {
        Some(Effect::Pse)
    } else if amd && set.contains(Cr4::PKE) {
        Some(Effect::PkeSet)
    } else {
        None
    };
    if let Some(effect) = everything {
        return Some((effect, GuestInv::All));
    }
    if !amd && changed.contains(Cr4::PAE) {
        return Some((Effect::PaeIntel, GuestInv::Pcid(pcid)));
    }
    (!amd && set.contains(Cr4::SMEP)).then_some((Effect::SmepSet, GuestInv::Pcid(pcid)))
}

/// What an INVPCID that does not fault drops.
#[must_use]
pub const fn invpcid(op: &Invpcid) -> Option<(Effect, GuestInv)> {
    let pcid = Pcid((op.pcid & 0xfff) as u16);
    Some(match op.kind {
        InvpcidType::Addr => {
            (Effect::InvpcidAddr, GuestInv::AddressNonglobal { pcid, gva: op.gva })
        }
        InvpcidType::Single => (Effect::InvpcidSingle, GuestInv::PcidNonglobal(pcid)),
        InvpcidType::All => (Effect::InvpcidAll, GuestInv::All),
        InvpcidType::AllNonglobal => (Effect::InvpcidNonglobal, GuestInv::Nonglobal),
        InvpcidType::Reserved(_) => return None,
    })
}

type Dropped = Option<(Effect, Drop)>;

fn guest(of: Option<(Effect, GuestInv)>) -> Dropped {
    of.map(|(effect, inv)| (effect, Drop::Inv(Inv::Guest(inv))))
}

/// What one step of a processor drops on that processor. INVLPGB drops nothing before its TLBSYNC,
/// which is [`super::processors::Processors`]' business.
#[must_use]
pub fn dropped_by(cpu: &Processor, instruction: &Instruction, step: &Step) -> [Dropped; 3] {
    let after = match step {
        Step::Done(after) => after,
        // The exit happens all the same.
        Step::Exited => return [exit(cpu, None), None, None],
        Step::Nothing => return [None; 3],
    };
    if let Instruction::EptViolation { gva, gpa } = *instruction {
        return violation(cpu, gva, gpa);
    }
    let first = match *instruction {
        Instruction::PageFault(gva) => {
            let inv = GuestInv::Fault { pcid: cpu.regs.pcid(), gva };
            Some((Effect::PageFault, Drop::Inv(Inv::Guest(inv))))
        }
        Instruction::Invlpg(gva) => Some(invlpg(cpu, gva)),
        Instruction::Invpcid { kind, descriptor, gva } => {
            guest(invpcid(&Invpcid { kind: invpcid_type(kind), pcid: descriptor, gva }))
        }
        Instruction::Reset => Some((Effect::Reset, Drop::Processor)),
        Instruction::Init => Some((Effect::Init, Drop::Processor)),
        Instruction::Smi if cpu.amd() => Some((Effect::Smi, Drop::EveryAsid)),
        Instruction::Rsm if cpu.amd() => Some((Effect::Rsm, Drop::EveryAsid)),
        Instruction::WrmsrMtrr if cpu.amd() => Some((Effect::Mtrr, Drop::EveryAsid)),
        Instruction::A20m if cpu.amd() => Some((Effect::A20m, Drop::EveryAsid)),
        Instruction::VmEntry { vpid: None, .. } => {
            Some((Effect::EntryVpid0, Drop::Inv(Inv::VpidZeroTransition)))
        }
        Instruction::VmExit { vpids } => exit(cpu, vpids),
        Instruction::Invvpid { kind, descriptor, gva } => invvpid(kind, descriptor, gva),
        Instruction::Invept { kind: 1, eptp } => {
            Some((Effect::InveptSingle, Drop::Inv(Inv::EptSingle(ep4ta(eptp)))))
        }
        Instruction::Invept { .. } => Some((Effect::InveptGlobal, Drop::Inv(Inv::EptGlobal))),
        Instruction::Vmrun { asid, control } => tlb_control(Asid(asid), control),
        Instruction::Invlpga { asid, gva } if cpu.regs.efer().contains(Efer::TCE) => {
            Some((Effect::InvlpgaTce, Drop::Page { asid, gva }))
        }
        Instruction::Invlpga { asid, gva } => {
            Some((Effect::Invlpga, Drop::Inv(Inv::Invlpga { asid, gva })))
        }
        _ => register(cpu, after, instruction),
    };
    [first, None, None]
}

fn register(cpu: &Processor, after: &Processor, instruction: &Instruction) -> Dropped {
    let (old, new) = (&cpu.regs, &after.regs);
    let op = match *instruction {
        Instruction::MovCr0(_) => ArchOp::Cr0 { old: old.cr0, new: new.cr0 },
        Instruction::MovCr3(raw) => {
            let noflush = old.cr4().contains(Cr4::PCIDE) && raw >> 63 != 0;
            ArchOp::Cr3 { old: old.cr3, new: new.cr3, noflush, task_switch: false }
        }
        Instruction::TaskSwitch(_) => {
            ArchOp::Cr3 { old: old.cr3, new: new.cr3, noflush: false, task_switch: true }
        }
        Instruction::MovCr4(_) => ArchOp::Cr4 { old: old.cr4, new: new.cr4 },
        _ => return None,
    };
    guest(register_write(cpu.vendor(), &op, old, new))
}

fn invlpg(cpu: &Processor, gva: Gva) -> (Effect, Drop) {
    let pcid = cpu.regs.pcid();
    if cpu.amd() && cpu.regs.efer().contains(Efer::TCE) {
        let inv = GuestInv::AddressPath { pcid, gva };
        return (Effect::InvlpgTce, Drop::Inv(Inv::Guest(inv)));
    }
    (Effect::Invlpg, Drop::Inv(Inv::Guest(GuestInv::Address { pcid, gva })))
}

/// A VM exit of VMX with VPIDs disabled; SVM's #VMEXIT drops nothing.
fn exit(cpu: &Processor, vpids: Option<bool>) -> Dropped {
    let disabled = match (vpids, cpu.place) {
        (Some(enabled), _) => !enabled,
        (None, Place::VmxGuest { vpid, .. }) => vpid.is_none(),
        (None, _) => false,
    };
    disabled.then_some((Effect::ExitVpid0, Drop::Inv(Inv::VpidZeroTransition)))
}

/// An EPT violation drops what would translate the address, and is a VM exit.
fn violation(cpu: &Processor, gva: Gva, gpa: Gpa) -> [Dropped; 3] {
    let Some(root) = cpu.guest_eptp else { return [exit(cpu, None), None, None] };
    let (vpid, pcid) = (cpu.place.vpid(), cpu.regs.pcid());
    [
        Some((Effect::ViolationCombined, Drop::Combined { vpid, root, pcid, gva })),
        Some((Effect::ViolationPhysical, Drop::Physical { root, gpa })),
        exit(cpu, None),
    ]
}

const fn invvpid(kind: u64, descriptor: u64, gva: Gva) -> Dropped {
    let vpid = Vpid(descriptor as u16);
    Some(match kind {
        0 => (Effect::InvvpidAddr, Drop::Inv(Inv::VpidAddress { vpid, gva })),
        1 => (Effect::InvvpidSingle, Drop::Inv(Inv::VpidSingle(vpid))),
        2 => (Effect::InvvpidAll, Drop::Inv(Inv::VpidAll)),
        _ => (Effect::InvvpidNonglobal, Drop::Inv(Inv::VpidNonglobal(vpid))),
    })
}

const fn tlb_control(asid: Asid, control: u64) -> Dropped {
    Some(match control {
        1 => (Effect::Control1, Drop::Inv(Inv::TlbControlAll)),
        3 => (Effect::Control3, Drop::Inv(Inv::TlbControlAsid(asid))),
        7 => (Effect::Control7, Drop::Inv(Inv::TlbControlNonglobal(asid))),
        _ => return None,
    })
}
