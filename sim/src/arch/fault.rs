//! Which register writes fault and leave everything as it was (facts B.4).

use tlbscope_trace::addr::Pcid;
use tlbscope_trace::op::{Invpcid, InvpcidType};
use tlbscope_trace::regs::{CR3_NOFLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer, Regs, Vendor};

use super::mode::Mode;

/// #GP(0), with its reason in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp(pub &'static str);

/// What the processor allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Physical-address width in bits.
    pub maxphyaddr: u32,
    /// The vendor.
    pub vendor: Vendor,
    /// CR4 bits that are not reserved.
    pub cr4_allowed: u64,
    /// EFER bits that are not reserved.
    pub efer_allowed: u64,
    /// A hypervisor that accepts CR0.PG 1->0 in 64-bit code (5.10, facts/kvm.md 15).
    pub pg_clear_in_64_bit: bool,
}

/// A CR3 value that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewCr3 {
    /// As stored.
    pub value: u64,
    /// Bit 63 of the operand with PCIDE = 1.
    pub noflush: bool,
}

fn guard(bad: bool, reason: &'static str) -> Result<(), Gp> {
    if bad { Err(Gp(reason)) } else { Ok(()) }
}

/// MOV CR0. Code is taken to be 64-bit whenever EFER.LMA = 1.
///
/// # Errors
/// The first condition of facts B.4 that holds.
pub fn cr0(regs: &Regs, new: u64, limits: &Limits) -> Result<(), Gp> {
    let has = |bit: Cr0| new & bit.bits() != 0;
    let long = regs.efer().contains(Efer::LMA);
    guard(new & !Cr0::all().bits() != 0, "reserved bits of CR0 are set")?;
    guard(has(Cr0::PG) && !has(Cr0::PE), "CR0.PG = 1 with PE = 0")?;
    guard(has(Cr0::NW) && !has(Cr0::CD), "CR0.NW = 1 with CD = 0")?;
    guard(regs.cr4().contains(Cr4::CET) && !has(Cr0::WP), "CR0.WP = 0 with CR4.CET = 1")?;
    if regs.paging() && !has(Cr0::PG) {
        guard(regs.cr4().contains(Cr4::PCIDE), "CR0.PG 1->0 with CR4.PCIDE = 1")?;
        guard(long && !limits.pg_clear_in_64_bit, "CR0.PG 1->0 in 64-bit mode")?;
    }
    let turns_on = !regs.paging() && has(Cr0::PG);
    let no_pae = !regs.cr4().contains(Cr4::PAE);
    guard(
        turns_on && regs.efer().contains(Efer::LME) && no_pae,
        "CR0.PG 0->1 with EFER.LME = 1 and CR4.PAE = 0",
    )
}

/// MOV CR3. PDPTEs are not read here.
///
/// # Errors
/// Reserved bits.
pub fn cr3(regs: &Regs, operand: u64, limits: &Limits) -> Result<NewCr3, Gp> {
    let pcide = regs.cr4().contains(Cr4::PCIDE);
    let noflush = pcide && operand & CR3_NOFLUSH != 0;
    let value = if pcide { operand & !CR3_NOFLUSH } else { operand };
    let long = regs.efer().contains(Efer::LMA);
    let reserved = if long { !0 << limits.maxphyaddr } else { 0 };
    guard(value & CR3_NOFLUSH != 0, "CR3 bit 63 with CR4.PCIDE = 0")?;
    guard(value & reserved != 0, "CR3 points above the physical-address width")?;
    Ok(NewCr3 { value: if long { value } else { value & 0xffff_ffff }, noflush })
}

