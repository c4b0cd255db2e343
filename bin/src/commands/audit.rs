//! `audit`: what a real host did, judged from its own recording.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tlbscope_analyze::audit::{self, Audit, COLUMNS, Found, Line, Story, Summary, Transitions};
use tlbscope_analyze::finding::{Group, Kind};
use tlbscope_sim::arch::required::RULES;
use tlbscope_sim::arch::required::elsewhere::elsewhere;
use tlbscope_trace::Recording;
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{self, Format, Global};
use crate::formats;
use crate::formats::document::{self, Document, Item, Place};
use crate::input::{self, Input};
use crate::output;
use crate::render;
use crate::report::{self, Recorded};
use crate::showing::Showing;

/// One recording with its audit.
struct Audited {
    /// Without its records, unless a report shows them.
    recording: Recording,
    input: Input,
    audit: Audit,
}

/// Runs the command: recordings in parallel, printed in the order in which they were named.
pub fn run(command: &args::Audit, global: &Global) -> Result<Verdict> {
    let showing = Showing::of(&command.showing)?;
    report::check(command.report.as_deref())?;
    let all: Result<Vec<Audited>> = command
        .recordings
        .par_iter()
        .map(|path| one(path, command, &showing))
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    let all = all?;
    for one in &all {
        warn_of_losses(&one.recording);
    }
    let used = all.iter().flat_map(|one| one.audit.suppressed.values().copied());
    showing.warn_of_unused(&used.collect(), global.quiet);
    let mut runs = Vec::new();
    for one in &all {
        let mut run = documented(command, one, &showing)?;
        run.show(&showing);
        runs.push(run);
    }
    if let Some(path) = &command.report {
        let parts = all.iter().map(|one| {
            let Audited { recording, input, audit } = one;
            Recorded { recording, input, audit }
        });
        report::audit(path, &parts.collect::<Vec<_>>())?;
    }
    let text = match global.format {
        Format::Json => json_text(command, &all, &runs)?,
        Format::Text => {
            let told = all.iter().zip(&runs).map(|(one, run)| text(command, global, one, run));
            told.collect::<Vec<_>>().join("\n")
        }
        format => {
            let inputs: Vec<Input> = all.iter().map(|one| one.input.clone()).collect();
            let document = Document { command: "audit", inputs: &inputs, runs, comparisons: &[] };
            formats::write(format, &document)?
        }
    };
    output::print(&text)?;
    let found = all.iter().any(|one| {
        let harmful = one
            .audit
            .groups
            .iter()
            .filter(|(group, _)| !one.audit.suppressed.contains_key(group))
            .any(|(group, count)| matches!(group.kind, Kind::Missed { .. }) && *count > 0);
        harmful || one.audit.summary.exposed > 0
    });
    let recordings: Vec<Recording> = all.into_iter().map(|one| one.recording).collect();
    Ok(verdict(&recordings, found))
}

fn one(path: &Path, command: &args::Audit, showing: &Showing) -> Result<Audited> {
    let (recording, input, mut audit) = if command.report.is_some() {
        let (recording, input) = input::open(path, &command.reading)?;
        let audit = audit::run(&recording, &input.path, command.max_findings)?;
        (recording, input, audit)
    } else {
        let (mut passes, input) = input::passes(path, &command.reading)?;
        let head = passes.head_alone();
        let audit = audit::over(
            &head,
            |each| Ok::<_, anyhow::Error>(passes.pass(each)?),
            &input.path,
            command.max_findings,
        )?;
        (passes.head_alone(), input, audit)
    };
    audit.accept(&showing.suppressions);
    Ok(Audited { recording, input, audit })
}

fn json_text(command: &args::Audit, all: &[Audited], runs: &[document::Run]) -> Result<String> {
    let mut detail = Map::new();
    let recordings: Vec<Value> =
        all.iter().zip(runs).map(|(one, run)| detail_of(command, one, run)).collect();
    detail.insert("recordings".to_owned(), Value::Array(recordings));
    let inputs: Vec<Input> = all.iter().map(|one| one.input.clone()).collect();
    let summaries: Vec<&Summary> = all.iter().map(|one| &one.audit.summary).collect();
    output::envelope("audit", &inputs, summaries, detail)
}

