//! What the manuals require of a whole logical processor: the rows that only VMX root operation,
//! the SVM host or the platform know, and the guest's rows with the tags they speak of.

use tlbscope_trace::act::ArchOp;
use tlbscope_trace::addr::{Asid, Ep4ta, Gpa, Gva, Vpid};
use tlbscope_trace::op::Invpcid;
use tlbscope_trace::regs::{Cr4, Efer};

use super::{AMD, INTEL, Owed, Rule, Scope, Strength, required};
use crate::arch::processor::{Broadcast, Instruction, Place, Processor, Step, ep4ta, invpcid_type};

rules! {
    /// What only hosts and the platform can do.
    PROCESSOR_RULES:
    /// VM entry and exit with VPIDs disabled.
    VPID_DISABLED = "vpid-disabled", INTEL, Must, true,
        "A VM entry or exit with VPIDs disabled drops everything of VPID 0000H, all PCIDs and EP4TAs.",
        "SDM vol. 3, 28.3.3.1, 26.3.2.5, 27.5.5";
    /// INVVPID type 0.
    INVVPID_ADDR = "invvpid-addr", INTEL, Must, true,
        "INVVPID 0 drops the page in one VPID under all PCIDs and EP4TAs, global too, and the path.",
        "SDM vol. 3, 28.3.3.1";
    /// INVVPID type 1.
    INVVPID_SINGLE = "invvpid-single", INTEL, Must, true,
        "INVVPID 1 drops all linear and combined mappings of one VPID.", "SDM vol. 3, 28.3.3.1";
    /// INVVPID type 2.
    INVVPID_ALL = "invvpid-all", INTEL, Must, true,
        "INVVPID 2 drops all linear and combined mappings of every VPID but 0000H.",
        "SDM vol. 3, 28.3.3.1";
    /// INVVPID type 3.
    INVVPID_NONGLOBAL = "invvpid-nonglobal", INTEL, Must, true,
        "INVVPID 3 drops the non-global translations of one VPID; paging-structure entries that \
         serve a global one may stay.",
        "SDM vol. 3, 28.3.3.1";
    /// INVEPT type 1.
    INVEPT_SINGLE = "invept-single", INTEL, Must, true,
        "INVEPT 1 drops the guest-physical and combined mappings of one EP4TA, whatever the VPID.",
        "SDM vol. 3, 28.3.3.1";
    /// INVEPT type 2.
    INVEPT_GLOBAL = "invept-global", INTEL, Must, true,
        "INVEPT 2 drops the guest-physical and combined mappings of every EP4TA.",
        "SDM vol. 3, 28.3.3.1";
    /// An EPT violation, by linear address.
    VIOLATION_COMBINED = "ept-violation-combined", INTEL, Must, true,
        "An EPT violation drops the combined mappings of the linear address under the current \
         VPID, PCID and EP4TA.",
        "SDM vol. 3, 28.3.3.1";
    /// An EPT violation, by guest-physical address.
    VIOLATION_PHYSICAL = "ept-violation-physical", INTEL, Must, true,
        "An EPT violation drops the guest-physical mapping of the address under the current EP4TA.",
        "SDM vol. 3, 28.3.3.1";
    /// TLB_CONTROL 1.
    TLB_CONTROL_ALL = "tlb-control-1", AMD, Must, true,
        "VMRUN with TLB_CONTROL 1 drops every entry of every ASID, the host's too.",
        "APM vol. 2, 15.16.1";
    /// TLB_CONTROL 3.
    TLB_CONTROL_ASID = "tlb-control-3", AMD, Must, true,
        "VMRUN with TLB_CONTROL 3 drops every entry of the guest's ASID.", "APM vol. 2, 15.16.1";
    /// TLB_CONTROL 7.
    TLB_CONTROL_NONGLOBAL = "tlb-control-7", AMD, Must, true,
        "VMRUN with TLB_CONTROL 7 drops the non-global entries of the guest's ASID.",
        "APM vol. 2, 15.16.1";
    /// INVLPGA.
    INVLPGA = "invlpga", AMD, Must, true,
        "INVLPGA drops the page in the named ASID, global or not, and cached upper-level entries \
         (with EFER.TCE only the path).",
        "APM vol. 2, 15.16.2";
    /// INVLPGB with TLBSYNC.
    INVLPGB = "invlpgb", AMD, Must, false,
        "INVLPGB drops what matches its address range, PCID and ASID on every processor, once \
         TLBSYNC on its own has completed.",
        "APM vol. 3, INVLPGB, TLBSYNC (derived)";
    /// Globals of other PCIDs at an INVLPGB that names a PCID.
    INVLPGB_GLOBALS = "invlpgb-other-globals", AMD, Advised, false,
        "Whether an INVLPGB of a PCID with globals drops those made under another PCID is left open.",
        "APM vol. 3, INVLPGB (derived)";
    /// A20M#.
    A20M = "a20m", AMD, Must, true,
        "Asserting A20M# drops everything of every ASID.", "APM vol. 2, 5.5.3";
}

