//! What is wrong with a case file, and where.

use std::fmt;

use tlbscope_sim::policy::nearest::nearest;

/// An error with its place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseFileError {
    /// The file, as the caller named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl fmt::Display for CaseFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CaseFileError {}

impl CaseFileError {
    /// What serde_json says, its place taken out of the sentence and its lists turned into a hint.
    pub(super) fn json(file: &str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = text.strip_suffix(&place).unwrap_or(&text).to_owned();
        let hint = hint(&message);
        let (line, column) = (error.line().max(1), error.column().max(1));
        Self { file: file.to_owned(), line, column, message, hint }
    }

    /// An error about a name that stands in the text as a JSON string.
    pub(super) fn about(file: &str, text: &str, name: &str, message: String) -> Self {
        let literal = serde_json::Value::from(name).to_string();
        let offset = text.find(&literal).unwrap_or(0);
        let before = &text[..offset];
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[start..].chars().count() + 1;
        Self { file: file.to_owned(), line, column, message, hint: None }
    }

    /// Adds a hint.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// For "unknown field `x`, expected one of `a`, `b`": the nearest of the names.
fn hint(message: &str) -> Option<String> {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (unknown, known) = names.split_first()?;
    if message.starts_with("missing field") {
        return Some(format!("add `{unknown}`"));
    }
    let near = nearest(unknown, known.iter().copied())?;
    Some(format!("did you mean `{near}`?"))
}
