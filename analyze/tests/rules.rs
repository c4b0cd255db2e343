//! Every rule has a scenario that notices it: each rule of each built-in policy is taken away and
//! some scenario must come out otherwise; each rule of the manuals must be the cause of a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tlbscope_analyze::finding::Kind;
use tlbscope_analyze::oracle::Oracle;
use tlbscope_analyze::scenario::{List, Scenario};
use tlbscope_analyze::tally::{Counts, Tally};
use tlbscope_sim::arch::required::RULES;
use tlbscope_sim::engine::Machine;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::rule::Register;
use tlbscope_sim::policy::{self, Policy};
use tlbscope_trace::addr::Time;
use tlbscope_trace::op::Event;

/// Rules of policies that the machine reaches and that change nothing there: policy, rule, why.
const WITHOUT_EFFECT: [(&str, &str, &str); 5] = [
    ("flush-all", "cr0-pg-clear", SERVED_AT_EXIT),
    ("flush-all", "cr4-all-pcids", SERVED_AT_EXIT),
    ("flush-all", "cr4-current-pcid", SERVED_AT_EXIT),
    ("flush-all", "init-flush", SERVED_AT_EXIT),
    ("flush-all", "invpcid-all", SERVED_AT_EXIT),
];
const SERVED_AT_EXIT: &str = "the exit itself has posted every request that the rule posts";

/// Rules of the manuals that are no cause of a finding in any scenario, and why.
const NOT_REACHED: [(&str, &str); 3] = [
    (
        "cr4-pae-other-globals",
        "PCIDs need long mode, where PAE cannot change; leaving it clears PCIDE, which owes all",
    ),
    ("page-fault-other-globals", "the TLB model drops the page's globals of every PCID"),
    ("init-amd", "the VMCB gets a new ASID at INIT, and direct roots serve from then on"),
];

/// What a run shows: (verdict, rule, cause, use) and every count.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    findings: BTreeSet<(Kind, &'static str, u64, Option<u64>)>,
    counts: Counts,
}

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios");
    let mut files = Vec::new();
    for folder in ["rules", "golden", "oracle", "ops", "mechanics", "races"] {
        let entries = fs::read_dir(root.join(folder)).expect("the folder exists");
        let mut here: Vec<_> = entries.map(|e| e.expect("it can be read").path()).collect();
        here.sort();
        files.extend(here);
    }
    files
}

fn scenarios() -> Vec<Scenario> {
    let parse = |file: PathBuf| {
        let text = fs::read_to_string(&file).expect("it can be read");
        match Scenario::parse(&file.display().to_string(), &text) {
            Ok(scenario) => scenario,
            Err(error) => panic!("{error}"),
        }
    };
    files().into_iter().map(parse).collect()
}

/// The events in the order of (time, actor, place in the list).
fn events(list: &List) -> Vec<Event> {
    let mut time = Time(0);
    let mut events: Vec<Event> = Vec::with_capacity(list.lines.len());
    for line in &list.lines {
        time = line.time.unwrap_or(Time(time.0.saturating_add(1)));
        events.push(Event { time, actor: line.actor, op: line.op.clone() });
    }
    events.sort_by_key(|event| (event.time, event.actor));
    events
}

/// One list of events under a policy.
fn run(config: &MachineConfig, events: &[Event], policy: &Policy) -> Shown {
    let vcpus = config.vcpus;
    let mut watching = (Oracle::with_max_findings(vcpus, 4096), Tally::new(usize::from(vcpus)));
    let mut machine = Machine::new(config, policy).expect("the machine can be made");
    let mut shown = Shown::default();
    for (index, event) in events.iter().enumerate() {
        if machine.run(event, index as u64, &mut watching).is_err() {
            break;
        }
    }
    watching.0.finish(&machine);
    let findings = watching.0.findings().kept();
    shown.findings = findings.iter().map(|f| (f.kind, f.rule, f.cause, f.use_)).collect();
    shown.counts = watching.1.total();
    shown
}

