//! Replay under one policy: TLB hits, TLB misses and CR writes, without a judge and with the oracle.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_analyze::oracle::Oracle;
use tlbscope_sim::engine::Machine;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy;
use tlbscope_trace::addr::Time;
use tlbscope_trace::observe::{Nobody, Observer};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::MmuKind;
use tlbscope_trace::text;

const EVENTS: usize = 10_000;

fn events(list: &str) -> Vec<Event> {
    let lines = text::parse(list).expect("the benchmark's own list");
    lines.into_iter().map(|l| Event { time: Time(0), actor: l.actor, op: l.op }).collect()
}

/// `setup`, then `body` over and over up to [`EVENTS`] events.
fn workload(setup: &str, body: &str) -> (Vec<Event>, Vec<Event>) {
    let body = events(body);
    let repeated = body.iter().cycle().take(EVENTS).cloned().collect();
    (events(setup), repeated)
}

/// As a replay carries events out.
fn run<O: Observer>(machine: &mut Machine, events: &[Event], observer: &mut O) {
    let mut at = 0;
    loop {
        at += machine.hits(&events[at..], at as u64, observer);
        let Some(event) = events.get(at) else { break };
        black_box(machine.run(event, at as u64, observer).expect("a known operation"));
        at += 1;
    }
}

fn measure(c: &mut Criterion, group: &str, config: &MachineConfig, setup: &str, body: &str) {
    let policy = policy::load("kvm-6.1-lts").expect("a built-in");
    let (setup, body) = workload(setup, body);
    let mut warm = Machine::new(config, &policy).expect("a machine");
    run(&mut warm, &setup, &mut Nobody);
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("machine alone", |b| {
        b.iter_batched_ref(
            || warm.clone(),
            |machine| run(machine, &body, &mut Nobody),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("with the oracle", |b| {
        b.iter_batched_ref(
            || {
                let mut machine = Machine::new(config, &policy).expect("a machine");
                let mut oracle = Oracle::new(1);
                run(&mut machine, &setup, &mut oracle);
                (machine, oracle)
            },
            |(machine, oracle)| run(machine, &body, oracle),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// Pages of the small working set.
const FEW: u64 = 64;
/// More pages than the TLB of [`skylake`] holds: read in turn under LRU, every one misses.
const MANY: u64 = 2048;

fn unbounded(mmu: MmuKind) -> MachineConfig {
    MachineConfig { mmu, ..MachineConfig::default() }
}

fn skylake(mmu: MmuKind) -> MachineConfig {
    MachineConfig { mmu, tlb: "skylake-sp".to_owned(), ..MachineConfig::default() }
}

fn map_pages(pages: u64) -> String {
    let page =
        |n: u64| format!("v0 map {:#x} {:#x} rwx\n", 0x40_0000 + n * 4096, 0x80_0000 + n * 4096);
    (0..pages).map(page).collect()
}

fn read_pages(pages: u64) -> String {
    (0..pages).map(|n| format!("v0 read {:#x}\n", 0x40_0000 + n * 4096)).collect()
}

fn hits(c: &mut Criterion) {
    let setup = format!("{}{}", map_pages(FEW), read_pages(FEW));
    for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
        let name = format!("replay, TLB hits, {mmu:?}");
        measure(c, &name, &unbounded(mmu), &setup, &read_pages(FEW));
    }
}

fn misses(c: &mut Criterion) {
    let setup = format!("{}{}", map_pages(MANY), read_pages(MANY));
    for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
        let name = format!("replay, TLB misses, {mmu:?}");
        measure(c, &name, &skylake(mmu), &setup, &read_pages(MANY));
    }
}

fn cr_writes(c: &mut Criterion) {
    let body = "v0 cr4 -PGE\nv0 cr4 +PGE\nv0 cr3 0x20000\nv0 cr3 0x10000\nv0 cr0 -WP\nv0 cr0 +WP\n";
    for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
        measure(c, &format!("replay, CR writes, {mmu:?}"), &unbounded(mmu), &map_pages(FEW), body);
    }
}

criterion_group!(benches, hits, misses, cr_writes);
criterion_main!(benches);
