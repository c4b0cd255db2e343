//! Generated traces: the same everywhere, of any length, and small on disk.

use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::native::{Batch, Packing, Reader, Writer};
use tlbscope_trace::op::{Access, Actor, Event, Op};
use tlbscope_trace::{Body, Record};

fn events(options: &Options) -> Vec<Event> {
    Generator::new(options).collect()
}

fn file(options: &Options) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer =
        Writer::new("test", &mut out, &options.header(), Packing::Plain).expect("begins");
    for Event { time, actor, op } in Generator::new(options) {
        let body = Body::Op(op);
        writer.push(Record { time, actor, line: 0, body }).expect("in order");
    }
    writer.finish().expect("ends");
    out
}

#[test]
fn the_same_seed_gives_the_same_events_and_another_others() {
    for (profile, name) in Profile::ALL {
        let options = Options { vcpus: 2, ..Options::new(profile, 30_000) };
        let all = events(&options);
        assert_eq!(all.len(), 30_000, "{name}");
        assert_eq!(all, events(&options), "{name}");
        assert_ne!(all, events(&Options { seed: 2, ..options }), "{name}");
        let short = events(&Options { events: 777, ..options });
        assert_eq!(all[..777], short, "{name}: a shorter one is its beginning");
        assert!(all.is_sorted_by_key(|event| (event.time, event.actor)), "{name}");
    }
}

#[test]
fn the_numbers_of_a_seed_are_fixed() {
    // xorshift128 seeded by `seed_from_u64(1)`; changes of a library show here.
    let options = Options::new(Profile::PtiSyscalls, 300);
    let list: Vec<u64> = events(&options)
        .iter()
        .filter_map(|event| match event.op {
            Op::Access(Access { gva, .. }) => Some(gva.0),
            _ => None,
        })
        .take(4)
        .collect();
    insta::assert_debug_snapshot!(list);
}

#[test]
fn what_is_written_is_read_back() {
    for (profile, name) in Profile::ALL {
        let options = Options { vcpus: 3, ..Options::new(profile, 40_000) };
        let bytes = file(&options);
        let mut reader = Reader::new(&bytes[..], "test").expect("opens");
        let (mut batch, mut back) = (Batch::default(), Vec::new());
        while reader.next_batch(&mut batch).expect("in order") {
            assert_eq!(batch.first, back.len() as u64, "{name}");
            back.append(&mut batch.events);
        }
        assert_eq!(back, events(&options), "{name}");
    }
}

#[test]
fn four_bytes_an_event_are_enough() {
    for (profile, name) in Profile::ALL {
        // (Fork edits more page tables than it makes accesses, and still stays below.)
        let options = Options::new(profile, 200_000);
        let bytes = file(&options).len();
        assert!(bytes < 800_000, "{name}: {bytes}");
    }
}

#[test]
fn the_mix_of_the_recording() {
    let all = events(&Options::new(Profile::PtiSyscalls, 1_000_000));
    let count = |wanted: fn(&Op) -> bool| all.iter().filter(|e| wanted(&e.op)).count() as u64;
    let cr3 = count(|op| matches!(op, Op::Cr3(_)));
    let noflush = count(|op| matches!(op, Op::Cr3(value) if value >> 63 != 0));
    let invlpg = count(|op| matches!(op, Op::Invlpg(_)));
    // The recording: 14987 of 15565 CR3 writes are NOFLUSH, 2125 user pages change.
    assert!((93..=98).contains(&(noflush * 100 / cr3)), "{noflush} of {cr3}");
    assert!((110..=150).contains(&(invlpg * 1000 / cr3)), "{invlpg} of {cr3}");
}

#[test]
fn every_vcpu_has_its_turn() {
    let all = events(&Options { vcpus: 64, ..Options::new(Profile::ContextSwitch, 100_000) });
    for v in 0..64 {
        assert!(all.iter().any(|event| event.actor == Actor::Vcpu(VcpuId(v))), "v{v}");
    }
}
