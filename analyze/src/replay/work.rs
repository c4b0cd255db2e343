//! The work of a run: operations in order, and the machine on which they happened.

use std::fmt;

use tlbscope_sim::machine::config::{MachineConfig, Mode};
use tlbscope_trace::op::Event;
use tlbscope_trace::recording::Recording;
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs};

/// Operations in order and their machine, shared by the runs of every policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Name of the trace.
    pub trace: String,
    /// The machine.
    pub machine: MachineConfig,
    /// What guest and host did.
    pub events: Vec<Event>,
    /// Line of each event in its source, 0 where there are none.
    lines: Vec<u32>,
}

/// What a recording does not show and nobody said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkError {
    /// The trace.
    pub trace: String,
    /// What is not known.
    pub what: &'static str,
}

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the recording does not show {}", self.trace, self.what)
    }
}

impl std::error::Error for WorkError {}

impl Work {
    /// The operations of a recording, on the machine that it shows, or on `machine`.
    ///
    /// # Errors
    ///
    /// The vendor or the MMU mode is neither shown nor given.
    pub fn new(
        recording: &Recording,
        trace: &str,
        machine: Option<MachineConfig>,
    ) -> Result<Self, WorkError> {
        let mut machine = match machine {
            Some(machine) => machine,
            None => shown(recording, trace)?,
        };
        machine.vcpus = machine.vcpus.max(recording.meta.vcpus).max(1);
        let (mut events, mut lines) = (Vec::new(), Vec::new());
        for (record, op) in recording.ops() {
            events.push(Event { time: record.time, actor: record.actor, op: op.clone() });
            lines.push(record.line);
        }
        Ok(Self { trace: trace.to_owned(), machine, events, lines })
    }

    /// Line of an event in its source; 0 if it has none.
    #[must_use]
    pub fn line(&self, index: usize) -> u32 {
        self.lines.get(index).copied().unwrap_or(0)
    }
}

/// The machine that a recording shows.
fn shown(recording: &Recording, trace: &str) -> Result<MachineConfig, WorkError> {
    let meta = &recording.meta;
    // A list of events says nothing of a machine: it runs on the default one, as in a scenario.
    if meta.form == "text" && meta.vendor.is_none() && meta.mmu.is_none() {
        return Ok(MachineConfig::default());
    }
    let missing = |what| WorkError { trace: trace.to_owned(), what };
    let vcpus = meta.vcpus.max(1);
    let mut machine = MachineConfig {
        vcpus,
        pcpus: vcpus,
        vendor: meta.vendor.ok_or_else(|| missing("the vendor"))?,
        mmu: meta.mmu.ok_or_else(|| missing("whether it shadows or uses TDP"))?,
        ..MachineConfig::default()
    };
    if let Some(vpid) = meta.vpid {
        machine.vpid = vpid;
    }
    if let Some(regs) = meta.initial_regs.first() {
        machine.mode = mode(regs);
    }
    Ok(machine)
}

/// The start state that is nearest to these registers.
const fn mode(regs: &Regs) -> Mode {
    let (cr0, cr4, efer) = (regs.cr0(), regs.cr4(), regs.efer());
    if !cr0.contains(Cr0::PG) {
        Mode::Real
    } else if efer.contains(Efer::LMA) {
        if cr4.contains(Cr4::LA57) { Mode::Level5 } else { Mode::Level4 }
    } else if cr4.contains(Cr4::PAE) {
        Mode::Pae
    } else {
        Mode::Bits32
    }
}
