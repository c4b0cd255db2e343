//! What a file held: who recorded it on what, what was understood of it, and its records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::act::Act;
use crate::addr::{Time, VcpuId};
use crate::op::{Actor, HostOp, Op};
use crate::regs::{MmuKind, Regs, Vendor};

/// One line of a recording: an operation, something that the hypervisor did, or a hole.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Record {
    /// When, in nanoseconds since the first record's instant.
    pub time: Time,
    /// The vCPU on whose behalf, or the host.
    pub actor: Actor,
    /// Line of the source (from 1); 0 where the source has no lines.
    pub line: u32,
    /// What.
    pub body: Body,
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Body {
    /// The guest or the host did something.
    Op(Op),
    /// Hypervisor or hardware did something.
    Act(Act),
    /// Events are missing here: the recorder lost this many (`None`: it did not say how many).
    /// Nothing after it on this physical CPU may be judged as if the gap were empty.
    Gap(Option<u64>),
}

/// Where a recording comes from and what machine it shows. What is `None` could not be decided.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, Serialize, Deserialize,
)]
pub struct Meta {
    /// Name of the source, for messages.
    pub source: String,
    /// The form it was read from: `ftrace`, `trace-cmd report`, `perf script`, `trace.dat`,
    /// `perf.data`, or `text` (an event list).
    pub form: String,
    /// Whose hardware.
    pub vendor: Option<Vendor>,
    /// Shadow paging or TDP.
    pub mmu: Option<MmuKind>,
    /// Whether VPIDs are in use (Intel).
    pub vpid: Option<bool>,
    /// The built-in policy that describes the recorded kernel, such as `kvm-6.1-lts`.
    pub kernel: Option<String>,
    /// vCPUs seen: the highest number plus one.
    pub vcpus: u16,
    /// The registers each vCPU starts with, by vCPU number.
    pub initial_regs: Vec<Regs>,
    /// Features that the recording shows in use, sorted: names of the scenario key `features`.
    pub features: Vec<String>,
    /// How each of the above was decided, a sentence each.
    pub evidence: Vec<String>,
    /// What was lost or could not be read, a sentence each; empty when the input is whole.
    pub losses: Vec<String>,
}

/// What became of the lines of a source, by the name of what they show: the probed function, or
/// the tracepoint.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, Serialize, Deserialize,
)]
pub struct Census {
    /// Turned into records, or used to complete one.
    pub understood: BTreeMap<String, u64>,
    /// Left out by design, with the reason.
    pub ignored: BTreeMap<String, (u64, String)>,
    /// Not known.
    pub unknown: BTreeMap<String, u64>,
}

/// A whole trace in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// Where from and what machine.
    pub meta: Meta,
    /// What became of its lines.
    pub census: Census,
    /// In the order of the source.
    pub records: Vec<Record>,
}

impl Record {
    /// Physical CPUs up to the one that it names; 0: it names none.
    #[must_use]
    pub fn pcpus(&self) -> u16 {
        let named = match &self.body {
            Body::Op(Op::Host(host)) => match **host {
                HostOp::Migrate { pcpu, .. } | HostOp::Run { pcpu: Some(pcpu), .. } => Some(pcpu.0),
                _ => None,
            },
            Body::Act(Act::VcpuLoad(pcpu)) => Some(pcpu.0),
            _ => None,
        };
        named.map_or(0, |pcpu| pcpu.saturating_add(1))
    }
}

impl Recording {
    /// The operations alone, in order.
    pub fn ops(&self) -> impl Iterator<Item = (&Record, &Op)> {
        self.records.iter().filter_map(|record| match &record.body {
            Body::Op(op) => Some((record, op)),
            _ => None,
        })
    }

    /// The acts alone, in order.
    pub fn acts(&self) -> impl Iterator<Item = (&Record, &Act)> {
        self.records.iter().filter_map(|record| match &record.body {
            Body::Act(act) => Some((record, act)),
            _ => None,
        })
    }

    /// Physical CPUs that it names: the highest number plus one; 0 where it names none.
    #[must_use]
    pub fn pcpus(&self) -> u16 {
        self.records.iter().map(Record::pcpus).max().unwrap_or(0)
    }

    /// Whether something is missing from it: the exit code of a tool that reads it is 3.
    #[must_use]
    pub fn damaged(&self) -> bool {
        !self.meta.losses.is_empty()
    }

    /// Registers of a vCPU before its first record; the reset state's zeros where not known.
    #[must_use]
    pub fn initial_regs(&self, vcpu: VcpuId) -> Regs {
        self.meta.initial_regs.get(usize::from(vcpu.0)).copied().unwrap_or_default()
    }
}
