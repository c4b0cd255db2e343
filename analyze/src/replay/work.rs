//! The work of a run: operations in order, and the machine on which they happened.

use std::fmt;

use super::recorded::guest_work;
use tlbscope_sim::machine::config::{MachineConfig, Mode};
use tlbscope_sim::machine::{self, Processor};
use tlbscope_trace::op::Event;
use tlbscope_trace::recording::{Meta, Recording};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, Regs};

/// Operations in order and their machine, shared by the runs of every policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Name of the trace.
    pub trace: String,
    /// The machine.
    pub machine: MachineConfig,
    /// Its processor: what acts cost.
    pub processor: Processor,
    /// What guest and host did.
    pub events: Vec<Event>,
    /// The registers that each vCPU starts with, where the recording shows them.
    pub regs: Vec<Option<Regs>>,
    /// Line of each event in its source, 0 where there are none.
    lines: Vec<u32>,
}

/// No machine for a recording: it does not show what it ran on and nobody said, or the processor
/// that was asked for is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkError {
    /// The trace.
    pub trace: String,
    /// What is wrong, in words that follow the name of the trace.
    pub what: String,
}

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.trace, self.what)
    }
}

impl std::error::Error for WorkError {}

/// What a run starts from: the machine of a trace and the registers that it starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Name of the trace.
    pub trace: String,
    /// The machine.
    pub machine: MachineConfig,
    /// Its processor: what acts cost.
    pub processor: Processor,
    /// The registers that each vCPU starts with, where the recording shows them.
    pub regs: Vec<Option<Regs>>,
}

impl Setup {
    /// The machine that a trace shows, with `pcpus` physical CPUs at least and this processor (a
    /// name or a path; `None`: hardware that never evicts).
    ///
    /// # Errors
    ///
    /// The trace does not show the vendor or the MMU mode, or there is no such processor.
    pub fn new(
        meta: &Meta,
        pcpus: u16,
        trace: &str,
        processor: Option<&str>,
    ) -> Result<Self, WorkError> {
        let mut machine = shown(meta, pcpus, trace)?;
        if let Some(name) = processor {
            machine.tlb = name.to_owned();
        }
        let processor = machine::load(&machine.tlb)
            .map_err(|error| WorkError { trace: trace.to_owned(), what: error.to_string() })?;
        let regs = starts(meta, &machine);
        Ok(Self { trace: trace.to_owned(), machine, processor, regs })
    }
}

impl Work {
    /// The operations of a recording, on the machine that it shows with this processor (a name
    /// or a path; `None`: hardware that never evicts).
    ///
    /// # Errors
    ///
    /// The recording does not show the vendor or the MMU mode, or there is no such processor.
    pub fn new(
        recording: &Recording,
        trace: &str,
        processor: Option<&str>,
    ) -> Result<Self, WorkError> {
        let pcpus = recording.pcpus();
        let recording = guest_work(recording.clone());
        let setup = Setup::new(&recording.meta, pcpus, trace, processor)?;
        // The engine's order: (time, actor, place in the source).
        let mut ops: Vec<_> = recording.ops().collect();
        ops.sort_by_key(|(record, _)| (record.time, record.actor));
        let (mut events, mut lines) = (Vec::new(), Vec::new());
        for (record, op) in ops {
            events.push(Event { time: record.time, actor: record.actor, op: op.clone() });
            lines.push(record.line);
        }
        let Setup { trace, machine, processor, regs } = setup;
        Ok(Self { trace, machine, processor, events, regs, lines })
    }

    /// What its runs start from.
    #[must_use]
    pub fn setup(&self) -> Setup {
        Setup {
            trace: self.trace.clone(),
            machine: self.machine.clone(),
            processor: self.processor.clone(),
            regs: self.regs.clone(),
        }
    }

    /// Lines of the events, 0 where there are none.
    pub(super) fn lines(&self) -> &[u32] {
        &self.lines
    }

    /// Line of an event in its source; 0 if it has none.
    #[must_use]
    pub fn line(&self, index: usize) -> u32 {
        self.lines.get(index).copied().unwrap_or(0)
    }
}

