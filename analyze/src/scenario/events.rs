//! The lists of events of a scenario, and the names of their lines in expectations.

use tlbscope_sim::policy::nearest::nearest;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, HostOp, Op};
use tlbscope_trace::text::{self, Line};
use toml::Spanned;
use toml::de::DeValue;

use super::error::{ScenarioError, Source};

/// A list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Its name where `events` is a table.
    pub name: Option<String>,
    /// The events; their index is the event number of a run.
    pub lines: Vec<Line>,
    /// Line in the file of the list's first line.
    pub first_line: usize,
    /// The text of the list, by lines.
    text: Vec<String>,
}

impl List {
    /// Reads the text of one list.
    pub(super) fn parse(
        source: Source<'_>,
        name: Option<String>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Self, ScenarioError> {
        let Some(body) = value.get_ref().as_str() else {
            return Err(source
                .error(&value.span(), "events must be text, one event a line")
                .hint("write `events = '''...'''`"));
        };
        let (first_line, first_column) = first_line(source, value);
        let lines = text::parse(body).map_err(|error| {
            let indent = if error.line == 1 { first_column } else { 0 };
            let line = first_line + error.line.saturating_sub(1) as usize;
            let mut placed =
                source.error_at(line, indent + error.column as usize, error.message.clone());
            placed.hint = error.suggestion.map(|name| format!("did you mean `{name}`?"));
            placed
        })?;
        let text = body.lines().map(str::to_owned).collect();
        let list = Self { name, lines, first_line, text };
        list.check_times(source)?;
        Ok(list)
    }

    /// Times never run backwards.
    fn check_times(&self, source: Source<'_>) -> Result<(), ScenarioError> {
        let mut last = None;
        for line in &self.lines {
            let Some(time) = line.time else { continue };
            if let Some(last) = last.filter(|&last| time < last) {
                let message = format!("time runs backwards, from {last} to {time}");
                return Err(source
                    .error_at(self.file_line(line.number), 1, message)
                    .hint("put the events in the order of their times"));
            }
            last = Some(time);
        }
        Ok(())
    }

    /// Every vCPU must exist in the machine, or be created by the list.
    pub(super) fn check_vcpus(&self, source: Source<'_>, vcpus: u16) -> Result<(), ScenarioError> {
        let created = |id: VcpuId| {
            self.lines.iter().any(|line| match &line.op {
                Op::Host(op) => matches!(**op, HostOp::VcpuCreate { vcpu } if vcpu == id),
                _ => false,
            })
        };
        for line in &self.lines {
            let Actor::Vcpu(v) = line.actor else { continue };
            if v.0 >= vcpus && !created(v) {
                let message = format!("{v} does not exist: the machine has {vcpus} vCPU(s)");
                return Err(source
                    .error_at(self.file_line(line.number), 1, message)
                    .hint("vCPUs are numbered from 0; `vcpus` in [machine] says how many"));
            }
        }
        Ok(())
    }

    /// The line in the file of a line of the list (both from 1).
    #[must_use]
    pub const fn file_line(&self, number: u32) -> usize {
        self.first_line + (number as usize).saturating_sub(1)
    }

    /// The name of an event in expectations: its label, else `line:N`.
    #[must_use]
    pub fn event_name(&self, event: u64) -> String {
        let line = usize::try_from(event).ok().and_then(|event| self.lines.get(event));
        match line {
            Some(Line { label: Some(label), .. }) => label.clone(),
            Some(line) => format!("line:{}", line.number),
            None => "the end".to_owned(),
        }
    }

    /// The text of an event's line without the space around it.
    #[must_use]
    pub fn event_text(&self, event: usize) -> &str {
        let number = self.lines.get(event).map_or(0, |line| line.number as usize);
        number.checked_sub(1).and_then(|at| self.text.get(at)).map_or("", |text| text.trim())
    }

    /// The event of this name; the error is a message and perhaps a hint.
    pub(super) fn find(&self, name: &str) -> Result<usize, (String, Option<String>)> {
        if let Some(at) = self.lines.iter().position(|line| line.label.as_deref() == Some(name)) {
            return Ok(at);
        }
        let Some(number) = name.strip_prefix("line:") else {
            let labels = self.lines.iter().filter_map(|line| line.label.as_deref());
            let hint = nearest(name, labels).map(|near| format!("did you mean `{near}`?"));
            return Err((format!("no event has the label `{name}`"), hint));
        };
        let found = number
            .parse()
            .ok()
            .and_then(|n: u32| self.lines.iter().position(|line| line.number == n));
        match found.map(|at| (at, &self.lines[at].label)) {
            Some((at, None)) => Ok(at),
            Some((_, Some(label))) => {
                let hint = format!("write `{label}`");
                Err((format!("line {number} of the list has a label"), Some(hint)))
            }
            None => {
                let hint = "N of `line:N` counts from 1 inside the list".to_owned();
                Err((format!("line {number} of the list is no event"), Some(hint)))
            }
        }
    }
}

/// The place of the first character of a string value: TOML drops a line break right after the
/// opening quotes of a multi-line string. The column is that of the quote, 0 for a multi-line one.
fn first_line(source: Source<'_>, value: &Spanned<DeValue<'_>>) -> (usize, usize) {
    let span = value.span();
    let (line, column) = source.place(span.start);
    let raw = source.text.get(span).unwrap_or_default();
    let Some(after) = raw.strip_prefix("'''").or_else(|| raw.strip_prefix("\"\"\"")) else {
        return (line, column);
    };
    if after.starts_with('\n') || after.starts_with("\r\n") {
        (line + 1, 0)
    } else {
        (line, column + 2)
    }
}
