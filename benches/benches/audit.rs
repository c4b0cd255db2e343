//! Auditing recordings of the real KVM, from memory: events judged in a second.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_analyze::audit;

const FILES: [&str; 3] = [
    "vmx-a-blob-ept0.trace.txt.xz",
    "vmx-a-blob-ept1.trace.txt.xz",
    "svm-tiny-npt0-head.trace.txt.xz",
];

fn judge(c: &mut Criterion) {
    let mut group = c.benchmark_group("audit");
    for file in FILES {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/recordings");
        let recording = tlbscope_trace::open(&Path::new(folder).join(file)).expect("a recording");
        group.throughput(Throughput::Elements(recording.records.len() as u64));
        group.bench_function(file, |b| {
            b.iter(|| black_box(audit::run(&recording, file, 100)).is_ok());
        });
    }
    group.finish();
}

criterion_group!(benches, judge);
criterion_main!(benches);
