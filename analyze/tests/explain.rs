//! Chains of cause, the steps typed by hand from what each policy is known to do.

use std::path::Path;

use tlbscope_analyze::explain::{Chain, StepKind};
use tlbscope_analyze::finding::{Finding, Kind};
use tlbscope_analyze::replay::{self, Work};
use tlbscope_sim::policy;

/// The harmful misses of a trace under a policy, each with its chain.
fn explained(file: &str, name: &str) -> Vec<(Finding, Chain)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/traces").join(file);
    let recording = tlbscope_trace::open(&path).expect("a checked-in list of events");
    let work = Work::new(&recording, file, None).expect("the default machine");
    let policy = policy::load(name).expect("a built-in");
    let run = replay::run(&work, &policy, 100, |_| ()).expect("every operation is known");
    let mut missed = run.findings.sorted();
    missed.retain(|finding| finding.kind == Kind::Missed { harmful: true });
    let chains = replay::explain(&work, &policy, &missed).expect("the same run");
    missed.into_iter().zip(chains).collect()
}

/// A chain as (depth, kind, event), and the words of one step.
fn shape(chain: &Chain) -> Vec<(usize, StepKind, Option<u64>)> {
    chain.story().iter().map(|(depth, step)| (*depth, step.kind, step.event)).collect()
}

fn words(chain: &Chain, kind: StepKind) -> String {
    let story = chain.story();
    let step = story.iter().find(|(_, step)| step.kind == kind);
    step.map(|(_, step)| step.what.clone()).unwrap_or_default()
}

#[test]
fn a_flush_that_was_asked_for_and_not_carried_out() {
    let found = explained("pge-toggle.txt", "never");
    let [(finding, chain)] = &found[..] else { panic!("one miss, got {found:?}") };
    assert_eq!((finding.cause, finding.use_), (4, Some(5)));
    // Events: 0 cr3, 1 map, 2 read (the fill), 3 map, 4 cr4 -PGE, 5 read (the use).
    let expected = [
        (0, StepKind::Operation, Some(4)),
        (1, StepKind::Answer, Some(4)),
        (2, StepKind::Fill, Some(2)),
        (3, StepKind::Root, Some(0)),
        (4, StepKind::Use, Some(5)),
    ];
    assert_eq!(shape(chain), expected);
    assert!(words(chain, StepKind::Operation).contains("cr4-pge"));
    let answer = words(chain, StepKind::Answer);
    assert!(answer.contains("request TLB_FLUSH_GUEST"), "{answer}");
    assert!(!answer.contains("INVVPID"), "{answer}");
    assert!(words(chain, StepKind::Fill).contains("frame 0x5000"));
}

#[test]
fn a_stale_root_that_comes_back() {
    // 5.10 syncs and flushes the root that MOV CR3 loads; the cached one of the same PCID stays.
    let found = explained("noflush-return.txt", "kvm-5.10");
    let [(finding, chain)] = &found[..] else { panic!("one miss, got {found:?}") };
    assert_eq!((finding.cause, finding.use_), (6, Some(8)));
    let story = chain.story();
    let root = story.iter().find(|(_, step)| step.kind == StepKind::Root).expect("a root");
    assert_eq!(root.1.event, Some(7), "the NOFLUSH switch brought it back");
    assert!(root.1.what.contains("prev_roots[0] fits"), "{}", root.1.what);
    let answer = words(chain, StepKind::Answer);
    assert!(answer.contains("INVVPID of VPID 1"), "the hardware was flushed: {answer}");
    // The copy was read anew, from the unsync shadow page.
    let fill = story.iter().find(|(_, step)| step.kind == StepKind::Fill).expect("a fill");
    assert_eq!(fill.1.event, Some(8));
    assert!(fill.1.what.contains("shadow page"), "{}", fill.1.what);
}

#[test]
fn the_graph_is_written_whole() {
    let found = explained("pge-toggle.txt", "never");
    let json = serde_json::to_value(&found[0].1).expect("a chain is data");
    assert_eq!(json["steps"].as_array().map(Vec::len), Some(5));
    let links: Vec<&str> =
        json["links"].as_array().into_iter().flatten().filter_map(|l| l["link"].as_str()).collect();
    assert_eq!(links, ["answered-by", "left", "reached-by", "used-by"]);
}
