//! The page role: what must be equal for a shadow page or root to be used again (facts/kvm.md 7.2).

use tlbscope_trace::nested::Format;
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs};

use crate::arch::mode::Mode;
use crate::policy::mechanics::{Mechanics, RoleBits, RoleShadowNx, RoleVersion};

/// A role word. Two roots are interchangeable if their roles and guest frames are equal.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Role(pub u32);

impl Role {
    const QUADRANT: u32 = 4;
    /// The guest's entries have 4 bytes.
    pub const GPTE4: u32 = 1 << 6;
    /// No guest table stands behind the page.
    pub const DIRECT: u32 = 1 << 7;
    const ACCESS: u32 = 8;
    /// EFER.NX.
    pub const NX: u32 = 1 << 11;
    /// CR0.WP.
    pub const WP: u32 = 1 << 12;
    /// SMEP while WP = 0.
    pub const SMEP_NOT_WP: u32 = 1 << 13;
    /// SMAP while WP = 0.
    pub const SMAP_NOT_WP: u32 = 1 << 14;
    /// CR4.SMEP by itself (7.2 and later, facts 15.2).
    pub const SMEP: u32 = 1 << 15;
    /// System management mode.
    pub const SMM: u32 = 1 << 16;
    /// CR4.PSE of a 32-bit guest: 4 MiB pages have another tree (facts 7.2).
    pub const PSE: u32 = 1 << 18;

    /// L2: its pages and roots are kept apart from L1's.
    pub const GUEST_MODE: u32 = 1 << 20;
    /// The guest's entries are EPT entries.
    pub const EPT: u32 = 1 << 21;
    /// The guest's entries are nested ones whose U/S bit is ignored.
    pub const PLAIN: u32 = 1 << 22;
    /// The guest's entries are those of a nested CR3.
    pub const NPT: u32 = 1 << 23;

    /// The format of the nested entries behind the page, if they are L1's nested tables.
    #[must_use]
    pub const fn nested_format(self) -> Option<Format> {
        match self.0 & (Self::EPT | Self::PLAIN | Self::NPT) {
            Self::EPT => Some(Format::Ept),
            Self::PLAIN => Some(Format::Plain),
            Self::NPT => Some(Format::Npt),
            _ => None,
        }
    }
    /// No longer to be trusted: userspace has set CPUID.
    pub const STALE: u32 = 1 << 31;

    /// The word without SMEP and SMAP under WP = 0.
    #[must_use]
    pub const fn without_and_not_wp(self) -> Self {
        Self(self.0 & !(Self::SMEP_NOT_WP | Self::SMAP_NOT_WP))
    }

    /// Level of the page: 1 = page table.
    #[must_use]
    pub const fn level(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// Which part of a 32-bit guest table the page shadows.
    #[must_use]
    pub const fn quadrant(self) -> u16 {
        ((self.0 >> Self::QUADRANT) & 3) as u16
    }

    /// Whether no guest table stands behind the page.
    #[must_use]
    pub const fn direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }

    /// Rights of the path above: write, user, execute.
    #[must_use]
    pub const fn access(self) -> (bool, bool, bool) {
        let a = self.0 >> Self::ACCESS;
        (a & 1 != 0, a & 2 != 0, a & 4 != 0)
    }

    /// The same role for a page at `level`, `quadrant`, below a path with these rights.
    #[must_use]
    pub const fn child(self, level: u8, quadrant: u16, access: (bool, bool, bool)) -> Self {
        let keep = self.0 & !(0xf | 3 << Self::QUADRANT | 7 << Self::ACCESS);
        let access = access.0 as u32 | (access.1 as u32) << 1 | (access.2 as u32) << 2;
        Self(
            keep | level as u32
                | ((quadrant & 3) as u32) << Self::QUADRANT
                | access << Self::ACCESS,
        )
    }
}

const ALL: (bool, bool, bool) = (true, true, true);

/// What `role-omit` leaves out of the key by which a page is found below the root: a page keeps the
/// path's rights, or the quadrant, that it was made for, and serves others (CVE-2021-38198).
pub fn ignored(mechanics: &Mechanics) -> u32 {
    let of = |name, bits| if mechanics.role_omit.contains(name) { bits } else { 0 };
    of(RoleBits::ACCESS, 7 << Role::ACCESS) | of(RoleBits::QUADRANT, 3 << Role::QUADRANT)
}

