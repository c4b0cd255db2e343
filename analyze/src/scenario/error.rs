//! What is wrong with a scenario file, and where.

use std::fmt;
use std::ops::Range;

use tlbscope_sim::policy::nearest::nearest;

/// An error with its place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    /// The file, as the caller named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ScenarioError {}

/// A file's name and text, to turn byte offsets into lines and columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Line and column of a byte offset, both from 1.
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        (line, before[start..].chars().count() + 1)
    }

    /// An error at the start of `span`.
    pub(super) fn error(&self, span: &Range<usize>, message: impl Into<String>) -> ScenarioError {
        let (line, column) = self.place(span.start);
        self.error_at(line, column, message)
    }

    /// An error at a known place.
    pub(super) fn error_at(
        &self,
        line: usize,
        column: usize,
        message: impl Into<String>,
    ) -> ScenarioError {
        let (file, message) = (self.file.to_owned(), message.into());
        ScenarioError { file, line, column, message, hint: None }
    }
}

impl ScenarioError {
    /// Adds a hint.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds "did you mean", if one of the names is near.
    pub(super) fn did_you_mean<'n>(
        mut self,
        word: &str,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Self {
        self.hint = nearest(word, names).map(|name| format!("did you mean `{name}`?"));
        self
    }
}
