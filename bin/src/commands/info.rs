//! `info`: what is inside a trace.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde_json::{Map, json};
use tlbscope_trace::{Body, Recording, text};

use super::simulate::verdict;
use crate::Verdict;
use crate::args::{Format, Global, Info};
use crate::{input, output};

/// Runs the command.
pub fn run(command: &Info, global: &Global) -> Result<Verdict> {
    let (recording, read) = input::open(&command.trace, &command.reading)?;
    let ops = operations(&recording);
    let text = match global.format {
        Format::Json => {
            let summary = json!({
                "records": recording.records.len(),
                "operations": recording.ops().count(),
                "acts": recording.acts().count(),
                "gaps": gaps(&recording),
            });
            let mut detail = Map::new();
            detail.insert("meta".to_owned(), json!(recording.meta));
            detail.insert("census".to_owned(), json!(recording.census));
            detail.insert("by_operation".to_owned(), json!(ops));
            output::envelope("info", &[read], summary, detail)?
        }
        Format::Text => describe(&recording, &ops),
    };
    output::print(&text)?;
    Ok(verdict(&[recording], false))
}

fn gaps(recording: &Recording) -> usize {
    recording.records.iter().filter(|r| matches!(r.body, Body::Gap(_))).count()
}

/// How many operations there are of each name.
fn operations(recording: &Recording) -> BTreeMap<String, u64> {
    let mut ops = BTreeMap::new();
    for (_, op) in recording.ops() {
        let words = text::write_op(op);
        let name = words.split_whitespace().next().unwrap_or_default().to_owned();
        *ops.entry(name).or_default() += 1;
    }
    ops
}

fn describe(recording: &Recording, ops: &BTreeMap<String, u64>) -> String {
    let meta = &recording.meta;
    let mut out = String::new();
    let unknown = || "unknown".to_owned();
    let _ = writeln!(out, "{}: {}, {} vCPU(s)", meta.source, meta.form, meta.vcpus);
    let vendor = meta.vendor.map_or_else(unknown, |v| format!("{v:?}").to_lowercase());
    let mmu = meta.mmu.map_or_else(unknown, |m| format!("{m:?}").to_lowercase());
    let kernel = meta.kernel.clone().unwrap_or_else(unknown);
    let _ = writeln!(out, "vendor {vendor}, mmu {mmu}, kernel {kernel}");
    let (operations, acts) = (recording.ops().count(), recording.acts().count());
    let _ = writeln!(out, "{operations} operations, {acts} acts, {} gaps", gaps(recording));
    for (name, n) in ops {
        let _ = writeln!(out, "  {name} {n}");
    }
    for (title, lines) in [("evidence", &meta.evidence), ("lost", &meta.losses)] {
        for line in lines {
            let _ = writeln!(out, "{title}: {line}");
        }
    }
    let census = &recording.census;
    let understood: u64 = census.understood.values().sum();
    if understood > 0 {
        let kinds = census.understood.len();
        let _ = writeln!(out, "understood: {understood} events of {kinds} kinds");
    }
    for (name, (n, why)) in &census.ignored {
        let _ = writeln!(out, "left out: {name} {n}: {why}");
    }
    for (name, n) in &census.unknown {
        let _ = writeln!(out, "not understood: {name} {n}");
    }
    out
}
