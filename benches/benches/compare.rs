//! Streaming replay of generated guests: each profile, several policies on one and two threads, and
//! more and more vCPUs.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_analyze::replay::{self, Setup};
use tlbscope_sim::policy::{self, Policy};
use tlbscope_trace::feed::Feed;
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::{Body, Record, Recording};

const EVENTS: u64 = 100_000;
const POLICIES: [&str; 8] = [
    "kvm-5.10",
    "kvm-5.15",
    "kvm-5.17",
    "kvm-patch-v2",
    "kvm-5.19",
    "kvm-6.1-lts",
    "kvm-6.4",
    "kvm-7.3",
];

struct Case {
    recording: Recording,
    setup: Setup,
}

impl Case {
    fn new(options: &Options) -> Self {
        let header = options.header();
        let records = Generator::new(options)
            .map(|e| Record { time: e.time, actor: e.actor, line: 0, body: Body::Op(e.op) })
            .collect();
        let setup = Setup::new(&header.meta, header.pcpus, "bench", None).expect("a machine");
        Self { recording: Recording { meta: header.meta, records, ..Recording::default() }, setup }
    }

    fn feed(&self) -> Feed {
        Feed::of(self.recording.clone())
    }

    fn run(&self, feed: &mut Feed, policies: &[Policy]) {
        let runs = replay::stream(feed, &self.setup, policies, 100, |_| ());
        assert_eq!(runs.expect("every operation is known").len(), policies.len());
    }
}

fn policies(names: &[&str]) -> Vec<Policy> {
    names.iter().map(|name| policy::load(name).expect("a built-in")).collect()
}

fn profiles(c: &mut Criterion) {
    let mut group = c.benchmark_group("simulate, profiles");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(10);
    let one = policies(&["kvm-6.1-lts"]);
    for (profile, name) in Profile::ALL {
        let case = Case::new(&Options::new(profile, EVENTS));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || case.feed(),
                |feed| case.run(feed, &one),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("compare, threads");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(10);
    let case = Case::new(&Options::new(Profile::PtiSyscalls, EVENTS));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        for count in [1, 8] {
            let some = policies(&POLICIES[..count]);
            group.bench_function(format!("{count} policies, {threads} threads"), |b| {
                b.iter_batched_ref(
                    || case.feed(),
                    |feed| pool.install(|| case.run(feed, &some)),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

fn vcpus(c: &mut Criterion) {
    let mut group = c.benchmark_group("simulate, vCPUs");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(10);
    let one = policies(&["kvm-6.1-lts"]);
    for vcpus in [1, 8, 64, 512] {
        let case = Case::new(&Options { vcpus, ..Options::new(Profile::Migration, EVENTS) });
        group.bench_function(vcpus.to_string(), |b| {
            b.iter_batched_ref(
                || case.feed(),
                |feed| case.run(feed, &one),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, profiles, threads, vcpus);
criterion_main!(benches);
