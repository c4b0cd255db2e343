//! Records that wait on disk: a recording says what machine it shows when its last record is gone,
//! and a native trace says it first.

use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use crate::addr::Time;
use crate::codec;
use crate::import::Sink;
use crate::op::Actor;
use crate::recording::{Body, Record};

/// Records of a block.
const BLOCK_RECORDS: usize = 4096;
/// Kept in memory up to this, else in a temporary file.
const MEMORY_BYTES: usize = 16 << 20;

/// Takes records in order and gives them back in blocks.
#[derive(Debug)]
pub struct Spool {
    out: BufWriter<SpooledTempFile>,
    block: Vec<Record>,
    content: Vec<u8>,
    /// Operations taken.
    pub operations: u64,
    /// Acts taken.
    pub acts: u64,
    /// Gaps taken.
    pub gaps: u64,
    /// Whether the operations came in the engine's order.
    pub ordered: bool,
    /// Physical CPUs that the records name; 0: none.
    pub pcpus: u16,
    last: (Time, Option<Actor>),
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            out: BufWriter::new(SpooledTempFile::new(MEMORY_BYTES)),
            block: Vec::with_capacity(BLOCK_RECORDS),
            content: Vec::new(),
            operations: 0,
            acts: 0,
            gaps: 0,
            ordered: true,
            pcpus: 0,
            last: (Time(0), None),
        }
    }
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
        self.block.push(record);
        if self.block.len() == BLOCK_RECORDS { self.flush() } else { Ok(()) }
    }
}

impl Spool {
    fn flush(&mut self) -> io::Result<()> {
        self.content.clear();
        codec::encode(&self.block, &mut self.content).map_err(io::Error::other)?;
        self.out.write_all(&(self.content.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.content)?;
        self.block.clear();
        Ok(())
    }

    /// The records, block by block.
    ///
    /// # Errors
    /// They cannot be kept or read again.
    pub fn blocks(mut self) -> io::Result<impl Iterator<Item = io::Result<Vec<Record>>>> {
        self.flush()?;
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut left = file.stream_position()?;
        file.seek(SeekFrom::Start(0))?;
        let mut file = BufReader::new(file);
        Ok(std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            Some(block(&mut file).map(|(block, bytes)| {
                left = left.saturating_sub(bytes);
                block
            }))
        }))
    }
}

fn block(file: &mut impl Read) -> io::Result<(Vec<Record>, u64)> {
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    let mut content = vec![0; length as usize];
    file.read_exact(&mut content)?;
    let block = codec::decode(&content).map_err(io::Error::other)?;
    Ok((block, u64::from(length) + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_in_comes_out_in_order() {
        let records: Vec<Record> = (0..10_000)
            .map(|n| Record { time: Time(n), actor: Actor::Host, line: 0, body: Body::Gap(None) })
            .collect();
        let mut spool = Spool::default();
        for record in &records {
            spool.record(record.clone()).expect("kept");
        }
        assert_eq!(spool.gaps, 10_000);
        let blocks: io::Result<Vec<Vec<Record>>> = spool.blocks().expect("kept").collect();
        assert_eq!(blocks.expect("read").concat(), records);
    }
}
