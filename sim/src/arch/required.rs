//! What the manuals require to be invalidated: one static row per requirement, and the function
//! that says which rows an operation calls upon. Read by judges and ideal policies only; the TLB
//! model implements each instruction by its own code.
//!
//! Scopes speak of the executing vCPU and of its current VPID or ASID; a rule with
//! [`Scope::EveryAsid`] goes beyond it.

use tlbscope_trace::act::ArchOp;
use tlbscope_trace::addr::{Gpa, Gva, Pcid};
use tlbscope_trace::op::InvpcidType;
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs, Vendor};

/// Which copies have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Scope {
    /// All PCIDs, global translations too, and all paging-structure entries.
    Everything,
    /// The same in every ASID of the processor (AMD).
    EveryAsid,
    /// All PCIDs but no global translation; all paging-structure entries.
    NonGlobal,
    /// One PCID and the global translations made under it.
    Pcid(Pcid),
    /// One PCID without global translations.
    PcidNonGlobal(Pcid),
    /// Global translations made under any other PCID than this one.
    OtherGlobals(Pcid),
    /// INVLPG: the page in this PCID and as a global translation; every paging-structure entry of
    /// the PCID (only the path to the page if `path`, AMD with EFER.TCE).
    Address {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
        /// Whether only the path's paging-structure entries are owed.
        path: bool,
    },
    /// INVPCID 0: the page in this PCID, not global, and the path to it.
    AddressNonGlobal {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// The page under every PCID, as a global translation too, and every path to it (INVVPID 0).
    EveryPcidAddress(Gva),
    /// A page fault: the page in this PCID, globals made under it too, and the path to it.
    Fault {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// The page as a global translation made under another PCID than this one.
    AddressOtherGlobals {
        /// The PCID whose own globals are not meant.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// Every copy that maps these guest frames to their old backing, on every vCPU.
    Frames {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
}

/// How binding a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// The architecture requires it.
    Must,
    /// A hypervisor's duty, or a point on which a manual is silent or contradicts itself.
    Advised,
}

/// One requirement of a manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, as findings and `explain` use it.
    pub id: &'static str,
    /// What it says, in one sentence.
    pub sentence: &'static str,
    /// Where it says so.
    pub citation: &'static str,
    /// Whose rule; `None`: both vendors'.
    pub vendor: Option<Vendor>,
    /// How binding.
    pub strength: Strength,
    /// Whether the manual itself was read; else derived or recalled.
    pub verified: bool,
}

/// An invalidation that an operation owes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Owed {
    /// By which rule.
    pub rule: &'static Rule,
    /// Of which copies.
    pub scope: Scope,
    /// How binding: that of the rule.
    pub strength: Strength,
}

