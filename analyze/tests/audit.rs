//! Audit of real recordings: where the kernel was right nothing is claimed, and in a copy from which
//! one flush was cut exactly that miss is found.
//!
//! Which flushes are cut is decided here, from the text alone and by the manuals' tables (SDM vol. 3,
//! 4.10.4.1; APM vol. 2, 5.5), not by what the audit says. A flush is chosen if
//! * between an exit and the next one of the only vCPU it is the only flush that executes anything
//!   (flush_tlb_current of VMX does nothing while its `root=` is invalid; on SVM flush_asid is the tail
//!   of flush_all and flush_current, one flush with them), and
//! * in the same window KVM accepted exactly one operation that by the manuals drops translations of
//!   the PCID in which the guest ran when it executed it: CR4.PGE toggled; on Intel CR4.PAE toggled or
//!   SMEP set; on AMD PAE or PSE toggled; MOV CR3 while CR4.PCIDE is 0; INVLPG; INVPCID 2 and 3.
//!
//! The guest ran under that PCID just before, so something may be cached, and nothing else drops it.

use std::io::{Read as _, Write as _};
use std::path::Path;

use tlbscope_analyze::audit::{self, Audit};
use tlbscope_analyze::finding::{Class, Kind};
use tlbscope_trace::Recording;

const FILES: [&str; 4] = [
    "vmx-b-pcid-ept0.trace.txt.xz",
    "vmx-a-blob-ept0.trace.txt.xz",
    "vmx-a-blob-ept1.trace.txt.xz",
    "svm-tiny-npt0-head.trace.txt.xz",
];

fn text(file: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    let mut text = String::new();
    let mut source = tlbscope_trace::source::open(&path).expect("a checked-in recording");
    source.read_to_string(&mut text).expect("it is text");
    text.lines().map(str::to_owned).collect()
}

fn audited(lines: &[String]) -> (Recording, Audit) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    for line in lines {
        writeln!(file, "{line}").expect("it can be written");
    }
    let recording = tlbscope_trace::open(file.path()).expect("still a recording");
    let audit = audit::run(&recording, "cut", 1000).expect("vendor and mode are shown");
    (recording, audit)
}

/// Exposures as (line of the operation, line at which the guest ran).
fn exposed(recording: &Recording, audit: &Audit) -> Vec<(u32, u32)> {
    let found = audit.found.iter().filter(|found| found.finding.kind == Kind::Exposed);
    let line = |index: usize| recording.records[index].line;
    found.map(|found| (line(found.finding.cause as usize), line(found.seen))).collect()
}

