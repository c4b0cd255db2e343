//! What L1's processor owes for L2's tags and tables, against the manuals' tables as typed by hand:
//! SDM vol. 3, 28.3.3.1 and the pages of INVVPID and INVEPT; APM vol. 2, 15.16.1.

use tlbscope_sim::arch::nested::{Whose, required};
use tlbscope_sim::arch::required::Scope;
use tlbscope_trace::addr::{Gpa, Gva};
use tlbscope_trace::nested::{L2, NestedOp, Tables};
use tlbscope_trace::regs::Vendor::{self, Amd, Intel};

fn owed(vendor: Vendor, op: NestedOp) -> Option<(Whose, &'static str, Scope)> {
    required(vendor, &op).map(|(whose, owed)| (whose, owed.rule.id, owed.scope))
}

const fn l2(tag: u16) -> L2 {
    L2 { tag, tables: Some(Tables::ept(0x3_001e)) }
}

const ALL: Scope = Scope::Everything;

#[test]
fn invvpid_names_a_vpid_an_address_or_all_but_zero() {
    let gva = Gva(0x7000);
    let of = |kind| owed(Intel, NestedOp::Invvpid { kind, vpid: 5, gva });
    assert_eq!(of(0), Some((Whose::Tag(5), "invvpid", Scope::EveryPcidAddress(gva))));
    assert_eq!(of(1), Some((Whose::Tag(5), "invvpid", ALL)));
    assert_eq!(of(2), Some((Whose::Tags, "invvpid", ALL)));
    assert_eq!(of(3), Some((Whose::Tag(5), "invvpid", Scope::NonGlobal)));
    assert_eq!(of(4), None, "VMfail");
    assert_eq!(owed(Amd, NestedOp::Invvpid { kind: 1, vpid: 5, gva }), None, "#UD");
}

#[test]
fn invept_names_an_ep4ta_or_all() {
    let one = NestedOp::Invept(Some(Gpa(0x3_0000)));
    assert_eq!(owed(Intel, one), Some((Whose::Tables(0x3_0000), "invept", ALL)));
    assert_eq!(owed(Intel, NestedOp::Invept(None)), Some((Whose::AllTables, "invept", ALL)));
    assert_eq!(owed(Amd, one), None, "#UD");
    assert_eq!(owed(Amd, NestedOp::Invept(None)), None, "#UD");
    assert_eq!(owed(Intel, NestedOp::Vmfunc(l2(5))), None, "VMFUNC invalidates nothing");
}

#[test]
fn a_transition_without_a_vpid_drops_vpid_zero() {
    let enter = |tag| NestedOp::Enter { l2: l2(tag), tlb_control: 0 };
    let zero = Some((Whose::Tag(0), "vm-transition", ALL));
    assert_eq!(owed(Intel, enter(0)), zero);
    assert_eq!(owed(Intel, NestedOp::Exit { l2: l2(0) }), zero);
    assert_eq!(owed(Intel, enter(5)), Some((Whose::NewTag(5), "vpid-new", ALL)));
    assert_eq!(owed(Intel, NestedOp::Exit { l2: l2(5) }), None);
    // VMRUN and #VMEXIT flush what TLB_CONTROL asks for, nothing by themselves.
    assert_eq!(owed(Amd, enter(0)), None);
    assert_eq!(owed(Amd, NestedOp::Exit { l2: l2(0) }), None);
}

#[test]
fn tlb_control_is_one_of_three() {
    let of = |control| owed(Amd, NestedOp::Enter { l2: l2(5), tlb_control: control });
    assert_eq!(of(1), Some((Whose::TagsAndL1, "tlb-control", ALL)));
    assert_eq!(of(3), Some((Whose::Tag(5), "tlb-control", ALL)));
    assert_eq!(of(7), Some((Whose::Tag(5), "tlb-control", Scope::NonGlobal)));
    for nothing in [0, 2, 4, 5, 6, 8] {
        assert_eq!(of(nothing), None, "{nothing}");
    }
    // The field is SVM's.
    let intel = owed(Intel, NestedOp::Enter { l2: l2(5), tlb_control: 1 });
    assert_eq!(intel, Some((Whose::NewTag(5), "vpid-new", ALL)));
}
