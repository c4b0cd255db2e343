//! The native file: what is written is read back, and damage costs a block and is said.

use tlbscope_trace::act::Act;
use tlbscope_trace::addr::{Gva, Time, VcpuId};
use tlbscope_trace::native::{
    Batch, Header, NativeError, Packing, Reader, Writer, decode, encode_packed,
};
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

fn bytes_of(recording: &Recording, packing: Packing) -> Vec<u8> {
    let mut out = Vec::new();
    encode_packed(recording, "test", &mut out, packing).expect("encodes");
    out
}

fn bytes() -> Vec<u8> {
    bytes_of(&sample(), Packing::Plain)
}

/// Positions of the marks: header, three blocks, index, end.
fn sections(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"SECT")).collect()
}

fn losses(recording: &Recording) -> String {
    recording.meta.losses.join("\n")
}

/// The lines that are there, and the gaps that stand for others.
fn left(recording: &Recording) -> (Vec<u32>, Vec<Option<u64>>) {
    let lines = recording.records.iter().map(|r| r.line).filter(|line| *line > 0).collect();
    let gaps = recording.records.iter().filter(|r| r.line == 0);
    let gaps = gaps.map(|r| match r.body {
        Body::Gap(n) => n,
        _ => panic!("a record without a line"),
    });
    (lines, gaps.collect())
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
    let blocks = bytes_of(&sample(), Packing::Zstd(3));
    assert_eq!(decode(&blocks[..], "test").expect("reads"), sample());
    assert!(blocks.len() < bytes().len());
}

#[test]
fn a_file_that_cannot_be_finished_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    // 20 MiB of one sentence: more than a section may have.
    let mut recording = sample();
    recording.meta.evidence.push("x".repeat(20 << 20));
    let path = folder.path().join("a.tlbt");
    assert!(native::write(&recording, &path).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 0);
}

#[test]
fn a_damaged_block_is_lost_alone_and_said() {
    for packing in [Packing::Plain, Packing::Zstd(1)] {
        let whole = bytes_of(&sample(), packing);
        let second = sections(&whole)[2];
        // In its frame: the mark, the kind, a length, a checksum; and in its content.
        for at in [0, 4, 8, 12, 16, 24, 40, 44, 48, 100] {
            let mut bytes = whole.clone();
            bytes[second + at] ^= 1;
            let recording = decode(&bytes[..], "test").expect("reads");
            let lines = (1..=4096).chain(8193..=10000).collect();
            assert_eq!(left(&recording), (lines, vec![Some(4096)]), "flip at {at}");
            assert_eq!(recording.records[4096].body, Body::Gap(Some(4096)));
            assert!(losses(&recording).contains("4096 records are lost"), "flip at {at}");
        }
    }
}

#[test]
fn bytes_that_are_gone_or_too_many_cost_one_block() {
    let whole = bytes();
    let second = sections(&whole)[2];
    let mut fewer = whole.clone();
    fewer.drain(second + 200..second + 300);
    let mut more = whole.clone();
    more.splice(second + 200..second + 200, [0; 777]);
    let mut none = whole.clone();
    none.drain(second..sections(&whole)[3]);
    for bytes in [fewer, more, none] {
        let recording = decode(&bytes[..], "test").expect("reads");
        let lines = (1..=4096).chain(8193..=10000).collect();
        assert_eq!(left(&recording), (lines, vec![Some(4096)]));
    }
}

#[test]
fn a_lost_first_or_last_block_is_counted() {
    let whole = bytes();
    let at = sections(&whole);
    let mut first = whole.clone();
    first[at[1] + 60] ^= 1;
    let recording = decode(&first[..], "test").expect("reads");
    assert_eq!(left(&recording), ((4097..=10000).collect(), vec![Some(4096)]));
    let mut last = whole.clone();
    last[at[3] + 60] ^= 1;
    let recording = decode(&last[..], "test").expect("reads");
    assert_eq!(left(&recording), ((1..=8192).collect(), vec![Some(1808)]));
}

#[test]
fn a_lost_header_index_or_end() {
    let whole = bytes();
    let at = sections(&whole);
    for (section, said) in [(0, "header is lost"), (4, "damaged"), (5, "end section")] {
        let mut bytes = whole.clone();
        bytes[at[section] + 48] ^= 1;
        let recording = decode(&bytes[..], "test").expect("reads");
        assert_eq!(left(&recording), ((1..=10000).collect(), vec![]), "{said}");
        assert!(losses(&recording).contains(said), "{}", losses(&recording));
    }
}

