//! Paging modes (facts A.1).

use tlbscope_trace::addr::{Gva, PageSize};
use tlbscope_trace::regs::{Cr4, Efer, Regs};

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// CR0.PG = 0: linear is physical.
    Off,
    /// 32-bit paging.
    Bits32,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    Level4,
    /// 5-level paging.
    Level5,
}

impl Mode {
    /// The mode that these registers select.
    #[must_use]
    pub const fn of(regs: &Regs) -> Self {
        if !regs.paging() {
            Self::Off
        } else if regs.cr4 & Cr4::PAE.bits() == 0 {
            Self::Bits32
        } else if regs.efer & Efer::LMA.bits() == 0 {
            Self::Pae
        } else if regs.cr4 & Cr4::LA57.bits() == 0 {
            Self::Level4
        } else {
            Self::Level5
        }
    }

    /// Levels of tables; the PDPTE registers of PAE count as one.
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }

    /// Bytes of an entry; 0 with paging off.
    #[must_use]
    pub const fn entry_bytes(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Bits32 => 4,
            _ => 8,
        }
    }

    /// Index of the entry of `level` (1 = PT) that translates `gva`.
    #[must_use]
    pub const fn index(self, gva: Gva, level: u8) -> u16 {
        let level = level as u32 - 1;
        match self {
            Self::Bits32 => ((gva.0 >> (12 + 10 * level)) & 1023) as u16,
            Self::Pae if level == 2 => ((gva.0 >> 30) & 3) as u16,
            _ => ((gva.0 >> (12 + 9 * level)) & 511) as u16,
        }
    }

    /// Whether the address is one of this mode: canonical, or below 4 GiB outside long mode.
    #[must_use]
    pub const fn canonical(self, gva: Gva) -> bool {
        let unused = match self {
            Self::Level4 => 16,
            Self::Level5 => 7,
            _ => return gva.0 >> 32 == 0,
        };
        ((gva.0 << unused) as i64 >> unused) as u64 == gva.0
    }

    /// Size of the page that a leaf at `level` maps, if a leaf may stand there.
    #[must_use]
    pub const fn page_size(self, level: u8) -> Option<PageSize> {
        match (self, level) {
            (Self::Off, _) => None,
            (_, 1) => Some(PageSize::Size4K),
            (Self::Bits32, 2) => Some(PageSize::Size4M),
            (_, 2) => Some(PageSize::Size2M),
            (Self::Level4 | Self::Level5, 3) => Some(PageSize::Size1G),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_by_the_manual() {
        // Facts A.1: 4-level PML4 47:39, PDPT 38:30, PD 29:21, PT 20:12.
        let gva = Gva(3 << 39 | 5 << 30 | 7 << 21 | 9 << 12 | 0x123);
        let at = |level| Mode::Level4.index(gva, level);
        assert_eq!([at(4), at(3), at(2), at(1)], [3, 5, 7, 9]);
        // 32-bit PD 31:22, PT 21:12.
        let gva = Gva(0x3ff << 22 | 0x155 << 12);
        assert_eq!([Mode::Bits32.index(gva, 2), Mode::Bits32.index(gva, 1)], [0x3ff, 0x155]);
        // PAE PDPTE 31:30.
        assert_eq!(Mode::Pae.index(Gva(0xc000_0000), 3), 3);
    }

    #[test]
    fn canonical_addresses() {
        assert!(Mode::Level4.canonical(Gva(0x7fff_ffff_f000)));
        assert!(!Mode::Level4.canonical(Gva(0x8000_0000_0000)));
        assert!(Mode::Level4.canonical(Gva(0xffff_8000_0000_0000)));
        assert!(Mode::Level5.canonical(Gva(0x8000_0000_0000)));
        assert!(!Mode::Pae.canonical(Gva(1 << 32)));
    }
}
