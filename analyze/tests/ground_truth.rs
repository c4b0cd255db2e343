//! The table of what KVM did for each kind of write, against the tables that stand beside the
//! recordings (the same guest with EPT under 5.10.262 and 6.1.192, and with shadow paging).

use std::path::Path;

use tlbscope_analyze::audit::{self, Transitions};

const COLUMNS: [&str; 4] = ["reset", "load", "flush-guest", "flush-current"];

fn table(file: &str) -> Transitions {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    let recording = tlbscope_trace::open(&path).expect("a checked-in recording");
    audit::run(&recording, file, 1).expect("vendor and mode are shown").transitions
}

/// How often a kind of write was seen, in every mode, and what was done: [`COLUMNS`].
fn seen(table: &Transitions, kind: &str, refused: bool) -> (u64, [u64; 4]) {
    let (mut count, mut acts) = (0, [0; 4]);
    for (name, row) in table.rows() {
        let (what, _) = name.split_once(", ").unwrap_or((name, ""));
        if what == kind && name.ends_with("#GP") == refused {
            count += row.operations;
            for (sum, column) in acts.iter_mut().zip(COLUMNS) {
                *sum += row.count(column).expect("a column");
            }
        }
    }
    (count, acts)
}

fn check(file: &str, rows: &[(&str, u64, [u64; 4])]) {
    let table = table(file);
    for (kind, count, acts) in rows {
        assert_eq!(seen(&table, kind, false), (*count, *acts), "{file}: {kind}");
    }
    for refused in ["CR4 +bit31", "CR4 +LA57", "CR0 +NW"] {
        assert_eq!(seen(&table, refused, true), (1, [0; 4]), "{file}: {refused}");
    }
}

#[test]
fn with_ept_under_6_1() {
    check(
        "vmx-a-blob-ept1.trace.txt.xz",
        &[
            ("CR0 +PG", 3, [3, 3, 0, 0]),
            ("CR0 -PG", 4, [4, 4, 4, 0]),
            ("CR0 +WP +PG", 2, [2, 2, 0, 0]),
            ("CR0 +WP", 0, [0; 4]),
            ("CR4 +PCIDE", 4, [0; 4]),
            ("CR4 -PCIDE", 4, [0, 0, 4, 0]),
            ("CR4 +SMEP", 9, [9, 9, 0, 9]),
            ("CR4 -SMEP", 9, [9, 9, 0, 0]),
            ("CR4 +SMAP", 5, [5, 5, 0, 0]),
            ("CR4 +PAE", 6, [6, 6, 0, 6]),
            ("CR4 -PAE", 6, [6, 6, 0, 6]),
            ("EFER +LME", 3, [3, 3, 0, 0]),
            ("EFER +NXE", 4, [4, 4, 0, 0]),
            ("EFER +SCE", 2, [0; 4]),
        ],
    );
}

#[test]
fn with_ept_under_5_10() {
    check(
        "vmx-5.10-a-blob-ept1.trace.txt.xz",
        &[
            ("CR0 +PG", 3, [3, 3, 0, 0]),
            ("CR0 -PG", 4, [4, 4, 0, 0]),
            ("CR0 +WP +PG", 2, [2, 2, 0, 0]),
            ("CR0 +WP", 6, [6, 6, 0, 0]),
            ("CR0 -WP", 7, [7, 7, 0, 0]),
            ("CR4 +PCIDE", 4, [0; 4]),
            ("CR4 -PCIDE", 4, [4, 4, 0, 0]),
            ("CR4 +SMEP", 9, [9, 9, 0, 0]),
            ("CR4 +PAE", 6, [6, 6, 0, 0]),
            ("EFER +LME", 3, [0; 4]),
            ("EFER +NXE", 4, [4, 4, 0, 0]),
        ],
    );
}
