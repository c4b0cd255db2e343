//! Register writes and invalidation instructions that fault instead of taking effect (facts B.4,
//! A.3). In long mode code is taken to be 64-bit code: CS.L = 1 whenever EFER.LMA = 1. CPL is
//! taken to be 0.

use tlbscope_trace::op::{Invpcid, InvpcidType};
use tlbscope_trace::regs::{CR3_NOFLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer, Regs, Vendor};

use super::mode::Mode;

/// What the processor knows: CPUID as a set of allowed bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Physical-address width in bits.
    pub maxphyaddr: u8,
    /// Whose manual rules.
    pub vendor: Vendor,
    /// CR4 bits that are not reserved.
    pub cr4_allowed: u64,
    /// EFER bits that are not reserved; LMA is never written, whatever is said here.
    pub efer_allowed: u64,
    /// Whether CR0.PG 1->0 in 64-bit mode is accepted (older hypervisors do); the manual faults.
    pub pg_clear_in_64_bit: bool,
}

impl Limits {
    /// Bits 63:MAXPHYADDR.
    #[must_use]
    pub const fn above_physical(&self) -> u64 {
        if self.maxphyaddr >= 64 { 0 } else { !0 << self.maxphyaddr }
    }
}

/// #GP(0), with its reason in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("#GP(0): {0}")]
pub struct Gp(pub &'static str);

/// What a MOV CR3 that does not fault stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NewCr3 {
    /// The value stored: never bit 63.
    pub value: u64,
    /// Bit 63 of the operand with CR4.PCIDE = 1: nothing need be invalidated.
    pub noflush: bool,
}

