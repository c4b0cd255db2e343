//! `simulate`: one trace under one policy.

use anyhow::{Context, Result, bail};
use serde_json::{Map, json};
use tlbscope_analyze::explain::Chain;
use tlbscope_analyze::finding::Finding;
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
    let kept = run.findings.sorted();
    let chains = replay::explain(&work, &policy, &kept)?;
    let text = match global.format {
        _ if command.explain.is_some() => {
            let number = command.explain.unwrap_or(1);
            let Some((one, chain)) =
                number.checked_sub(1).and_then(|n| Some((kept.get(n)?, chains.get(n)?)))
            else {
                bail!("there is no finding {number}: {} are kept", kept.len());
            };
            let policy_rules = render::rules_of(&policy, one.op);
            render::finding(&work, number, one, chain) + "\n" + &policy_rules
        }
        Format::Json => {
            let mut detail = Map::new();
            detail.insert("findings".to_owned(), explained(&kept, &chains));
            detail.insert("groups".to_owned(), json!(groups(&run.findings)));
            detail.insert("counts".to_owned(), json!(run.tally.total()));
            output::envelope("simulate", &[read], [&run.summary], detail)?
        }
        Format::Text => {
            let found = if global.quiet {
                String::new()
            } else {
                render::findings(&work, &run.findings, &chains)
            };
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

/// Findings, each with its chain of cause.
fn explained(kept: &[Finding], chains: &[Chain]) -> serde_json::Value {
    let with_chain = |(finding, chain): (&Finding, &Chain)| {
        let mut value = json!(finding);
        value["chain"] = json!(chain);
        value
    };
    kept.iter().zip(chains).map(with_chain).collect()
}

/// Exact numbers of every kind of finding.
fn groups(findings: &tlbscope_analyze::finding::Findings) -> Vec<serde_json::Value> {
    findings.groups().map(|(group, count)| json!({ "group": group, "count": count })).collect()
}
