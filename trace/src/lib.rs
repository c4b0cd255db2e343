//! The vocabulary of tlbscope and the files it reads and writes.
//!
//! [`addr`] and [`regs`] are the words, [`op`] is what guest and host do, [`act`] what hypervisor
//! and hardware do in answer, and [`observe`] the border across which a machine reports both to a
//! judge. Nothing here knows a policy or a cache.
//!
//! [`text`] is the event list of scenarios, [`source`] opens anything that can be read,
//! [`import`] turns other programs' recordings into a [`Recording`], [`native`] keeps one in a file,
//! [`generate`] makes traces of any length up, and [`feed`] hands a trace to a replay batch by batch.

pub mod act;
pub mod addr;
pub mod codec;
pub mod feed;
pub mod generate;
pub mod import;
pub mod jsonl;
pub mod native;
pub mod observe;
pub mod op;
pub mod recording;
pub mod regs;
pub mod source;
pub mod text;

pub use recording::{Body, Census, Meta, Record, Recording};

use std::io::{self, Read as _};
use std::path::Path;

use thiserror::Error;

/// Why a trace cannot be opened.
#[derive(Debug, Error)]
pub enum Error {
    /// The input cannot be read.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// The input is no recording that is known here.
    #[error(transparent)]
    Import(#[from] import::ImportError),
    /// A native file that cannot be read.
    #[error(transparent)]
    Native(#[from] native::NativeError),
    /// Event text with a mistake.
    #[error("{name}:{}:{}: {}{}", error.line, error.column, error.message, error.hint())]
    Text {
        /// The source.
        name: String,
        /// Where and what.
        error: text::TextError,
    },
    /// Event text whose times are not in order.
    #[error(
        "{name}:{line}: time runs backwards, from {from} ns to {to} ns: sort the lines by time"
    )]
    Backwards {
        /// The source.
        name: String,
        /// The first line that is earlier than one before it.
        line: u32,
        /// The time before it.
        from: u64,
        /// Its own.
        to: u64,
    },
    /// Binary content of no known form.
    #[error(
        "{name}: binary content from byte {offset} on, no trace: give a recording as text, a \
         native trace (.tlbt) or an event list, plain or packed with zstd, xz or gzip"
    )]
    Binary {
        /// The source.
        name: String,
        /// The first byte that is no text.
        offset: usize,
    },
    /// More text than an event list may have.
    #[error("{0}: an event list of more than {TEXT_BYTES_MAX} bytes; import it piece by piece")]
    TooLong(String),
}

/// Event text is read whole; this is the most of it.
pub const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Bytes by which a form is recognised.
const HEAD_BYTES: u64 = 64 << 10;

/// Opens a trace of any known form, packed or not, by its content; `-` is standard input.
///
/// # Errors
/// It cannot be read, or its form is not known.
pub fn open(path: &Path) -> Result<Recording, Error> {
    match open_lazily(path)? {
        Opened::Native(reader) => Ok(reader.into_recording()?),
        Opened::Whole(recording) => Ok(recording),
    }
}

/// A trace that is opened.
pub enum Opened {
    /// A native one, at its first block.
    Native(Box<native::Reader<source::Stream>>),
    /// Another one, whole.
    Whole(Recording),
}

/// The same, but a native trace is only begun: to be read block by block.
///
/// # Errors
/// As for [`open`].
pub fn open_lazily(path: &Path) -> Result<Opened, Error> {
    let name = path.display().to_string();
    let mut stream = source::open(path)?;
    // One read may give a few bytes only. An error behind some bytes comes again.
    let mut head = Vec::with_capacity(HEAD_BYTES as usize);
    let read = stream.by_ref().take(HEAD_BYTES).read_to_end(&mut head);
    if head.is_empty() {
        read.map_err(|error| source::SourceError::Io { name: name.clone(), error })?;
        return Err(source::SourceError::Empty(name).into());
    }
    let whole = io::Cursor::new(head.clone()).chain(stream);
    let stream = source::Stream::new(Box::new(whole));
    if head.starts_with(&native::MAGIC) {
        return Ok(Opened::Native(Box::new(native::Reader::new(stream, &name)?)));
    }
    // A recording says what it is within its first lines.
    let known = head.split(|&c| c == b'\n').take(64).any(import::ftrace::looks_like);
    if known {
        return Ok(Opened::Whole(import::ftrace::import(stream, &name)?));
    }
    if let Some(offset) = head.iter().take(4096).position(|&c| c == 0) {
        return Err(Error::Binary { name, offset });
    }
    event_text(stream, name).map(Opened::Whole)
}

/// Event text as a recording: lines without a time come 1 ns after the one before.
fn event_text(stream: source::Stream, name: String) -> Result<Recording, Error> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(TEXT_BYTES_MAX + 1);
    let read = limited.read_to_end(&mut bytes);
    read.map_err(|error| source::SourceError::Io { name: name.clone(), error })?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Error::TooLong(name));
    }
    let list = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::Binary { name: name.clone(), offset }
    })?;
    let lines = text::parse(&list).map_err(|error| Error::Text { name: name.clone(), error })?;
    let mut recording = Recording::default();
    let (mut next, mut last) = (addr::Time(0), addr::Time(0));
    for line in lines {
        if let Some(time) = line.time {
            if time < last {
                let (from, to) = (last.0, time.0);
                return Err(Error::Backwards { name, line: line.number, from, to });
            }
            last = time;
        }
        let time = line.time.unwrap_or(next);
        next = addr::Time(time.0.saturating_add(1));
        if let op::Actor::Vcpu(vcpu) = line.actor {
            recording.meta.vcpus = recording.meta.vcpus.max(vcpu.0.saturating_add(1));
        }
        let body = Body::Op(line.op);
        recording.records.push(Record { time, actor: line.actor, line: line.number, body });
    }
    recording.meta.source = name;
    recording.meta.form = "text".to_owned();
    Ok(recording)
}
