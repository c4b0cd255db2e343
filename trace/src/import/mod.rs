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
    /// Its lines are not in order of time.
    #[error(
        "{name}:{line}: time runs backwards, from {from} ns to {to} ns: sort the lines by time, or \
         record with a clock that all CPUs share (`echo mono > trace_clock`)"
    )]
    Backwards {
        /// The source.
        name: String,
        /// The first line that is earlier than one before it.
        line: u32,
        /// The time before it.
        from: u64,
        /// Its own.
        to: u64,
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
