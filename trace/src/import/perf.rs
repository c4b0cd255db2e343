//! `perf.data` of `perf record`: the container is small and read here, so that no number in a
//! damaged file is believed; its records are taken apart by the crate linux-perf-event-reader, and
//! tracepoint fields by the formats inside the file.
//!
//! perf writes what each CPU's buffer held in turn. A record FINISHED_ROUND says that nothing older
//! than the round before will come: up to there the records are sorted by (time, CPU, place).

use std::io::{BufReader, Read, Seek, SeekFrom};

use byteorder::LittleEndian;
use linux_perf_event_reader::{
    Endianness, EventRecord, PerfEventAttr, PerfEventType, RawData, RawEventRecord,
    RecordParseInfo, RecordType, get_record_timestamp,
};

use super::dat::{Input, of_raw};
use super::format::{Raw, little};
use super::header::{Cursor, Description, Front, parts};
use super::kvm::Importer;
use super::symbols::Symbols;
use super::{ImportError, Imported, Options, Sink};

const MAGIC: &[u8] = b"PERFILE2";
/// Most bytes of a section of the header.
const SECTION_BYTES: u64 = 64 << 20;
/// Bytes of records that wait for the end of a round; beyond this the oldest half goes unsorted.
const WAITING_BYTES: usize = 256 << 20;

const TRACING_DATA: usize = 1;
const OSRELEASE: usize = 4;
const LOST: u32 = 2;
const SAMPLE: u32 = 9;
const LOST_SAMPLES: u32 = 13;
const FINISHED_ROUND: u32 = 68;
/// Records that hold packed records (`perf record -z`).
const COMPRESSED: [u32; 2] = [81, 83];