fn detail_of(command: &args::Audit, one: &Audited, run: &document::Run) -> Value {
    let audit = &one.audit;
    let finding = |item: &Item| {
        let mut value = item.detail.clone();
        value["finding"] = json!(item.finding);
        if let Some(by) = &item.suppressed {
            value["suppressed"] = json!(by);
        }
        value
    };
    let findings: Vec<Value> = run.items.iter().map(finding).collect();
    let groups = run.groups_json();
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

/// An audit as the other forms take it.
fn documented(command: &args::Audit, one: &Audited, showing: &Showing) -> Result<document::Run> {
    let audit = &one.audit;
    let by = |group: &Group| showing.suppression(audit.suppressed.get(group).copied()).cloned();
    let item = |(n, (found, story)): (usize, (&Found, &Story))| {
        let place = |line: &Line, event: u64| Place {
            event,
            line: line.line,
            time: line.time,
            what: line.what.clone(),
        };
        let other = one.recording.meta.vendor.and_then(|v| elsewhere(found.finding.rule, v));
        let mut detail = json!({ "story": story });
        if let Some(what) = other {
            detail["other_vendor"] = json!(what);
        }
        Item {
            number: n + 1,
            suppressed: by(&found.finding.group()),
            cause: place(&story.cause, found.finding.cause),
            seen: Some(place(&story.seen, found.seen as u64)),
            text: finding(one.recording.meta.vendor, &audit.summary.trace, found, story),
            detail,
            finding: found.finding.clone(),
        }
    };
    let mut more: Vec<(&str, Value)> =
        audit.lacks.iter().map(|lack| ("lack", json!(lack))).collect();
    if !command.no_transitions
        && let Value::Array(rows) = transitions_json(&audit.transitions)
    {
        more.extend(rows.into_iter().map(|row| ("transition", row)));
    }
    Ok(document::Run {
        trace: audit.summary.trace.clone(),
        policy: None,
        summary: serde_json::to_value(&audit.summary)?,
        losses: one.recording.meta.losses.clone(),
        items: audit.found.iter().zip(&audit.stories).enumerate().map(item).collect(),
        groups: audit.groups.iter().map(|(group, count)| (*group, *count)).collect(),
        suppressed: audit.groups.keys().filter_map(|g| Some((*g, by(g)?))).collect(),
        more,
    })
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

fn text(command: &args::Audit, global: &Global, one: &Audited, run: &document::Run) -> String {
    let mut out = String::new();
    let audit = &one.audit;
    if !global.quiet {
        out += &formats::text::findings(run, global.verbose, |kind| {
            command.excessive || !matches!(kind, Kind::Excessive(_) | Kind::Advised)
        });
    }
    out += &summary(&audit.summary);
    if global.quiet {
        return out;
    }
    let open = audit.groups.iter().filter(|(group, _)| !audit.suppressed.contains_key(group));
    for (group, count) in open {
        if let Kind::Excessive(class) = group.kind {
            let _ = writeln!(
                out,
                "  excessive, {}: {} at {}: {count}",
                class.name(),
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

/// One finding, as a compiler would put it.
fn finding(vendor: Option<Vendor>, trace: &str, found: &Found, story: &Story) -> String {
    let f = &found.finding;
    let mut out = String::new();
    let head = match f.kind {
        Kind::Missed { harmful: true } => "missed flush, harmful".to_owned(),
        Kind::Missed { harmful: false } => "missed flush, benign".to_owned(),
        Kind::Exposed => "exposed".to_owned(),
        Kind::Latent => "latent".to_owned(),
        Kind::Advised => "advised".to_owned(),
        Kind::Excessive(class) => format!("excessive, {}", class.name()),
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
    let address = f.address.map(|address| format!(", address {address:#x}")).unwrap_or_default();
    let _ =
        writeln!(out, "{}", render::hanging("  so:    ", &format!("{}{address}", story.verdict)));
    if let Some(rule) = RULES.iter().find(|rule| rule.id == f.rule) {
        let _ = writeln!(out, "{}", render::rule_lines(rule, vendor));
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
    if s.suppressed > 0 {
        let _ = writeln!(out, "  suppressed {}: in none of these numbers", s.suppressed);
    }
    for (reason, count) in &s.unjudged {
        // A reason without a number: what does not exit leaves no event to count.
        let count = if *count == 0 { "no event shows them".to_owned() } else { count.to_string() };
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
        out += &render::hanging(&lead, &acts);
        out.push('\n');
    }
    out
}
