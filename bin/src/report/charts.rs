//! The charts of replays.

use std::collections::BTreeMap;

use tlbscope_analyze::compare;
use tlbscope_analyze::replay::{CAUSES, Replay, Setup, Summary, cycles_by_cause};
use tlbscope_analyze::tally::Key;

use super::data::{Chart, Form, Table};

/// Flush hooks called and invalidations carried out, by kind and policy.
pub fn flushes(runs: &[Replay]) -> Chart {
    let kinds = runs.first().map(|run| run.summary.flushes.keys()).into_iter().flatten();
    let parts = kinds.map(|kind| {
        let of = |run: &Replay| run.summary.flushes.get(kind).copied().unwrap_or(0);
        ((*kind).to_owned(), runs.iter().map(of).collect::<Vec<u64>>())
    });
    Chart {
        title: "Flushes by kind",
        about: "Flush hooks that the hypervisor called and invalidations that the hardware carried \
                out. Each kind has a scale of its own.",
        form: Form::Panels,
        bars: names(runs),
        parts: parts.filter(|(_, values)| values.iter().any(|n| *n > 0)).collect(),
    }
}

/// What cycles go to.
pub fn cycles(setup: &Setup, runs: &[Replay]) -> Chart {
    let costs: Vec<_> = runs
        .iter()
        .map(|run| cycles_by_cause(&setup.processor, &run.tally.total()).map(|total| total.cycles))
        .collect();
    let part = |(n, (name, _)): (usize, &(&str, &[&str]))| {
        ((*name).to_owned(), costs.iter().map(|of| of[n]).collect())
    };
    Chart {
        title: "Cycles by cause",
        about: "Modelled cycles of the acts that were counted, by the machine's table of costs.",
        form: Form::Stack,
        bars: names(runs),
        parts: CAUSES.iter().enumerate().map(part).collect(),
    }
}

/// Refills of translations that a flush had dropped, by the operation that it was for.
pub fn refills(runs: &[Replay], refills: &[&BTreeMap<String, u64>]) -> Chart {
    let mut parts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (n, of) in refills.iter().enumerate() {
        for (name, number) in *of {
            parts.entry(name).or_insert_with(|| vec![0; runs.len()])[n] = *number;
        }
    }
    let mut parts: Vec<(String, Vec<u64>)> =
        parts.into_iter().map(|(name, values)| (format!("after {name}"), values)).collect();
    // The largest first; the name decides where they are equal.
    parts.sort_by_key(|(_, values)| std::cmp::Reverse(values.iter().sum::<u64>()));
    let rest = |(run, of): (&Replay, &&BTreeMap<String, u64>)| {
        run.tally.total().get(Key::Refill).saturating_sub(of.values().sum())
    };
    parts.push(("first use".to_owned(), runs.iter().zip(refills).map(rest).collect()));
    Chart {
        title: "Refills after flushes",
        about: "TLB refills: those of a translation that a flush had dropped, by the operation that \
                the flush was for, and those that no flush had to do with.",
        form: Form::Stack,
        bars: names(runs),
        parts,
    }
}

/// Everything that is compared.
pub fn comparison(runs: &[Replay]) -> Table {
    let summaries: Vec<&Summary> = runs.iter().map(|run| &run.summary).collect();
    let row = |row: compare::Row| (row.name.to_owned(), row.values, row.differs);
    Table {
        title: "All numbers",
        about: "Where the policies differ, the lowest and the highest number of a row are marked.",
        head: names(runs),
        rows: compare::rows(&summaries).into_iter().map(row).collect(),
        sparse: false,
    }
}

fn names(runs: &[Replay]) -> Vec<String> {
    runs.iter().map(|run| run.summary.policy.clone()).collect()
}
