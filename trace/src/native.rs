//! The native file, `.tlbt`.
//!
//! ```text
//! magic "TLBT" | version u32
//! section*     kind u8 | records u32 | bytes u32 | crc32 u32 | bytes
//! ```
//! All numbers are little-endian; the crc32 covers kind, records, bytes and the content. The first
//! section is the header (1), then come blocks of records (2) that decode without their
//! neighbours, then the index (3): position, records and first time of each block. The last eight
//! bytes are the position of the index. Sections begin with the mark `SECT`, so that a reader
//! finds the next whole one behind damage.
//!
//! A cut or damaged file is read as far as its sections are whole; what is missing is said in
//! [`crate::Meta::losses`].

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use thiserror::Error;

use crate::codec::{self, CodecError};
use crate::recording::{Body, Census, Meta, Record, Recording};

/// The first bytes of a native file.
pub const MAGIC: [u8; 4] = *b"TLBT";
/// The version that is written; others are refused.
pub const VERSION: u32 = 1;
/// Records of a block.
const BLOCK_RECORDS: usize = 4096;
/// Most records of a file: the reader stops there and says so.
const RECORDS_MAX: usize = 1 << 26;
/// Most bytes of a file that is read into memory.
const FILE_BYTES_MAX: u64 = 8 << 30;

const MARK: [u8; 4] = *b"SECT";
const HEADER: u8 = 1;
const BLOCK: u8 = 2;
const INDEX: u8 = 3;
/// Mark, kind, records, bytes, crc32.
const PREFIX_BYTES: usize = 4 + 1 + 4 + 4 + 4;

/// Why a native file cannot be written or read.
#[derive(Debug, Error)]
pub enum NativeError {
    /// The operating system says no.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// It begins with something else.
    #[error("{0}: not a native trace (it does not begin with `TLBT`)")]
    Magic(String),
    /// Written by another version of this program.
    #[error("{name}: version {version} of the native form; this program reads version {VERSION}")]
    Version {
        /// The file.
        name: String,
        /// Its version.
        version: u32,
    },
    /// A value is too large to be written.
    #[error("{name}: {error}")]
    Codec {
        /// The file.
        name: String,
        /// Why.
        #[source]
        error: CodecError,
    },
    /// Nothing whole is left of it.
    #[error("{0}: cut or damaged: no section of the file is whole; import the recording again")]
    Hopeless(String),
}

/// One line of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Entry {
    position: u64,
    records: u32,
    first_time: u64,
}

