//! `simulate`: one trace under one policy.

use anyhow::{Context, Result, bail};
use serde_json::{Map, json};
use tlbscope_analyze::replay::{self, Work};
use tlbscope_sim::policy;
use tlbscope_trace::Recording;

use crate::Verdict;
use crate::args::{Format, Global, Simulate};
use crate::{input, output, render};

/// Runs the command.
pub fn run(command: &Simulate, global: &Global) -> Result<Verdict> {
    let (recording, read) = input::open(&command.trace, &command.reading)?;
    warn_of_losses(&recording);
    let name = match (&command.policy, &recording.meta.kernel) {
        (Some(name), _) => name,
        (None, Some(kernel)) => kernel,
        (None, None) => bail!("{} does not show its kernel: name one with --policy", read.path),
    };
    let policy = policy::load(name).with_context(|| format!("cannot load the policy {name}"))?;
    let work = Work::new(&recording, &read.path, command.machine.machine.as_deref())?;
    let bar = output::progress(work.events.len() as u64, global);
    let run = replay::run(&work, &policy, command.machine.max_findings, |n| bar.inc(n))?;
    bar.finish_and_clear();
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            detail.insert("findings".to_owned(), json!(run.findings.sorted()));
            detail.insert("groups".to_owned(), json!(groups(&run.findings)));
            detail.insert("counts".to_owned(), json!(run.tally.total()));
            output::envelope("simulate", &[read], [&run.summary], detail)?
        }
        Format::Text => {
            let found =
                if global.quiet { String::new() } else { render::findings(&work, &run.findings) };
            let counts =
                if global.verbose { render::counts(&run.tally.total()) } else { String::new() };
            found + &render::summary(&run.summary) + &counts
        }
    };
    output::print(&text)?;
    let found = run.summary.missed_harmful > 0 || run.summary.exposed > 0;
    Ok(verdict(&[recording], found))
}

/// Damage goes before findings: a result that covers only a part is no verdict on the whole.
pub fn verdict(recordings: &[Recording], found: bool) -> Verdict {
    if recordings.iter().any(Recording::damaged) {
        Verdict::Damaged
    } else if found {
        Verdict::Found
    } else {
        Verdict::Clean
    }
}

/// Says on standard error what a recording lacks.
pub fn warn_of_losses(recording: &Recording) {
    for loss in &recording.meta.losses {
        output::warn(&format!("{}: {loss}", recording.meta.source));
    }
}

/// Exact numbers of every kind of finding.
fn groups(findings: &tlbscope_analyze::finding::Findings) -> Vec<serde_json::Value> {
    findings.groups().map(|(group, count)| json!({ "group": group, "count": count })).collect()
}
