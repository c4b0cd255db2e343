//! Whether an access is allowed by the rights of its translation, and the #PF error code
//! (facts A.4, A.5; SDM vol. 3, 4.6 and 4.7). CR0.WP, SMEP, SMAP, EFLAGS.AC, PKRU and CPL are
//! evaluated live, the rest comes from the translation.

use std::fmt;

use tlbscope_trace::addr::Gva;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs};

/// Error code: the translation is present.
pub const PF_PRESENT: u32 = 1 << 0;
/// Error code: the access was a write.
pub const PF_WRITE: u32 = 1 << 1;
/// Error code: the access was a user-mode access.
pub const PF_USER: u32 = 1 << 2;
/// Error code: a reserved bit was set.
pub const PF_RESERVED: u32 = 1 << 3;
/// Error code: the access was a fetch.
pub const PF_FETCH: u32 = 1 << 4;
/// Error code: a protection key refused a data access.
pub const PF_KEY: u32 = 1 << 5;

/// The rights of a translation over its whole path.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Rights {
    /// AND of R/W.
    pub write: bool,
    /// AND of U/S.
    pub user: bool,
    /// OR of XD.
    pub xd: bool,
    /// The leaf's protection key, 4 bits.
    pub key: u8,
}

impl Rights {
    /// Nothing is refused: where a walk begins, and what CR0.PG = 0 gives.
    pub const FULL: Self = Self { write: true, user: true, xd: false, key: 0 };
}

/// What of the registers an access is checked against, whatever its translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    paging: bool,
    wp: bool,
    smep: bool,
    smap: bool,
    nxe: bool,
    /// Protection keys are in force: only in 4- and 5-level paging.
    keys: bool,
    pkru: u32,
}

impl Live {
    /// Of these registers.
    #[inline]
    #[must_use]
    pub const fn of(regs: &Regs) -> Self {
        let (cr0, cr4, efer) = (regs.cr0(), regs.cr4(), regs.efer());
        Self {
            paging: cr0.contains(Cr0::PG),
            wp: cr0.contains(Cr0::WP),
            smep: cr4.contains(Cr4::SMEP),
            smap: cr4.contains(Cr4::SMAP),
            nxe: efer.contains(Efer::NXE),
            keys: cr4.contains(Cr4::PKE) && efer.contains(Efer::LMA),
            pkru: regs.pkru,
        }
    }

    /// Of the registers that the hardware runs with in shadow mode: WP is forced on (facts/kvm.md
    /// 1.2), and the shadow tables have XD whatever the guest's mode (7.2).
    #[inline]
    #[must_use]
    pub const fn shadowed(self) -> Self {
        Self { wp: true, nxe: true, ..self }
    }
}

/// Whether a key refuses a data access: AD, or WD on a write of a user access or with CR0.WP = 1.
/// IA32_PKRS is not modelled, so supervisor pages have no keys.
#[inline]
fn key_refuses(rights: Rights, access: &Access, live: Live) -> bool {
    if !live.keys || access.kind == AccessKind::Exec || !rights.user {
        return false;
    }
    let pair = live.pkru >> (2 * u32::from(rights.key & 15));
    let obeys_wd = access.user || live.wp;
    pair & 1 != 0 || (pair & 2 != 0 && access.kind == AccessKind::Write && obeys_wd)
}

/// Whether R/W, U/S and XD refuse the access. Without a branch: what the next access is cannot be
/// foreseen.
#[inline]
fn path_refuses(rights: Rights, access: &Access, live: Live) -> bool {
    let (write, exec) = (access.kind == AccessKind::Write, access.kind == AccessKind::Exec);
    let kernel_page = access.user & !rights.user;
    let no_user_page = exec & live.smep | !exec & live.smap & !access.ac;
    let user_page = !access.user & rights.user & no_user_page;
    let read_only = write & !rights.write & (access.user | live.wp);
    // XD counts only while NXE = 1; an entry cached before NXE was cleared keeps translating.
    let no_exec = exec & rights.xd & live.nxe;
    kernel_page | user_page | read_only | no_exec
}

/// Checks an access against the rights of its translation. With paging off nothing is refused.
///
/// # Errors
///
/// The #PF error code, P = 1.
pub fn check(rights: Rights, access: &Access, regs: &Regs) -> Result<(), u32> {
    if permits(rights, access, Live::of(regs)) {
        Ok(())
    } else {
        Err(refused(rights, access, regs))
    }
}

/// The error code of an access that is not [permitted](permits).
#[must_use]
pub fn refused(rights: Rights, access: &Access, regs: &Regs) -> u32 {
    // The PK bit is set whenever a key refuses, whatever else refuses too (SDM vol. 3, 4.7).
    let key = key_refuses(rights, access, Live::of(regs));
    let code = not_present_code(access, regs) | PF_PRESENT;
    if key { code | PF_KEY } else { code }
}

/// Whether an access is permitted; [`check`] gives the error code too.
#[inline]
#[must_use]
pub fn permits(rights: Rights, access: &Access, live: Live) -> bool {
    !live.paging || !path_refuses(rights, access, live) && !key_refuses(rights, access, live)
}

