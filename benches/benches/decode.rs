//! Reading, writing and making up traces: the native form against ftrace text, from memory.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::import::ftrace;
use tlbscope_trace::native::{self, Batch, Packing, Reader, Writer};
use tlbscope_trace::{Body, Record, Recording, source};

const RECORDING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz");

const PERF_DATA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../testdata/recordings/svm-tiny-npt0-2vcpu.perf.data.zst"
);

/// Events of a generated trace: more than a cache holds, little enough for a quick run.
const EVENTS: u64 = 1_000_000;

/// A checked-in recording, unpacked.
fn unpacked(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = source::open(Path::new(path)).expect("the checked-in recording");
    std::io::Read::read_to_end(&mut stream, &mut bytes).expect("it unpacks");
    bytes
}

fn recording() -> (Vec<u8>, Recording) {
    let text = unpacked(RECORDING);
    let recording = ftrace::import(&text[..], "bench").expect("it imports");
    (text, recording)
}

fn encoded(recording: &Recording, packing: Packing) -> Vec<u8> {
    let mut file = Vec::new();
    native::encode_packed(recording, "bench", &mut file, packing).expect("it encodes");
    file
}

fn generated(profile: Profile) -> (Options, Recording) {
    let options = Options::new(profile, EVENTS);
    let records = Generator::new(&options)
        .map(|e| Record { time: e.time, actor: e.actor, line: 0, body: Body::Op(e.op) })
        .collect();
    (options, Recording { meta: options.header().meta, records, ..Recording::default() })
}

/// Decodes a file into one batch, over and over.
fn stream(file: &[u8], batch: &mut Batch) -> u64 {
    let mut reader = Reader::new(file, "bench").expect("it opens");
    let mut events = 0;
    while reader.next_batch(batch).expect("in order") {
        events += black_box(&batch.events).len() as u64;
    }
    events
}

fn import(c: &mut Criterion) {
    let (text, recording) = recording();
    let mut group = c.benchmark_group("import, ftrace text");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("import", |b| {
        b.iter(|| black_box(ftrace::import(&text[..], "bench")).is_ok());
    });
    group.finish();

    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::io::Write::write_all(&mut file, &unpacked(PERF_DATA)).expect("it is written");
    let census = tlbscope_trace::open(file.path()).expect("it imports").census;
    let counts = census.understood.values().chain(census.unknown.values());
    let events = counts.chain(census.ignored.values().map(|(count, _)| count)).sum();
    let mut group = c.benchmark_group("import, perf.data");
    group.throughput(Throughput::Elements(events));
    group.bench_function("import", |b| {
        b.iter(|| black_box(tlbscope_trace::open(file.path())).is_ok());
    });
    group.finish();

    let file = encoded(&recording, Packing::Plain);
    let mut group = c.benchmark_group("decode, recording");
    group.throughput(Throughput::Elements(recording.records.len() as u64));
    group.bench_function("whole", |b| {
        b.iter(|| black_box(native::decode(&file[..], "bench")).is_ok());
    });
    group.finish();
}

fn decode(c: &mut Criterion) {
    for profile in [Profile::DirtyLog, Profile::PtiSyscalls, Profile::ForkExit] {
        let (_, recording) = generated(profile);
        let mut group = c.benchmark_group(format!("decode, {}", profile.name()));
        group.throughput(Throughput::Elements(EVENTS));
        let mut batch = Batch::default();
        for (name, packing) in [("columns", Packing::Plain), ("columns in zstd", Packing::Zstd(3))]
        {
            let file = encoded(&recording, packing);
            group.bench_function(name, |b| b.iter(|| stream(&file, &mut batch)));
        }
        group.finish();
    }
}

fn encode(c: &mut Criterion) {
    let (_, recording) = generated(Profile::PtiSyscalls);
    let mut group = c.benchmark_group("encode, pti-syscalls");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(20);
    for (name, packing) in [("columns", Packing::Plain), ("columns in zstd", Packing::Zstd(3))] {
        group.bench_function(name, |b| b.iter(|| black_box(encoded(&recording, packing)).len()));
    }
    group.finish();
}

fn generate(c: &mut Criterion) {
    let mut group = c.benchmark_group("generate");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(20);
    for (profile, name) in Profile::ALL {
        let options = Options::new(profile, EVENTS);
        group.bench_function(name, |b| b.iter(|| Generator::new(&options).map(black_box).count()));
    }
    group.bench_function("pti-syscalls, written", |b| {
        let options = Options::new(Profile::PtiSyscalls, EVENTS);
        let mut out = Vec::new();
        b.iter(|| {
            out.clear();
            let header = options.header();
            let mut writer =
                Writer::new("bench", &mut out, &header, Packing::Plain).expect("begins");
            for e in Generator::new(&options) {
                let record = Record { time: e.time, actor: e.actor, line: 0, body: Body::Op(e.op) };
                writer.push(record).expect("in order");
            }
            writer.finish().expect("ends");
        });
    });
    group.finish();
}

criterion_group!(benches, import, decode, encode, generate);
criterion_main!(benches);