/// The bits that a policy's `role-omit` leaves out of the word: a defect on purpose.
fn omitted(mechanics: &Mechanics) -> u32 {
    let table = [
        (RoleBits::NX, Role::NX),
        (RoleBits::WP, Role::WP),
        (RoleBits::SMEP, Role::SMEP | Role::SMEP_NOT_WP),
        (RoleBits::SMAP, Role::SMAP_NOT_WP),
        (RoleBits::GPTE_SIZE, Role::GPTE4),
        (RoleBits::DIRECT, Role::DIRECT),
        (RoleBits::SMM, Role::SMM),
        (RoleBits::GUEST_MODE, Role::GUEST_MODE),
        (RoleBits::PSE, Role::PSE),
    ];
    let named = table.iter().filter(|(name, _)| mechanics.role_omit.contains(*name));
    named.fold(0, |bits, (_, bit)| bits | bit)
}

/// The role of the shadow root for a guest with these registers.
#[must_use]
pub fn shadow_root(mechanics: &Mechanics, regs: &Regs, smm: bool) -> Role {
    let mode = Mode::of(regs);
    let (wp, smep, smap) = (
        regs.cr0().contains(Cr0::WP),
        regs.cr4().contains(Cr4::SMEP),
        regs.cr4().contains(Cr4::SMAP),
    );
    let version = mechanics.role;
    let mut bits = if smm { Role::SMM } else { 0 };
    if mode == Mode::Off {
        bits |= Role::DIRECT | Role::NX | Role::WP;
    } else {
        let nx_forced = matches!(version, RoleVersion::V519 | RoleVersion::V72)
            && mechanics.role_shadow_nx == RoleShadowNx::ByVersion;
        let set = |on: bool, bit: u32| if on { bit } else { 0 };
        bits |= set(nx_forced || regs.efer().contains(Efer::NXE), Role::NX);
        bits |= set(wp, Role::WP);
        bits |= set(smap && !wp, Role::SMAP_NOT_WP);
        bits |= match version {
            RoleVersion::V72 => set(smep, Role::SMEP),
            _ => set(smep && !wp, Role::SMEP_NOT_WP),
        };
        bits |= set(mode == Mode::Bits32, Role::GPTE4);
        bits |= set(mode == Mode::Bits32 && regs.cr4().contains(Cr4::PSE), Role::PSE);
    }
    Role(bits & !omitted(mechanics)).child(mode.levels().max(3), 0, ALL)
}

/// The role of a root of L2: `own` is that of its registers, `tables` the format of the nested tables
/// that guest_mmu shadows in their stead.
#[must_use]
pub fn nested_root(mechanics: &Mechanics, own: Role, tables: Option<Format>) -> Role {
    let bits = match tables {
        None => own.0,
        Some(format) => {
            let format = match format {
                Format::Ept => Role::EPT,
                Format::Plain => Role::PLAIN,
                Format::Npt => Role::NPT,
            };
            Role(Role::NX | Role::WP | format).child(4, 0, ALL).0
        }
    };
    Role(bits | Role::GUEST_MODE & !omitted(mechanics))
}

/// The role of the TDP root. From 5.19 on the guest's CR0, CR4 and EFER are no part of it.
#[must_use]
pub fn tdp_root(mechanics: &Mechanics, regs: &Regs, smm: bool) -> Role {
    let wp = regs.cr0().contains(Cr0::WP);
    let nx = regs.efer().contains(Efer::NXE);
    let set = |on: bool, bit: u32| if on { bit } else { 0 };
    let guest = match mechanics.role {
        RoleVersion::V510 => set(nx, Role::NX) | set(wp, Role::WP),
        RoleVersion::V517 if regs.paging() => set(nx, Role::NX) | set(wp, Role::WP),
        RoleVersion::V517 => 0,
        RoleVersion::V519 | RoleVersion::V72 => Role::NX | Role::WP,
    };
    let bits = Role::DIRECT | guest | set(smm, Role::SMM);
    Role(bits & !omitted(mechanics)).child(4, 0, ALL)
}
