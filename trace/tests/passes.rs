//! A trace that is read several times gives what it gives when it is read whole.

use std::path::Path;

use tlbscope_trace::passes::Passes;
use tlbscope_trace::{Error, Options, Record, Recording, native, open};

const RECORDING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz");

/// All records of one pass.
fn pass(passes: &mut Passes) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    passes.pass(&mut |some| records.extend_from_slice(some))?;
    Ok(records)
}

fn native_file(recording: &Recording) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    native::write(recording, file.path()).expect("it is written");
    file
}

#[test]
fn every_pass_gives_all_of_it() {
    let whole = open(Path::new(RECORDING)).expect("the recording");
    let file = native_file(&whole);
    for path in [Path::new(RECORDING), file.path()] {
        let mut passes = Passes::open(path, &Options::default()).expect("it opens");
        assert_eq!(passes.head_alone().meta, whole.meta);
        for _ in 0..2 {
            assert_eq!(pass(&mut passes).expect("it reads"), whole.records);
        }
    }
}

#[test]
fn a_damaged_file_has_its_gaps_in_every_pass() {
    let mut whole = open(Path::new(RECORDING)).expect("the recording");
    // Several blocks, of which one in the middle is damaged.
    let span = whole.records.last().expect("records").time.0 + 1;
    let again: Vec<Record> = (0..20_000 / whole.records.len() as u64 + 1)
        .flat_map(|n| whole.records.iter().map(move |r| (n, r)))
        .map(|(n, r)| Record { time: tlbscope_trace::addr::Time(r.time.0 + n * span), ..r.clone() })
        .collect();
    whole.records = again;
    let file = native_file(&whole);
    let mut bytes = std::fs::read(file.path()).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8].fill(0xa5);
    std::fs::write(file.path(), bytes).expect("it is written");
    let read = open(file.path()).expect("what is whole of it");
    assert!(read.records.len() < whole.records.len() && !read.meta.losses.is_empty());
    let mut passes = Passes::open(file.path(), &Options::default()).expect("it opens");
    for _ in 0..2 {
        assert_eq!(pass(&mut passes).expect("it reads"), read.records);
        assert_eq!(passes.head_alone().meta.losses, read.meta.losses);
    }
}

#[test]
fn a_pipe_is_read_once_and_kept() {
    let whole = open(Path::new(RECORDING)).expect("the recording");
    let file = native_file(&whole);
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let bytes = std::fs::read(file.path()).expect("it is there");
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, bytes)
    });
    let mut passes = Passes::open(&pipe, &Options::default()).expect("it opens");
    for _ in 0..2 {
        assert_eq!(pass(&mut passes).expect("it reads"), whole.records);
    }
    writer.join().expect("no panic").expect("it is written");
}

#[test]
fn times_out_of_order_are_an_error_that_names_the_line() {
    let mut whole = open(Path::new(RECORDING)).expect("the recording");
    whole.records[100].time.0 = u64::MAX / 2;
    let file = native_file(&whole);
    let mut passes = Passes::open(file.path(), &Options::default()).expect("it opens");
    let line = whole.records[101].line;
    match pass(&mut passes) {
        Err(Error::Backwards { line: at, .. }) => assert_eq!(at, line),
        other => panic!("{:?}", other.map(|records| records.len())),
    }
}
