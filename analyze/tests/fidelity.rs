//! The model does what the recorded kernels did; a recording that is tampered with is found out, in
//! every kind of action that the model predicts; and a model that predicts nothing agrees on nothing.

use std::mem::discriminant;
use std::path::Path;

use tlbscope_analyze::fidelity::{self, Fidelity};
use tlbscope_analyze::replay::Work;
use tlbscope_sim::policy;
use tlbscope_trace::act::{Act, Hook, Request, RootSlot};
use tlbscope_trace::{Body, Recording};

/// Recordings of real kernels with the policy of each, and operations on which they may differ.
const FILES: [(&str, &str); 7] = [
    ("vmx-a-blob-ept0-head.trace.txt.xz", "kvm-6.1-lts"),
    ("vmx-b-pcid-ept0.trace.txt.xz", "kvm-6.1-lts"),
    ("vmx-b-pcid-ept1.trace.txt.xz", "kvm-6.1-lts"),
    ("vmx-5.10-b-pcid-ept0.trace.txt.xz", "kvm-5.10"),
    ("vmx-7.3-b-pcid-ept0.trace.txt.xz", "kvm-7.3"),
    ("svm-tiny-npt0-head.trace.txt.xz", "kvm-6.1-lts"),
    ("svm-kut-pcid-npt1.trace.txt.zst", "kvm-6.1-lts"),
];

/// Picks acts.
type Wanted = fn(&Act) -> bool;

fn read(file: &str) -> Recording {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    tlbscope_trace::open(&path).expect("a checked-in recording")
}

fn under(recording: &Recording, name: &str) -> Fidelity {
    let work = Work::new(recording, "t", None).expect("vendor and mode are shown");
    let policy = policy::load(name).expect("a built-in");
    fidelity::compare(recording, &work, &policy, 100).expect("a machine")
}

fn disagreements(recording: &Recording, policy: &str) -> u64 {
    let summary = under(recording, policy).summary;
    summary.operations - summary.agreed
}

fn without(recording: &Recording, at: usize) -> Recording {
    let mut changed = recording.clone();
    changed.records.remove(at);
    changed
}

fn told_twice(recording: &Recording, at: usize) -> bool {
    let same = |other: usize| {
        recording.records.get(other).is_some_and(|o| o.body == recording.records[at].body)
    };
    same(at + 1) || at > 0 && same(at - 1)
}

/// Places of the acts that `wanted` picks: the first and some behind it, if removing
/// one leaves others (a kind that does not occur is not compared).
fn places(recording: &Recording, wanted: impl Fn(&Act) -> bool) -> Vec<usize> {
    let acts = recording.records.iter().enumerate().filter_map(|(at, record)| match &record.body {
        // Two events may tell of one call: both would have to go.
        Body::Act(act) if wanted(act) && !told_twice(recording, at) => Some(at),
        _ => None,
    });
    let all: Vec<usize> = acts.collect();
    match all.len() {
        0 | 1 => Vec::new(),
        // Not the last: a recording that is cut may end before the entry that closes its window.
        n => vec![all[0], all[n / 2], all[n * 3 / 4]],
    }
}

#[test]
fn the_model_does_what_the_recorded_kernels_did() {
    for (file, policy) in FILES {
        let found = under(&read(file), policy);
        let wrong = found.summary.operations - found.summary.agreed;
        assert_eq!(wrong, 0, "{file}: {:#?}", found.disagreements);
        assert!(found.summary.operations > 10, "{file}");
    }
}

