//! Opens anything that can be read, by its content: plain, or packed with zstd, xz or gzip. `-` is
//! standard input.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use thiserror::Error;

/// Bytes of a buffer between a file and its reader.
const BUFFER_BYTES: usize = 256 << 10;
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
    /// Nothing in it.
    #[error("{0}: is empty")]
    Empty(String),
}

/// A stream of unpacked bytes. The dynamic call behind it happens once a buffer.
pub type Stream = BufReader<Box<dyn Read + Send>>;

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
            Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(io)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new(whole, true)),
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        _ => Box::new(whole),
    };
    Ok(BufReader::with_capacity(BUFFER_BYTES, plain))
}
