//! The numbers of a run taken apart: by vCPU, by the register or kind of operation that caused
//! them, or by transition (`CR4 +PGE, paging`).
//!
//! An operation has everything that happens while it is carried out: its exit, what the hypervisor
//! does, and the entry after it. What a vCPU that is held outside does later belongs to the
//! operation that lets it in. Counted by difference of the run's totals, so that a run that nobody
//! wants taken apart pays nothing.

use std::collections::BTreeMap;

use tlbscope_sim::machine::Processor;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, Event, Op};
use tlbscope_trace::regs::Regs;

use super::cost;
use crate::audit::transition_name;
use crate::finding::{Class, Findings, Kind};
use crate::tally::{Counts, Tally};

/// By what the numbers of a run are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum By {
    /// Each vCPU, and the host.
    Vcpu,
    /// Each register and kind of operation.
    Register,
    /// Each set of changed bits of CR0, CR4 and EFER, and each kind of CR3 write.
    Transition,
}

/// The share of one vCPU, register or transition.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// Whose share it is.
    pub name: String,
    /// Operations; 0 where it is not taken apart by them.
    pub operations: u64,
    /// What was done.
    #[serde(with = "crate::state::counts")]
    pub counts: Counts,
    /// What it cost, in cycles.
    pub cycles: u64,
    /// Verdicts.
    pub verdicts: Verdicts,
}

/// Numbers of findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdicts {
    /// Missed flushes, harmful and benign.
    pub missed: u64,
    /// Exposures.
    pub exposed: u64,
    /// Outlawed copies never used.
    pub latent: u64,
    /// What only an advised rule outlaws.
    pub advised: u64,
    /// Unrequired, redundant and over-broad actions together.
    pub excessive: u64,
}

impl Verdicts {
    fn add(&mut self, kind: Kind, n: u64) {
        match kind {
            Kind::Missed { .. } => self.missed += n,
            Kind::Exposed => self.exposed += n,
            Kind::Latent => self.latent += n,
            Kind::Advised => self.advised += n,
            Kind::Excessive(Class::Bookkeeping) => {}
            Kind::Excessive(_) => self.excessive += n,
        }
    }
}

/// Takes a run apart by its operations while it runs.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Breakdown {
    by: By,
    parts: BTreeMap<String, Part>,
    /// What was counted before the operation under way.
    #[serde(with = "crate::state::counts")]
    before: Counts,
    excessive_before: u64,
}

impl Breakdown {
    /// Nothing yet of a run in which `start` was counted already.
    pub(super) fn new(by: By, start: &Tally) -> Self {
        Self { by, parts: BTreeMap::new(), before: start.total(), excessive_before: 0 }
    }

    /// What the name of an operation's part depends on, before it is carried out.
    pub(super) fn regs(
        &self,
        event: &Event,
        regs: impl FnOnce(VcpuId) -> Option<Regs>,
    ) -> Option<Regs> {
        let Actor::Vcpu(vcpu) = event.actor else { return None };
        let wanted = self.by == By::Transition && register(bare(&event.op)).is_some();
        if wanted { regs(vcpu) } else { None }
    }

    /// An operation was carried out. `change` are the registers before and after it.
    pub(super) fn done(
        &mut self,
        event: &Event,
        change: Option<(&Regs, &Regs)>,
        refused: bool,
        tally: &Tally,
        findings: &Findings,
    ) {
        if self.by == By::Vcpu {
            return;
        }
        let op = bare(&event.op);
        let name = match change {
            Some((before, after)) => transition_name(op, before, after, refused),
            None => operation(op).to_owned(),
        };
        let now = tally.total();
        let part = self.parts.entry(name).or_default();
        part.operations += 1;
        part.counts.merge(&now.since(&self.before));
        self.before = now;
        if self.by == By::Transition {
            let excessive = findings.excessive();
            part.verdicts.excessive += excessive - self.excessive_before;
            self.excessive_before = excessive;
        }
    }

    /// The parts of a finished run, by name.
    pub(super) fn finish(
        mut self,
        tally: &Tally,
        findings: &Findings,
        processor: &Processor,
    ) -> Vec<Part> {
        match self.by {
            By::Vcpu => return vcpus(tally, findings, processor),
            By::Register => {
                for (group, count) in findings.open() {
                    let part = self.parts.entry(group.op.to_owned()).or_default();
                    part.verdicts.add(group.kind, count);
                }
            }
            By::Transition => {}
        }
        let named = |(name, part): (String, Part)| Part {
            cycles: cost::total(processor, &part.counts).cycles,
            name,
            ..part
        };
        self.parts.into_iter().map(named).collect()
    }
}

/// One part for each vCPU, and one for the host where it did something.
fn vcpus(tally: &Tally, findings: &Findings, processor: &Processor) -> Vec<Part> {
    let part = |name: String, counts: &Counts| Part {
        cycles: cost::total(processor, counts).cycles,
        counts: counts.clone(),
        name,
        ..Part::default()
    };
    let mut parts = Vec::new();
    for id in 0..=u16::MAX {
        let Some(counts) = tally.of(Actor::Vcpu(VcpuId(id))) else { break };
        parts.push(part(format!("v{id}"), counts));
    }
    for (vcpu, kind, count) in findings.by_vcpu() {
        if let Some(part) = parts.get_mut(usize::from(vcpu)) {
            part.verdicts.add(kind, count);
        }
    }
    if let Some(host) = tally.of(Actor::Host).filter(|counts| **counts != Counts::default()) {
        parts.push(part("host".to_owned(), host));
    }
    parts
}

/// The operation itself, whoever carried it out.
fn bare(op: &Op) -> &Op {
    match op {
        Op::Emul(inner) => bare(inner),
        other => other,
    }
}

/// The register that an operation writes.
fn register(op: &Op) -> Option<&'static str> {
    Some(match op {
        Op::Cr0(_) | Op::Clts | Op::Lmsw(_) => "cr0",
        Op::Cr3(_) => "cr3",
        Op::Cr4(_) => "cr4",
        Op::Efer(_) => "efer",
        _ => return None,
    })
}

/// The name of an operation's part, the same that findings use.
fn operation(op: &Op) -> &'static str {
    if let Some(register) = register(op) {
        return register;
    }
    match op {
        Op::Access(_) | Op::Prefetch(_) => "access",
        Op::Map { .. }
        | Op::Unmap { .. }
        | Op::Protect { .. }
        | Op::Table { .. }
        | Op::Link { .. }
        | Op::Store { .. } => "store",
        Op::Invlpg(_) => "invlpg",
        Op::Invpcid(_) => "invpcid",
        Op::PageFault { .. } => "page-fault",
        Op::Init => "init",
        Op::Reset => "reset",
        Op::Smi => "smi",
        Op::Rsm => "rsm",
        Op::TaskSwitch(_) => "taskswitch",
        Op::MsrMtrr(_) => "mtrr",
        Op::MsrPat(_) => "pat",
        Op::Pkru(_) => "pkru",
        Op::Sregs(_) => "sregs",
        Op::Host(_) | Op::HostBegin(_) | Op::HostEnd(_) => "host",
        Op::PvFlush(_) => "pvflush",
        Op::HvFlush(_) => "hvflush",
        Op::L2Enter(_) => "l2enter",
        Op::L2Exit(_) => "l2exit",
        Op::L1(_) => "l1",
        _ => "other",
    }
}