/// The number behind `key` in a line.
fn number(line: &str, key: &str) -> Option<u64> {
    let from = line.find(key)? + key.len();
    let word: String = line[from..].chars().take_while(char::is_ascii_alphanumeric).collect();
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

fn function(line: &str) -> &str {
    let from = line.find(": (").map_or(line.len(), |at| at + 3);
    line[from..].split('+').next().unwrap_or("")
}

/// One exit window: lines by index.
#[derive(Clone, Debug, Default)]
struct Window {
    /// Flushes that execute something: the line and, on SVM, that of its tail.
    flushes: Vec<Vec<usize>>,
    /// Operations that owe a flush.
    owing: Vec<usize>,
    /// Other operations and faults: the window is not that of one operation.
    others: usize,
    syncs: Vec<usize>,
    /// The exit line of the next window.
    end: usize,
}

const PGE: u64 = 1 << 7;
const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const SMEP: u64 = 1 << 20;
const PCIDE: u64 = 1 << 17;

/// Whether an accepted write of CR4 drops translations of the current PCID.
fn cr4_owes(amd: bool, old: u64, new: u64) -> bool {
    let (changed, set) = (old ^ new, new & !old);
    // Turning PCIDE off or on also changes which PCID the guest runs in: left out.
    changed & PCIDE == 0
        && (changed & PGE != 0
            || if amd { changed & (PAE | PSE) != 0 } else { changed & PAE != 0 || set & SMEP != 0 })
}

fn windows(lines: &[String]) -> Vec<Window> {
    let amd = lines.iter().any(|line| line.contains("(svm_flush_tlb_asid"));
    let (mut all, mut now, mut cr4) = (Vec::new(), Window::default(), 0);
    let mut tail = false;
    for (index, line) in lines.iter().enumerate() {
        if line.contains(": kvm_exit: ") {
            now.end = index;
            all.push(std::mem::take(&mut now));
        }
        now.others += usize::from(line.contains(": kvm_page_fault: "));
        now.others += usize::from(line.contains(": kvm_inj_exception: "));
        if line.contains(": kvm_mmu_sync_page: ") {
            now.syncs.push(index);
        }
        match function(line) {
            "kvm_mmu_sync_roots" => now.syncs.push(index),
            "svm_flush_tlb_asid" if tail => now.flushes.last_mut().unwrap().push(index),
            "vmx_flush_tlb_current" if line.contains("root=0xffffffffffffffff") => {}
            name if name.contains("x_flush_tlb_") || name.contains("svm_flush_tlb_") => {
                now.flushes.push(vec![index]);
            }
            "kvm_post_set_cr4" => {
                let (old, new) = (number(line, "old=").unwrap(), number(line, "new=").unwrap());
                if cr4_owes(amd, old, new) {
                    now.owing.push(index);
                } else {
                    now.others += 1;
                }
                cr4 = new;
            }
            "kvm_set_cr3" => {
                let pcide = number(line, "cr4=").unwrap_or(cr4) & PCIDE != 0;
                if pcide { now.others += 1 } else { now.owing.push(index) }
            }
            "kvm_mmu_invlpg" => now.owing.push(index),
            "kvm_handle_invpcid" if matches!(number(line, "type="), Some(2 | 3)) => {
                now.owing.push(index);
            }
            "kvm_handle_invpcid" | "kvm_post_set_cr0" | "kvm_vcpu_reset" => now.others += 1,
            _ => {}
        }
        let name = function(line);
        tail = matches!(name, "svm_flush_tlb_all" | "svm_flush_tlb_current");
    }
    all
}

/// A copy without these lines; what is cut stays as a comment, so that lines keep their numbers.
fn without(lines: &[String], cut: &[usize]) -> Vec<String> {
    let mut copy = lines.to_vec();
    for index in cut {
        "#".clone_into(&mut copy[*index]);
    }
    copy
}

#[test]
fn nothing_is_claimed_where_the_kernel_was_right() {
    for file in FILES {
        let (_, audit) = audited(&text(file));
        let summary = &audit.summary;
        assert_eq!((summary.missed, summary.exposed, summary.advised), (0, 0, 0), "{file}");
        let unjudged: u64 = summary.unjudged.values().sum();
        assert_eq!(summary.operations, summary.judged + unjudged, "{file}");
        assert!(summary.judged >= 20, "{file}: {}", summary.judged);
    }
}

#[test]
fn each_flush_that_is_cut_is_missed() {
    for (file, at_least) in FILES.into_iter().zip([4, 60, 20, 20]) {
        let lines = text(file);
        let mut tried = 0;
        for window in windows(&lines) {
            let ([flush], [owing], 0) = (&window.flushes[..], &window.owing[..], window.others)
            else {
                continue;
            };
            let (recording, audit) = audited(&without(&lines, flush));
            let found = exposed(&recording, &audit);
            let told = format!("{file}:{}: {}", flush[0] + 1, lines[flush[0]]);
            assert_eq!(audit.summary.exposed, 1, "{told}\n{found:?}");
            let (cause, entry) = found[0];
            // The operation's record may stand at an earlier line of the same window.
            assert!(cause as usize <= owing + 1 && cause as usize + 40 > *owing, "{told} {cause}");
            assert!((flush[0] + 1..=window.end + 1).contains(&(entry as usize)), "{told} {entry}");
            tried += 1;
        }
        assert!(tried >= at_least, "{file}: only {tried} were cut");
    }
}

/// A flush that comes again in its window serves what the first has served: redundant, and nothing is
/// missed by it. With EPT these recordings have no such flush but of a LOAD. Only VMX carries out both (SVM's second finds TLB_CONTROL set); the flush that ends a LOAD
/// belongs to the LOAD.
#[test]
fn each_flush_that_is_repeated_is_redundant() {
    let redundant = |audit: &Audit| {
        let of = |found: &&audit::Found| found.finding.kind == Kind::Excessive(Class::Redundant);
        audit.found.iter().filter(of).count()
    };
    for (file, at_least) in FILES.into_iter().zip([2, 30]) {
        let lines = text(file);
        let before = audited(&lines).1;
        let mut tried = 0;
        for window in windows(&lines) {
            let ([flush], [_], 0) = (&window.flushes[..], &window.owing[..], window.others) else {
                continue;
            };
            let load = |line: &&String| function(line).starts_with("kvm_mmu_load");
            let last = lines[..flush[0]]
                .iter()
                .rev()
                .find(|line| load(line) || line.contains(": kvm_exit: "));
            if last.is_some_and(|line| {
                function(line) == "kvm_mmu_load" && !line.contains("<- kvm_mmu_load)")
            }) {
                continue;
            }
            let mut copy = lines.clone();
            let again = flush.iter().map(|index| lines[*index].clone()).collect::<Vec<_>>();
            let behind = flush.last().expect("a flush has lines") + 1;
            copy.splice(behind..behind, again);
            let (_, audit) = audited(&copy);
            let told = format!("{file}:{}: {}", flush[0] + 1, lines[flush[0]]);
            assert_eq!(audit.summary.exposed, 0, "{told}");
            assert_eq!(redundant(&audit), redundant(&before) + 1, "{told}");
            tried += 1;
        }
        assert!(tried >= at_least, "{file}: only {tried} were repeated");
    }
}

/// A flush that leaves an unsync root in use flushes nothing: the same operations without their sync.
#[test]
fn each_sync_that_is_cut_is_missed() {
    let lines = text(FILES[1]);
    let mut tried = 0;
    for window in windows(&lines) {
        let pages = window.syncs.iter().filter(|at| lines[**at].contains("sync_page")).count();
        if pages == 0 || window.owing.len() != 1 || window.others > 0 {
            continue;
        }
        let (recording, audit) = audited(&without(&lines, &window.syncs));
        let found = exposed(&recording, &audit);
        let told = format!("{}: {}", window.syncs[0] + 1, lines[window.owing[0]]);
        assert_eq!(found.len(), 1, "{told}\n{found:?}");
        tried += 1;
    }
    assert!(tried >= 3, "only {tried} were cut");
}

/// What the host asks for itself: the only flush of a window in which kvm_flush_remote_tlbs was
/// called and no operation owes anything.
#[test]
fn each_flush_of_the_host_that_is_cut_is_missed() {
    let lines = text(FILES[1]);
    let mut tried = 0;
    for window in windows(&lines) {
        let [flush] = &window.flushes[..] else { continue };
        let start = lines[..flush[0]].iter().rposition(|line| line.contains(": kvm_exit: "));
        let between = &lines[start.unwrap_or(0)..flush[0]];
        let asked = between.iter().any(|line| function(line) == "kvm_flush_remote_tlbs");
        // Before the first entry nothing is cached.
        let ran = lines[..flush[0]].iter().any(|line| line.contains(": kvm_entry: "));
        let all = function(&lines[flush[0]]) == "vmx_flush_tlb_all";
        let operation = between.iter().any(|line| function(line).starts_with("kvm_set_cr"));
        if !(asked && ran && all) || operation || !window.owing.is_empty() {
            continue;
        }
        let (recording, audit) = audited(&without(&lines, flush));
        let found = exposed(&recording, &audit);
        assert_eq!(found.len(), 1, "{}: {found:?}", flush[0] + 1);
        assert!((found[0].0 as usize) <= flush[0], "{}: {found:?}", flush[0] + 1);
        tried += 1;
    }
    assert!(tried >= 30, "only {tried} were cut");
}

#[test]
fn a_gap_explains_what_is_missing() {
    for file in FILES {
        let lines = text(file);
        let window = windows(&lines).into_iter().find(|window| {
            window.flushes.len() == 1 && window.owing.len() == 1 && window.others == 0
        });
        let flush = window.expect("one to cut").flushes[0][0];
        let mut copy = without(&lines, &[flush]);
        "CPU:0 [LOST 3 EVENTS]".clone_into(&mut copy[flush]);
        let (recording, audit) = audited(&copy);
        assert!(recording.damaged());
        assert_eq!(audit.summary.exposed, 0, "{file}");
        assert!(audit.summary.unjudged["gap"] > 0, "{file}");
    }
}

#[test]
fn without_probes_nothing_is_judged_and_it_is_said() {
    for file in FILES {
        // Tracepoints have no function in parentheses.
        let lines: Vec<String> =
            text(file).into_iter().filter(|line| !line.contains(": (")).collect();
        let (_, audit) = audited(&lines);
        let summary = &audit.summary;
        // That a write which ends in #GP owes nothing, tracepoints do show.
        let rows = audit.transitions.rows().filter(|(name, _)| name.ends_with("#GP"));
        let refused: u64 = rows.map(|(_, row)| row.operations).sum();
        let verdicts = (summary.judged, summary.exposed, summary.excessive);
        assert_eq!(verdicts, (refused, 0, 0), "{file}");
        assert!(audit.lacks.iter().any(|lack| lack.what == "any flush"), "{file}");
        assert!(summary.unjudged["no-flush-probes"] > 0, "{file}");
    }
}

/// The ground truth beside the recordings (vmx README, section 5; svm README, summary), by hand.
#[test]
fn the_table_tells_what_kvm_did() {
    let row = |audit: &Audit, name: &str| {
        let row = audit.transitions.row(name).unwrap_or_else(|| panic!("no row {name}")).clone();
        move |column: &str| (row.operations, row.count(column).expect("a column"))
    };
    let (_, shadow) = audited(&text(FILES[1]));
    // CR4.PGE toggles: FLUSH_GUEST with both syncs, no reset.
    let pge = row(&shadow, "CR4 +PGE, paging");
    let n = pge("reset").0;
    assert!(n > 5);
    for (column, count) in [("reset", 0), ("load", 0), ("request-guest", n), ("flush-guest", n)] {
        assert_eq!(pge(column), (n, count), "{column}");
    }
    assert_eq!((pge("sync-roots"), pge("sync-prev-roots")), ((n, n), (n, n)));
    // SMEP 0->1: reset, request CURRENT, LOAD with its flush; 1->0 without the request.
    let smep = row(&shadow, "CR4 +SMEP, paging");
    let n = smep("reset").0;
    for column in ["reset", "request-current", "load", "load-flush"] {
        assert_eq!(smep(column), (n, n), "{column}");
    }
    let back = row(&shadow, "CR4 -SMEP, paging");
    assert_eq!(back("request-current").1, 0);
    assert_eq!(back("reset"), back("load"));
    // PCIDE 0->1 unloads in shadow mode and asks for nothing.
    let pcide = row(&shadow, "CR4 +PCIDE, paging");
    let n = pcide("unload").0;
    assert_eq!((pcide("unload"), pcide("load"), pcide("reset")), ((n, n), (n, n), (n, 0)));
    // A cached root with NOFLUSH: no sync, no flush.
    let hit = row(&shadow, "CR3 same value, same PCID, NOFLUSH");
    assert_eq!((hit("new-pgd").1, hit("sync-roots").1, hit("flush-current").1), (0, 0, 0));
    // TDP: the same reset and request; EFER.NXE resets.
    let (_, tdp) = audited(&text(FILES[2]));
    let nxe = row(&tdp, "EFER +NXE, paging");
    assert_eq!((nxe("reset"), nxe("load")), ((nxe("load").0, nxe("load").0), nxe("load")));
    let guest = row(&tdp, "CR4 -PCIDE, paging");
    assert_eq!(guest("flush-guest").0, guest("flush-guest").1);
    assert_eq!(guest("sync-prev-roots").1, 0);
}