#[test]
fn a_cut_file_is_read_up_to_the_cut() {
    let bytes = bytes();
    let third = sections(&bytes)[3];
    for cut in [third, third + 3, third + 47, third + 500] {
        let recording = decode(&bytes[..cut], "test").expect("reads");
        assert_eq!(left(&recording).0, (1..=8192).collect::<Vec<_>>());
        assert!(losses(&recording).contains("without its end"), "{}", losses(&recording));
    }
}

#[test]
fn nothing_whole_is_no_trace() {
    let header_only = &bytes()[..20];
    assert!(matches!(decode(header_only, "test"), Err(NativeError::Hopeless(_))));
    assert!(matches!(decode(&b"TLBT"[..], "test"), Err(NativeError::Hopeless(_))));
    assert!(matches!(decode(&b"TLBX\x02\0\0\0"[..], "test"), Err(NativeError::Magic(_))));
}

#[test]
fn other_versions_are_refused_by_name() {
    let refused = |version: u8| {
        let mut bytes = bytes();
        bytes[4] = version;
        decode(&bytes[..], "old.tlbt").expect_err("refuses").to_string()
    };
    assert!(refused(1).contains("old.tlbt: version 1 of the native form, from before"));
    assert!(refused(3).contains("old.tlbt: version 3 of the native form; this program reads"));
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed_and_nothing_panics() {
    let mut recording = sample();
    recording.records.truncate(5);
    let bytes = bytes_of(&recording, Packing::Plain);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let read = decode(&damaged[..], "test");
        assert!(read.map_or(true, |r| r.damaged()), "flip at {at}");
        let cut = decode(&bytes[..at], "test");
        assert!(cut.map_or(true, |r| r.damaged()), "cut at {at}");
    }
}

#[test]
fn a_hostile_file_of_marks_ends() {
    // Every mark claims 16 MiB that do not fit its checksum: summing them all would take hours.
    let whole = bytes();
    let mut bytes = whole[..8].to_vec();
    for _ in 0..200_000 {
        let mut frame = [0_u8; 48];
        frame[..4].copy_from_slice(b"SECT");
        frame[4] = 2;
        frame[8..12].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        let crc = crc32fast::hash(&frame[..44]);
        frame[44..].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&frame);
    }
    assert!(matches!(decode(&bytes[..], "test"), Err(NativeError::Hopeless(_))));
}

#[test]
fn a_stream_gives_the_operations_block_by_block() {
    let bytes = bytes();
    let mut reader = Reader::new(&bytes[..], "test").expect("opens");
    let header = reader.header_ref().expect("a header");
    // Operations are every third of 10000 records, the first among them.
    assert_eq!(
        (header.records, header.operations, header.ordered),
        (Some(10000), Some(3334), true)
    );
    let (mut batch, mut seen) = (Batch::default(), Vec::new());
    while reader.next_batch(&mut batch).expect("reads") {
        // Records 0, 4098 and 8193 are the first operations of their blocks.
        seen.push((batch.first, batch.events.len(), batch.lines[0]));
    }
    assert_eq!(seen, [(0, 1366, 1), (1366, 1365, 4099), (2731, 603, 8194)]);
    assert_eq!(reader.finish().expect("whole").1, Vec::<String>::new());
}

#[test]
fn a_stream_passes_over_what_is_not_wanted() {
    let bytes = bytes();
    let mut reader = Reader::new(&bytes[..], "test").expect("opens");
    let mut batch = Batch::default();
    let wanted = |first, end| (first..end).contains(&2000);
    assert!(reader.next_batch_where(&mut batch, wanted).expect("reads"));
    assert_eq!(batch.first, 1366);
    // Operation 2000 is record 6000.
    assert_eq!(batch.lines[2000 - 1366], 6001);
    assert!(!reader.next_batch_where(&mut batch, wanted).expect("reads"));
}

#[test]
fn an_order_that_is_promised_is_kept() {
    let mut out = Vec::new();
    let header = Header { ordered: true, ..Header::default() };
    let mut writer = Writer::new("test", &mut out, &header, Packing::Plain).expect("begins");
    let event = |time, actor| Record { time: Time(time), actor, line: 0, body: Body::Op(Op::Init) };
    let vcpu = |n| Actor::Vcpu(VcpuId(n));
    writer.push(event(5, vcpu(1))).expect("first");
    writer.push(event(5, Actor::Host)).expect("the host comes after the vCPUs");
    assert!(matches!(writer.push(event(5, vcpu(0))), Err(NativeError::Order { record: 2, .. })));
    // A recording out of order says so, and is not refused.
    let mut recording = sample();
    recording.records.swap(0, 3);
    let bytes = bytes_of(&recording, Packing::Plain);
    let reader = Reader::new(&bytes[..], "test").expect("opens");
    assert_eq!(reader.header_ref().map(|header| header.ordered), Some(false));
    assert_eq!(decode(&bytes[..], "test").expect("reads"), recording);
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
