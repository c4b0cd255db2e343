//! `compare`: traces under several policies, side by side.

use anyhow::{Context, Result};
use serde_json::{Map, json};
use tlbscope_analyze::compare;
use tlbscope_analyze::replay::{Summary, Work};
use tlbscope_sim::policy;

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{Compare, Format, Global};
use crate::{input, output, render};

/// Runs the command.
pub fn run(command: &Compare, global: &Global) -> Result<Verdict> {
    let mut policies = Vec::new();
    for name in &command.policy {
        policies
            .push(policy::load(name).with_context(|| format!("cannot load the policy {name}"))?);
    }
    let (mut recordings, mut inputs, mut works) = (Vec::new(), Vec::new(), Vec::new());
    for path in &command.traces {
        let (recording, read) = input::open(path, &command.reading)?;
        warn_of_losses(&recording);
        works.push(Work::new(&recording, &read.path, command.machine.machine.as_deref())?);
        recordings.push(recording);
        inputs.push(read);
    }
    let events: usize = works.iter().map(|work| work.events.len()).sum();
    let bar = output::progress((events * policies.len()) as u64, global);
    let runs = compare::run(&works, &policies, command.machine.max_findings, |n| bar.inc(n))?;
    bar.finish_and_clear();
    let summaries: Vec<&Summary> = runs.iter().map(|run| &run.summary).collect();
    let tables = works.iter().zip(summaries.chunks(policies.len()));
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            let rows: Vec<_> = tables
                .map(|(work, of)| json!({ "trace": work.trace, "rows": compare::rows(of) }))
                .collect();
            detail.insert("comparisons".to_owned(), json!(rows));
            output::envelope("compare", &inputs, &summaries, detail)?
        }
        Format::Text => {
            let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
            let all: Vec<String> = tables
                .map(|(work, of)| render::comparison(&work.trace, &names, &compare::rows(of)))
                .collect();
            all.join("\n")
        }
    };
    output::print(&text)?;
    // What one policy misses is what a comparison is for: no reason to fail.
    Ok(verdict(&recordings, false))
}
