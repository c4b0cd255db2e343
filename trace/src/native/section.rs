//! The frame of a section, and the values of the sections that are no blocks.

use super::wire::{u32_at, u64_at};
use crate::recording::{Census, Meta};

pub(super) const MARK: [u8; 4] = *b"SECT";
/// Bytes before the content.
pub(super) const FRAME_BYTES: usize = 48;
/// Most bytes of a section, packed or not.
pub(super) const SECTION_BYTES_MAX: usize = 16 << 20;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header = 1,
    Block = 2,
    Index = 3,
    End = 4,
}

/// The frame of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub kind: Kind,
    pub zstd: bool,
    pub stored: u32,
    pub raw: u32,
    pub records: u32,
    pub operations: u32,
    pub first_record: u64,
    pub first_operation: u64,
    pub crc: u32,
}

impl Frame {
    pub fn bytes(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        bytes[..4].copy_from_slice(&MARK);
        bytes[4] = self.kind as u8;
        bytes[5] = u8::from(self.zstd);
        let words = [self.stored, self.raw, self.records, self.operations];
        for (at, word) in (8..).step_by(4).zip(words) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[24..32].copy_from_slice(&self.first_record.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_operation.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.crc.to_le_bytes());
        let own = crc32fast::hash(&bytes[..44]);
        bytes[44..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// The frame at the start of these bytes, if it is whole.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_BYTES)?;
        let kind = match bytes[4] {
            1 => Kind::Header,
            2 => Kind::Block,
            3 => Kind::Index,
            4 => Kind::End,
            _ => return None,
        };
        let whole = bytes.starts_with(&MARK)
            && bytes[5] < 2
            && crc32fast::hash(&bytes[..44]) == u32_at(bytes, 44);
        let frame = Self {
            kind,
            zstd: bytes[5] == 1,
            stored: u32_at(bytes, 8),
            raw: u32_at(bytes, 12),
            records: u32_at(bytes, 16),
            operations: u32_at(bytes, 20),
            first_record: u64_at(bytes, 24),
            first_operation: u64_at(bytes, 32),
            crc: u32_at(bytes, 40),
        };
        let sane = frame.stored as usize <= SECTION_BYTES_MAX
            && frame.raw as usize <= SECTION_BYTES_MAX
            && frame.records as usize <= super::BLOCK_RECORDS_MAX
            && frame.operations <= frame.records;
        (whole && sane).then_some(frame)
    }
}

/// The content of the header.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Header {
    /// Where from and what machine: the provenance.
    pub meta: Meta,
    /// What became of the source's lines.
    pub census: Census,
    /// The program that wrote the file.
    pub tool: String,
    /// The operations are in the engine's order, (time, actor): they can be replayed as a stream.
    pub ordered: bool,
    /// Physical CPUs that the trace names; 0: it names none.
    pub pcpus: u16,
    /// Records of the file, if they were known when it was begun.
    pub records: Option<u64>,
    /// Operations of the file, likewise.
    pub operations: Option<u64>,
}

impl Header {
    /// This program and its version.
    #[must_use]
    pub fn this_tool() -> String {
        concat!("tlbscope ", env!("CARGO_PKG_VERSION")).to_owned()
    }
}

/// The content of the index: for seeking, and for splitting a file among threads and machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Index {
    /// Records of all blocks.
    pub records: u64,
    /// Operations of all blocks.
    pub operations: u64,
    /// The blocks in order. Files of more than [`Index::ENTRIES_MAX`] list every 2nd, 4th ... one.
    pub blocks: Vec<Entry>,
}

impl Index {
    /// Most blocks that are listed.
    pub const ENTRIES_MAX: usize = 1 << 18;
}

/// A block of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Entry {
    /// Position of its section in the file.
    pub position: u64,
    /// Records before it.
    pub first_record: u64,
    /// Operations before it.
    pub first_operation: u64,
    /// Time of its first record.
    pub first_time: u64,
}