/// The machine and the events of every list of every scenario.
fn runs() -> Vec<(MachineConfig, Vec<Event>)> {
    let mut runs = Vec::new();
    for scenario in scenarios() {
        let lists = scenario.lists.iter().map(|list| (scenario.machine.clone(), events(list)));
        runs.extend(lists);
    }
    runs
}

fn builtins() -> Vec<(&'static str, Policy)> {
    let load = |(name, _): &(&'static str, &str)| (*name, policy::load(name).expect("a built-in"));
    policy::builtins().iter().map(load).collect()
}

#[test]
fn every_rule_of_every_policy_is_noticed() {
    let runs = runs();
    let mut unnoticed = Vec::new();
    let mut used = BTreeSet::new();
    for (name, whole) in builtins() {
        let with: Vec<Shown> =
            runs.iter().map(|(config, events)| run(config, events, &whole)).collect();
        for register in Register::ALL {
            for (index, rule) in whole.rules(register).iter().enumerate() {
                let without = whole.without_rule(register, index);
                let noticed = runs
                    .iter()
                    .zip(&with)
                    .any(|((config, events), with)| run(config, events, &without) != *with);
                let excuse = WITHOUT_EFFECT.iter().find(|(p, r, _)| (*p, *r) == (name, &*rule.id));
                match (noticed, excuse) {
                    (true, None) => {}
                    (false, Some(entry)) => _ = used.insert((entry.0, entry.1)),
                    (false, None) => unnoticed.push(format!("{name}: {}", rule.id)),
                    (true, Some((_, _, why))) => {
                        unnoticed.push(format!("{name}: {} is noticed, not: {why}", rule.id));
                    }
                }
            }
        }
    }
    assert!(unnoticed.is_empty(), "no scenario notices\n  {}", unnoticed.join("\n  "));
    assert_eq!(used.len(), WITHOUT_EFFECT.len(), "an entry names no rule");
}

/// Stricter than the test above: not only the run, an expectation that someone wrote must differ.
/// Of kernels only: what an ideal or a control does is nobody's fact.
#[test]
fn every_rule_of_every_kernel_has_an_expectation() {
    let scenarios = scenarios();
    let mut unexpected = Vec::new();
    for (name, whole) in builtins().into_iter().filter(|(name, _)| name.starts_with("kvm-")) {
        let speaking: Vec<&Scenario> =
            scenarios.iter().filter(|s| s.expects.iter().any(|e| e.policy == name)).collect();
        for register in Register::ALL {
            for (index, rule) in whole.rules(register).iter().enumerate() {
                if WITHOUT_EFFECT.iter().any(|(p, r, _)| (*p, *r) == (name, &*rule.id)) {
                    continue;
                }
                let without = whole.without_rule(register, index);
                let fails = |scenario: &&Scenario| {
                    let changed = (*scenario).clone().with_policy(name, &without);
                    let own = changed.expects.iter().filter(|expect| expect.policy == name);
                    own.map(|expect| changed.run_case(expect)).any(|report| !report.passed())
                };
                if !speaking.iter().any(fails) {
                    unexpected.push(format!("{name}: {}", rule.id));
                }
            }
        }
    }
    assert!(unexpected.is_empty(), "no expectation fails without\n  {}", unexpected.join("\n  "));
}

#[test]
fn every_rule_of_the_manuals_causes_a_finding() {
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, policy) in builtins() {
        for (config, events) in runs() {
            for (kind, rule, ..) in run(&config, &events, &policy).findings {
                if !matches!(kind, Kind::Excessive(_)) {
                    *reached.entry(rule).or_default() += 1;
                }
            }
        }
    }
    let ids: BTreeSet<&str> = RULES.iter().map(|rule| rule.id).collect();
    let excused: BTreeSet<&str> = NOT_REACHED.iter().map(|(id, ..)| *id).collect();
    let unreached: Vec<_> =
        ids.iter().filter(|id| !reached.contains_key(*id) && !excused.contains(*id)).collect();
    assert!(unreached.is_empty(), "no scenario reaches {unreached:?}");
    let stale: Vec<_> =
        excused.iter().filter(|id| reached.contains_key(*id) || !ids.contains(*id)).collect();
    assert!(stale.is_empty(), "reached all the same, or no rule: {stale:?}");
}
