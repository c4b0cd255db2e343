//! The checked-in recordings of real kernels: what KVM 6.1 did was right, not flushing is caught, and
//! the cheapest right policy wastes nothing.

use std::path::Path;

use tlbscope_analyze::replay::{self, Summary, Work};
use tlbscope_sim::policy;

const FILES: [&str; 2] = ["vmx-b-pcid-ept0.trace.txt.xz", "svm-tiny-npt0-head.trace.txt.xz"];

fn under(file: &str, name: &str) -> Summary {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    let recording = tlbscope_trace::open(&path).expect("a checked-in recording");
    let work = Work::new(&recording, file, None).expect("vendor and mode are shown");
    let policy = policy::load(name).expect("a built-in");
    replay::run(&work, &policy, 100, |_| ()).expect("every operation is known").summary
}

#[test]
fn the_recorded_kernel_missed_and_exposed_nothing() {
    for file in FILES {
        let summary = under(file, "kvm-6.1-lts");
        assert_eq!((summary.missed, summary.exposed), (0, 0), "{file}");
    }
}

#[test]
fn not_flushing_is_caught() {
    for file in FILES {
        assert!(under(file, "never").exposed > 0, "{file}");
    }
}

#[test]
fn the_cheapest_right_policy_wastes_nothing() {
    for file in FILES {
        let summary = under(file, "hw-min");
        let wrong = (summary.missed, summary.exposed, summary.excessive);
        assert_eq!(wrong, (0, 0, 0), "{file}");
    }
}
