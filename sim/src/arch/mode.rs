//! The paging modes and their geometry (facts A.1; SDM vol. 3, 4.1 and 4.5).

use tlbscope_trace::addr::{Gva, PageSize};
use tlbscope_trace::regs::{Cr4, Efer, Regs};

/// A paging mode.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Mode {
    /// CR0.PG = 0: linear addresses are physical.
    #[default]
    Off,
    /// 32-bit paging: two levels of 4-byte entries.
    Bits32,
    /// PAE paging: four PDPTEs over two levels of 8-byte entries.
    Pae,
    /// 4-level paging.
    Level4,
    /// 5-level paging.
    Level5,
}

impl Mode {
    /// The mode that these registers select. `Regs::efer` includes LMA.
    #[must_use]
    pub const fn of(regs: &Regs) -> Self {
        if !regs.paging() {
            Self::Off
        } else if regs.efer & Efer::LMA.bits() != 0 {
            if regs.cr4 & Cr4::LA57.bits() != 0 { Self::Level5 } else { Self::Level4 }
        } else if regs.cr4 & Cr4::PAE.bits() != 0 {
            Self::Pae
        } else {
            Self::Bits32
        }
    }

    /// Levels of tables, the four PDPTEs of PAE paging counted as one.
    #[inline]
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

    /// Bytes of one entry: 4 in 32-bit paging, else 8 (8 also for [`Mode::Off`], as stores are).
    #[inline]
    #[must_use]
    pub const fn entry_bytes(self) -> u8 {
        if matches!(self, Self::Bits32) { 4 } else { 8 }
    }

    /// Bits of an address that choose the entry of a table.
    const fn bits(self) -> u32 {
        if matches!(self, Self::Bits32) { 10 } else { 9 }
    }

    /// log2 of the bytes that one entry of `level` (1 = PT) covers; 12 for a level of 0.
    #[inline]
    #[must_use]
    pub const fn shift(self, level: u8) -> u32 {
        let above = level.saturating_sub(1);
        12 + self.bits() * if above > 4 { 4 } else { above as u32 }
    }

    /// Which entry of a table of `level` translates `gva`; 0 for a level the mode does not have.
    #[inline]
    #[must_use]
    pub const fn index(self, gva: Gva, level: u8) -> u16 {
        if level == 0 || level > self.levels() {
            return 0;
        }
        let registers = matches!(self, Self::Pae) && level == 3;
        let bits = if registers { 2 } else { self.bits() };
        ((gva.0 >> self.shift(level)) & ((1 << bits) - 1)) as u16
    }

    /// From the top table down to that of `last`: each level, and where the entry for `gva` lies in its
    /// table, in bytes.
    #[inline]
    pub(crate) fn path(self, gva: Gva, last: u8) -> impl Iterator<Item = (u8, u64)> {
        let (bits, bytes) = (self.bits(), u64::from(self.entry_bytes()));
        let registers = if self == Self::Pae { 3 } else { 0 };
        (last..self.levels() + 1).rev().map(move |level| {
            let entries = 1 << if level == registers { 2 } else { bits };
            let index = gva.0 >> (12 + bits * (u32::from(level) - 1)) & (entries - 1);
            (level, index * bytes)
        })
    }

    /// Whether `gva` is an address of this mode: below 4 GiB, or sign-extended from bit 47 or 56.
    #[must_use]
    pub const fn canonical(self, gva: Gva) -> bool {
        let spare = match self {
            Self::Off | Self::Bits32 | Self::Pae => return gva.0 >> 32 == 0,
            Self::Level4 => 16,
            Self::Level5 => 7,
        };
        (((gva.0 << spare) as i64) >> spare) as u64 == gva.0
    }

    /// The size of a page mapped by a leaf of `level`, if the mode knows one there. That CR4.PSE
    /// or CPUID may forbid it is the walker's business.
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

    fn regs(cr0: u64, cr4: u64, efer: u64) -> Regs {
        Regs { cr0, cr4, efer, ..Regs::default() }
    }

    #[test]
    fn a_path_is_the_index_at_each_level() {
        let gva = Gva(0x00fe_dcba_9876_5432);
        for mode in [Mode::Bits32, Mode::Pae, Mode::Level4, Mode::Level5] {
            let bytes = u64::from(mode.entry_bytes());
            let indices = (2..=mode.levels()).rev();
            let indices = indices.map(|level| (level, u64::from(mode.index(gva, level)) * bytes));
            assert!(mode.path(gva, 2).eq(indices), "{mode:?}");
        }
        assert_eq!(Mode::Off.path(gva, 1).count(), 0);
    }

    #[test]
    fn registers_select_the_mode() {
        assert_eq!(Mode::of(&regs(0x11, 0x20, 0x100)), Mode::Off);
        assert_eq!(Mode::of(&regs(0x8000_0011, 0x10, 0)), Mode::Bits32);
        assert_eq!(Mode::of(&regs(0x8000_0011, 0x20, 0)), Mode::Pae);
        assert_eq!(Mode::of(&regs(0x8000_0011, 0x20, 0x500)), Mode::Level4);
        assert_eq!(Mode::of(&regs(0x8000_0011, 0x1020, 0x500)), Mode::Level5);
    }

    #[test]
    fn index_bits_are_those_of_the_manual() {
        // PD 31:22 = 0x300, PT 21:12 = 0x1.
        assert_eq!(Mode::Bits32.index(Gva(0xc000_1000), 2), 0x300);
        assert_eq!(Mode::Bits32.index(Gva(0xc000_1000), 1), 1);
        assert_eq!(Mode::Pae.index(Gva(0xffff_ffff), 3), 3);
        assert_eq!(Mode::Pae.index(Gva(0xc020_0000), 2), 1);
        // 0xffff_8000_0000_0000: only bit 47 of 47:39 is set.
        assert_eq!(Mode::Level4.index(Gva(0xffff_8000_0000_0000), 4), 0x100);
        assert_eq!(Mode::Level5.index(Gva(0x0001_0000_0000_0000), 5), 1);
        assert_eq!(Mode::Level4.index(Gva(!0), 5), 0);
        assert_eq!(Mode::Level4.index(Gva(!0), 200), 0);
    }

    #[test]
    fn canonical_means_sign_extended() {
        assert!(Mode::Level4.canonical(Gva(0x7fff_ffff_ffff)));
        assert!(!Mode::Level4.canonical(Gva(0x8000_0000_0000)));
        assert!(Mode::Level4.canonical(Gva(0xffff_8000_0000_0000)));
        assert!(Mode::Level5.canonical(Gva(0x8000_0000_0000)));
        assert!(!Mode::Level5.canonical(Gva(0x0100_0000_0000_0000)));
        assert!(!Mode::Pae.canonical(Gva(0x1_0000_0000)));
    }

    #[test]
    fn leaves_have_the_sizes_of_their_level() {
        assert_eq!(Mode::Bits32.page_size(2), Some(PageSize::Size4M));
        assert_eq!(Mode::Pae.page_size(2), Some(PageSize::Size2M));
        assert_eq!(Mode::Pae.page_size(3), None);
        assert_eq!(Mode::Level5.page_size(3), Some(PageSize::Size1G));
        assert_eq!(Mode::Level5.page_size(4), None);
        assert_eq!(Mode::Off.page_size(1), None);
        assert_eq!(Mode::Bits32.entry_bytes(), 4);
        assert_eq!(Mode::Level5.levels(), 5);
    }
}
