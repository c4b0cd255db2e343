//! Every row of the table of requirements, against the manuals' tables as typed by hand.

use tlbscope_sim::arch::required::{RULES, Scope, Strength, of_guest, required, rule};
use tlbscope_trace::act::ArchOp;
use tlbscope_trace::addr::{Gpa, Gva, Pcid};
use tlbscope_trace::op::{Invpcid, InvpcidType};
use tlbscope_trace::regs::Vendor::{Amd, Intel};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs, Vendor};

use Strength::{Advised, Must};

/// 4-level paging in PCID 5.
fn regs() -> Regs {
    Regs {
        cr0: (Cr0::PE | Cr0::PG | Cr0::WP).bits(),
        cr3: 0x1005,
        cr4: (Cr4::PAE | Cr4::PGE | Cr4::PCIDE).bits(),
        efer: (Efer::LME | Efer::LMA | Efer::NXE).bits(),
        ..Regs::default()
    }
}

/// (rule, scope, strength) of all that `op` owes.
fn owed(vendor: Vendor, op: ArchOp, before: &Regs) -> Vec<(&'static str, Scope, Strength)> {
    let after = Regs { cr3: before.cr3 ^ 0x2000, ..*before };
    let after = if op == ArchOp::Sregs { after } else { *before };
    required(vendor, &op, before, &after).map(|o| (o.rule.id, o.scope, o.strength)).collect()
}

fn cr4(vendor: Vendor, old: Cr4, change: Cr4) -> Vec<(&'static str, Scope, Strength)> {
    let before = Regs { cr4: old.bits(), ..regs() };
    owed(vendor, ArchOp::Cr4 { old: old.bits(), new: (old ^ change).bits() }, &before)
}

#[test]
fn cr4_changes() {
    let on = Cr4::PAE | Cr4::PCIDE;
    let all = |id| vec![(id, Scope::Everything, Must)];
    for vendor in [Intel, Amd] {
        assert_eq!(cr4(vendor, on, Cr4::PGE), all("cr4-pge"));
        assert_eq!(cr4(vendor, on | Cr4::PGE, Cr4::PGE), all("cr4-pge"));
        assert_eq!(cr4(vendor, on | Cr4::PGE, Cr4::PCIDE), all("cr4-pcide-clear"));
        assert_eq!(cr4(vendor, Cr4::PAE, Cr4::PCIDE), []);
        assert_eq!(cr4(vendor, on, Cr4::SMAP), []);
        assert_eq!(cr4(vendor, on | Cr4::SMEP, Cr4::SMEP), []);
        assert_eq!(cr4(vendor, on | Cr4::PKE, Cr4::PKE), []);
        assert_eq!(cr4(vendor, on, Cr4::PGE | Cr4::SMEP), all("cr4-pge"));
    }
    let five = Pcid(5);
    let current = |id, globals| {
        vec![(id, Scope::Pcid(five), Must), (globals, Scope::OtherGlobals(five), Advised)]
    };
    assert_eq!(cr4(Intel, on, Cr4::SMEP), current("cr4-smep-set", "cr4-smep-other-globals"));
    assert_eq!(cr4(Intel, on, Cr4::PAE), current("cr4-pae", "cr4-pae-other-globals"));
    assert_eq!(cr4(Intel, on, Cr4::PSE), []);
    assert_eq!(cr4(Intel, on, Cr4::PKE), []);
    assert_eq!(cr4(Amd, on, Cr4::SMEP), []);
    assert_eq!(cr4(Amd, on, Cr4::PAE), all("cr4-pae-amd"));
    assert_eq!(cr4(Amd, on, Cr4::PSE), all("cr4-pse"));
    assert_eq!(cr4(Amd, on, Cr4::PKE), all("cr4-pke-set"));
}

#[test]
fn cr0_and_efer_changes() {
    let cr0 = |vendor, old: Cr0, new: Cr0| {
        owed(vendor, ArchOp::Cr0 { old: old.bits(), new: new.bits() }, &regs())
    };
    let (off, on) = (Cr0::PE, Cr0::PE | Cr0::PG);
    for vendor in [Intel, Amd] {
        assert_eq!(cr0(vendor, on, off), [("cr0-pg-clear", Scope::Everything, Must)]);
        assert_eq!(cr0(vendor, on, on | Cr0::TS), []);
    }
    assert_eq!(cr0(Intel, off, on), []);
    assert_eq!(cr0(Amd, off, on), [("cr0-pg-set", Scope::Everything, Must)]);
    for bit in [Cr0::WP, Cr0::CD, Cr0::NW] {
        assert_eq!(cr0(Intel, on, on | bit), []);
        let vmcb = [("cr0-wp-cd-nw-vmcb", Scope::Everything, Advised)];
        assert_eq!(cr0(Amd, on | bit, on), vmcb);
    }
    let nxe = ArchOp::Efer { old: Efer::NXE.bits(), new: 0 };
    assert_eq!(owed(Intel, nxe, &regs()), []);
    assert_eq!(owed(Amd, nxe, &regs()), [("efer-vmcb", Scope::Everything, Advised)]);
    let lme = ArchOp::Efer { old: 0, new: Efer::LME.bits() };
    assert_eq!(owed(Amd, lme, &regs()), [("efer-vmcb", Scope::Everything, Advised)]);
    let sce = ArchOp::Efer { old: 0, new: Efer::SCE.bits() };
    assert_eq!(owed(Amd, sce, &regs()), []);
}

