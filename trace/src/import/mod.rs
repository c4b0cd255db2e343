//! Other programs' recordings. A form's reader turns its file into one stream of named events with
//! fields, and one interpreter turns those into records.

mod args;
pub mod dat;
mod event;
mod format;
pub mod ftrace;
mod header;
mod kvm;
mod number;
pub mod perf;
mod symbols;

use std::io;

use thiserror::Error;

use crate::addr::{Time, VcpuId};
use crate::op::Actor;
use crate::recording::{Census, Meta, Record};

pub use symbols::Symbols;

/// Which part of a recording is wanted, and what helps to read it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Functions by address and by probe.
    pub symbols: Symbols,
    /// The VM, where a recording shows several.
    pub vm: VmChoice,
    /// The vCPUs; empty: all.
    pub vcpus: Vec<VcpuId>,
    /// Nothing before this.
    pub from: Option<Moment>,
    /// Nothing after this.
    pub to: Option<Moment>,
}

impl Options {
    /// Whether nothing is left out.
    #[must_use]
    pub fn everything(&self) -> bool {
        self.vm == VmChoice::Only
            && self.vcpus.is_empty()
            && self.from.is_none()
            && self.to.is_none()
    }
}

/// Which VM of a recording is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmChoice {
    /// The only one; several are an error that lists them.
    #[default]
    Only,
    /// The one of this number, as the list gives it: thread group, thread or pointer.
    Number(u64),
    /// Whatever there is, as if it were one VM.
    All,
}

/// A time that somebody types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nanoseconds since the first record, as results print it.
    Since(u64),
    /// Nanoseconds of the recorder's clock, as the recording prints it.
    Clock(u64),
}

impl Moment {
    /// Reads `1500`, `1500ns`, `3us`, `2ms`, `1s` (since the start) or `@13.527994` (the
    /// recorder's clock).
    ///
    /// # Errors
    /// It is none of these; the text says what is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time: give 1500ns, 3us, 2ms, 1s or @13.527994");
        if let Some(clock) = text.strip_prefix('@') {
            return ftrace::seconds(clock.as_bytes()).map(Self::Clock).ok_or_else(wrong);
        }
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &text[digits.len()..] {
            "" | "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self::Since).ok_or_else(wrong)
    }
}

impl Options {
    /// Whether a record of this actor is wanted.
    #[must_use]
    pub fn wants(&self, actor: Actor) -> bool {
        match actor {
            Actor::Host => true,
            Actor::Vcpu(vcpu) => self.vcpus.is_empty() || self.vcpus.contains(&vcpu),
        }
    }

    /// Whether an instant lies before, within or behind what is wanted. `base` is the clock at
    /// [`Time`] 0, where there is a clock.
    #[must_use]
    pub fn when(&self, time: Time, base: Option<u64>) -> std::cmp::Ordering {
        let earlier = |moment: &Moment| match moment {
            Moment::Since(ns) => time.0 < *ns,
            Moment::Clock(ns) => base.unwrap_or(0).saturating_add(time.0) < *ns,
        };
        let later = |moment: &Moment| match moment {
            Moment::Since(ns) => time.0 > *ns,
            Moment::Clock(ns) => base.unwrap_or(0).saturating_add(time.0) > *ns,
        };
        if self.from.as_ref().is_some_and(earlier) {
            std::cmp::Ordering::Less
        } else if self.to.as_ref().is_some_and(later) {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Equal
        }
    }
}

/// Where records go, in order.
pub trait Sink: Send {
    /// Takes the next record.
    ///
    /// # Errors
    /// It cannot be kept.
    fn record(&mut self, record: Record) -> io::Result<()>;
}

impl Sink for Vec<Record> {
    fn record(&mut self, record: Record) -> io::Result<()> {
        self.push(record);
        Ok(())
    }
}

/// What is known of a recording when its last record is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Where from and what machine.
    pub meta: Meta,
    /// What became of its events.
    pub census: Census,
}

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
    /// Nothing of KVM is in it.
    #[error("{name}: nothing of KVM in this trace: {what}")]
    Nothing {
        /// The source.
        name: String,
        /// What is there instead.
        what: String,
    },
    /// Several VMs, and nobody said which.
    #[error(
        "{name}: several VMs are in this trace, choose one with --vm (--vm all takes them for one):{list}"
    )]
    Vms {
        /// The source.
        name: String,
        /// A line for each.
        list: String,
    },
    /// No VM of that number.
    #[error("{name}: no VM {vm} is in this trace; there are:{list}")]
    NoVm {
        /// The source.
        name: String,
        /// What was asked for.
        vm: u64,
        /// A line for each that there is.
        list: String,
    },
    /// A binary recording whose own description cannot be read.
    #[error("{name}: {what}")]
    Container {
        /// The source.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The records cannot be kept.
    #[error("cannot keep the records of {name}: {error}")]
    Sink {
        /// The source.
        name: String,
        /// What went wrong.
        #[source]
        error: io::Error,
    },
}
