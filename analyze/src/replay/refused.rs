//! Writes, and INVPCID, that the recorded kernel answered with #GP. What the guest did next follows from that,
//! also where the kernel of another policy would have taken the write (5.10 lets 64-bit code clear
//! CR0.PG, of which a guest dies): such a write is replayed as the exit that it was.

use std::collections::BTreeSet;

use tlbscope_trace::Recording;
use tlbscope_trace::act::Act;
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::recording::Body;

/// #GP.
const GP: u8 = 13;

/// The indices of the records of such writes.
pub(super) fn writes(recording: &Recording) -> BTreeSet<usize> {
    let mut under_way = vec![None; usize::from(recording.meta.vcpus)];
    let mut refused = BTreeSet::new();
    for (index, record) in recording.records.iter().enumerate() {
        if matches!(record.body, Body::Gap(_)) {
            under_way.fill(None);
        }
        let Actor::Vcpu(vcpu) = record.actor else { continue };
        let Some(write) = under_way.get_mut(usize::from(vcpu.0)) else { continue };
        match &record.body {
            Body::Op(op) => *write = is_write(op).then_some(index),
            Body::Act(Act::Inject { vector: GP, .. }) => refused.extend(write.take()),
            Body::Act(Act::EntrySeen | Act::Entry(_)) => *write = None,
            _ => {}
        }
    }
    refused
}

/// Whether this writes a register on which kernels differ in what they take, or is an INVPCID: what was
/// wrong with its operands no line tells.
const fn is_write(op: &Op) -> bool {
    matches!(op, Op::Cr0(_) | Op::Cr3(_) | Op::Cr4(_) | Op::Efer(_) | Op::Invpcid(_))
}

#[cfg(test)]
mod tests {
    use tlbscope_trace::addr::{Time, VcpuId};
    use tlbscope_trace::op::RegWrite;
    use tlbscope_trace::recording::{Meta, Record};

    use super::*;

    #[test]
    fn a_write_is_refused_by_the_gp_before_the_next_entry() {
        let write = || Body::Op(Op::Cr0(RegWrite::value(0x31)));
        let gp = || Body::Act(Act::Inject { vector: GP, error: Some(0) });
        let page_fault = Body::Act(Act::Inject { vector: 14, error: Some(0) });
        let entry = Body::Act(Act::EntrySeen);
        let bodies = [write(), gp(), entry.clone(), write(), page_fault, entry, gp()];
        let record = |body| Record { time: Time(0), actor: Actor::Vcpu(VcpuId(0)), line: 1, body };
        let meta = Meta { vcpus: 1, ..Meta::default() };
        let records = bodies.into_iter().map(record).collect();
        let recording = Recording { meta, records, ..Recording::default() };
        assert_eq!(writes(&recording), [0].into());
    }
}