/// MOV CR4. PDPTEs are not read here.
///
/// # Errors
/// The first condition of facts B.4 that holds.
pub fn cr4(regs: &Regs, new: u64, limits: &Limits) -> Result<(), Gp> {
    let has = |bit: Cr4| new & bit.bits() != 0;
    let long = regs.efer().contains(Efer::LMA);
    guard(new & !limits.cr4_allowed != 0, "reserved bits of CR4 are set")?;
    guard(long && !has(Cr4::PAE), "CR4.PAE 1->0 in long mode")?;
    let la57 = (new ^ regs.cr4) & Cr4::LA57.bits() != 0;
    guard(long && la57, "CR4.LA57 changes in long mode")?;
    if has(Cr4::PCIDE) && !regs.cr4().contains(Cr4::PCIDE) {
        guard(!long, "CR4.PCIDE 0->1 outside long mode")?;
        guard(regs.cr3 & CR3_PCID_MASK != 0, "CR4.PCIDE 0->1 with CR3[11:0] not 0")?;
    }
    let no_wp = !regs.cr0().contains(Cr0::WP);
    guard(has(Cr4::CET) && no_wp, "CR4.CET = 1 with CR0.WP = 0")
}

/// WRMSR EFER; LMA is ignored.
///
/// # Errors
/// Reserved bits, or LME changing while paging is on.
pub fn efer(regs: &Regs, new: u64, limits: &Limits) -> Result<(), Gp> {
    guard(new & !limits.efer_allowed != 0, "reserved bits of EFER are set")?;
    let lme = (new ^ regs.efer) & Efer::LME.bits() != 0;
    guard(regs.paging() && lme, "EFER.LME changes while CR0.PG = 1")
}

/// INVPCID.
///
/// # Errors
/// The conditions of facts B.4.
pub fn invpcid(regs: &Regs, operands: &Invpcid) -> Result<(), Gp> {
    let pcide = regs.cr4().contains(Cr4::PCIDE);
    let of_pcid = matches!(operands.kind, InvpcidType::Addr | InvpcidType::Single);
    let address = matches!(operands.kind, InvpcidType::Addr);
    guard(matches!(operands.kind, InvpcidType::Reserved(_)), "INVPCID type above 3")?;
    guard(operands.pcid > 0xfff, "INVPCID descriptor has bits above 11 of the PCID set")?;
    guard(of_pcid && !pcide && operands.pcid != 0, "INVPCID of a PCID with CR4.PCIDE = 0")?;
    guard(address && !Mode::of(regs).canonical(operands.gva), "INVPCID of a non-canonical address")
}

/// Whether a PDPTE is present with reserved bits set (facts A.2).
#[must_use]
pub fn pdpte_reserved(value: u64, limits: &Limits) -> bool {
    value & 1 != 0 && value & (0b110 | 0x1e0 | !0 << limits.maxphyaddr) != 0
}

