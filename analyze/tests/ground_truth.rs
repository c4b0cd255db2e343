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

/// What the words of the tables beside the SVM recordings are in the audit's columns.
const WORDS: [(&str, &[&str]); 14] = [
    ("reset", &["mmu_reset_context"]),
    ("init", &["init_mmu"]),
    ("unload", &["mmu_unload"]),
    ("load", &["mmu_load"]),
    ("load-flush", &["flush_current[in mmu_load]"]),
    ("load-pdptrs", &["load_pdptrs"]),
    ("invalidate-pcid", &["invalidate_pcid"]),
    ("new-pgd", &["new_pgd(miss)", "new_pgd(prev-hit)"]),
    ("new-pgd-miss", &["new_pgd(miss)"]),
    ("sync-prev-roots", &["sync_prev_roots"]),
    ("flush-all", &["flush_all[request]"]),
    ("flush-guest", &["flush_guest[request]"]),
    ("flush-current", &["flush_current[request]", "flush_current[in svm_set_cr4]"]),
    ("flush-gva", &["flush_gva"]),
];

/// A kind of write with the count of it and of each of [`WORDS`].
type Kinds = std::collections::BTreeMap<String, (u64, [u64; WORDS.len()])>;

/// The audit's name of a kind in the table: register, bits or kind, paging mode.
fn named(register: &str, kind: &str, mode: &str) -> String {
    let paging = if mode.starts_with("nopaging") { "no paging" } else { "paging" };
    match register {
        "CR3" => {
            let root = match kind {
                _ if kind.starts_with("new root") => "other root",
                _ if kind.contains("low bits differ") => "same root, other low bits",
                _ if kind.contains("pciddiff") => "same root",
                _ => "same value",
            };
            let pcid = match kind {
                _ if kind.contains("pciddiff") => ", other PCID",
                _ if kind.contains("pcidsame") => ", same PCID",
                _ => "",
            };
            let noflush = if kind.contains("NOFLUSH") { ", NOFLUSH" } else { "" };
            format!("CR3 {root}{pcid}{noflush}")
        }
        "INVPCID" => format!("INVPCID {}", kind.trim_start_matches("type")),
        "INVLPG" => "INVLPG".to_owned(),
        _ => format!("{register} {kind}, {paging}"),
    }
}

/// The table beside a recording. Writes that fault are left out: what it counts as one, the audit
/// tells apart by what was refused.
fn told(file: &str) -> Kinds {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    let text = std::fs::read_to_string(path).expect("a checked-in table");
    let mut kinds = Kinds::new();
    for row in text.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let &[register, kind, mode, did, count] = &cells[..] else { panic!("{row}") };
        if kind.contains("FAULTED") || did == "#GP" {
            continue;
        }
        let count: u64 = count.parse().expect("a count");
        let of = kinds.entry(named(register, kind, mode)).or_default();
        of.0 += count;
        for act in did.split(';').map(str::trim) {
            for (sum, (_, words)) in of.1.iter_mut().zip(WORDS) {
                *sum += count * u64::from(words.contains(&act));
            }
        }
    }
    kinds
}

/// The same of the audit.
fn audited(file: &str) -> Kinds {
    let mut kinds = Kinds::new();
    for (name, row) in table(file).rows().filter(|(name, _)| !name.ends_with("#GP")) {
        let known = ["CR0", "CR3", "CR4", "EFER", "INVLPG", "INVPCID"];
        if !known.contains(&name.split(' ').next().unwrap_or("")) {
            continue;
        }
        let name = name.split(" (").next().unwrap_or(name);
        let of = kinds.entry(name.to_owned()).or_default();
        of.0 += row.operations;
        for (sum, (column, _)) in of.1.iter_mut().zip(WORDS) {
            *sum += row.count(column).expect("a column");
        }
    }
    kinds
}

/// Where the two count otherwise, and why.
fn compared(recording: &str, truth: &str, otherwise: &[(&str, &str)]) {
    let (told, audited) = (told(truth), audited(recording));
    let kinds: std::collections::BTreeSet<&String> = told.keys().chain(audited.keys()).collect();
    let known = |kind: &&&String| otherwise.iter().any(|(name, _)| name == *kind);
    let mut seen = 0;
    for kind in kinds {
        let differs = told.get(kind) != audited.get(kind);
        assert_eq!(
            differs,
            known(&&kind),
            "{recording}: {kind}: {:?} {:?}",
            told.get(kind),
            audited.get(kind)
        );
        seen += usize::from(!differs);
    }
    assert!(seen >= 6, "{recording}: {seen} kinds");
}

#[test]
fn shadow_paging_on_svm_under_6_1() {
    compared(
        "svm-tiny-npt0.trace.txt.zst",
        "svm-tiny-npt0.truth.md",
        &[("INVPCID 4", "no such type: it is refused, but not by kvm_set_*")],
    );
}

#[test]
fn nested_paging_on_svm_under_6_1() {
    compared(
        "svm-kut-pcid-npt1.trace.txt.zst",
        "svm-kut-pcid-npt1.truth.md",
        &[
            ("EFER no change, no paging", "the vCPU's creation, no write of the guest's"),
            ("CR0 -PE, no paging", "one is of an RSM, whose writes the table leaves out in part"),
            ("CR3 same value", "of the RSM"),
            ("CR4 no change, no paging", "of the RSM"),
        ],
    );
}
