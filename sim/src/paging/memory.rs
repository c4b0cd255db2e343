//! Guest-physical memory: only what page tables live in is ever written, so it is sparse.

use rustc_hash::FxHashMap;
use tlbscope_trace::addr::{Gpa, PAGE_BYTES};

/// Words of 8 bytes in a frame.
const WORDS: usize = 512;
/// Frames below this number are found by index, those above through the hash map.
const DIRECT_FRAMES: u64 = 1 << 18;
/// Where new tables are allocated from.
const FIRST_TABLE: u64 = 0x10_0000;

/// Sparse guest memory of 4 KiB frames in one flat arena, with the levels of its page tables.
///
/// Two memories are equal if they read alike everywhere and declare the same tables.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct GuestMemory {
    bytes: u64,
    /// Slots of one frame each; the first is what was never written reads as.
    arena: Vec<u64>,
    /// Frame number to slot, 0 if never written. Grown on demand.
    direct: Vec<u32>,
    #[serde(with = "tlbscope_trace::state::map")]
    far: FxHashMap<u64, u32>,
    #[serde(with = "tlbscope_trace::state::map")]
    tables: FxHashMap<u64, u8>,
    next_table: u64,
}

impl GuestMemory {
    /// Memory of this many bytes, all zero. Above it, reads give 0 and writes are lost.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes,
            arena: vec![0; WORDS],
            direct: Vec::new(),
            far: FxHashMap::default(),
            tables: FxHashMap::default(),
            next_table: FIRST_TABLE,
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The slot of a frame, 0 if it was never written.
    #[inline]
    fn slot(&self, frame: u64) -> usize {
        match self.direct.get(frame as usize) {
            Some(slot) => *slot as usize,
            None => self.far_slot(frame),
        }
    }

    #[cold]
    fn far_slot(&self, frame: u64) -> usize {
        self.far.get(&frame).copied().unwrap_or(0) as usize
    }

    fn slot_or_new(&mut self, frame: u64) -> usize {
        let slot = self.slot(frame);
        if slot != 0 {
            return slot;
        }
        let slot = self.arena.len() / WORDS;
        self.arena.resize(self.arena.len() + WORDS, 0);
        if frame < DIRECT_FRAMES {
            let index = frame as usize;
            if self.direct.len() <= index {
                self.direct.resize(index + 1, 0);
            }
            self.direct[index] = slot as u32;
        } else {
            self.far.insert(frame, slot as u32);
        }
        slot
    }

    /// The 8 bytes at `gpa`, aligned down; 0 if never written.
    #[inline]
    #[must_use]
    pub fn read(&self, gpa: Gpa) -> u64 {
        self.arena[self.slot(gpa.0 >> 12) * WORDS + (gpa.0 as usize >> 3) % WORDS]
    }

    /// The frame around `gpa`; zeros if never written.
    #[must_use]
    pub fn frame(&self, gpa: Gpa) -> [u64; WORDS] {
        let first = self.slot(gpa.0 >> 12) * WORDS;
        let words = self.arena.get(first..first + WORDS).and_then(|words| words.try_into().ok());
        words.unwrap_or([0; WORDS])
    }

    /// The entry of `bytes` (4 or 8) at `gpa`, aligned down to its size.
    #[inline]
    #[must_use]
    pub fn read_entry(&self, gpa: Gpa, bytes: u8) -> u64 {
        entry_of(self.read(gpa), gpa, bytes)
    }

    /// Stores an entry of `bytes` (4 or 8) at `gpa`, aligned down to its size. Lost above the end
    /// of memory.
    pub fn write_entry(&mut self, gpa: Gpa, bytes: u8, value: u64) {
        if gpa.0 >= self.bytes {
            return;
        }
        let old = self.read(gpa);
        let new = match (bytes, gpa.0 & 4) {
            (4, 0) => old & !0xffff_ffff | value & 0xffff_ffff,
            (4, _) => old & 0xffff_ffff | value << 32,
            _ => value,
        };
        if new != old {
            let slot = self.slot_or_new(gpa.0 >> 12);
            self.arena[slot * WORDS + (gpa.0 as usize >> 3) % WORDS] = new;
        }
    }

    /// Whether this frame number was declared or allocated as a page table.
    #[must_use]
    pub fn is_table(&self, frame: u64) -> bool {
        self.tables.contains_key(&frame)
    }

    /// The level (1 = PT) of the table in this frame, if it is one.
    #[must_use]
    pub fn table_level(&self, frame: u64) -> Option<u8> {
        self.tables.get(&frame).copied()
    }

    /// Declares the frame at `gpa` a table of `level`; a later declaration replaces an earlier.
    pub fn declare_table(&mut self, gpa: Gpa, level: u8) {
        self.tables.insert(gpa.0 >> 12, level);
    }

