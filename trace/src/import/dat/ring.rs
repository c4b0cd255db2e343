//! The events on the pages of one CPU's ring buffer.
//!
//! An event begins with a word of 32 bits: 5 of type or length, 27 of time since the one before.
//! Types 1 to 28 are the length in words, 0 has it in the next word, 29 is padding, 30 extends the
//! time by the next word, 31 sets it.

use super::super::format::little;
use super::super::header::Description;
use super::File;
use super::directory::{Cpu, Directory};
use super::pages::Pages;

/// Flags in a page's `commit`: events were lost before it, and their number stands behind its data.
const MISSED: u64 = 1 << 31;
const MISSED_STORED: u64 = 1 << 30;
/// Bits of a time that an absolute stamp gives.
const STAMP_BITS: u64 = (1 << 59) - 1;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Event,
    /// Events were lost here, so many if it is known.
    Lost(Option<u64>),
}

/// One CPU's events, in order.
#[derive(Debug)]
pub(super) struct Ring {
    pub cpu: u16,
    /// Time of what was found, in the recorder's clock.
    pub ns: u64,
    pub found: Found,
    /// Its time ran backwards once: told already.
    pub backwards: bool,
    /// Why it ended early.
    pub damage: Option<String>,
    pages: Pages,
    long_bytes: usize,
    page: Vec<u8>,
    /// Place within the page, and where its data ends.
    at: usize,
    end: usize,
    /// The event's bytes.
    event: (usize, usize),
}

impl Ring {
    pub fn new(cpu: &Cpu, directory: &Directory, most: u64) -> Self {
        Self {
            cpu: cpu.cpu,
            ns: 0,
            found: Found::Event,
            backwards: false,
            damage: None,
            pages: Pages::new(cpu, most),
            long_bytes: directory.long_bytes as usize,
            page: Vec::new(),
            at: 0,
            end: 0,
            event: (0, 0),
        }
    }

    /// The bytes of the event that was found.
    pub fn event(&self) -> &[u8] {
        &self.page[self.event.0..self.event.1]
    }

    /// Looks for the next event; false at the end.
    pub fn advance(&mut self, file: &mut File<'_>, description: &Description) -> bool {
        loop {
            if self.within() {
                self.found = Found::Event;
                return true;
            }
            match self.pages.next(file, &mut self.page) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(damage) => {
                    self.damage = Some(format!("CPU {}: {damage}", self.cpu));
                    self.end = 0;
                    self.at = 0;
                    return false;
                }
            }
            if let Some(lost) = self.begin(description) {
                self.found = Found::Lost(lost);
                return true;
            }
        }
    }

    /// Begins a page; answers whether events were lost before it.
    fn begin(&mut self, description: &Description) -> Option<Option<u64>> {
        (self.at, self.end) = (0, 0);
        let (offset, size) = description.commit;
        let commit = little(self.page.get(offset..offset + size)?);
        let (offset, size) = description.time;
        self.ns = little(self.page.get(offset..offset + size)?);
        let length = usize::try_from(commit & (MISSED_STORED - 1)).unwrap_or(usize::MAX);
        self.at = description.data;
        self.end = self.at.saturating_add(length).min(self.page.len());
        if commit & MISSED == 0 {
            return None;
        }
        let stored = self.page.get(self.end..self.end + self.long_bytes);
        Some(stored.filter(|_| commit & MISSED_STORED != 0).map(little))
    }

    /// Looks for the next event within the page.
    fn within(&mut self) -> bool {
        while let Some(head) = self.word(self.at) {
            let (kind, delta) = (head & 31, u64::from(head >> 5));
            match kind {
                // The rest of the page is empty.
                29 if delta == 0 => break,
                29 => {
                    self.ns = self.ns.wrapping_add(delta);
                    let Some(length) = self.word(self.at + 4) else { break };
                    self.at = self.at.saturating_add(4).saturating_add(length.max(4) as usize);
                }
                30 | 31 => {
                    let Some(high) = self.word(self.at + 4) else { break };
                    let time = (u64::from(high) << 27) + delta;
                    self.ns = match kind {
                        30 => self.ns.wrapping_add(time),
                        _ => self.ns & !STAMP_BITS | time & STAMP_BITS,
                    };
                    self.at += 8;
                }
                _ => {
                    let (start, length) = match kind {
                        0 => {
                            let Some(length) = self.word(self.at + 4) else { break };
                            (self.at + 8, (length as usize).saturating_sub(4))
                        }
                        words => (self.at + 4, words as usize * 4),
                    };
                    let end = start.saturating_add(length);
                    if end > self.end {
                        break;
                    }
                    self.ns = self.ns.wrapping_add(delta);
                    self.event = (start, end);
                    // Events begin at multiples of four.
                    self.at = end.next_multiple_of(4);
                    return true;
                }
            }
        }
        self.at = self.end;
        false
    }

    fn word(&self, at: usize) -> Option<u32> {
        let end = at.checked_add(4).filter(|&end| end <= self.end)?;
        self.page.get(at..end).map(|bytes| little(bytes) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring that holds one page with these words as data.
    fn ring(words: &[u32]) -> Ring {
        let cpu = Cpu { cpu: 0, offset: 0, size: 0, packing: None, page_bytes: 4096 };
        let mut ring = Ring::new(&cpu, &Directory::default(), 1 << 20);
        ring.page = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        ring.end = ring.page.len();
        ring.ns = 1000;
        ring
    }

    #[test]
    fn times_extend_and_lengths_are_told_two_ways() {
        // An event of one word 5 ns on; 2^27 ns more and 3; a long event of two words; padding.
        let words =
            [5 << 5 | 1, 0xaa, 3 << 5 | 30, 1, 7 << 5, 12, 0xbb, 0xcc, 1 << 5 | 29, 4, 0, 29];
        let mut ring = ring(&words);
        assert!(ring.within());
        assert_eq!((ring.ns, ring.event()), (1005, &0xaa_u32.to_le_bytes()[..]));
        assert!(ring.within());
        assert_eq!(ring.ns, 1005 + (1 << 27) + 3 + 7);
        assert_eq!(ring.event().len(), 8);
        assert!(!ring.within());
    }

    #[test]
    fn an_absolute_stamp_sets_the_time() {
        let mut ring = ring(&[2 << 5 | 31, 4, 1 << 5 | 1, 0]);
        assert!(ring.within());
        assert_eq!(ring.ns, (4 << 27) + 2 + 1);
    }

    #[test]
    fn a_page_tells_what_was_lost_before_it() {
        let description =
            Description { commit: (8, 8), data: 16, time: (0, 8), ..Description::default() };
        let mut ring = ring(&[]);
        ring.long_bytes = 8;
        ring.page = [77_u64, 8 | MISSED | MISSED_STORED, 0, 42]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        assert_eq!(ring.begin(&description), Some(Some(42)));
        assert_eq!((ring.ns, ring.at, ring.end), (77, 16, 24));
        ring.page[11] = 0;
        assert_eq!(ring.begin(&description), None);
    }
}
