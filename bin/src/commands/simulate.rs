//! `simulate`: one trace under one policy.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tlbscope_analyze::replay::{self, Replay, Setup, Wanted};
use tlbscope_sim::policy::{self, Policy};
use tlbscope_trace::{Meta, Recording};

use crate::Verdict;
use crate::args::{Format, Global, Simulate};
use crate::formats::document::{self, Document, Item};
use crate::render::Cited;
use crate::report::{self, Replayed};
use crate::showing::{self, Showing};
use crate::{checkpoint, formats, input, output, render};

/// Runs the command.
pub fn run(command: &Simulate, global: &Global) -> Result<Verdict> {
    report::check(command.report.as_deref())?;
    let (mut feed, read) = input::feed(&command.trace, &command.reading)?;
    let told = warn_of(feed.meta(), 0);
    let name = match (&command.policy, &feed.meta().kernel) {
        (Some(name), _) => name.clone(),
        (None, Some(kernel)) => kernel.clone(),
        (None, None) => bail!("{} does not show its kernel: name one with --policy", read.path),
    };
    let policy = policy::load(&name).with_context(|| format!("cannot load the policy {name}"))?;
    let processor = command.machine.machine.as_deref();
    let setup = Setup::new(feed.meta(), feed.pcpus(), &read.path, processor)?;
    let bar = output::progress(feed.operations(), global);
    let showing = Showing::of(&command.showing)?;
    let max_findings = command.machine.max_findings;
    let suppressions = showing.suppressions.clone();
    let wanted = Wanted { max_findings, suppressions, ..Wanted::default() };
    let (one, progress) = (std::slice::from_ref(&policy), |n| bar.inc(n));
    let run = if command.checkpoints.wanted() {
        let trace = (command.trace.as_path(), &read, &command.reading);
        let typed = &command.checkpoints;
        checkpoint::run(&mut feed, &setup, &policy, &wanted, typed, trace, progress).map(Some)
    } else {
        replay::stream(&mut feed, &setup, one, wanted, progress)
            .map_err(Into::into)
            .map(|mut runs| runs.pop())
    };
    bar.finish_and_clear();
    warn_of(feed.meta(), told);
    let run = run?.context("no run")?;
    warn_of_left_out(&read.path, &run);
    warn_of_oddities(feed.meta(), &run, global);
    let used = showing::used(run.findings.groups(), |group| run.findings.suppression(group));
    showing.warn_of_unused(&used.collect(), global.quiet);
    if let Some(path) = &command.report {
        let (runs, trace) = (std::slice::from_ref(&run), &command.trace);
        let of = Replayed { feed: &mut feed, setup: &setup, runs, path: trace, input: &read };
        report::replay(path, "simulate", &mut [of], std::slice::from_ref(&policy))?;
    }
    let kept = run.findings.sorted();
    let silent = global.quiet && global.format == Format::Text && command.explain.is_none();
    // A second run finds the stories; where the trace is gone, findings are told without.
    let chains = if !silent && !kept.is_empty() && feed.rewind(&command.trace)? {
        replay::explain_stream(&mut feed, &setup, &policy, &kept)?
    } else {
        Vec::new()
    };
    let cited = if silent { Default::default() } else { run.findings.cited() };
    let vendor = setup.machine.vendor;
    let cited = Cited { trace: &read.path, vendor, events: feed.events(&command.trace, &cited)? };
    let mut shown = document::Run::of_replay(&run, &cited, &chains, &showing)?;
    shown.losses.clone_from(&feed.meta().losses);
    let text = match global.format {
        _ if command.explain.is_some() => explained(&shown, &policy, command.explain)?,
        Format::Json => {
            shown.show(&showing);
            let findings: Vec<Value> = shown.items.iter().map(Item::json).collect();
            let mut detail = Map::new();
            detail.insert("findings".to_owned(), json!(findings));
            detail.insert("groups".to_owned(), json!(shown.groups_json()));
            detail.insert("counts".to_owned(), json!(run.tally.total()));
            output::envelope("simulate", &[read], [&run.summary], detail)?
        }
        Format::Text => {
            shown.show(&showing);
            let found = if global.quiet {
                String::new()
            } else {
                formats::text::findings(&shown, global.verbose, |_| true)
            };
            let counts =
                if global.verbose { render::counts(&run.tally.total()) } else { String::new() };
            found + &render::summary(&run.summary) + &counts
        }
        format => {
            shown.show(&showing);
            shown.more.push(("counts", json!(run.tally.total())));
            let (inputs, runs) = ([read.clone()], vec![shown]);
            let document =
                Document { command: "simulate", inputs: &inputs, runs, comparisons: &[] };
            formats::write(format, &document)?
        }
    };
    output::print(&text)?;
    let found = run.summary.missed_harmful > 0 || run.summary.exposed > 0;
    Ok(verdict_of(!feed.meta().losses.is_empty(), found))
}

/// Damage goes before findings: a result that covers only a part is no verdict on the whole.
pub fn verdict(recordings: &[Recording], found: bool) -> Verdict {
    verdict_of(recordings.iter().any(Recording::damaged), found)
}

/// The same, of what was told about the input.
pub fn verdict_of(damaged: bool, found: bool) -> Verdict {
    if damaged {
        Verdict::Damaged
    } else if found {
        Verdict::Found
    } else {
        Verdict::Clean
    }
}

/// Says on standard error what a recording lacks.
pub fn warn_of_losses(recording: &Recording) {
    warn_of(&recording.meta, 0);
}

/// Says on standard error what a trace lacks, from the `told`-th loss on; how many are told then.
pub fn warn_of(meta: &Meta, told: usize) -> usize {
    for loss in meta.losses.iter().skip(told) {
        output::warn(&format!("{}: {loss}", meta.source));
    }
    meta.losses.len()
}

/// Says how many events behind a loss could not be carried out.
pub fn warn_of_left_out(trace: &str, run: &Replay) {
    let Replay { left_out, summary, .. } = run;
    if *left_out > 0 {
        let policy = &summary.policy;
        output::warn(&format!(
            "{trace}: under {policy}, {left_out} events behind what is lost are left out: they need it"
        ));
    }
}

/// Says which operations of an event list were hardly meant so. In a recording they are what the
/// guest did: told on demand.
pub fn warn_of_oddities(meta: &Meta, run: &Replay, global: &Global) {
    if global.quiet || meta.form != "text" && !global.verbose {
        return;
    }
    let trace = &run.summary.trace;
    for odd in &run.oddities.first {
        let place = match odd.line {
            0 => format!("{trace}: event {}", odd.event),
            line => format!("{trace}:{line}"),
        };
        output::warn(&format!("{place}: {}", odd.what));
    }
    let more = run.oddities.count - run.oddities.first.len() as u64;
    if more > 0 {
        output::warn(&format!("{trace}: and {more} more of them"));
    }
}

/// One finding at full length, with what the policy has for its operation.
fn explained(run: &document::Run, policy: &Policy, number: Option<usize>) -> Result<String> {
    let number = number.unwrap_or(1);
    let Some(item) = run.items.iter().find(|item| item.number == number) else {
        bail!("there is no finding {number}: {} are kept", run.items.len());
    };
    Ok(format!("{}\n{}", item.text, render::rules_of(policy, item.finding.op)))
}
