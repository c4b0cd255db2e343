//! The model does what the recorded kernels did; a recording that is tampered with is found out, in
//! every kind of action that the model predicts; and a model that predicts nothing agrees on nothing.

use std::mem::discriminant;
use std::path::Path;

use tlbscope_analyze::fidelity::{self, Fidelity};
use tlbscope_analyze::replay::Work;
use tlbscope_sim::policy;
use tlbscope_trace::act::{Act, Hook, Request, RootSlot};
use tlbscope_trace::addr::{Gva, Hpa, Pcid};
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

/// The records of the exit window around a record of a vCPU that are this vCPU's own.
fn window(recording: &Recording, at: usize) -> Vec<usize> {
    let records = &recording.records;
    let own = |n: &usize| records[*n].actor == records[at].actor;
    let exit = |n: &usize| matches!(records[*n].body, Body::Act(Act::Exit(_)));
    let before: Vec<usize> = (0..=at).rev().filter(own).take_while(|n| !exit(n)).collect();
    let after = (at + 1..records.len()).filter(own).take_while(|n| !exit(n));
    before.into_iter().rev().chain(after).collect()
}

fn act(recording: &Recording, at: usize) -> Option<&Act> {
    match &recording.records[at].body {
        Body::Act(act) => Some(act),
        _ => None,
    }
}

/// The act before a record that is one of those which `of` picks, in its window.
fn last_of(recording: &Recording, at: usize, of: Wanted) -> Option<&Act> {
    let before = window(recording, at).into_iter().rev().filter(|n| *n < at);
    before.filter_map(|n| act(recording, n)).find(|act| of(act))
}

/// Whether the roots that this record prints are those of an entry.
fn printed_by_entry(recording: &Recording, at: usize) -> bool {
    let mut after = window(recording, at).into_iter().filter(|n| *n > at);
    let next =
        after.find_map(|n| act(recording, n).filter(|act| !matches!(act, Act::RootSeen { .. })));
    matches!(next, Some(Act::Entry(_) | Act::EntrySeen))
}

/// The same, and the page was printed before and no LOAD may have made it anew since: which page a
/// new root gets is the allocator's.
fn printed_again(recording: &Recording, at: usize) -> bool {
    let own = |n: &usize| recording.records[*n].actor == recording.records[at].actor;
    let Some(Act::RootSeen { root: page, .. }) = act(recording, at) else { return false };
    let mut before = (0..at).rev().filter(own).filter_map(|n| act(recording, n));
    let met = before.find_map(|act| match act {
        Act::Load => Some(false),
        Act::RootSeen { root, .. } if root == page => Some(true),
        _ => None,
    });
    printed_by_entry(recording, at) && met == Some(true)
}

/// Changes one act in each recording at a few of its places and looks whether agreement falls.
/// `chosen` says which of the places tell something that the model predicts; `change` makes another
/// act of it, `None` takes it away.
fn perturbed(
    kind: &str,
    wanted: Wanted,
    chosen: fn(&Recording, usize) -> bool,
    change: fn(&Act) -> Option<Act>,
) {
    let (mut tried, mut unseen) = (0, Vec::new());
    for (file, policy) in FILES {
        let recording = read(file);
        let all: Vec<usize> = (0..recording.records.len())
            .filter(|at| act(&recording, *at).is_some_and(wanted) && !told_twice(&recording, *at))
            .filter(|at| chosen(&recording, *at))
            .collect();
        // A kind that does not occur any more is not compared.
        let n = all.len();
        let places = if n < 2 { Vec::new() } else { vec![all[0], all[n / 2], all[n * 3 / 4]] };
        for at in places {
            let old = *act(&recording, at).expect("an act");
            let mut changed = recording.clone();
            match change(&old) {
                Some(new) => changed.records[at].body = Body::Act(new),
                None => _ = changed.records.remove(at),
            }
            if disagreements(&changed, policy) == 0 {
                unseen.push(format!("{file}:{}: {old:?}", recording.records[at].line));
            }
            tried += 1;
        }
    }
    assert!(unseen.is_empty(), "{kind}: {unseen:#?}");
    assert!(tried > 0, "no recording has {kind}");
}

const ANYWHERE: fn(&Recording, usize) -> bool = |_, _| true;
const GONE: fn(&Act) -> Option<Act> = |_| None;

/// kvm_mmu_sync_roots of an invalid root does nothing: those of a LOAD have one.
#[test]
fn a_sync_that_is_missing_is_missed() {
    perturbed(
        "sync-roots",
        |act| matches!(act, Act::SyncRoots),
        |recording, at| {
            let of: Wanted = |act| {
                matches!(act, Act::Load | Act::Unload | Act::Reset { .. } | Act::FreeRoots { .. })
            };
            last_of(recording, at, of) == Some(&Act::Load)
        },
        GONE,
    );
}

#[test]
fn an_unload_that_is_missing_is_missed() {
    let mut tried = 0;
    for (file, policy) in FILES {
        let recording = read(file);
        let frees = |act: &Act| matches!(act, Act::Unload | Act::FreeRoots { mask: 0xf });
        let all: Vec<usize> = (0..recording.records.len())
            .filter(|at| act(&recording, *at).is_some_and(frees))
            .filter(|at| {
                // The frees of a reset are part of it, be it inlined or not.
                let of = window(&recording, *at);
                let part =
                    |n: &usize| matches!(act(&recording, *n), Some(Act::Reset { .. } | Act::Init));
                // One that no entry follows ends the vCPU's life.
                let entry = |n: &usize| matches!(act(&recording, *n), Some(Act::EntrySeen));
                !of.iter().any(part) && of.iter().any(entry)
            })
            .collect();
        for at in all.first().into_iter().chain(all.get(all.len() / 2)) {
            let mut changed = recording.clone();
            for n in window(&recording, *at).into_iter().rev() {
                if act(&recording, n).is_some_and(frees) {
                    changed.records.remove(n);
                }
            }
            let line = recording.records[*at].line;
            assert!(disagreements(&changed, policy) > 0, "{file}:{line}: unload can be left out");
            tried += 1;
        }
    }
    assert!(tried > 0, "no recording unloads");
}

