//! The slow oracle's own walker, driven by a table of levels.

use tlbscope_trace::act::Outcome;
use tlbscope_trace::addr::Gpa;
use tlbscope_trace::observe::World;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

/// One level: lowest bit and number of the address bits that index it, and whether it may map a
/// large page.
type Level = (u32, u32, bool);

const LEGACY: &[Level] = &[(22, 10, true), (12, 10, false)];
const PAE: &[Level] = &[(30, 2, false), (21, 9, true), (12, 9, false)];
const FOUR: &[Level] = &[(39, 9, false), (30, 9, true), (21, 9, true), (12, 9, false)];
const FIVE: &[Level] =
    &[(48, 9, false), (39, 9, false), (30, 9, true), (21, 9, true), (12, 9, false)];

/// A page as the tables map it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub gpa: u64,
    pub writable: bool,
    pub user: bool,
    pub execute: bool,
    pub dirty: bool,
    pub accessed: bool,
    pub key: u8,
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

/// Translates, or gives bits 0 and 3 of the error code.
pub(super) fn translate<W: World>(world: &W, regs: &Regs, gva: u64) -> Result<Page, u32> {
    let mut page = Page {
        gpa: gva & 0xffff_ffff,
        writable: true,
        user: true,
        execute: true,
        dirty: true,
        accessed: true,
        key: 0,
    };
    if !regs.paging() {
        return Ok(page);
    }
    let cr4 = regs.cr4();
    let long = regs.efer().contains(Efer::LMA);
    let levels = match (long, cr4.contains(Cr4::PAE), cr4.contains(Cr4::LA57)) {
        (true, _, true) => FIVE,
        (true, _, false) => FOUR,
        (false, true, _) => PAE,
        (false, false, _) => LEGACY,
    };
    let wide = levels.len() > 2;
    let mut table = regs.root().0;
    for &(low, bits, large_ok) in levels {
        let index = gva >> low & ((1 << bits) - 1);
        let top_of_pae = levels.len() == 3 && low == 30;
        // Memory is read where nothing but an SVM guest's own walk can: with nested paging.
        let nested = world.vendor() == Vendor::Amd && world.mmu() == MmuKind::Tdp;
        let entry = if top_of_pae && !nested {
            regs.pdpte[index as usize]
        } else if wide {
            world.read(Gpa(table + 8 * index))
        } else {
            let pair = world.read(Gpa((table + 4 * index) & !7));
            if index % 2 == 1 { pair >> 32 } else { pair & 0xffff_ffff }
        };
        if !bit(entry, 0) {
            return Err(0);
        }
        let large = large_ok && bit(entry, 7) && (wide || cr4.contains(Cr4::PSE));
        if must_be_zero(world, regs, levels.len(), low, large, entry) {
            return Err(9);
        }
        if !top_of_pae {
            page.writable &= bit(entry, 1);
            page.user &= bit(entry, 2);
            page.accessed &= bit(entry, 5);
            page.execute &= !(wide && bit(entry, 63) && regs.efer().contains(Efer::NXE));
        }
        let mut frame = entry & if wide { 0x000f_ffff_ffff_f000 } else { 0xffff_f000 };
        if large || low == 12 {
            if large && !wide {
                frame = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
            }
            let offset = gva & ((1 << low) - 1);
            page.gpa = (frame >> low << low) + offset;
            page.dirty = bit(entry, 6);
            page.key = if long { (entry >> 59) as u8 & 15 } else { 0 };
            return Ok(page);
        }
        table = frame;
    }
    Err(0)
}

/// Whether a reserved bit of a present entry is set.
fn must_be_zero<W: World>(
    world: &W,
    regs: &Regs,
    levels: usize,
    low: u32,
    large: bool,
    entry: u64,
) -> bool {
    let width = world.maxphyaddr().clamp(32, 52);
    let any = |from: u32, to: u32| from < to && entry >> from & ((1u64 << (to - from)) - 1) != 0;
    if levels == 2 {
        return large && any(width.min(40) - 19, 22);
    }
    let amd = world.vendor() == Vendor::Amd;
    if levels == 3 && low == 30 {
        return amd && (any(1, 3) || any(5, 9) || any(width, 64));
    }
    any(width, 52)
        || levels == 3 && any(52, 63)
        || bit(entry, 63) && !regs.efer().contains(Efer::NXE)
        || low >= 39 && (bit(entry, 7) || amd && bit(entry, 8))
        || low == 30 && bit(entry, 7) && !world.gbpages()
        || large && any(13, low)
}

/// What the access comes to by that translation.
pub(super) fn outcome(regs: &Regs, access: &Access, page: &Result<Page, u32>) -> Outcome {
    let cr4 = regs.cr4();
    let wp = regs.cr0().contains(Cr0::WP);
    let write = access.kind == AccessKind::Write;
    let fetch = access.kind == AccessKind::Exec;
    let nx = cr4.contains(Cr4::PAE) && regs.efer().contains(Efer::NXE);
    let mut code = 0;
    if write {
        code |= 2;
    }
    if access.user {
        code |= 4;
    }
    if fetch && (nx || cr4.contains(Cr4::SMEP)) {
        code |= 16;
    }
    let page = match page {
        Ok(page) => page,
        Err(bits) => return Outcome::Fault(code | bits),
    };
    if !regs.paging() {
        return Outcome::Gpa(Gpa(page.gpa));
    }
    let mut bad = fetch && !page.execute || access.user && !page.user;
    if !access.user && page.user {
        bad |= fetch && cr4.contains(Cr4::SMEP);
        bad |= !fetch && cr4.contains(Cr4::SMAP) && !access.ac;
    }
    bad |= write && !page.writable && (access.user || wp);
    let rights = regs.pkru >> (u32::from(page.key) * 2);
    let keys = cr4.contains(Cr4::PKE) && regs.efer().contains(Efer::LMA) && page.user && !fetch;
    let denied = keys && (rights & 1 == 1 || rights & 2 == 2 && write && (access.user || wp));
    if denied {
        code |= 32;
    }
    if bad || denied { Outcome::Fault(code | 1) } else { Outcome::Gpa(Gpa(page.gpa)) }
}
