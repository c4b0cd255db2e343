//! The page of `simulate` and `compare`.

use std::path::Path;

use anyhow::Result;
use tlbscope_analyze::explain::{Chain, StepKind};
use tlbscope_analyze::finding::{self, Class, Kind};
use tlbscope_analyze::replay::{Replay, Setup};
use tlbscope_analyze::timeline::{self, Told};
use tlbscope_sim::arch::required::RULES;
use tlbscope_sim::arch::required::elsewhere::elsewhere;
use tlbscope_sim::engine::BOOT;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::feed::Feed;
use tlbscope_trace::regs::Vendor;
use tlbscope_trace::{Meta, text};

use super::data::{self, Card, Columns, Finding, Page, Rule, Run, Section, Source, Step, Tone};
use super::{EFFECTS_MAX, charts, write};
use crate::input::Input;

/// A trace and what its runs came to, in the order of the policies.
pub struct Replayed<'a> {
    /// The trace, which is read once more.
    pub feed: &'a mut Feed,
    /// What the runs started from.
    pub setup: &'a Setup,
    /// The runs.
    pub runs: &'a [Replay],
    /// Where the trace is.
    pub path: &'a Path,
    /// As outputs name it.
    pub input: &'a Input,
}

/// Writes the report of these runs.
pub fn replay(
    path: &Path,
    command: &'static str,
    traces: &mut [Replayed<'_>],
    policies: &[Policy],
) -> Result<()> {
    let budget = EFFECTS_MAX / (traces.len() * policies.len()).max(1);
    let mut page = Page {
        schema: "tlbscope/report/1",
        tool: concat!("tlbscope ", env!("CARGO_PKG_VERSION")).to_owned(),
        command,
        inputs: Vec::new(),
        cards: Vec::new(),
        sections: Vec::new(),
        runs: Vec::new(),
        kinds: data::kinds(),
        rows: timeline::Kind::ROWS,
    };
    for trace in traces {
        let told = if trace.feed.rewind(trace.path)? {
            timeline::gather(trace.feed, trace.setup, policies, trace.runs, budget)?
        } else {
            Vec::new()
        };
        add(&mut page, trace, told);
    }
    if page.inputs.len() > 1 {
        for (n, run) in page.runs.iter_mut().enumerate() {
            let input = &page.inputs[n / policies.len().max(1)];
            run.name = format!("{} · {}", run.name, file(&input.path));
        }
    }
    write(path, &page)
}

/// Adds a trace to the page. Without `told` the trace is gone, and with it what needs it.
fn add(page: &mut Page, trace: &Replayed<'_>, told: Vec<Told>) {
    let name = &trace.input.path;
    let refills: Vec<_> = told.iter().map(|told| &told.refills).collect();
    let mut section = Section { title: name.clone(), ..Section::default() };
    section.charts.push(charts::flushes(trace.runs));
    section.charts.push(charts::cycles(trace.setup, trace.runs));
    if !told.is_empty() {
        section.charts.push(charts::refills(trace.runs, &refills));
    }
    section.tables.push(charts::comparison(trace.runs));
    page.sections.push(section);
    page.inputs.push(source(trace.input, trace.feed.meta()));
    page.cards.extend(trace.runs.iter().map(card));
    let mut told = told.into_iter();
    for run in trace.runs {
        page.runs.push(the_run(trace, run, told.next()));
    }
}

/// What a trace says of itself.
pub fn source(input: &Input, meta: &Meta) -> Source {
    let words = |of: Option<String>| of.unwrap_or_else(|| "not shown".to_owned());
    let facts = vec![
        ("form", meta.form.clone()),
        ("vendor", words(meta.vendor.map(|vendor| format!("{vendor:?}")))),
        ("MMU", words(meta.mmu.map(|mmu| format!("{mmu:?}")))),
        ("kernel", words(meta.kernel.clone())),
        ("vCPUs", meta.vcpus.to_string()),
    ];
    let notes = meta.losses.iter().chain(&meta.evidence).cloned().collect();
    Source { path: input.path.clone(), digest: input.digest.clone(), facts, notes }
}

fn card(run: &Replay) -> Card {
    let s = &run.summary;
    let (tone, verdict) = if s.missed_harmful > 0 {
        (Tone::Bad, counted(s.missed_harmful, "harmful missed flush", "harmful missed flushes"))
    } else if s.exposed > 0 {
        (Tone::Bad, counted(s.exposed, "exposure", "exposures"))
    } else if s.missed > 0 {
        (Tone::Warn, counted(s.missed, "benign missed flush", "benign missed flushes"))
    } else if s.excessive > 0 {
        (Tone::Warn, format!("nothing missed, {} excessive", s.excessive))
    } else {
        (Tone::Good, "nothing missed, nothing excessive".to_owned())
    };
    Card {
        title: s.policy.clone(),
        subtitle: format!("{} on {}", file(&s.trace), s.machine),
        tone,
        verdict,
        facts: vec![
            ("missed", s.missed),
            ("harmful", s.missed_harmful),
            ("exposed", s.exposed),
            ("latent", s.latent),
            ("excessive", s.excessive),
            ("root loads", s.root_loads),
            ("refills", s.refills),
            ("cycles", s.cycles),
        ],
    }
}

/// The name of a file without its folders: the whole path is told once, with the inputs.
pub fn file(path: &str) -> String {
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    name.unwrap_or(path).to_owned()
}

/// An instant for people: of its unit three digits behind the point.
pub fn instant(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    format!("{}.{:03} {name}", ns / unit, ns % unit * 1000 / unit)
}

/// A number with its noun.
pub fn counted(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

fn the_run(trace: &Replayed<'_>, run: &Replay, told: Option<Told>) -> Run {
    let total: u64 = run.findings.groups().map(|(_, count)| count).sum();
    let mut notes = Vec::new();
    if run.left_out > 0 {
        notes.push(format!(
            "{} events behind what is lost are left out: they need it",
            run.left_out
        ));
    }
    let told = told.unwrap_or_else(|| {
        notes.push(
            "The trace came from standard input and could not be read again: no timeline, and \
             findings without their chains."
                .to_owned(),
        );
        let findings = run.findings.sorted();
        let chains = vec![Chain::default(); findings.len()];
        let spans = findings.iter().map(unseen).collect();
        Told { findings, chains, spans, ..Told::default() }
    });
    let vendor = trace.setup.machine.vendor;
    let telling = Telling { told: &told, judged: &run.findings };
    let findings: Vec<Finding> = (0..told.findings.len()).map(|n| telling.finding(n)).collect();
    let rules = rules(told.findings.iter().map(|finding| finding.rule), Some(vendor));
    let more = total.saturating_sub(findings.len() as u64);
    let gathered = told.timeline.last_event > 0 || told.timeline.total > 0;
    Run {
        name: run.summary.policy.clone(),
        findings,
        more,
        rules,
        timeline: gathered.then(|| Columns::from(told.timeline)),
        notes,
    }
}

/// Where a finding reaches, of which nothing but its events is known.
fn unseen(finding: &finding::Finding) -> timeline::Span {
    let to = finding.use_.unwrap_or(finding.cause);
    timeline::Span { from: finding.cause, from_time: 0, to, to_time: 0 }
}

/// The texts of these rules.
pub fn rules(
    ids: impl Iterator<Item = &'static str>,
    vendor: Option<Vendor>,
) -> std::collections::BTreeMap<&'static str, Rule> {
    let rule = |id: &'static str| {
        let rule = RULES.iter().find(|rule| rule.id == id)?;
        let elsewhere = vendor.and_then(|vendor| elsewhere(id, vendor));
        Some((id, Rule { sentence: rule.sentence, citation: rule.citation, elsewhere }))
    };
    ids.filter_map(rule).collect()
}

