//! What must hold on every machine, under every policy, whatever the guest and the host do.
//!
//! `TLBSCOPE_RANDOM_EVENTS` sets how many events each property is tried on, `TLBSCOPE_RANDOM_SEED`
//! which ones. A failure is shrunk and printed as the parts of a scenario.

mod chance;

use std::path::{Path, PathBuf};

use chance::{Case, PAGES, Pick, Run, alone, alone_list, cases, check, run, run_list};
use tlbscope_analyze::finding::{Class, Finding, Findings, Kind};
use tlbscope_analyze::scenario::{List, Scenario};
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::addr::{Gva, Time};
use tlbscope_trace::op::{Access, AccessKind, Event, Op};
use tlbscope_trace::regs::Efer;

/// Software that reuses a frame without a flush is at fault itself.
fn known(found: &Finding) -> bool {
    found.rule == "release"
}

/// A shadow page made with NXE serves a guest that has cleared it, whatever the guest does next: scenario
/// efer-nxe-forced.
fn of_forced_nxe(case: &Case, found: &Finding) -> bool {
    let before = found.use_.map_or(0, |event| event as usize);
    let nxe = case.events[..before].iter().rev().find_map(|event| match event.op {
        Op::Efer(write) if write.clear & Efer::NXE.bits() != 0 => Some(write.set != 0),
        _ => None,
    });
    let forced = case.policy == Pick::builtin("kvm-7.3");
    forced && found.rule == "impossible-translation" && nxe == Some(false)
}

fn none_of(case: &Case, wrong: impl Fn(&Finding) -> bool) -> Result<(), String> {
    let findings = run(case).findings;
    match findings.kept().iter().find(|f| wrong(f) && !known(f)) {
        Some(found) => Err(format!("{found:?}")),
        None => Ok(()),
    }
}

#[test]
fn the_oracles_agree_on_every_access() {
    check(&cases(Pick::any()), |case| run(case).differ.map_or(Ok(()), Err));
}

/// The files of a folder and of the folders in it.
fn files(of: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(of).expect("the folder exists") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "toml") {
            found.push(path);
        }
    }
}

/// In the order of a run: a line without a time follows the one before it by a nanosecond.
fn in_order(list: &List) -> Vec<Event> {
    let mut last = Time(0);
    let event = |line: &tlbscope_trace::text::Line| {
        last = line.time.unwrap_or(Time(last.0 + 1));
        Event { time: last, actor: line.actor, op: line.op.clone() }
    };
    let mut events: Vec<Event> = list.lines.iter().map(event).collect();
    events.sort_by_key(|event| (event.time, event.actor));
    events
}

