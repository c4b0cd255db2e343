//! Reads a native trace as a stream, block by block, around damage.

use std::io::Read;

use super::section::{FRAME_BYTES, Frame, Header, Index, Kind, MARK};
use super::unpack::{self, Sink};
use super::wire::u32_at;
use super::{MAGIC, NativeError, RECORDS_MAX, VERSION, gap_after};
use crate::addr::Time;
use crate::codec;
use crate::op::{Actor, Event, Op};
use crate::recording::{Body, Record, Recording};

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// Messages about losses that are kept.
const LOSSES_MAX: usize = 1000;

/// A block's operations, in buffers that are used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of the first in the trace.
    pub first: u64,
    /// The operations.
    pub events: Vec<Event>,
    /// Their lines in the source, 0 where there are none.
    pub lines: Vec<u32>,
    /// Something is lost before them, so that they may not fit what is known.
    pub after_loss: bool,
}

impl Batch {
    /// Empties it, keeping its buffers.
    pub fn clear(&mut self) {
        self.first = 0;
        self.after_loss = false;
        self.events.clear();
        self.lines.clear();
    }
}

impl Sink for Batch {
    fn op(&mut self, time: Time, actor: Actor, line: u32, op: Op) {
        self.events.push(Event { time, actor, op });
        self.lines.push(line);
    }

    fn other(&mut self, _: Time, _: Actor, _: u32, _: Body) {}

    fn reserve(&mut self, records: usize) {
        self.events.reserve(records);
        self.lines.reserve(records);
    }
}

/// A native trace that is being read.
#[derive(Debug)]
pub struct Reader<R> {
    name: String,
    input: R,
    /// Bytes that were read and not yet used up, from `start` on.
    window: Vec<u8>,
    start: usize,
    /// Position of the window's first byte in the file.
    base: u64,
    ended: bool,
    header: Option<Header>,
    losses: Vec<String>,
    /// Records before the next block, if nothing is lost.
    next_record: u64,
    /// Operations likewise.
    next_operation: u64,
    lost: u64,
    blocks: u64,
    index: Option<Index>,
    complete: bool,
    /// Where the damage under way began.
    hole: Option<u64>,
    /// Bytes that were summed in vain.
    spent: u64,
    /// Time and actor of the operation before, where they are in order.
    last: Option<(Time, Actor)>,
    /// Time and actor of the last record that was appended.
    tail: Option<(Time, Actor)>,
    raw: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads up to the first block. `name` is for messages.
    ///
    /// # Errors
    /// It cannot be read, or is of another form or version.
    pub fn new(input: R, name: &str) -> Result<Self, NativeError> {
        let mut reader = Self {
            name: name.to_owned(),
            input,
            window: Vec::new(),
            start: 0,
            base: 0,
            ended: false,
            header: None,
            losses: Vec::new(),
            next_record: 0,
            next_operation: 0,
            lost: 0,
            blocks: 0,
            index: None,
            complete: false,
            hole: None,
            spent: 0,
            last: None,
            tail: None,
            raw: Vec::new(),
        };
        let have = reader.fill(8)?;
        if !reader.window.starts_with(&MAGIC) {
            return Err(NativeError::Magic(name.to_owned()));
        }
        match u32_at(&reader.window, 4) {
            _ if have < 8 => return Err(NativeError::Hopeless(name.to_owned())),
            VERSION => {}
            1 => return Err(NativeError::Old(name.to_owned())),
            version => return Err(NativeError::Version { name: name.to_owned(), version }),
        }
        reader.start = 8;
        if let Some(frame) = reader.peek()?
            && frame.kind == Kind::Header
        {
            reader.consume(&frame);
            reader.header(&frame);
        }
        Ok(reader)
    }

