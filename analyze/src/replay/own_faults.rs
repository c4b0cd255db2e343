//! Page faults of the guest's own, which KVM finds under shadow paging and injects: guest work like
//! any other, told by the fault and its injection, or, where kvm_inj_exception was not recorded, by
//! the invalidation that comes with it.

use tlbscope_trace::Recording;
use tlbscope_trace::act::{Act, Hook};
use tlbscope_trace::addr::Gva;
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::recording::Body;
use tlbscope_trace::regs::MmuKind;

use super::recorded::Inserted;

/// #PF, and the bit of its error code that says that the entry was present.
const PF: u8 = 14;
const PRESENT: u32 = 1;

/// What one vCPU's exit window has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// The address of a fault that is not yet known to be the guest's own.
    fault: Option<Gva>,
    /// An address was invalidated: by the guest's instruction, or for the fault.
    told: bool,
}

/// The faults, each with the index of the record that it goes before, in that order.
pub(super) fn faults(recording: &Recording) -> Vec<Inserted> {
    let mut found = Vec::new();
    if recording.meta.mmu != Some(MmuKind::Shadow) {
        return found;
    }
    let mut windows = vec![Window::default(); usize::from(recording.meta.vcpus)];
    for (index, record) in recording.records.iter().enumerate() {
        if matches!(record.body, Body::Gap(_)) {
            windows.fill(Window::default());
            continue;
        }
        let Actor::Vcpu(vcpu) = record.actor else { continue };
        let Some(window) = windows.get_mut(usize::from(vcpu.0)) else { continue };
        let fault = match &record.body {
            Body::Op(op) => {
                window.told |= invalidates(op);
                None
            }
            Body::Act(act) => window.act(act),
            Body::Gap(_) => None,
        };
        if let Some((gva, error)) = fault {
            let op = Op::PageFault { gva, error };
            found.push(Inserted { before: index, actor: record.actor, op });
        }
    }
    found
}

impl Window {
    fn act(&mut self, act: &Act) -> Option<(Gva, u32)> {
        match *act {
            Act::EntrySeen | Act::Entry(_) => *self = Self::default(),
            Act::PageFault { address, .. } => self.fault = Some(Gva(address)),
            Act::Inject { vector: PF, error: Some(error) } => {
                return self.fault.take().map(|gva| (gva, error));
            }
            Act::InvalidateGva(gva) | Act::Hook { hook: Hook::Gva(gva), .. } if !self.told => {
                (self.fault, self.told) = (None, true);
                return Some((gva, PRESENT));
            }
            _ => {}
        }
        None
    }
}

/// Whether an address is invalidated for an operation itself.
const fn invalidates(op: &Op) -> bool {
    match op {
        Op::Emul(inner) => matches!(**inner, Op::Invlpg(_) | Op::Invpcid(_)),
        op => matches!(op, Op::Invlpg(_) | Op::Invpcid(_)),
    }
}

#[cfg(test)]
mod tests {
    use tlbscope_trace::addr::{Time, VcpuId};
    use tlbscope_trace::recording::{Meta, Record};

    use super::*;

    fn found(mmu: MmuKind, bodies: &[Body]) -> Vec<(usize, Op)> {
        let record = |body: &Body| Record {
            time: Time(0),
            actor: Actor::Vcpu(VcpuId(0)),
            line: 1,
            body: body.clone(),
        };
        let meta = Meta { vcpus: 1, mmu: Some(mmu), ..Meta::default() };
        let records = bodies.iter().map(record).collect();
        let recording = Recording { meta, records, ..Recording::default() };
        faults(&recording).into_iter().map(|fault| (fault.before, fault.op)).collect()
    }

    #[test]
    fn a_fault_that_kvm_injects_is_the_guests() {
        let fault = |address| Body::Act(Act::PageFault { address, error: 2 });
        let inject = || Body::Act(Act::Inject { vector: 14, error: Some(2) });
        let entry = || Body::Act(Act::EntrySeen);
        let seen = [fault(0x5000), inject(), entry(), fault(0x6000), entry(), inject()];
        let own = Op::PageFault { gva: Gva(0x5000), error: 2 };
        assert_eq!(found(MmuKind::Shadow, &seen), [(1, own)]);
        assert_eq!(found(MmuKind::Tdp, &seen), [], "these are the hypervisor's");
    }

    #[test]
    fn an_invalidation_tells_of_one_unless_an_instruction_asked_for_it() {
        let gva = Gva(0x5000);
        let fault = Body::Act(Act::PageFault { address: 0x5000, error: 3 });
        let invalidated = || Body::Act(Act::InvalidateGva(gva));
        let inject = Body::Act(Act::Inject { vector: 14, error: Some(3) });
        let seen = [fault, invalidated(), inject];
        let own = Op::PageFault { gva, error: 1 };
        assert_eq!(found(MmuKind::Shadow, &seen), [(1, own)], "and the injection is the same one");
        let asked = [Body::Op(Op::Invlpg(gva)), invalidated()];
        assert_eq!(found(MmuKind::Shadow, &asked), []);
    }
}
