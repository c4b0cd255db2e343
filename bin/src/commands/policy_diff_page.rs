//! `policy diff --format html`: a page for a review, which needs nothing from the network and can be
//! printed. What stands in it comes from policy files: it is escaped.

use std::collections::BTreeMap;
use std::fmt::Write;

use tlbscope_analyze::diff::{Diff, Outcome, Row, Verdict};
use tlbscope_analyze::tally::Key;

use super::policy_diff::{acts, machine, words};

/// A page of a diff.
pub struct Page {
    title: String,
    lead: String,
    tables: Vec<Table>,
}

struct Table {
    title: &'static str,
    note: &'static str,
    head: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

struct Cell {
    text: String,
    tone: Tone,
}

/// How a cell looks: never the only thing that tells a verdict.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Number,
    Bad,
    Wasteful,
    Good,
}

impl Page {
    /// The page of a diff; with `every` pair of bits that comes out as one of the two alone, too.
    pub fn new(names: [&str; 2], diff: &Diff, every: bool) -> Self {
        let lead = format!(
            "{} transitions of CR0 and CR4, {} differ. Missed: {} by {}, {} by {}.",
            diff.transitions, diff.differing, diff.missed[0], names[0], diff.missed[1], names[1]
        );
        let (singles, pairs): (Vec<&Row>, Vec<&Row>) =
            diff.rows.iter().partition(|row| row.change.bits() == 1);
        let (as_single, own): (Vec<&Row>, Vec<&Row>) =
            pairs.into_iter().partition(|row| row.as_single && !every);
        let mut tables = vec![verdicts(names, diff)];
        let mut add = |title, note, rows: &[&Row]| {
            if !rows.is_empty() {
                tables.push(transitions(title, note, names, rows));
            }
        };
        add("One bit", "", &singles);
        add(
            "Two bits at once",
            "Pairs that come out as one of their bits alone are left out.",
            &own,
        );
        let alike: Vec<&Row> = diff.missed_alike.iter().collect();
        add("Missed by both alike", "", &alike);
        if !as_single.is_empty() {
            tables.push(counted(names, &as_single));
        }
        Self { title: format!("{} and {}", names[0], names[1]), lead, tables }
    }

    /// As HTML.
    pub fn html(&self) -> String {
        let title = in_html(&self.title);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
             name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>policy \
             diff: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
             <p>{}</p>\n",
            in_html(&self.lead)
        );
        for table in &self.tables {
            let _ = writeln!(out, "<h2>{}</h2>", in_html(table.title));
            if !table.note.is_empty() {
                let _ = writeln!(out, "<p>{}</p>", in_html(table.note));
            }
            out += "<div class=\"wide\"><table>\n<thead><tr>";
            for text in &table.head {
                let _ = write!(out, "<th scope=\"col\">{}</th>", in_html(text));
            }
            out += "</tr></thead>\n<tbody>\n";
            for row in &table.rows {
                out += "<tr>";
                for cell in row {
                    let class = match cell.tone {
                        Tone::Plain => "",
                        Tone::Number => " class=\"number\"",
                        Tone::Bad => " class=\"bad\"",
                        Tone::Wasteful => " class=\"wasteful\"",
                        Tone::Good => " class=\"good\"",
                    };
                    let _ = write!(out, "<td{class}>{}</td>", in_html(&cell.text));
                }
                out += "</tr>\n";
            }
            out += "</tbody></table></div>\n";
        }
        out + "</body>\n</html>\n"
    }
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.45 system-ui,sans-serif;max-width:78rem;margin:2rem auto;padding:0 1rem}\
.wide{overflow-x:auto}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #8886}\
.number{text-align:right;font-variant-numeric:tabular-nums}\
.bad{color:#c4161c;font-weight:600}.wasteful{color:#8a5a00}.good{color:#1a7f37}\
@media(prefers-color-scheme:dark){.bad{color:#ff7b72}.wasteful{color:#e3b341}.good{color:#56d364}}\
@media print{body{font-size:9pt;margin:0;max-width:none}tr{break-inside:avoid}\
thead{display:table-header-group}.wide{overflow:visible}}";

fn plain(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone: Tone::Plain }
}

fn number(n: usize) -> Cell {
    Cell { text: n.to_string(), tone: Tone::Number }
}

fn verdict(outcome: &Outcome) -> Cell {
    let tone = match outcome.verdict {
        verdict if verdict.missed() => Tone::Bad,
        Verdict::OverBroad | Verdict::Wasted | Verdict::Latent => Tone::Wasteful,
        Verdict::Served => Tone::Good,
        _ => Tone::Plain,
    };
    Cell { text: words(outcome), tone }
}

/// How often each verdict is given, over the transitions on which the policies differ.
fn verdicts(names: [&str; 2], diff: &Diff) -> Table {
    let mut counts: BTreeMap<Verdict, [usize; 2]> = BTreeMap::new();
    for row in &diff.rows {
        for (n, outcome) in row.outcomes.iter().enumerate() {
            counts.entry(outcome.verdict).or_default()[n] += row.states.len();
        }
    }
    let rows = counts
        .into_iter()
        .map(|(verdict, [a, b])| vec![plain(verdict.name()), number(a), number(b)]);
    Table {
        title: "Verdicts",
        note: "Over the transitions on which the two differ.",
        head: vec!["verdict".to_owned(), names[0].to_owned(), names[1].to_owned()],
        rows: rows.collect(),
    }
}

/// Transitions, each with what either policy does and its verdict.
fn transitions(title: &'static str, note: &'static str, names: [&str; 2], rows: &[&Row]) -> Table {
    let mut head: Vec<String> =
        ["machine", "write", "state", "owed by"].map(str::to_owned).to_vec();
    for name in names {
        head.push(format!("{name} does"));
        head.push("verdict".to_owned());
    }
    let one = |row: &&Row| {
        let states: Vec<&str> = row.states.iter().map(|state| state.name()).collect();
        let owed = if row.owed.is_empty() { "nothing".to_owned() } else { row.owed.join(", ") };
        let mut cells = vec![
            plain(machine(row.vendor, row.mmu)),
            plain(row.change.to_string()),
            plain(states.join(", ")),
            plain(owed),
        ];
        let both_exit =
            row.outcomes.iter().all(|o| o.acts.iter().any(|(key, _)| *key == Key::Exit));
        for outcome in &row.outcomes {
            cells.push(plain(acts(outcome, both_exit).join(", ")));
            cells.push(verdict(outcome));
        }
        cells
    };
    Table { title, note, head, rows: rows.iter().map(one).collect() }
}

/// Pairs of bits that come out as one of the two alone, counted.
fn counted(names: [&str; 2], rows: &[&Row]) -> Table {
    let mut counts: BTreeMap<(&str, [String; 2]), usize> = BTreeMap::new();
    for row in rows {
        let key = (machine(row.vendor, row.mmu), [0, 1].map(|n| words(&row.outcomes[n])));
        *counts.entry(key).or_default() += row.states.len();
    }
    let rows = counts
        .into_iter()
        .map(|((machine, [a, b]), n)| vec![plain(machine), number(n), plain(a), plain(b)]);
    Table {
        title: "Two bits that come out as one alone",
        note: "-v lists each.",
        head: vec![
            "machine".to_owned(),
            "transitions".to_owned(),
            names[0].to_owned(),
            names[1].to_owned(),
        ],
        rows: rows.collect(),
    }
}

/// Text that stays text in HTML.
fn in_html(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