/// The PCID that an operand names.
#[must_use]
pub const fn operand_pcid(operand: u64) -> Pcid {
    Pcid((operand & CR3_PCID_MASK) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            maxphyaddr: 46,
            vendor: Vendor::Intel,
            cr4_allowed: Cr4::all().bits(),
            efer_allowed: Efer::all().bits(),
            pg_clear_in_64_bit: false,
        }
    }

    fn long(cr3: u64, cr4: Cr4) -> Regs {
        let cr0 = (Cr0::PG | Cr0::PE | Cr0::WP | Cr0::ET).bits();
        let efer = (Efer::LME | Efer::LMA).bits();
        Regs { cr0, cr3, cr4: (cr4 | Cr4::PAE).bits(), efer, ..Regs::default() }
    }

    #[test]
    fn cr0_rules() {
        let regs = long(0, Cr4::empty());
        let l = limits();
        let without = |bit: Cr0| regs.cr0 & !bit.bits();
        assert_eq!(cr0(&regs, without(Cr0::PG), &l), Err(Gp("CR0.PG 1->0 in 64-bit mode")));
        let old_kvm = Limits { pg_clear_in_64_bit: true, ..l };
        assert_eq!(cr0(&regs, without(Cr0::PG), &old_kvm), Ok(()));
        assert_eq!(cr0(&regs, without(Cr0::PE), &l), Err(Gp("CR0.PG = 1 with PE = 0")));
        assert!(cr0(&regs, regs.cr0 | Cr0::NW.bits(), &l).is_err());
        assert_eq!(cr0(&regs, regs.cr0 | (Cr0::NW | Cr0::CD).bits(), &l), Ok(()));
        let pcide = long(0, Cr4::PCIDE);
        assert_eq!(cr0(&pcide, without(Cr0::PG), &l), Err(Gp("CR0.PG 1->0 with CR4.PCIDE = 1")));
        let off = Regs { cr0: Cr0::PE.bits(), cr4: 0, efer: Efer::LME.bits(), ..regs };
        assert!(cr0(&off, off.cr0 | Cr0::PG.bits(), &l).is_err());
        assert!(cr0(&regs, regs.cr0 | 1 << 7, &l).is_err());
    }

    #[test]
    fn cr3_rules() {
        let l = limits();
        let plain = long(0, Cr4::empty());
        let pcide = long(0, Cr4::PCIDE);
        assert!(cr3(&plain, 0x1000 | 1 << 63, &l).is_err());
        let new = NewCr3 { value: 0x1005, noflush: true };
        assert_eq!(cr3(&pcide, 0x1005 | 1 << 63, &l), Ok(new));
        assert!(cr3(&plain, 1 << 46, &l).is_err());
        assert!(cr3(&plain, 1 << 45, &l).is_ok());
    }

    #[test]
    fn cr4_rules() {
        let l = limits();
        let regs = long(0x1000, Cr4::empty());
        assert_eq!(cr4(&regs, 0, &l), Err(Gp("CR4.PAE 1->0 in long mode")));
        assert!(cr4(&regs, regs.cr4 | Cr4::LA57.bits(), &l).is_err());
        assert_eq!(cr4(&regs, regs.cr4 | Cr4::PCIDE.bits(), &l), Ok(()));
        let tagged = long(0x1003, Cr4::empty());
        let reason = Gp("CR4.PCIDE 0->1 with CR3[11:0] not 0");
        assert_eq!(cr4(&tagged, tagged.cr4 | Cr4::PCIDE.bits(), &l), Err(reason));
        let off = Regs { efer: 0, ..regs };
        assert!(cr4(&off, off.cr4 | Cr4::PCIDE.bits(), &l).is_err());
        let no_smep = Limits { cr4_allowed: !Cr4::SMEP.bits(), ..l };
        assert!(cr4(&regs, regs.cr4 | Cr4::SMEP.bits(), &no_smep).is_err());
    }

    #[test]
    fn efer_and_invpcid_rules() {
        let l = limits();
        let regs = long(0, Cr4::empty());
        assert!(efer(&regs, 0, &l).is_err());
        assert_eq!(efer(&regs, (Efer::LME | Efer::NXE).bits(), &l), Ok(()));
        let op = |kind, pcid| Invpcid { kind, pcid, gva: tlbscope_trace::addr::Gva(0) };
        assert!(invpcid(&regs, &op(InvpcidType::Single, 1)).is_err());
        assert_eq!(invpcid(&regs, &op(InvpcidType::All, 1)), Ok(()));
        assert!(invpcid(&regs, &op(InvpcidType::All, 0x1000)).is_err());
        assert!(invpcid(&regs, &op(InvpcidType::Reserved(4), 0)).is_err());
        assert_eq!(invpcid(&long(0, Cr4::PCIDE), &op(InvpcidType::Single, 1)), Ok(()));
    }

    #[test]
    fn reserved_bits_of_a_pdpte() {
        let l = limits();
        for (value, bad) in
            [(0x1001, false), (0x1003, true), (0x1021, true), (1 << 46 | 1, true), (2, false)]
        {
            assert_eq!(pdpte_reserved(value, &l), bad, "{value:#x}");
        }
    }
}
