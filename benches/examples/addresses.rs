//! Address streams for a side-by-side with other simulators (`benches/peers/README.md`).
//!
//! ```text
//! addresses make local|uniform PAGES ACCESSES SEED OUT.tlbt     a native trace of loads
//! addresses loop LOOPS OUT.tlbt                                unmap, flush, map, over and over
//! addresses list TRACE > LIST                                  its accesses, one a line
//! addresses model LIST ENTRIES WAYS ROUNDS                      the TLB alone, without machine and judge
//! addresses from LIST TIMES OUT.tlbt                           a list of another program, so many times over
//! ```
//!
//! A line of the list is `r`, `w` or `x` and the linear address: `r 0x40001008`.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use tlbscope_analyze::replay;
use tlbscope_sim::tlb::{Entry, Geometry, Tlb};
use tlbscope_trace::act::Tag;
use tlbscope_trace::addr::{Gpa, Gva, PageSize, Time, VcpuId};
use tlbscope_trace::generate::{Options, Profile};
use tlbscope_trace::native::{Batch, Packing, Writer};
use tlbscope_trace::op::{Access, AccessKind, Actor, Op, Perms};
use tlbscope_trace::regs::MmuKind;
use tlbscope_trace::{Body, Record};

/// The first page, and the frame behind it.
const GVA: u64 = 0x4000_0000;
const GPA: u64 = 0x100_0000;
const PERMS: Perms = Perms { read: true, write: true, exec: true, user: false, global: false };

fn mapped(gva: Gva, frame: u64) -> Op {
    let gpa = Gpa(GPA + frame * 4096);
    Op::Map { gva, gpa, size: PageSize::Size4K, perms: PERMS, root: None }
}

fn map(page: u64, frame: u64) -> Op {
    mapped(Gva(GVA + page * 4096), frame)
}

/// Numbers below a bound, the same on every machine (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Loads from pages that are mapped first. *local*: of ten accesses seven go to the page of the one
/// before, of four others three to a sixteenth of the pages; *uniform*: each to any page.
fn accesses(local: bool, pages: u64, count: u64, seed: u64) -> impl Iterator<Item = Op> {
    let (mut random, mut page) = (Random(seed), 0);
    let loads = (0..count).map(move |_| {
        page = match random.below(40) {
            0..28 if local => page,
            28..37 if local => random.below((pages / 16).max(1)),
            _ => random.below(pages),
        };
        let gva = Gva(GVA + page * 4096 + 8 * random.below(512));
        Op::Access(Access { gva, kind: AccessKind::Read, user: false, ac: false })
    });
    (0..pages).map(|page| map(page, page)).chain(loads)
}

/// The addresses of a list.
fn addresses(list: &str) -> Result<Vec<Gva>, Box<dyn Error>> {
    let address = |line: &str| {
        let digits = line.split_whitespace().nth(1)?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok().map(Gva)
    };
    let read = |(n, line)| address(line).ok_or_else(|| format!("line {}: {line}", n + 1));
    Ok((0..).zip(list.lines()).map(read).collect::<Result<Vec<Gva>, _>>()?)
}

/// Looks each address up in a TLB with LRU, and puts in what is not there.
fn model(list: &str, geometry: Geometry, rounds: usize) -> Result<(), Box<dyn Error>> {
    let addresses = addresses(list)?;
    let tag = Tag::default();
    for _ in 0..rounds {
        let mut tlb = Tlb::with_structures(geometry, [None; 4]);
        let (start, mut misses) = (Instant::now(), 0);
        for gva in &addresses {
            if tlb.lookup(&tag, *gva).is_none() {
                tlb.insert(&tag, Gva(gva.0 & !0xfff), Entry::default());
                misses += 1;
            }
        }
        let (seconds, all) = (start.elapsed().as_secs_f64(), addresses.len());
        let speed = all as f64 / seconds / 1e6;
        println!(
            "{all} lookups {seconds:.3} s {speed:.1} M/s hits {} misses {misses}",
            all - misses
        );
    }
    Ok(())
}

