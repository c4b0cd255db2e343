//! What L1's processor owes for the operations that name L2's tags and nested tables (facts on the
//! TLB, parts C.4 and D.2). Read by judges only, like [`super::required`].
//!
//! As L1 sees its processor: VPID 0 (or ASID 0) is L1 and every L2 without a VPID; linear and
//! combined mappings are tagged with the VPID, guest-physical ones with the EP4TA. On AMD the ASID
//! tags nested mappings too.

use tlbscope_trace::nested::NestedOp;
use tlbscope_trace::regs::Vendor;

use super::required::{
    INVEPT, INVVPID, Owed, Rule, Scope, Strength, TLB_CONTROL, VM_TRANSITION, VPID_NEW,
};

/// Whose copies an operation on L2 reaches, as L1's processor tags them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Linear and combined mappings of one VPID, or everything of one ASID.
    Tag(u16),
    /// The same, but only if L1 has not used it yet.
    NewTag(u16),
    /// Of every VPID but 0.
    Tags,
    /// Of every ASID, L1's own too.
    TagsAndL1,
    /// Guest-physical and combined mappings through the nested tables at this root.
    Tables(u64),
    /// Through any nested tables.
    AllTables,
}

const fn owe(whose: Whose, rule: &'static Rule, scope: Scope) -> Option<(Whose, Owed)> {
    Some((whose, Owed { rule, scope, strength: Strength::Must }))
}

/// What a nested operation owes.
#[must_use]
pub const fn required(vendor: Vendor, op: &NestedOp) -> Option<(Whose, Owed)> {
    let all = Scope::Everything;
    match (vendor, *op) {
        (Vendor::Amd, NestedOp::Enter { l2, tlb_control }) => match tlb_control {
            1 => owe(Whose::TagsAndL1, &TLB_CONTROL, all),
            3 => owe(Whose::Tag(l2.tag), &TLB_CONTROL, all),
            7 => owe(Whose::Tag(l2.tag), &TLB_CONTROL, Scope::NonGlobal),
            _ => None,
        },
        (Vendor::Intel, NestedOp::Enter { l2, .. } | NestedOp::Exit { l2 }) if l2.tag == 0 => {
            owe(Whose::Tag(0), &VM_TRANSITION, all)
        }
        (Vendor::Intel, NestedOp::Enter { l2, .. }) => owe(Whose::NewTag(l2.tag), &VPID_NEW, all),
        (Vendor::Intel, NestedOp::Invvpid { kind, vpid, gva }) => match kind {
            // Every PCID, globals too: the widest address scope there is.
            0 => owe(Whose::Tag(vpid), &INVVPID, Scope::EveryPcidAddress(gva)),
            1 => owe(Whose::Tag(vpid), &INVVPID, all),
            2 => owe(Whose::Tags, &INVVPID, all),
            3 => owe(Whose::Tag(vpid), &INVVPID, Scope::NonGlobal),
            _ => None,
        },
        (Vendor::Intel, NestedOp::Invept(Some(root))) => owe(Whose::Tables(root.0), &INVEPT, all),
        (Vendor::Intel, NestedOp::Invept(None)) => owe(Whose::AllTables, &INVEPT, all),
        _ => None,
    }
}
