//! What is read: traces, and the digests by which outputs name them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tlbscope_trace::Recording;
use tlbscope_trace::feed::Feed;
use xxhash_rust::xxh3::Xxh3;

/// An input as outputs name it.
#[derive(Clone, Debug, Serialize)]
pub struct Input {
    /// As it was typed.
    pub path: String,
    /// xxh3 of its bytes, 16 hexadecimal digits; empty for standard input.
    pub digest: String,
}

impl Input {
    /// The digest of a file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if name == "-" {
            return Ok(Self { path: name, digest: String::new() });
        }
        let failed = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(failed)?;
        if file.metadata().with_context(failed)?.is_dir() {
            bail!("{}: is a directory, a file is wanted", path.display());
        }
        let mut hasher = Xxh3::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).with_context(failed)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(Self { path: name, digest: format!("{:016x}", hasher.digest()) })
    }

    /// The digest of bytes that were read already.
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Self {
        let digest = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes));
        Self { path: path.display().to_string(), digest }
    }
}

/// Opens a trace of any form.
pub fn open(path: &Path) -> Result<(Recording, Input)> {
    let input = Input::of_file(path)?;
    let recording = tlbscope_trace::open(path)?;
    Ok((recording, input))
}

/// Opens a trace of any form for replay, a native one as a stream.
pub fn feed(path: &Path) -> Result<(Feed, Input)> {
    let input = Input::of_file(path)?;
    Ok((Feed::open(path)?, input))
}

/// Whether an error is a native trace that is damaged so that nothing of it can be read.
pub fn is_ruin(error: &anyhow::Error) -> bool {
    use tlbscope_trace::{Error, native::NativeError};
    matches!(error.downcast_ref(), Some(Error::Native(NativeError::Hopeless(_))))
}
