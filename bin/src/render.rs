//! Findings and tables for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use tlbscope_analyze::explain::{Chain, StepKind};
use tlbscope_analyze::finding::{Class, Finding, Kind};
use tlbscope_analyze::replay::Summary;
use tlbscope_analyze::tally::Counts;
use tlbscope_sim::arch::required::elsewhere::elsewhere;
use tlbscope_sim::arch::required::{RULES, Rule};
use tlbscope_sim::engine::BOOT;
use tlbscope_sim::policy::Policy;
use tlbscope_sim::policy::rule::Register;
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::Vendor;
use tlbscope_trace::text;

use crate::formats::document::message;

/// The events that findings name, and the trace that they are in.
pub struct Cited<'a> {
    /// Name of the trace.
    pub trace: &'a str,
    /// Whose processor.
    pub vendor: Vendor,
    /// The events by number, with their lines in the source (0: it has none).
    pub events: BTreeMap<u64, (Event, u32)>,
}

/// One finding, as a compiler would put it: what happened, where, why, by which rule.
pub fn finding(cited: &Cited<'_>, number: usize, finding: &Finding, chain: &Chain) -> String {
    let mut out = format!("{number}. ");
    let head = match finding.kind {
        Kind::Missed { harmful: true } => "missed flush, harmful",
        Kind::Missed { harmful: false } => "missed flush, benign",
        other => verdict(other),
    };
    let _ = write!(out, "{head} [{}]: {} on v{}", finding.rule, finding.op, finding.vcpu);
    let _ = write!(out, "\n  --> {}", place(cited.trace, &cited.events, finding.cause));
    let _ = write!(out, "\n  cause: {}", event(&cited.events, finding.cause));
    let mut so = finding.use_.map_or_else(
        || message(finding),
        |used| {
            format!("{}, through: {}", place(cited.trace, &cited.events, used), finding.mechanism)
        },
    );
    if let Some(address) = finding.address {
        let _ = write!(so, ", address {address:#x}");
    }
    if finding.count > 1 {
        let _ = write!(so, ", {} times", finding.count);
    }
    if let Some(used) = finding.use_ {
        let _ = write!(out, "\n  used:  {}", event(&cited.events, used));
        let _ = write!(out, "\n{}", hanging("         ", &so));
    } else {
        let _ = write!(out, "\n{}", hanging("  so:    ", &so));
    }
    // What was too much is called by what did it, and no rule asks for that.
    let owed = !matches!(finding.kind, Kind::Excessive(_));
    if let Some(rule) = RULES.iter().find(|rule| owed && rule.id == finding.rule) {
        let _ = write!(out, "\n{}", rule_lines(rule, Some(cited.vendor)));
    }
    for (depth, step) in chain.story() {
        let at = step.event.map_or_else(|| "at the start".to_owned(), |event| format!("@{event}"));
        let head = match step.kind {
            StepKind::Operation => "story:",
            StepKind::Answer => "answered by",
            StepKind::Fill => "which leaves the copy",
            StepKind::Root => "in reach by",
            StepKind::Use => "until it is used:",
        };
        let lead = format!("  {:1$}{head} ", "", 2 * depth);
        let when = if step.kind == StepKind::Answer { String::new() } else { format!("{at} ") };
        let _ = write!(out, "\n{}", hanging(&lead, &format!("{when}{}", step.what)));
    }
    out
}

/// A verdict in words, `harmful` left out.
pub const fn verdict(kind: Kind) -> &'static str {
    match kind {
        Kind::Missed { .. } => "missed flush",
        Kind::Exposed => "exposed",
        Kind::Latent => "latent",
        Kind::Advised => "advised",
        Kind::Excessive(Class::Unrequired) => "excessive, unrequired",
        Kind::Excessive(Class::Redundant) => "excessive, redundant",
        Kind::Excessive(Class::OverBroad) => "excessive, over-broad",
        Kind::Excessive(Class::Bookkeeping) => "bookkeeping",
    }
}