/// What is [permitted](permits) under some registers, in a table: a bit for each combination of
/// rights, a byte for each kind of access.
#[derive(Clone, Copy)]
pub struct Permitted {
    live: Live,
    by_access: [u8; 12],
}

impl Permitted {
    /// Under these registers.
    #[must_use]
    pub fn under(live: Live) -> Self {
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Exec];
        let mut by_access = [0; 12];
        for (kind, user, ac) in kinds.into_iter().flat_map(|kind| {
            [(kind, false, false), (kind, false, true), (kind, true, false), (kind, true, true)]
        }) {
            let access = Access { gva: Gva(0), kind, user, ac };
            for rights in 0..8 {
                let [write, user, xd] = [1, 2, 4].map(|bit| rights & bit != 0);
                let rights = Rights { write, user, xd, key: 0 };
                if permits(rights, &access, Live { keys: false, ..live }) {
                    by_access[place(&access)] |= 1 << index(rights);
                }
            }
        }
        Self { live, by_access }
    }

    /// The registers.
    #[must_use]
    pub const fn live(&self) -> Live {
        self.live
    }

    /// As [`permits`].
    #[inline]
    #[must_use]
    pub fn permits(&self, rights: Rights, access: &Access) -> bool {
        let allowed = self.by_access[place(access)] >> index(rights) & 1 != 0;
        allowed && !(self.live.keys && self.live.paging && key_refuses(rights, access, self.live))
    }
}

/// The row of a kind of access.
const fn place(access: &Access) -> usize {
    (access.kind as usize) << 2 | (access.user as usize) << 1 | access.ac as usize
}

/// The bit of a combination of rights.
const fn index(rights: Rights) -> u32 {
    rights.write as u32 | (rights.user as u32) << 1 | (rights.xd as u32) << 2
}

/// No part of a state: it follows from the registers.
impl Default for Permitted {
    fn default() -> Self {
        Self::under(Live::default())
    }
}

impl fmt::Debug for Permitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permitted")
    }
}

/// The error code of an access to an address without a translation: P = 0.
#[must_use]
pub fn not_present_code(access: &Access, regs: &Regs) -> u32 {
    let mut code = if access.user { PF_USER } else { 0 };
    match access.kind {
        AccessKind::Read => {}
        AccessKind::Write => code |= PF_WRITE,
        AccessKind::Exec => {
            let nx = regs.cr4().contains(Cr4::PAE) && regs.efer().contains(Efer::NXE);
            if nx || regs.cr4().contains(Cr4::SMEP) {
                code |= PF_FETCH;
            }
        }
    }
    code
}

