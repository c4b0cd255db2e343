//! Reading recordings: the native file against ftrace text, from memory.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_trace::import::ftrace;
use tlbscope_trace::{native, source};

const RECORDING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz");

fn decode(c: &mut Criterion) {
    let mut text = Vec::new();
    let mut stream = source::open(Path::new(RECORDING)).expect("the checked-in recording");
    std::io::Read::read_to_end(&mut stream, &mut text).expect("it unpacks");
    let recording = ftrace::import(&text[..], "bench").expect("it imports");
    let mut file = Vec::new();
    native::encode(&recording, "bench", &mut file).expect("it encodes");

    let mut group = c.benchmark_group("import, ftrace text");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("import", |b| {
        b.iter(|| black_box(ftrace::import(&text[..], "bench")).is_ok());
    });
    group.finish();

    let mut group = c.benchmark_group("decode, native");
    group.throughput(Throughput::Elements(recording.records.len() as u64));
    group.bench_function("decode", |b| {
        b.iter(|| black_box(native::decode(&file[..], "bench")).is_ok())
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
