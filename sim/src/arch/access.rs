//! The access check, run on cached or fresh rights, and the error codes (facts A.4, A.5).

use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs};

use super::mode::Mode;

/// Rights of a translation over its whole path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights {
    /// R/W: AND over the levels.
    pub write: bool,
    /// U/S: AND over the levels.
    pub user: bool,
    /// XD: OR over the levels, 0 unless EFER.NXE.
    pub xd: bool,
    /// The leaf's protection key.
    pub key: u8,
}

const P: u32 = 1;
const W: u32 = 1 << 1;
const U: u32 = 1 << 2;
const RSVD: u32 = 1 << 3;
const I: u32 = 1 << 4;
const PK: u32 = 1 << 5;

fn code(access: &Access, regs: &Regs) -> u32 {
    let cr4 = regs.cr4();
    let nx = cr4.contains(Cr4::PAE) && regs.efer().contains(Efer::NXE);
    let fetch = access.kind == AccessKind::Exec && (nx || cr4.contains(Cr4::SMEP));
    (if access.kind == AccessKind::Write { W } else { 0 })
        | if access.user { U } else { 0 }
        | if fetch { I } else { 0 }
}

/// The error code of a walk that met P = 0.
#[must_use]
pub fn not_present_code(access: &Access, regs: &Regs) -> u32 {
    code(access, regs)
}

/// The error code of a walk that met a reserved bit.
#[must_use]
pub fn reserved_code(access: &Access, regs: &Regs) -> u32 {
    code(access, regs) | P | RSVD
}

/// Whether rights permit an access under the live bits WP, SMEP, SMAP, AC and PKRU.
///
/// # Errors
/// The #PF error code.
pub fn check(rights: Rights, access: &Access, regs: &Regs) -> Result<(), u32> {
    let cr4 = regs.cr4();
    let wp = regs.cr0().contains(Cr0::WP);
    let supervisor = !access.user;
    let denied = match access.kind {
        AccessKind::Exec => {
            rights.xd
                || access.user && !rights.user
                || supervisor && rights.user && cr4.contains(Cr4::SMEP)
        }
        kind => {
            let write = kind == AccessKind::Write;
            access.user && !rights.user
                || supervisor && rights.user && cr4.contains(Cr4::SMAP) && !access.ac
                || write && !rights.write && (access.user || wp)
        }
    };
    if denied {
        return Err(code(access, regs) | P);
    }
    if key_denies(rights, access, regs, wp) { Err(code(access, regs) | P | PK) } else { Ok(()) }
}

/// Protection keys: data accesses to user pages, 4- and 5-level paging.
fn key_denies(rights: Rights, access: &Access, regs: &Regs, wp: bool) -> bool {
    let long = matches!(Mode::of(regs), Mode::Level4 | Mode::Level5);
    if access.kind == AccessKind::Exec || !rights.user || !long || !regs.cr4().contains(Cr4::PKE) {
        return false;
    }
    let bits = regs.pkru >> (2 * u32::from(rights.key & 15));
    let (ad, wd) = (bits & 1 != 0, bits & 2 != 0);
    ad || wd && access.kind == AccessKind::Write && (access.user || wp)
}

#[cfg(test)]
mod tests {
    use tlbscope_trace::addr::Gva;

    use super::*;

    fn regs(cr0: Cr0, cr4: Cr4) -> Regs {
        let cr4 = (cr4 | Cr4::PAE).bits();
        let efer = (Efer::LMA | Efer::LME | Efer::NXE).bits();
        Regs { cr0: (cr0 | Cr0::PG).bits(), cr4, efer, ..Regs::default() }
    }

    /// Each line of facts A.4, with the code of A.5 written out by hand.
    #[test]
    fn table_of_the_manual() {
        use AccessKind::{Exec, Read, Write};
        let none = Cr4::empty();
        let (wp, no_wp) = (Cr0::WP, Cr0::empty());
        // (rights w u x, kind, user, ac, cr0, cr4, result)
        let table = [
            ((true, false, true), Read, true, false, wp, none, Err(0b101)),
            ((false, true, true), Write, true, false, no_wp, none, Err(0b111)),
            ((true, true, false), Exec, true, false, wp, none, Err(0b10101)),
            ((true, true, true), Exec, false, false, wp, Cr4::SMEP, Err(0b10001)),
            ((true, true, true), Exec, false, false, wp, none, Ok(())),
            ((true, true, true), Read, false, false, wp, Cr4::SMAP, Err(0b1)),
            ((true, true, true), Read, false, true, wp, Cr4::SMAP, Ok(())),
            ((false, false, true), Write, false, false, wp, none, Err(0b11)),
            ((false, false, true), Write, false, false, no_wp, none, Ok(())),
            ((false, true, true), Write, false, false, no_wp, none, Ok(())),
        ];
        for (n, ((w, u, x), kind, user, ac, cr0, cr4, result)) in table.into_iter().enumerate() {
            let rights = Rights { write: w, user: u, xd: !x, key: 0 };
            let access = Access { gva: Gva(0), kind, user, ac };
            assert_eq!(check(rights, &access, &regs(cr0, cr4)), result, "line {n}");
        }
    }

    #[test]
    fn keys_refuse_data_only() {
        let rights = Rights { write: true, user: true, xd: false, key: 1 };
        let access = |kind| Access { gva: Gva(0), kind, user: true, ac: false };
        let wd = Regs { pkru: 0b1000, ..regs(Cr0::WP, Cr4::PKE) };
        assert_eq!(check(rights, &access(AccessKind::Write), &wd), Err(0b10_0111));
        assert_eq!(check(rights, &access(AccessKind::Read), &wd), Ok(()));
        let ad = Regs { pkru: 0b0100, ..wd };
        assert_eq!(check(rights, &access(AccessKind::Read), &ad), Err(0b10_0101));
        assert_eq!(check(rights, &access(AccessKind::Exec), &ad), Ok(()));
    }
}