/// The error code of a walk that met a reserved bit in a present entry.
#[must_use]
pub fn reserved_code(access: &Access, regs: &Regs) -> u32 {
    not_present_code(access, regs) | PF_PRESENT | PF_RESERVED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(cr0: Cr0, cr4: Cr4, efer: Efer) -> Regs {
        let cr0 = (cr0 | Cr0::PG | Cr0::PE).bits();
        Regs { cr0, cr4: cr4.bits(), efer: efer.bits(), ..Regs::default() }
    }

    fn access(kind: AccessKind, user: bool) -> Access {
        Access { gva: Gva(0), kind, user, ac: false }
    }

    const RO_USER: Rights = Rights { write: false, user: true, xd: true, key: 0 };
    const RW_KERNEL: Rights = Rights { write: true, user: false, xd: false, key: 0 };

    #[test]
    fn user_accesses_obey_everything() {
        let r = regs(Cr0::empty(), Cr4::PAE, Efer::LMA | Efer::NXE);
        assert_eq!(check(RO_USER, &access(AccessKind::Read, true), &r), Ok(()));
        assert_eq!(check(RO_USER, &access(AccessKind::Write, true), &r), Err(7));
        assert_eq!(check(RO_USER, &access(AccessKind::Exec, true), &r), Err(0x15));
        assert_eq!(check(RW_KERNEL, &access(AccessKind::Read, true), &r), Err(5));
    }

    #[test]
    fn supervisor_writes_obey_wp_only() {
        let off = regs(Cr0::empty(), Cr4::PAE, Efer::LMA);
        let on = regs(Cr0::WP, Cr4::PAE, Efer::LMA);
        assert_eq!(check(RO_USER, &access(AccessKind::Write, false), &off), Ok(()));
        assert_eq!(check(RO_USER, &access(AccessKind::Write, false), &on), Err(3));
    }

    #[test]
    fn smep_and_smap_protect_from_user_pages() {
        let r = regs(Cr0::WP, Cr4::PAE | Cr4::SMEP | Cr4::SMAP, Efer::LMA);
        let rx = Rights { write: true, user: true, xd: false, key: 0 };
        assert_eq!(check(rx, &access(AccessKind::Exec, false), &r), Err(0x11));
        assert_eq!(check(rx, &access(AccessKind::Read, false), &r), Err(1));
        let ac = Access { ac: true, ..access(AccessKind::Write, false) };
        assert_eq!(check(rx, &ac, &r), Ok(()));
        assert_eq!(check(rx, &access(AccessKind::Exec, true), &r), Ok(()));
    }

    #[test]
    fn xd_is_live_only_with_nxe_and_the_fetch_bit_needs_pae() {
        let r = regs(Cr0::WP, Cr4::PAE, Efer::LMA);
        assert_eq!(check(RO_USER, &access(AccessKind::Exec, true), &r), Ok(()));
        let legacy = regs(Cr0::WP, Cr4::PSE, Efer::NXE);
        assert_eq!(not_present_code(&access(AccessKind::Exec, true), &legacy), 4);
        let pae = regs(Cr0::WP, Cr4::PAE, Efer::NXE);
        assert_eq!(not_present_code(&access(AccessKind::Exec, true), &pae), 0x14);
        assert_eq!(reserved_code(&access(AccessKind::Write, false), &pae), 0xb);
    }

    #[test]
    fn keys_refuse_data_and_never_fetches() {
        let mut r = regs(Cr0::WP, Cr4::PAE | Cr4::PKE, Efer::LMA | Efer::NXE);
        let page = Rights { write: true, user: true, xd: false, key: 2 };
        r.pkru = 1 << 5; // WD of key 2
        assert_eq!(check(page, &access(AccessKind::Read, true), &r), Ok(()));
        assert_eq!(check(page, &access(AccessKind::Write, true), &r), Err(0x27));
        r.cr0 &= !Cr0::WP.bits();
        assert_eq!(check(page, &access(AccessKind::Write, false), &r), Ok(()));
        r.pkru = 1 << 4; // AD of key 2
        assert_eq!(check(page, &access(AccessKind::Read, false), &r), Err(0x21));
        assert_eq!(check(page, &access(AccessKind::Exec, true), &r), Ok(()));
        let kernel = Rights { user: false, ..page };
        assert_eq!(check(kernel, &access(AccessKind::Read, false), &r), Ok(()));
    }

    /// SDM vol. 3, 4.6.2: AD refuses every data access, WD writes of a user always and of a supervisor
    /// with CR0.WP = 1; only with CR4.PKE and IA32_EFER.LMA.
    #[test]
    fn wd_minds_wp_for_supervisors_only() {
        let r = regs(Cr0::empty(), Cr4::PAE | Cr4::PKE, Efer::LMA);
        let page = Rights { write: true, user: true, xd: false, key: 5 };
        // Bits 10 and 11 of PKRU are AD and WD of key 5.
        let wd = Regs { pkru: 1 << 11, ..r };
        let write = |user| access(AccessKind::Write, user);
        assert_eq!(check(page, &write(true), &r), Ok(()));
        assert_eq!(check(page, &write(true), &wd), Err(0x27));
        assert_eq!(check(page, &write(false), &wd), Ok(()));
        let wp = Regs { cr0: wd.cr0 | Cr0::WP.bits(), ..wd };
        assert_eq!(check(page, &write(false), &wp), Err(0x23));
        assert_eq!(check(page, &access(AccessKind::Read, true), &wp), Ok(()));
        let ad = Regs { pkru: 1 << 10, ..r };
        assert_eq!(check(page, &access(AccessKind::Read, true), &ad), Err(0x25));
        // PKRU of another key.
        assert_eq!(check(Rights { key: 4, ..page }, &write(true), &ad), Ok(()));
    }

    #[test]
    fn keys_count_with_pke_and_in_long_mode_only() {
        let page = Rights { write: true, user: true, xd: false, key: 5 };
        let all = |r: Regs| Regs { pkru: !0, ..r };
        let without_pke = all(regs(Cr0::WP, Cr4::PAE, Efer::LMA));
        assert_eq!(check(page, &access(AccessKind::Write, true), &without_pke), Ok(()));
        let pae = all(regs(Cr0::WP, Cr4::PAE | Cr4::PKE, Efer::empty()));
        assert_eq!(check(page, &access(AccessKind::Write, true), &pae), Ok(()));
    }

    /// The table says of every access under every combination of registers what the rules say.
    #[test]
    fn the_table_is_the_rules() {
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Exec];
        let bit = |of: u32, n: u32| of >> n & 1 != 0;
        for of in 0..1 << 6 {
            let [paging, wp, smep, smap, nxe, keys] = [0, 1, 2, 3, 4, 5].map(|n| bit(of, n));
            let live = Live { paging, wp, smep, smap, nxe, keys, pkru: 0b11 << 4 | 0b10 << 2 };
            let table = Permitted::under(live);
            for of in 0..1 << 7 {
                let [write, page, xd, user, ac] = [0, 1, 2, 3, 4].map(|n| bit(of, n));
                let rights = Rights { write, user: page, xd, key: (of >> 5) as u8 };
                for kind in kinds {
                    let access = Access { gva: Gva(0), kind, user, ac };
                    let expected = permits(rights, &access, live);
                    assert_eq!(
                        table.permits(rights, &access),
                        expected,
                        "{rights:?} {access:?} {live:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn without_paging_nothing_is_refused() {
        let r = Regs { cr4: Cr4::SMEP.bits(), ..Regs::default() };
        assert_eq!(check(Rights::FULL, &access(AccessKind::Exec, false), &r), Ok(()));
    }
}