/// The name of a verdict, and how serious it is.
pub const fn verdict(kind: Kind) -> (&'static str, Tone) {
    match kind {
        Kind::Missed { harmful: true } => ("missed, harmful", Tone::Bad),
        Kind::Missed { harmful: false } => ("missed, benign", Tone::Warn),
        Kind::Exposed => ("exposed", Tone::Bad),
        Kind::Latent => ("latent", Tone::Info),
        Kind::Advised => ("advised", Tone::Info),
        Kind::Excessive(Class::Unrequired) => ("excessive, unrequired", Tone::Warn),
        Kind::Excessive(Class::Redundant) => ("excessive, redundant", Tone::Warn),
        Kind::Excessive(Class::OverBroad) => ("excessive, over-broad", Tone::Warn),
        Kind::Excessive(Class::Bookkeeping) => ("bookkeeping", Tone::Info),
    }
}

/// Tells findings of one run.
struct Telling<'a> {
    told: &'a Told,
    judged: &'a finding::Findings,
}

impl Telling<'_> {
    fn finding(&self, n: usize) -> Finding {
        let (f, chain) = (&self.told.findings[n], &self.told.chains[n]);
        let (kind, tone) = verdict(f.kind);
        let accepted = self.judged.suppression(&f.group()).is_some();
        Finding {
            kind,
            tone: if accepted { Tone::Info } else { tone },
            accepted,
            rule: f.rule,
            op: f.op,
            vcpu: f.vcpu,
            mechanism: f.mechanism,
            place: self.place(f.cause),
            cause: self.event(f.cause),
            address: f.address.map(|address| format!("{address:#x}")),
            count: f.count,
            span: data::span(&self.told.spans[n]),
            chain: chain.story().into_iter().map(|(_, step)| self.step(step)).collect(),
        }
    }

    fn step(&self, step: &tlbscope_analyze::explain::Step) -> Step {
        let head = match step.kind {
            StepKind::Operation => "operation",
            StepKind::Answer => "answered by",
            StepKind::Fill => "which leaves the copy",
            StepKind::Root => "in reach by",
            StepKind::Use => "until it is used",
        };
        let at = step.event.map_or_else(|| "at the start".to_owned(), |event| self.place(event));
        Step { head, at, what: step.what.clone() }
    }

    /// Where an event is, shortly.
    fn place(&self, event: u64) -> String {
        if event == BOOT {
            return "before the first event".to_owned();
        }
        match self.told.events.get(&event) {
            Some((e, line)) if *line > 0 => {
                format!("line {line}, event {event}, {}", instant(e.time.0))
            }
            Some((e, _)) => format!("event {event}, {}", instant(e.time.0)),
            None => format!("event {event}"),
        }
    }

    fn event(&self, event: u64) -> String {
        let known = self.told.events.get(&event);
        known.map_or_else(String::new, |(event, _)| text::write_event(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_have_the_unit_that_fits() {
        let told = [0, 999, 1_500, 22_368_000, 61_000_000_007].map(instant);
        assert_eq!(told, ["0 ns", "999 ns", "1.500 µs", "22.368 ms", "61.000 s"]);
    }

    #[test]
    fn a_file_is_named_without_its_folders() {
        assert_eq!(["a/b.txt", "-", ".."].map(file), ["b.txt", "-", ".."]);
    }
}
