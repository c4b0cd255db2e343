//! The vocabulary of tlbscope and the files it reads and writes.
//!
//! [`addr`] and [`regs`] are the words, [`op`] is what guest and host do, [`act`] what hypervisor
//! and hardware do in answer, and [`observe`] the border across which a machine reports both to a
//! judge. Nothing here knows a policy or a cache.
//!
//! [`text`] is the event list of scenarios, [`source`] opens anything that can be read,
//! [`import`] turns other programs' recordings into a [`Recording`], [`native`] keeps one in a file.

pub mod act;
pub mod addr;
pub mod codec;
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

use std::io::BufRead as _;
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
    #[error("{name}: {error}")]
    Text {
        /// The source.
        name: String,
        /// Where and what.
        #[source]
        error: text::TextError,
    },
    /// Binary content of no known form.
    #[error("{0}: binary content that is neither a native trace nor text")]
    Binary(String),
    /// More text than an event list may have.
    #[error("{0}: an event list of more than {TEXT_BYTES_MAX} bytes; import it piece by piece")]
    TooLong(String),
}

/// Event text is read whole; this is the most of it.
pub const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Opens a trace of any known form, packed or not, by its content; `-` is standard input.
///
/// # Errors
/// It cannot be read, or its form is not known.
pub fn open(path: &Path) -> Result<Recording, Error> {
    let name = path.display().to_string();
    let mut stream = source::open(path)?;
    let io = |error| source::SourceError::Io { name: name.clone(), error };
    let head = stream.fill_buf().map_err(io)?;
    if head.is_empty() {
        return Err(source::SourceError::Empty(name).into());
    }
    if head.starts_with(&native::MAGIC) {
        return Ok(native::decode(stream, &name)?);
    }
    // A recording says what it is within its first lines.
    let known = head.split(|&c| c == b'\n').take(64).any(import::ftrace::looks_like);
    if known {
        return Ok(import::ftrace::import(stream, &name)?);
    }
    if head.iter().take(4096).any(|&c| c == 0) {
        return Err(Error::Binary(name));
    }
    event_text(stream, name)
}

/// Event text as a recording: lines without a time come 1 ns after the one before.
fn event_text(stream: source::Stream, name: String) -> Result<Recording, Error> {
    use std::io::Read as _;
    let mut list = String::new();
    let mut limited = stream.take(TEXT_BYTES_MAX + 1);
    if limited.read_to_string(&mut list).is_err() {
        return Err(Error::Binary(name));
    }
    if list.len() as u64 > TEXT_BYTES_MAX {
        return Err(Error::TooLong(name));
    }
    let lines = text::parse(&list).map_err(|error| Error::Text { name: name.clone(), error })?;
    let mut recording = Recording::default();
    let mut next = addr::Time(0);
    for line in lines {
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
