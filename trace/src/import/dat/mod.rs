//! `trace.dat` of trace-cmd, versions 6 and 7.
//!
//! The file says of itself where everything is: formats of pages and events, symbols, which CPU's
//! pages lie where and how they are packed. The CPUs' events are merged by (time, CPU, place).

mod directory;
mod pages;
mod ring;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Seek, SeekFrom};

use super::event::{Event, Fields};
use super::format::{Raw, little};
use super::kvm::Importer;
use super::symbols::Symbols;
use super::{ImportError, Imported, Options, Sink, header};
use directory::Directory;
use ring::{Found, Ring};

/// Most bytes of one section, unpacked.
const SECTION_BYTES: u64 = 256 << 20;
/// Most bytes of the pages that all CPUs hold in memory at a time.
const HELD_BYTES: u64 = 512 << 20;

/// Something that can be read anywhere.
pub trait Input: Read + Seek + Send {}
impl<T: Read + Seek + Send> Input for T {}

/// A file with its length.
pub(super) struct File<'a> {
    inner: &'a mut dyn Input,
    pub length: u64,
}

impl<'a> File<'a> {
    fn new(inner: &'a mut dyn Input) -> std::io::Result<Self> {
        let length = inner.seek(SeekFrom::End(0))?;
        Ok(Self { inner, length })
    }

    /// Bytes at a place; `None` where the file ends before or that is too much.
    pub fn at(&mut self, offset: u64, size: u64) -> Option<Vec<u8>> {
        let end = offset.checked_add(size)?;
        if end > self.length || size > SECTION_BYTES {
            return None;
        }
        self.inner.seek(SeekFrom::Start(offset)).ok()?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        self.inner.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Whether a file begins as a trace.dat.
#[must_use]
pub fn looks_like(head: &[u8]) -> bool {
    head.starts_with(header::MAGIC)
}

/// Reads a recording and hands its records on as they come. `cut` says why the input ended early,
/// if it did.
///
/// # Errors
/// Its description cannot be read, nothing of KVM is in it, or the sink fails.
pub fn stream(
    input: &mut dyn Input,
    name: &str,
    cut: Option<String>,
    options: &Options,
    sink: &mut dyn Sink,
) -> Result<Imported, ImportError> {
    let io = |error| ImportError::Io { name: name.to_owned(), error };
    let mut file = File::new(input).map_err(io)?;
    let directory = directory::read(&mut file)
        .map_err(|what| ImportError::Container { name: name.to_owned(), what })?;
    let mut symbols = options.symbols.clone();
    if !symbols.has_addresses() {
        symbols.add_kallsyms(&directory.kallsyms);
    }
    let mut importer = Importer::new(name, options);
    cut.into_iter().chain(directory.losses.iter().cloned()).for_each(|loss| importer.lose(loss));
    if let Some(release) = &directory.release {
        importer.kernel_release(release);
    }
    merge(&mut file, &directory, &symbols, &mut importer, sink)?;
    importer.finish("trace.dat", sink)
}

/// Hands the events of all CPUs on in the order of their times.
fn merge(
    file: &mut File<'_>,
    directory: &Directory,
    symbols: &Symbols,
    importer: &mut Importer<'_>,
    sink: &mut dyn Sink,
) -> Result<(), ImportError> {
    let share = HELD_BYTES / (directory.cpus.len() as u64).max(8);
    // A packed piece is ten pages in trace-cmd.
    let share = share.max(128 << 10);
    let mut rings: Vec<Ring> =
        directory.cpus.iter().map(|cpu| Ring::new(cpu, directory, share)).collect();
    // (time, CPU, place in the list): the same order on every run.
    let mut next = BinaryHeap::new();
    for (at, ring) in rings.iter_mut().enumerate() {
        if ring.advance(file, &directory.description) {
            next.push(Reverse((ring.ns, ring.cpu, at)));
        }
    }
    let mut last = 0;
    while let Some(Reverse((ns, cpu, at))) = next.pop() {
        let ring = &mut rings[at];
        // A ring whose own time runs backwards is damaged; its events keep their order.
        if ns < last && !std::mem::replace(&mut ring.backwards, true) {
            importer.lose(format!("the time of CPU {cpu} runs backwards at {ns} ns"));
        }
        last = last.max(ns);
        let ns = directory.clock(last);
        match ring.found {
            Found::Lost(count) => importer.lost(count, 0, Some(ns)),
            Found::Event => {
                event(ring.event(), cpu, ns, directory, symbols, importer, sink)?;
            }
        }
        if ring.advance(file, &directory.description) {
            next.push(Reverse((ring.ns, ring.cpu, at)));
        }
    }
    for ring in &mut rings {
        if let Some(damage) = ring.damage.take() {
            importer.lose(damage);
        }
    }
    Ok(())
}

fn event(
    bytes: &[u8],
    cpu: u16,
    ns: u64,
    directory: &Directory,
    symbols: &Symbols,
    importer: &mut Importer<'_>,
    sink: &mut dyn Sink,
) -> Result<(), ImportError> {
    let (offset, size) = directory.kind;
    let kind = bytes.get(offset..offset + size).map(little);
    let Some(format) = kind.and_then(|kind| directory.description.formats.get(&kind)) else {
        importer.junk();
        return Ok(());
    };
    let raw = Raw { format, bytes, symbols };
    let pid = raw.num(b"common_pid").unwrap_or(0) as u32;
    let event = of_raw(raw, pid, None, cpu, ns);
    importer.event(&event, sink)
}

/// An event of raw fields: what it sits on, if it is a probe, is told by the address in it.
pub(super) fn of_raw<'a>(
    raw: Raw<'a>,
    pid: u32,
    tgid: Option<u32>,
    cpu: u16,
    ns: u64,
) -> Event<'a> {
    let event = Event {
        pid,
        tgid,
        cpu,
        ns,
        line: 0,
        name: &raw.format.name,
        ret: false,
        function: false,
        assumed: false,
        inside: false,
        caller: b"",
        fields: Fields::Raw(raw),
    };
    if let Some(ip) = raw.num(b"__probe_ip") {
        return raw.symbols.resolve(event, ip, 0);
    }
    if let Some(function) = raw.num(b"__probe_func") {
        let back = raw.num(b"__probe_ret_ip").unwrap_or(0);
        return raw.symbols.resolve(Event { ret: true, ..event }, function, back);
    }
    event
}
