//! Blocks that wait on disk: a recording says what machine it shows when its last record is gone,
//! and a native trace says it first.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use super::NativeError;
use super::section::Header;
use super::writer::{Packing, Writer};
use crate::addr::Time;
use crate::import::Sink;
use crate::op::Actor;
use crate::recording::{Body, Census, Meta, Record};

/// Kept in memory up to this, else in a temporary file.
const MEMORY_BYTES: usize = 16 << 20;

/// Takes records in order and keeps them as the blocks of the trace that they will be.
pub struct Spool {
    blocks: Writer<BufWriter<SpooledTempFile>>,
    /// Operations taken.
    pub operations: u64,
    /// Acts taken.
    pub acts: u64,
    gaps: u64,
    /// Whether the operations came in the engine's order.
    ordered: bool,
    /// Physical CPUs that the records name; 0: none.
    pcpus: u16,
    last: (Time, Option<Actor>),
}

impl Sink for Spool {
    fn record(&mut self, record: Record) -> io::Result<()> {
        match record.body {
            Body::Op(_) => {
                let now = (record.time, Some(record.actor));
                self.ordered &= self.last <= now;
                self.last = now;
                self.operations += 1;
            }
            Body::Act(_) => self.acts += 1,
            Body::Gap(_) => self.gaps += 1,
        }
        self.pcpus = self.pcpus.max(record.pcpus());
        self.blocks.push(record).map_err(io::Error::other)
    }
}

impl Spool {
    /// An empty one, whose blocks are packed as told. `name` is the trace's, for messages.
    #[must_use]
    pub fn new(name: &str, packing: Packing) -> Self {
        let out = BufWriter::new(SpooledTempFile::new(MEMORY_BYTES));
        Self {
            blocks: Writer::headless(name, out, packing),
            operations: 0,
            acts: 0,
            gaps: 0,
            ordered: true,
            pcpus: 0,
            last: (Time(0), None),
        }
    }

    /// Writes the trace: a header, then the blocks as they are.
    ///
    /// # Errors
    /// A stream fails, or the header is too large.
    pub fn write(
        self,
        meta: &Meta,
        census: &Census,
        out: &mut impl Write,
    ) -> Result<(), NativeError> {
        let header = Header {
            meta: meta.clone(),
            census: census.clone(),
            tool: Header::this_tool(),
            ordered: self.ordered,
            pcpus: self.pcpus,
            records: Some(self.operations + self.acts + self.gaps),
            operations: Some(self.operations),
        };
        self.blocks.behind(&header, out, |blocks, out| {
            let mut blocks = blocks.into_inner().map_err(io::IntoInnerError::into_error)?;
            blocks.seek(SeekFrom::Start(0))?;
            io::copy(&mut blocks, out).map(|_| ())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_RECORDS, encode};
    use super::*;
    use crate::Recording;

    #[test]
    fn a_spool_writes_what_is_written_at_once() {
        let records: Vec<Record> = (0..3 * BLOCK_RECORDS as u64 + 7)
            .map(|n| Record { time: Time(n), actor: Actor::Host, line: 0, body: Body::Gap(None) })
            .collect();
        let mut spool = Spool::new("t", Packing::Plain);
        for record in &records {
            spool.record(record.clone()).expect("kept");
        }
        let recording = Recording { records, ..Recording::default() };
        let (mut at_once, mut spooled) = (Vec::new(), Vec::new());
        encode(&recording, "t", &mut at_once).expect("encoded");
        spool.write(&recording.meta, &recording.census, &mut spooled).expect("written");
        assert!(at_once == spooled, "the index and all blocks are where they should be");
    }
}