/// On which processors a demand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// On the one that executed.
    Own,
    /// On all.
    Every,
}

/// Under which tags copies have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    /// Linear and combined mappings of a VPID, every EP4TA.
    Vpid(Vpid),
    /// The same of every VPID but 0000H.
    GuestVpids,
    /// Combined and guest-physical mappings of an EP4TA, every VPID.
    Ept(Ep4ta),
    /// The same of every EP4TA.
    EveryEpt,
    /// Combined mappings of a VPID through one EP4TA.
    Combined(Vpid, Ep4ta),
    /// Guest-physical mappings of an EP4TA.
    GuestPhysical(Ep4ta),
    /// An ASID.
    Asid(Asid),
    /// Every ASID.
    EveryAsid,
    /// Whatever the processor caches.
    All,
}

/// Which copies under these tags have to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// What the rules of guests distinguish.
    Scope(Scope),
    /// The page under every PCID and as a global translation. `path`: of the paging-structure
    /// entries only those that lead to it.
    Address {
        /// Which page.
        gva: Gva,
        /// Whether only the path is meant.
        path: bool,
    },
    /// Non-global translations, but no paging-structure entry.
    NonGlobalTranslations,
    /// The mapping of a guest-physical address.
    Physical(Gpa),
    /// What an INVLPGB names; of global translations only those of its PCID, if it names one.
    Broadcast(Broadcast),
    /// The global translations of other PCIDs that an INVLPGB may mean.
    BroadcastOthers(Broadcast),
}

/// One demand on caches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// By which rule.
    pub rule: &'static Rule,
    /// How binding.
    pub strength: Strength,
    /// On which processors.
    pub on: Where,
    /// Under which tags.
    pub tags: Tags,
    /// Which copies.
    pub what: What,
}

const fn demand(rule: &'static Rule, tags: Tags, what: What) -> Demand {
    Demand { rule, strength: rule.strength, on: Where::Own, tags, what }
}

const fn everything(rule: &'static Rule, tags: Tags) -> Demand {
    demand(rule, tags, What::Scope(Scope::Everything))
}

/// What one step of a logical processor demands of its own caches. INVLPGB demands nothing by
/// itself: see [`of_broadcast`].
#[must_use]
pub fn of_step(cpu: &Processor, instruction: &Instruction, step: &Step) -> Vec<Demand> {
    let after = match step {
        Step::Done(after) => after,
        Step::Exited => return of_exit(cpu, None).into_iter().collect(),
        Step::Nothing => return Vec::new(),
    };
    match *instruction {
        Instruction::VmEntry { vpid: None, .. } => {
            vec![everything(&VPID_DISABLED, Tags::Vpid(Vpid(0)))]
        }
        Instruction::VmExit { vpids } => of_exit(cpu, vpids).into_iter().collect(),
        Instruction::Invvpid { kind, descriptor, gva } => {
            of_invvpid(kind, Vpid(descriptor as u16), gva).into_iter().collect()
        }
        Instruction::Invept { kind: 1, eptp } => {
            vec![everything(&INVEPT_SINGLE, Tags::Ept(ep4ta(eptp)))]
        }
        Instruction::Invept { .. } => vec![everything(&INVEPT_GLOBAL, Tags::EveryEpt)],
        Instruction::EptViolation { gva, gpa } => of_violation(cpu, gva, gpa),
        Instruction::Vmrun { asid, control } => {
            of_tlb_control(Asid(asid), control).into_iter().collect()
        }
        Instruction::Invlpga { gva, asid } => {
            let path = cpu.regs.efer().contains(Efer::TCE);
            vec![demand(&INVLPGA, Tags::Asid(asid), What::Address { gva, path })]
        }
        Instruction::A20m if cpu.amd() => vec![everything(&A20M, Tags::EveryAsid)],
        _ => of_arch_op(cpu, after, instruction),
    }
}

/// What an INVLPGB demands once its TLBSYNC has completed; `b` as [`Processor::broadcast`] gave it.
#[must_use]
pub fn of_broadcast(b: Broadcast) -> Vec<Demand> {
    let tags = b.asid.map_or(Tags::EveryAsid, Tags::Asid);
    let on_all = |rule, what| Demand { on: Where::Every, ..demand(rule, tags, what) };
    let mut demands = vec![on_all(&INVLPGB, What::Broadcast(b))];
    if b.global && b.pcid.is_some() {
        demands.push(on_all(&INVLPGB_GLOBALS, What::BroadcastOthers(b)));
    }
    demands
}

