//! How the cost of an event grows with the number of vCPUs: it should not, but for events that touch
//! every vCPU.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_analyze::oracle::Oracle;
use tlbscope_sim::engine::Machine;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy;
use tlbscope_trace::addr::Time;
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::MmuKind;
use tlbscope_trace::text;

const EVENTS: usize = 10_000;

fn events(list: &str) -> Vec<Event> {
    let lines = text::parse(list).expect("the benchmark's own list");
    lines.into_iter().map(|l| Event { time: Time(0), actor: l.actor, op: l.op }).collect()
}

/// `body` over and over on one vCPU of many, each on a processor of its own.
fn measure(c: &mut Criterion, name: &str, body: &str) {
    let policy = policy::load("kvm-6.1-lts").expect("a built-in");
    let body: Vec<Event> = events(body).iter().cycle().take(EVENTS).cloned().collect();
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(EVENTS as u64));
    for vcpus in [1u16, 8, 64, 512] {
        let mmu = MmuKind::Tdp;
        let config = MachineConfig { mmu, vcpus, pcpus: vcpus, ..MachineConfig::default() };
        let mut machine = Machine::new(&config, &policy).expect("a machine");
        let mut oracle = Oracle::new(vcpus);
        for event in events("v0 map 0x7000 0x5000 rwx\nv0 read 0x7000") {
            machine.run(&event, 0, &mut oracle).expect("a known operation");
        }
        group.bench_function(BenchmarkId::from_parameter(vcpus), |b| {
            b.iter_batched_ref(
                || (machine.clone(), oracle.clone()),
                |(machine, oracle)| {
                    let mut at = 0;
                    loop {
                        at += machine.hits(&body[at..], at as u64, oracle);
                        let Some(event) = body.get(at) else { break };
                        let step = machine.run(event, at as u64, oracle);
                        black_box(step.expect("a known operation"));
                        at += 1;
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn of_one_vcpu(c: &mut Criterion) {
    measure(c, "vCPUs: a hit", "v0 read 0x7000");
    measure(c, "vCPUs: an exit and an entry", "v0 exit");
    measure(c, "vCPUs: a toggle of CR4.SMEP", "v0 cr4 +SMEP\nv0 cr4 -SMEP");
}

criterion_group!(benches, of_one_vcpu);
criterion_main!(benches);
