//! The page of `audit`.

use std::path::Path;

use anyhow::Result;
use tlbscope_analyze::audit::{Audit, COLUMNS, Found, Line, Story};
use tlbscope_analyze::timeline::{self, Span};
use tlbscope_trace::Recording;

use super::data::{
    self, Card, Chart, Columns, Finding, Form, Page, Run, Section, Step, Table, Tone,
};
use super::replays::{counted, file, instant, rules, source, verdict};
use super::{EFFECTS_MAX, write};
use crate::input::Input;

/// A recording and its audit.
pub struct Recorded<'a> {
    /// The recording.
    pub recording: &'a Recording,
    /// As outputs name it.
    pub input: &'a Input,
    /// What it came to.
    pub audit: &'a Audit,
}

/// Writes the report of these audits.
pub fn audit(path: &Path, all: &[Recorded<'_>]) -> Result<()> {
    let budget = EFFECTS_MAX / all.len().max(1);
    let page = Page {
        schema: "tlbscope/report/1",
        tool: concat!("tlbscope ", env!("CARGO_PKG_VERSION")).to_owned(),
        command: "audit",
        inputs: all.iter().map(|one| source(one.input, &one.recording.meta)).collect(),
        cards: all.iter().map(card).collect(),
        sections: all.iter().map(section).collect(),
        runs: all.iter().map(|one| run(one, budget)).collect(),
        kinds: data::kinds(),
        rows: timeline::Kind::ROWS,
    };
    write(path, &page)
}

fn card(one: &Recorded<'_>) -> Card {
    let s = &one.audit.summary;
    let (tone, verdict) = if s.exposed + s.missed > 0 {
        (Tone::Bad, counted(s.exposed + s.missed, "exposure", "exposures"))
    } else if s.excessive > 0 {
        (Tone::Warn, format!("nothing exposed, {} excessive", s.excessive))
    } else {
        (Tone::Good, "nothing exposed, nothing excessive".to_owned())
    };
    let kernel = s.kernel.as_deref().unwrap_or("a kernel that does not show");
    Card {
        title: file(&s.trace),
        subtitle: format!("{:?} {:?}, {kernel}", s.vendor, s.mmu),
        tone,
        verdict,
        facts: vec![
            ("operations", s.operations),
            ("judged", s.judged),
            ("exposed", s.exposed),
            ("advised", s.advised),
            ("excessive", s.excessive),
            ("bookkeeping", s.bookkeeping),
            ("entries", s.entries),
        ],
    }
}

fn section(one: &Recorded<'_>) -> Section {
    let mut tables = vec![transitions(one.audit)];
    let unjudged: Vec<_> = one.audit.summary.unjudged.iter().collect();
    if !unjudged.is_empty() {
        let row = |(reason, number): (&&str, &u64)| ((*reason).to_owned(), vec![*number], false);
        tables.push(Table {
            title: "Not judged",
            about: "Operations of which the recording shows too little, by reason. 0: they leave no \
                    line at all.",
            head: vec!["operations".to_owned()],
            rows: unjudged.into_iter().map(row).collect(),
            sparse: false,
        });
    }
    Section { title: one.input.path.clone(), charts: vec![flushes(one.audit)], tables }
}

/// The columns that count flushes.
const FLUSHES: [&str; 5] = ["load-flush", "flush-all", "flush-current", "flush-guest", "flush-gva"];

/// Flushes by kind, for each kind of operation that had one.
fn flushes(audit: &Audit) -> Chart {
    let columns: Vec<usize> =
        (0..COLUMNS.len()).filter(|n| FLUSHES.contains(&COLUMNS[*n])).collect();
    let flushed = |acts: &[u64]| columns.iter().map(|n| acts[*n]).sum::<u64>();
    let mut rows: Vec<_> =
        audit.transitions.rows().filter(|(_, row)| flushed(&row.acts) > 0).collect();
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(flushed(&row.acts)));
    let part = |n: &usize| {
        (COLUMNS[*n].to_owned(), rows.iter().map(|(_, row)| row.acts[*n]).collect::<Vec<u64>>())
    };
    Chart {
        title: "Flushes by operation",
        about: "Flush hooks that the host called between an operation and the next entry of its vCPU.",
        form: Form::Stack,
        bars: rows.iter().map(|(name, _)| (*name).to_owned()).collect(),
        parts: columns.iter().map(part).filter(|(_, of)| of.iter().any(|n| *n > 0)).collect(),
    }
}

