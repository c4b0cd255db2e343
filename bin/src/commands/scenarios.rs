//! `scenarios`: runs scenario files and folders of them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rayon::prelude::*;
use serde_json::{Map, json};
use tlbscope_analyze::scenario::{CaseReport, Orders, OrdersReport, Scenario, Story};

use crate::Verdict;
use crate::args::{Format, Global, Interleave, Scenarios};
use crate::formats;
use crate::formats::cases::{Outcome, Suites};
use crate::input::Input;
use crate::output;

/// Bytes of a scenario file; the reader of scenarios refuses fewer.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Orders of `--interleave all`.
const ORDERS_MAX: u64 = 10_000;
/// Folders inside folders.
const DEPTH_MAX: usize = 32;

/// Runs the command.
pub fn run(command: &Scenarios, global: &Global) -> Result<Verdict> {
    let mut files = Vec::new();
    for path in &command.paths {
        let before = files.len();
        collect(path, DEPTH_MAX, &mut files)?;
        if files.len() == before {
            bail!("{}: no scenario file (*.toml) in it", path.display());
        }
    }
    // Every file is read before the first runs, so that a typing error is not found at the end.
    let (mut scenarios, mut inputs) = (Vec::new(), Vec::new());
    for file in &files {
        let name = file.display().to_string();
        let text = read(file)?;
        inputs.push(Input::of_bytes(file, text.as_bytes()));
        scenarios.push(Scenario::parse(&name, &text)?);
    }
    if let Some(interleave) = command.interleave {
        let orders = match interleave {
            Interleave::All => Orders::All(ORDERS_MAX),
            Interleave::Sampled(orders) => Orders::Sampled { orders, seed: command.seed },
        };
        return run_orders(&scenarios, &inputs, orders, global);
    }
    if command.steps {
        return tell(&scenarios, &inputs, global);
    }
    let reports: Vec<CaseReport> =
        scenarios.par_iter().map(Scenario::run).collect::<Vec<_>>().concat();
    let passed = reports.iter().filter(|report| report.passed()).count();
    let failed = reports.len() - passed;
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            detail.insert("cases".to_owned(), json!(reports));
            let summary = json!({ "passed": passed, "failed": failed, "skipped": 0 });
            output::envelope("scenarios", &inputs, summary, detail)?
        }
        Format::Text => report(&reports, global, passed, failed),
        format => {
            let mut suites = Suites::new("scenarios");
            for report in &reports {
                let name = case_name(&report.scenario, &report.policy, report.list.as_deref());
                let line = report.failures.first().map_or_else(String::new, |failure| {
                    format!(
                        "{}:{}: {}: expected {}, got {}",
                        report.file, failure.line, failure.what, failure.expected, failure.got
                    )
                });
                suites.add(&report.file, name, outcome(report.passed(), line, report.to_string()));
            }
            suites.write(format)?
        }
    };
    output::print(&text)?;
    Ok(if failed > 0 { Verdict::Found } else { Verdict::Clean })
}

/// What happens at each event. No expectation is looked at.
fn tell(scenarios: &[Scenario], inputs: &[Input], global: &Global) -> Result<Verdict> {
    let of = |scenario: &Scenario| -> Vec<Story> {
        scenario.expects.iter().filter_map(|expect| scenario.story(expect)).collect()
    };
    let stories: Vec<Story> = scenarios.par_iter().map(of).collect::<Vec<_>>().concat();
    let text = match global.format {
        Format::Json => {
            let summary = json!({ "runs": stories.len() });
            let mut detail = Map::new();
            detail.insert("stories".to_owned(), json!(stories));
            output::envelope("scenarios-steps", inputs, summary, detail)?
        }
        Format::Text => stories.iter().map(|story| format!("{story}\n\n")).collect(),
        other => bail!("--steps has --format text and json, not {}", formats::name(other)),
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}

/// Other orders of every expectation's events.
fn run_orders(
    scenarios: &[Scenario],
    inputs: &[Input],
    orders: Orders,
    global: &Global,
) -> Result<Verdict> {
    let of = |scenario: &Scenario| -> Vec<OrdersReport> {
        scenario.expects.iter().map(|expect| scenario.run_orders(expect, orders)).collect()
    };
    let reports: Vec<OrdersReport> = scenarios.par_iter().map(of).collect::<Vec<_>>().concat();
    let passed = reports.iter().filter(|report| report.passed()).count();
    let failed = reports.len() - passed;
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            detail.insert("cases".to_owned(), json!(reports));
            let summary = json!({ "passed": passed, "failed": failed, "skipped": 0 });
            output::envelope("scenarios", inputs, summary, detail)?
        }
        Format::Text => {
            let shown = reports.iter().filter(|report| !global.quiet || !report.passed());
            let mut out: String = shown.map(|report| format!("{report}\n")).collect();
            out += &format!("{passed} passed, {failed} failed\n");
            out
        }
        format => {
            let mut suites = Suites::new("scenarios");
            for report in &reports {
                let name = case_name(&report.scenario, &report.policy, report.list.as_deref());
                let line = format!("{} of {} orders break it", report.broken, report.orders);
                suites.add(&report.file, name, outcome(report.passed(), line, report.to_string()));
            }
            suites.write(format)?
        }
    };
    output::print(&text)?;
    Ok(if failed > 0 { Verdict::Found } else { Verdict::Clean })
}

fn case_name(scenario: &str, policy: &str, list: Option<&str>) -> String {
    let list = list.map(|list| format!(", events {list}")).unwrap_or_default();
    format!("{scenario} under {policy}{list}")
}

fn outcome(passed: bool, line: String, text: String) -> Outcome {
    if passed { Outcome::Passed } else { Outcome::Failed(line, text) }
}

fn report(reports: &[CaseReport], global: &Global, passed: usize, failed: usize) -> String {
    let shown = reports.iter().filter(
        |report| {
            if report.passed() { global.verbose } else { !global.quiet }
        },
    );
    let mut out: String = shown.map(|report| format!("{report}\n")).collect();
    out += &format!("{passed} passed, {failed} failed\n");
    out
}

/// The scenario files at a path, in the order of their names.
fn collect(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = || format!("cannot read {}", path.display());
    if !fs::metadata(path).with_context(failed)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if depth == 0 {
        bail!("{}: more than {DEPTH_MAX} folders deep", path.display());
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).with_context(failed)? {
        entries.push(entry.with_context(failed)?.path());
    }
    entries.sort();
    for entry in entries {
        let is_dir = fs::metadata(&entry).is_ok_and(|meta| meta.is_dir());
        if is_dir || entry.extension().is_some_and(|ext| ext == "toml") {
            collect(&entry, depth - 1, files)?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    let failed = || format!("cannot read {}", file.display());
    let mut bytes = Vec::new();
    let opened = File::open(file).with_context(failed)?;
    opened.take(FILE_BYTES_MAX).read_to_end(&mut bytes).with_context(failed)?;
    if bytes.trim_ascii().is_empty() {
        bail!("{}: is empty, no scenario", file.display());
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow!(
            "{}: binary content from byte {offset} on, no scenario: a scenario is TOML in UTF-8",
            file.display()
        )
    })
}
