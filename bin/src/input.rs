//! What is read: traces, and the digests by which outputs name them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_analyze::replay;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::feed::Feed;
use tlbscope_trace::import::{Moment, VmChoice};
use tlbscope_trace::passes::Passes;
use tlbscope_trace::{Options, Recording, source};
use xxhash_rust::xxh3::Xxh3;

use crate::args::Reading;

/// An input as outputs name it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Input {
    /// As it was typed.
    pub path: String,
    /// xxh3 of its bytes, 16 hexadecimal digits; empty for standard input and pipes.
    pub digest: String,
}

impl Input {
    /// The digest of a file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if source::once(path) {
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

/// Opens the wanted part of a trace of any form.
pub fn open(path: &Path, reading: &Reading) -> Result<(Recording, Input)> {
    let input = Input::of_file(path)?;
    let recording = tlbscope_trace::open_with(path, &options(reading)?)?;
    Ok((recording, input))
}

/// Opens the wanted part of a trace of any form, to be read several times.
pub fn passes(path: &Path, reading: &Reading) -> Result<(Passes, Input)> {
    let input = Input::of_file(path)?;
    Ok((Passes::open(path, &options(reading)?)?, input))
}

/// What was typed of how to read.
pub fn options(reading: &Reading) -> Result<Options> {
    let mut options = Options::default();
    if let Some(path) = &reading.kallsyms {
        let count = options.symbols.add_kallsyms(&whole(path)?);
        if count == 0 {
            let path = path.display();
            bail!(
                "{path}: no function with an address: read /proc/kallsyms as root, it hides them"
            );
        }
    }
    if let Some(path) = &reading.probes
        && options.symbols.add_probes(&whole(path)?) == 0
    {
        bail!("{}: no probe in it: give lines such as `p:name function`", path.display());
    }
    options.vm = match reading.vm.as_deref() {
        None => VmChoice::Only,
        Some("all") => VmChoice::All,
        Some(text) => {
            let hex = text.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16));
            let number = hex.unwrap_or_else(|| text.parse());
            VmChoice::Number(
                number.with_context(|| format!("--vm {text}: no number and not `all`"))?,
            )
        }
    };
    options.vcpus = reading.vcpu.iter().map(|&vcpu| VcpuId(vcpu)).collect();
    let moment = |text: &Option<String>| {
        text.as_deref().map(Moment::parse).transpose().map_err(anyhow::Error::msg)
    };
    (options.from, options.to) = (moment(&reading.from)?, moment(&reading.to)?);
    Ok(options)
}

/// A small file, packed or not.
fn whole(path: &Path) -> Result<Vec<u8>> {
    const BYTES_MAX: u64 = 256 << 20;
    let mut bytes = Vec::new();
    let read = source::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// Opens a trace of any form for replay, a native one as a stream where that can be.
pub fn feed(path: &Path, reading: &Reading) -> Result<(Feed, Input)> {
    let input = Input::of_file(path)?;
    Ok((replay::open(path, &options(reading)?)?, input))
}

/// Whether an error is an input that is damaged so that nothing of it can be read.
pub fn is_ruin(error: &anyhow::Error) -> bool {
    use tlbscope_analyze::replay::{CheckpointError, StreamError};
    use tlbscope_trace::{Error, import::ImportError, native::NativeError, source::SourceError};
    // A stream finds out while it is replayed, or counted.
    let streamed =
        matches!(error.downcast_ref(), Some(StreamError::Native(NativeError::Hopeless(_))))
            || matches!(error.downcast_ref(), Some(NativeError::Hopeless(_)))
            || matches!(error.downcast_ref(), Some(CheckpointError::Damaged(_)));
    streamed
        || matches!(
            error.downcast_ref(),
            Some(
                Error::Native(NativeError::Hopeless(_))
                    | Error::Import(ImportError::Container { .. })
                    | Error::Source(SourceError::Ruined { .. })
            )
        )
}
