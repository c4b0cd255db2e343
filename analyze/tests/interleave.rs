//! Orders of events that a file does not write: both halves of CVE-2019-3016 are found where they are
//! switched on, and no order of any multi-vCPU scenario catches a kernel that has neither.

use std::fs;
use std::path::{Path, PathBuf};

use tlbscope_analyze::scenario::{Orders, OrdersReport, Scenario};

fn folder(name: &str) -> Vec<Scenario> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios").join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(root)
        .expect("the folder exists")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    files.sort();
    files.iter().map(|file| load(file)).collect()
}

fn load(file: &Path) -> Scenario {
    let text = fs::read_to_string(file).expect("it can be read");
    Scenario::parse(&file.display().to_string(), &text).expect("a scenario")
}

fn orders(folder: &str, file: &str, policy: &str, orders: Orders) -> OrdersReport {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios");
    let scenario = load(&root.join(folder).join(file));
    let expect = scenario.expects.iter().find(|e| e.policy == policy).expect("an expectation");
    scenario.run_orders(expect, orders)
}

/// The flag that v0 sets while the host stands between reading and clearing the byte is lost.
#[test]
fn read_then_clear_is_found() {
    let report = orders("mechanics", "pv-flush.toml", "read-then-clear", Orders::All(3000));
    assert!(!report.passed());
    let first = &report.breaks[0];
    assert!(first.found.contains(&"missed: use `use` of cause `flush`".to_owned()), "{report}");
    // Two deviations, the fewest that there can be: run starts early, pvflush falls into it.
    assert_eq!(first.choices.len(), 2, "{report}");
    assert!(first.choices[1].contains("steal-time byte read, not yet cleared"), "{report}");
    assert!(orders("mechanics", "pv-flush.toml", "atomic", Orders::All(3000)).passed());
}

/// The second store of PREEMPTED, before the entry has looked at the byte, takes the flag away.
#[test]
fn overwriting_preempted_is_found() {
    let report = orders("races", "pv-preempted-twice.toml", "overwrite", Orders::All(500));
    assert!(!report.passed());
    assert_eq!(report.breaks[0].choices.len(), 1, "{report}");
    assert!(report.breaks[0].choices[0].contains("`host preempt v1` falls into `host run v1`"));
    assert!(orders("races", "pv-preempted-twice.toml", "merge", Orders::All(500)).passed());
}

#[test]
fn sampling_finds_them_too_and_repeats_itself() {
    let sampled = Orders::Sampled { orders: 2000, seed: 7 };
    let once = orders("mechanics", "pv-flush.toml", "read-then-clear", sampled);
    assert!(!once.passed());
    assert_eq!(once, orders("mechanics", "pv-flush.toml", "read-then-clear", sampled));
    assert!(orders("mechanics", "pv-flush.toml", "atomic", sampled).passed());
}

#[test]
fn a_small_scenario_has_few_orders_and_all_are_run() {
    let text = r#"
name = "two"
about = "Two events."
source = "by hand"
events = '''
    v0 pkru 1
    host run v0
'''
[expect."kvm-5.17"]
missed = []
"#;
    let scenario = Scenario::parse("two.toml", text).expect("a scenario");
    let report = scenario.run_orders(&scenario.expects[0], Orders::All(100));
    // Either may come first; none opens a window.
    assert_eq!((report.orders, report.complete, report.broken), (2, true, 0), "{report}");
}

/// Whatever the order, a kernel that flushes as it should misses nothing.
#[test]
fn no_order_catches_a_sound_kernel() {
    for scenario in ["mechanics", "ops", "races"].into_iter().flat_map(folder) {
        let sound = |e: &&tlbscope_analyze::scenario::Expect| {
            e.policy.starts_with("kvm-") && e.missed.as_ref().is_some_and(|m| m.is_empty())
        };
        for expect in scenario.expects.iter().filter(sound) {
            let all = scenario.run_orders(expect, Orders::All(60));
            assert!(all.passed(), "{all}");
            let some = scenario.run_orders(expect, Orders::Sampled { orders: 60, seed: 1 });
            assert!(some.passed(), "{some}");
        }
    }
}