    /// A fresh frame for a table of `level`: the next one from 0x100000 upward that is neither a
    /// table nor was ever written. May lie above the end of memory if memory is full of tables;
    /// writes to it are lost then.
    pub fn allocate_table(&mut self, level: u8) -> Gpa {
        let mut frame = self.next_table >> 12;
        while self.is_table(frame) || self.slot(frame) != 0 {
            frame += 1;
        }
        self.next_table = (frame + 1) * PAGE_BYTES;
        self.tables.insert(frame, level);
        Gpa(frame << 12)
    }

    /// Frames with anything but zeros, in ascending order, with their contents.
    fn used(&self) -> Vec<(u64, &[u64])> {
        let near = self.direct.iter().enumerate().map(|(f, s)| (f as u64, *s));
        let far = self.far.iter().map(|(f, s)| (*f, *s));
        let mut used: Vec<_> = near
            .chain(far)
            .filter(|(_, slot)| *slot != 0)
            .map(|(frame, slot)| {
                let start = slot as usize * WORDS;
                (frame, &self.arena[start..start + WORDS])
            })
            .filter(|(_, words)| words.iter().any(|w| *w != 0))
            .collect();
        used.sort_unstable_by_key(|(frame, _)| *frame);
        used
    }

    /// A digest of the contents and the tables: the same on every machine.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = mix(0, self.bytes);
        for (frame, words) in self.used() {
            hash = mix(hash, frame);
            for (at, word) in words.iter().enumerate().filter(|(_, w)| **w != 0) {
                hash = mix(mix(hash, at as u64), *word);
            }
        }
        let mut tables: Vec<_> = self.tables.iter().map(|(f, l)| (*f, *l)).collect();
        tables.sort_unstable();
        tables.iter().fold(hash, |h, (frame, level)| mix(mix(h, *frame), u64::from(*level)))
    }
}

impl PartialEq for GuestMemory {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.tables == other.tables && self.used() == other.used()
    }
}

impl Eq for GuestMemory {}

/// The entry of `bytes` at `gpa` within the aligned 8 bytes that hold it.
pub(crate) const fn entry_of(word: u64, gpa: Gpa, bytes: u8) -> u64 {
    if bytes != 4 {
        word
    } else if gpa.0 & 4 == 0 {
        word & 0xffff_ffff
    } else {
        word >> 32
    }
}

/// One step of a stable digest (the finaliser of splitmix64 over a running sum).
pub(crate) const fn mix(hash: u64, value: u64) -> u64 {
    let mut z = hash.rotate_left(23) ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_four_bytes_share_a_word() {
        let mut m = GuestMemory::new(1 << 30);
        m.write_entry(Gpa(0x1004), 4, 0xaaaa_bbbb);
        m.write_entry(Gpa(0x1000), 4, 0x1111_2222);
        assert_eq!(m.read(Gpa(0x1003)), 0xaaaa_bbbb_1111_2222);
        assert_eq!(m.read_entry(Gpa(0x1004), 4), 0xaaaa_bbbb);
        assert_eq!(m.read_entry(Gpa(0x1000), 4), 0x1111_2222);
    }

    #[test]
    fn far_and_hostile_addresses() {
        let mut m = GuestMemory::new(1 << 40);
        m.write_entry(Gpa(0x80_0000_0008), 8, 7);
        assert_eq!(m.read(Gpa(0x80_0000_0008)), 7);
        m.write_entry(Gpa(!0), 8, 7);
        m.write_entry(Gpa(1 << 40), 8, 7);
        assert_eq!(m.read(Gpa(!0)), 0);
        assert_eq!(m.read(Gpa(1 << 40)), 0);
    }

    #[test]
    fn tables_skip_what_is_used() {
        let mut m = GuestMemory::new(1 << 30);
        m.declare_table(Gpa(0x10_0000), 4);
        m.write_entry(Gpa(0x10_1008), 8, 1);
        assert_eq!(m.allocate_table(3), Gpa(0x10_2000));
        assert_eq!(m.allocate_table(2), Gpa(0x10_3000));
        assert_eq!(m.table_level(0x102), Some(3));
        assert!(!m.is_table(0x101));
    }

    #[test]
    fn equal_contents_are_equal_whatever_the_order() {
        let mut a = GuestMemory::new(1 << 30);
        let mut b = GuestMemory::new(1 << 30);
        for (m, order) in [(&mut a, [1u64, 2]), (&mut b, [2, 1])] {
            for at in order {
                m.write_entry(Gpa(at << 12), 8, at);
            }
        }
        b.write_entry(Gpa(0x9000), 8, 5);
        assert_ne!(a, b);
        assert_ne!(a.digest(), b.digest());
        b.write_entry(Gpa(0x9000), 8, 0);
        assert_eq!(a, b);
        assert_eq!(a.digest(), b.digest());
    }
}
