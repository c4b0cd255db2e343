//! `compare`: traces under several policies, side by side.

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde_json::{Map, json};
use tlbscope_analyze::compare;
use tlbscope_analyze::replay::{self, Replay, Setup, Summary};
use tlbscope_sim::policy;

use super::simulate::{verdict_of, warn_of, warn_of_left_out, warn_of_oddities};
use crate::Verdict;
use crate::args::{Compare, Format, Global};
use crate::report::{self, Replayed};
use crate::{input, output, render};

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
    let max = command.machine.max_findings;
    let runs: Vec<Result<Vec<Replay>, _>> = jobs
        .par_iter_mut()
        .map(|(feed, setup, _)| replay::stream(feed, setup, &policies, max, |n| bar.inc(n)))
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
    let tables = inputs.iter().map(|input| &input.path).zip(summaries.chunks(policies.len()));
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            let rows: Vec<_> = tables
                .map(|(trace, of)| json!({ "trace": trace, "rows": compare::rows(of) }))
                .collect();
            detail.insert("comparisons".to_owned(), json!(rows));
            output::envelope("compare", &inputs, &summaries, detail)?
        }
        Format::Text => {
            let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
            let all: Vec<String> = tables
                .map(|(trace, of)| render::comparison(trace, &names, &compare::rows(of)))
                .collect();
            all.join("\n")
        }
    };
    output::print(&text)?;
    // What one policy misses is what a comparison is for: no reason to fail.
    let damaged = jobs.iter().any(|(feed, ..)| !feed.meta().losses.is_empty());
    Ok(verdict_of(damaged, false))
}
