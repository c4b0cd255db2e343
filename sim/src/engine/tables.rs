//! The guest edits its page tables: `map`, `unmap`, `protect`, `table`, `link`, `store` are plain
//! stores, which exit only where the hypervisor write-protects the frame.

use tlbscope_trace::addr::{Gpa, Gva, PAGE_BYTES, PageSize};
use tlbscope_trace::nested::is_eptp;
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Perms;
use tlbscope_trace::regs::{Efer, Regs};

use super::{Machine, Refused};
use crate::arch::mode::Mode;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const XD: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

fn out_of_reach(op: &'static str) -> Refused {
    let why = "L1's nested tables do not map L2's page tables: L1 has to map them first".into();
    Refused { op, why }
}

/// How the tables are written that an operation edits.
#[derive(Clone, Copy)]
struct Edited {
    mode: Mode,
    root: Option<Gpa>,
    /// EPT entries, in 4 levels whatever mode L1 itself is in.
    ept: bool,
}

impl Machine {
    /// A store of the guest to one page-table entry.
    pub(super) fn store<O: Observer>(&mut self, v: usize, gpa: Gpa, value: u64, o: &mut O) {
        let bytes = Mode::of(&self.vcpus[v].regs).entry_bytes().max(4);
        let bytes = if Mode::of(&self.vcpus[v].regs) == Mode::Off { 8 } else { bytes };
        self.store_entry(v, gpa, bytes, value, o);
    }

    fn store_entry<O: Observer>(&mut self, v: usize, gpa: Gpa, bytes: u8, value: u64, o: &mut O) {
        // L2 stores to what it takes for physical memory.
        let Some(gpa) = self.l1_gpa(v, gpa) else { return };
        let old = self.memory.read_entry(gpa, bytes);
        let at = self.at_vcpu(v);
        let protected = self.is_protected(gpa);
        if !protected {
            o.store(&at, gpa, bytes, old, value, self);
            self.memory.write_entry(gpa, bytes, value);
            return;
        }
        self.exit(v, None, o);
        let guest_stores = self.table_write_fault(gpa, o);
        o.store(&at, gpa, bytes, old, value, self);
        self.memory.write_entry(gpa, bytes, value);
        if !guest_stores {
            self.pte_write(gpa, o);
            if bytes == 8 {
                // The upper half is an entry of its own where the frame is a 4-byte table.
                self.pte_write(Gpa(gpa.0 + 4), o);
            }
        }
    }

    /// Which tables `root=` means: those of the present mode, or EPT entries if it is written as an
    /// EPTP (see [`tlbscope_trace::nested::Format`]).
    fn edited(&self, v: usize, root: Option<Gpa>, op: &'static str) -> Result<Edited, Refused> {
        if root.is_some_and(|root| is_eptp(root.0)) {
            let root = root.map(|root| Gpa(root.0 & FRAME));
            return Ok(Edited { mode: Mode::Level4, root, ept: true });
        }
        match Mode::of(&self.vcpus[v].regs) {
            Mode::Off => Err(Refused { op, why: "paging is off, there are no tables".into() }),
            mode => Ok(Edited { mode, root, ept: false }),
        }
    }

    /// The bits of a leaf of these tables; in an EPT write-back.
    fn bits_of(&self, v: usize, tables: Edited, perms: Perms) -> u64 {
        if !tables.ept {
            return Self::leaf_bits(&self.vcpus[v].regs, tables.mode, perms);
        }
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(perms.read, 1) | bit(perms.write, 1 << 1) | bit(perms.exec, 1 << 2) | 6 << 3
    }