#[test]
fn an_action_that_is_missing_is_missed() {
    let kinds: [(&str, Wanted); 13] = [
        ("reset", |act| matches!(act, Act::Reset { .. })),
        ("init", |act| matches!(act, Act::Init)),
        ("new-pgd", |act| matches!(act, Act::NewPgd(_))),
        ("invalidate-pcid", |act| matches!(act, Act::InvalidatePcid(_))),
        ("invalidate-gva", |act| matches!(act, Act::InvalidateGva(_))),
        ("load", |act| matches!(act, Act::Load)),
        ("load-pgd", |act| matches!(act, Act::LoadPgd { .. })),
        ("sync-prev-roots", |act| matches!(act, Act::SyncPrevRoots)),
        ("flush-all", |act| matches!(act, Act::Hook { hook: Hook::All, .. })),
        ("flush-current", |act| matches!(act, Act::Hook { hook: Hook::Current, .. })),
        ("flush-guest", |act| matches!(act, Act::Hook { hook: Hook::Guest, .. })),
        ("flush-gva", |act| matches!(act, Act::Hook { hook: Hook::Gva(_), .. })),
        // The one with which kvm_mmu_new_pgd tells of a miss.
        ("free-roots", |act| matches!(act, Act::FreeRoots { mask: 1 })),
    ];
    for (kind, wanted) in kinds {
        let mut tried = 0;
        for (file, policy) in FILES {
            let recording = read(file);
            for at in places(&recording, wanted) {
                let found = disagreements(&without(&recording, at), policy);
                let line = recording.records[at].line;
                assert!(found > 0, "{file}:{line}: {kind} can be left out");
                tried += 1;
            }
        }
        assert!(tried > 0, "no recording has {kind}");
    }
}

#[test]
fn an_action_too_many_is_seen() {
    for (file, policy) in FILES {
        let recording = read(file);
        for act in [Act::Init, Act::Load, Act::FreeObsoleteRoots, Act::SyncPrevRoots] {
            for at in places(&recording, |other| discriminant(other) == discriminant(&act)) {
                let mut changed = recording.clone();
                changed.records.insert(at, recording.records[at].clone());
                let line = recording.records[at].line;
                assert!(disagreements(&changed, policy) > 0, "{file}:{line}: {act:?} twice");
            }
        }
    }
}

#[test]
fn another_flush_is_no_match() {
    for (file, policy) in FILES {
        let recording = read(file);
        for at in places(&recording, |act| matches!(act, Act::Hook { hook: Hook::Guest, .. })) {
            let mut changed = recording.clone();
            if let Body::Act(Act::Hook { hook, .. }) = &mut changed.records[at].body {
                *hook = Hook::Current;
            }
            assert!(disagreements(&changed, policy) > 0, "{file}");
        }
    }
}

#[test]
fn requests_pending_are_compared() {
    for (file, policy) in FILES {
        let recording = read(file);
        for at in places(&recording, |act| *act == Act::Post(Request::TlbFlushCurrent)) {
            let mut changed = recording.clone();
            changed.records[at].body = Body::Act(Act::Post(Request::TlbFlushGuest));
            assert!(disagreements(&changed, policy) > 0, "{file}");
        }
    }
}

#[test]
fn roots_at_an_entry_are_compared() {
    let mut tried = 0;
    for (file, policy) in FILES {
        let recording = read(file);
        let current =
            |act: &Act| matches!(act, Act::RootSeen { slot: RootSlot::Current, root: Some(_), .. });
        for at in places(&recording, current) {
            let mut changed = recording.clone();
            if let Body::Act(Act::RootSeen { root, .. }) = &mut changed.records[at].body {
                *root = None;
                tried += 1;
            }
            let line = recording.records[at].line;
            assert!(disagreements(&changed, policy) > 0, "{file}:{line}");
        }
    }
    assert!(tried > 0);
}

#[test]
fn a_model_that_predicts_nothing_agrees_on_nothing() {
    for (file, name) in FILES {
        let recording = read(file);
        let work = Work::new(&recording, "t", None).expect("vendor and mode are shown");
        let policy = policy::load(name).expect("a built-in");
        let nothing = fidelity::compare_with_nothing(&recording, &work, &policy).unwrap();
        assert_eq!(nothing.summary.agreed, 0, "{file}");
        assert!(nothing.summary.operations > 10, "{file}");
    }
}

#[test]
fn a_policy_that_never_flushes_is_no_model_of_a_kernel() {
    for (file, policy) in FILES {
        let recording = read(file);
        let never = under(&recording, "never").summary;
        let right = under(&recording, policy).summary;
        assert!(never.agreed < right.agreed, "{file}: {never:?}");
    }
}
