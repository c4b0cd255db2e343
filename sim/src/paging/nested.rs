//! L1's nested tables (EPT, NPT) as L1 wrote them: from what L2 takes for physical to L1's
//! guest-physical memory, and the memory of L2 as a [`World`] of its own.
//!
//! Entries of every [`Format`] are read as ordinary 4-level entries, so that one walker serves all.
//! Left out: memory types, execute-only entries (not enumerated to L1: they are misconfigured and
//! read as not present) and accessed and dirty bits, which count as set.

use tlbscope_trace::addr::{Gpa, Gva, Hpa, VcpuId};
use tlbscope_trace::nested::{Format, Tables};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

use super::walk::{self, Walk};
use crate::arch::access::Rights;

const P: u64 = 1;
const US: u64 = 1 << 2;
const AD: u64 = 3 << 5;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// A nested entry as an ordinary one; 0: nothing can be translated through it.
#[must_use]
pub const fn ordinary(format: Format, entry: u64) -> u64 {
    if entry & P == 0 {
        return 0;
    }
    match format {
        Format::Ept => {
            let xd = if entry & 1 << 2 == 0 { XD } else { 0 };
            entry & (FRAME | PS | 3) | US | AD | xd
        }
        Format::Plain => entry & !G | US | AD,
        Format::Npt => entry & !G | AD,
    }
}

/// The registers of a walk of nested tables.
#[must_use]
pub fn registers(tables: &Tables) -> Regs {
    Regs {
        cr0: (Cr0::PE | Cr0::PG | Cr0::WP).bits(),
        cr3: tables.root.0,
        cr4: Cr4::PAE.bits(),
        efer: (Efer::LME | Efer::LMA | Efer::NXE).bits(),
        ..Regs::default()
    }
}

/// Guest memory with the entries of nested tables made ordinary ones.
struct Ordinary<'a, W> {
    world: &'a W,
    format: Format,
}

macro_rules! same_machine {
    () => {
        fn vendor(&self) -> Vendor {
            self.world.vendor()
        }

        fn mmu(&self) -> MmuKind {
            self.world.mmu()
        }

        fn maxphyaddr(&self) -> u32 {
            self.world.maxphyaddr()
        }

        fn gbpages(&self) -> bool {
            self.world.gbpages()
        }

        fn regs(&self, vcpu: VcpuId) -> &Regs {
            self.world.regs(vcpu)
        }

        fn memory_bytes(&self) -> u64 {
            self.world.memory_bytes()
        }
    };
}

impl<W: World> World for Ordinary<'_, W> {
    same_machine!();

    fn read(&self, gpa: Gpa) -> u64 {
        ordinary(self.format, self.world.read(gpa))
    }

    fn backing(&self, gpa: Gpa) -> Option<Hpa> {
        self.world.backing(gpa)
    }
}

/// What L2's physical address came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// L1's guest-physical address of the byte.
    pub gpa: Gpa,
    /// The rights over the path.
    pub rights: Rights,
}

/// Walks L1's nested tables for an access of L2 to `at`.
pub fn walk_tables<W: World>(world: &W, tables: &Tables, at: Gpa, kind: AccessKind) -> Walk {
    let ordinary = Ordinary { world, format: tables.format };
    let access = Access { gva: Gva(at.0), kind, user: true, ac: true };
    walk::walk(&ordinary, &registers(tables), &access)
}

/// Where an access of L2 to `at` goes in L1's memory; `None`: L1 gets an EPT violation or #NPF.
pub fn translate<W: World>(
    world: &W,
    tables: &Tables,
    at: Gpa,
    kind: AccessKind,
) -> Option<Mapped> {
    let leaf = walk_tables(world, tables, at, kind).result.ok()?;
    let within = leaf.size.bytes() - 1;
    Some(Mapped { gpa: Gpa(leaf.gpa.0 & !within | at.0 & within), rights: leaf.rights })
}

/// What L2 takes for physical memory.
pub struct L2Memory<'a, W> {
    world: &'a W,
    tables: Tables,
}

impl<'a, W: World> L2Memory<'a, W> {
    /// The memory behind these tables.
    pub const fn new(world: &'a W, tables: Tables) -> Self {
        Self { world, tables }
    }
}

impl<W: World> World for L2Memory<'_, W> {
    same_machine!();

    fn read(&self, gpa: Gpa) -> u64 {
        let at = translate(self.world, &self.tables, gpa, AccessKind::Read);
        at.map_or(0, |at| self.world.read(at.gpa))
    }

    fn backing(&self, gpa: Gpa) -> Option<Hpa> {
        let at = translate(self.world, &self.tables, gpa, AccessKind::Read)?;
        self.world.backing(at.gpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ept_bits_become_ordinary_ones() {
        let f = Format::Ept;
        // R W X, write-back (6 << 3), frame 0x5000.
        assert_eq!(ordinary(f, 0x5037), 0x5000 | 0x67);
        // R alone: no write, no execute.
        assert_eq!(ordinary(f, 0x5031), 0x5000 | 0x65 | XD);
        // Execute-only and write-only: not offered, nothing is translated.
        assert_eq!((ordinary(f, 0x5004), ordinary(f, 0x5002)), (0, 0));
        // A 2 MiB leaf keeps bit 7; bit 8 (accessed) is no global bit.
        assert_eq!(ordinary(f, 0x20_01b7), 0x20_0000 | 0xe7);
    }

    #[test]
    fn only_npt_minds_the_user_bit() {
        assert_eq!(ordinary(Format::Plain, 0x5003), 0x5067);
        assert_eq!(ordinary(Format::Npt, 0x5003), 0x5063);
    }
}
