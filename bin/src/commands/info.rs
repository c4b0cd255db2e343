//! `info`: what is inside a trace, and whether its checksums hold.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tlbscope_trace::op::{AccessKind, Op};
use tlbscope_trace::{Body, Census, Meta, Opened, Record, open_lazily, text};

use super::simulate::verdict_of;
use crate::Verdict;
use crate::args::{Format, Global, Info};
use crate::input::{self, Input};
use crate::output;

/// Runs the command.
pub fn run(command: &Info, global: &Global) -> Result<Verdict> {
    let read = Input::of_file(&command.trace)?;
    let (inside, contents) = look(command, global)?;
    let text = match global.format {
        Format::Json => {
            let summary = json!({
                "records": contents.records,
                "operations": contents.operations,
                "acts": contents.acts,
                "gaps": contents.gaps,
            });
            let mut detail = Map::new();
            detail.insert("meta".to_owned(), json!(inside.meta));
            detail.insert("census".to_owned(), json!(inside.census));
            detail.insert("by_operation".to_owned(), json!(contents.by_operation));
            detail
                .insert("native".to_owned(), inside.file.as_ref().map_or(Value::Null, File::json));
            output::envelope("info", &[read], summary, detail)?
        }
        _ => describe(&inside, &contents),
    };
    output::print(&text)?;
    Ok(verdict_of(!inside.meta.losses.is_empty(), false))
}

/// What a trace says of itself.
struct Inside {
    meta: Meta,
    census: Census,
    file: Option<File>,
}

/// A native file.
struct File {
    tool: String,
    blocks: u64,
    bytes: u64,
    ordered: bool,
}

impl File {
    fn json(&self) -> Value {
        json!({
            "tool": self.tool,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "ordered": self.ordered,
        })
    }
}

/// What was counted.
#[derive(Default)]
struct Contents {
    records: u64,
    operations: u64,
    acts: u64,
    gaps: u64,
    by_operation: BTreeMap<String, u64>,
}

impl Contents {
    fn count(&mut self, record: &Record) {
        self.records += 1;
        match &record.body {
            Body::Op(op) => {
                self.operations += 1;
                self.operation(op);
            }
            Body::Act(_) => self.acts += 1,
            Body::Gap(_) => self.gaps += 1,
        }
    }

    fn operation(&mut self, op: &Op) {
        let words;
        let name = match op {
            // The frequent ones without a detour through their text.
            Op::Access(access) => match access.kind {
                AccessKind::Read => "read",
                AccessKind::Write => "write",
                AccessKind::Exec => "exec",
            },
            op => {
                words = text::write_op(op);
                words.split_whitespace().next().unwrap_or_default()
            }
        };
        match self.by_operation.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                self.by_operation.insert(name.to_owned(), 1);
            }
        }
    }
}

/// Reads the trace through, a native one block by block.
fn look(command: &Info, global: &Global) -> Result<(Inside, Contents)> {
    let mut contents = Contents::default();
    let mut reader = match open_lazily(&command.trace, &input::options(&command.reading)?)? {
        Opened::Whole(recording) => {
            recording.records.iter().for_each(|record| contents.count(record));
            let (meta, census) = (recording.meta, recording.census);
            return Ok((Inside { meta, census, file: None }, contents));
        }
        Opened::Native(reader) => reader,
    };
    let bar = output::progress(reader.header_ref().and_then(|header| header.records), global);
    let mut records = Vec::new();
    loop {
        let more = reader.append(&mut records)?;
        bar.inc(records.len() as u64);
        records.drain(..).for_each(|record| contents.count(&record));
        if !more {
            break;
        }
    }
    bar.finish_and_clear();
    let (blocks, bytes) = (reader.blocks(), reader.position());
    let (header, losses) = reader.finish()?;
    let mut meta = header.meta;
    meta.losses.extend(losses);
    let file = Some(File { tool: header.tool, blocks, bytes, ordered: header.ordered });
    Ok((Inside { meta, census: header.census, file }, contents))
}

fn describe(inside: &Inside, contents: &Contents) -> String {
    let meta = &inside.meta;
    let mut out = String::new();
    let unknown = || "unknown".to_owned();
    let _ = writeln!(out, "{}: {}, {} vCPU(s)", meta.source, meta.form, meta.vcpus);
    let vendor = meta.vendor.map_or_else(unknown, |v| format!("{v:?}").to_lowercase());
    let mmu = meta.mmu.map_or_else(unknown, |m| format!("{m:?}").to_lowercase());
    let kernel = meta.kernel.clone().unwrap_or_else(unknown);
    let _ = writeln!(out, "vendor {vendor}, mmu {mmu}, kernel {kernel}");
    if let Some(file) = &inside.file {
        let hundredths = file.bytes * 100 / contents.records.max(1);
        let sums = if meta.losses.is_empty() { "all checksums hold" } else { "damaged" };
        let _ = writeln!(
            out,
            "native, by {}: {} blocks, {} bytes, {}.{:02} a record; {sums}",
            file.tool,
            file.blocks,
            file.bytes,
            hundredths / 100,
            hundredths % 100
        );
    }
    let Contents { operations, acts, gaps, .. } = contents;
    let _ = writeln!(out, "{operations} operations, {acts} acts, {gaps} gaps");
    for (name, n) in &contents.by_operation {
        let _ = writeln!(out, "  {name} {n}");
    }
    for (title, lines) in [("evidence", &meta.evidence), ("lost", &meta.losses)] {
        for line in lines {
            let _ = writeln!(out, "{title}: {line}");
        }
    }
    let census = &inside.census;
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