/// The same as lines of a finding, for this machine or for any.
pub fn rule_lines(rule: &Rule, machine: Option<Vendor>) -> String {
    let line = machine.or(rule.vendor).map(|machine| rule_line(rule, machine));
    let text = line.unwrap_or_else(|| rule.sentence.to_owned());
    let mut lines = text.lines();
    let mut out = hanging("  rule:  ", lines.next().unwrap_or_default());
    for line in lines {
        let _ = write!(out, "\n{}", hanging("         ", line.trim_start()));
    }
    out
}

/// What a rule says and where; and where the other vendor differs, so.
pub fn rule_line(rule: &Rule, machine: Vendor) -> String {
    let mut out = format!("{} ({})", rule.sentence, rule.citation);
    if let Some(what) = elsewhere(rule.id, machine) {
        let _ = write!(out, "\n         {what}");
    }
    out
}

/// Text broken between words at 100 columns, later lines under the first word.
pub fn hanging(lead: &str, text: &str) -> String {
    const WIDTH: usize = 100;
    let mut out = lead.strip_suffix(' ').unwrap_or(lead).to_owned();
    let mut column = out.chars().count();
    for word in text.split(' ') {
        let wide = word.chars().count();
        if column + 1 + wide > WIDTH && column > lead.chars().count() {
            let _ = write!(out, "\n{:1$}", "", lead.chars().count());
            out.push_str(word);
            column = lead.chars().count() + wide;
        } else {
            out.push(' ');
            out.push_str(word);
            column += 1 + wide;
        }
    }
    out
}

/// Where an event stands.
fn place(trace: &str, events: &BTreeMap<u64, (Event, u32)>, event: u64) -> String {
    match events.get(&event) {
        None => format!("{trace}: event {event}"),
        Some((e, 0)) => format!("{trace}: event {event}, {}", e.time),
        Some((e, line)) => format!("{trace}:{line}: event {event}, {}", e.time),
    }
}

/// An event as text.
fn event(events: &BTreeMap<u64, (Event, u32)>, event: u64) -> String {
    match events.get(&event) {
        Some((event, _)) => text::write_event(event),
        None if event == BOOT => "before the first event".to_owned(),
        // A stream from standard input is gone.
        None => format!("event {event}"),
    }
}

/// The numbers of one run.
pub fn summary(summary: &Summary) -> String {
    let mut out = String::new();
    let s = summary;
    let _ = writeln!(out, "{} under {} on {}: {} events", s.trace, s.policy, s.machine, s.events);
    let _ = writeln!(
        out,
        "  missed {} (harmful {}), exposed {}, latent {}, advised {}, excessive {}",
        s.missed, s.missed_harmful, s.exposed, s.latent, s.advised, s.excessive
    );
    if s.suppressed > 0 {
        let _ = writeln!(out, "  suppressed {}: in none of these numbers", s.suppressed);
    }
    let flushes: Vec<String> =
        s.flushes.iter().filter(|(_, n)| **n != 0).map(|(name, n)| format!("{name} {n}")).collect();
    if !flushes.is_empty() {
        let _ = writeln!(out, "{}", hanging("  ", &flushes.join(", ")));
    }
    let _ = writeln!(
        out,
        "  resets {}, root loads {}, exits {}, refills {}, cycles {}",
        s.resets, s.root_loads, s.exits, s.refills, s.cycles
    );
    let _ = writeln!(out, "  digest {}", s.digest);
    out
}

/// Every count that is not 0.
pub fn counts(counts: &Counts) -> String {
    counts.iter().filter(|(_, n)| *n != 0).map(|(key, n)| format!("  {key} {n}\n")).collect()
}

/// What a policy has for an operation, and where in the kernel: its rules by the operation's name.
pub fn rules_of(policy: &Policy, op: &str) -> String {
    let registers = Register::ALL.iter().filter(|register| register.key() == op);
    let mut out = String::new();
    for rule in registers.flat_map(|register| policy.rules(*register)) {
        let _ = writeln!(
            out,
            "{}",
            hanging(&format!("  {} has {}:", policy.name, rule.id), &rule.about)
        );
        if !rule.source.is_empty() {
            let _ = writeln!(out, "{}", hanging("    see", &rule.source));
        }
    }
    out
}
