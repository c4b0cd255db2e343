use super::*;
use crate::paging::memory::GuestMemory;
use tlbscope_trace::addr::{Gva, Hpa, VcpuId};
use tlbscope_trace::op::AccessKind;

struct Flat {
    memory: GuestMemory,
    vendor: Vendor,
    regs: Regs,
}

impl World for Flat {
    fn vendor(&self) -> Vendor {
        self.vendor
    }
    fn mmu(&self) -> MmuKind {
        MmuKind::Tdp
    }
    fn maxphyaddr(&self) -> u32 {
        46
    }
    fn gbpages(&self) -> bool {
        true
    }
    fn regs(&self, _: VcpuId) -> &Regs {
        &self.regs
    }
    fn read(&self, gpa: Gpa) -> u64 {
        self.memory.read(gpa)
    }
    fn backing(&self, gpa: Gpa) -> Option<Hpa> {
        Some(Hpa(gpa.0))
    }
    fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }
}

fn world(vendor: Vendor, cr4: u64, efer: u64, entries: &[(u64, u64)]) -> Flat {
    let mut memory = GuestMemory::new(1 << 30);
    for (gpa, value) in entries {
        memory.write_entry(Gpa(*gpa), if cr4 & 0x20 == 0 { 4 } else { 8 }, *value);
    }
    let regs = Regs { cr0: 0x8001_0011, cr3: 0x1000, cr4, efer, ..Regs::default() };
    Flat { memory, vendor, regs }
}

fn access(gva: u64, kind: AccessKind) -> Access {
    Access { gva: Gva(gva), kind, user: false, ac: false }
}

/// 0x7000 -> 0x5000 read-only, key 3, global, through tables at 0x2000, 0x3000, 0x4000.
const LONG: [(u64, u64); 4] =
    [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4038, 0x1800_0000_0000_5105)];

#[test]
fn four_levels() {
    let w = world(Vendor::Intel, 0xa0, 0xd00, &LONG);
    let found = walk(&w, &w.regs, &access(0x7123, AccessKind::Read));
    let rights = Rights { write: false, user: true, xd: false, key: 3 };
    let leaf = found.result.unwrap();
    assert_eq!((leaf.gpa, leaf.size, leaf.rights), (Gpa(0x5000), PageSize::Size4K, rights));
    assert!(leaf.global && !leaf.dirty && !leaf.accessed_all);
    assert_eq!(found.read().iter().map(|s| s.level).collect::<Vec<_>>(), [4, 3, 2, 1]);
    let marks: Vec<_> = entries_to_mark(&found, true).collect();
    assert_eq!(marks[0], (Gpa(0x1000), 0x2027));
    assert_eq!(marks[3], (Gpa(0x4038), 0x1800_0000_0000_5165));
    assert_eq!(walk(&w, &w.regs, &access(0x7000, AccessKind::Write)).result, Err(3));
    assert!(translate(&w, &w.regs, &access(0x7000, AccessKind::Write)).is_ok());
    assert_eq!(walk(&w, &w.regs, &access(0x8000, AccessKind::Write)).result, Err(2));
    assert_eq!(walk(&w, &w.regs, &access(1 << 47, AccessKind::Read)).count, 0);
    let start = Start { level: 1, table: Gpa(0x4000), rights: Rights::FULL };
    assert_eq!(walk_from(&w, &w.regs, &access(0x7000, AccessKind::Read), start).count, 1);
}

#[test]
fn reserved_bits_fault_after_presence() {
    let read = access(0, AccessKind::Read);
    let code = |vendor, efer, root: u64| {
        let w = world(vendor, 0x20, efer, &[(0x1000, root), (0x2000, 0x8000_0083)]);
        walk(&w, &w.regs, &read).result.map(|l| (l.gpa.0, l.size))
    };
    // A 1 GiB page whose bit 31 is address.
    assert_eq!(code(Vendor::Intel, 0xd00, 0x2003), Ok((0x8000_0000, PageSize::Size1G)));
    assert_eq!(code(Vendor::Intel, 0xd00, 0x2083), Err(9));
    assert_eq!(code(Vendor::Intel, 0xd00, 0x2082), Err(0));
    assert_eq!(code(Vendor::Intel, 0xd00, 0x4000_0000_2003 | 1 << 46), Err(9));
    assert_eq!(code(Vendor::Intel, 0xd00, XD | 0x2003).map(|l| l.0), Ok(0x8000_0000));
    assert_eq!(code(Vendor::Intel, 0x500, XD | 0x2003), Err(9));
    assert_eq!(code(Vendor::Amd, 0xd00, 0x2103), Err(9));
    assert!(code(Vendor::Intel, 0xd00, 0x2103).is_ok());
}

#[test]
fn pae_uses_registers_on_intel_and_memory_on_amd() {
    let entries = [(0x1000, 0x2001), (0x2000, 0x20_0083)];
    let read = access(0x1234, AccessKind::Read);
    let w = world(Vendor::Intel, 0x20, 0, &entries);
    assert_eq!(walk(&w, &w.regs, &read).result, Err(0));
    let loaded = Regs { pdpte: [0x2001, 0, 0, 0], ..w.regs };
    let found = walk(&w, &loaded, &read);
    assert_eq!((found.result.unwrap().gpa, found.count), (Gpa(0x20_0000), 1));
    let w = world(Vendor::Amd, 0x20, 0, &entries);
    let found = walk(&w, &w.regs, &read);
    assert_eq!((found.result.unwrap().gpa, found.count), (Gpa(0x20_0000), 2));
    // The PDPTE has no A.
    assert_eq!(entries_to_mark(&found, false).collect::<Vec<_>>(), [(Gpa(0x2000), 0x20_00a3)]);
}

#[test]
fn large_pages_of_32_bit_paging_need_pse() {
    // PDE 1 maps 0x1_0080_0000 (PSE-36: bit 13 is address bit 32).
    let entries = [(0x1004, 0x0080_2083)];
    let w = world(Vendor::Intel, 0x10, 0, &entries);
    let leaf = walk(&w, &w.regs, &access(0x40_0000, AccessKind::Read)).result.unwrap();
    assert_eq!((leaf.gpa, leaf.size), (Gpa(0x1_0080_0000), PageSize::Size4M));
    let w = world(Vendor::Intel, 0, 0, &entries);
    assert_eq!(walk(&w, &w.regs, &access(0x40_0000, AccessKind::Read)).result, Err(0));
}
