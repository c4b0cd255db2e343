//! `schema`: what `--format json` prints, as JSON Schema.

use anyhow::{Result, bail};
use tlbscope_trace::text::nearest;

use crate::Verdict;
use crate::args::Schema;
use crate::{output, schema};

/// Runs the command.
pub fn run(command: &Schema) -> Result<Verdict> {
    let names = || schema::ALL.iter().map(|(name, _)| *name);
    let Some(name) = &command.name else {
        let lines: Vec<String> = names().map(|name| format!("{name}\n")).collect();
        output::print(&lines.concat())?;
        return Ok(Verdict::Clean);
    };
    // `tlbscope/audit/1` is as good as `audit`.
    let word = name.split('/').nth(1).unwrap_or(name);
    let Some(text) = schema::text(word) else {
        let hint = nearest(word, names()).map(|name| format!(": did you mean `{name}`?"));
        bail!("there is no schema `{name}`{}", hint.unwrap_or_default());
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}
