//! What the page is given: one object, as JSON. Everything in it may come from a trace or a policy,
//! and so from somebody hostile: the page puts it into text nodes only.

use std::collections::BTreeMap;

use serde::Serialize;
use tlbscope_analyze::timeline::{Density, Kind, Lane, Span, Timeline};

/// The whole page.
#[derive(Debug, Serialize)]
pub struct Page {
    /// The form of this object.
    pub schema: &'static str,
    /// Who wrote it.
    pub tool: String,
    /// `simulate`, `compare` or `audit`.
    pub command: &'static str,
    /// What was read.
    pub inputs: Vec<Source>,
    /// A card for each run or recording.
    pub cards: Vec<Card>,
    /// Charts and tables, by trace.
    pub sections: Vec<Section>,
    /// Timelines and findings, in the order of the cards.
    pub runs: Vec<Run>,
    /// Names of the kinds of effect and the rows they are on.
    pub kinds: Vec<(&'static str, usize)>,
    /// Names of the rows.
    pub rows: [&'static str; Kind::ROWS.len()],
}

/// How serious something is; the page has a colour and a sign for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// Wrong.
    Bad,
    /// Wasteful or doubtful.
    Warn,
    /// Worth knowing.
    Info,
    /// In order.
    Good,
}

/// An input.
#[derive(Debug, Serialize)]
pub struct Source {
    pub path: String,
    pub digest: String,
    /// What it shows of its machine.
    pub facts: Vec<(&'static str, String)>,
    /// How that was decided, or what was lost.
    pub notes: Vec<String>,
}

/// The outcome of one run.
#[derive(Debug, Serialize)]
pub struct Card {
    pub title: String,
    pub subtitle: String,
    pub tone: Tone,
    pub verdict: String,
    pub facts: Vec<(&'static str, u64)>,
}

/// What there is to see of one trace.
#[derive(Debug, Default, Serialize)]
pub struct Section {
    pub title: String,
    pub charts: Vec<Chart>,
    pub tables: Vec<Table>,
}

/// Numbers of several parts for several bars.
#[derive(Debug, Serialize)]
pub struct Chart {
    pub title: &'static str,
    pub about: &'static str,
    pub form: Form,
    /// The bars: policies, or kinds of operation.
    pub bars: Vec<String>,
    /// What is counted, each with a number for every bar.
    pub parts: Vec<(String, Vec<u64>)>,
}

/// How a chart is drawn.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A small chart for each part, with a scale of its own.
    Panels,
    /// One bar each, made of the parts.
    Stack,
}

/// A table of numbers.
#[derive(Debug, Serialize)]
pub struct Table {
    pub title: &'static str,
    pub about: &'static str,
    pub head: Vec<String>,
    /// Name, numbers, whether they are to be compared.
    pub rows: Vec<(String, Vec<u64>, bool)>,
    /// Most of it is 0.
    pub sparse: bool,
}

/// One run or recording.
#[derive(Debug, Serialize)]
pub struct Run {
    pub name: String,
    pub findings: Vec<Finding>,
    /// Findings that were counted and not kept.
    pub more: u64,
    /// The rules that the findings name.
    pub rules: BTreeMap<&'static str, Rule>,
    /// `None`: the trace could not be read a second time.
    pub timeline: Option<Columns>,
    pub notes: Vec<String>,
}

/// A rule of the manuals.
#[derive(Debug, Serialize)]
pub struct Rule {
    pub sentence: &'static str,
    pub citation: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<&'static str>,
}

/// One finding.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub kind: &'static str,
    pub tone: Tone,
    /// A suppression accepts it.
    pub accepted: bool,
    pub rule: &'static str,
    pub op: &'static str,
    pub vcpu: u16,
    pub mechanism: &'static str,
    pub place: String,
    pub cause: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub count: u64,
    /// Events and instants from the cause to the last use.
    pub span: (u64, u64, u64, u64),
    pub chain: Vec<Step>,
}

/// One step of a chain of cause.
#[derive(Debug, Serialize)]
pub struct Step {
    pub head: &'static str,
    /// Where, in words.
    pub at: String,
    pub what: String,
}

/// A timeline, column by column: 100,000 effects are read in no time so.
#[derive(Debug, Serialize)]
pub struct Columns {
    pub total: u64,
    #[serde(rename = "wholeUntil")]
    pub whole_until: Option<u64>,
    #[serde(rename = "lastEvent")]
    pub last_event: u64,
    #[serde(rename = "lastTime")]
    pub last_time: u64,
    pub cut: bool,
    /// Each less the one before.
    pub event: Vec<i64>,
    /// Each less the one before.
    pub time: Vec<i64>,
    /// The vCPU; -1: the host.
    pub lane: Vec<i32>,
    pub kind: Vec<u8>,
    /// Places in `texts`.
    pub what: Vec<u32>,
    pub texts: Vec<String>,
    /// Effects that are about a finding: their places, and those of the findings.
    pub about: Vec<(u32, u32)>,
    #[serde(rename = "byEvent")]
    pub by_event: Bins,
    #[serde(rename = "byTime")]
    pub by_time: Bins,
}

/// How many effects there were, shown or not.
#[derive(Debug, Serialize)]
pub struct Bins {
    pub width: u64,
    pub bins: Vec<u64>,
}

impl From<&Density> for Bins {
    fn from(density: &Density) -> Self {
        Self { width: density.width(), bins: density.bins().to_vec() }
    }
}

impl From<Timeline> for Columns {
    fn from(timeline: Timeline) -> Self {
        let effects = &timeline.effects;
        let mut texts = Vec::new();
        let mut places: BTreeMap<&str, u32> = BTreeMap::new();
        let mut what = Vec::with_capacity(effects.len());
        let mut about = Vec::new();
        for (n, effect) in effects.iter().enumerate() {
            let place = *places.entry(&effect.what).or_insert_with(|| {
                texts.push(effect.what.clone());
                (texts.len() - 1) as u32
            });
            what.push(place);
            about.extend(effect.finding.map(|finding| (n as u32, finding)));
        }
        Self {
            total: timeline.total,
            whole_until: timeline.whole_until,
            last_event: timeline.last_event,
            last_time: timeline.last_time,
            cut: timeline.cut,
            event: steps(effects.iter().map(|effect| effect.event)),
            time: steps(effects.iter().map(|effect| effect.time)),
            lane: effects.iter().map(|effect| lane(effect.lane)).collect(),
            kind: effects.iter().map(|effect| effect.kind as u8).collect(),
            what,
            texts,
            about,
            by_event: Bins::from(&timeline.by_event),
            by_time: Bins::from(&timeline.by_time),
        }
    }
}

fn lane(lane: Lane) -> i32 {
    match lane {
        Lane::Vcpu(vcpu) => vcpu.into(),
        Lane::Host => -1,
    }
}

/// Each number less the one before.
fn steps(numbers: impl Iterator<Item = u64>) -> Vec<i64> {
    let mut last = 0;
    numbers.map(|n| n.wrapping_sub(std::mem::replace(&mut last, n)) as i64).collect()
}

/// A span as the page reads it.
pub fn span(span: &Span) -> (u64, u64, u64, u64) {
    (span.from, span.from_time, span.to, span.to_time)
}

/// The kinds of effect as the page reads them.
pub fn kinds() -> Vec<(&'static str, usize)> {
    Kind::ALL.iter().map(|(_, name, row)| (*name, *row)).collect()
}

#[cfg(test)]
mod tests {
    use tlbscope_analyze::timeline::Effect;

    use super::*;

    #[test]
    fn columns_tell_steps_and_each_text_once() {
        let effect = |event, time, lane, what: &str, finding| Effect {
            event,
            time,
            lane,
            kind: Kind::Hook,
            what: what.to_owned(),
            finding,
        };
        let effects = vec![
            effect(5, 100, Lane::Vcpu(1), "a", None),
            effect(7, 90, Lane::Host, "b", Some(3)),
            effect(7, 95, Lane::Vcpu(0), "a", None),
        ];
        let columns = Columns::from(Timeline { effects, total: 9, ..Timeline::default() });
        assert_eq!(columns.event, [5, 2, 0]);
        assert_eq!(columns.time, [100, -10, 5]);
        assert_eq!(columns.lane, [1, -1, 0]);
        assert_eq!(columns.kind, [6, 6, 6]);
        assert_eq!((columns.what, columns.texts), (vec![0, 1, 0], vec!["a".into(), "b".into()]));
        assert_eq!((columns.about, columns.total), (vec![(1, 3)], 9));
    }
}