/// A VM exit of VMX.
fn of_exit(cpu: &Processor, vpids: Option<bool>) -> Option<Demand> {
    let disabled = match cpu.place {
        Place::VmxGuest { vpid, .. } => !vpids.unwrap_or(vpid.is_some()),
        Place::Host => vpids == Some(false),
        Place::SvmGuest { .. } => false,
    };
    disabled.then(|| everything(&VPID_DISABLED, Tags::Vpid(Vpid(0))))
}

const fn of_invvpid(kind: u64, vpid: Vpid, gva: Gva) -> Option<Demand> {
    let tags = Tags::Vpid(vpid);
    Some(match kind {
        0 => demand(&INVVPID_ADDR, tags, What::Address { gva, path: true }),
        1 => everything(&INVVPID_SINGLE, tags),
        2 => everything(&INVVPID_ALL, Tags::GuestVpids),
        3 => demand(&INVVPID_NONGLOBAL, tags, What::NonGlobalTranslations),
        _ => return None,
    })
}

fn of_violation(cpu: &Processor, gva: Gva, gpa: Gpa) -> Vec<Demand> {
    let mut demands: Vec<Demand> = of_exit(cpu, None).into_iter().collect();
    if let Some(root) = cpu.guest_eptp {
        let fault = Scope::Fault { pcid: cpu.regs.pcid(), gva };
        let tags = Tags::Combined(cpu.place.vpid(), root);
        demands.push(demand(&VIOLATION_COMBINED, tags, What::Scope(fault)));
        let tags = Tags::GuestPhysical(root);
        demands.push(demand(&VIOLATION_PHYSICAL, tags, What::Physical(gpa)));
    }
    demands
}

const fn of_tlb_control(asid: Asid, control: u64) -> Option<Demand> {
    let tags = Tags::Asid(asid);
    Some(match control {
        1 => everything(&TLB_CONTROL_ALL, Tags::EveryAsid),
        3 => everything(&TLB_CONTROL_ASID, tags),
        7 => demand(&TLB_CONTROL_NONGLOBAL, tags, What::Scope(Scope::NonGlobal)),
        _ => return None,
    })
}

/// The rows of guests, under the tags of whoever executes.
fn of_arch_op(cpu: &Processor, after: &Processor, instruction: &Instruction) -> Vec<Demand> {
    let Some(op) = arch_op(cpu, after, instruction) else { return Vec::new() };
    let own = if cpu.amd() { Tags::Asid(cpu.place.asid()) } else { Tags::Vpid(cpu.place.vpid()) };
    let with_tags = |owed: Owed| {
        let tags = match (op, owed.scope) {
            (ArchOp::Reset | ArchOp::Init, _) => Tags::All,
            (_, Scope::EveryAsid) => Tags::EveryAsid,
            _ => own,
        };
        let Owed { rule, scope, strength } = owed;
        Demand { rule, strength, on: Where::Own, tags, what: What::Scope(scope) }
    };
    required(cpu.vendor(), &op, &cpu.regs, &after.regs).map(with_tags).collect()
}

/// The operation as the table of guests names it.
fn arch_op(cpu: &Processor, after: &Processor, instruction: &Instruction) -> Option<ArchOp> {
    let (old, new) = (&cpu.regs, &after.regs);
    Some(match *instruction {
        Instruction::MovCr0(_) => ArchOp::Cr0 { old: old.cr0, new: new.cr0 },
        Instruction::MovCr3(raw) => {
            let noflush = old.cr4().contains(Cr4::PCIDE) && raw >> 63 != 0;
            ArchOp::Cr3 { old: old.cr3, new: new.cr3, noflush, task_switch: false }
        }
        Instruction::TaskSwitch(_) => {
            ArchOp::Cr3 { old: old.cr3, new: new.cr3, noflush: false, task_switch: true }
        }
        Instruction::MovCr4(_) => ArchOp::Cr4 { old: old.cr4, new: new.cr4 },
        Instruction::WrmsrEfer(_) => ArchOp::Efer { old: old.efer, new: new.efer },
        Instruction::WrmsrMtrr => ArchOp::Mtrr,
        Instruction::WrmsrPat => ArchOp::Pat,
        Instruction::Wrpkru => ArchOp::Pkru,
        Instruction::Invlpg(gva) => ArchOp::Invlpg(gva),
        Instruction::Invpcid { kind, descriptor, gva } => {
            ArchOp::Invpcid(Invpcid { kind: invpcid_type(kind), pcid: descriptor, gva })
        }
        Instruction::PageFault(gva) => ArchOp::PageFault(gva),
        Instruction::Init => ArchOp::Init,
        Instruction::Reset => ArchOp::Reset,
        Instruction::Smi => ArchOp::Smi,
        Instruction::Rsm => ArchOp::Rsm,
        _ => return None,
    })
}