/// The machine that a recording shows.
fn shown(meta: &Meta, pcpus: u16, trace: &str) -> Result<MachineConfig, WorkError> {
    // A list of events says nothing of a machine: it runs on the default one, as in a scenario.
    if meta.form == "text" && meta.vendor.is_none() && meta.mmu.is_none() {
        let vcpus = meta.vcpus.max(1);
        let pcpus = vcpus.max(pcpus);
        return Ok(MachineConfig { vcpus, pcpus, ..MachineConfig::default() });
    }
    let missing = |what| WorkError {
        trace: trace.to_owned(),
        what: format!("the recording does not show {what}"),
    };
    let vcpus = meta.vcpus.max(1);
    let mut machine = MachineConfig {
        vcpus,
        pcpus: vcpus,
        vendor: meta.vendor.ok_or_else(|| missing("the vendor"))?,
        mmu: meta.mmu.ok_or_else(|| missing("whether it shadows or uses TDP"))?,
        ..MachineConfig::default()
    };
    machine.pcpus = machine.pcpus.max(pcpus);
    if let Some(vpid) = meta.vpid {
        machine.vpid = vpid;
    }
    if let Some(regs) = meta.initial_regs.first() {
        machine.mode = mode(regs);
    }
    Ok(machine)
}

/// The registers that each vCPU starts with. A vCPU of which the recording shows none is left out.
fn starts(meta: &Meta, machine: &MachineConfig) -> Vec<Option<Regs>> {
    let mode = machine.initial_regs();
    let seen = meta.initial_regs.iter();
    seen.map(|regs| (*regs != Regs::default()).then(|| completed(*regs, &mode))).collect()
}

/// Registers that can be: a recording gives 0 for what it does not show. CR0 is never 0 (ET is
/// fixed), so that 0 is filled in from `mode`; EFER.LMA follows from CR0.PG and EFER.LME, and
/// long mode has PAE (facts A.1).
fn completed(mut regs: Regs, mode: &Regs) -> Regs {
    if regs.cr0 == 0 {
        regs.cr0 = mode.cr0;
    }
    let long = regs.cr0().contains(Cr0::PG) && regs.efer().intersects(Efer::LME | Efer::LMA);
    if long {
        regs.efer |= (Efer::LME | Efer::LMA).bits();
        regs.cr4 |= Cr4::PAE.bits();
    } else {
        regs.efer &= !Efer::LMA.bits();
    }
    regs
}

/// The start state that is nearest to these registers.
pub(crate) const fn mode(regs: &Regs) -> Mode {
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

#[cfg(test)]
mod tests {
    use tlbscope_trace::op::Op;
    use tlbscope_trace::recording::{Body, Record};
    use tlbscope_trace::regs::{MmuKind, Vendor};

    use super::*;

    fn recording(initial_regs: Vec<Regs>) -> Recording {
        let meta = Meta {
            form: "ftrace".to_owned(),
            vendor: Some(Vendor::Intel),
            mmu: Some(MmuKind::Shadow),
            vcpus: 3,
            initial_regs,
            ..Meta::default()
        };
        let exit = Body::Op(Op::Exit(None));
        let actor = tlbscope_trace::op::Actor::Vcpu(tlbscope_trace::addr::VcpuId(0));
        let time = tlbscope_trace::addr::Time(0);
        let records = vec![Record { time, actor, line: 1, body: exit }];
        Recording { meta, records, ..Recording::default() }
    }

    #[test]
    fn each_vcpu_starts_as_recorded() {
        // CR0 = PG|WP|ET|PE, CR4 = PAE, EFER = LME|LMA: 4-level paging; then one in real mode,
        // of which the recording shows CR3 only, and one that it does not show.
        let long =
            Regs { cr0: 0x8001_0011, cr3: 0x4000, cr4: 0x20, efer: 0x500, ..Regs::default() };
        let real = Regs { cr0: 0x10, cr3: 0x7000, ..Regs::default() };
        let work = Work::new(&recording(vec![long, real, Regs::default()]), "t", None).unwrap();
        assert_eq!(work.regs, [Some(long), Some(real), None]);
        assert_eq!(work.machine.mode, Mode::Level4);
    }

    #[test]
    fn what_cannot_be_is_completed() {
        let mode = MachineConfig { mode: Mode::Real, ..MachineConfig::default() }.initial_regs();
        let regs = completed(Regs { efer: 0x500, ..Regs::default() }, &mode);
        assert_eq!((regs.cr0, regs.efer), (0x10, 0x100), "ET is fixed; no paging, no LMA");
        let long = Regs { cr0: 0x8000_0011, efer: 0x100, ..Regs::default() };
        let regs = completed(long, &mode);
        assert_eq!((regs.cr4, regs.efer), (0x20, 0x500));
    }

    #[test]
    fn the_start_is_no_event() {
        let long =
            Regs { cr0: 0x8001_0011, cr3: 0x4000, cr4: 0x20, efer: 0x500, ..Regs::default() };
        let work = Work::new(&recording(vec![long]), "t", None).unwrap();
        let policy = tlbscope_sim::policy::load("never").unwrap();
        let run = crate::replay::run(&work, &policy, 10, |_| ()).unwrap();
        assert_eq!(run.findings.groups().count(), 0);
        assert_eq!(work.events.len(), 1);
    }
}
