//! The access that most traces are made of: a vCPU that runs in the guest finds a translation which
//! permits it. Nothing moves but what the TLB remembers of its use, so none of what surrounds other
//! events (entries, waiting operations, the choice among orders) needs a look. The rest of the way
//! leads through [`super::access`], which comes to the same result.

use tlbscope_trace::act::{Accessed, At, Outcome, Tag, Via};
use tlbscope_trace::addr::{Gpa, Hpa};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{AccessKind, Actor, Event, Op};
use tlbscope_trace::regs::MmuKind;

use super::{Machine, Step};
use crate::arch::access::{self, Rights};
use crate::tlb::Entry;

impl Machine {
    /// Whether nothing but the operation of a running vCPU itself can happen at an event: no order to
    /// choose, no kick on its way, nothing that waits, no work for the worker, nobody who could enter.
    pub(super) fn undisturbed(&self) -> bool {
        self.schedule.is_none()
            && self.clock.is_none()
            && self.backlog.is_empty()
            && self.root_work.is_none()
            && self.presence.nobody_enters()
    }

    /// Carries the event out if it is such an access; else nothing has happened.
    #[inline]
    pub(super) fn hit<O: Observer>(
        &mut self,
        event: &Event,
        index: u64,
        o: &mut O,
    ) -> Option<Step> {
        let (Op::Access(access), Actor::Vcpu(id)) = (&event.op, event.actor) else { return None };
        let vcpu = self.vcpus.get(usize::from(id.0)).filter(|vcpu| vcpu.in_guest)?;
        let tlb = &mut self.pcpus[usize::from(vcpu.pcpu.0)].tlb;
        let Entry { copy, mark, size, global, pcid, .. } =
            *tlb.lookup(&vcpu.context.tag, access.gva)?;
        let rights = Rights { write: copy.write, user: copy.user, xd: copy.xd, key: copy.key };
        let live = access::Live::of(&vcpu.regs);
        let live = if self.config.mmu == MmuKind::Shadow { live.shadowed() } else { live };
        let clean_write = access.kind == AccessKind::Write && !copy.dirty;
        if clean_write || !access::permits(rights, access, live) {
            return None;
        }
        let offset = access.gva.0 & (size.bytes() - 1);
        let (outcome, hpa) = (Outcome::Gpa(Gpa(copy.gpa.0 + offset)), Hpa(copy.hpa.0 + offset));
        self.at = At { event: index, time: event.time, actor: event.actor };
        if !o.indifferent(id, mark, self) {
            let tag = Tag { pcid, ..vcpu.context.tag };
            let via = Via::Copy { mark, tag, global, copy, fresh: false };
            o.access(&self.at, &Accessed { access: *access, via, outcome, hpa }, self);
        }
        Some(Step { outcome: Some(outcome), ..Step::default() })
    }
}
