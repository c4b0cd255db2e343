//! Guest-physical memory that holds page tables: sparse frames in a flat arena.

use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};
use tlbscope_trace::addr::{Gpa, PAGE_BYTES};

/// Where new tables are allocated from.
const TABLES_FROM: u64 = 0x10_0000;

const WORDS: usize = 512;

/// Guest memory. Frames that were never written read as 0 and take no space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestMemory {
    bytes: u64,
    slots: FxHashMap<u64, u32>,
    frames: Vec<[u64; WORDS]>,
    /// Level of a declared or allocated table, by frame.
    tables: FxHashMap<u64, u8>,
    next_table: u64,
}

impl GuestMemory {
    /// Memory of this many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, next_table: TABLES_FROM, ..Self::default() }
    }

    /// The 8 bytes at `gpa`, aligned down.
    #[must_use]
    pub fn read(&self, gpa: Gpa) -> u64 {
        let Some(slot) = self.slots.get(&(gpa.0 / PAGE_BYTES)) else { return 0 };
        self.frames[*slot as usize][(gpa.0 / 8) as usize % WORDS]
    }

    /// An entry of 4 or 8 bytes.
    #[must_use]
    pub fn read_entry(&self, gpa: Gpa, bytes: u8) -> u64 {
        let word = self.read(gpa);
        match bytes {
            4 if gpa.0 & 4 != 0 => word >> 32,
            4 => word & 0xffff_ffff,
            _ => word,
        }
    }

    /// Writes an entry of 4 or 8 bytes. Addresses above the end of memory are ignored, as a store
    /// to nothing is.
    pub fn write_entry(&mut self, gpa: Gpa, bytes: u8, value: u64) {
        if gpa.0 >= self.bytes {
            return;
        }
        let frame = gpa.0 / PAGE_BYTES;
        let slot = *self.slots.entry(frame).or_insert_with(|| {
            self.frames.push([0; WORDS]);
            self.frames.len() as u32 - 1
        });
        let word = &mut self.frames[slot as usize][(gpa.0 / 8) as usize % WORDS];
        *word = match bytes {
            4 if gpa.0 & 4 != 0 => *word & 0xffff_ffff | value << 32,
            4 => *word & !0xffff_ffff | value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Declares a table at `gpa`, so that no allocation takes its frame.
    pub fn declare_table(&mut self, gpa: Gpa, level: u8) {
        self.tables.insert(gpa.0 / PAGE_BYTES, level);
    }

    /// A free frame for a table of this level: from 0x100000 upward, in order of need.
    pub fn allocate_table(&mut self, level: u8) -> Gpa {
        while self.tables.contains_key(&(self.next_table / PAGE_BYTES))
            || self.slots.contains_key(&(self.next_table / PAGE_BYTES))
        {
            self.next_table += PAGE_BYTES;
        }
        let gpa = Gpa(self.next_table);
        self.tables.insert(gpa.0 / PAGE_BYTES, level);
        self.next_table += PAGE_BYTES;
        gpa
    }

    /// A digest of the content, the same for equal content however it came about.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut frames: Vec<_> = self.slots.iter().collect();
        frames.sort_unstable();
        let mut hasher = FxHasher::default();
        for (frame, slot) in frames {
            let words = &self.frames[*slot as usize];
            if words.iter().any(|w| *w != 0) {
                frame.hash(&mut hasher);
                words.hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_four_bytes_share_a_word() {
        let mut memory = GuestMemory::new(1 << 20);
        memory.write_entry(Gpa(0x1004), 4, 0xaaaa_bbbb);
        memory.write_entry(Gpa(0x1000), 4, 0x1111_2222);
        assert_eq!(memory.read(Gpa(0x1000)), 0xaaaa_bbbb_1111_2222);
        assert_eq!(memory.read_entry(Gpa(0x1004), 4), 0xaaaa_bbbb);
        assert_eq!(memory.read_entry(Gpa(0x2000), 8), 0);
    }

    #[test]
    fn tables_are_allocated_in_order_around_declared_ones() {
        let mut memory = GuestMemory::new(1 << 30);
        memory.declare_table(Gpa(0x10_1000), 1);
        assert_eq!(memory.allocate_table(3), Gpa(0x10_0000));
        assert_eq!(memory.allocate_table(2), Gpa(0x10_2000));
    }

    #[test]
    fn the_digest_knows_content_not_history() {
        let mut a = GuestMemory::new(1 << 20);
        a.write_entry(Gpa(0x1000), 8, 7);
        a.write_entry(Gpa(0x3000), 8, 9);
        let mut b = GuestMemory::new(1 << 20);
        b.write_entry(Gpa(0x3000), 8, 9);
        b.write_entry(Gpa(0x1000), 8, 7);
        b.write_entry(Gpa(0x5000), 8, 1);
        assert_ne!(a.digest(), b.digest());
        b.write_entry(Gpa(0x5000), 8, 0);
        assert_eq!(a.digest(), b.digest());
    }
}
