//! What must hold on every machine, under every policy, whatever the guest and the host do.
//!
//! `TLBSCOPE_RANDOM_EVENTS` sets how many events each property is tried on, `TLBSCOPE_RANDOM_SEED`
//! which ones. A failure is shrunk and printed as the parts of a scenario.

mod chance;

use chance::{Case, Pick, Run, alone, cases, check, run};
use tlbscope_analyze::finding::{Class, Finding, Kind};

/// Software that reuses a frame without a flush is at fault itself.
fn known(found: &Finding) -> bool {
    found.rule == "release"
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

#[test]
fn the_oracles_agree_on_l2() {
    check(&chance::nested::cases(Pick::any()), |case| run(case).differ.map_or(Ok(()), Err));
}

/// To be told of every access, as beside the slow oracle, and of those alone that may mean something
/// comes to the same.
#[test]
fn an_access_that_the_oracle_is_not_told_of_is_clean() {
    check(&cases(Pick::any()), |case| {
        let (told, (findings, digest)) = (run(case), alone(case));
        let same = told.digest == digest && told.findings.kept() == findings.kept();
        let differ = || format!("{:?}\n{:?}", told.findings.kept(), findings.kept());
        if same { Ok(()) } else { Err(differ()) }
    });
}

#[test]
fn linux_is_never_wrong_of_l2() {
    check(&chance::nested::cases(Pick::one_of(&["kvm-7.3", "flush-all"])), |case| {
        // A shadow page made with NXE serves a guest that has cleared it: scenario efer-nxe-forced.
        let nxe = |found: &Finding| (found.rule, found.op) == ("impossible-translation", "efer");
        none_of(case, |found| matches!(found.kind, Kind::Missed { .. }) && !nxe(found))
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
