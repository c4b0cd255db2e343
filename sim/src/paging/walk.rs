//! The guest's page walk, by the present mode (facts A.1, A.2, A.5, A.6).

use tlbscope_trace::addr::{Gpa, PageSize};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::Access;
use tlbscope_trace::regs::{Cr4, Efer, MmuKind, Regs, Vendor};

use crate::arch::access::{self, Rights};
use crate::arch::mode::Mode;

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// One entry that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub gpa: Gpa,
    /// What.
    pub value: u64,
    /// 1 = PTE. PDPTE registers are no step: they are not read from memory.
    pub level: u8,
}

/// What a walk that met no fault found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Base of the page.
    pub gpa: Gpa,
    /// Its size.
    pub size: PageSize,
    /// Rights over the path.
    pub rights: Rights,
    /// The leaf's G with CR4.PGE.
    pub global: bool,
    /// The leaf's D.
    pub dirty: bool,
    /// A is set in every entry used.
    pub accessed: bool,
}

/// A walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The entries read, top down.
    pub steps: [Step; 5],
    /// How many.
    pub count: u8,
    /// The first step is a PAE PDPTE, which has no accessed bit (facts A.2).
    pub pdpte: bool,
    /// What was found, or the #PF error code. Rights are checked.
    pub result: Result<Leaf, u32>,
}

/// Walks and checks rights.
#[must_use]
pub fn walk<W: World>(world: &W, regs: &Regs, access: &Access) -> Walk {
    let mut walk = translate(world, regs, access);
    if let Ok(leaf) = walk.result
        && let Err(code) = access::check(leaf.rights, access, regs)
        && regs.paging()
    {
        walk.result = Err(code);
    }
    walk
}

/// Walks without checking rights: what a speculative fill would cache.
#[must_use]
pub fn translate<W: World>(world: &W, regs: &Regs, access: &Access) -> Walk {
    let mode = Mode::of(regs);
    let mut walk = Walk { steps: [Step::default(); 5], count: 0, pdpte: false, result: Err(0) };
    if mode == Mode::Off {
        let gpa = Gpa(access.gva.0 & !0xfff);
        let rights = Rights { write: true, user: true, xd: false, key: 0 };
        let (size, global) = (PageSize::Size4K, false);
        walk.result = Ok(Leaf { gpa, size, rights, global, dirty: true, accessed: true });
        return walk;
    }
    let mut rights = Rights { write: true, user: true, xd: false, key: 0 };
    let mut table = regs.root();
    let mut accessed = true;
    for level in (1..=mode.levels()).rev() {
        let pdpte = mode == Mode::Pae && level == 3;
        let value = read(world, regs, mode, table, access, level, &mut walk);
        if value & P == 0 {
            walk.result = Err(access::not_present_code(access, regs));
            return walk;
        }
        if reserved(world, regs, mode, level, value) {
            walk.result = Err(access::reserved_code(access, regs));
            return walk;
        }
        if pdpte {
            table = Gpa(value & FRAME);
            continue;
        }
        accessed &= value & A != 0;
        rights.write &= value & RW != 0;
        rights.user &= value & US != 0;
        rights.xd |= mode != Mode::Bits32 && regs.efer().contains(Efer::NXE) && value & XD != 0;
        if let Some(size) = leaf_size(regs, mode, level, value) {
            rights.key = if mode == Mode::Bits32 { 0 } else { (value >> 59 & 15) as u8 };
            let global = value & G != 0 && regs.cr4().contains(Cr4::PGE);
            let gpa = Gpa(value & FRAME & !(size.bytes() - 1));
            let dirty = value & D != 0;
            walk.result = Ok(Leaf { gpa, size, rights, global, dirty, accessed });
            return walk;
        }
        table = Gpa(value & FRAME);
    }
    walk
}

/// Reads an entry and records the step. Intel's PDPTEs are registers.
fn read<W: World>(
    world: &W,
    regs: &Regs,
    mode: Mode,
    table: Gpa,
    access: &Access,
    level: u8,
    walk: &mut Walk,
) -> u64 {
    let index = mode.index(access.gva, level);
    let native_amd = world.vendor() == Vendor::Amd && world.mmu() == MmuKind::Tdp;
    if mode == Mode::Pae && level == 3 && !native_amd {
        return regs.pdpte[usize::from(index) & 3];
    }
    let bytes = u64::from(mode.entry_bytes());
    let gpa = Gpa(table.0 + u64::from(index) * bytes);
    let word = world.read(gpa);
    let value = match bytes {
        4 if gpa.0 & 4 != 0 => word >> 32,
        4 => word & 0xffff_ffff,
        _ => word,
    };
    walk.pdpte |= mode == Mode::Pae && level == 3;
    walk.steps[usize::from(walk.count)] = Step { gpa, value, level };
    walk.count += 1;
    value
}

/// The size of the page if the entry is a leaf.
fn leaf_size(regs: &Regs, mode: Mode, level: u8, value: u64) -> Option<PageSize> {
    let large = value & PS != 0 && (mode != Mode::Bits32 || regs.cr4().contains(Cr4::PSE));
    (level == 1 || large).then(|| mode.page_size(level)).flatten()
}

/// Reserved bits of a present entry (facts A.2).
fn reserved<W: World>(world: &W, regs: &Regs, mode: Mode, level: u8, value: u64) -> bool {
    let above = !0u64 << world.maxphyaddr();
    let leaf = leaf_size(regs, mode, level, value);
    if mode == Mode::Bits32 {
        // With PSE-36 a 4 MiB PDE keeps PA 39:32 in 20:13; wider frames are not modelled.
        return leaf == Some(PageSize::Size4M) && value & 0x003f_e000 != 0;
    }
    if mode == Mode::Pae && level == 3 {
        return value & (0b110 | 0x1e0 | above) != 0;
    }
    let nxe = regs.efer().contains(Efer::NXE);
    let top = if mode == Mode::Pae { above & !XD } else { above & 0x000f_ffff_ffff_ffff };
    let no_leaf_here = level >= 4 || level == 3 && !world.gbpages();
    value & top != 0
        || value & XD != 0 && !nxe
        || level > 1 && value & PS != 0 && no_leaf_here
        || leaf
            .is_some_and(|size| level > 1 && value & (size.bytes() - 1) & FRAME & !(1 << 12) != 0)
        || level >= 4 && value & G != 0 && world.vendor() == Vendor::Amd
}

/// The entries whose accessed or dirty bits the walk sets, with their new values.
pub fn entries_to_mark(walk: &Walk, write: bool) -> impl Iterator<Item = (Gpa, u64)> + '_ {
    let count = usize::from(walk.count);
    let skip = usize::from(walk.pdpte);
    walk.steps[..count].iter().enumerate().skip(skip).filter_map(move |(n, step)| {
        let leaf = n + 1 == count;
        let value = step.value | A | if leaf && write { D } else { 0 };
        (value != step.value).then_some((step.gpa, value))
    })
}
