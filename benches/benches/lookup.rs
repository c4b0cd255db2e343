//! The TLB by itself: a lookup that hits, one that misses, an insert, and a flush of all, in the
//! unbounded TLB and in that of a processor.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tlbscope_sim::tlb::{Entry, Geometry, Tlb};
use tlbscope_trace::act::Tag;
use tlbscope_trace::addr::Gva;

/// Pages looked up in turn: half of what the larger geometry holds, so that all of them hit.
const PAGES: u64 = 768;
const LOOKUPS: u64 = 12_288;

/// The second-level TLB of Skylake-SP.
const SKYLAKE: Geometry = Geometry::Sets { entries: 1536, ways: 12 };

fn page(n: u64) -> Gva {
    Gva(0x40_0000 + n % PAGES * 4096)
}

fn filled(geometry: Geometry) -> Tlb {
    let mut tlb = Tlb::new(geometry);
    for n in 0..PAGES {
        tlb.insert(&Tag::default(), page(n), Entry::default());
    }
    tlb
}

fn lookup(c: &mut Criterion) {
    for (name, geometry) in [("unbounded", Geometry::Unbounded), ("1536 entries", SKYLAKE)] {
        let mut group = c.benchmark_group(format!("lookup, {name}"));
        group.throughput(Throughput::Elements(LOOKUPS));
        let tag = Tag::default();
        let mut tlb = filled(geometry);
        group.bench_function("hits", |b| {
            b.iter(|| {
                (0..LOOKUPS).filter(|n| black_box(tlb.lookup(&tag, page(*n))).is_some()).count()
            });
        });
        group.bench_function("misses", |b| {
            let beyond = |n| Gva(page(n).0 + (1 << 30));
            b.iter(|| {
                (0..LOOKUPS).filter(|n| black_box(tlb.lookup(&tag, beyond(*n))).is_none()).count()
            });
        });
        group.bench_function("inserts", |b| {
            b.iter(|| {
                for n in 0..LOOKUPS {
                    black_box(tlb.insert(&tag, page(n), Entry::default()));
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, lookup);
criterion_main!(benches);
