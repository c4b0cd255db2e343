//! The verdict on one access.

use tlbscope_sim::arch::required::{BIRTH, IMPOSSIBLE, RELEASE, Rule};
use tlbscope_trace::act::{Accessed, At, Copied, Outcome, Tag, Via};
use tlbscope_trace::addr::{Gpa, Hpa, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::regs::{Cr4, MmuKind};
use tlbscope_trace::state::Word;

use super::floors::Target;
use super::fresh::Fresh;
use super::nested::fresh_now;
use super::{Oracle, STRAYED, Stamp, frames_differ, mode};
use crate::finding::{Finding, Kind};

/// Who outlawed a copy that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Cause {
    /// An operation of the guest.
    Guest {
        /// By a binding rule.
        must: bool,
    },
    /// L1, over what was made through its nested tables.
    Nested,
    /// A change of what backs the frame.
    Host,
    /// No obligation of a vCPU.
    Other {
        /// By which rule.
        #[serde(with = "crate::state::rule")]
        rule: &'static Rule,
        /// The operation's name.
        #[serde(with = "tlbscope_trace::state::word")]
        op: tlbscope_trace::state::Name,
        /// Its event.
        event: u64,
    },
}

impl Oracle {
    pub(super) fn judge<W: World>(&mut self, at: &At, id: usize, a: &Accessed, world: &W) {
        let by_structures = !self.uses.is_empty();
        if by_structures {
            self.judge_structures(at, id, a, world);
        }
        let Via::Copy { mark, tag, global, copy, .. } = a.via else { return };
        if mark.g == 0 {
            return;
        }
        let stamp = Stamp::of(mark);
        let target = Target {
            global,
            structure: false,
            pcid: tag.pcid.0,
            gva: a.access.gva.0,
            shift: stamp.shift,
        };
        let mut cause = self.cause(id, &target, &stamp, &tag, &copy);
        let faulted = matches!(a.outcome, Outcome::Fault(_));
        let shadow = world.mmu() == MmuKind::Shadow;
        let regs = world.regs(VcpuId(id as u16));
        let other_mode = shadow && stamp.mode != STRAYED && stamp.mode != mode(regs);
        if cause.is_none() && !faulted && !other_mode {
            self.approved = !by_structures && stamp.mode != STRAYED;
            return;
        }
        let now = fresh_now(world, id, regs, &a.access);
        if let Some(Cause::Other { rule, op, event }) = &mut cause
            && rule.id == IMPOSSIBLE.id
            && let Some((_, linked)) = self.shadow.pointed(now.upper())
            && linked > *event
        {
            (*event, *op) = (linked, "store");
        }
        let cause = cause.or_else(|| self.mode_cause(id, &stamp, other_mode, a, &now));
        let Some(cause) = cause.filter(|cause| !self.lacks(cause)) else {
            self.findings.spurious_faults +=
                u64::from(faulted && matches!(now.outcome, Outcome::Gpa(_)));
            return;
        };
        let key = regs.cr4().contains(Cr4::PKE) && copy.key != now.copied.key;
        let harmful = a.outcome != now.outcome
            || !faulted && (frames_differ(a.hpa, now.copied.hpa) || key || now.sets_ad);
        let mechanism = if shadow { "shadow-tlb" } else { "tlb" };
        self.report_use(at, id, a, cause, &target, &stamp, &copy, harmful, mechanism);
    }

    /// A page is used by an address that is kept outside page tables and caches. It is a copy of what backs
    /// guest memory like any other: past the deadline of the change that took the page away it must not
    /// be used. What belongs to no vCPU counts as the first one's.
    pub(super) fn held_page<W: World>(&mut self, at: &At, gpa: Gpa, hpa: Hpa, world: &W) {
        if world.backing(gpa) == Some(hpa) {
            return;
        }
        let id = self.vcpu(at).unwrap_or(0) as u16;
        let Some(change) = self.host.took(gpa.0, hpa.0) else { return };
        match change.missed.iter().find(|missed| missed.0 == id) {
            Some(&(_, slot, was)) => self.findings.again(slot, true, was),
            None => {
                let slot = self.findings.add(Finding {
                    cause: change.obligation.event,
                    vcpu: id,
                    kind: Kind::Missed { harmful: true },
                    rule: change.obligation.rule.id,
                    op: change.obligation.op,
                    mechanism: "held-page",
                    use_: Some(at.event),
                    address: Some(gpa.0),
                    count: 1,
                });
                change.missed.push((id, slot, true));
            }
        }
    }

    /// Whether a cause is of the row that this oracle's table lacks.
    pub(super) fn lacks(&self, cause: &Cause) -> bool {
        matches!(cause, Cause::Other { rule, .. } if self.without == Some(rule.id))
    }