/// Writes a recording. The file appears whole or not at all.
///
/// # Errors
/// The operating system says no, or a block is too large.
pub fn write(recording: &Recording, path: &Path) -> Result<(), NativeError> {
    let name = path.display().to_string();
    let io = |error| NativeError::Io { name: name.clone(), error };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let temporary = tempfile::Builder::new()
        .prefix(".tlbt-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(io)?;
    let mut out = BufWriter::new(temporary);
    encode(recording, &name, &mut out)?;
    let temporary = out.into_inner().map_err(|error| io(error.into_error()))?;
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

/// Writes a recording to a stream. `name` is for messages.
///
/// # Errors
/// The stream fails, or a block is too large.
pub fn encode(recording: &Recording, name: &str, out: &mut impl Write) -> Result<(), NativeError> {
    let blocks = recording.records.chunks(BLOCK_RECORDS).map(Ok);
    encode_blocks(&recording.meta, &recording.census, blocks, name, out)
}

/// Writes a recording whose records come block by block. `name` is for messages.
///
/// # Errors
/// As for [`encode`], or a block does not come.
pub fn encode_blocks<B: AsRef<[Record]>>(
    meta: &Meta,
    census: &Census,
    blocks: impl Iterator<Item = io::Result<B>>,
    name: &str,
    out: &mut impl Write,
) -> Result<(), NativeError> {
    let mut writer = Writer { name, out, position: 0, content: Vec::new() };
    writer.raw(&MAGIC)?;
    writer.raw(&VERSION.to_le_bytes())?;
    writer.section(HEADER, 0, &(meta, census))?;
    let mut index: Vec<Entry> = Vec::new();
    for block in blocks {
        let block = block.map_err(|error| NativeError::Io { name: name.to_owned(), error })?;
        let block = block.as_ref();
        let records = block.len() as u32;
        let first_time = block.first().map_or(0, |record| record.time.0);
        index.push(Entry { position: writer.position, records, first_time });
        writer.section(BLOCK, records, &block)?;
    }
    let position = writer.position;
    writer.section(INDEX, index.len() as u32, &index)?;
    writer.raw(&position.to_le_bytes())
}

struct Writer<'a, W> {
    name: &'a str,
    out: &'a mut W,
    position: u64,
    content: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn raw(&mut self, bytes: &[u8]) -> Result<(), NativeError> {
        self.position += bytes.len() as u64;
        let name = self.name;
        self.out.write_all(bytes).map_err(|error| NativeError::Io { name: name.to_owned(), error })
    }

    fn section(
        &mut self,
        kind: u8,
        records: u32,
        value: &impl bincode::Encode,
    ) -> Result<(), NativeError> {
        let mut content = std::mem::take(&mut self.content);
        content.clear();
        codec::encode(value, &mut content)
            .map_err(|error| NativeError::Codec { name: self.name.to_owned(), error })?;
        let mut prefix = [0_u8; PREFIX_BYTES - 4];
        prefix[..4].copy_from_slice(&MARK);
        prefix[4] = kind;
        prefix[5..9].copy_from_slice(&records.to_le_bytes());
        prefix[9..13].copy_from_slice(&(content.len() as u32).to_le_bytes());
        self.raw(&prefix)?;
        self.raw(&checksum(&prefix[4..], &content).to_le_bytes())?;
        self.raw(&content)?;
        self.content = content;
        Ok(())
    }
}

fn checksum(prefix: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(prefix);
    hasher.update(content);
    hasher.finalize()
}

/// Reads a native file, as far as it is whole.
///
/// # Errors
/// It cannot be read, is of another form or version, or nothing in it is whole.
pub fn read(path: &Path) -> Result<Recording, NativeError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| NativeError::Io { name: name.clone(), error })?;
    decode(file, &name)
}

/// Reads a native trace from a stream, as far as it is whole. `name` is for messages.
///
/// # Errors
/// As for [`read`].
pub fn decode(stream: impl Read, name: &str) -> Result<Recording, NativeError> {
    let mut bytes = Vec::new();
    let mut losses = Vec::new();
    if let Err(error) = stream.take(FILE_BYTES_MAX).read_to_end(&mut bytes) {
        if bytes.is_empty() {
            return Err(NativeError::Io { name: name.to_owned(), error });
        }
        losses.push(format!("reading stopped behind byte {}: {error}", bytes.len()));
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(NativeError::Magic(name.to_owned()));
    }
    match bytes.get(4..8).map(u32_at) {
        Some(VERSION) => {}
        Some(version) => return Err(NativeError::Version { name: name.to_owned(), version }),
        None => return Err(NativeError::Hopeless(name.to_owned())),
    }
    let mut reader = Reader { losses, ..Reader::default() };
    reader.sections(&bytes);
    reader.finish(&bytes, name)
}

#[derive(Default)]
struct Reader {
    header: Option<(Meta, Census)>,
    records: Vec<Record>,
    index: Option<Vec<Entry>>,
    losses: Vec<String>,
    /// Positions of the blocks that were read, ascending.
    blocks: Vec<u64>,
}

impl Reader {
    fn sections(&mut self, bytes: &[u8]) {
        // Looking for whole sections in a hostile file must end: so many bytes are summed for it.
        let mut budget = bytes.len() * 2 + codec::BYTES_MAX;
        let mut at = 8;
        while at < bytes.len() {
            // Behind the index come eight bytes and nothing else.
            if self.index.is_some() && bytes.len() - at == 8 {
                return;
            }
            match section(&bytes[at..]) {
                Some((kind, records, content)) => {
                    self.section(kind, records, content, at);
                    at += PREFIX_BYTES + content.len();
                }
                None => {
                    let next = next_section(bytes, at + 1, &mut budget);
                    self.lose(format!("bytes {at} to {next} are damaged or cut off"));
                    at = next;
                }
            }
        }
        if self.index.is_some() && self.losses.is_empty() {
            self.losses.push("the last eight bytes of the file are cut off".to_owned());
        }
    }

