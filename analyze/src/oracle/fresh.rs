//! A fresh walk: what the guest's own tables give now, whatever is cached (facts A.1 to A.5).

use tlbscope_trace::act::{Copied, Outcome};
use tlbscope_trace::addr::{Gpa, Gva, Hpa};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const XD: u64 = 1 << 63;
/// Bits 51:12.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// A walk that reached a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// The guest-physical address of the byte.
    pub gpa: Gpa,
    /// R/W over the path.
    pub write: bool,
    /// U/S over the path.
    pub user: bool,
    /// XD over the path.
    pub xd: bool,
    /// The leaf's D.
    pub dirty: bool,
    /// Whether A is set in every entry used.
    pub accessed: bool,
    /// The protection key.
    pub key: u8,
    /// log2 of the page's bytes.
    pub shift: u32,
    /// Where the entries were read, top first; 0 where there are fewer levels.
    pub entries: [Gpa; 5],
}

/// A walk that was stopped: bits 0 (P) and 3 (RSVD) of the error code, and what it had read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// P and RSVD of the error code.
    pub code: u32,
    /// Where the entries were read.
    pub entries: [Gpa; 5],
}

impl Fresh {
    /// Where the entries above the leaf were read.
    pub fn upper(&self) -> &[Gpa] {
        let read = self.entries.iter().rposition(|at| at.0 != 0).unwrap_or(0);
        &self.entries[..read]
    }
}

/// What an access comes to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// The address or the fault.
    pub outcome: Outcome,
    /// The translation; empty if the walk was stopped.
    pub copied: Copied,
    /// Whether the walk would set an accessed or dirty bit in memory.
    pub sets_ad: bool,
    /// Where the entries were read.
    pub entries: [Gpa; 5],
}

/// Walks from the registers through `read`, which gives the 8 aligned bytes at an address.
pub fn walk<W: World>(
    world: &W,
    regs: &Regs,
    gva: Gva,
    read: impl Fn(Gpa) -> u64,
) -> Result<Walked, Stopped> {
    let mut walked =
        Walked { write: true, user: true, accessed: true, shift: 12, ..Walked::default() };
    if !regs.paging() {
        walked.gpa = Gpa(gva.0 & 0xffff_ffff);
        walked.dirty = true;
        return Ok(walked);
    }
    let long = regs.efer().contains(Efer::LMA);
    let pae = long || regs.cr4().contains(Cr4::PAE);
    let (mut level, width) = match (long, pae) {
        (true, _) => (4 + u32::from(regs.cr4().contains(Cr4::LA57)), 9),
        (false, true) => (3, 9),
        (false, false) => (2, 10),
    };
    let mut table = regs.root().0;
    let mut used = 0;
    loop {
        let shift = 12 + (level - 1) * width;
        let pdpte = pae && !long && level == 3;
        let index = if pdpte { gva.0 >> 30 & 3 } else { gva.0 >> shift & ((1 << width) - 1) };
        let (at, entry) = if pdpte && registers(world) {
            (Gpa(0), regs.pdpte[index as usize])
        } else if pae {
            let at = Gpa(table + index * 8);
            (at, read(at))
        } else {
            let at = Gpa(table + index * 4);
            (at, read(Gpa(at.0 & !7)) >> ((at.0 & 4) * 8) & 0xffff_ffff)
        };
        walked.entries[used] = at;
        used += 1;
        if entry & PRESENT == 0 {
            return Err(Stopped { code: 0, entries: walked.entries });
        }
        if entry & reserved(world, regs, level, entry, pdpte, long, pae) != 0 {
            return Err(Stopped { code: 0b1001, entries: walked.entries });
        }
        if pdpte {
            table = entry & FRAME;
            level = 2;
            continue;
        }
        walked.write &= entry & WRITE != 0;
        walked.user &= entry & USER != 0;
        walked.xd |= pae && entry & XD != 0 && regs.efer().contains(Efer::NXE);
        walked.accessed &= entry & ACCESSED != 0;
        let large = level > 1 && entry & LARGE != 0 && (pae || regs.cr4().contains(Cr4::PSE));
        if level == 1 || large {
            let mut frame = if pae { entry & FRAME } else { entry & 0xffff_f000 };
            if large && !pae {
                frame = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
            }
            let page = (1u64 << shift) - 1;
            walked.gpa = Gpa(frame & !page | gva.0 & page);
            walked.dirty = entry & DIRTY != 0;
            walked.key = if long { (entry >> 59 & 15) as u8 } else { 0 };
            walked.shift = shift;
            return Ok(walked);
        }
        table = if pae { entry & FRAME } else { entry & 0xffff_f000 };
        level -= 1;
    }
}

/// Whether PAE paging starts from the PDPTE registers: always on Intel; on AMD an SVM guest with
/// nested paging reads them from memory (facts A.3).
fn registers<W: World>(world: &W) -> bool {
    world.vendor() == Vendor::Intel || world.mmu() == MmuKind::Shadow
}

