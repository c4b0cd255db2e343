//! tlbscope: which TLB flushes does a hypervisor miss, and which does it waste?
//!
//! The program is thin: [`args`] says what can be typed, [`commands`] calls the libraries, and
//! [`output`] writes what they answer, whole or not at all.

mod args;
mod checkpoint;
mod commands;
mod comparison;
mod formats;
mod input;
mod interrupt;
mod output;
mod render;
mod report;
mod schema;
mod showing;

use std::process::ExitCode;

use args::Args;

/// What the program tells its caller (DESIGN section 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to report.
    Clean,
    /// A harmful missed flush, an exposure, or a failed expectation.
    Found,
    /// The input was damaged and the result covers only a part of it.
    Damaged,
}

impl Verdict {
    fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Clean => 0,
            Self::Found => 1,
            Self::Damaged => 3,
        })
    }
}

fn main() -> ExitCode {
    let args = Args::read();
    interrupt::watch();
    match commands::run(&args) {
        Ok(verdict) => verdict.exit_code(),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error, args.global.color);
            // A native trace of which nothing is left is damaged, not wrong usage.
            if input::is_ruin(&error) { Verdict::Damaged.exit_code() } else { ExitCode::from(2) }
        }
    }
}
