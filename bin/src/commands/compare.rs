//! `compare`: traces under several policies, side by side.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde_json::{Map, json};
use tlbscope_analyze::replay::{self, Replay, Setup, Summary, Wanted};
use tlbscope_sim::policy;
use tlbscope_trace::feed::Feed;

use super::simulate::{verdict_of, warn_of, warn_of_left_out, warn_of_oddities};
use crate::Verdict;
use crate::args::{By, Compare, Format, Global};
use crate::comparison::{Comparison, Places};
use crate::formats::document::{self, Document};
use crate::render::Cited;
use crate::report::{self, Replayed};
use crate::showing::{self, Showing};
use crate::{formats, input, output};

/// Runs the command.
pub fn run(command: &Compare, global: &Global) -> Result<Verdict> {
    report::check(command.report.as_deref())?;
    let mut policies = Vec::new();
    for name in &command.policy {
        policies
            .push(policy::load(name).with_context(|| format!("cannot load the policy {name}"))?);
    }
    let (mut jobs, mut inputs) = (Vec::new(), Vec::new());
    for path in &command.traces {
        let (feed, read) = input::feed(path, &command.reading)?;
        let told = warn_of(feed.meta(), 0);
        let processor = command.machine.machine.as_deref();
        let setup = Setup::new(feed.meta(), feed.pcpus(), &read.path, processor)?;
        jobs.push((feed, setup, told));
        inputs.push(read);
    }
    let events: Option<u64> = jobs.iter().map(|(feed, ..)| feed.operations()).sum();
    let bar = output::progress(events.map(|n| n * policies.len() as u64), global);
    let showing = Showing::of(&command.showing)?;
    let wanted = Wanted {
        max_findings: command.machine.max_findings,
        by: command.by.map(parts),
        suppressions: showing.suppressions.clone(),
    };
    let runs: Vec<Result<Vec<Replay>, _>> = jobs
        .par_iter_mut()
        .map(|(feed, setup, _)| {
            replay::stream(feed, setup, &policies, wanted.clone(), |n| bar.inc(n))
        })
        .collect();
    bar.finish_and_clear();
    for (feed, _, told) in &jobs {
        warn_of(feed.meta(), *told);
    }
    let runs = runs.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    for ((feed, ..), run) in jobs.iter().zip(runs.iter().step_by(policies.len().max(1))) {
        warn_of_oddities(feed.meta(), run, global);
    }
    for run in &runs {
        warn_of_left_out(&run.summary.trace, run);
    }
    let used = runs.iter().flat_map(|run| {
        showing::used(run.findings.groups(), move |group| run.findings.suppression(group))
    });
    showing.warn_of_unused(&used.collect(), global.quiet);
    if let Some(path) = &command.report {
        let of = jobs.iter_mut().zip(runs.chunks(policies.len()));
        let mut traces: Vec<Replayed<'_>> = of
            .zip(command.traces.iter().zip(&inputs))
            .map(|(((feed, setup, _), runs), (path, input))| Replayed {
                feed,
                setup,
                runs,
                path,
                input,
            })
            .collect();
        report::replay(path, "compare", &mut traces, &policies)?;
    }
    let summaries: Vec<&Summary> = runs.iter().map(|run| &run.summary).collect();
    let chunks = inputs.iter().zip(runs.chunks(policies.len().max(1)));
    let comparisons: Vec<Comparison<'_>> =
        chunks.map(|(input, of)| Comparison::new(&input.path, of.iter().collect())).collect();
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            let of = |c: &Comparison<'_>| {
                let mut value = json!({ "trace": c.trace, "rows": c.rows });
                if command.by.is_some() {
                    value["sections"] = json!(c.sections);
                }
                value
            };
            detail.insert("comparisons".to_owned(), comparisons.iter().map(of).collect());
            output::envelope("compare", &inputs, &summaries, detail)?
        }
        Format::Text => {
            let coloured = output::colours(global.color, io::stdout().is_terminal());
            let mut all = Vec::new();
            for ((feed, ..), (path, of)) in
                jobs.iter_mut().zip(command.traces.iter().zip(&comparisons))
            {
                let mut places = Places::new(of.trace, &of.runs);
                if !global.quiet {
                    let events = feed.events(path, &places.cited())?;
                    places = places.with_events(events);
                }
                all.push(of.text(&places, coloured, global));
            }
            all.join("\n")
        }
        format => {
            let mut told = Vec::new();
            for ((feed, setup, _), (path, of)) in
                jobs.iter_mut().zip(command.traces.iter().zip(&comparisons))
            {
                told.extend(documented(feed, setup, path, of, &showing)?);
            }
            let comparisons = &comparisons;
            let document =
                Document { command: "compare", inputs: &inputs, runs: told, comparisons };
            formats::write(format, &document)?
        }
    };
    output::print(&text)?;
    // What one policy misses is what a comparison is for: no reason to fail.
    let damaged = jobs.iter().any(|(feed, ..)| !feed.meta().losses.is_empty());
    Ok(verdict_of(damaged, false))
}

/// The runs of one trace with the places that their findings name.
fn documented(
    feed: &mut Feed,
    setup: &Setup,
    path: &Path,
    comparison: &Comparison<'_>,
    showing: &Showing,
) -> Result<Vec<document::Run>> {
    let cited: BTreeSet<u64> =
        comparison.runs.iter().flat_map(|run| run.findings.cited()).collect();
    let events = feed.events(path, &cited)?;
    let cited = Cited { trace: comparison.trace, vendor: setup.machine.vendor, events };
    let mut told = Vec::new();
    for run in &comparison.runs {
        let mut run = document::Run::of_replay(run, &cited, &[], showing)?;
        run.show(showing);
        run.losses.clone_from(&feed.meta().losses);
        told.push(run);
    }
    Ok(told)
}

/// By what numbers are taken apart.
const fn parts(by: By) -> replay::By {
    match by {
        By::Vcpu => replay::By::Vcpu,
        By::Register => replay::By::Register,
        By::Transition => replay::By::Transition,
    }
}
