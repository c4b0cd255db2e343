//! The native file: what is written is read back, and damage costs a block and is said.

use tlbscope_trace::act::Act;
use tlbscope_trace::addr::{Gva, Time, VcpuId};
use tlbscope_trace::native::{decode, encode};
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::{Body, Record, Recording, jsonl, native, open};

/// 10000 records: three blocks of 4096, 4096 and 1808.
fn sample() -> Recording {
    let mut recording = Recording::default();
    recording.meta.vcpus = 1;
    recording.census.unknown.insert("thing".into(), 3);
    for n in 0..10_000_u32 {
        let body = match n % 3 {
            0 => Body::Op(Op::Invlpg(Gva(u64::from(n) << 12))),
            1 => Body::Act(Act::Load),
            _ => Body::Gap(Some(7)),
        };
        let (time, actor) = (Time(u64::from(n)), Actor::Vcpu(VcpuId(0)));
        recording.records.push(Record { time, actor, line: n + 1, body });
    }
    recording
}

fn bytes() -> Vec<u8> {
    let mut out = Vec::new();
    encode(&sample(), "test", &mut out).expect("encodes");
    out
}

#[test]
fn a_file_is_read_back_whole_packed_or_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tlbt");
    native::write(&sample(), &path).expect("writes");
    assert_eq!(native::read(&path).expect("reads"), sample());
    assert_eq!(open(&path).expect("opens"), sample());
    let packed = folder.path().join("no-suffix");
    let content = zstd::encode_all(&bytes()[..], 1).expect("packs");
    std::fs::write(&packed, content).expect("writes");
    assert_eq!(open(&packed).expect("opens"), sample());
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 2, "no leftovers");
}

#[test]
fn a_damaged_block_is_lost_alone_and_said() {
    let mut bytes = bytes();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let recording = decode(&bytes[..], "test").expect("reads");
    // The middle byte lies in the second block: 10000 - 4096 records, and one gap in its place.
    assert_eq!(recording.records.len(), 5904 + 1);
    assert_eq!(recording.records[4096].body, Body::Gap(None));
    assert_eq!(recording.records[4097].line, 8193);
    assert!(recording.damaged());
    let said = recording.meta.losses.join("\n");
    assert!(said.contains("4096 records in 1 blocks are lost"), "{said}");
}

#[test]
fn a_cut_file_is_read_up_to_the_cut() {
    let bytes = bytes();
    let recording = decode(&bytes[..bytes.len() / 2], "test").expect("reads");
    assert_eq!(recording.records.iter().filter(|r| r.line > 0).count(), 4096);
    let said = recording.meta.losses.join("\n");
    assert!(said.contains("without its index"), "{said}");
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed_and_nothing_panics() {
    let mut recording = sample();
    recording.records.truncate(5);
    let mut bytes = Vec::new();
    encode(&recording, "test", &mut bytes).expect("encodes");
    for at in 0..bytes.len() {
        // The last eight bytes are a hint for seeking, which this reader does without.
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let read = decode(&damaged[..], "test");
        let noticed = read.map_or(true, |r| r.damaged() || r == recording && at + 8 >= bytes.len());
        assert!(noticed, "flip at {at}");
        let cut = decode(&bytes[..at], "test");
        let noticed = cut.map_or(true, |r| r.damaged() || r == recording && at + 8 >= bytes.len());
        assert!(noticed, "cut at {at}");
    }
}

#[test]
fn json_lines() {
    let mut out = Vec::new();
    jsonl::write(&sample().records[..3], &mut out).expect("writes");
    let expected = concat!(
        r#"{"time":0,"actor":"v0","line":1,"op":"invlpg 0x0"}"#,
        "\n",
        r#"{"time":1,"actor":"v0","line":2,"act":"Load"}"#,
        "\n",
        r#"{"time":2,"actor":"v0","line":3,"gap":7}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