/// The addresses of a list as loads, so many times over, from pages that are mapped first.
fn listed(list: &str, times: usize) -> Result<Vec<Op>, Box<dyn Error>> {
    let addresses = addresses(list)?;
    let pages: BTreeSet<u64> = addresses.iter().map(|gva| gva.0 / 4096).collect();
    let loads = (0..times).flat_map(|_| &addresses).map(|gva| {
        Op::Access(Access { gva: *gva, kind: AccessKind::Read, user: false, ac: false })
    });
    Ok((0..).zip(pages).map(|(frame, page)| mapped(Gva(page * 4096), frame)).chain(loads).collect())
}

/// One page that is unmapped, flushed and mapped to another frame.
fn remaps(loops: u64) -> impl Iterator<Item = Op> {
    let once = |n| [Op::Unmap { gva: Gva(GVA), root: None }, Op::Invlpg(Gva(GVA)), map(0, n % 2)];
    [map(0, 1)].into_iter().chain((0..loops).flat_map(once))
}

fn write(
    ops: impl Iterator<Item = Op>,
    count: u64,
    mmu: MmuKind,
    path: &str,
) -> Result<(), Box<dyn Error>> {
    // The machine of a generated guest: one vCPU.
    let options = Options { mmu, ..Options::new(Profile::MmapChurn, count) };
    let mut header = options.header();
    header.meta.source = "addresses".to_owned();
    header.meta.evidence.clear();
    let mut out = BufWriter::new(File::create(path)?);
    let mut writer = Writer::new(path, &mut out, &header, Packing::Plain)?;
    for (n, op) in (0..).zip(ops) {
        let actor = Actor::Vcpu(VcpuId(0));
        writer.push(Record { time: Time(10 * n), actor, line: 0, body: Body::Op(op) })?;
    }
    writer.finish()?;
    Ok(out.flush()?)
}

fn list(path: &str) -> Result<(), Box<dyn Error>> {
    let mut feed = replay::open(Path::new(path), &tlbscope_trace::Options::default())?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut batch = Batch::default();
    while feed.next_batch(&mut batch)? {
        for event in &batch.events {
            let Op::Access(access) = &event.op else { continue };
            let kind = match access.kind {
                AccessKind::Read => 'r',
                AccessKind::Write => 'w',
                AccessKind::Exec => 'x',
            };
            writeln!(out, "{kind} {}", access.gva)?;
        }
    }
    Ok(out.flush()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let typed: Vec<String> = env::args().skip(1).collect();
    let typed: Vec<&str> = typed.iter().map(String::as_str).collect();
    match typed[..] {
        ["make", kind @ ("local" | "uniform"), pages, count, seed, path] => {
            let (pages, count): (u64, u64) = (pages.parse()?, count.parse()?);
            let ops = accesses(kind == "local", pages, count, seed.parse()?);
            // Shadow paging: one table is walked, as in a simulator that knows no hypervisor.
            write(ops, pages + count, MmuKind::Shadow, path)
        }
        ["loop", loops, path] => {
            let loops: u64 = loops.parse()?;
            write(remaps(loops), 1 + 3 * loops, MmuKind::Tdp, path)
        }
        ["list", path] => list(path),
        ["model", list, entries, ways, rounds] => {
            let geometry = Geometry::Sets { entries: entries.parse()?, ways: ways.parse()? };
            model(&fs::read_to_string(list)?, geometry, rounds.parse()?)
        }
        ["from", list, times, path] => {
            let ops = listed(&fs::read_to_string(list)?, times.parse()?)?;
            let count = ops.len() as u64;
            write(ops.into_iter(), count, MmuKind::Shadow, path)
        }
        _ => {
            let forms = "make KIND PAGES ACCESSES SEED OUT | loop LOOPS OUT | list TRACE | model LIST ENTRIES WAYS ROUNDS | from LIST TIMES OUT";
            Err(format!("addresses {forms}").into())
        }
    }
}
