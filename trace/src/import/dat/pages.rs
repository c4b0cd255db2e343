//! One CPU's pages, piece by piece, unpacked if they are packed.

use std::io::Read;

use super::super::format::little;
use super::File;
use super::directory::Cpu;

/// Bytes of plain pages that are read at a time.
const PIECE_BYTES: u64 = 64 << 10;

/// Bytes of the number of packed pieces.
const PIECES_BYTES: u64 = 4;

/// How sections and pages are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Zstd,
    Zlib,
}

impl Packing {
    /// The method of this name; `none` is none.
    pub fn named(name: &[u8]) -> Result<Option<Self>, String> {
        match name {
            b"none" | b"" => Ok(None),
            b"zstd" => Ok(Some(Self::Zstd)),
            b"zlib" => Ok(Some(Self::Zlib)),
            other => Err(format!(
                "packed with `{}`; zstd and zlib are read: `trace-cmd convert` unpacks it",
                String::from_utf8_lossy(other)
            )),
        }
    }
}

/// Unpacks bytes that claim to be `plain` long, if that is no more than `most`.
pub(super) fn unpack(packing: Packing, packed: &[u8], plain: u64, most: u64) -> Option<Vec<u8>> {
    if plain > most {
        return None;
    }
    // What is claimed is no reason to take the memory before it comes.
    let mut bytes = Vec::with_capacity(usize::try_from(plain.min(1 << 20)).ok()?);
    let read = match packing {
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(packed).ok()?;
            decoder.take(plain).read_to_end(&mut bytes)
        }
        Packing::Zlib => flate2::read::ZlibDecoder::new(packed).take(plain).read_to_end(&mut bytes),
    };
    (read.is_ok() && bytes.len() as u64 == plain).then_some(bytes)
}

/// The pages that are still to come.
#[derive(Debug)]
pub(super) struct Pages {
    offset: u64,
    end: u64,
    packing: Option<Packing>,
    page_bytes: usize,
    /// Packed pieces that are left; `None` before their number was read.
    pieces: Option<u64>,
    most: u64,
    piece: Vec<u8>,
    at: usize,
}

impl Pages {
    pub fn new(cpu: &Cpu, most: u64) -> Self {
        Self {
            offset: cpu.offset,
            // The size does not count the number of packed pieces in front.
            end: cpu.offset.saturating_add(cpu.size).saturating_add(PIECES_BYTES),
            packing: cpu.packing,
            page_bytes: cpu.page_bytes as usize,
            pieces: None,
            most,
            piece: Vec::new(),
            at: 0,
        }
    }

    /// The next page; `None` at the end, an error where something is missing or damaged.
    pub fn next(&mut self, file: &mut File<'_>, page: &mut Vec<u8>) -> Result<bool, String> {
        if self.at >= self.piece.len() && !self.refill(file)? {
            return Ok(false);
        }
        let end = (self.at + self.page_bytes).min(self.piece.len());
        page.clear();
        page.extend_from_slice(&self.piece[self.at..end]);
        self.at = end;
        Ok(true)
    }

    fn refill(&mut self, file: &mut File<'_>) -> Result<bool, String> {
        let at = self.offset;
        let damaged = || format!("the pages at byte {at} are cut off or damaged");
        self.at = 0;
        self.piece.clear();
        let Some(packing) = self.packing else {
            let pages = (PIECE_BYTES / self.page_bytes as u64).max(1);
            let size =
                (self.end - PIECES_BYTES).saturating_sub(at).min(pages * self.page_bytes as u64);
            let there = size.min(file.length.saturating_sub(at));
            if size == 0 {
                return Ok(false);
            }
            self.piece = file.at(at, there).filter(|p| !p.is_empty()).ok_or_else(damaged)?;
            self.offset = at + there;
            return Ok(true);
        };
        let mut number = |offset: u64| file.at(offset, 4).map(|bytes| little(&bytes));
        let left = match self.pieces {
            Some(left) => left,
            None => {
                self.offset += 4;
                number(at).ok_or_else(damaged)?
            }
        };
        if left == 0 {
            return Ok(false);
        }
        self.pieces = Some(left - 1);
        let packed = number(self.offset).ok_or_else(damaged)?;
        let plain = number(self.offset + 4).ok_or_else(damaged)?;
        let start = self.offset + 8;
        if start.saturating_add(packed) > self.end.max(start) {
            return Err(damaged());
        }
        let bytes = file.at(start, packed).ok_or_else(damaged)?;
        self.piece = unpack(packing, &bytes, plain, self.most).ok_or_else(damaged)?;
        self.offset = start + packed;
        Ok(!self.piece.is_empty())
    }
}
