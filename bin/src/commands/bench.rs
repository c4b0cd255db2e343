//! `bench`: the fixed suite, for CI.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tlbscope_analyze::bench::{self, Changed, Condition, Numbers};
use tlbscope_analyze::replay::Setup;
use tlbscope_sim::policy;

use crate::Verdict;
use crate::args::{Bench, Format, Global, Reading};
use crate::formats::cases::{Outcome, Suites};
use crate::input::{self, Input};
use crate::output;

/// Changes that are listed one by one.
const LISTED: usize = 60;

/// Runs the command.
pub fn run(command: &Bench, global: &Global) -> Result<Verdict> {
    let conditions: Vec<Condition> =
        command.fail_on.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let before = command.baseline.as_deref().map(baseline).transpose()?;
    if before.is_none()
        && let Some(condition) = conditions.iter().find(|c| c.needs_baseline())
    {
        bail!("`{}` compares with an earlier result: give it with --baseline", condition.text());
    }
    let names = match &command.policy[..] {
        [] => bench::POLICIES.map(str::to_owned).to_vec(),
        named => named.to_vec(),
    };
    let load = |name: &String| {
        policy::load(name).with_context(|| format!("cannot load the policy {name}"))
    };
    let policies = names.iter().map(load).collect::<Result<Vec<_>>>()?;
    let processor = command.machine.as_deref();
    let mut guests = bench::generated(processor)?;
    let mut inputs = Vec::new();
    for path in &command.traces {
        let (feed, read) = input::feed(path, &Reading::default())?;
        let setup = Setup::new(feed.meta(), feed.pcpus(), &read.path, processor)?;
        guests.push((feed, setup));
        inputs.push(read);
    }
    let summaries = bench::run(&mut guests, &policies)?;
    let summary = serde_json::to_value(&summaries)?;
    let now = numbers(&summary);
    for condition in &conditions {
        if !condition.knows(&now) {
            bail!("`{}`: no such number, policy or trace in the suite", condition.text());
        }
    }
    let changes = before.as_deref().map(|before| bench::changes(before, &now));
    let failed = failures(&conditions, &now, before.as_deref().unwrap_or(&[]));
    let result = result(&inputs, summary, changes.as_deref(), &failed)?;
    if let Some(path) = &command.output {
        output::write_file(path, |out| Ok(out.write_all(result.as_bytes())?))?;
    }
    match global.format {
        Format::Json => output::print(&result)?,
        Format::Junit => output::print(&suites(&conditions, &now, &failed).write(Format::Junit)?)?,
        _ => output::print(&markdown(&now, changes.as_deref(), &failed))?,
    }
    Ok(if failed.is_empty() { Verdict::Clean } else { Verdict::Found })
}

/// The numbers of an earlier result.
fn baseline(path: &Path) -> Result<Vec<Numbers>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{shown}: is no result of `tlbscope bench`"))?;
    let schema = value.get("schema").and_then(Value::as_str).unwrap_or_default();
    if schema != "tlbscope/bench/1" {
        bail!("{shown}: its schema is `{schema}`, that of `tlbscope bench` is tlbscope/bench/1");
    }
    Ok(numbers(&value["summary"]))
}

fn numbers(summary: &Value) -> Vec<Numbers> {
    summary.as_array().into_iter().flatten().filter_map(Numbers::of).collect()
}

/// Each condition that holds, with the run in which it does.
fn failures<'a>(
    conditions: &'a [Condition],
    now: &'a [Numbers],
    before: &[Numbers],
) -> Vec<(&'a str, &'a Numbers)> {
    let mut all = Vec::new();
    for condition in conditions {
        for n in now {
            let was = before.iter().find(|b| b.trace == n.trace && b.policy == n.policy);
            if condition.holds(n, was) {
                all.push((condition.text(), n));
            }
        }
    }
    all
}