/// The bits of a present entry that must be 0 (facts A.2).
fn reserved<W: World>(
    world: &W,
    regs: &Regs,
    level: u32,
    entry: u64,
    pdpte: bool,
    long: bool,
    pae: bool,
) -> u64 {
    let width = world.maxphyaddr().clamp(32, 52);
    if !pae {
        let large = level == 2 && entry & LARGE != 0 && regs.cr4().contains(Cr4::PSE);
        let top = width.min(40) - 19;
        return if large { 0x003f_ffff & !((1 << top) - 1) } else { 0 };
    }
    let above = FRAME & !((1u64 << width) - 1);
    if pdpte {
        // The registers were checked when they were loaded.
        return if registers(world) { 0 } else { above | 0x7ff << 52 | 1 << 63 | 0x1e6 };
    }
    let mut bits = above | if long { 0 } else { 0x7ff << 52 };
    if !regs.efer().contains(Efer::NXE) {
        bits |= XD;
    }
    match level {
        4 | 5 => {
            bits |= LARGE;
            if matches!(world.vendor(), Vendor::Amd) {
                bits |= 1 << 8;
            }
        }
        3 if !world.gbpages() => bits |= LARGE,
        3 if entry & LARGE != 0 => bits |= 0x3fff_e000,
        2 if entry & LARGE != 0 => bits |= 0x001f_e000,
        _ => {}
    }
    bits
}

/// The error code of an access to a translation with these rights under these registers, or `None`
/// if it is permitted (facts A.4, A.5).
#[must_use]
pub fn refused(
    regs: &Regs,
    access: &Access,
    write: bool,
    user: bool,
    xd: bool,
    key: u8,
) -> Option<u32> {
    if !regs.paging() {
        return None;
    }
    let wp = regs.cr0().contains(Cr0::WP);
    let cr4 = regs.cr4();
    let rights = match (access.kind, access.user) {
        (AccessKind::Exec, true) => !user || xd,
        (AccessKind::Exec, false) => user && cr4.contains(Cr4::SMEP) || xd,
        (kind, true) => !user || kind == AccessKind::Write && !write,
        (kind, false) => {
            user && cr4.contains(Cr4::SMAP) && !access.ac
                || kind == AccessKind::Write && !write && wp
        }
    };
    let keyed = user
        && cr4.contains(Cr4::PKE)
        && regs.efer().contains(Efer::LMA)
        && access.kind != AccessKind::Exec
        && {
            let bits = regs.pkru >> (2 * u32::from(key)) & 3;
            let write = access.kind == AccessKind::Write && (access.user || wp);
            bits & 1 != 0 || bits & 2 != 0 && write
        };
    (rights || keyed).then(|| 1 | code(regs, access) | u32::from(keyed) << 5)
}

/// The bits of the error code that the access alone decides: W/R, U/S, I/D.
#[must_use]
pub fn code(regs: &Regs, access: &Access) -> u32 {
    let nx = regs.cr4().contains(Cr4::PAE) && regs.efer().contains(Efer::NXE);
    let fetch = access.kind == AccessKind::Exec && (nx || regs.cr4().contains(Cr4::SMEP));
    u32::from(access.kind == AccessKind::Write) << 1
        | u32::from(access.user) << 2
        | u32::from(fetch) << 4
}

/// What `access` comes to by a walk of guest memory as it is now.
pub fn fresh<W: World>(world: &W, regs: &Regs, access: &Access) -> Fresh {
    let base = Copied::default();
    match walk(world, regs, access.gva, |at| world.read(at)) {
        Err(stopped) => Fresh {
            outcome: Outcome::Fault(stopped.code | code(regs, access)),
            copied: base,
            sets_ad: false,
            entries: stopped.entries,
        },
        Ok(w) => {
            let fault = refused(regs, access, w.write, w.user, w.xd, w.key);
            let page = Gpa(w.gpa.0 & !0xfff);
            let write = access.kind == AccessKind::Write;
            Fresh {
                outcome: fault.map_or(Outcome::Gpa(w.gpa), Outcome::Fault),
                copied: Copied {
                    gpa: page,
                    hpa: world.backing(page).unwrap_or(Hpa(0)),
                    write: w.write,
                    user: w.user,
                    xd: w.xd,
                    dirty: w.dirty,
                    key: w.key,
                },
                sets_ad: regs.paging() && fault.is_none() && (!w.accessed || write && !w.dirty),
                entries: w.entries,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM vol. 3, 4.6.2: WD refuses data writes, of a supervisor only with CR0.WP = 1; AD refuses both;
    /// fetches and supervisor pages know no key. Error codes: P, W/R, U/S and PK are bits 0, 1, 2, 5.
    #[test]
    fn protection_keys() {
        let code = |kind, user, wp: bool, pkru, page_user| {
            let mut regs = Regs { pkru, ..Regs::default() };
            regs.cr0 = (Cr0::PE | Cr0::PG).bits() | if wp { Cr0::WP.bits() } else { 0 };
            regs.cr4 = (Cr4::PAE | Cr4::PKE).bits();
            regs.efer = (Efer::LME | Efer::LMA).bits();
            let access = Access { gva: Gva(0x7000), kind, user, ac: false };
            refused(&regs, &access, true, page_user, false, 1)
        };
        let (read, write, exec) = (AccessKind::Read, AccessKind::Write, AccessKind::Exec);
        // Key 1: AD is bit 2, WD bit 3.
        let (ad, wd) = (0b0100, 0b1000);
        assert_eq!(code(read, true, true, wd, true), None);
        assert_eq!(code(write, true, true, wd, true), Some(0x27));
        assert_eq!(code(write, true, false, wd, true), Some(0x27), "WP is a supervisor's");
        assert_eq!(code(write, false, true, wd, true), Some(0x23));
        assert_eq!(code(write, false, false, wd, true), None);
        assert_eq!(code(read, true, true, ad, true), Some(0x25));
        assert_eq!(code(read, false, false, ad, true), Some(0x21));
        assert_eq!(code(exec, true, true, ad, true), None);
        assert_eq!(code(write, false, true, wd, false), None);
        assert_eq!(code(write, true, true, wd << 2, true), None, "another key's");
    }
}
