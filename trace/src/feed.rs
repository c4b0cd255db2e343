//! A trace for replay: its operations in the engine's order, batch by batch. A native trace that is
//! in order is read as a stream, in memory that does not grow with it; any other is read whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::native::{Batch, Header, NativeError, Reader};
use crate::op::Event;
use crate::recording::{Census, Meta, Recording};
use crate::source::{Stream, once};
use crate::{Error, Opened, Options};

/// Operations of a batch that is cut from a trace in memory.
const BATCH: usize = crate::native::BLOCK_RECORDS;

/// A trace that is opened for replay.
pub struct Feed {
    meta: Meta,
    census: Census,
    source: Source,
    operations: Option<u64>,
    pcpus: u16,
    /// Its losses are in `meta`: a second reading finds the same.
    told: bool,
}

enum Source {
    /// A native trace in order.
    Native(Box<Reader<Stream>>),
    /// Operations in the engine's order, with their lines, and how many were handed out.
    Memory { events: Vec<Event>, lines: Vec<u32>, given: usize },
}

impl Feed {
    /// A native trace, as a stream if it has nothing but operations and they are in order; else
    /// it comes back: it has to be read whole.
    ///
    /// # Errors
    /// The reader, if it cannot be a stream.
    pub fn of_native(reader: Box<Reader<Stream>>) -> Result<Self, Box<Reader<Stream>>> {
        match reader.header_ref() {
            Some(header) if header.ordered && header.records == header.operations => {
                let Header { meta, census, operations, pcpus, .. } = header.clone();
                let source = Source::Native(reader);
                Ok(Self { meta, census, operations, pcpus, source, told: false })
            }
            _ => Err(reader),
        }
    }

    /// The operations of a recording.
    #[must_use]
    pub fn of(recording: Recording) -> Self {
        let mut ops: Vec<_> = recording.ops().collect();
        // The engine's order: (time, actor, place in the source).
        ops.sort_by_key(|(record, _)| (record.time, record.actor));
        let (mut events, mut lines) = (Vec::new(), Vec::new());
        for (record, op) in ops {
            events.push(Event { time: record.time, actor: record.actor, op: op.clone() });
            lines.push(record.line);
        }
        let operations = Some(events.len() as u64);
        let source = Source::Memory { events, lines, given: 0 };
        let pcpus = recording.pcpus();
        Self {
            meta: recording.meta,
            census: recording.census,
            operations,
            pcpus,
            source,
            told: true,
        }
    }

    /// Where from and what machine. What is lost of a stream is in it at the end only.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What became of the source's lines.
    #[must_use]
    pub const fn census(&self) -> &Census {
        &self.census
    }

    /// How many operations there are, if the trace says so.
    #[must_use]
    pub const fn operations(&self) -> Option<u64> {
        self.operations
    }

    /// Physical CPUs that the trace names; 0: it names none.
    #[must_use]
    pub const fn pcpus(&self) -> u16 {
        self.pcpus
    }

    /// The next operations into `batch`, which is emptied first; false at the end.
    ///
    /// # Errors
    /// A trace that is said to be in order is not.
    pub fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, NativeError> {
        self.next_batch_from(batch, 0)
    }

    /// The same, without what ends before this operation: a batch that holds it comes whole.
    ///
    /// # Errors
    /// As for [`Self::next_batch`].
    pub fn next_batch_from(&mut self, batch: &mut Batch, from: u64) -> Result<bool, NativeError> {
        match &mut self.source {
            Source::Memory { events, lines, given } => {
                batch.clear();
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(events.len());
                *given = from.max(*given);
                let end = (*given + BATCH).min(events.len());
                batch.first = *given as u64;
                batch.after_loss = !self.meta.losses.is_empty();
                batch.events.extend_from_slice(&events[*given..end]);
                batch.lines.extend_from_slice(&lines[*given..end]);
                let more = *given < end;
                *given = end;
                Ok(more)
            }
            Source::Native(reader) => {
                let wanted = |_, last| from == 0 || last > from;
                let more = reader.next_batch_where(batch, wanted)?;
                if !more && !std::mem::replace(&mut self.told, true) {
                    self.meta.losses.extend(reader.take_losses());
                }
                Ok(more)
            }
        }
    }

    /// Begins again; false if that cannot be: standard input or a pipe, read as a stream, is gone.
    ///
    /// # Errors
    /// The file cannot be opened again.
    pub fn rewind(&mut self, path: &Path) -> Result<bool, Error> {
        match &mut self.source {
            Source::Memory { given, .. } => *given = 0,
            Source::Native(_) if once(path) => return Ok(false),
            Source::Native(reader) => match crate::open_lazily(path, &Options::default())? {
                Opened::Native(again) => *reader = again,
                Opened::Whole(_) => return Ok(false),
            },
        }
        Ok(true)
    }

    /// The operations with these numbers and their lines, for messages. A stream is read again for
    /// them from `path`, up to the last; those of standard input are gone.
    ///
    /// # Errors
    /// The file cannot be read again.
    pub fn events(
        &self,
        path: &Path,
        numbers: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, (Event, u32)>, Error> {
        let mut found = BTreeMap::new();
        match &self.source {
            Source::Memory { events, lines, .. } => {
                for number in numbers {
                    let at = usize::try_from(*number).unwrap_or(usize::MAX);
                    if let (Some(event), Some(line)) = (events.get(at), lines.get(at)) {
                        found.insert(*number, (event.clone(), *line));
                    }
                }
            }
            Source::Native(_) if once(path) => {}
            Source::Native(_) => {
                let Opened::Native(mut reader) = crate::open_lazily(path, &Options::default())?
                else {
                    return Ok(found);
                };
                pick(&mut reader, numbers, &mut found)?;
            }
        }
        Ok(found)
    }
}

fn pick(
    reader: &mut Reader<Stream>,
    numbers: &BTreeSet<u64>,
    found: &mut BTreeMap<u64, (Event, u32)>,
) -> Result<(), NativeError> {
    let mut batch = Batch::default();
    let wanted = |first, end| numbers.range(first..end).next().is_some();
    while found.len() < numbers.len() && reader.next_batch_where(&mut batch, wanted)? {
        let end = batch.first + batch.events.len() as u64;
        for number in numbers.range(batch.first..end) {
            let at = (number - batch.first) as usize;
            found.insert(*number, (batch.events[at].clone(), batch.lines[at]));
        }
    }
    Ok(())
}
