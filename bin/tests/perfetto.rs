//! `export --to perfetto`, decoded by a reader of its own: the wire format and the field numbers are
//! those of Perfetto's public definition, not of the code that writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A field of a message: a number, or bytes.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

/// Fields by their number, in the order of the message.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (eight, rest) = bytes.split_at(8);
                bytes = rest;
                Field::Number(u64::from_le_bytes(eight.try_into().unwrap()))
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (some, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(some)
            }
            other => panic!("wire type {other} is not used"),
        };
        all.push((key >> 3, field));
    }
    all
}

fn number(of: &[(u64, Field<'_>)], wanted: u64) -> Option<u64> {
    of.iter().find_map(|(n, field)| match field {
        Field::Number(value) if *n == wanted => Some(*value),
        _ => None,
    })
}

fn numbers(of: &[(u64, Field<'_>)], wanted: u64) -> Vec<u64> {
    let all = of.iter().filter_map(|(n, field)| match field {
        Field::Number(value) if *n == wanted => Some(*value),
        _ => None,
    });
    all.collect()
}

fn message<'a>(of: &[(u64, Field<'a>)], wanted: u64) -> Option<Vec<(u64, Field<'a>)>> {
    of.iter().find_map(|(n, field)| match field {
        Field::Bytes(bytes) if *n == wanted => Some(fields(bytes)),
        _ => None,
    })
}

fn string(of: &[(u64, Field<'_>)], wanted: u64) -> Option<String> {
    of.iter().find_map(|(n, field)| match field {
        Field::Bytes(bytes) if *n == wanted => Some(String::from_utf8(bytes.to_vec()).unwrap()),
        _ => None,
    })
}

const BEGIN: u64 = 1;
const END: u64 = 2;
const INSTANT: u64 = 3;
const COUNTER: u64 = 4;

#[derive(Debug)]
struct Event {
    time: u64,
    track: String,
    uuid: u64,
    kind: u64,
    name: String,
    value: Option<u64>,
    flows: Vec<u64>,
    ends: Vec<u64>,
}

struct Timeline {
    /// Parent and name by number.
    tracks: BTreeMap<u64, (Option<u64>, String)>,
    events: Vec<Event>,
}

/// Reads a trace and holds it to what every trace must be.
fn read(bytes: &[u8]) -> Timeline {
    let mut timeline = Timeline { tracks: BTreeMap::new(), events: Vec::new() };
    for (n, (field, packet)) in fields(bytes).into_iter().enumerate() {
        // Trace.packet.
        let Field::Bytes(packet) = packet else { panic!("a packet is a message") };
        assert_eq!(field, 1);
        let packet = fields(packet);
        assert_eq!(number(&packet, 10), Some(1), "trusted_packet_sequence_id");
        assert_eq!(number(&packet, 13), (n == 0).then_some(1), "sequence_flags");
        if let Some(track) = message(&packet, 60) {
            let name = string(&track, 2)
                .or_else(|| message(&track, 3).and_then(|process| string(&process, 6)))
                .or_else(|| message(&track, 4).and_then(|thread| string(&thread, 5)));
            let uuid = number(&track, 1).unwrap();
            let known = timeline.tracks.insert(uuid, (number(&track, 5), name.unwrap()));
            assert!(known.is_none(), "a track is described once");
        }
        if let Some(event) = message(&packet, 11) {
            let uuid = number(&event, 11).unwrap();
            timeline.events.push(Event {
                time: number(&packet, 8).unwrap(),
                track: timeline.tracks[&uuid].1.clone(),
                uuid,
                kind: number(&event, 9).unwrap(),
                name: string(&event, 23).unwrap_or_default(),
                value: number(&event, 30),
                flows: numbers(&event, 47),
                ends: numbers(&event, 48),
            });
        }
    }
    timeline.holds_together();
    timeline
}

impl Timeline {
    fn holds_together(&self) {
        for (parent, name) in self.tracks.values() {
            assert!(parent.is_none_or(|parent| self.tracks.contains_key(&parent)), "{name}");
        }
        assert!(self.events.windows(2).all(|pair| pair[0].time <= pair[1].time), "time runs on");
        let mut depth: BTreeMap<u64, i32> = BTreeMap::new();
        for event in &self.events {
            let depth = depth.entry(event.uuid).or_default();
            match event.kind {
                BEGIN => *depth += 1,
                END => *depth -= 1,
                _ => {}
            }
            assert!((0..=1).contains(depth), "{event:?}");
        }
        assert!(depth.values().all(|depth| *depth == 0), "every slice ends");
        // Each arrow begins once and ends once, later.
        let at = |of: fn(&Event) -> &Vec<u64>| -> BTreeMap<u64, usize> {
            let all = self.events.iter().enumerate();
            all.flat_map(|(n, event)| of(event).iter().map(move |flow| (*flow, n))).collect()
        };
        let (begun, ended) = (at(|event| &event.flows), at(|event| &event.ends));
        assert_eq!(begun.keys().collect::<Vec<_>>(), ended.keys().collect::<Vec<_>>());
        assert!(begun.iter().all(|(flow, n)| *n < ended[flow]));
    }

    fn named(&self, kind: u64, track: &str, name: &str) -> Vec<&Event> {
        let fits = |e: &&Event| e.kind == kind && e.track == track && e.name.contains(name);
        self.events.iter().filter(fits).collect()
    }
}

fn exported(folder: &Path, trace: &str, policy: &str) -> Vec<u8> {
    let args = ["export", trace, "-o", "t.pftrace", "--to", "perfetto", "--policy", policy];
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(folder.join("t.pftrace")).unwrap()
}

/// One page is read, mapped elsewhere, and read again after a write of CR4 that drops it.
const WORK: &str = "@1000 v0 cr3 0x10000\n@2000 v0 map 0x7000 0x5000 rwxg\n@3000 v0 read 0x7000\n\
                    @4000 v0 map 0x7000 0x6000 rwxg\n@5000 v0 cr4 -PGE\n@6000 v0 read 0x7000\n";

#[test]
fn a_missed_flush_is_an_arrow_from_cause_to_use() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("work.txt"), WORK).unwrap();
    let bytes = exported(folder.path(), "work.txt", "never");
    let timeline = read(&bytes);
    let names: Vec<&str> = timeline.tracks.values().map(|(_, name)| name.as_str()).collect();
    for name in ["work.txt under never", "vCPU 0", "v0 roots", "v0 stale", "p0 TLB occupancy"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let cause = timeline.named(INSTANT, "vCPU 0", "cr4 -PGE");
    let used = timeline.named(INSTANT, "vCPU 0", "stale use: read 0x7000");
    let ([cause], [used]) = (&cause[..], &used[..]) else { panic!("{:?}", timeline.events) };
    assert_eq!((cause.time, used.time), (5000, 6000));
    assert_eq!(cause.flows, used.ends);
    assert_eq!(cause.flows.len(), 1);
    let window = timeline.named(BEGIN, "v0 stale", "missed, harmful [cr4-pge]");
    assert_eq!(window.iter().map(|event| event.time).collect::<Vec<_>>(), [5000]);
    let end = timeline.events.iter().find(|e| e.uuid == window[0].uuid && e.kind == END).unwrap();
    assert_eq!(end.time, 6000, "nothing is ever flushed: it lasts to the end");
    // One page was read; nothing dropped it.
    let occupancy = timeline.named(COUNTER, "p0 TLB occupancy", "");
    assert_eq!(occupancy.last().and_then(|event| event.value), Some(1));
    assert_eq!(bytes, exported(folder.path(), "work.txt", "never"), "the same bytes again");
}

#[test]
fn a_flush_that_is_owed_is_shown_and_nothing_is_stale() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("work.txt"), WORK).unwrap();
    let timeline = read(&exported(folder.path(), "work.txt", "kvm-5.17"));
    assert!(timeline.events.iter().all(|e| e.flows.is_empty() && e.track != "v0 stale"));
    // kvm_post_set_cr4 of 5.17: a change of PGE requests a flush of the guest's TLB.
    let served = timeline.named(INSTANT, "vCPU 0", "serves TLB_FLUSH_GUEST");
    assert_eq!(served.iter().map(|event| event.time).collect::<Vec<_>>(), [5000]);
    assert_eq!(timeline.named(INSTANT, "vCPU 0", "request TLB_FLUSH_GUEST").len(), 1);
    // The root of 0x1000 from the start, and that of 0x10000.
    assert!(timeline.named(BEGIN, "v0 roots", "root 0x").len() >= 2);
    let summary = ["simulate", "work.txt", "--policy", "kvm-5.17", "--format", "json"];
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program).args(summary).current_dir(folder.path()).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let cycles = timeline.named(COUNTER, "v0 cycles lost", "");
    assert_eq!(cycles.last().unwrap().value, value["summary"][0]["cycles"].as_u64());
}

#[test]
fn long_and_recorded_traces_hold_together() {
    let folder = tempfile::tempdir().unwrap();
    let made = ["generate", "adversarial", "-o", "t.tlbt", "--events", "4000", "--vcpus", "2"];
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let done = Command::new(program).args(made).current_dir(folder.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    let recording = "/../testdata/recordings/svm-tiny-npt0-2vcpu.perf.script.txt.zst";
    let recording = format!("{}{recording}", env!("CARGO_MANIFEST_DIR"));
    for trace in ["t.tlbt", &recording] {
        for policy in ["never", "kvm-6.1-lts", "hw-min"] {
            let timeline = read(&exported(folder.path(), trace, policy));
            assert!(timeline.named(INSTANT, "vCPU 1", "").len() > 10, "{trace} under {policy}");
        }
    }
}