#[test]
fn cr3_writes_and_task_switches() {
    let cr3 = |old, new, noflush, task_switch| ArchOp::Cr3 { old, new, noflush, task_switch };
    let plain = Regs { cr4: Cr4::PAE.bits(), ..regs() };
    for vendor in [Intel, Amd] {
        let zero = Scope::PcidNonGlobal(Pcid(0));
        let seven = Scope::PcidNonGlobal(Pcid(7));
        assert_eq!(owed(vendor, cr3(0x1000, 0x1007, false, false), &plain), [("cr3", zero, Must)]);
        let with = owed(vendor, cr3(0x1005, 0x2007, false, false), &regs());
        assert_eq!(with, [("cr3-pcid", seven, Must)]);
        assert_eq!(owed(vendor, cr3(0x1005, 0x2007, true, false), &regs()), []);
        let switch = owed(vendor, cr3(0x1000, 0x2000, false, true), &plain);
        assert_eq!(switch, [("task-switch", zero, Must)]);
        assert_eq!(owed(vendor, cr3(0x1000, 0x1000, false, true), &plain), []);
    }
}

#[test]
fn invalidation_instructions_and_faults() {
    let (pcid, gva) = (Pcid(5), Gva(0x7000));
    let invpcid = |kind| ArchOp::Invpcid(Invpcid { kind, pcid: 9, gva });
    for vendor in [Intel, Amd] {
        let address = Scope::Address { pcid, gva, path: false };
        assert_eq!(owed(vendor, ArchOp::Invlpg(gva), &regs()), [("invlpg", address, Must)]);
        let nine = Scope::AddressNonGlobal { pcid: Pcid(9), gva };
        for (kind, id, scope) in [
            (InvpcidType::Addr, "invpcid-addr", nine),
            (InvpcidType::Single, "invpcid-single", Scope::PcidNonGlobal(Pcid(9))),
            (InvpcidType::All, "invpcid-all", Scope::Everything),
            (InvpcidType::AllNonglobal, "invpcid-all-nonglobal", Scope::NonGlobal),
        ] {
            assert_eq!(owed(vendor, invpcid(kind), &regs()), [(id, scope, Must)]);
        }
        assert_eq!(owed(vendor, invpcid(InvpcidType::Reserved(4)), &regs()), []);
        let fault = owed(vendor, ArchOp::PageFault(gva), &regs());
        assert_eq!(fault[0], ("page-fault", Scope::Fault { pcid, gva }, Must));
        assert_eq!(fault.len(), if vendor == Intel { 2 } else { 1 });
    }
    let tce = Regs { efer: regs().efer | Efer::TCE.bits(), ..regs() };
    let path = Scope::Address { pcid, gva, path: true };
    assert_eq!(owed(Amd, ArchOp::Invlpg(gva), &tce), [("invlpg", path, Must)]);
    // Intel has no EFER.TCE (facts C.1).
    let all = Scope::Address { pcid, gva, path: false };
    assert_eq!(owed(Intel, ArchOp::Invlpg(gva), &tce), [("invlpg", all, Must)]);
    // A descriptor's PCID has 12 bits.
    let wide = ArchOp::Invpcid(Invpcid { kind: InvpcidType::Single, pcid: 0x7fff, gva });
    let single = ("invpcid-single", Scope::PcidNonGlobal(Pcid(0xfff)), Must);
    assert_eq!(owed(Intel, wide, &regs()), [single]);
}