fn result(
    inputs: &[Input],
    summary: Value,
    changes: Option<&[Changed]>,
    failed: &[(&str, &Numbers)],
) -> Result<String> {
    let mut detail = Map::new();
    if let Some(changes) = changes {
        let list = changes.iter().map(|c| {
            json!({
                "trace": c.trace, "policy": c.policy, "metric": c.metric,
                "before": c.before, "after": c.after,
            })
        });
        detail.insert("changes".to_owned(), list.collect());
    }
    let list = failed
        .iter()
        .map(|(text, n)| json!({ "condition": text, "trace": n.trace, "policy": n.policy }));
    detail.insert("failed".to_owned(), list.collect());
    Ok(output::envelope("bench", inputs, summary, detail)? + "\n")
}

/// A suite for each condition, a case for each run; without a condition the runs are all there is.
fn suites(conditions: &[Condition], now: &[Numbers], failed: &[(&str, &Numbers)]) -> Suites {
    let mut suites = Suites::new("bench");
    let texts: Vec<&str> = match conditions {
        [] => vec!["runs"],
        some => some.iter().map(Condition::text).collect(),
    };
    for text in texts {
        for n in now {
            let name = format!("{} under {}", n.trace, n.policy);
            let holds = failed
                .iter()
                .any(|(t, f)| *t == text && (&f.trace, &f.policy) == (&n.trace, &n.policy));
            let line = format!("`{text}` holds for {name}");
            let numbers: Vec<String> = n.values.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
            let outcome =
                if holds { Outcome::Failed(line, numbers.concat()) } else { Outcome::Passed };
            suites.add(text, name, outcome);
        }
    }
    suites
}

/// The summary that a pull request shows.
fn markdown(now: &[Numbers], changes: Option<&[Changed]>, failed: &[(&str, &Numbers)]) -> String {
    let mut out = String::from("## tlbscope bench\n\n");
    let verdict = if failed.is_empty() { "passed" } else { "FAILED" };
    let _ = writeln!(out, "{} runs, {verdict}", now.len());
    for (text, n) in failed {
        let _ = writeln!(out, "* `{text}` holds for {} under {}", n.trace, n.policy);
    }
    match changes {
        None => totals(&mut out, now),
        Some([]) => out += "\nNothing changed from the baseline.\n",
        Some(changes) => {
            out += "\n| trace | policy | number | before | after | change |\n";
            out += "| --- | --- | --- | ---: | ---: | ---: |\n";
            for c in changes.iter().take(LISTED) {
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {} | {} |",
                    c.trace,
                    c.policy,
                    c.metric,
                    c.before,
                    c.after,
                    change(c.before, c.after)
                );
            }
            if changes.len() > LISTED {
                let _ = writeln!(out, "\n... and {} more changes", changes.len() - LISTED);
            }
        }
    }
    out
}

/// A change in per cent, one digit behind the point, without a float.
fn change(before: u64, after: u64) -> String {
    if before == 0 {
        return format!("+{after}");
    }
    let (sign, by) = if after >= before { ('+', after - before) } else { ('-', before - after) };
    let mille = u128::from(by) * 1000 / u128::from(before);
    format!("{sign}{}.{}%", mille / 10, mille % 10)
}

/// Sums over all traces by policy, where there is nothing to compare with.
fn totals(out: &mut String, now: &[Numbers]) {
    const SHOWN: [&str; 7] =
        ["missed-harmful", "exposed", "excessive", "resets", "root-loads", "exits", "cycles"];
    let mut sums: BTreeMap<usize, (String, [u64; 7])> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for n in now {
        let place = order.iter().position(|p| *p == n.policy).unwrap_or_else(|| {
            order.push(&n.policy);
            order.len() - 1
        });
        let (_, sum) = sums.entry(place).or_insert_with(|| (n.policy.clone(), [0; 7]));
        for (sum, name) in sum.iter_mut().zip(SHOWN) {
            *sum += n.values.get(name).copied().unwrap_or(0);
        }
    }
    let _ = writeln!(out, "\n| policy | {} |", SHOWN.join(" | "));
    let _ = writeln!(out, "| --- |{}", " ---: |".repeat(SHOWN.len()));
    for (policy, sum) in sums.values() {
        let cells: Vec<String> = sum.iter().map(u64::to_string).collect();
        let _ = writeln!(out, "| {policy} | {} |", cells.join(" | "));
    }
}