    /// The header; `None`: it is lost.
    #[must_use]
    pub fn header_ref(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The next block's operations into `batch`, which is emptied first; false at the end. A block
    /// without operations gives an empty batch.
    ///
    /// # Errors
    /// The trace says that it is in order, and is not.
    pub fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, NativeError> {
        self.next_batch_where(batch, |_, _| true)
    }

    /// The same, of the next block whose operations, from the first to before the second number,
    /// are wanted. Blocks that are not are checked, but not decoded.
    ///
    /// # Errors
    /// As for [`Reader::next_batch`].
    pub fn next_batch_where(
        &mut self,
        batch: &mut Batch,
        mut wanted: impl FnMut(u64, u64) -> bool,
    ) -> Result<bool, NativeError> {
        while let Some(frame) = self.next_block()? {
            let last = frame.first_operation.saturating_add(u64::from(frame.operations));
            if wanted(frame.first_operation, last) {
                batch.clear();
                if !self.unpack(&frame, batch) {
                    batch.clear();
                }
                batch.first = frame.first_operation;
                batch.after_loss = self.lost > 0 || !self.losses.is_empty();
                self.in_order(batch)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A header that promises an order is no proof of it.
    fn in_order(&mut self, batch: &Batch) -> Result<(), NativeError> {
        if !self.header.as_ref().is_some_and(|header| header.ordered) {
            return Ok(());
        }
        let Some(first) = batch.events.first() else { return Ok(()) };
        let (mut time, mut actor) = self.last.unwrap_or((first.time, first.actor));
        for (at, event) in batch.events.iter().enumerate() {
            if event.time < time || event.time == time && event.actor < actor {
                let record = batch.first + at as u64;
                return Err(NativeError::Order { name: self.name.clone(), record });
            }
            (time, actor) = (event.time, event.actor);
        }
        self.last = Some((time, actor));
        Ok(())
    }

    /// Appends the next block's records, after a gap for what is lost before it; false at the end.
    ///
    /// # Errors
    /// None so far: damage is read around.
    pub fn append(&mut self, records: &mut Vec<Record>) -> Result<bool, NativeError> {
        let lost = self.lost;
        let found = self.next_block()?;
        if self.lost > lost {
            records.push(gap_after(self.tail, self.lost - lost));
        }
        let Some(frame) = found else {
            return Ok(false);
        };
        let before = records.len();
        if !self.unpack(&frame, records) {
            records.truncate(before);
            records.push(gap_after(self.tail, u64::from(frame.records)));
        }
        if let Some(last) = records.last() {
            self.tail = Some((last.time, last.actor));
        }
        Ok(true)
    }

    /// Says what is lost.
    pub fn lose(&mut self, what: String) {
        if self.losses.len() < LOSSES_MAX {
            self.losses.push(what);
        }
    }

    /// The index, once it was read.
    #[must_use]
    pub const fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// Blocks that were read.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Position in the file behind the section read last: its length at the end.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.base + self.start as u64
    }

    /// The rest of the trace, as a whole.
    ///
    /// # Errors
    /// Nothing in it was whole.
    pub fn into_recording(mut self) -> Result<Recording, NativeError> {
        let mut records = Vec::new();
        while records.len() < RECORDS_MAX && self.append(&mut records)? {}
        if records.len() >= RECORDS_MAX {
            self.lose(format!("more than {RECORDS_MAX} records: the rest is not read"));
        }
        let (Header { meta, census, .. }, losses) = self.finish()?;
        let mut recording = Recording { meta, census, records };
        recording.meta.losses.extend(losses);
        Ok(recording)
    }

    /// What was lost so far, a sentence each.
    pub fn take_losses(&mut self) -> Vec<String> {
        if self.lost > 0 {
            let message = format!("{} records are lost", self.lost);
            self.lose(message);
            self.lost = 0;
        }
        std::mem::take(&mut self.losses)
    }

    /// The header, and what was lost, a sentence each. To be called at the end of the file.
    ///
    /// # Errors
    /// Nothing in it was whole.
    pub fn finish(mut self) -> Result<(Header, Vec<String>), NativeError> {
        if self.header.is_none() && self.blocks == 0 {
            return Err(NativeError::Hopeless(self.name));
        }
        if self.header.is_none() {
            self.lose("the header is lost: vendor, MMU and kernel are unknown".to_owned());
        }
        let losses = self.take_losses();
        Ok((self.header.unwrap_or_default(), losses))
    }

    /// The next block; its content is then in the window, before `start`.
    fn next_block(&mut self) -> Result<Option<Frame>, NativeError> {
        while let Some(frame) = self.peek()? {
            self.consume(&frame);
            match frame.kind {
                Kind::Block => {
                    self.counted(frame.first_record, frame.first_operation);
                    self.next_record += u64::from(frame.records);
                    self.next_operation += u64::from(frame.operations);
                    return Ok(Some(frame));
                }
                Kind::Header if self.header.is_none() && self.blocks == 0 => self.header(&frame),
                Kind::Index => self.read_index(&frame),
                Kind::End => {
                    self.counted(frame.first_record, frame.first_operation);
                    self.complete = true;
                }
                Kind::Header => self.lose("a second header is left out".to_owned()),
            }
        }
        if !self.complete {
            self.complete = true;
            let end = self.position();
            self.lose(format!(
                "the file ends at byte {end} without its end section: how much is lost is not known"
            ));
        }
        Ok(None)
    }

    /// A section says how many records come before it.
    fn counted(&mut self, records: u64, operations: u64) {
        self.lost += records.saturating_sub(self.next_record);
        if records < self.next_record {
            self.lose("a block comes twice or out of its order".to_owned());
        }
        self.next_record = records;
        self.next_operation = operations;
    }

    fn header(&mut self, frame: &Frame) {
        match codec::decode(self.content(frame)) {
            Ok(header) => self.header = Some(header),
            Err(error) => self.lose(format!("the header: {error}")),
        }
    }

    fn read_index(&mut self, frame: &Frame) {
        match codec::decode::<Index>(self.content(frame)) {
            Ok(index) => {
                self.counted(index.records, index.operations);
                self.index = Some(index);
            }
            Err(error) => self.lose(format!("the index: {error}")),
        }
    }

    /// The stored bytes of the section that was consumed last.
    fn content(&self, frame: &Frame) -> &[u8] {
        &self.window[self.start - frame.stored as usize..self.start]
    }

    fn unpack<S: Sink>(&mut self, frame: &Frame, sink: &mut S) -> bool {
        let at = self.position() - u64::from(frame.stored);
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        let mut ok = true;
        if frame.zstd {
            raw.resize(frame.raw as usize, 0);
            let unpacked = zstd::bulk::decompress_to_buffer(self.content(frame), &mut raw);
            ok = unpacked.is_ok_and(|bytes| bytes == frame.raw as usize);
        }
        let content = if frame.zstd { &raw[..] } else { self.content(frame) };
        let ok = ok && unpack::unpack(content, frame.records as usize, sink).is_ok();
        self.raw = raw;
        if ok {
            self.blocks += 1;
        } else {
            self.lost += u64::from(frame.records);
            self.lose(format!("the block at byte {at} holds no records"));
        }
        ok
    }

    /// The next whole section, which stays in the window; `None` at the end.
    fn peek(&mut self) -> Result<Option<Frame>, NativeError> {
        loop {
            let have = self.fill(FRAME_BYTES)?;
            if have == 0 {
                self.end_hole();
                return Ok(None);
            }
            if let Some(frame) = Frame::parse(&self.window[self.start..]) {
                let whole = FRAME_BYTES + frame.stored as usize;
                let have = self.fill(whole)?;
                let content = self.window.get(self.start + FRAME_BYTES..self.start + whole);
                if have >= whole && content.is_some_and(|c| crc32fast::hash(c) == frame.crc) {
                    self.end_hole();
                    return Ok(Some(frame));
                }
                self.spent += whole.min(have) as u64;
            }
            self.skip()?;
        }
    }

    /// Goes on to the next mark. Summing sections in vain must end in a hostile file: so many bytes
    /// of it, then it is given up.
    fn skip(&mut self) -> Result<(), NativeError> {
        let position = self.position();
        self.hole.get_or_insert(position);
        let give_up = self.spent > 2 * position + (64 << 20);
        self.start += 1;
        loop {
            let have = self.fill(READ_BYTES)?;
            let window = &self.window[self.start..];
            match window.windows(4).position(|bytes| bytes == MARK) {
                Some(at) if !give_up => {
                    self.start += at;
                    return Ok(());
                }
                _ if have < READ_BYTES => {
                    self.start += have;
                    return Ok(());
                }
                _ => self.start += have - 3,
            }
        }
    }

    fn end_hole(&mut self) {
        if let Some(from) = self.hole.take() {
            let to = self.position();
            self.lose(format!("bytes {from} to {to} are damaged or cut off"));
        }
    }

    fn consume(&mut self, frame: &Frame) {
        self.start += FRAME_BYTES + frame.stored as usize;
    }

    /// Reads until `bytes` are in the window, or the input ends. Returns what there is.
    fn fill(&mut self, bytes: usize) -> Result<usize, NativeError> {
        while self.window.len() - self.start < bytes && !self.ended {
            if self.start > 0 && self.start >= self.window.len() / 2 {
                self.window.drain(..self.start);
                self.base += self.start as u64;
                self.start = 0;
            }
            let have = self.window.len();
            let want = READ_BYTES.max(bytes.saturating_sub(have - self.start));
            self.window.resize(have + want, 0);
            let read = loop {
                match self.input.read(&mut self.window[have..]) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    read => break read,
                }
            };
            self.window.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) if self.base == 0 && have == 0 => {
                    return Err(NativeError::Io { name: self.name.clone(), error });
                }
                Err(error) => {
                    self.ended = true;
                    let at = self.base + have as u64;
                    self.lose(format!("reading stopped behind byte {at}: {error}"));
                }
            }
        }
        Ok(self.window.len() - self.start)
    }
}
