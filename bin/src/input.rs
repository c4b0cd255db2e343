//! What is read: traces, and the digests by which outputs name them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tlbscope_trace::addr::Time;
use tlbscope_trace::op::Actor;
use tlbscope_trace::text;
use tlbscope_trace::{Body, Meta, Record, Recording};
use xxhash_rust::xxh3::Xxh3;

/// An input as outputs name it.
#[derive(Clone, Debug, Serialize)]
pub struct Input {
    /// As it was typed.
    pub path: String,
    /// xxh3 of its bytes, 16 hexadecimal digits; empty for standard input.
    pub digest: String,
}

/// Bytes of an event list in text; what is larger is recorded natively.
const TEXT_BYTES_MAX: u64 = 256 << 20;

impl Input {
    /// The digest of a file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if name == "-" {
            return Ok(Self { path: name, digest: String::new() });
        }
        let failed = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(failed)?;
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
    let mut bytes = Vec::new();
    let stream = stream(path)?;
    stream.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        bail!("{}: an event list of more than 256 MiB", path.display());
    }
    let Ok(list) = String::from_utf8(bytes) else {
        bail!("{}: not text: neither an event list nor anything else that is known", input.path);
    };
    let recording = event_list(&input.path, &list)?;
    Ok((recording, input))
}

/// A file's bytes, or those of standard input.
fn stream(path: &Path) -> Result<Box<dyn Read>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(file))
}

/// The recording that an event list of scenarios is.
fn event_list(name: &str, list: &str) -> Result<Recording> {
    let lines = text::parse(list).map_err(|e| {
        let hint = e.suggestion.map_or(String::new(), |s| format!("; did you mean `{s}`?"));
        anyhow::anyhow!("{name}:{}:{}: {}{hint}", e.line, e.column, e.message)
    })?;
    let mut recording = Recording::default();
    let (mut time, mut vcpus) = (Time(0), 1);
    for line in lines {
        time = line.time.unwrap_or(Time(time.0.saturating_add(1)));
        if let Actor::Vcpu(v) = line.actor {
            vcpus = vcpus.max(v.0.saturating_add(1));
        }
        let body = Body::Op(line.op);
        recording.records.push(Record { time, actor: line.actor, line: line.number, body });
    }
    // The engine takes events in order of (time, actor, place).
    recording.records.sort_by_key(|r| (r.time, r.actor, r.line));
    recording.meta =
        Meta { source: name.to_owned(), form: "text".to_owned(), vcpus, ..Meta::default() };
    Ok(recording)
}