#[test]
fn a_load_of_the_pdptes_that_is_missing_is_missed() {
    perturbed("load-pdptrs", |act| matches!(act, Act::LoadPdptrs { .. }), ANYWHERE, GONE);
}

#[test]
fn a_free_of_obsolete_roots_that_is_missing_is_missed() {
    perturbed("free-obsolete", |act| matches!(act, Act::FreeObsoleteRoots), ANYWHERE, GONE);
}

#[test]
fn which_cached_root_is_freed_is_compared() {
    perturbed(
        "another root freed",
        |act| matches!(act, Act::FreeRoots { mask: 2 | 4 | 8 }),
        |recording, at| {
            // Which cached roots are unsync or obsolete is told to the model.
            let of: Wanted = |act| {
                matches!(act, Act::SyncPrevRoots | Act::FreeObsoleteRoots | Act::InvalidatePcid(_))
            };
            matches!(last_of(recording, at, of), Some(Act::InvalidatePcid(_)))
        },
        |act| match act {
            Act::FreeRoots { mask: 8 } => Some(Act::FreeRoots { mask: 2 }),
            Act::FreeRoots { mask } => Some(Act::FreeRoots { mask: mask << 1 }),
            _ => None,
        },
    );
}

#[test]
fn another_hook_pcid_or_address_is_no_match() {
    let other: fn(&Act) -> Option<Act> = |act| match *act {
        Act::Hook { hook: Hook::Gva(gva), by, effective } => {
            let hook = Hook::Gva(Gva(gva.0 ^ 0x1000));
            Some(Act::Hook { hook, by, effective })
        }
        Act::Hook { hook: Hook::Guest, by, effective } => {
            Some(Act::Hook { hook: Hook::All, by, effective })
        }
        Act::Hook { by, effective, .. } => Some(Act::Hook { hook: Hook::Guest, by, effective }),
        Act::InvalidatePcid(pcid) => Some(Act::InvalidatePcid(Pcid(pcid.0 ^ 1))),
        _ => None,
    };
    let kinds: [(&str, Wanted); 5] = [
        ("flush-all", |act| matches!(act, Act::Hook { hook: Hook::All, .. })),
        ("flush-current", |act| matches!(act, Act::Hook { hook: Hook::Current, .. })),
        ("flush-guest", |act| matches!(act, Act::Hook { hook: Hook::Guest, .. })),
        ("flush-gva", |act| matches!(act, Act::Hook { hook: Hook::Gva(_), .. })),
        ("invalidate-pcid", |act| matches!(act, Act::InvalidatePcid(_))),
    ];
    for (kind, wanted) in kinds {
        perturbed(kind, wanted, ANYWHERE, other);
    }
}

#[test]
fn each_request_that_is_predicted_is_compared() {
    let kinds: [(&str, Wanted); 3] = [
        ("CURRENT", |act| *act == Act::Post(Request::TlbFlushCurrent)),
        ("GUEST", |act| *act == Act::Post(Request::TlbFlushGuest)),
        ("SYNC", |act| *act == Act::Post(Request::MmuSync)),
    ];
    for (kind, wanted) in kinds {
        perturbed(kind, wanted, ANYWHERE, |_| Some(Act::Post(Request::MmuReload)));
    }
}

/// Which cached root was hit, which is new, and what the others are.
#[test]
fn all_roots_at_an_entry_are_compared() {
    let kinds: [(&str, Wanted); 2] = [
        ("the active root", |act| {
            matches!(act, Act::RootSeen { slot: RootSlot::Current, root: Some(_), .. })
        }),
        ("a cached root", |act| {
            matches!(act, Act::RootSeen { slot: RootSlot::Prev(_), root: Some(_), .. })
        }),
    ];
    let invalid: fn(&Act) -> Option<Act> = |act| match *act {
        Act::RootSeen { slot, pgd, .. } => Some(Act::RootSeen { slot, pgd, root: None }),
        _ => None,
    };
    let page: fn(&Act) -> Option<Act> = |act| match *act {
        Act::RootSeen { slot, pgd, root: Some(root) } => {
            Some(Act::RootSeen { slot, pgd, root: Some(Hpa(root.0 ^ 0x5000)) })
        }
        _ => None,
    };
    for (kind, wanted) in kinds {
        perturbed(&format!("{kind}: valid"), wanted, printed_by_entry, invalid);
        perturbed(&format!("{kind}: page"), wanted, printed_again, page);
    }
    perturbed(
        "CR3 of a cached root",
        |act| matches!(act, Act::RootSeen { slot: RootSlot::Prev(_), root: Some(_), pgd: Some(_) }),
        printed_by_entry,
        |act| match *act {
            Act::RootSeen { slot, pgd: Some(pgd), root } => {
                Some(Act::RootSeen { slot, pgd: Some(pgd ^ 0x1000), root })
            }
            _ => None,
        },
    );
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
