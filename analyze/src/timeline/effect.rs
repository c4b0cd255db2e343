//! What is shown of a run, one mark each.

use tlbscope_trace::act::{Act, ArchOp};
use tlbscope_trace::op::{Actor, Op};

/// On whose line an effect is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A vCPU's.
    Vcpu(u16),
    /// The host's.
    Host,
}

impl From<Actor> for Lane {
    fn from(actor: Actor) -> Self {
        match actor {
            Actor::Vcpu(vcpu) => Self::Vcpu(vcpu.0),
            Actor::Host => Self::Host,
        }
    }
}

/// What an effect is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The guest (or its userspace) writes a register that bears on translation.
    Write,
    /// The guest invalidates.
    Invalidate,
    /// The host changes what backs guest memory, or where a vCPU runs.
    Host,
    /// Another operation, shown because a finding names it.
    Operation,
    /// A request is raised.
    Post,
    /// A request is served.
    Serve,
    /// A flush hook of the vendor is called.
    Hook,
    /// The hardware invalidates.
    Inv,
    /// A root is loaded, looked for, reset or freed.
    Root,
    /// A shadow page turns unsync or is synced.
    Sync,
    /// An outlawed copy is used, or is exposed.
    Stale,
    /// A flush, reset or free beyond what was owed.
    Excess,
    /// Events were lost here.
    Gap,
}

impl Kind {
    /// Every kind with its name and the row of a lane that it is on, in the order of their numbers.
    pub const ALL: [(Self, &'static str, usize); 13] = [
        (Self::Write, "register write", 0),
        (Self::Invalidate, "guest invalidation", 0),
        (Self::Host, "host operation", 0),
        (Self::Operation, "other operation", 0),
        (Self::Post, "request raised", 1),
        (Self::Serve, "request served", 1),
        (Self::Hook, "flush hook", 2),
        (Self::Inv, "hardware invalidation", 2),
        (Self::Root, "root", 3),
        (Self::Sync, "shadow page", 3),
        (Self::Stale, "stale", 4),
        (Self::Excess, "excess", 4),
        (Self::Gap, "lost events", 0),
    ];

    /// The rows of a lane, from the top.
    pub const ROWS: [&'static str; 5] = ["ops", "requests", "flushes", "roots", "verdicts"];

    /// The row of a lane that it is on.
    #[must_use]
    pub const fn row(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// What an act is; `None`: it is not shown.
    #[must_use]
    pub const fn of_act(act: &Act) -> Option<Self> {
        Some(match act {
            Act::Post(_) | Act::RequestAll(_) => Self::Post,
            Act::Serve(_) => Self::Serve,
            Act::Hook { .. } | Act::RemoteFlush { .. } => Self::Hook,
            Act::Inv(_) | Act::NewAsid(_) => Self::Inv,
            Act::Reset { .. }
            | Act::RoleChange
            | Act::Unload
            | Act::FreeRoot { .. }
            | Act::FreeRoots { .. }
            | Act::NewPgd(_)
            | Act::Load
            | Act::LoadPgd { .. }
            | Act::FreeObsoleteRoots
            | Act::InvalidatePcid(_)
            | Act::LoadPdptrs { .. }
            | Act::ZapAll => Self::Root,
            Act::InvalidateGva(_)
            | Act::SyncRoots
            | Act::SyncPrevRoots
            | Act::SpUnsync { .. }
            | Act::SpSync { .. } => Self::Sync,
            _ => return None,
        })
    }

    /// What an architectural operation of a replay is.
    #[must_use]
    pub const fn of_arch(op: &ArchOp) -> Option<Self> {
        Some(match op {
            ArchOp::Invlpg(_) | ArchOp::Invpcid(_) | ArchOp::RemoteFlush { .. } => Self::Invalidate,
            ArchOp::HostDead { .. } => Self::Host,
            // Told by the event itself; a page fault is no operation of software.
            ArchOp::HostChange { .. } | ArchOp::PageFault(_) | ArchOp::Release { .. } => {
                return None;
            }
            _ => Self::Write,
        })
    }

    /// What an operation of a trace is; [`Kind::Operation`] for what is shown on demand only.
    #[must_use]
    pub fn of_op(op: &Op) -> Self {
        match op {
            Op::Cr0(_)
            | Op::Clts
            | Op::Lmsw(_)
            | Op::Cr3(_)
            | Op::Cr4(_)
            | Op::Efer(_)
            | Op::Init
            | Op::Reset
            | Op::Smi
            | Op::Rsm
            | Op::TaskSwitch(_)
            | Op::MsrMtrr(_)
            | Op::MsrPat(_)
            | Op::Pkru(_)
            | Op::Cpuid
            | Op::Sregs(_)
            | Op::L2Enter(_)
            | Op::L2Exit(_) => Self::Write,
            Op::Invlpg(_)
            | Op::Invpcid(_)
            | Op::Invlpga { .. }
            | Op::Invlpgb(_)
            | Op::InvlpgbLarge(_)
            | Op::Tlbsync
            | Op::PvFlush(_)
            | Op::HvFlush(_)
            | Op::L1(_) => Self::Invalidate,
            Op::Host(_) | Op::HostBegin(_) | Op::HostEnd(_) => Self::Host,
            Op::Emul(inner) => Self::of_op(inner),
            _ => Self::Operation,
        }
    }
}

/// One mark of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The event in whose course it happened.
    pub event: u64,
    /// When, in nanoseconds.
    pub time: u64,
    /// On whose line.
    pub lane: Lane,
    /// What it is.
    pub kind: Kind,
    /// In words.
    pub what: String,
    /// The finding that it is about, by its place in the sorted list.
    pub finding: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_by_their_numbers() {
        for (n, (kind, _, row)) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, n);
            assert!(*row < Kind::ROWS.len());
        }
    }
}