macro_rules! rules {
    ($(#[$all_doc:meta])* $all:ident: $($(#[$doc:meta])* $name:ident = $id:literal, $vendor:expr, $strength:ident, $verified:literal,
        $sentence:literal, $citation:literal;)*) => {
        $($(#[$doc])* pub static $name: Rule = Rule {
            id: $id, sentence: $sentence, citation: $citation, vendor: $vendor,
            strength: Strength::$strength, verified: $verified,
        };)*
        $(#[$all_doc])*
        pub static $all: &[&Rule] = &[$(&$name),*];
    };
}

pub mod elsewhere;
pub mod processor;

const INTEL: Option<Vendor> = Some(Vendor::Intel);
const AMD: Option<Vendor> = Some(Vendor::Amd);

rules! {
    /// What guests and their hosts owe, in the order of the manuals' tables.
    RULES:
    /// INVLPG.
    INVLPG = "invlpg", None, Must, true,
        "INVLPG drops the page under the current PCID, global translations of it under \
         any PCID, and paging-structure entries of the current PCID.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.2";
    /// INVPCID type 0.
    INVPCID_ADDR = "invpcid-addr", None, Must, true,
        "INVPCID 0 drops the non-global translations of the page under the PCID of the descriptor.",
        "SDM vol. 3, 4.10.4.1; AMD derived";
    /// INVPCID type 1.
    INVPCID_SINGLE = "invpcid-single", None, Must, true,
        "INVPCID 1 drops every non-global translation of the PCID of the descriptor.",
        "SDM vol. 3, 4.10.4.1; AMD derived";
    /// INVPCID type 2.
    INVPCID_ALL = "invpcid-all", None, Must, true,
        "INVPCID 2 drops everything in all PCIDs, global translations too.",
        "SDM vol. 3, 4.10.4.1; AMD derived";
    /// INVPCID type 3.
    INVPCID_ALL_NONGLOBAL = "invpcid-all-nonglobal", None, Must, true,
        "INVPCID 3 drops every non-global translation of all PCIDs.",
        "SDM vol. 3, 4.10.4.1; AMD derived";
    /// MOV CR0 that clears PG.
    CR0_PG_CLEAR = "cr0-pg-clear", None, Must, true,
        "MOV CR0 that clears PG drops everything in all PCIDs, global translations too.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.3";
    /// MOV CR0 that sets PG on AMD.
    CR0_PG_SET = "cr0-pg-set", AMD, Must, true,
        "A change of CR0.PG in either direction drops everything of the current ASID.",
        "APM vol. 2, 5.5.3";
    /// CR0.WP, CD or NW changes under SVM.
    CR0_VMCB = "cr0-wp-cd-nw-vmcb", AMD, Advised, true,
        "A VMM that changes CR0.WP, CD or NW through the VMCB must flush the guest's ASID.",
        "APM vol. 2, 15.16";
    /// MOV CR3 without PCIDs.
    CR3 = "cr3", None, Must, true,
        "MOV CR3 with CR4.PCIDE = 0 drops every non-global translation of PCID 0.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.1";
    /// MOV CR3 with PCIDs.
    CR3_PCID = "cr3-pcid", None, Must, true,
        "MOV CR3 with CR4.PCIDE = 1 and bit 63 clear drops every non-global translation \
         of the new PCID.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.1";
    /// MOV CR4 that changes PGE.
    CR4_PGE = "cr4-pge", None, Must, true,
        "MOV CR4 that changes PGE drops everything in all PCIDs, global translations too.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.3";
    /// MOV CR4 that clears PCIDE.
    CR4_PCIDE_CLEAR = "cr4-pcide-clear", None, Must, true,
        "MOV CR4 that clears PCIDE drops everything in all PCIDs, global translations too.",
        "SDM vol. 3, 4.10.4.1; AMD derived";
    /// MOV CR4 that changes PAE on Intel.
    CR4_PAE = "cr4-pae", INTEL, Must, true,
        "MOV CR4 that changes PAE drops all translations of the current PCID, its globals too.",
        "SDM vol. 3, 4.10.4.1";
    /// Globals of other PCIDs at a change of PAE on Intel.
    CR4_PAE_GLOBALS = "cr4-pae-other-globals", INTEL, Advised, true,
        "Whether a change of CR4.PAE drops global translations made under another PCID is \
         left open.",
        "SDM vol. 3, 4.10.4.1";
    /// MOV CR4 that sets SMEP on Intel.
    CR4_SMEP_SET = "cr4-smep-set", INTEL, Must, true,
        "MOV CR4 that sets SMEP drops all translations of the current PCID, its globals too.",
        "SDM vol. 3, 4.10.4.1";
    /// Globals of other PCIDs when SMEP is set on Intel.
    CR4_SMEP_GLOBALS = "cr4-smep-other-globals", INTEL, Advised, true,
        "Whether setting CR4.SMEP drops global translations made under another PCID is left open.",
        "SDM vol. 3, 4.10.4.1";
    /// MOV CR4 that changes PAE on AMD.
    CR4_PAE_AMD = "cr4-pae-amd", AMD, Must, true,
        "A change of CR4.PAE drops everything of the current ASID.", "APM vol. 2, 5.5.3";
    /// MOV CR4 that changes PSE on AMD.
    CR4_PSE = "cr4-pse", AMD, Must, true,
        "A change of CR4.PSE drops everything of the current ASID.", "APM vol. 2, 5.5.3";
    /// MOV CR4 that sets PKE on AMD.
    CR4_PKE_SET = "cr4-pke-set", AMD, Must, false,
        "Setting CR4.PKE drops everything of the current ASID.", "APM vol. 2, 5.5.3 (derived)";
    /// EFER bits under SVM.
    EFER_VMCB = "efer-vmcb", AMD, Advised, true,
        "A VMM that changes EFER.NXE or LME through the VMCB must flush the guest's ASID.",
        "APM vol. 2, 15.16";
    /// A task switch.
    TASK_SWITCH = "task-switch", None, Must, true,
        "A task switch that changes CR3 drops every non-global translation of PCID 0.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.1";
    /// A page fault.
    PAGE_FAULT = "page-fault", None, Must, true,
        "A page fault drops the page's translations under the current PCID and the path to it.",
        "SDM vol. 3, 4.10.4.1; APM vol. 2, 5.5.2";
    /// Globals of other PCIDs at a page fault.
    PAGE_FAULT_GLOBALS = "page-fault-other-globals", INTEL, Advised, true,
        "Whether a page fault drops a global translation made under another PCID is left open.",
        "SDM vol. 3, 4.10.4.1";
    /// RESET.
    RESET = "reset", None, Must, true,
        "RESET leaves no translation.", "SDM vol. 3, 9.1; APM vol. 2, 5.5.3";
    /// INIT on Intel.
    INIT_INTEL = "init", INTEL, Must, true,
        "INIT invalidates the TLBs (the text; Table 9-1 contradicts it, erratum AZ28 \
         bears it out).",
        "SDM vol. 3, 9.1";
    /// INIT on AMD.
    INIT_AMD = "init-amd", AMD, Advised, true,
        "INIT flushes the TLB by 5.5.3; Table 14-1 says that it leaves the TLB unchanged.",
        "APM vol. 2, 5.5.3 and Table 14-1";
    /// SMI on AMD.
    SMI = "smi", AMD, Must, true, "SMI entry drops everything of every ASID.", "APM vol. 2, 5.5.3";
    /// RSM on AMD.
    RSM = "rsm", AMD, Must, true, "RSM drops everything of every ASID.", "APM vol. 2, 5.5.3";
    /// An MTRR write on AMD.
    MTRR_AMD = "mtrr-amd", AMD, Must, true,
        "Writing an MTRR drops everything of every ASID.", "APM vol. 2, 5.5.3";
    /// An MTRR write on Intel.
    MTRR_INTEL = "mtrr", INTEL, Advised, true,
        "Software flushes the TLBs when it changes an MTRR: the memory type is cached.",
        "SDM vol. 3, 11.11.8";
    /// A PAT write.
    PAT = "pat", None, Advised, false,
        "Software flushes the TLBs when it changes IA32_PAT: the memory type is cached.",
        "SDM vol. 3, 11.12.4";
    /// Userspace rewrites registers.
    SREGS = "sregs", None, Advised, false,
        "Userspace that rewrites the registers of translation leaves none made under the old ones.",
        "derived: a hypervisor's duty";
    /// The guest asked the hypervisor for a remote flush.
    REMOTE_FLUSH = "remote-flush", None, Must, true,
        "A flush that one vCPU asks the hypervisor to do on another has happened before the other \
         uses a translation again.",
        "the paravirtual contract (steal time, Hyper-V TLFS); a hypervisor's promise to its guest";
    /// The host changes what backs guest memory.
    HOST_CHANGE = "host-change", None, Must, true,
        "No translation through an EPT, NPT or shadow entry may outlive the change of \
         what it maps.",
        "SDM vol. 3, 28.3.3.4; APM vol. 2, 15.25";
    /// A VPID or ASID gets a new owner.
    BIRTH = "tag-birth", None, Must, true,
        "A VPID or ASID that gets a new owner must hold no translation of the old one.",
        "SDM vol. 3, 28.3.3.3; APM vol. 2, 15.16";
    /// NOFLUSH return to a PCID that was not current since an all-PCID flush.
    NOFLUSH_RESIDENCE = "noflush-residence", None, Advised, true,
        "A PCID that was not current since everything was dropped can hold no translation \
         older than its return.",
        "SDM vol. 3, 4.10.4.1 (by deduction); KVM from 5.17 on uses the unsync root all the same";
    /// L1's VM entries and exits without a VPID for L2.
    VM_TRANSITION = "vm-transition", INTEL, Must, true,
        "A VM entry or exit with VPIDs disabled drops the linear and combined mappings of VPID 0.",
        "SDM vol. 3, 28.3.3.1";
    /// A VPID that L1 uses for the first time.
    VPID_NEW = "vpid-new", INTEL, Must, false,
        "A VPID that was never used before holds no translation.",
        "SDM vol. 3, 28.3.3.3 (derived)";
    /// INVVPID of L1.
    INVVPID = "invvpid", INTEL, Must, true,
        "INVVPID drops the linear and combined mappings of the VPID that it names, all or of one \
         address, or of all VPIDs but 0.",
        "SDM vol. 3, 28.3.3.1 and INVVPID";
    /// INVEPT of L1.
    INVEPT = "invept", INTEL, Must, true,
        "INVEPT drops the guest-physical and combined mappings of the EP4TA that it names, or of all.",
        "SDM vol. 3, 28.3.3.1 and INVEPT";
    /// TLB_CONTROL of L1.
    TLB_CONTROL = "tlb-control", AMD, Must, true,
        "A VMRUN with TLB_CONTROL 1, 3 or 7 drops every ASID, its own ASID, or what of it is \
         not global.",
        "APM vol. 2, 15.16";
    /// Software reuses a frame.
    RELEASE = "release", None, Must, true,
        "Software declared the frame reused: no translation to it may be left.",
        "SDM vol. 3, 4.10.4.4";
    /// A translation that no walk gives.
    IMPOSSIBLE = "impossible-translation", None, Must, true,
        "A translation must come from a walk of the guest's tables under the mode in force.",
        "SDM vol. 3, 4.10.2.2";
}

/// The rule of this name.
#[must_use]
pub fn rule(id: &str) -> Option<&'static Rule> {
    rules().find(|rule| rule.id == id)
}