/// Userspace that rewrites a register of translation, bit by bit; the others owe nothing.
#[test]
fn rewritten_registers() {
    let sregs = |after: Regs| {
        let owed: Vec<_> = required(Intel, &ArchOp::Sregs, &regs(), &after).collect();
        owed.iter().map(|o| (o.rule.id, o.scope)).collect::<Vec<_>>()
    };
    let all = [("sregs", Scope::Everything)];
    assert_eq!(sregs(regs()), []);
    for bit in [Cr0::PG, Cr0::WP] {
        assert_eq!(sregs(Regs { cr0: regs().cr0 ^ bit.bits(), ..regs() }), all, "{bit:?}");
    }
    for bit in [Cr4::PAE, Cr4::PSE, Cr4::PGE, Cr4::PCIDE, Cr4::LA57, Cr4::SMEP] {
        assert_eq!(sregs(Regs { cr4: regs().cr4 ^ bit.bits(), ..regs() }), all, "{bit:?}");
    }
    for bit in [Efer::LMA, Efer::NXE] {
        assert_eq!(sregs(Regs { efer: regs().efer ^ bit.bits(), ..regs() }), all, "{bit:?}");
    }
    assert_eq!(sregs(Regs { cr0: regs().cr0 ^ Cr0::TS.bits(), ..regs() }), []);
    assert_eq!(sregs(Regs { cr4: regs().cr4 ^ Cr4::SMAP.bits(), ..regs() }), []);
    assert_eq!(sregs(Regs { efer: regs().efer ^ Efer::SCE.bits(), ..regs() }), []);
}

#[test]
fn what_another_asked_for_is_owed_here() {
    let whole = owed(Amd, ArchOp::RemoteFlush { page: None }, &regs());
    assert_eq!(whole, [("remote-flush", Scope::Everything, Must)]);
    let gva = Gva(0x7000);
    let page = owed(Intel, ArchOp::RemoteFlush { page: Some(gva) }, &regs());
    let scope = Scope::Address { pcid: Pcid(5), gva, path: true };
    assert_eq!(page, [("remote-flush", scope, Must)]);
}

/// An MTRR write that a hypervisor emulates touches no register of the processor (facts C.4); SMI and
/// RSM change the guest's paging all the same.
#[test]
fn what_a_hypervisor_emulates() {
    let strength = |op, native| {
        let owed = of_guest(Amd, &op, &regs(), &regs(), native);
        owed.map(|o| o.strength).collect::<Vec<_>>()
    };
    assert_eq!(strength(ArchOp::Mtrr, true), [Must]);
    assert_eq!(strength(ArchOp::Mtrr, false), [Advised]);
    assert_eq!(strength(ArchOp::Smi, false), [Must]);
    assert_eq!(strength(ArchOp::Rsm, false), [Must]);
}

#[test]
fn resets_interrupts_msrs_and_the_host() {
    for (op, intel, amd) in [
        (ArchOp::Reset, Some(("reset", Must)), Some(("reset", Must))),
        (ArchOp::Init, Some(("init", Must)), Some(("init-amd", Advised))),
        (ArchOp::Smi, None, Some(("smi", Must))),
        (ArchOp::Rsm, None, Some(("rsm", Must))),
        (ArchOp::Mtrr, Some(("mtrr", Advised)), Some(("mtrr-amd", Must))),
        (ArchOp::Pat, Some(("pat", Advised)), Some(("pat", Advised))),
        (ArchOp::Pkru, None, None),
        (ArchOp::Sregs, Some(("sregs", Advised)), Some(("sregs", Advised))),
    ] {
        for (vendor, expected) in [(Intel, intel), (Amd, amd)] {
            let got: Vec<_> = owed(vendor, op, &regs()).iter().map(|o| (o.0, o.2)).collect();
            assert_eq!(got, Vec::from_iter(expected), "{op:?} on {vendor:?}");
        }
    }
    assert_eq!(owed(Amd, ArchOp::Smi, &regs())[0].1, Scope::EveryAsid);
    let (gpa, size) = (Gpa(0x5000), 0x1000);
    let change = ArchOp::HostChange { gpa, size, rights: false };
    let frames = Scope::Frames { gpa, size };
    assert_eq!(owed(Intel, change, &regs()), [("host-change", frames, Must)]);
    assert_eq!(owed(Intel, ArchOp::HostDead { gpa, size }, &regs()), []);
}

#[test]
fn every_rule_has_a_name_of_its_own_and_belongs_to_its_vendor() {
    for (n, a) in RULES.iter().enumerate() {
        assert_eq!(rule(a.id), Some(*a));
        assert!(RULES[n + 1..].iter().all(|b| b.id != a.id), "{}", a.id);
        assert!(!a.sentence.is_empty() && !a.citation.is_empty());
    }
    let all = Cr4::from_bits_retain(!0);
    for vendor in [Intel, Amd] {
        for bit in all.iter() {
            for owed in required(vendor, &ArchOp::Cr4 { old: 0, new: bit.bits() }, &regs(), &regs())
            {
                assert!(owed.rule.vendor.is_none_or(|of| of == vendor));
                assert_eq!(owed.strength, owed.rule.strength);
            }
        }
    }
}