/// The first rule that is broken, in the order listed.
fn first_broken(rules: &[(bool, &'static str)]) -> Result<(), Gp> {
    match rules.iter().find(|(broken, _)| *broken) {
        Some(&(_, why)) => Err(Gp(why)),
        None => Ok(()),
    }
}

/// A write of CR0. Bad PDPTEs are judged by [`pdpte_reserved`].
///
/// # Errors
///
/// [`Gp`] if the write faults; nothing changes then.
pub fn cr0(regs: &Regs, new: u64, limits: &Limits) -> Result<(), Gp> {
    let (was, now) = (regs.cr0(), Cr0::from_bits_truncate(new));
    let cleared = was.contains(Cr0::PG) && !now.contains(Cr0::PG);
    let set = !was.contains(Cr0::PG) && now.contains(Cr0::PG);
    let (cr4, efer) = (regs.cr4(), regs.efer());
    first_broken(&[
        (new >> 32 != 0, "CR0 bits 63:32 are reserved"),
        (now.contains(Cr0::PG) && !now.contains(Cr0::PE), "CR0.PG = 1 with CR0.PE = 0"),
        (now.contains(Cr0::NW) && !now.contains(Cr0::CD), "CR0.NW = 1 with CR0.CD = 0"),
        (cleared && cr4.contains(Cr4::PCIDE), "CR0.PG cleared with CR4.PCIDE = 1"),
        (
            cleared && efer.contains(Efer::LMA) && !regs.code32 && !limits.pg_clear_in_64_bit,
            "CR0.PG cleared in 64-bit mode",
        ),
        (
            set && efer.contains(Efer::LME) && !cr4.contains(Cr4::PAE),
            "CR0.PG set with EFER.LME = 1 and CR4.PAE = 0",
        ),
        (!now.contains(Cr0::WP) && cr4.contains(Cr4::CET), "CR0.WP = 0 with CR4.CET = 1"),
    ])
}

/// A MOV CR3 of this raw operand. Bad PDPTEs are judged by [`pdpte_reserved`].
///
/// # Errors
///
/// [`Gp`] if the write faults; nothing changes then.
pub fn cr3(regs: &Regs, raw_operand: u64, limits: &Limits) -> Result<NewCr3, Gp> {
    let pcide = regs.cr4().contains(Cr4::PCIDE);
    let noflush = pcide && raw_operand & CR3_NOFLUSH != 0;
    let value = if pcide { raw_operand & !CR3_NOFLUSH } else { raw_operand };
    first_broken(&[
        (value & CR3_NOFLUSH != 0, "CR3 bit 63 with CR4.PCIDE = 0"),
        (value & limits.above_physical() != 0, "CR3 bits from MAXPHYADDR upward are reserved"),
    ])?;
    Ok(NewCr3 { value, noflush })
}

/// A MOV CR4. Bad PDPTEs are judged by [`pdpte_reserved`].
///
/// # Errors
///
/// [`Gp`] if the write faults; nothing changes then.
pub fn cr4(regs: &Regs, new: u64, limits: &Limits) -> Result<(), Gp> {
    let long = regs.efer().contains(Efer::LMA);
    let changed = Cr4::from_bits_truncate(regs.cr4 ^ new);
    let set = Cr4::from_bits_truncate(new & !regs.cr4);
    let now = Cr4::from_bits_truncate(new);
    let pcide_set = set.contains(Cr4::PCIDE);
    first_broken(&[
        (new & !limits.cr4_allowed != 0, "a reserved bit of CR4"),
        (long && !now.contains(Cr4::PAE), "CR4.PAE cleared in long mode"),
        (long && changed.contains(Cr4::LA57), "CR4.LA57 changed in long mode"),
        (pcide_set && !long, "CR4.PCIDE set outside long mode"),
        (pcide_set && regs.cr3 & CR3_PCID_MASK != 0, "CR4.PCIDE set with CR3[11:0] not 0"),
        (now.contains(Cr4::CET) && !regs.cr0().contains(Cr0::WP), "CR4.CET = 1 with CR0.WP = 0"),
    ])
}

/// A WRMSR of EFER. LMA in the operand is ignored.
///
/// # Errors
///
/// [`Gp`] if the write faults; nothing changes then.
pub fn efer(regs: &Regs, new: u64, limits: &Limits) -> Result<(), Gp> {
    let allowed = limits.efer_allowed | Efer::LMA.bits();
    first_broken(&[
        (new & !allowed != 0, "a reserved bit of EFER"),
        (
            regs.paging() && (regs.efer ^ new) & Efer::LME.bits() != 0,
            "EFER.LME changed with CR0.PG = 1",
        ),
    ])
}

/// An INVPCID.
///
/// # Errors
///
/// [`Gp`] if it faults; nothing is invalidated then.
pub fn invpcid(regs: &Regs, op: &Invpcid, _limits: &Limits) -> Result<(), Gp> {
    let named = matches!(op.kind, InvpcidType::Addr | InvpcidType::Single);
    let long = regs.efer().contains(Efer::LMA);
    first_broken(&[
        (matches!(op.kind, InvpcidType::Reserved(_)), "INVPCID of a type above 3"),
        (op.pcid & !CR3_PCID_MASK != 0, "bits 63:12 of the INVPCID descriptor"),
        (
            named && op.pcid != 0 && !regs.cr4().contains(Cr4::PCIDE),
            "INVPCID of a PCID other than 0 with CR4.PCIDE = 0",
        ),
        (
            op.kind == InvpcidType::Addr && long && !Mode::of(regs).canonical(op.gva),
            "INVPCID of an address that is not canonical",
        ),
    ])
}

/// Whether this change of registers reloads the PDPTE registers (facts A.3): it ends in PAE paging
/// and changes CR0.{CD,NW,PG} or CR4.{PAE,PGE,PSE,SMEP}, or CR3. A MOV CR3 of the same value
/// reloads too, which the registers do not show.
#[must_use]
pub fn pdptes_changed_by(old: &Regs, new: &Regs) -> bool {
    let cr0 = Cr0::CD.union(Cr0::NW).union(Cr0::PG);
    let cr4 = Cr4::PAE.union(Cr4::PGE).union(Cr4::PSE).union(Cr4::SMEP);
    Mode::of(new) == Mode::Pae
        && ((old.cr0 ^ new.cr0) & cr0.bits() != 0
            || (old.cr4 ^ new.cr4) & cr4.bits() != 0
            || old.cr3 != new.cr3)
}

/// Whether a PDPTE of PAE paging makes its load fault: present, with one of the bits 2:1, 8:5 or
/// 63:MAXPHYADDR (facts A.2).
#[must_use]
pub const fn pdpte_reserved(value: u64, limits: &Limits) -> bool {
    value & 1 != 0 && value & (0x1e6 | limits.above_physical()) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tlbscope_trace::addr::Gva;

    const LIMITS: Limits = Limits {
        maxphyaddr: 46,
        vendor: Vendor::Intel,
        cr4_allowed: 0x0fff_ffff,
        efer_allowed: 0xd01,
        pg_clear_in_64_bit: false,
    };

    /// 64-bit mode: CR0 = PE, ET, WP, PG; CR4 = PAE; EFER = LME, LMA, NXE.
    fn long() -> Regs {
        Regs { cr0: 0x8001_0011, cr3: 0x1000, cr4: 0x20, efer: 0xd00, ..Regs::default() }
    }

    #[test]
    fn cr0_faults() {
        let real = Regs { cr0: 0x10, ..Regs::default() };
        assert!(cr0(&real, 0x8000_0010, &LIMITS).is_err());
        assert!(cr0(&real, 0x2000_0010, &LIMITS).is_err());
        assert_eq!(cr0(&real, 0x6000_0010, &LIMITS), Ok(()));
        assert_eq!(cr0(&real, 0x8000_0011, &LIMITS), Ok(()));
        assert!(cr0(&real, 0x1_0000_0010, &LIMITS).is_err());
        let lme = Regs { efer: 0x100, ..real };
        assert!(cr0(&lme, 0x8000_0011, &LIMITS).is_err());
        assert_eq!(cr0(&Regs { cr4: 0x20, ..lme }, 0x8000_0011, &LIMITS), Ok(()));
        // Paging stays off: LME waits for it.
        assert_eq!(cr0(&lme, 0x11, &LIMITS), Ok(()));
        assert_eq!(cr0(&long(), 0x1_0011, &LIMITS), Err(Gp("CR0.PG cleared in 64-bit mode")));
        let lax = Limits { pg_clear_in_64_bit: true, ..LIMITS };
        assert_eq!(cr0(&long(), 0x1_0011, &lax), Ok(()));
        let pcide = Regs { cr4: 0x2_0020, ..long() };
        assert!(cr0(&pcide, 0x1_0011, &lax).is_err());
        // Paging stays on: neither PCIDE nor 64-bit mode minds another bit.
        assert_eq!(cr0(&pcide, 0x8001_0019, &LIMITS), Ok(()));
        assert!(cr0(&Regs { cr4: 0x80_0020, ..long() }, 0x8000_0011, &LIMITS).is_err());
    }

    #[test]
    fn cr3_keeps_bit_63_only_as_a_hint() {
        assert!(cr3(&long(), CR3_NOFLUSH | 0x2000, &LIMITS).is_err());
        assert!(cr3(&long(), 1 << 46, &LIMITS).is_err());
        let pcide = Regs { cr4: 0x2_0020, ..long() };
        let hinted = cr3(&pcide, CR3_NOFLUSH | 0x2005, &LIMITS);
        assert_eq!(hinted, Ok(NewCr3 { value: 0x2005, noflush: true }));
        let plain = cr3(&pcide, 0x2005, &LIMITS);
        assert_eq!(plain, Ok(NewCr3 { value: 0x2005, noflush: false }));
    }

    #[test]
    fn cr4_faults() {
        assert!(cr4(&long(), 0x1000_0020, &LIMITS).is_err());
        assert!(cr4(&long(), 0, &LIMITS).is_err());
        assert!(cr4(&long(), 0x1020, &LIMITS).is_err());
        assert_eq!(cr4(&long(), 0x2_0020, &LIMITS), Ok(()));
        assert!(cr4(&Regs { cr3: 0x1018, ..long() }, 0x2_0020, &LIMITS).is_err());
        let pae = Regs { efer: 0, ..long() };
        assert!(cr4(&pae, 0x2_0020, &LIMITS).is_err());
        assert_eq!(cr4(&pae, 0, &LIMITS), Ok(()));
    }

    /// SDM vol. 3, 2.5: CR4.CET can be set only with CR0.WP = 1.
    #[test]
    fn cet_needs_write_protection() {
        assert_eq!(cr4(&long(), 0x80_0020, &LIMITS), Ok(()));
        let lax = Regs { cr0: long().cr0 & !Cr0::WP.bits(), ..long() };
        assert!(cr4(&lax, 0x80_0020, &LIMITS).is_err());
        assert_eq!(cr4(&lax, 0xa0, &LIMITS), Ok(()));
    }

    /// What stays as it is faults for nobody: LA57 and PCIDE are judged where they change.
    #[test]
    fn an_unchanged_bit_of_cr4_faults_not() {
        let five = Regs { cr4: 0x1020, ..long() };
        assert_eq!(cr4(&five, 0x10a0, &LIMITS), Ok(()));
        assert!(cr4(&five, 0x20, &LIMITS).is_err());
        let pcide = Regs { cr4: 0x2_0020, cr3: 0x1005, ..long() };
        assert_eq!(cr4(&pcide, 0x2_00a0, &LIMITS), Ok(()));
    }

    #[test]
    fn efer_faults() {
        assert!(efer(&long(), 0xc00, &LIMITS).is_err());
        assert!(efer(&long(), 0x1d00, &LIMITS).is_err());
        assert_eq!(efer(&long(), 0x500, &LIMITS), Ok(()));
        assert_eq!(efer(&Regs::default(), 0x100, &LIMITS), Ok(()));
    }

    #[test]
    fn invpcid_faults() {
        let op = |kind, pcid, gva| Invpcid { kind, pcid, gva: Gva(gva) };
        let pcide = Regs { cr4: 0x2_0020, ..long() };
        assert!(invpcid(&pcide, &op(InvpcidType::Reserved(4), 0, 0), &LIMITS).is_err());
        assert!(invpcid(&pcide, &op(InvpcidType::All, 0x1000, 0), &LIMITS).is_err());
        assert!(invpcid(&long(), &op(InvpcidType::Single, 5, 0), &LIMITS).is_err());
        assert_eq!(invpcid(&long(), &op(InvpcidType::All, 5, 0), &LIMITS), Ok(()));
        assert_eq!(invpcid(&pcide, &op(InvpcidType::Single, 5, 1 << 63), &LIMITS), Ok(()));
        assert!(invpcid(&pcide, &op(InvpcidType::Addr, 5, 1 << 63), &LIMITS).is_err());
    }

    #[test]
    fn pdptes_are_reloaded_by_the_listed_bits_only() {
        let old = Regs { cr0: 0x8000_0011, cr4: 0x20, ..Regs::default() };
        let with = |cr0: u64, cr4: u64| Regs { cr0, cr4, ..old };
        assert!(pdptes_changed_by(&old, &with(0x8000_0011, 0xa0)));
        assert!(pdptes_changed_by(&old, &with(0xc000_0011, 0x20)));
        assert!(!pdptes_changed_by(&old, &with(0x8001_0011, 0x20)));
        assert!(!pdptes_changed_by(&old, &with(0x8000_0011, 0x20_0020)));
        assert!(!pdptes_changed_by(&old, &with(0x11, 0x20)));
        assert!(pdptes_changed_by(&old, &Regs { cr3: 0x20, ..old }));
    }

    #[test]
    fn pdpte_bits() {
        assert!(!pdpte_reserved(0x1e6, &LIMITS));
        assert!(!pdpte_reserved(0x2019, &LIMITS));
        assert!(pdpte_reserved(0x3, &LIMITS));
        assert!(pdpte_reserved(0x21, &LIMITS));
        assert!(pdpte_reserved(1 << 46 | 1, &LIMITS));
    }
}
