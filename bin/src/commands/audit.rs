//! `audit`: what a real host did, judged from its own recording.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tlbscope_analyze::audit::{self, Audit, COLUMNS, Found, Line, Story, Summary, Transitions};
use tlbscope_analyze::finding::{Class, Kind};
use tlbscope_sim::arch::required::RULES;
use tlbscope_sim::arch::required::elsewhere::elsewhere;
use tlbscope_trace::Recording;
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{self, Format, Global};
use crate::input::{self, Input};
use crate::output;

/// One recording with its audit.
struct Audited {
    recording: Recording,
    input: Input,
    audit: Audit,
}

/// Runs the command: recordings in parallel, printed in the order in which they were named.
pub fn run(command: &args::Audit, global: &Global) -> Result<Verdict> {
    let all: Result<Vec<Audited>> = command
        .recordings
        .par_iter()
        .map(|path| one(path, command))
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    let all = all?;
    for one in &all {
        warn_of_losses(&one.recording);
    }
    let text = match global.format {
        Format::Json => json_text(command, &all)?,
        Format::Text => {
            all.iter().map(|one| text(command, global, one)).collect::<Vec<_>>().join("\n")
        }
    };
    output::print(&text)?;
    let found = all.iter().any(|one| {
        let harmful = one
            .audit
            .groups
            .iter()
            .any(|(group, count)| matches!(group.kind, Kind::Missed { .. }) && *count > 0);
        harmful || one.audit.summary.exposed > 0
    });
    let recordings: Vec<Recording> = all.into_iter().map(|one| one.recording).collect();
    Ok(verdict(&recordings, found))
}

fn one(path: &Path, command: &args::Audit) -> Result<Audited> {
    let (recording, input) = input::open(path, &command.reading)?;
    let audit = audit::run(&recording, &input.path, command.max_findings)?;
    Ok(Audited { recording, input, audit })
}

fn json_text(command: &args::Audit, all: &[Audited]) -> Result<String> {
    let mut detail = Map::new();
    let recordings: Vec<Value> = all.iter().map(|one| detail_of(command, one)).collect();
    detail.insert("recordings".to_owned(), Value::Array(recordings));
    let inputs: Vec<Input> = all.iter().map(|one| one.input.clone()).collect();
    let summaries: Vec<&Summary> = all.iter().map(|one| &one.audit.summary).collect();
    output::envelope("audit", &inputs, summaries, detail)
}

fn detail_of(command: &args::Audit, one: &Audited) -> Value {
    let audit = &one.audit;
    let findings: Vec<Value> = audit
        .found
        .iter()
        .map(|found| {
            let story = Story::of(&one.recording, found);
            let other = one.recording.meta.vendor.and_then(|v| elsewhere(found.finding.rule, v));
            let mut value = json!({ "finding": found.finding, "story": story });
            if let Some(what) = other {
                value["other_vendor"] = json!(what);
            }
            value
        })
        .collect();
    let groups: Vec<Value> = audit
        .groups
        .iter()
        .map(|(group, count)| json!({ "group": group, "count": count }))
        .collect();
    let mut object = json!({
        "trace": audit.summary.trace,
        "evidence": one.recording.meta.evidence,
        "lacks": audit.lacks,
        "findings": findings,
        "groups": groups,
    });
    if !command.no_transitions {
        object["transitions"] = transitions_json(&audit.transitions);
    }
    object
}

/// Rows as objects with the counts that are not 0.
fn transitions_json(table: &Transitions) -> Value {
    let row = |(name, row): (&str, &audit::Row)| {
        let counts = COLUMNS.iter().zip(row.acts).filter(|(_, n)| *n > 0);
        let acts: Map<String, Value> =
            counts.map(|(column, n)| ((*column).to_owned(), json!(n))).collect();
        json!({ "operation": name, "count": row.operations, "acts": acts })
    };
    Value::Array(table.rows().map(row).collect())
}

fn text(command: &args::Audit, global: &Global, one: &Audited) -> String {
    let mut out = String::new();
    let audit = &one.audit;
    if !global.quiet {
        let shown = audit.found.iter().filter(|found| {
            command.excessive || !matches!(found.finding.kind, Kind::Excessive(_) | Kind::Advised)
        });
        for found in shown {
            out += &finding(&one.recording, &audit.summary.trace, found);
            out.push('\n');
        }
    }
    out += &summary(&audit.summary);
    if global.quiet {
        return out;
    }
    for (group, count) in &audit.groups {
        if let Kind::Excessive(class) = group.kind {
            let _ = writeln!(
                out,
                "  excessive, {}: {} at {}: {count}",
                class_name(class),
                group.mechanism,
                group.op
            );
        }
    }
    for lack in &audit.lacks {
        let _ = writeln!(out, "  not recorded: {}", lack.what);
        let _ = writeln!(out, "    not judged: {}", lack.unjudged);
        let _ = writeln!(out, "    to record:  {}", lack.record);
    }
    if global.verbose {
        for sentence in &one.recording.meta.evidence {
            let _ = writeln!(out, "  {sentence}");
        }
    }
    if !command.no_transitions {
        out.push('\n');
        out += &transitions(&audit.transitions);
    }
    out
}

const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Unrequired => "unrequired",
        Class::Redundant => "redundant",
        Class::OverBroad => "over-broad",
        Class::Bookkeeping => "bookkeeping",
    }
}

