//! A vCPU that is out of the guest while the host works on its memory: one entry follows, however
//! much the host did. A replay re-enters after each operation by itself, so the vCPU is held out from
//! the host's operation to the entry that the recording shows.

use tlbscope_trace::Recording;
use tlbscope_trace::act::Act;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, HostOp, Op};
use tlbscope_trace::recording::Body;

use super::recorded::Inserted;

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// It has exited and not entered since.
    out: bool,
    /// It is held out of the machine's guest.
    held: bool,
}

/// `out` and `in`, each with the index of the record that it goes before, in that order.
pub(super) fn windows(recording: &Recording) -> Vec<Inserted> {
    let mut lanes = vec![Lane::default(); usize::from(recording.meta.vcpus)];
    let mut found = Vec::new();
    for (index, record) in recording.records.iter().enumerate() {
        match (&record.body, record.actor) {
            // Nobody knows who entered meanwhile.
            (Body::Gap(_), _) => {
                for (v, lane) in lanes.iter_mut().enumerate() {
                    found.extend(lane.enters(v, index));
                    *lane = Lane::default();
                }
            }
            (Body::Op(Op::Host(op)), _) if on_memory(op) => {
                for (v, lane) in lanes.iter_mut().enumerate() {
                    if lane.out && !std::mem::replace(&mut lane.held, true) {
                        found.push(inserted(index, v, Op::Out));
                        found.push(inserted(index, v, Op::Exit(None)));
                    }
                    lane.held &= lane.out;
                }
            }
            (body, Actor::Vcpu(vcpu)) => {
                let v = usize::from(vcpu.0);
                let Some(lane) = lanes.get_mut(v) else { continue };
                match body {
                    Body::Act(Act::Exit(_)) => lane.out = true,
                    Body::Act(Act::EntrySeen | Act::Entry(_)) => {
                        found.extend(lane.enters(v, index));
                        lane.out = false;
                    }
                    // Of the guest, so it runs again.
                    Body::Op(op) if !by_userspace(op) => found.extend(lane.enters(v, index)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    found
}

impl Lane {
    fn enters(&mut self, v: usize, index: usize) -> Option<Inserted> {
        std::mem::take(&mut self.held).then(|| inserted(index, v, Op::In))
    }
}

fn inserted(before: usize, v: usize, op: Op) -> Inserted {
    Inserted { before, actor: Actor::Vcpu(VcpuId(v as u16)), op }
}

/// Whether the host changes what stands behind guest memory.
const fn on_memory(op: &HostOp) -> bool {
    !matches!(
        op,
        HostOp::Migrate { .. }
            | HostOp::Preempt { .. }
            | HostOp::Run { .. }
            | HostOp::VcpuCreate { .. }
            | HostOp::VcpuDestroy { .. }
            | HostOp::MsrEfer { .. }
    )
}

/// What a vCPU that is out can be given.
const fn by_userspace(op: &Op) -> bool {
    matches!(op, Op::Sregs(_) | Op::Cpuid | Op::Init | Op::Reset | Op::Smi)
}

#[cfg(test)]
mod tests {
    use tlbscope_trace::addr::Time;
    use tlbscope_trace::recording::{Meta, Record};

    use super::*;

    fn recording(bodies: &[(u16, Body)]) -> Recording {
        let records = bodies.iter().map(|(vcpu, body)| {
            let host = matches!(body, Body::Op(Op::Host(_)));
            let actor = if host { Actor::Host } else { Actor::Vcpu(VcpuId(*vcpu)) };
            Record { time: Time(0), actor, line: 1, body: body.clone() }
        });
        let meta = Meta { vcpus: 2, ..Meta::default() };
        Recording { meta, records: records.collect(), ..Recording::default() }
    }

    #[test]
    fn two_zaps_in_one_window_are_followed_by_one_entry() {
        let exit = || Body::Act(Act::Exit(Some(30)));
        let zap = || Body::Op(Op::Host(Box::new(HostOp::ZapAll)));
        let entry = || Body::Act(Act::EntrySeen);
        let seen = [(0, entry()), (0, exit()), (1, exit()), (1, entry()), (0, zap()), (0, zap())];
        let mut seen = Vec::from(seen);
        seen.extend([(0, entry()), (0, zap())]);
        let got = windows(&recording(&seen));
        let want = [(4, Op::Out), (4, Op::Exit(None)), (6, Op::In)];
        assert_eq!(got, want.map(|(at, op)| inserted(at, 0, op)), "vCPU 1 is in the guest");
    }

    #[test]
    fn a_guest_operation_or_a_gap_ends_it() {
        let exit = Body::Act(Act::Exit(None));
        let zap = Body::Op(Op::Host(Box::new(HostOp::ZapAll)));
        let op = Body::Op(Op::Cr3(0x1000));
        let seen = [(0, exit.clone()), (0, zap.clone()), (0, Body::Op(Op::Cpuid)), (0, op)];
        assert_eq!(windows(&recording(&seen)).last(), Some(&inserted(3, 0, Op::In)));
        let gap = [(0, exit), (0, zap.clone()), (0, Body::Gap(None)), (0, zap)];
        let got = windows(&recording(&gap));
        assert_eq!(got.len(), 3, "behind the gap nobody is known to be out");
        assert_eq!(got.last(), Some(&inserted(2, 0, Op::In)));
    }
}
