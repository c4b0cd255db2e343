//! Opens anything that can be read, by its content: plain, or packed with zstd, xz or gzip. `-` is
//! standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use thiserror::Error;

/// Bytes of a buffer between a file and its reader.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that are unpacked at a time: so many are lost before damage.
const SALVAGE_BYTES: usize = 4 << 10;
/// Most memory that a packed file may ask for.
const XZ_DICTIONARY_BYTES: u64 = 256 << 20;
const ZSTD_WINDOW_LOG: u32 = 27;
/// A stream that must be read anywhere is kept in memory up to this, else in a temporary file.
const SPOOL_BYTES: usize = 64 << 20;
const SPOOLED_BYTES_MAX: u64 = 64 << 30;
/// Bytes that tell a packed file: xz's magic is the longest.
const MAGIC_BYTES: u64 = 6;

/// Why an input cannot be opened.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The operating system says no.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// A directory.
    #[error("{0}: is a directory, a file is wanted")]
    Directory(String),
    /// Packed so that unpacking would take too much memory.
    #[error("{0}: packed with a dictionary of more than 256 MiB: pack it with `xz -9` or less")]
    Dictionary(String),
    /// Packed, and cut or damaged before anything could be unpacked.
    #[error("{name}: cut or damaged: nothing of it can be unpacked ({error})")]
    Ruined {
        /// The file.
        name: String,
        /// What the unpacker said.
        #[source]
        error: io::Error,
    },
    /// Nothing in it.
    #[error("{0}: is empty")]
    Empty(String),
}

/// A stream of unpacked bytes. The dynamic call behind it happens once a buffer.
pub type Stream = BufReader<Box<dyn Read + Send>>;

/// Whether an input can be read only once: standard input, a pipe.
#[must_use]
pub fn once(path: &Path) -> bool {
    path.as_os_str() == "-" || path.metadata().is_ok_and(|of| !of.is_file() && !of.is_dir())
}

/// Opens a file, or standard input for `-`.
///
/// # Errors
/// It cannot be read, is a directory, or is empty.
pub fn open(path: &Path) -> Result<Stream, SourceError> {
    let name = path.display().to_string();
    if path.as_os_str() == "-" {
        return unpack(Box::new(io::stdin()), "standard input");
    }
    let io = |error| SourceError::Io { name: name.clone(), error };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.is_dir() {
        return Err(SourceError::Directory(name));
    }
    unpack(Box::new(file), &name)
}

/// Unpacks a stream if it is packed. `name` is for messages.
///
/// # Errors
/// It cannot be read or is empty.
pub fn unpack(mut inner: Box<dyn Read + Send>, name: &str) -> Result<Stream, SourceError> {
    let io = |error| SourceError::Io { name: name.to_owned(), error };
    let mut head = Vec::with_capacity(MAGIC_BYTES as usize);
    inner.by_ref().take(MAGIC_BYTES).read_to_end(&mut head).map_err(io)?;
    if head.is_empty() {
        return Err(SourceError::Empty(name.to_owned()));
    }
    let packing = head.clone();
    let whole = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(head).chain(inner));
    let plain: Box<dyn Read + Send> = match packing.as_slice() {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(io)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(io)?;
            Box::new(Salvage::new(decoder))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let mut whole = whole;
            let dictionary = xz_dictionary(whole.fill_buf().map_err(io)?);
            if dictionary.is_some_and(|bytes| bytes > XZ_DICTIONARY_BYTES) {
                return Err(SourceError::Dictionary(name.to_owned()));
            }
            Box::new(Salvage::new(lzma_rust2::XzReader::new(whole, true)))
        }
        [0x1f, 0x8b, ..] => Box::new(Salvage::new(flate2::bufread::MultiGzDecoder::new(whole))),
        _ => Box::new(whole),
    };
    Ok(buffered(plain))
}

/// With a buffer that is as large as all others: what passes through several is copied once.
pub(crate) fn buffered(inner: Box<dyn Read + Send>) -> Stream {
    BufReader::with_capacity(BUFFER_BYTES, inner)
}

/// Reads in small pieces, so that a damaged packed file gives all that lies before the damage, and
/// repeats the error from then on.
struct Salvage<R> {
    inner: R,
    failed: Option<(io::ErrorKind, String)>,
}

impl<R> Salvage<R> {
    const fn new(inner: R) -> Self {
        Self { inner, failed: None }
    }
}

impl<R: Read> Read for Salvage<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some((kind, message)) = &self.failed {
            return Err(io::Error::new(*kind, message.clone()));
        }
        let piece = buffer.len().min(SALVAGE_BYTES);
        self.inner.read(&mut buffer[..piece]).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed = Some((error.kind(), error.to_string()));
            }
        })
    }
}

/// Bytes of the dictionary that the first block of an xz file asks for; `None` if its header shows
/// none (the format's text, 3.1: size, flags, sizes, filters; 5.3.1: LZMA2's dictionary).
fn xz_dictionary(file: &[u8]) -> Option<u64> {
    let header = file.get(12..)?;
    let mut at = 2;
    let flags = *header.get(1)?;
    for bit in [0x40, 0x80] {
        if flags & bit != 0 {
            while header.get(at)? & 0x80 != 0 {
                at += 1;
            }
            at += 1;
        }
    }
    for _ in 0..=(flags & 3) {
        let (id, size) = (*header.get(at)?, usize::from(*header.get(at + 1)?));
        if id == 0x21 {
            let bits = u32::from(*header.get(at + 2)?);
            let bytes = u64::from(2 | bits & 1) << (bits / 2 + 11).min(40);
            return Some(bytes);
        }
        at += 2 + size;
    }
    None
}

/// A file that can be read anywhere: itself, or what a stream holds, in memory if it is small and
/// in a temporary file if not. Also answers why the stream ended early, if it did.
///
/// # Errors
/// There is no room for it.
pub fn anywhere(mut stream: impl Read, name: &str) -> Result<(Spool, Option<String>), SourceError> {
    let io = |error| SourceError::Io { name: name.to_owned(), error };
    let mut spool = tempfile::SpooledTempFile::new(SPOOL_BYTES);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((spool, None)),
            Ok(bytes) => {
                total += bytes as u64;
                if total > SPOOLED_BYTES_MAX {
                    return Ok((spool, Some(format!("only its first {total} bytes were read"))));
                }
                spool.write_all(&buffer[..bytes]).map_err(io)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let what = format!("reading stopped behind byte {total}: {error}");
                return Ok((spool, Some(what)));
            }
        }
    }
}

/// What [`anywhere`] gives.
pub type Spool = tempfile::SpooledTempFile;

#[cfg(test)]
mod tests {
    use super::xz_dictionary;

    #[test]
    fn the_dictionary_of_an_xz_file_is_known_before_it_is_made() {
        // Stream header, then a block header of 12 bytes without sizes: LZMA2, one byte, 8 MiB.
        let mut file = vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4, 0, 0, 0, 0];
        file.extend([2, 0, 0x21, 1, 0x16, 0, 0, 0]);
        assert_eq!(xz_dictionary(&file), Some(8 << 20));
        file[16] = 40;
        assert_eq!(xz_dictionary(&file), Some(2 << 31));
        assert_eq!(xz_dictionary(&file[..13]), None);
    }
}
