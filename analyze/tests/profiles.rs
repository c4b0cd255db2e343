//! Generated guests are correct: whoever runs them, what is missed is the hypervisor's.

use tlbscope_analyze::replay::{self, Setup, Summary};
use tlbscope_sim::policy::{self, Policy};
use tlbscope_trace::feed::Feed;
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::regs::{MmuKind, Vendor};
use tlbscope_trace::{Body, Record, Recording};

/// Policies of kernels that were released, and the two that must never miss.
const SOUND: [&str; 12] = [
    "kvm-5.10",
    "kvm-5.15",
    "kvm-5.17",
    "kvm-5.19",
    "kvm-6.1-lts",
    "kvm-6.4",
    "kvm-6.12-lts",
    "kvm-6.18",
    "kvm-7.3",
    "hw-min",
    "arch-min",
    "flush-all",
];

fn recording(options: &Options) -> Recording {
    let records = Generator::new(options)
        .map(|e| Record { time: e.time, actor: e.actor, line: 0, body: Body::Op(e.op) })
        .collect();
    Recording { meta: options.header().meta, records, ..Recording::default() }
}

fn run(options: &Options, names: &[&str]) -> Vec<Summary> {
    let policies: Vec<Policy> =
        names.iter().map(|name| policy::load(name).expect("a built-in")).collect();
    let mut feed = Feed::of(recording(options));
    let pcpus = options.header().pcpus;
    let setup = Setup::new(feed.meta(), pcpus, "t", None).expect("a machine");
    let runs = replay::stream(&mut feed, &setup, &policies, 10, |_| ()).expect("it runs");
    runs.into_iter().map(|run| run.summary).collect()
}

fn machines(profile: Profile, events: u64) -> Vec<Options> {
    let mut all = Vec::new();
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for mmu in [MmuKind::Shadow, MmuKind::Tdp] {
            for vcpus in [1, 3] {
                all.push(Options { vendor, mmu, vcpus, ..Options::new(profile, events) });
            }
        }
    }
    all
}

/// Harmful misses only: the first load of a root whose lower tables are shared and unsync is judged
/// benign and exposed under kernels from 5.15 on, and INIT exposed under 5.10.
#[test]
fn released_kernels_do_no_harm_to_a_correct_guest() {
    let mut wrong = Vec::new();
    for (profile, name) in Profile::ALL {
        if profile == Profile::Adversarial {
            continue;
        }
        for options in machines(profile, 6_000) {
            for summary in run(&options, &SOUND) {
                let Summary { policy, missed_harmful: missed, exposed, .. } = &summary;
                if *missed > 0 {
                    let Options { vendor, mmu, vcpus, .. } = options;
                    wrong.push(format!(
                        "{name} {vendor:?} {mmu:?} {vcpus}: {policy} missed {missed}, exposed {exposed}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_control_policy_is_caught() {
    for (profile, name) in Profile::ALL {
        // (At boot nothing is remapped between the writes, so the misses are benign.) In shadow mode every profile changes something that only a flush or a sync makes good. Dirty
        // logging is the host's work, and shows under TDP.
        if profile == Profile::DirtyLog {
            continue;
        }
        let options = Options { mmu: MmuKind::Shadow, ..Options::new(profile, 20_000) };
        let summary = run(&options, &["never"]).remove(0);
        assert!(summary.missed > 0, "{name}");
    }
}
