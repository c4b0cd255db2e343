//! A logical processor's instructions, against the manuals as typed by hand: what faults, what does
//! nothing, and what the registers are after it (facts A.1, B.4, C.3, D.2).

use std::num::{NonZeroU16, NonZeroU32};

use tlbscope_sim::arch::fault::Limits;
use tlbscope_sim::arch::processor::{
    Broadcast, Instruction, Place, Processor, Refusal, Step, Stride,
};
use tlbscope_sim::arch::required::processor::{Tags, of_step};
use tlbscope_trace::addr::{Asid, Ep4ta, Gva, Vpid};
use tlbscope_trace::regs::{Regs, Vendor};

/// 64-bit code in the host: CR0 = PE, ET, WP, PG; CR4 = PAE; EFER = LME, LMA, NXE.
fn host(vendor: Vendor) -> Processor {
    let limits = Limits {
        maxphyaddr: 46,
        vendor,
        cr4_allowed: 0x0fff_ffff,
        efer_allowed: 0xd01,
        pg_clear_in_64_bit: false,
    };
    let regs = Regs { cr0: 0x8001_0011, cr3: 0x1000, cr4: 0x20, efer: 0xd00, ..Regs::default() };
    Processor {
        limits,
        regs,
        place: Place::Host,
        guest_vpid: NonZeroU16::MIN,
        guest_eptp: None,
        cpl: 0,
        compatibility: false,
        bad_pdptes: false,
        intercepted: false,
        flush_by_asid: true,
    }
}

/// The registers after what does not fault.
fn after(cpu: &Processor, instruction: Instruction) -> Regs {
    match cpu.execute(&instruction) {
        Ok(Step::Done(after)) => after.regs,
        other => panic!("{other:?}"),
    }
}

fn name(cpu: &Processor, instruction: Instruction) -> Option<String> {
    cpu.execute(&instruction).err().map(|refusal| refusal.name())
}

/// SDM vol. 3, 9.8.5: LMA = LME && PG.
#[test]
fn lma_follows_lme_and_paging() {
    let cpu = host(Vendor::Intel);
    assert_eq!(after(&cpu, Instruction::MovCr0(0x8001_0019)).efer, 0xd00);
    let compat = Processor { compatibility: true, ..cpu };
    assert_eq!(after(&compat, Instruction::MovCr0(0x1_0011)).efer, 0x900);
    let off = Processor { regs: Regs { cr0: 0x11, efer: 0, ..cpu.regs }, ..cpu };
    assert_eq!(after(&off, Instruction::WrmsrEfer(0x100)).efer, 0x100);
    assert_eq!(after(&off, Instruction::MovCr0(0x8000_0011)).efer, 0);
    let lme = Processor { regs: Regs { efer: 0x100, ..off.regs }, ..off };
    assert_eq!(after(&lme, Instruction::MovCr0(0x8000_0011)).efer, 0x500);
}

/// SDM vol. 3, 2.5: PG can be cleared from compatibility mode, not from 64-bit code.
#[test]
fn paging_ends_in_compatibility_mode_only() {
    let cpu = host(Vendor::Intel);
    let off = Instruction::MovCr0(0x1_0011);
    assert_eq!(name(&cpu, off), Some("#GP(0)".into()));
    assert_eq!(name(&Processor { compatibility: true, ..cpu }, off), None);
}

#[test]
fn each_vendor_has_its_own_instructions() {
    let (intel, amd) = (host(Vendor::Intel), host(Vendor::Amd));
    let undefined = Some("#UD".to_owned());
    let svm = [
        Instruction::Invlpga { gva: Gva(0x7000), asid: Asid(1) },
        Instruction::Tlbsync,
        Instruction::Vmrun { asid: 1, control: 0 },
        Instruction::SvmExit,
    ];
    for instruction in svm {
        assert_eq!(name(&intel, instruction), undefined, "{instruction:?}");
        assert_eq!(name(&amd, instruction), None, "{instruction:?}");
    }
    let vmx = [
        Instruction::Invvpid { kind: 1, descriptor: 1, gva: Gva(0) },
        Instruction::Invept { kind: 2, eptp: 0 },
        Instruction::VmEntry { vpid: None, cr3: None, cr4: None },
        Instruction::Vmxoff,
    ];
    for instruction in vmx {
        assert_eq!(name(&amd, instruction), undefined, "{instruction:?}");
        assert_eq!(name(&intel, instruction), None, "{instruction:?}");
    }
    assert_eq!((Stride::Small.bytes(), Stride::Large.bytes()), (0x1000, 0x20_0000));
    let told = Refusal::Undefined("an instruction of AMD").to_string();
    assert_eq!(told, "#UD: an instruction of AMD");
}

/// SDM vol. 2, INVLPG: nothing for an address that is not canonical, except outside 64-bit code.
#[test]
fn invlpg_of_no_address_does_nothing() {
    let cpu = host(Vendor::Intel);
    let wild = Instruction::Invlpg(Gva(1 << 63));
    assert_eq!(cpu.execute(&wild), Ok(Step::Nothing));
    assert_eq!(cpu.execute(&Instruction::Invlpg(Gva(0x7000))), Ok(Step::Done(cpu)));
    let compat = Processor { compatibility: true, ..cpu };
    assert_eq!(compat.execute(&wild), Ok(Step::Done(compat)));
}