/// Every rule.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    RULES.iter().chain(processor::PROCESSOR_RULES).copied()
}

const fn owe(rule: &'static Rule, scope: Scope) -> Option<Owed> {
    Some(Owed { rule, scope, strength: rule.strength })
}

/// What `op`, which found the registers `before` and left `after`, owes on a processor of this
/// vendor: up to two demands, the binding one first. Nothing is allocated.
pub fn required(
    vendor: Vendor,
    op: &ArchOp,
    before: &Regs,
    after: &Regs,
) -> impl Iterator<Item = Owed> + use<> {
    let amd = matches!(vendor, Vendor::Amd);
    let pcid = before.pcid();
    match *op {
        ArchOp::Cr0 { old, new } => [cr0(amd, old, new), None],
        ArchOp::Cr3 { old, new, noflush, task_switch } => {
            [cr3(before, old, new, noflush, task_switch), None]
        }
        ArchOp::Cr4 { old, new } => cr4(amd, pcid, old, new),
        ArchOp::Efer { old, new } => [efer(amd, old, new), None],
        ArchOp::Invlpg(gva) => {
            let path = amd && before.efer().contains(Efer::TCE);
            [owe(&INVLPG, Scope::Address { pcid, gva, path }), None]
        }
        ArchOp::Invpcid(op) => {
            let pcid = Pcid((op.pcid & 0xfff) as u16);
            let owed = match op.kind {
                InvpcidType::Addr => {
                    owe(&INVPCID_ADDR, Scope::AddressNonGlobal { pcid, gva: op.gva })
                }
                InvpcidType::Single => owe(&INVPCID_SINGLE, Scope::PcidNonGlobal(pcid)),
                InvpcidType::All => owe(&INVPCID_ALL, Scope::Everything),
                InvpcidType::AllNonglobal => owe(&INVPCID_ALL_NONGLOBAL, Scope::NonGlobal),
                InvpcidType::Reserved(_) => None,
            };
            [owed, None]
        }
        ArchOp::PageFault(gva) => {
            let must = owe(&PAGE_FAULT, Scope::Fault { pcid, gva });
            let others = Scope::AddressOtherGlobals { pcid, gva };
            [must, if amd { None } else { owe(&PAGE_FAULT_GLOBALS, others) }]
        }
        ArchOp::Init => [owe(if amd { &INIT_AMD } else { &INIT_INTEL }, Scope::Everything), None],
        ArchOp::Reset => [owe(&RESET, Scope::Everything), None],
        ArchOp::Smi if amd => [owe(&SMI, Scope::EveryAsid), None],
        ArchOp::Rsm if amd => [owe(&RSM, Scope::EveryAsid), None],
        ArchOp::Mtrr if amd => [owe(&MTRR_AMD, Scope::EveryAsid), None],
        ArchOp::Mtrr => [owe(&MTRR_INTEL, Scope::Everything), None],
        ArchOp::Pat => [owe(&PAT, Scope::Everything), None],
        ArchOp::Sregs if translation(before) != translation(after) => {
            [owe(&SREGS, Scope::Everything), None]
        }
        ArchOp::HostChange { gpa, size, .. } => {
            [owe(&HOST_CHANGE, Scope::Frames { gpa, size }), None]
        }
        ArchOp::RemoteFlush { page: None } => [owe(&REMOTE_FLUSH, Scope::Everything), None],
        ArchOp::RemoteFlush { page: Some(gva) } => {
            [owe(&REMOTE_FLUSH, Scope::Address { pcid, gva, path: true }), None]
        }
        ArchOp::Smi
        | ArchOp::Rsm
        | ArchOp::Pkru
        | ArchOp::Sregs
        // See `arch::nested`: these name tags and tables of their own.
        | ArchOp::Nested(_)
        | ArchOp::HostDead { .. }
        | ArchOp::Release { .. } => [None, None],
    }
    .into_iter()
    .flatten()
}

