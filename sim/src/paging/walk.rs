//! A walk of the guest's page tables by its present mode (facts A.2 to A.6; SDM vol. 3, 4.3 to
//! 4.8): presence first, then reserved bits, entry by entry; rights after the walk.

use tlbscope_trace::addr::{Gpa, PageSize};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::Access;
use tlbscope_trace::regs::{Cr4, Efer, MmuKind, Regs, Vendor};

use super::memory::entry_of;
use crate::arch::access::{Rights, check, not_present_code, reserved_code};
use crate::arch::mode::Mode;

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;

/// One entry that a walk read from memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Step {
    /// Where the entry lies.
    pub gpa: Gpa,
    /// What it held.
    pub value: u64,
    /// The level of its table; 1 = PT.
    pub level: u8,
}

/// The translation that a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// First byte of the page.
    pub gpa: Gpa,
    /// Its size.
    pub size: PageSize,
    /// The rights over the path.
    pub rights: Rights,
    /// G with CR4.PGE = 1.
    pub global: bool,
    /// The leaf's D.
    pub dirty: bool,
    /// Every entry read had A = 1.
    pub accessed_all: bool,
}

/// A walk: what it read and what it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The entries read, from the top; the first `count` are meaningful. PDPTE registers are not
    /// memory and not among them.
    pub steps: [Step; 5],
    /// How many were read.
    pub count: u8,
    /// The mode it walked by.
    pub mode: Mode,
    /// The translation, or the #PF error code (also for rights).
    pub result: Result<Leaf, u32>,
}

impl Walk {
    /// The entries that were read, from the top.
    #[must_use]
    pub fn read(&self) -> &[Step] {
        self.steps.get(..usize::from(self.count)).unwrap_or(&self.steps)
    }
}

/// Where a walk begins: at the top, or below a paging-structure-cache entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// The level of the first table that is read.
    pub level: u8,
    /// That table.
    pub table: Gpa,
    /// The rights over the entries above it.
    pub rights: Rights,
}

/// What decides which bits are reserved.
#[derive(Clone, Copy)]
struct Format {
    mode: Mode,
    physical: u64,
    maxphyaddr: u32,
    nxe: bool,
    pse: bool,
    gbpages: bool,
    amd: bool,
}

impl Format {
    fn of<W: World>(world: &W, regs: &Regs) -> Self {
        let maxphyaddr = world.maxphyaddr().clamp(32, 52);
        Self {
            mode: Mode::of(regs),
            physical: (1 << maxphyaddr) - 1,
            maxphyaddr,
            nxe: regs.efer().contains(Efer::NXE),
            pse: regs.cr4().contains(Cr4::PSE),
            gbpages: world.gbpages(),
            amd: world.vendor() == Vendor::Amd,
        }
    }

    /// Whether a present entry of this level maps a page.
    const fn leaf(&self, level: u8, value: u64) -> bool {
        match (self.mode, level) {
            (_, 1) => true,
            (Mode::Bits32, 2) => self.pse && value & PS != 0,
            (Mode::Pae, 2) => value & PS != 0,
            (Mode::Level4 | Mode::Level5, 2) => value & PS != 0,
            (Mode::Level4 | Mode::Level5, 3) => self.gbpages && value & PS != 0,
            _ => false,
        }
    }

    /// The reserved bits of a present entry (facts A.2).
    const fn reserved(&self, level: u8, value: u64) -> u64 {
        let leaf = self.leaf(level, value);
        if matches!(self.mode, Mode::Bits32) {
            return if leaf && level == 2 { self.reserved_4m() } else { 0 };
        }
        if matches!(self.mode, Mode::Pae) && level == 3 {
            return 0x1e6 | !self.physical;
        }
        let top = if matches!(self.mode, Mode::Pae) { XD - 1 } else { (1 << 52) - 1 };
        let mut bits = top & !self.physical;
        if !self.nxe {
            bits |= XD;
        }
        match (level, leaf) {
            (2, true) => bits |= 0x1f_e000,
            (3, true) => bits |= 0x3fff_e000,
            (3, false) => bits |= PS,
            (4 | 5, _) => bits |= if self.amd { PS | G } else { PS },
            _ => {}
        }
        bits
    }

    /// A PDE of 4 MiB: bits 21:(m-19) with m = min(40, MAXPHYADDR); the bits below hold the
    /// address above 4 GiB (PSE-36).
    const fn reserved_4m(&self) -> u64 {
        let m = if self.maxphyaddr > 40 { 40 } else { self.maxphyaddr };
        0x3f_ffff & !((1 << (m - 19)) - 1)
    }

    /// The frame that a leaf maps.
    const fn frame(&self, size: PageSize, value: u64) -> Gpa {
        match size {
            PageSize::Size4M => Gpa(value & 0xffc0_0000 | (value >> 13 & 0xff) << 32),
            _ => Gpa(value & self.physical & !(size.bytes() - 1)),
        }
    }

    /// The rights over a path that goes on through this entry.
    fn narrow(&self, above: Rights, level: u8, value: u64) -> Rights {
        if self.mode == Mode::Pae && level == 3 {
            return above;
        }
        Rights {
            write: above.write && value & RW != 0,
            user: above.user && value & US != 0,
            xd: above.xd || (self.mode != Mode::Bits32 && value & XD != 0),
            key: above.key,
        }
    }

    /// The translation of a leaf entry.
    fn leaf_of(&self, level: u8, value: u64, rights: Rights, accessed: bool, regs: &Regs) -> Leaf {
        let size = self.mode.page_size(level).unwrap_or_default();
        let long = matches!(self.mode, Mode::Level4 | Mode::Level5);
        let key = if long { (value >> 59 & 15) as u8 } else { 0 };
        Leaf {
            gpa: self.frame(size, value),
            size,
            rights: Rights { key, ..rights },
            global: value & G != 0 && regs.cr4().contains(Cr4::PGE),
            dirty: value & D != 0,
            accessed_all: accessed,
        }
    }
}

