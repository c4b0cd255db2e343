//! `policy` and `machine`: what the program knows.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tlbscope_sim::machine::{self, Processor};
use tlbscope_sim::policy;

use crate::Verdict;
use crate::args::{Format, Global, MachineCommand, PolicyCommand};
use crate::input::Input;
use crate::output;

/// `policy list|show|check|diff`.
pub fn policy(command: &PolicyCommand, global: &Global) -> Result<Verdict> {
    match command {
        PolicyCommand::List => {
            let mut entries = Vec::new();
            for (name, _) in policy::builtins() {
                entries.push(((*name).to_owned(), policy::load(name)?.about));
            }
            list("policy-list", &entries, global)
        }
        PolicyCommand::Show { policy: name } => {
            let toml = policy::load(name)?.to_toml();
            one("policy-show", &[], ("name", name), ("toml", json!(toml)), &toml, global)
        }
        PolicyCommand::Diff { a, b } => super::policy_diff::run([a, b], global),
        PolicyCommand::Explain { policy, operations } => {
            super::policy_explain::run(policy, operations, global)
        }
        PolicyCommand::New { from, name, output } => {
            super::policy_new::run(from, name.as_deref(), output.as_deref())
        }
        PolicyCommand::Check { file } => super::policy_check::run(file, global),
    }
}

/// A file's path as the loader tells paths from names: with a slash.
pub(super) fn as_path(file: &Path) -> String {
    let text = file.display().to_string();
    if text.contains('/') { text } else { format!("./{text}") }
}

/// `machine list|show`.
pub fn machine(command: &MachineCommand, global: &Global) -> Result<Verdict> {
    match command {
        MachineCommand::List => {
            let mut entries = Vec::new();
            for (name, _) in machine::builtins() {
                entries.push(((*name).to_owned(), machine::load(name)?.about));
            }
            list("machine-list", &entries, global)
        }
        MachineCommand::Show { machine: name } => {
            let processor = machine::load(name)?;
            let text = describe(&processor);
            one("machine-show", &[], ("name", name), ("text", json!(text)), &text, global)
        }
    }
}

fn describe(processor: &Processor) -> String {
    let mut out = format!("{}: {}\n", processor.name, processor.about);
    out += &format!("{} MHz\n", processor.mhz);
    match &processor.geometry {
        None => out += "TLB: unbounded, never evicts\n",
        Some(geometry) => {
            for array in &geometry.tlb {
                let sizes: Vec<String> = array.sizes.iter().map(ToString::to_string).collect();
                out += &format!(
                    "TLB level {} {:?}: {} entries, {} ways, {} ({})\n",
                    array.level,
                    array.serves,
                    array.entries,
                    array.ways,
                    sizes.join(" "),
                    array.source
                );
            }
            for cache in &geometry.structure {
                out += &format!(
                    "paging-structure cache, level {}: {} entries ({})\n",
                    cache.level, cache.entries, cache.source
                );
            }
        }
    }
    for name in machine::costs::Costs::NAMES {
        if let Some(cost) = processor.cost.get(name) {
            let mark = if cost.unverified { ", unverified" } else { "" };
            out += &format!("{name}: {} cycles ({}{mark})\n", cost.cycles, cost.source);
        }
    }
    out
}

/// Prints names with a sentence each.
fn list(command: &str, entries: &[(String, String)], global: &Global) -> Result<Verdict> {
    let text = match global.format {
        Format::Json => {
            let names: Vec<Value> = entries
                .iter()
                .map(|(name, about)| json!({ "name": name, "about": about }))
                .collect();
            output::envelope(command, &[], json!({ "count": names.len() }), {
                let mut detail = Map::new();
                detail.insert("entries".to_owned(), json!(names));
                detail
            })?
        }
        _ => {
            let width = entries.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            entries.iter().map(|(name, about)| format!("{name:width$}  {about}\n")).collect()
        }
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}

/// Prints one thing.
pub(super) fn one(
    command: &str,
    inputs: &[Input],
    (key, name): (&str, &str),
    (what, value): (&str, Value),
    text: &str,
    global: &Global,
) -> Result<Verdict> {
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            detail.insert(what.to_owned(), value);
            output::envelope(command, inputs, json!({ key: name }), detail)?
        }
        _ => text.to_owned(),
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}
