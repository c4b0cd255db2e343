//! Checkpoints: the state of a run on disk, so that a run that is stopped goes on where it was.
//!
//! All numbers are little-endian:
//!
//! ```text
//! magic "TLBC" | version u32 = 1 | length of the header u32 | header | state | xxh3 u64 of all before
//! ```
//!
//! Header ([`Header`]) and state are bincode 2 values, through serde. The state is machine, oracle, tally
//! and the rest of [`Run`]. A state says nothing of its own layout and is meant for the very program
//! that wrote it (another one may judge otherwise, too), so the program is part of the identity that
//! a resume must match, with the trace, the policy, the machine and what else decides the result.
//!
//! The checksum finds damage. What a checkpoint says is believed otherwise.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use rayon::join;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::codec::{self, CodecError};
use tlbscope_trace::feed::Feed;
use tlbscope_trace::native::Batch;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::run::Run;
use super::stream::StreamError;
use super::work::Setup;
use super::{Replay, ReplayError, Wanted};

const MAGIC: [u8; 4] = *b"TLBC";
/// The version that is written and read.
pub const VERSION: u32 = 1;
/// Bytes before the header.
const FRONT: usize = 12;
/// Bytes of the checksum.
const SUM: usize = 8;

/// One thing on which the result of a run depends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityPart {
    /// What it is: `trace`, `policy`.
    pub what: String,
    /// Which one, for messages.
    pub shown: String,
    /// Of its content, where the name is not enough.
    pub digest: u64,
}

impl IdentityPart {
    /// A part of this content.
    #[must_use]
    pub fn new(what: &str, shown: impl Into<String>, content: &[u8]) -> Self {
        Self { what: what.to_owned(), shown: shown.into(), digest: xxh3_64(content) }
    }
}

/// What stands before the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// What the run is of.
    pub identity: Vec<IdentityPart>,
    /// The number of the next event.
    pub position: u64,
    /// Nothing of the trace was lost so far.
    pub whole: bool,
}

/// Where checkpoints go to and come from.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints<'a> {
    /// Write one behind every so many events.
    pub every: Option<u64>,
    /// The file that is written: always a whole checkpoint, the latest.
    pub file: Option<&'a Path>,
    /// The file to go on from.
    pub resume: Option<&'a Path>,
    /// On what the result depends, besides policy and machine.
    pub identity: Vec<IdentityPart>,
}

/// Why a run with checkpoints cannot begin or go on.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The run itself.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The operating system says no.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// It is something else.
    #[error("{0}: not a checkpoint (it does not begin with `TLBC`)")]
    Magic(String),
    /// Of another version.
    #[error("{name}: version {version} of the checkpoints; this program reads version {VERSION}")]
    Version {
        /// The file.
        name: String,
        /// Its version.
        version: u32,
    },
    /// Its checksum does not hold, or it is too short.
    #[error("{0}: cut or damaged: its checksum does not hold; run again from the start")]
    Damaged(String),
    /// It is of another run.
    #[error("{name}: made with another {what}: {was}; this is {is}")]
    Other {
        /// The file.
        name: String,
        /// What differs.
        what: String,
        /// What it was made with.
        was: String,
        /// What there is now.
        is: String,
    },
    /// The state cannot be written or read.
    #[error("{name}: {error}")]
    State {
        /// The file.
        name: String,
        /// Why.
        error: CodecError,
    },
    /// The state is of another machine.
    #[error("{0}: the state in it is not of this machine")]
    Machine(String),
}

impl From<ReplayError> for CheckpointError {
    fn from(error: ReplayError) -> Self {
        Self::Stream(error.into())
    }
}

/// Runs a trace under one policy, from the start or a checkpoint, and writes checkpoints. The
/// result does not depend on either. `progress` is told the number of events done, now and then.
///
/// # Errors
///
/// Those of [`super::stream`]; the checkpoint cannot be written or read, or is of another run.
pub fn checkpointed(
    feed: &mut Feed,
    setup: &Setup,
    policy: &Policy,
    wanted: &Wanted,
    checkpoints: &Checkpoints<'_>,
    progress: impl Fn(u64) + Sync,
) -> Result<Replay, CheckpointError> {
    let identity = identity(setup, policy, wanted, checkpoints);
    let mut run = Run::new(setup, policy, wanted)?;
    let mut header = Header { identity, position: 0, whole: true };
    if let Some(path) = checkpoints.resume {
        (run, header) = read(path, header.identity, run, wanted)?;
        progress(header.position);
    }
    let every = checkpoints.every.filter(|every| *every > 0);
    let mut due = every.map(|every| (header.position / every + 1).saturating_mul(every));
    // What is behind a loss is to be met as it was, so the loss is met again.
    let from = if header.whole { header.position } else { 0 };
    let (mut now, mut next) = (Batch::default(), Batch::default());
    let stream = |error| CheckpointError::Stream(StreamError::Native(error));
    let mut more = feed.next_batch_from(&mut now, from).map_err(stream)?;
    while more {
        let step = || -> Result<(), CheckpointError> {
            let end = now.first + now.events.len() as u64;
            header.whole &= !now.after_loss;
            let mut at = header.position.max(now.first);
            while at < end {
                let until = due.filter(|due| (at + 1..end).contains(due)).unwrap_or(end);
                run.part(&now, (at - now.first) as usize..(until - now.first) as usize)?;
                progress(until - at);
                (at, header.position) = (until, until);
                if let (Some(path), Some(every)) = (checkpoints.file, every)
                    && due.is_some_and(|due| due <= until)
                {
                    write(path, &header, &run)?;
                    due = Some((until / every + 1).saturating_mul(every));
                }
            }
            Ok(())
        };
        let (decoded, done) = join(|| feed.next_batch_from(&mut next, from), step);
        done?;
        more = decoded.map_err(stream)?;
        std::mem::swap(&mut now, &mut next);
    }
    Ok(run.finish())
}

