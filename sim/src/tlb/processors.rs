//! The TLBs of several logical processors, and the INVLPGBs under way between them.

use tlbscope_trace::act::{Class, Inv, Tag};
use tlbscope_trace::addr::{Ep4ta, Gpa, Gva, PcpuId};

use super::instruction::{Drop, Effect, dropped_by};
use super::invalidate::Upper;
use super::{Container, Entry, Geometry, Space, Tlb};
use crate::arch::processor::{Broadcast, Instruction, Processor, Step};

/// What a defective processor makes of one of its drops: another one, or none.
pub type Erratum<'a> = &'a dyn Fn(Effect, Drop) -> Option<Drop>;

/// A processor without defects.
#[must_use]
pub fn sound(_: Effect, drop: Drop) -> Option<Drop> {
    Some(drop)
}

/// The TLBs of every logical processor that was named so far.
#[derive(Clone)]
pub struct Processors<'a> {
    /// By number, in the order of first use.
    tlbs: Vec<(PcpuId, Tlb)>,
    /// INVLPGBs that no TLBSYNC of their processor has completed (facts C.3).
    under_way: Vec<(PcpuId, Broadcast)>,
    erratum: Erratum<'a>,
}

impl<'a> Processors<'a> {
    /// Empty unbounded TLBs. `erratum` has the last word on each drop: [`sound`] for hardware that
    /// does what it says.
    #[must_use]
    pub const fn new(erratum: Erratum<'a>) -> Self {
        Self { tlbs: Vec::new(), under_way: Vec::new(), erratum }
    }

    /// The TLB of one processor.
    pub fn tlb(&mut self, pcpu: PcpuId) -> &mut Tlb {
        let at = match self.tlbs.iter().position(|(p, _)| *p == pcpu) {
            Some(at) => at,
            None => {
                self.tlbs.push((pcpu, Tlb::new(Geometry::Unbounded)));
                self.tlbs.len() - 1
            }
        };
        &mut self.tlbs[at].1
    }

    /// Drops what a step of one processor drops, here and, for TLBSYNC, everywhere.
    pub fn step(&mut self, pcpu: PcpuId, cpu: &Processor, did: &Instruction, step: &Step) {
        let current = current(pcpu, cpu);
        for (effect, drop) in dropped_by(cpu, did, step).into_iter().flatten() {
            if let Some(drop) = (self.erratum)(effect, drop) {
                self.tlb(pcpu).carry_out(drop, &current);
            }
        }
        if !matches!(step, Step::Done(_)) {
            return;
        }
        match did {
            Instruction::Invlpgb(broadcast) => {
                self.under_way.push((pcpu, cpu.broadcast(*broadcast)));
            }
            Instruction::Tlbsync => self.complete(pcpu),
            _ => {}
        }
    }

    /// TLBSYNC completes the INVLPGBs of its own processor on every other.
    fn complete(&mut self, pcpu: PcpuId) {
        let (mine, others): (Vec<_>, Vec<_>) =
            self.under_way.iter().partition(|(from, _)| *from == pcpu);
        self.under_way = others;
        for (_, broadcast) in mine {
            let Some(drop) = (self.erratum)(Effect::Invlpgb, Drop::Broadcast(broadcast)) else {
                continue;
            };
            for (_, tlb) in &mut self.tlbs {
                tlb.carry_out(drop, &Tag::default());
            }
        }
    }
}

/// The tag of what the processor's own instructions act on.
fn current(pcpu: PcpuId, cpu: &Processor) -> Tag {
    let (class, id) = if cpu.amd() {
        (Class::Asid, cpu.place.asid().0)
    } else {
        (Class::Linear, u32::from(cpu.place.vpid().0))
    };
    Tag { pcpu, class, id, pcid: cpu.regs.pcid(), ..Tag::default() }
}

impl Tlb {
    /// Carries out a drop; nobody is told what went.
    pub fn carry_out(&mut self, drop: Drop, current: &Tag) {
        let quiet = &mut |_: &Tag, _, _| {};
        match drop {
            Drop::Inv(inv) => self.invalidate(inv, current, 0, quiet),
            Drop::Processor => self.wide(|_| true, 0, quiet),
            Drop::EveryAsid => self.invalidate(Inv::TlbControlAll, current, 0, quiet),
            Drop::Combined { vpid, root, pcid, gva } => {
                let own = |c: &Container| {
                    c.tag.class == Class::Combined
                        && c.tag.id == u32::from(vpid.0)
                        && c.tag.ep4ta == root
                };
                let of = |c: &Container| own(c) && c.space == Space::Pcid && c.tag.pcid == pcid;
                self.address(of, Upper::Path, gva, None, 0, quiet);
                let global = |c: &Container| own(c) && c.space == Space::Global;
                self.address(global, Upper::Keep, gva, Some(pcid), 0, quiet);
            }
            Drop::Physical { root, gpa } => self.drop_physical(root, gpa),
            Drop::Page { asid, gva } => {
                let of = |c: &Container| c.tag.class == Class::Asid && c.tag.id == asid.0;
                self.address(of, Upper::Path, gva, None, 0, quiet);
            }
            Drop::Broadcast(broadcast) => self.drop_broadcast(&broadcast),
        }
    }

    /// An EPT violation: the mapping and the path to it.
    fn drop_physical(&mut self, root: Ep4ta, Gpa(gpa): Gpa) {
        for index in 0..self.containers.len() {
            let tag = self.containers[index].tag;
            if tag.class == Class::GuestPhysical && tag.ep4ta == root {
                self.drop_path(index, Gva(gpa));
                self.drop_page(index, Gva(gpa), None, 0, &mut |_, _, _| {});
            }
        }
    }

    /// INVLPGB. With an address it drops the path to each page of the range, without one whole
    /// PCIDs. Of global translations only those that were made under the PCID, if it names one.
    fn drop_broadcast(&mut self, b: &Broadcast) {
        let quiet = &mut |_: &Tag, _, _| {};
        let hit = |c: &Container| {
            let space = match c.space {
                Space::Pcid => b.pcid.is_none_or(|p| p == c.tag.pcid),
                Space::Global => b.global,
                Space::Physical => false,
            };
            let asid = b.asid.is_none_or(|a| a.0 == c.tag.id);
            c.tag.class == Class::Asid && asid && space
        };
        let made = |e: &Entry| b.pcid.is_none_or(|p| p == e.pcid);
        let Some(Gva(first)) = b.va else {
            self.wide(|c| hit(c) && (c.space == Space::Pcid || b.pcid.is_none()), 0, quiet);
            for index in 0..self.containers.len() {
                let c = &self.containers[index];
                if hit(c) && c.live != 0 {
                    self.kill_where(index, 0, quiet, |_, e| made(e));
                }
            }
            return;
        };
        let bytes = (u64::from(b.extra) + 1) * b.stride.bytes();
        let first = first & !(b.stride.bytes() - 1);
        let last = first.saturating_add(bytes - 1);
        for index in 0..self.containers.len() {
            if !hit(&self.containers[index]) {
                continue;
            }
            self.drop_paths(index, first, last);
            self.kill_where(index, 0, quiet, |address, e| {
                let shift = e.guest_size.max(e.size).shift();
                made(e) && (first >> shift..=last >> shift).contains(&(address >> shift))
            });
        }
    }
}
