//! Damaged binary recordings: cut at every 97th byte and with flipped bytes they end in an error or
//! in losses that are told, never in a panic, a hang or much memory.

use std::io::{Cursor, Read};
use std::path::PathBuf;

use tlbscope_trace::import::{dat, perf};
use tlbscope_trace::{Options, source};

fn bytes(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(name);
    let mut bytes = Vec::new();
    source::open(&path).expect("opens").read_to_end(&mut bytes).expect("unpacks");
    bytes
}

fn read_dat(bytes: &[u8]) -> bool {
    let mut records = Vec::new();
    dat::stream(&mut Cursor::new(bytes), "x", None, &Options::default(), &mut records).is_ok()
}

fn read_perf(bytes: &[u8]) -> bool {
    let mut records = Vec::new();
    perf::stream(&mut Cursor::new(bytes), "x", None, &Options::default(), &mut records).is_ok()
}

/// A fixed sequence of numbers (a linear congruence), so that a failure comes again.
fn numbers() -> impl FnMut() -> usize {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    }
}

/// Flips a few bytes, most of them in `front`, where the description is.
fn flipped(
    whole: &[u8],
    front: std::ops::Range<usize>,
    next: &mut impl FnMut() -> usize,
) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for round in 0..4 {
        let range = if round == 0 { 0..bytes.len() } else { front.clone() };
        let at = range.start + next() % range.len();
        bytes[at] = next() as u8;
    }
    bytes
}

#[test]
fn cut_trace_dat() {
    let whole = bytes("svm-tiny-npt0-head.trace.dat");
    assert!(read_dat(&whole));
    (0..whole.len()).step_by(97).for_each(|at| {
        read_dat(&whole[..at]);
    });
    // Version 6 has its description in front: what is cut behind it still gives records.
    let whole = bytes("svm-tiny-npt0-head.v6.trace.dat.xz");
    let read = (0..whole.len()).step_by(97 * 31).filter(|&at| read_dat(&whole[..at])).count();
    assert!(read > 20, "{read}");
}

#[test]
fn flipped_trace_dat() {
    let mut next = numbers();
    let whole = bytes("svm-tiny-npt0-head.trace.dat");
    for _ in 0..150 {
        read_dat(&flipped(&whole, 0..whole.len(), &mut next));
        // The list of sections ends the file.
        read_dat(&flipped(&whole, whole.len() - 400..whole.len(), &mut next));
        read_dat(&flipped(&whole, 0..64, &mut next));
    }
    let whole = bytes("svm-tiny-npt0-head.v6.trace.dat.xz");
    for _ in 0..100 {
        // Its pages are plain: times, lengths and types are hit.
        read_dat(&flipped(&whole, whole.len() - 41 * 4096..whole.len(), &mut next));
        read_dat(&flipped(&whole, 0..6000, &mut next));
    }
}

#[test]
fn cut_and_flipped_perf_data() {
    let whole = bytes("svm-tiny-npt0-2vcpu.perf.data.zst");
    assert!(read_perf(&whole));
    (0..whole.len()).step_by(97).for_each(|at| {
        read_perf(&whole[..at]);
    });
    let mut next = numbers();
    for _ in 0..10 {
        read_perf(&flipped(&whole, 0..12_000, &mut next));
        read_perf(&flipped(&whole, 11_304..whole.len(), &mut next));
        // The sections behind the records.
        read_perf(&flipped(&whole, 2_188_856..2_245_000, &mut next));
    }
}
