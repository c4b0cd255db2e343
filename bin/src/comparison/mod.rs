//! `compare` for people: policies across, numbers down, in 100 columns.
//!
//! A number that differs from the first policy's has a `*`; the best of a row a `<`, the worst a
//! `>`. What fits no line of 100 columns is broken: first the names of the policies, then the table,
//! into blocks that each begin with the first policy.

mod grid;
mod places;

use std::fmt::Write;

use tlbscope_analyze::compare::{Row, Section, sections, sound};
use tlbscope_analyze::replay::Replay;

use crate::args::Global;
use grid::Grid;
pub use places::Places;

/// The runs of one trace.
pub struct Comparison<'a> {
    /// The trace.
    pub trace: &'a str,
    /// Its runs, one for each policy.
    pub runs: Vec<&'a Replay>,
    /// The rows of all.
    pub rows: Vec<Row>,
    /// The same taken apart; empty if nobody wants that.
    pub sections: Vec<Section>,
}

impl<'a> Comparison<'a> {
    /// Compares runs of one trace.
    pub fn new(trace: &'a str, runs: Vec<&'a Replay>) -> Self {
        let summaries: Vec<_> = runs.iter().map(|run| &run.summary).collect();
        let rows = tlbscope_analyze::compare::rows(&summaries);
        let sections = sections(&runs);
        Self { trace, runs, rows, sections }
    }

    /// The names of the policies.
    pub fn policies(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().map(|run| run.summary.policy.as_str())
    }

    /// The table, its parts, and what was found.
    pub fn text(&self, places: &Places, coloured: bool, global: &Global) -> String {
        let mut out = format!("{}\n", self.trace);
        let heads = self.heads();
        let grid = Grid::new(&heads, self.all_rows(), coloured);
        grid.block(&mut out, "", &self.rows);
        for section in self.shown(global) {
            let operations = match section.operations {
                0 => String::new(),
                1 => ", 1 operation".to_owned(),
                n => format!(", {n} operations"),
            };
            let _ = writeln!(out, "\n{}{operations}", section.name);
            grid.block(&mut out, "  ", &section.rows);
        }
        if global.quiet {
            return out;
        }
        let alike = self.sections.len() - self.shown(global).count();
        if alike > 0 {
            let _ = writeln!(out, "{alike} more are alike under every policy; -v shows them");
        }
        if !self.sections.is_empty() {
            out.push('\n');
        }
        self.legend(&mut out);
        out += &places.text();
        out
    }

    /// The parts that are shown: those in which the policies differ.
    fn shown(&self, global: &Global) -> impl Iterator<Item = &Section> {
        let all = global.verbose || self.runs.len() < 2;
        self.sections.iter().filter(move |s| all || s.rows.iter().any(|row| row.differs))
    }

    fn all_rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().chain(self.sections.iter().flat_map(|section| &section.rows))
    }

    /// The names of the policies, with a `!` where one is out of the ranking.
    fn heads(&self) -> Vec<String> {
        let head = |run: &&Replay| {
            let mark = if sound(&run.summary) { "" } else { "!" };
            format!("{}{mark}", run.summary.policy)
        };
        self.runs.iter().map(head).collect()
    }

    /// What the marks mean, of those that are there.
    fn legend(&self, out: &mut String) {
        let mut parts = Vec::new();
        if self.all_rows().any(|row| row.differs) {
            let first = self.policies().next().unwrap_or_default();
            parts.push(format!("* differs from {first}"));
        }
        if self.all_rows().any(|row| row.ranks.iter().any(Option::is_some)) {
            parts.push("< best, > worst of its row".to_owned());
        }
        if self.runs.iter().any(|run| !sound(&run.summary)) {
            parts.push("! misses or exposes: not ranked by cost".to_owned());
        }
        if !parts.is_empty() {
            let _ = writeln!(out, "{}", parts.join("; "));
        }
    }
}