    /// What outlaws a copy, the binding first.
    fn cause(&self, id: usize, t: &Target, s: &Stamp, tag: &Tag, copy: &Copied) -> Option<Cause> {
        let (must, advised) = self.vcpus[id].floors.outlawed(t, s.g);
        if must {
            return Some(Cause::Guest { must: true });
        }
        let nested = if s.n == 0 { None } else { self.vcpus[id].floors.nested() };
        if nested.is_some_and(|floors| floors.outlawed(t, s.n).0) {
            return Some(Cause::Nested);
        }
        if let Some((event, op)) = self.hardware.birth(tag, s.g, s.h) {
            return Some(Cause::Other { rule: &BIRTH, op, event });
        }
        if self.host.outlaws(copy.gpa.0, s.h, copy.write) {
            return Some(Cause::Host);
        }
        if let Some(event) = self.host.released(copy.gpa.0, s.g.min(s.h)) {
            return Some(match self.host.owed_before(copy.gpa.0, s.h, copy.write) {
                Some(owed) if owed.event <= event => {
                    Cause::Other { rule: owed.rule, op: owed.op, event: owed.event }
                }
                _ => Cause::Other { rule: &RELEASE, op: "release", event },
            });
        }
        if s.impossible {
            let (event, op) = self.vcpus[id].register;
            return Some(Cause::Other { rule: &IMPOSSIBLE, op, event });
        }
        advised.then_some(Cause::Guest { must: false })
    }

    /// A shadow translation made under another mode that comes out as no walk could under this
    /// one, although the guest's entries have not changed since.
    fn mode_cause(
        &self,
        id: usize,
        stamp: &Stamp,
        other_mode: bool,
        a: &Accessed,
        now: &Fresh,
    ) -> Option<Cause> {
        if !other_mode || a.outcome == now.outcome {
            return None;
        }
        let stored = now.entries.iter().any(|at| {
            at.0 != 0 && self.stores.get(&(at.0 >> 12)).is_some_and(|(time, _)| *time >= stamp.g)
        });
        let (event, op) = self.vcpus[id].register;
        (!stored).then_some(Cause::Other { rule: &IMPOSSIBLE, op, event })
    }

    #[expect(clippy::too_many_arguments, reason = "one use, all of it goes into the finding")]
    pub(super) fn report_use(
        &mut self,
        at: &At,
        id: usize,
        a: &Accessed,
        cause: Cause,
        target: &Target,
        stamp: &Stamp,
        copy: &Copied,
        harmful: bool,
        mechanism: &'static str,
    ) {
        let new = |kind, cause, rule, op| Finding {
            cause,
            vcpu: id as u16,
            kind,
            rule,
            op,
            mechanism,
            use_: Some(at.event),
            address: Some(a.access.gva.0),
            count: 1,
        };
        let missed = Kind::Missed { harmful };
        if cause != (Cause::Guest { must: false }) {
            self.verdict = Some(harmful || self.verdict == Some(true));
        }
        match cause {
            Cause::Guest { .. } | Cause::Nested => {
                let must = cause != (Cause::Guest { must: false });
                let kind = if must { missed } else { Kind::Advised };
                let floors = &mut self.vcpus[id].floors;
                let named = match cause {
                    Cause::Nested => {
                        floors.nested_mut().and_then(|f| f.earliest(target, stamp.n, must))
                    }
                    _ => floors.earliest(target, stamp.g, must),
                };
                match named {
                    Some(o) => match &mut o.missed {
                        Some((slot, was)) => {
                            self.findings.again(*slot, harmful && must, *was);
                            *was |= harmful && must;
                        }
                        none => {
                            let found = new(kind, o.event, o.rule.id, o.op);
                            *none = Some((self.findings.add(found), harmful));
                        }
                    },
                    // The obligation is too old to be named, yet the miss stays one.
                    None if must => {
                        self.findings.add(new(kind, 0, "forgotten", "unknown"));
                    }
                    None => {}
                }
            }
            Cause::Host => {
                let Some(change) = self.host.earliest(copy.gpa.0, stamp.h, copy.write) else {
                    return;
                };
                match change.missed.iter_mut().find(|m| usize::from(m.0) == id) {
                    Some((_, slot, was)) => {
                        self.findings.again(*slot, harmful, *was);
                        *was |= harmful;
                    }
                    None => {
                        let o = &change.obligation;
                        let slot = self.findings.add(new(missed, o.event, o.rule.id, o.op));
                        change.missed.push((id as u16, slot, harmful));
                    }
                }
            }
            Cause::Other { rule, op, event } => {
                let key = (event, Word(rule.id), id as u16);
                match self.others.get_mut(&key) {
                    Some((slot, was)) => {
                        self.findings.again(*slot, harmful, *was);
                        *was |= harmful;
                    }
                    None => {
                        let slot = self.findings.add(new(missed, event, rule.id, op));
                        self.others.insert(key, (slot, harmful));
                    }
                }
            }
        }
    }
}