/// Walks for an access and checks its rights. An address that is not canonical is answered as not
/// present without a read: its #GP or #SS is the caller's.
pub fn walk<W: World>(world: &W, regs: &Regs, access: &Access) -> Walk {
    let mut walk = walk_unchecked(world, regs, access);
    check_rights(&mut walk, regs, access);
    walk
}

/// As [`walk`], from below a paging-structure-cache entry: what lies above is not read again.
pub fn walk_from<W: World>(world: &W, regs: &Regs, access: &Access, start: Start) -> Walk {
    let mut walk = descend(world, regs, access, start);
    check_rights(&mut walk, regs, access);
    walk
}

/// The translation without a check of rights.
///
/// # Errors
///
/// The #PF error code of a walk that met an entry not present or with a reserved bit.
pub fn translate<W: World>(world: &W, regs: &Regs, access: &Access) -> Result<Leaf, u32> {
    walk_unchecked(world, regs, access).result
}

fn check_rights(walk: &mut Walk, regs: &Regs, access: &Access) {
    if let Ok(leaf) = walk.result
        && let Err(code) = check(leaf.rights, access, regs)
    {
        walk.result = Err(code);
    }
}

/// A walk from the top, without a check of rights.
pub fn walk_unchecked<W: World>(world: &W, regs: &Regs, access: &Access) -> Walk {
    let mode = Mode::of(regs);
    let mut walk = Walk { steps: [Step::default(); 5], count: 0, mode, result: Err(0) };
    walk.result = Err(not_present_code(access, regs));
    if !mode.canonical(access.gva) {
        return walk;
    }
    if mode == Mode::Off {
        walk.result = Ok(identity(access));
        return walk;
    }
    let mut start = Start { level: mode.levels(), table: regs.root(), rights: Rights::FULL };
    // Intel keeps the four PDPTEs in registers; an SVM guest with nested paging reads them during
    // the walk (facts A.3). Reserved bits were refused when the registers were loaded.
    let in_memory = world.vendor() == Vendor::Amd && world.mmu() == MmuKind::Tdp;
    if mode == Mode::Pae && !in_memory {
        let value = regs.pdpte[usize::from(mode.index(access.gva, 3)) & 3];
        if value & P == 0 {
            return walk;
        }
        let physical = Format::of(world, regs).physical;
        start.level = 2;
        start.table = Gpa(value & physical & !0xfff);
    }
    descend(world, regs, access, start)
}

/// CR0.PG = 0: linear addresses are physical, with every right.
const fn identity(access: &Access) -> Leaf {
    Leaf {
        gpa: Gpa(access.gva.0 & !0xfff),
        size: PageSize::Size4K,
        rights: Rights::FULL,
        global: false,
        dirty: true,
        accessed_all: true,
    }
}

/// Reads entry after entry from `start` down.
fn descend<W: World>(world: &W, regs: &Regs, access: &Access, start: Start) -> Walk {
    let format = Format::of(world, regs);
    let mode = format.mode;
    let bytes = mode.entry_bytes();
    let mut walk = Walk { steps: [Step::default(); 5], count: 0, mode, result: Err(0) };
    walk.result = Err(not_present_code(access, regs));
    let (mut table, mut rights, mut accessed) = (start.table, start.rights, true);
    for level in (1..=start.level.min(mode.levels())).rev() {
        let gpa = Gpa(table.0 + u64::from(mode.index(access.gva, level)) * u64::from(bytes));
        let value = entry_of(world.read(gpa), gpa, bytes);
        walk.steps[usize::from(walk.count)] = Step { gpa, value, level };
        walk.count += 1;
        if value & P == 0 {
            return walk;
        }
        if value & format.reserved(level, value) != 0 {
            walk.result = Err(reserved_code(access, regs));
            return walk;
        }
        rights = format.narrow(rights, level, value);
        accessed &= value & A != 0 || no_accessed(mode, level);
        if format.leaf(level, value) {
            walk.result = Ok(format.leaf_of(level, value, rights, accessed, regs));
            return walk;
        }
        table = Gpa(value & format.physical & !0xfff);
    }
    walk
}

/// Whether an entry of a page table, of this many bytes, has a bit set that is reserved under these
/// registers (facts A.2).
pub fn reserved_in_page<W: World>(world: &W, regs: &Regs, bytes: u8, value: u64) -> bool {
    let format = Format::of(world, regs);
    format.mode.entry_bytes() == bytes && value & format.reserved(1, value) != 0
}

/// PDPTEs of PAE paging have no A; its place is reserved.
fn no_accessed(mode: Mode, level: u8) -> bool {
    mode == Mode::Pae && level == 3
}

/// The stores by which the walker sets A in every entry it used and, for a write, D in the leaf:
/// only those that change anything. A walk that failed sets nothing here (that it may set A in
/// the entries above is allowed, not required; facts A.6).
pub fn entries_to_mark(walk: &Walk, write: bool) -> impl Iterator<Item = (Gpa, u64)> + use<> {
    let used = if walk.result.is_ok() { usize::from(walk.count) } else { 0 };
    let (steps, mode) = (walk.steps, walk.mode);
    steps.into_iter().take(used).enumerate().filter_map(move |(at, step)| {
        let leaf = at + 1 == used;
        let set = if no_accessed(mode, step.level) { 0 } else { A };
        let set = if leaf && write { set | D } else { set };
        (step.value | set != step.value).then_some((step.gpa, step.value | set))
    })
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