/// Whether a file begins as a perf.data.
#[must_use]
pub fn looks_like(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Reads a recording and hands its records on as they come. `cut` says why the input ended early,
/// if it did.
///
/// # Errors
/// Its header cannot be read, nothing of KVM is in it, or the sink fails.
pub fn stream(
    input: &mut dyn Input,
    name: &str,
    cut: Option<String>,
    options: &Options,
    sink: &mut dyn Sink,
) -> Result<Imported, ImportError> {
    let mut input = BufReader::with_capacity(1 << 18, input);
    let header = header(&mut input)
        .map_err(|what| ImportError::Container { name: name.to_owned(), what })?;
    let mut symbols = options.symbols.clone();
    if !symbols.has_addresses() {
        symbols.add_kallsyms(&header.kallsyms);
    }
    let mut importer = Importer::new(name, options);
    cut.into_iter().for_each(|loss| importer.lose(loss));
    if let Some(release) = &header.release {
        importer.kernel_release(release);
    }
    let mut rounds = Rounds::new(&header, &symbols);
    let io = |error| ImportError::Io { name: name.to_owned(), error };
    input.seek(SeekFrom::Start(header.data.0)).map_err(io)?;
    rounds.read(&mut input, &mut importer, sink)?;
    importer.finish("perf.data", sink)
}

/// What the file says of itself.
struct Header {
    /// Offset and size of the records.
    data: (u64, u64),
    parse_info: RecordParseInfo,
    description: Description,
    /// Offset and size of `common_type`.
    kind: (usize, usize),
    kallsyms: Vec<u8>,
    release: Option<String>,
}

fn at(input: &mut (impl Read + Seek), place: (u64, u64), length: u64) -> Option<Vec<u8>> {
    let (offset, size) = place;
    if offset.checked_add(size)? > length || size > SECTION_BYTES {
        return None;
    }
    input.seek(SeekFrom::Start(offset)).ok()?;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    input.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn header(input: &mut (impl Read + Seek)) -> Result<Header, String> {
    let length = input.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
    let bytes = at(input, (0, 104), length).ok_or("cut off within its header")?;
    let word = |at: usize| little(&bytes[at..at + 8]);
    if word(8) < 104 {
        return Err(
            "written to a pipe: run `perf inject -o FILE` on it, or record to a file".into()
        );
    }
    let (attr_bytes, attrs, data) = (word(16), (word(24), word(32)), (word(40), word(48)));
    let mut release = None;
    let mut tracing = None;
    let mut place = data.0.checked_add(data.1).ok_or("its sizes are damaged")?;
    for feature in 0..256_usize {
        if word(72 + feature / 64 * 8) >> (feature % 64) & 1 == 0 {
            continue;
        }
        let entry = at(input, (place, 16), length)
            .ok_or("cut off: the formats of its events come behind its records and are missing")?;
        place += 16;
        let section = (little(&entry[..8]), little(&entry[8..]));
        match feature {
            TRACING_DATA => tracing = at(input, section, length),
            OSRELEASE => {
                let text = at(input, section, length).unwrap_or_default();
                let text = text.get(4..).unwrap_or_default();
                let text = text.split(|&c| c == 0).next().unwrap_or_default();
                release = Some(String::from_utf8_lossy(text).into_owned());
            }
            _ => {}
        }
    }
    let tracing = tracing.ok_or("no formats of tracepoints in it: KVM's events are tracepoints")?;
    let mut cursor = Cursor { rest: &tracing };
    Front::read(&mut cursor)?;
    let mut description = Description::default();
    let kallsyms = parts(&mut cursor, &mut description)?.to_vec();
    let kind = description.formats.values().find_map(|format| format.place(b"common_type"));
    let kind =
        kind.filter(|(offset, size)| offset + size <= 64).ok_or("no formats of tracepoints")?;
    let parse_info = parse_info(input, attr_bytes, attrs, length)?;
    Ok(Header { data, parse_info, description, kind, kallsyms, release })
}

/// How records are laid out. perf gives all tracepoints of a session the same layout.
fn parse_info(
    input: &mut (impl Read + Seek),
    attr_bytes: u64,
    attrs: (u64, u64),
    length: u64,
) -> Result<RecordParseInfo, String> {
    let bytes = at(input, attrs, length).ok_or("the list of its events is damaged")?;
    let step = usize::try_from(attr_bytes).ok().filter(|step| (80..=4096).contains(step));
    let step = step.ok_or("the list of its events is damaged")?;
    let mut found: Option<RecordParseInfo> = None;
    for attr in bytes.chunks_exact(step) {
        let parsed = PerfEventAttr::parse::<_, LittleEndian>(attr).ok();
        let (attr, _) = parsed.ok_or("an event of it is of a kind that is not known")?;
        // perf adds an event of its own for what is no sample.
        if !matches!(attr.type_, PerfEventType::Tracepoint(_)) {
            continue;
        }
        let info = RecordParseInfo::new(&attr, Endianness::LittleEndian);
        let other = found.as_ref().is_some_and(|found| {
            found.sample_format != info.sample_format || found.read_format != info.read_format
        });
        if other {
            return Err(
                "its events differ in layout: record KVM's tracepoints by themselves".into()
            );
        }
        found = Some(info);
    }
    found.ok_or_else(|| "it records no tracepoints".to_owned())
}

/// A record that waits.
struct Waiting {
    ns: u64,
    cpu: u16,
    pid: u32,
    tgid: Option<u32>,
    kind: Kind,
}

enum Kind {
    Event(Vec<u8>),
    Lost(Option<u64>),
}

/// Records that are put in order.
struct Rounds<'a> {
    header: &'a Header,
    symbols: &'a Symbols,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    /// The latest time of this round, and of the one before.
    latest: u64,
    before: u64,
    /// The time handed on last.
    last: u64,
}

impl<'a> Rounds<'a> {
    fn new(header: &'a Header, symbols: &'a Symbols) -> Self {
        let (waiting, waiting_bytes) = (Vec::new(), 0);
        Self { header, symbols, waiting, waiting_bytes, latest: 0, before: 0, last: 0 }
    }

    fn read(
        &mut self,
        input: &mut impl Read,
        importer: &mut Importer<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ImportError> {
        let mut left = self.header.data.1;
        let mut body = Vec::new();
        while left >= 8 {
            let mut head = [0; 8];
            if input.read_exact(&mut head).is_err() {
                importer.lose(format!("cut off {left} bytes before the end of its records"));
                break;
            }
            let (kind, misc) = (little(&head[..4]) as u32, little(&head[4..6]) as u16);
            let size = little(&head[6..]);
            if size < 8 || size > left {
                importer.lose(format!("damaged {left} bytes before the end of its records"));
                break;
            }
            left -= size;
            body.resize(size as usize - 8, 0);
            if input.read_exact(&mut body).is_err() {
                importer.lose(format!("cut off {left} bytes before the end of its records"));
                break;
            }
            if COMPRESSED.contains(&kind) {
                let what = "its records are packed (`perf record -z`): `perf inject -o FILE` \
                    unpacks them";
                importer.lose(what.to_owned());
                break;
            }
            if kind == FINISHED_ROUND {
                self.hand_on(self.before, importer, sink)?;
                self.before = self.latest;
                continue;
            }
            self.keep(kind, misc, &body, importer);
            if self.waiting_bytes > WAITING_BYTES {
                let middle = self.before.max(self.latest / 2 + self.last / 2);
                importer
                    .lose("no end of a round in 256 MiB of records: order is not sure".to_owned());
                self.hand_on(middle, importer, sink)?;
                self.hand_on(
                    if self.waiting_bytes > WAITING_BYTES / 2 { u64::MAX } else { 0 },
                    importer,
                    sink,
                )?;
            }
        }
        self.hand_on(u64::MAX, importer, sink)
    }

    /// Puts a record with those that wait.
    fn keep(&mut self, kind: u32, misc: u16, body: &[u8], importer: &mut Importer<'_>) {
        let data = RawData::Single(body);
        let info = &self.header.parse_info;
        let waiting = match kind {
            SAMPLE => {
                let record = RawEventRecord::new(RecordType::SAMPLE, misc, data, *info);
                let Ok(EventRecord::Sample(sample)) = record.parse() else {
                    importer.junk();
                    return;
                };
                let (Some(ns), Some(raw)) = (sample.timestamp, sample.raw) else {
                    importer.junk();
                    return;
                };
                Waiting {
                    ns,
                    cpu: sample.cpu.map_or(0, |cpu| cpu as u16),
                    pid: sample.tid.map_or(0, |tid| tid as u32),
                    tgid: sample.pid.map(|pid| pid as u32),
                    kind: Kind::Event(raw.as_slice().into_owned()),
                }
            }
            LOST | LOST_SAMPLES => {
                let count = if kind == LOST { body.get(8..16) } else { body.get(..8) };
                let ns = get_record_timestamp::<LittleEndian>(RecordType(kind), data, info);
                let kind = Kind::Lost(count.map(little));
                Waiting { ns: ns.unwrap_or(self.latest), cpu: 0, pid: 0, tgid: None, kind }
            }
            _ => return,
        };
        self.latest = self.latest.max(waiting.ns);
        self.waiting_bytes += body.len() + size_of::<Waiting>();
        self.waiting.push(waiting);
    }

    /// Hands on what is not later than this.
    fn hand_on(
        &mut self,
        up_to: u64,
        importer: &mut Importer<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ImportError> {
        // Stable: what is equal keeps its place in the file.
        self.waiting.sort_by_key(|waiting| (waiting.ns, waiting.cpu));
        let many = self.waiting.partition_point(|waiting| waiting.ns <= up_to);
        let ready: Vec<Waiting> = self.waiting.drain(..many).collect();
        for waiting in ready {
            let ns = waiting.ns.max(self.last);
            if waiting.ns < self.last {
                importer.lose(format!("a record of {} ns came too late", waiting.ns));
            }
            self.last = ns;
            match &waiting.kind {
                Kind::Lost(count) => importer.lost(*count, 0, Some(ns)),
                Kind::Event(bytes) => {
                    self.waiting_bytes -= bytes.len().min(self.waiting_bytes);
                    self.event(&waiting, bytes, ns, importer, sink)?;
                }
            }
        }
        if self.waiting.is_empty() {
            self.waiting_bytes = 0;
        }
        Ok(())
    }

    fn event(
        &self,
        waiting: &Waiting,
        bytes: &[u8],
        ns: u64,
        importer: &mut Importer<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), ImportError> {
        let (offset, size) = self.header.kind;
        let kind = bytes.get(offset..offset + size).map(little);
        let formats = &self.header.description.formats;
        let Some(format) = kind.and_then(|kind| formats.get(&kind)) else {
            importer.junk();
            return Ok(());
        };
        let raw = Raw { format, bytes, symbols: self.symbols };
        let event = of_raw(raw, waiting.pid, waiting.tgid, waiting.cpu, ns);
        importer.event(&event, sink)
    }
}
