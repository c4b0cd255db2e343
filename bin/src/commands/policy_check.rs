//! `policy check FILE`: what is wrong with a policy file, and where in it.

use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::json;
use tlbscope_sim::policy::{self, PolicyError};

use super::catalog::{as_path, one};
use crate::Verdict;
use crate::args::Global;
use crate::input::Input;

/// Lines above the one that is wrong.
const CONTEXT: usize = 1;
/// Columns of a line that are shown.
const WIDTH: usize = 120;

/// Runs the command.
pub fn run(file: &Path, global: &Global) -> Result<Verdict> {
    let input = Input::of_file(file)?;
    let policy = policy::load(&as_path(file)).map_err(|error| match excerpt(&error) {
        Some(excerpt) => anyhow!("{error}\n{excerpt}"),
        None => error.into(),
    })?;
    let text = format!("{}: {} is a policy", input.path, policy.name);
    one("policy-check", &[input], ("name", &policy.name), ("valid", json!(true)), &text, global)
}

/// The line that is wrong with the one above it, and a mark under the word; `None` where no file is
/// to blame, or it cannot be read again.
fn excerpt(error: &PolicyError) -> Option<String> {
    let (line, column) = error.place?;
    let text = std::fs::read_to_string(&error.origin).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let wrong = line.checked_sub(1)?;
    // An error at the end of the text stands behind its last line.
    let shown = lines.get(wrong).copied().unwrap_or_default();
    let gutter = line.to_string().len();
    let mut out = format!("  {:gutter$} |", "");
    for (n, line) in lines.iter().enumerate().take(wrong).skip(wrong.saturating_sub(CONTEXT)) {
        out += &format!("\n  {:gutter$} | {}", n + 1, visible(line));
    }
    out += &format!("\n  {line:gutter$} | {}", visible(shown));
    let before = column.saturating_sub(1);
    if before < WIDTH {
        let word =
            shown.chars().skip(before).take_while(|c| c.is_alphanumeric() || "-_.".contains(*c));
        let marks = word.count().clamp(1, WIDTH - before);
        out += &format!("\n  {:gutter$} | {:before$}{}", "", "", "^".repeat(marks));
    }
    Some(out)
}

/// A line as a terminal may show it: tabs as one column, as columns are counted.
fn visible(line: &str) -> String {
    line.chars().take(WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