/// What the host did for each kind of operation; columns that are 0 everywhere are left out.
fn transitions(audit: &Audit) -> Table {
    let rows = || audit.transitions.rows();
    let used: Vec<usize> =
        (0..COLUMNS.len()).filter(|n| rows().any(|(_, row)| row.acts[*n] > 0)).collect();
    let mut head = vec!["count".to_owned()];
    head.extend(used.iter().map(|n| COLUMNS[*n].to_owned()));
    let row = |(name, row): (&str, &tlbscope_analyze::audit::Row)| {
        let mut numbers = vec![row.operations];
        numbers.extend(used.iter().map(|n| row.acts[*n]));
        (name.to_owned(), numbers, false)
    };
    Table {
        title: "What the host did",
        about: "Acts between an operation of a kind and the next entry of its vCPU.",
        head,
        rows: rows().map(row).collect(),
        sparse: true,
    }
}

fn run(one: &Recorded<'_>, budget: usize) -> Run {
    let (timeline, spans) = timeline::of_recording(one.recording, one.audit, budget);
    let told = one.audit.found.iter().zip(&one.audit.stories).zip(&spans);
    let findings: Vec<Finding> =
        told.map(|((found, story), span)| finding(one, found, story, span)).collect();
    let total: u64 = one.audit.groups.values().sum();
    let more = total.saturating_sub(findings.len() as u64);
    let ids = one.audit.found.iter().map(|found| found.finding.rule);
    let lack = |lack: &tlbscope_analyze::audit::Lack| {
        format!(
            "Not recorded: {}. Not judged: {}. To record: {}",
            lack.what, lack.unjudged, lack.record
        )
    };
    Run {
        name: file(&one.input.path),
        findings,
        more,
        rules: rules(ids, one.recording.meta.vendor),
        timeline: Some(Columns::from(timeline)),
        notes: one.audit.lacks.iter().map(lack).collect(),
    }
}

fn finding(one: &Recorded<'_>, found: &Found, story: &Story, span: &Span) -> Finding {
    let f = &found.finding;
    let (kind, tone) = verdict(f.kind);
    let accepted = one.audit.suppressed.contains_key(&f.group());
    let place = |line: &Line| format!("line {}, {}", line.line, instant(line.time));
    let step = |head, line: &Line| Step { head, at: place(line), what: line.what.clone() };
    let mut chain = vec![step("operation", &story.cause)];
    if story.acts.is_empty() {
        let what = "nothing was done before the next entry".to_owned();
        chain.push(Step { head: "answered by", at: String::new(), what });
    }
    for (n, act) in story.acts.iter().enumerate() {
        chain.push(step(if n == 0 { "answered by" } else { "then" }, act));
    }
    if story.more > 0 {
        let what = format!("and {} more", story.more);
        chain.push(Step { head: "then", at: String::new(), what });
    }
    chain.push(step("seen at", &story.seen));
    if !story.verdict.is_empty() {
        chain.push(Step { head: "so", at: String::new(), what: story.verdict.clone() });
    }
    Finding {
        kind,
        tone: if accepted { Tone::Info } else { tone },
        accepted,
        rule: f.rule,
        op: f.op,
        vcpu: f.vcpu,
        mechanism: f.mechanism,
        place: place(&story.cause),
        cause: story.cause.what.clone(),
        address: f.address.map(|address| format!("{address:#x}")),
        count: f.count,
        span: data::span(span),
        chain,
    }
}
