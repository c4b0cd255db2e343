//! Other programs' recordings.

pub mod ftrace;

use std::io;

use thiserror::Error;

/// Why a recording cannot be imported at all.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Reading failed.
    #[error("{name}: {error}")]
    Io {
        /// The source.
        name: String,
        /// What went wrong.
        #[source]
        error: io::Error,
    },
    /// It is something else.
    #[error("{name}: no line of this looks like an event of ftrace (first line: `{first}`)")]
    NotFtrace {
        /// The source.
        name: String,
        /// Its first line, cut.
        first: String,
    },
}