    /// A hole: said in words, and left as a gap where it is.
    fn lose(&mut self, what: String) {
        if self.losses.len() < 1000 {
            self.losses.push(what);
        }
        if let Some(last) = self.records.last() {
            let (time, actor) = (last.time, last.actor);
            self.records.push(Record { time, actor, line: 0, body: Body::Gap(None) });
        }
    }

    fn section(&mut self, kind: u8, records: u32, content: &[u8], at: usize) {
        let read = match kind {
            HEADER => codec::decode(content).map(|header| self.header = Some(header)),
            BLOCK if self.records.len() + records as usize > RECORDS_MAX => {
                self.lose(format!("the block at byte {at}: more than {RECORDS_MAX} records"));
                return;
            }
            BLOCK => codec::decode::<Vec<Record>>(content).map(|mut block| {
                self.records.append(&mut block);
                self.blocks.push(at as u64);
            }),
            INDEX => codec::decode(content).map(|index| self.index = Some(index)),
            _ => {
                self.lose(format!("the section at byte {at} is of an unknown kind, {kind}"));
                return;
            }
        };
        if let Err(error) = read {
            self.lose(format!("the section at byte {at}: {error}"));
        }
    }

    fn finish(mut self, bytes: &[u8], name: &str) -> Result<Recording, NativeError> {
        if self.header.is_none() && self.records.is_empty() {
            return Err(NativeError::Hopeless(name.to_owned()));
        }
        match &self.index {
            Some(index) => {
                let lost: Vec<&Entry> = index
                    .iter()
                    .filter(|e| self.blocks.binary_search(&e.position).is_err())
                    .collect();
                let records: u64 = lost.iter().map(|entry| u64::from(entry.records)).sum();
                if records > 0 {
                    let message = format!("{records} records in {} blocks are lost", lost.len());
                    self.losses.push(message);
                }
            }
            None => {
                let end = bytes.len();
                self.losses.push(format!(
                    "the file ends at byte {end} without its index: how much is lost is not known"
                ));
            }
        }
        let (mut meta, census) = self.header.unwrap_or_else(|| {
            self.losses.push("the header is lost: vendor, MMU and kernel are unknown".to_owned());
            (Meta::default(), Census::default())
        });
        meta.losses.append(&mut self.losses);
        Ok(Recording { meta, census, records: self.records })
    }
}

/// A whole section at the start of these bytes: kind, records, content.
fn section(bytes: &[u8]) -> Option<(u8, u32, &[u8])> {
    let prefix = bytes.get(..PREFIX_BYTES)?;
    let (kind, records) = (prefix[4], u32_at(&prefix[5..9]));
    let length = u32_at(&prefix[9..13]) as usize;
    let content = bytes.get(PREFIX_BYTES..PREFIX_BYTES.checked_add(length)?)?;
    let whole =
        prefix.starts_with(&MARK) && checksum(&prefix[4..13], content) == u32_at(&prefix[13..17]);
    whole.then_some((kind, records, content))
}

/// Where the next whole section begins, or the end. `budget` is the number of bytes that may still
/// be summed for it.
fn next_section(bytes: &[u8], from: usize, budget: &mut usize) -> usize {
    for at in from..bytes.len().saturating_sub(PREFIX_BYTES) {
        if !bytes[at..].starts_with(&MARK) {
            continue;
        }
        let length = u32_at(&bytes[at + 9..at + 13]) as usize;
        match budget.checked_sub(length.min(bytes.len())) {
            Some(rest) => *budget = rest,
            None => break,
        }
        if section(&bytes[at..]).is_some() {
            return at;
        }
    }
    bytes.len()
}

/// Four little-endian bytes; callers hand exactly four.
fn u32_at(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}
