//! The vocabulary of tlbscope and the files it reads and writes.
//!
//! [`addr`] and [`regs`] are the words, [`op`] is what guest and host do, [`act`] what hypervisor
//! and hardware do in answer, and [`observe`] the border across which a machine reports both to a
//! judge. Nothing here knows a policy or a cache.
//!
//! [`text`] is the event list of scenarios, [`source`] opens anything that can be read,
//! [`import`] turns other programs' recordings into a [`Recording`], [`native`] keeps one in a file,
//! [`generate`] makes traces of any length up, [`feed`] hands a trace to a replay batch by batch, and
//! [`passes`] reads one several times.

pub mod act;
pub mod addr;
pub mod codec;
pub mod feed;
pub mod generate;
pub mod import;
pub mod jsonl;
pub mod native;
pub mod nested;
pub mod observe;
pub mod op;
pub mod passes;
pub mod record;
pub mod recording;
pub mod regs;
pub mod source;
pub mod state;
pub mod text;

pub use import::{Imported, Options, Sink};
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
    /// A list of events or a native file whose times are not in order.
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
/// It cannot be read, its form is not known, or nothing is in it.
pub fn open(path: &Path) -> Result<Recording, Error> {
    open_with(path, &Options::default())
}

/// Opens the part of a trace that somebody wants.
///
/// # Errors
/// As for [`open`], and when several VMs are in it.
pub fn open_with(path: &Path, options: &Options) -> Result<Recording, Error> {
    match open_lazily(path, options)? {
        Opened::Whole(recording) => Ok(*recording),
        Opened::Native(reader) => {
            let recording = reader.into_recording()?;
            let mut order = Order::default();
            order.follow(&recording.records, &recording.meta.source)?;
            order.end(&recording.meta)?;
            Ok(recording)
        }
    }
}

/// Whether records are in the order of their times, and whether there are any.
#[derive(Default)]
struct Order {
    last: addr::Time,
    any: bool,
}

impl Order {
    fn follow(&mut self, records: &[Record], name: &str) -> Result<(), Error> {
        for record in records {
            if record.time < self.last {
                let (from, to, line) = (self.last.0, record.time.0, record.line);
                return Err(Error::Backwards { name: name.to_owned(), line, from, to });
            }
            self.last = record.time;
        }
        self.any |= !records.is_empty();
        Ok(())
    }

    /// The last record has come.
    fn end(&self, meta: &Meta) -> Result<(), Error> {
        if self.any || !meta.losses.is_empty() {
            return Ok(());
        }
        let what = "it holds no events at all".to_owned();
        Err(import::ImportError::Nothing { name: meta.source.clone(), what }.into())
    }
}

/// Opens the part of a trace that somebody wants and hands its records on as they come: a
/// recording is never in memory as a whole.
///
/// # Errors
/// As for [`open_with`], and when the sink fails.
pub fn stream(path: &Path, options: &Options, sink: &mut dyn Sink) -> Result<Imported, Error> {
    begin(path)?.go_on(path, options, sink)
}

/// A trace that is opened.
pub enum Opened {
    /// A native one, at its first block.
    Native(Box<native::Reader<source::Stream>>),
    /// Another one, or a part of one, whole.
    Whole(Box<Recording>),
}

/// The same, but a native trace of which everything is wanted is only begun: to be read block by
/// block.
///
/// # Errors
/// As for [`open_with`].
pub fn open_lazily(path: &Path, options: &Options) -> Result<Opened, Error> {
    let begun = begin(path)?;
    if begun.head.starts_with(&native::MAGIC) && options.everything() {
        let Begun { name, stream, .. } = begun;
        return Ok(Opened::Native(Box::new(native::Reader::new(stream, &name)?)));
    }
    let mut records = Vec::new();
    let imported = begun.go_on(path, options, &mut records)?;
    let recording = Recording { meta: imported.meta, census: imported.census, records };
    Ok(Opened::Whole(Box::new(recording)))
}

/// An input whose first bytes are known.
struct Begun {
    name: String,
    head: Vec<u8>,
    /// The whole of it, the head included.
    stream: source::Stream,
}

