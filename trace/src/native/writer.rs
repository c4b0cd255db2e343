//! Writes a native trace record by record, in memory that does not grow with it (but for an index
//! of bounded length).

use std::io::Write;

use super::pack::Packer;
use super::section::{Entry, Frame, Header, Index, Kind, SECTION_BYTES_MAX};
use super::{BLOCK_RECORDS, MAGIC, NativeError, VERSION};
use crate::addr::Time;
use crate::codec;
use crate::op::Actor;
use crate::recording::{Body, Record};

/// How blocks are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Columns only.
    #[default]
    Plain,
    /// Columns packed with zstd at this level, where that makes them smaller.
    Zstd(i32),
}

/// A native trace that is being written.
pub struct Writer<W> {
    name: String,
    out: W,
    packing: Packing,
    ordered: bool,
    position: u64,
    block: Vec<Record>,
    operations: u32,
    last: Option<(Time, Actor)>,
    index: Index,
    /// Every so many-th block is listed in the index.
    stride: u64,
    blocks: u64,
    packer: Packer,
    content: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a trace with this header. `name` is for messages.
    ///
    /// # Errors
    /// The stream fails, or the header is too large.
    pub fn new(name: &str, out: W, header: &Header, packing: Packing) -> Result<Self, NativeError> {
        let mut writer = Self::headless(name, out, packing);
        writer.ordered = header.ordered;
        writer.raw(&MAGIC)?;
        writer.raw(&VERSION.to_le_bytes())?;
        writer.value(Kind::Header, header)?;
        Ok(writer)
    }

    /// Begins with the first block, for a trace whose header is not known yet.
    pub(super) fn headless(name: &str, out: W, packing: Packing) -> Self {
        Self {
            name: name.to_owned(),
            out,
            packing,
            ordered: false,
            position: 0,
            block: Vec::with_capacity(BLOCK_RECORDS),
            operations: 0,
            last: None,
            index: Index::default(),
            stride: 1,
            blocks: 0,
            packer: Packer::default(),
            content: Vec::new(),
        }
    }

    /// Writes the trace whose blocks were begun without a header: `copy` puts them behind it.
    pub(super) fn behind<O: Write>(
        mut self,
        header: &Header,
        out: O,
        copy: impl FnOnce(W, &mut O) -> std::io::Result<()>,
    ) -> Result<(), NativeError> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        let mut whole = Writer::new(&self.name, out, header, self.packing)?;
        copy(self.out, &mut whole.out)
            .map_err(|error| NativeError::Io { name: self.name.clone(), error })?;
        whole.index = self.index;
        for entry in &mut whole.index.blocks {
            entry.position += whole.position;
        }
        whole.position += self.position;
        whole.finish()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// The stream fails, or the record is out of order in a trace whose header says that it is in
    /// order.
    pub fn push(&mut self, record: Record) -> Result<(), NativeError> {
        if matches!(record.body, Body::Op(_)) {
            let now = (record.time, record.actor);
            if self.ordered && self.last.is_some_and(|last| now < last) {
                let record = self.index.operations + u64::from(self.operations);
                return Err(NativeError::Order { name: self.name.clone(), record });
            }
            self.last = Some(now);
            self.operations += 1;
        }
        self.block.push(record);
        if self.block.len() == BLOCK_RECORDS { self.flush() } else { Ok(()) }
    }

    /// Ends the trace: the last block, the index, the end.
    ///
    /// # Errors
    /// The stream fails.
    pub fn finish(mut self) -> Result<(), NativeError> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        let position = self.position;
        let index = std::mem::take(&mut self.index);
        self.value(Kind::Index, &index)?;
        self.section(
            Kind::End,
            (0, 0),
            (index.records, index.operations),
            &position.to_le_bytes(),
        )?;
        let (name, mut out) = (self.name, self.out);
        out.flush().map_err(|error| NativeError::Io { name, error })
    }

    fn flush(&mut self) -> Result<(), NativeError> {
        let mut content = std::mem::take(&mut self.content);
        content.clear();
        self.packer
            .pack(&self.block, &mut content)
            .map_err(|error| NativeError::Codec { name: self.name.clone(), error })?;
        self.list();
        let counts = (self.block.len() as u32, self.operations);
        self.section(Kind::Block, counts, (self.index.records, self.index.operations), &content)?;
        self.index.records += u64::from(counts.0);
        self.index.operations += u64::from(counts.1);
        self.block.clear();
        self.operations = 0;
        self.content = content;
        Ok(())
    }

    /// Puts the block that begins here into the index. A full index is thinned to every second.
    fn list(&mut self) {
        if self.index.blocks.len() == Index::ENTRIES_MAX {
            let mut at = 0;
            self.index.blocks.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.stride *= 2;
        }
        if self.blocks.is_multiple_of(self.stride) {
            self.index.blocks.push(Entry {
                position: self.position,
                first_record: self.index.records,
                first_operation: self.index.operations,
                first_time: self.block.first().map_or(0, |record| record.time.0),
            });
        }
        self.blocks += 1;
    }

    fn value(&mut self, kind: Kind, value: &impl bincode::Encode) -> Result<(), NativeError> {
        let mut content = Vec::new();
        codec::encode(value, &mut content)
            .map_err(|error| NativeError::Codec { name: self.name.clone(), error })?;
        self.section(kind, (0, 0), (self.index.records, self.index.operations), &content)
    }

    fn section(
        &mut self,
        kind: Kind,
        (records, operations): (u32, u32),
        (first_record, first_operation): (u64, u64),
        raw: &[u8],
    ) -> Result<(), NativeError> {
        if raw.len() > SECTION_BYTES_MAX {
            let text = format!("a section of {} bytes, {SECTION_BYTES_MAX} is the most", raw.len());
            let error = std::io::Error::other(text);
            return Err(NativeError::Io { name: self.name.clone(), error });
        }
        let packed = match self.packing {
            Packing::Zstd(level) if kind == Kind::Block => {
                let packed = zstd::bulk::compress(raw, level)
                    .map_err(|error| NativeError::Io { name: self.name.clone(), error })?;
                (packed.len() < raw.len()).then_some(packed)
            }
            _ => None,
        };
        let stored = packed.as_deref().unwrap_or(raw);
        let frame = Frame {
            kind,
            zstd: packed.is_some(),
            stored: stored.len() as u32,
            raw: raw.len() as u32,
            records,
            operations,
            first_record,
            first_operation,
            crc: crc32fast::hash(stored),
        };
        self.raw(&frame.bytes())?;
        self.raw(stored)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), NativeError> {
        self.position += bytes.len() as u64;
        self.out
            .write_all(bytes)
            .map_err(|error| NativeError::Io { name: self.name.clone(), error })
    }
}