/// One finding, as a compiler would put it.
fn finding(recording: &Recording, trace: &str, found: &Found) -> String {
    let f = &found.finding;
    let story = Story::of(recording, found);
    let mut out = String::new();
    let head = match f.kind {
        Kind::Missed { harmful: true } => "missed flush, harmful".to_owned(),
        Kind::Missed { harmful: false } => "missed flush, benign".to_owned(),
        Kind::Exposed => "exposed".to_owned(),
        Kind::Latent => "latent".to_owned(),
        Kind::Advised => "advised".to_owned(),
        Kind::Excessive(class) => format!("excessive, {}", class_name(class)),
    };
    let place = |line: &Line| format!("{trace}:{}, {} ns, v{}", line.line, line.time, f.vcpu);
    let _ = writeln!(out, "{head} [{}]: {} on v{}", f.rule, f.op, f.vcpu);
    let _ = writeln!(out, "  --> {}", place(&story.cause));
    let _ = writeln!(out, "  cause: {}", story.cause.what);
    if story.acts.is_empty() {
        let _ = writeln!(out, "  then:  nothing was done before the next entry");
    }
    for (n, act) in story.acts.iter().enumerate() {
        let head = if n == 0 { "then: " } else { "      " };
        let _ = writeln!(out, "  {head} line {}: {}", act.line, act.what);
    }
    if story.more > 0 {
        let _ = writeln!(out, "         ... and {} more", story.more);
    }
    let _ = writeln!(out, "  at:    {}: {}", place(&story.seen), story.seen.what);
    let _ = write!(out, "  so:    {}", story.verdict);
    if let Some(address) = f.address {
        let _ = write!(out, ", address {address:#x}");
    }
    out.push('\n');
    if let Some(rule) = RULES.iter().find(|rule| rule.id == f.rule) {
        let machine = recording.meta.vendor.or(rule.vendor);
        let line = machine.map(|machine| crate::render::rule_line(rule, machine));
        let _ = writeln!(out, "  rule:  {}", line.unwrap_or_else(|| rule.sentence.to_owned()));
    }
    out
}

fn summary(s: &Summary) -> String {
    let mut out = String::new();
    let kernel = s.kernel.as_deref().unwrap_or("a kernel that does not show");
    let _ = writeln!(
        out,
        "{}: {}, {}, {kernel}: {} events, {} entries",
        s.trace,
        match s.vendor {
            Vendor::Intel => "Intel",
            Vendor::Amd => "AMD",
        },
        match s.mmu {
            MmuKind::Shadow => "shadow paging",
            MmuKind::Tdp => "TDP",
        },
        s.events,
        s.entries
    );
    let _ = writeln!(
        out,
        "  operations {}, judged {}, missed {}, exposed {}, advised {}, excessive {}",
        s.operations, s.judged, s.missed, s.exposed, s.advised, s.excessive
    );
    for (reason, count) in &s.unjudged {
        // A reason with 0 is of operations that leave no line to be counted by.
        let count = if *count == 0 { "unknown number".to_owned() } else { count.to_string() };
        let _ = writeln!(out, "  unjudged, {reason}: {count} ({})", reason_in_words(reason));
    }
    if s.remote_owed > 0 {
        let open = s.remote_owed - s.remote_judged;
        let _ = writeln!(
            out,
            "  remote flushes owed by other vCPUs {}, judged {}, open {open} (the vCPU did not enter \
             again, or only while the call was under way)",
            s.remote_owed, s.remote_judged
        );
    }
    let _ = writeln!(
        out,
        "  bookkeeping {}, flushes that no recorded operation asked for {}, guest-owned bits found \
         changed {}",
        s.bookkeeping, s.unattributed, s.owned_writes
    );
    out
}

/// Why operations were not judged.
fn reason_in_words(reason: &str) -> &'static str {
    match reason {
        "cr3-not-intercepted" => "MOV CR3 does not exit: the processor flushes",
        "invlpg-not-intercepted" => "INVLPG does not exit: the processor flushes",
        "invpcid-not-intercepted" => "INVPCID does not exit: the processor flushes",
        "guest-owned-bits" => "the guest writes these bits of CR0 and CR4 without an exit",
        "no-flush-probes" => "no function that flushes was probed",
        "no-probe-of-the-hook" => "the function that served the request was not probed",
        "no-probe-flush-gva" => "flush_tlb_gva was not probed",
        "operand-not-recorded" => "which address or PCID is meant was not recorded",
        "host-change" => {
            "the host unmaps, zaps or protects: whether anything was mapped there is not recorded"
        }
        "gap" => "events were lost before it, or before the entry behind it",
        "recording-ends" => "the recording ends before the vCPU enters again",
        "tie" => "at the same instant another vCPU's page turned unsync: in no known order",
        _ => "the recording does not show enough",
    }
}

/// The table: one row for each kind of operation, columns that are 0 everywhere left out.
fn transitions(all: &Transitions) -> String {
    let used: Vec<usize> = (0..COLUMNS.len())
        .filter(|column| all.rows().any(|(_, row)| row.acts[*column] > 0))
        .collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut head = vec!["operation".to_owned(), "count".to_owned()];
    head.extend(used.iter().map(|column| COLUMNS[*column].to_owned()));
    table.set_header(head);
    for (name, row) in all.rows() {
        let mut cells = vec![name.to_owned(), row.operations.to_string()];
        let count = |column: &usize| match row.acts[*column] {
            0 => ".".to_owned(),
            n => n.to_string(),
        };
        cells.extend(used.iter().map(count));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}
