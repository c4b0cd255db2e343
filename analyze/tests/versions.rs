//! One recording predicts what the other kernels did: the same scripted guest was recorded under
//! 5.10.262, 6.1.192, 6.12.117 and 7.3.4. The numbers are those of the four recordings: lines of
//! `kvm_mmu_reset_context` and of the vendor's `flush_tlb_guest` behind the first `kvm_entry`.

use std::path::Path;

use tlbscope_analyze::replay::{self, Work};
use tlbscope_sim::policy;

const POLICIES: [&str; 4] = ["kvm-5.10", "kvm-6.1-lts", "kvm-6.12-lts", "kvm-7.3"];

/// Resets and flushes of the guest's translations under each policy.
fn counts(file: &str) -> ([u64; 4], [u64; 4]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    let recording = tlbscope_trace::open(&path).expect("a checked-in recording");
    let work = Work::new(&recording, file, None).expect("vendor and mode are shown");
    let runs = POLICIES.map(|name| {
        let policy = policy::load(name).expect("a built-in");
        replay::run(&work, &policy, 1, |_| ()).expect("every event can be carried out").summary
    });
    (runs.each_ref().map(|run| run.resets), runs.each_ref().map(|run| run.flushes["flush-guest"]))
}

#[test]
fn with_shadow_paging_6_1_predicts_all() {
    let (resets, flush_guest) = counts("vmx-a-blob-ept0.trace.txt.xz");
    assert_eq!(resets, [123, 99, 97, 97]);
    assert_eq!(flush_guest, [0, 46, 46, 46]);
}

#[test]
fn with_ept_5_10_predicts_all() {
    let (resets, flush_guest) = counts("vmx-5.10-a-blob-ept1.trace.txt.xz");
    assert_eq!(resets, [102, 86, 86, 86]);
    assert_eq!(flush_guest, [0, 19, 19, 19]);
}

/// What 5.10 does is not stated: it resets for each toggle of CR0.WP (102 in all), and of those
/// between two exits of 6.1, whose guest owns the bit, a recording of 6.1 shows at most one.
#[test]
fn with_ept_6_1_predicts_the_later_ones() {
    let (resets, flush_guest) = counts("vmx-a-blob-ept1.trace.txt.xz");
    assert_eq!(resets[1..], [86, 86, 86]);
    assert_eq!(flush_guest, [0, 19, 19, 19]);
}