/// What an operation of a guest owes. `native`: its CPU carried it out. An MTRR write that a hypervisor
/// emulates touches no register of the processor, whose own wide flush is then the hypervisor's duty
/// at most: advised (facts C.4). SMI and RSM change the guest's paging: the hypervisor owes the flush.
pub fn of_guest(
    vendor: Vendor,
    op: &ArchOp,
    before: &Regs,
    after: &Regs,
    native: bool,
) -> impl Iterator<Item = Owed> + use<> {
    let emulated = !native && matches!(op, ArchOp::Mtrr);
    required(vendor, op, before, after).map(move |owed| match emulated {
        true => Owed { strength: Strength::Advised, ..owed },
        false => owed,
    })
}

/// The registers whose change by userspace makes old translations meaningless.
const fn translation(regs: &Regs) -> (u64, u64, u64, u64) {
    let cr0 = Cr0::PG.bits() | Cr0::WP.bits();
    let cr4 = Cr4::PAE.bits()
        | Cr4::PSE.bits()
        | Cr4::PGE.bits()
        | Cr4::PCIDE.bits()
        | Cr4::LA57.bits()
        | Cr4::SMEP.bits();
    let efer = Efer::LMA.bits() | Efer::NXE.bits();
    (regs.cr0 & cr0, regs.cr3, regs.cr4 & cr4, regs.efer & efer)
}