/// SDM vol. 3, 25.1.1: faults come before VM exits, and the host exits to nobody.
#[test]
fn what_the_hypervisor_intercepts() {
    let vpid = NonZeroU16::new(5);
    let guest = Place::VmxGuest { vpid, eptp: Some(Ep4ta(0x3000)) };
    assert_eq!((guest.vpid(), guest.asid()), (Vpid(5), Asid(0)));
    let svm = Place::SvmGuest { asid: NonZeroU32::MIN };
    assert_eq!((svm.vpid(), svm.asid()), (Vpid(0), Asid(1)));
    assert!(guest.in_guest() && svm.in_guest() && !Place::Host.in_guest());
    let page = Instruction::Invlpg(Gva(0x7000));
    let host = Processor { intercepted: true, ..host(Vendor::Intel) };
    assert_eq!(host.execute(&page), Ok(Step::Done(host)));
    let inside = Processor { place: guest, ..host };
    assert_eq!(inside.execute(&page), Ok(Step::Exited));
    let user = Processor { cpl: 3, ..inside };
    assert_eq!(name(&user, page), Some("#GP(0)".into()));
    assert_eq!(user.execute(&Instruction::Wrpkru), Ok(Step::Exited));
    let free = Processor { intercepted: false, ..user };
    assert_eq!(free.execute(&Instruction::Wrpkru), Ok(Step::Done(free)));
}

/// SDM vol. 3, 26.2.1.1 and 26.3: an entry loads CR3 and CR4 from the guest-state area and the VPID from
/// its field, which may not be 0000H; an exit leaves the guest. VMFUNC 0 switches the EPTP in place.
#[test]
fn entries_and_exits() {
    let cpu = Processor { guest_eptp: Some(Ep4ta(0x3000)), ..host(Vendor::Intel) };
    let entry = |vpid, cr3, cr4| cpu.execute(&Instruction::VmEntry { vpid, cr3, cr4 });
    let Ok(Step::Done(inside)) = entry(Some(Some(Vpid(5))), Some(0x2000), Some(0xa0)) else {
        panic!("the entry is valid")
    };
    let eptp = Some(Ep4ta(0x3000));
    assert_eq!(inside.place, Place::VmxGuest { vpid: NonZeroU16::new(5), eptp });
    assert_eq!((inside.regs.cr3, inside.regs.cr4, inside.regs.efer), (0x2000, 0xa0, 0xd00));
    assert_eq!(Some(inside.guest_vpid), NonZeroU16::new(5));
    let Ok(Step::Done(again)) = entry(Some(None), None, None) else { panic!("valid too") };
    assert_eq!(again.place, Place::VmxGuest { vpid: Some(NonZeroU16::MIN), eptp });
    assert_eq!((again.regs.cr3, again.regs.cr4), (0x1000, 0x20));
    let Ok(Step::Done(without)) = entry(None, None, None) else { panic!("valid too") };
    assert_eq!(without.place, Place::VmxGuest { vpid: None, eptp });
    let zero = Instruction::VmEntry { vpid: Some(Some(Vpid(0))), cr3: None, cr4: None };
    assert_eq!(name(&cpu, zero), Some("VMfail(7)".into()));
    let Ok(Step::Done(out)) = inside.execute(&Instruction::VmExit { vpids: None }) else {
        panic!("an exit is always valid")
    };
    assert_eq!((out.place, out.regs.cr3), (Place::Host, 0x2000));
    let Ok(Step::Done(other)) = inside.execute(&Instruction::VmfuncEptp(0x4_001e)) else {
        panic!("the EPTP is valid")
    };
    let eptp = Some(Ep4ta(0x4_0000));
    assert_eq!(other.place, Place::VmxGuest { vpid: NonZeroU16::new(5), eptp });
    assert_eq!(other.guest_eptp, eptp);
}

/// SDM vol. 3, 4.4.1: Intel's PDPTE registers are loaded, and checked, by every MOV CR3 and by the listed
/// bits of CR0 and CR4; AMD reads them during the walk (facts A.3).
#[test]
fn bad_pdptes_fault_where_they_are_loaded() {
    let pae = |vendor| {
        let cpu = host(vendor);
        Processor { regs: Regs { efer: 0, ..cpu.regs }, bad_pdptes: true, ..cpu }
    };
    let gp = Some("#GP(0)".to_owned());
    let (intel, amd) = (pae(Vendor::Intel), pae(Vendor::Amd));
    for (instruction, loads) in [
        (Instruction::MovCr3(0x1000), true),
        (Instruction::MovCr4(0xa0), true),
        (Instruction::MovCr0(0xc001_0011), true),
        (Instruction::TaskSwitch(0x2000), true),
        (Instruction::MovCr0(0x8001_0019), false),
        (Instruction::TaskSwitch(0x1000), false),
    ] {
        assert_eq!(name(&intel, instruction), gp.clone().filter(|_| loads), "{instruction:?}");
        assert_eq!(name(&amd, instruction), None, "{instruction:?}");
        let good = Processor { bad_pdptes: false, ..intel };
        assert_eq!(name(&good, instruction), None, "{instruction:?}");
    }
    let long = Processor { bad_pdptes: true, ..host(Vendor::Intel) };
    assert_eq!(name(&long, Instruction::MovCr3(0x1000)), None);
}

