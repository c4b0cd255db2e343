//! Errata of the processor: what an invalidation does instead of what the manual says. Named in
//! `machine.errata`; each is a known defect of a real part.

use tlbscope_trace::act::{GuestInv, Inv};
use tlbscope_trace::regs::{Cr4, Regs};

use crate::machine::config::Errata;

/// What the processor does for `inv`, executed with these registers; `None`: nothing.
pub(super) fn carried_out(errata: Errata, inv: Inv, regs: &Regs) -> Option<Inv> {
    let Inv::Guest(GuestInv::Address { pcid, gva }) = inv else { return Some(inv) };
    let cr4 = regs.cr4();
    if errata.contains(Errata::QUARK_PGE) && cr4.contains(Cr4::PGE) {
        return None;
    }
    if errata.contains(Errata::INVLPG_PCID_GLOBAL) && cr4.contains(Cr4::PCIDE) {
        return Some(Inv::Guest(GuestInv::AddressNonglobal { pcid, gva }));
    }
    Some(inv)
}

/// The flush that belongs to INIT itself, where the vCPU found these registers.
pub(super) fn of_init(errata: Errata, inv: Inv, before: &Regs) -> Inv {
    match inv {
        Inv::VpidSingle(vpid)
            if errata.contains(Errata::CORE2_AZ28)
                && before.paging()
                && before.cr4().contains(Cr4::PGE) =>
        {
            Inv::VpidNonglobal(vpid)
        }
        _ => inv,
    }
}