fn cr0(amd: bool, old: u64, new: u64) -> Option<Owed> {
    let changed = Cr0::from_bits_truncate(old ^ new);
    if changed.contains(Cr0::PG) {
        if Cr0::from_bits_truncate(old).contains(Cr0::PG) {
            return owe(&CR0_PG_CLEAR, Scope::Everything);
        }
        return if amd { owe(&CR0_PG_SET, Scope::Everything) } else { None };
    }
    let vmcb = Cr0::WP | Cr0::CD | Cr0::NW;
    if amd && changed.intersects(vmcb) { owe(&CR0_VMCB, Scope::Everything) } else { None }
}

fn cr3(before: &Regs, old: u64, new: u64, noflush: bool, task_switch: bool) -> Option<Owed> {
    if task_switch {
        let rule = owe(&TASK_SWITCH, Scope::PcidNonGlobal(Pcid(0)));
        return if old != new { rule } else { None };
    }
    if !before.cr4().contains(Cr4::PCIDE) {
        return owe(&CR3, Scope::PcidNonGlobal(Pcid(0)));
    }
    if noflush {
        return None;
    }
    owe(&CR3_PCID, Scope::PcidNonGlobal(Pcid((new & 0xfff) as u16)))
}

fn cr4(amd: bool, pcid: Pcid, old: u64, new: u64) -> [Option<Owed>; 2] {
    let changed = Cr4::from_bits_truncate(old ^ new);
    let set = Cr4::from_bits_truncate(!old & new);
    let cleared = Cr4::from_bits_truncate(old & !new);
    if changed.contains(Cr4::PGE) {
        return [owe(&CR4_PGE, Scope::Everything), None];
    }
    if cleared.contains(Cr4::PCIDE) {
        return [owe(&CR4_PCIDE_CLEAR, Scope::Everything), None];
    }
    if amd {
        let rule = if changed.contains(Cr4::PAE) {
            &CR4_PAE_AMD
        } else if changed.contains(Cr4::PSE) {
            &CR4_PSE
        } else if set.contains(Cr4::PKE) {
            &CR4_PKE_SET
        } else {
            return [None, None];
        };
        return [owe(rule, Scope::Everything), None];
    }
    let (rule, globals) = if changed.contains(Cr4::PAE) {
        (&CR4_PAE, &CR4_PAE_GLOBALS)
    } else if set.contains(Cr4::SMEP) {
        (&CR4_SMEP_SET, &CR4_SMEP_GLOBALS)
    } else {
        return [None, None];
    };
    [owe(rule, Scope::Pcid(pcid)), owe(globals, Scope::OtherGlobals(pcid))]
}

fn efer(amd: bool, old: u64, new: u64) -> Option<Owed> {
    let changed = Efer::from_bits_truncate(old ^ new);
    if amd && changed.intersects(Efer::NXE | Efer::LME) {
        owe(&EFER_VMCB, Scope::Everything)
    } else {
        None
    }
}