/// What comes of a check of every list under every policy of every scenario: no seed is needed to come by
/// what somebody has written down.
fn on_every_scenario(check: impl Fn(&MachineConfig, &Policy, &[Event]) -> Option<String>) {
    let mut all = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios"), &mut all);
    all.sort();
    let (mut runs, mut differ) = (0, Vec::new());
    for file in all {
        let text = std::fs::read_to_string(&file).expect("it can be read");
        let scenario = Scenario::parse(&file.display().to_string(), &text).expect("a scenario");
        for expect in &scenario.expects {
            let policy = scenario.policy(expect).expect("a policy");
            let events = in_order(&scenario.lists[expect.list]);
            let said = check(&scenario.machine, policy, &events);
            differ.extend(said.map(|said| format!("{} {}: {said}", scenario.name, expect.policy)));
            runs += 1;
        }
    }
    assert!(runs > 400, "only {runs} runs");
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn the_oracles_agree_on_every_scenario() {
    on_every_scenario(|machine, policy, events| {
        // The slow oracle knows nothing of what a hypervisor below this one makes of its tables.
        if machine.enlightened_npt { None } else { run_list(machine, policy, events).differ }
    });
}

#[test]
fn the_oracles_agree_on_l2() {
    check(&chance::nested::cases(Pick::any()), |case| run(case).differ.map_or(Ok(()), Err));
}

/// To be told of every access, as beside the slow oracle, and of those alone that may mean something
/// comes to the same.
#[test]
fn an_access_that_the_oracle_is_not_told_of_is_clean() {
    check(&cases(Pick::any()), |case| differ(&run(case), &alone(case)).map_or(Ok(()), Err));
    check(&cases(Pick::any()), |case| {
        let case = crowded(case);
        differ(&run(&case), &alone(&case)).map_or(Ok(()), |why| Err(format!("{case:?}\n{why}")))
    });
    on_every_scenario(|machine, policy, events| {
        differ(&run_list(machine, policy, events), &alone_list(machine, policy, events))
    });
}

/// The same list where hardly anything finds room in the TLB, with reads of all pages in turn now and
/// then: refills behind refills.
fn crowded(case: &Case) -> Case {
    let few = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/machines/few-entries.toml");
    let turns = |actor| {
        (0..12).map(move |n| {
            let gva = Gva(PAGES[n % 3]);
            let op = Op::Access(Access { gva, kind: AccessKind::Read, user: false, ac: true });
            Event { time: Time(0), actor, op }
        })
    };
    let events = case.events.iter().enumerate().flat_map(|(n, event)| {
        let turns = if n % 4 == 3 { Some(turns(event.actor)) } else { None };
        [event.clone()].into_iter().chain(turns.into_iter().flatten())
    });
    let events = events.zip(1..).map(|(event, n)| Event { time: Time(n), ..event }).collect();
    let machine = MachineConfig { tlb: few.to_owned(), ..case.machine.clone() };
    Case { machine, policy: case.policy.clone(), events }
}

fn differ(told: &Run, (findings, digest): &(Findings, u64)) -> Option<String> {
    let same = told.digest == *digest && told.findings.kept() == findings.kept();
    (!same).then(|| format!("{:?}\n{:?}", told.findings.kept(), findings.kept()))
}

#[test]
fn linux_is_never_wrong_of_l2() {
    check(&chance::nested::cases(Pick::one_of(&["kvm-7.3", "flush-all"])), |case| {
        none_of(case, |found| {
            matches!(found.kind, Kind::Missed { .. }) && !of_forced_nxe(case, found)
        })
    });
}

#[test]
fn hw_min_is_never_wrong() {
    check(&cases(Pick::one_of(&["hw-min"])), |case| {
        none_of(case, |found| {
            use Class::{Redundant, Unrequired};
            let excess = matches!(found.kind, Kind::Excessive(Unrequired | Redundant));
            excess || matches!(found.kind, Kind::Missed { .. } | Kind::Exposed)
        })
    });
}

#[test]
fn arch_min_is_never_wrong() {
    check(&cases(Pick::one_of(&["arch-min"])), |case| {
        none_of(case, |found| {
            matches!(found.kind, Kind::Missed { .. } | Kind::Exposed | Kind::Excessive(_))
        })
    });
}

#[test]
fn flush_all_misses_nothing() {
    check(&cases(Pick::one_of(&["flush-all"])), |case| {
        none_of(case, |found| matches!(found.kind, Kind::Missed { .. }))
    });
}

#[test]
fn never_is_caught() {
    let caught = std::cell::Cell::new(0u32);
    check(&cases(Pick::one_of(&["never"])), |case| {
        let Run { findings, naive, .. } = run(case);
        if naive > 0 && findings.missed() == 0 {
            return Err(format!("{naive} stale uses, none found"));
        }
        caught.set(caught.get() + u32::from(naive > 0));
        Ok(())
    });
    assert!(caught.get() > 10, "only {} lists used a stale copy", caught.get());
}

#[test]
fn the_same_list_comes_out_the_same() {
    check(&cases(Pick::any()), |case| {
        let (first, second) = (run(case), run(case));
        if first.digest != second.digest || first.findings != second.findings {
            return Err("two runs differ".to_owned());
        }
        Ok(())
    });
}
