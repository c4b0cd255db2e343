//! What is wrong with a policy, and where.

use std::fmt;

/// A policy that cannot be loaded. Prints as `ORIGIN:LINE:COLUMN: MESSAGE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// The file, or whatever else the text is from; empty if the name itself is unknown.
    pub origin: String,
    /// Line and column, both from 1, the column in characters; `None` if no text is to blame.
    pub place: Option<(usize, usize)>,
    /// A lower-case sentence, with the nearest known name where there is one.
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.origin.is_empty() {
            write!(f, "{}:", self.origin)?;
            if let Some((line, column)) = self.place {
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)
    }
}

impl PolicyError {
    /// At a byte of a text.
    pub(crate) fn at(origin: &str, text: &str, byte: usize, message: impl Into<String>) -> Self {
        Self { origin: origin.to_owned(), place: Some(place(text, byte)), message: message.into() }
    }

    /// With no place in a text.
    pub(crate) fn whole(origin: &str, message: impl Into<String>) -> Self {
        Self { origin: origin.to_owned(), place: None, message: message.into() }
    }

    /// What the TOML parser found.
    pub(crate) fn toml(origin: &str, text: &str, error: &toml::de::Error) -> Self {
        Self {
            origin: origin.to_owned(),
            place: error.span().map(|span| place(text, span.start)),
            message: error.message().replace('\n', ", "),
        }
    }
}

/// Line and column of a byte, from 1; the end of the text for a byte beyond it.
pub(crate) fn place(text: &str, byte: usize) -> (usize, usize) {
    let mut byte = byte.min(text.len());
    while !text.is_char_boundary(byte) {
        byte -= 1;
    }
    let before = &text[..byte];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