/// APM vol. 3, INVLPGB (facts C.3): a guest's names its own ASID, whatever the operand says.
#[test]
fn a_guests_invlpgb_is_of_its_own_asid() {
    let named = Broadcast { asid: Some(Asid(7)), ..Broadcast::default() };
    let cpu = host(Vendor::Amd);
    assert_eq!(cpu.broadcast(named).asid, Some(Asid(7)));
    let guest = Processor { place: Place::SvmGuest { asid: NonZeroU32::MIN }, ..cpu };
    assert_eq!(guest.broadcast(named).asid, Some(Asid(1)));
    assert_eq!(guest.broadcast(Broadcast::default()).asid, Some(Asid(1)));
}

/// APM vol. 2, 5.5.3: A20M# drops everything of every ASID. Intel's list does not have it (facts B.1).
#[test]
fn a20m_is_amds() {
    let demands = |vendor| {
        let cpu = host(vendor);
        let step = cpu.execute(&Instruction::A20m).expect("nothing to refuse");
        of_step(&cpu, &Instruction::A20m, &step)
    };
    assert_eq!(demands(Vendor::Intel), []);
    let amd = demands(Vendor::Amd);
    assert_eq!(amd.len(), 1);
    assert_eq!((amd[0].rule.id, amd[0].tags), ("a20m", Tags::EveryAsid));
}

/// SDM vol. 3, table 9-1: CR0 = 60000010H after power-up, RESET and INIT, CR3, CR4 and EFER 0.
#[test]
fn init_and_reset() {
    let cpu = Processor { intercepted: true, ..host(Vendor::Intel) };
    let fresh = Regs { cr0: 0x6000_0010, ..Regs::default() };
    assert_eq!(after(&cpu, Instruction::Init), fresh);
    let place = Place::VmxGuest { vpid: None, eptp: None };
    // A guest's INIT exits if the hypervisor wants it to; RESET and the exit itself ask nobody.
    let inside = Processor { place, ..cpu };
    assert_eq!(inside.execute(&Instruction::Init), Ok(Step::Exited));
    let reset = Processor { regs: fresh, place: Place::Host, ..inside };
    assert_eq!(inside.execute(&Instruction::Reset), Ok(Step::Done(reset)));
    let out = Processor { place: Place::Host, ..inside };
    assert_eq!(inside.execute(&Instruction::VmExit { vpids: None }), Ok(Step::Done(out)));
}

/// SDM, INVVPID and INVEPT: VMfail 28 for an operand that is not valid. APM vol. 2, 15.16.1: a reserved
/// TLB_CONTROL ends the VMRUN.
#[test]
fn operands_that_are_not_valid() {
    let cpu = host(Vendor::Intel);
    let fails = |instruction| name(&cpu, instruction) == Some("VMfail(28)".to_owned());
    let invvpid =
        |kind, descriptor, gva| fails(Instruction::Invvpid { kind, descriptor, gva: Gva(gva) });
    assert!(invvpid(4, 1, 0) && invvpid(1, 0x1_0000, 0) && invvpid(0, 1, 1 << 63));
    assert!(invvpid(0, 0, 0) && invvpid(1, 0, 0) && invvpid(3, 0, 0));
    assert!(!invvpid(2, 0, 0) && !invvpid(1, 1, 1 << 63) && !invvpid(0, 0xffff, 0x7000));
    let invept = |kind, eptp| fails(Instruction::Invept { kind, eptp });
    assert!(invept(0, 0x301e) && invept(3, 0x301e));
    // Memory type 6, walk of 4 levels; type 1 is reserved, and so are 3 levels and bit 7.
    assert!(!invept(1, 0x301e) && invept(1, 0x3019) && invept(1, 0x3016) && invept(1, 0x309e));
    assert!(invept(1, 1 << 46 | 0x301e) && !invept(2, !0));
    let amd = host(Vendor::Amd);
    let old = Processor { flush_by_asid: false, ..amd };
    let vmrun = |cpu: &Processor, control| name(cpu, Instruction::Vmrun { asid: 1, control });
    for control in [0, 1, 3, 7] {
        assert_eq!(vmrun(&amd, control), None);
        assert_eq!(vmrun(&old, control).is_some(), control > 1);
    }
    assert_eq!(vmrun(&amd, 2), Some("VMEXIT_INVALID".into()));
    let zero = Instruction::Vmrun { asid: 0, control: 0 };
    assert_eq!(name(&amd, zero), Some("VMEXIT_INVALID".into()));
}
