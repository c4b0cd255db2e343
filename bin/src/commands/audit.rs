//! `audit`: what a real host did, judged from its own recording.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
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
        "{}: {}, {kernel}: {} events, {} entries",
        s.trace,
        machine(s),
        s.events,
        s.entries
    );
    let _ = writeln!(
        out,
        "  operations {}, judged {}, missed {}, exposed {}, advised {}, excessive {}",
        s.operations, s.judged, s.missed, s.exposed, s.advised, s.excessive
    );
    for (reason, count) in &s.unjudged {
        // A reason without a number: what does not exit leaves no event to count.
        let count = if *count == 0 { "no event shows them".to_owned() } else { count.to_string() };
        let _ = writeln!(out, "  unjudged, {reason}: {count}");
    }
    let _ = writeln!(
        out,
        "  bookkeeping {}, flushes that no recorded operation asked for {}, guest-owned bits found \
         changed {}",
        s.bookkeeping, s.unattributed, s.owned_writes
    );
    out
}

/// Whose processor, and how guest addresses are translated.
const fn machine(s: &Summary) -> &'static str {
    match (s.vendor, s.mmu) {
        (Vendor::Intel, MmuKind::Tdp) => "Intel, EPT",
        (Vendor::Intel, MmuKind::Shadow) => "Intel, shadow paging",
        (Vendor::Amd, MmuKind::Tdp) => "AMD, NPT",
        (Vendor::Amd, MmuKind::Shadow) => "AMD, shadow paging",
    }
}

/// One row for each kind of operation, with what the host did for it: each act with its number,
/// without one if it was done once for each operation.
fn transitions(all: &Transitions) -> String {
    let wide = |(name, _): (&str, &audit::Row)| name.chars().count();
    let wide = all.rows().map(wide).max().unwrap_or_default();
    let mut out =
        format!("{:wide$}  count what the host did (no number: once each)\n", "operation");
    for (name, row) in all.rows() {
        let acts = COLUMNS.iter().zip(row.acts).filter(|(_, count)| *count > 0);
        let acts: Vec<String> =
            acts.map(|(act, count)| {
                if count == row.operations { (*act).to_owned() } else { format!("{act} {count}") }
            })
            .collect();
        let acts = if acts.is_empty() { "nothing".to_owned() } else { acts.join(", ") };
        let lead = format!("{name:wide$} {:>6} ", row.operations);
        out += &crate::render::hanging(&lead, &acts);
        out.push('\n');
    }
    out
}