/// On what the result of a run depends.
fn identity(
    setup: &Setup,
    policy: &Policy,
    wanted: &Wanted,
    checkpoints: &Checkpoints<'_>,
) -> Vec<IdentityPart> {
    let mut identity = checkpoints.identity.clone();
    identity.push(IdentityPart::new("policy", policy.name.as_str(), policy.to_toml().as_bytes()));
    let Setup { trace: _, machine, processor, regs } = setup;
    let content = format!("{machine:?} {processor:?} {regs:?}");
    identity.push(IdentityPart::new("machine", machine.tlb.as_str(), content.as_bytes()));
    identity.push(IdentityPart::new("--max-findings", wanted.max_findings.to_string(), &[]));
    identity.push(IdentityPart::new("breakdown", format!("{:?}", wanted.by), &[]));
    let suppressions = format!("{:?}", wanted.suppressions);
    identity.push(IdentityPart::new("--suppress", "those", suppressions.as_bytes()));
    identity
}

/// Sums what goes through.
struct Summed<W> {
    out: W,
    sum: Xxh3,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a checkpoint. The file is a whole one at any time, the earlier or this.
fn write(path: &Path, header: &Header, run: &Run) -> Result<(), CheckpointError> {
    let name = || path.display().to_string();
    let io = |error| CheckpointError::Io { name: name(), error };
    let codec = |error| CheckpointError::State { name: name(), error };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .prefix(".tlbc-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(io)?;
    let mut head = Vec::new();
    codec::encode_state(header, &mut head).map_err(codec)?;
    let mut out = Summed { out: BufWriter::new(file.as_file_mut()), sum: Xxh3::new() };
    out.write_all(&MAGIC).map_err(io)?;
    out.write_all(&VERSION.to_le_bytes()).map_err(io)?;
    out.write_all(&(head.len() as u32).to_le_bytes()).map_err(io)?;
    out.write_all(&head).map_err(io)?;
    // The encoder writes a few bytes at a time: they are gathered before they are summed.
    let mut gathered = BufWriter::with_capacity(1 << 16, &mut out);
    run.save(&mut gathered).map_err(codec)?;
    gathered.flush().map_err(io)?;
    drop(gathered);
    let sum = out.sum.digest();
    out.out.write_all(&sum.to_le_bytes()).map_err(io)?;
    out.out.flush().map_err(io)?;
    drop(out);
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

/// Reads a checkpoint into a run that stands at its start.
fn read(
    path: &Path,
    identity: Vec<IdentityPart>,
    run: Run,
    wanted: &Wanted,
) -> Result<(Run, Header), CheckpointError> {
    let name = path.display().to_string();
    let bytes =
        fs::read(path).map_err(|error| CheckpointError::Io { name: name.clone(), error })?;
    let (header, state) = open(&name, &bytes)?;
    for was in &header.identity {
        let is = identity.iter().find(|part| part.what == was.what);
        if is.is_none_or(|is| is.digest != was.digest || is.shown != was.shown) {
            let is = is.map_or("none", |is| is.shown.as_str());
            let (mut is, mut was_shown) = (is.to_owned(), was.shown.clone());
            if is == was_shown {
                (is, was_shown) = ("one of that name".to_owned(), format!("{is}, as it was then"));
            }
            return Err(CheckpointError::Other {
                name,
                what: was.what.clone(),
                was: was_shown,
                is,
            });
        }
    }
    if identity.len() != header.identity.len() {
        return Err(CheckpointError::Machine(name));
    }
    match run.resume(state, wanted) {
        Ok(Some(run)) => Ok((run, header)),
        Ok(None) => Err(CheckpointError::Machine(name)),
        Err(error) => Err(CheckpointError::State { name, error }),
    }
}

/// Header and state of a checkpoint whose checksum holds.
fn open<'a>(name: &str, bytes: &'a [u8]) -> Result<(Header, &'a [u8]), CheckpointError> {
    let damaged = || CheckpointError::Damaged(name.to_owned());
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or_else(damaged)
    };
    if !bytes.starts_with(&MAGIC) {
        return Err(CheckpointError::Magic(name.to_owned()));
    }
    let version = number(4)?;
    if version != VERSION {
        return Err(CheckpointError::Version { name: name.to_owned(), version });
    }
    let (content, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(damaged)?;
    if u64::from_le_bytes(*sum) != xxh3_64(content) {
        return Err(damaged());
    }
    let end = FRONT.saturating_add(number(8)? as usize);
    let header = content.get(FRONT..end).ok_or_else(damaged)?;
    let header = codec::decode_state(header)
        .map_err(|error| CheckpointError::State { name: name.to_owned(), error })?;
    Ok((header, &content[end..]))
}