    fn leaf_bits(regs: &Regs, mode: Mode, perms: Perms) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let nx = regs.efer().contains(Efer::NXE) && mode != Mode::Bits32;
        bit(perms.read, PRESENT)
            | bit(perms.write, WRITE)
            | bit(perms.user, USER)
            | bit(perms.global, GLOBAL)
            | bit(!perms.exec && nx, XD)
    }

    /// Address of the entry of `level` on the path to `gva`; tables above it are allocated if
    /// `make`, else a missing one ends the search.
    #[expect(clippy::too_many_arguments, reason = "one walk down a table, in one place")]
    fn entry_of<O: Observer>(
        &mut self,
        v: usize,
        mode: Mode,
        gva: Gva,
        level: u8,
        root: Option<Gpa>,
        make: bool,
        o: &mut O,
    ) -> Option<Gpa> {
        let (bytes, nested) = (mode.entry_bytes(), self.tables12(v).is_some());
        let mut table = root.unwrap_or_else(|| self.vcpus[v].regs.root());
        for (at, offset) in mode.path(gva, level) {
            let entry = Gpa(table.0 + offset);
            // L2's tables lie where L1's nested tables put them.
            let place = if nested { self.l1_gpa(v, entry)? } else { entry };
            if at == level {
                return Some(entry);
            }
            let value = self.memory.read_entry(place, bytes);
            let is_table = value & PRESENT != 0 && !(at <= 3 && at > 1 && value & LARGE != 0);
            if is_table {
                table = Gpa(value & FRAME);
                continue;
            }
            if !make {
                return None;
            }
            table = self.memory.allocate_table(at - 1);
            let pdpte = mode == Mode::Pae && at == 3;
            let rights = if pdpte { PRESENT } else { PRESENT | WRITE | USER };
            self.store_entry(v, entry, bytes, table.0 | rights, o);
            if pdpte {
                self.pdpte_made(v, root);
            }
        }
        None
    }

    /// A scenario's `map` may need a PDPTE that the registers do not have: as the operating system
    /// would, it is reloaded at once where nothing was present before.
    fn pdpte_made(&mut self, v: usize, root: Option<Gpa>) {
        let table = self.vcpus[v].regs.root();
        if root.is_some_and(|root| root != table) {
            return;
        }
        for n in 0..4 {
            let value = self.memory.read(Gpa(table.0 + 8 * n as u64));
            let vcpu = &mut self.vcpus[v];
            for copy in [&mut vcpu.regs.pdpte, &mut vcpu.kvm_pdpte, &mut vcpu.vmcs_pdpte] {
                if copy[n] & PRESENT == 0 {
                    copy[n] = value;
                }
            }
        }
    }

    /// `map`.
    #[expect(clippy::too_many_arguments, reason = "the operands of one scenario line")]
    pub(super) fn map<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        gpa: Gpa,
        size: PageSize,
        perms: Perms,
        root: Option<Gpa>,
        o: &mut O,
    ) -> Result<(), Refused> {
        let tables = self.edited(v, root, "map")?;
        let Edited { mode, root, .. } = tables;
        let fits = |level: u8| mode.page_size(level) == Some(size);
        let Some(level) = (1..=3).find(|level| fits(*level)) else {
            let why = format!("there are no {size} pages in this paging mode");
            return Err(Refused { op: "map", why });
        };
        if !gpa.0.is_multiple_of(size.bytes()) || !gva.0.is_multiple_of(size.bytes()) {
            let why = format!("{gva} and {gpa} must be multiples of {size}");
            return Err(Refused { op: "map", why });
        }
        let bits = self.bits_of(v, tables, perms);
        let large = if level > 1 { LARGE } else { 0 };
        let Some(entry) = self.entry_of(v, mode, gva, level, root, true, o) else {
            return Err(out_of_reach("map"));
        };
        self.store_entry(v, entry, mode.entry_bytes(), gpa.0 | bits | large, o);
        Ok(())
    }

    /// The present leaf that maps `gva`: its address, value and level.
    fn leaf_entry(
        &self,
        v: usize,
        mode: Mode,
        gva: Gva,
        root: Option<Gpa>,
    ) -> Option<(Gpa, u64, u8)> {
        let (bytes, nested) = (mode.entry_bytes(), self.tables12(v).is_some());
        let mut table = root.unwrap_or_else(|| self.vcpus[v].regs.root());
        for (level, offset) in mode.path(gva, 1) {
            let entry = Gpa(table.0 + offset);
            let place = if nested { self.l1_gpa(v, entry)? } else { entry };
            let value = self.memory.read_entry(place, bytes);
            let leaf = level == 1 || (level <= 3 && value & PRESENT != 0 && value & LARGE != 0);
            if leaf {
                return Some((entry, value, level));
            }
            if value & PRESENT == 0 {
                return None;
            }
            table = Gpa(value & FRAME);
        }
        None
    }

    /// `unmap` (no rights) and `protect`.
    pub(super) fn protect<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        perms: Option<Perms>,
        root: Option<Gpa>,
        o: &mut O,
    ) -> Result<(), Refused> {
        let op = if perms.is_some() { "protect" } else { "unmap" };
        let tables = self.edited(v, root, op)?;
        let Edited { mode, root, .. } = tables;
        let Some((entry, value, level)) = self.leaf_entry(v, mode, gva, root) else {
            return Err(Refused { op, why: format!("nothing maps {gva}") });
        };
        let large = if level > 1 { LARGE } else { 0 };
        let new = match perms {
            None => 0,
            // Accessed and dirty stay as they are: rights are rewritten, not the history.
            Some(p) => {
                let kept = value & (FRAME | 1 << 5 | 1 << 6) | large;
                kept | self.bits_of(v, tables, p)
            }
        };
        self.store_entry(v, entry, mode.entry_bytes(), new, o);
        Ok(())
    }

    /// `link`.
    #[expect(clippy::too_many_arguments, reason = "the operands of one scenario line")]
    pub(super) fn link<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        level: u8,
        table: Gpa,
        perms: Perms,
        root: Option<Gpa>,
        o: &mut O,
    ) -> Result<(), Refused> {
        let tables = self.edited(v, root, "link")?;
        let Edited { mode, root, .. } = tables;
        if !(2..=mode.levels()).contains(&level) || !table.0.is_multiple_of(PAGE_BYTES) {
            let why = format!("level is 2 to {} and a table is 4 KiB aligned", mode.levels());
            return Err(Refused { op: "link", why });
        }
        let pdpte = mode == Mode::Pae && level == 3;
        let memory_type = if tables.ept { 7 << 3 } else { 0 };
        let bits = self.bits_of(v, tables, perms) & !GLOBAL & !memory_type;
        let bits = if pdpte { bits & PRESENT } else { bits };
        let Some(entry) = self.entry_of(v, mode, gva, level, root, true, o) else {
            return Err(out_of_reach("link"));
        };
        self.store_entry(v, entry, mode.entry_bytes(), table.0 | bits, o);
        Ok(())
    }
}