fn begin(path: &Path) -> Result<Begun, Error> {
    let name = path.display().to_string();
    let mut stream = source::open(path)?;
    // One read may give a few bytes only. An error behind some bytes comes again.
    let mut head = Vec::with_capacity(HEAD_BYTES as usize);
    let read = stream.by_ref().take(HEAD_BYTES).read_to_end(&mut head);
    if head.is_empty() {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        return Err(match read {
            Ok(_) => source::SourceError::Empty(name),
            Err(error) if matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) => {
                source::SourceError::Ruined { name, error }
            }
            Err(error) => source::SourceError::Io { name, error },
        }
        .into());
    }
    let whole = io::Cursor::new(head.clone()).chain(stream);
    Ok(Begun { name, head, stream: source::buffered(Box::new(whole)) })
}

impl Begun {
    fn go_on(self, path: &Path, options: &Options, sink: &mut dyn Sink) -> Result<Imported, Error> {
        let Self { name, head, stream } = self;
        if import::dat::looks_like(&head) || import::perf::looks_like(&head) {
            return anywhere(path, &name, stream, options, sink);
        }
        if head.starts_with(&native::MAGIC) {
            return part(native::decode(stream, &name)?, options, sink);
        }
        // A recording says what it is within its first lines.
        let known = head.split(|&c| c == b'\n').take(64).any(import::ftrace::looks_like);
        if known {
            return Ok(import::ftrace::stream(stream, &name, options, sink)?);
        }
        if let Some(offset) = head.iter().take(4096).position(|&c| c == 0) {
            return Err(Error::Binary { name, offset });
        }
        part(event_text(stream, name)?, options, sink)
    }
}

/// The binary recordings, which are read here and there.
fn anywhere(
    path: &Path,
    name: &str,
    whole: impl io::Read,
    options: &Options,
    sink: &mut dyn Sink,
) -> Result<Imported, Error> {
    // A plain file needs no copy.
    let mut file = if source::once(path) { None } else { std::fs::File::open(path).ok() };
    let mut magic = [0; 10];
    let plain = file.as_mut().is_some_and(|file| file.read_exact(&mut magic).is_ok());
    let plain = plain && (import::dat::looks_like(&magic) || import::perf::looks_like(&magic));
    let (mut spool, cut);
    let input: &mut dyn import::dat::Input = match file.as_mut().filter(|_| plain) {
        Some(file) => {
            cut = None;
            file
        }
        None => {
            (spool, cut) = source::anywhere(whole, name)?;
            &mut spool
        }
    };
    input
        .seek(io::SeekFrom::Start(0))
        .and_then(|_| input.read_exact(&mut magic))
        .map_err(|error| source::SourceError::Io { name: name.to_owned(), error })?;
    if import::dat::looks_like(&magic) {
        Ok(import::dat::stream(input, name, cut, options, sink)?)
    } else {
        Ok(import::perf::stream(input, name, cut, options, sink)?)
    }
}

/// The wanted part of what is in memory. Such a trace holds one VM.
fn part(recording: Recording, options: &Options, sink: &mut dyn Sink) -> Result<Imported, Error> {
    let Recording { meta, census, records } = recording;
    let name = meta.source.clone();
    if let import::VmChoice::Number(vm) = options.vm {
        return Err(
            import::ImportError::NoVm { name, vm, list: " one, without a number".into() }.into()
        );
    }
    let mut order = Order::default();
    order.follow(&records, &name)?;
    order.end(&meta)?;
    for record in records {
        if options.wants(record.actor) && options.when(record.time, None).is_eq() {
            sink.record(record)
                .map_err(|error| import::ImportError::Sink { name: name.clone(), error })?;
        }
    }
    Ok(Imported { meta, census })
}

/// Event text as a recording: lines without a time come 1 ns after the one before.
fn event_text(stream: source::Stream, name: String) -> Result<Recording, Error> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(TEXT_BYTES_MAX + 1);
    let mut losses = Vec::new();
    if let Err(error) = limited.read_to_end(&mut bytes) {
        // What came out of a cut packed file is worth having, up to its last whole line.
        let Some(end) = bytes.iter().rposition(|&c| c == b'\n') else {
            return Err(source::SourceError::Io { name, error }.into());
        };
        bytes.truncate(end + 1);
        losses.push(format!("reading stopped behind byte {}: {error}", end + 1));
    }
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
    recording.meta.losses = losses;
    Ok(recording)
}
