//! The access that most traces are made of: a vCPU that runs in the guest finds a translation which
//! permits it. Nothing moves but what the TLB remembers of its use, so none of what surrounds other
//! events (entries, waiting operations, the choice among orders) needs a look, and what decides about
//! one such access ([`Lane`]) decides about the next. The rest of the way leads through
//! [`super::access`], which comes to the same result.

use tlbscope_trace::act::{Accessed, At, Outcome, Tag, Via};
use tlbscope_trace::addr::{Gpa, Hpa, VcpuId};
use tlbscope_trace::observe::{Marks, Observer};
use tlbscope_trace::op::{Access, AccessKind, Actor, Event, Op};
use tlbscope_trace::regs::MmuKind;

use super::refill::Under;
use super::{Machine, Step};
use crate::arch::access::{Permitted, Rights};
use crate::tlb::{Entry, Tlb};

/// What decides whether an access of a vCPU is a hit. It stays as it is while nothing but hits happens.
#[derive(Clone, Copy)]
struct Lane {
    id: VcpuId,
    pcpu: usize,
    permitted: Permitted,
}

/// What an access meets in the TLB.
enum Met {
    /// No translation.
    Nothing,
    /// One that does not permit it, or that a write has to set dirty first.
    Obstacle,
    /// One that permits it, in this slot.
    Hit(usize),
}

impl Lane {
    #[inline]
    fn meets(&self, tlb: &Tlb, access: &Access) -> Met {
        let Some(slot) = tlb.probe(access.gva) else { return Met::Nothing };
        let copy = &tlb.entry(slot).copy;
        let rights = Rights { write: copy.write, user: copy.user, xd: copy.xd, key: copy.key };
        let clean_write = access.kind == AccessKind::Write && !copy.dirty;
        if clean_write || !self.permitted.permits(rights, access) {
            return Met::Obstacle;
        }
        Met::Hit(slot)
    }
}

impl Machine {
    /// Whether nothing but the operation of a running vCPU itself can happen at an event: no order to
    /// choose, no kick on its way, nothing that waits, no work for the worker, nobody who could enter. An
    /// APIC-access page is looked up beside the TLB at each access.
    pub(super) fn undisturbed(&self) -> bool {
        self.schedule.is_none()
            && self.clock.is_none()
            && self.backlog.is_empty()
            && self.root_work.is_none()
            && self.presence.nobody_enters()
            && !self.config.apic_page
    }

    /// The vCPU whose operation this is, if it runs in the guest: where nothing else can happen, it is
    /// carried out there and then.
    #[inline]
    pub(super) fn running(&self, event: &Event) -> Option<usize> {
        let Actor::Vcpu(id) = event.actor else { return None };
        let v = usize::from(id.0);
        self.vcpus.get(v).is_some_and(|vcpu| vcpu.in_guest).then_some(v)
    }

    /// The lane of a vCPU that runs in the guest; its TLB is ready for it.
    #[inline]
    fn lane(&mut self, id: VcpuId) -> Option<Lane> {
        let v = usize::from(id.0);
        let vcpu = self.vcpus.get(v).filter(|vcpu| vcpu.in_guest)?;
        let pcpu = usize::from(vcpu.pcpu.0);
        self.pcpus[pcpu].tlb.select(&vcpu.context.tag);
        let live = self.live(v);
        if self.permitted.live() != live {
            self.permitted = Permitted::under(live);
        }
        Some(Lane { id, pcpu, permitted: self.permitted })
    }

    /// Carries out events from the first on, as long as they are hits of which the observer need not be
    /// told, or refills of that kind (`engine::refill`). Returns how many those were; the event behind
    /// them is for [`Machine::run`]. `first` is the number of the first in the trace.
    #[inline]
    pub fn hits<O: Observer>(&mut self, events: &[Event], first: u64, o: &mut O) -> usize {
        match events {
            [Event { op: Op::Access(_), .. }, ..] if self.quiet => self.hits_from(events, first, o),
            _ => 0,
        }
    }

    fn hits_from<O: Observer>(&mut self, events: &[Event], first: u64, o: &mut O) -> usize {
        let mut done = 0;
        while let Some(Event { op: Op::Access(_), actor: Actor::Vcpu(id), .. }) = events.get(done)
            && let Some(untold) = o.indifferent(*id, self)
            && let Some(lane) = self.lane(*id)
        {
            let before = done;
            let other = self.hits_of(&lane, untold, events, first, &mut done, o);
            if done > before {
                let Event { time, actor, .. } = events[done - 1];
                self.at = At { event: first + done as u64 - 1, time, actor };
            }
            if !other {
                break;
            }
        }
        done
    }

    /// Those of one vCPU. Whether they end at an access of another one.
    fn hits_of<O: Observer>(
        &mut self,
        lane: &Lane,
        untold: Marks,
        events: &[Event],
        first: u64,
        done: &mut usize,
        o: &mut O,
    ) -> bool {
        while let Some(event) = events.get(*done) {
            let (Op::Access(access), Actor::Vcpu(id)) = (&event.op, event.actor) else {
                return false;
            };
            if id != lane.id {
                return true;
            }
            let tlb = &mut self.pcpus[lane.pcpu].tlb;
            match lane.meets(tlb, access) {
                Met::Hit(slot) if untold.has(tlb.entry(slot).mark, tlb.note(slot)) => {
                    tlb.touch(slot);
                }
                Met::Nothing => {
                    let Some(refs) = self.refill(lane, access) else {
                        self.missed = true;
                        return false;
                    };
                    let index = first + *done as u64;
                    o.refill(&At { event: index, time: event.time, actor: event.actor }, refs);
                }
                _ => return false,
            }
            *done += 1;
        }
        false
    }

    /// Caches a translation that had to make room as it was; gives the entries that the walk read.
    fn refill(&mut self, lane: &Lane, access: &Access) -> Option<u8> {
        let v = usize::from(lane.id.0);
        let tdp = self.config.mmu == MmuKind::Tdp && self.keeps_physical();
        let (tag, physical) = (self.vcpus[v].context.tag, tdp.then(|| self.physical_tag(v)));
        let under = Under {
            pcpu: lane.pcpu as u16,
            tag: &tag,
            physical: physical.as_ref(),
            permitted: &lane.permitted,
        };
        let tlb = &mut self.pcpus[lane.pcpu].tlb;
        let refs = self.refills.again(tlb, &under, access)?;
        tlb.select(&tag);
        Some(refs)
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
        if self.missed {
            return None;
        }
        let lane = self.lane(id)?;
        let tlb = &mut self.pcpus[lane.pcpu].tlb;
        let slot = match lane.meets(tlb, access) {
            Met::Hit(slot) => slot,
            Met::Obstacle => return None,
            Met::Nothing => {
                self.missed = true;
                return None;
            }
        };
        tlb.touch(slot);
        let Entry { copy, mark, size, global, pcid, .. } = *tlb.entry(slot);
        let note = tlb.note(slot);
        let offset = access.gva.0 & (size.bytes() - 1);
        let (outcome, hpa) = (Outcome::Gpa(Gpa(copy.gpa.0 + offset)), Hpa(copy.hpa.0 + offset));
        self.at = At { event: index, time: event.time, actor: event.actor };
        if !o.indifferent(id, self).is_some_and(|marks| marks.has(mark, note)) {
            let tag = Tag { pcid, ..self.vcpus[usize::from(id.0)].context.tag };
            let via = Via::Copy { mark, tag, global, copy, fresh: false };
            o.access(&self.at, &Accessed { access: *access, via, outcome, hpa }, self);
            if o.approves()
                && let Some(untold) = o.indifferent(id, self)
            {
                self.pcpus[lane.pcpu].tlb.set_note(slot, untold.note);
            }
        }
        Some(Step { outcome: Some(outcome), ..Step::default() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tlbscope_trace::act::Act;
    use tlbscope_trace::addr::{Gva, PageSize, Time};
    use tlbscope_trace::observe::World;
    use tlbscope_trace::op::{Perms, RegWrite};
    use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Vendor};

    use super::*;
    use crate::machine::config::MachineConfig;
    use crate::policy;

    /// Writes down every access and every act.
    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Observer for Heard {
        fn act<W: World>(&mut self, at: &At, act: &Act, _: &W) {
            self.0.push(format!("{at:?} {act:?}"));
        }

        fn access<W: World>(&mut self, at: &At, access: &Accessed, _: &W) {
            self.0.push(format!("{at:?} {access:?}"));
        }
    }

    /// Pages 0 to 7, of which 7 is the APIC's.
    fn page(n: u64) -> Gva {
        Gva(0x7000 + n * 0x1000)
    }

    fn op() -> impl Strategy<Value = Op> {
        let perms = any::<[bool; 4]>().prop_map(|[write, exec, user, global]| Perms {
            read: true,
            write,
            exec,
            user,
            global,
        });
        let map = (0..8u64, 0..4u64, perms).prop_map(|(n, frame, perms)| {
            let gpa = if n == 7 { 0xfee0_0000 } else { 0x5000 + frame * 0x1000 };
            let (size, root) = (PageSize::Size4K, None);
            Op::Map { gva: page(n), gpa: Gpa(gpa), size, perms, root }
        });
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Exec];
        let access = (0..8u64, prop::sample::select(kinds.to_vec()), any::<[bool; 2]>());
        let access = access.prop_map(|(n, kind, [user, ac])| {
            Op::Access(Access { gva: Gva(page(n).0 + 8), kind, user, ac })
        });
        let toggled = [Cr4::SMEP, Cr4::SMAP, Cr4::PGE].map(|bit| bit.bits());
        let write = |bits: u64, on: bool| RegWrite { clear: bits, set: if on { bits } else { 0 } };
        let cr4 = (prop::sample::select(toggled.to_vec()), any::<bool>());
        prop_oneof![
            8 => access,
            3 => map,
            1 => (0..8u64).prop_map(|n| Op::Invlpg(page(n))),
            1 => cr4.prop_map(move |(bits, on)| Op::Cr4(write(bits, on))),
            1 => any::<bool>().prop_map(move |on| Op::Cr0(write(Cr0::WP.bits(), on))),
            1 => any::<bool>().prop_map(move |on| Op::Efer(write(Efer::NXE.bits(), on))),
            1 => Just(Op::Exit(None)),
        ]
    }

    /// The machine: small sets, so that it matters which entry was used last.
    fn config() -> impl Strategy<Value = MachineConfig> {
        (any::<[bool; 4]>(), 1..3u16).prop_map(|([amd, shadow, real, apic], vcpus)| MachineConfig {
            vendor: if amd { Vendor::Amd } else { Vendor::Intel },
            mmu: if shadow { MmuKind::Shadow } else { MmuKind::Tdp },
            tlb: if real { "skylake-sp" } else { "unbounded" }.to_owned(),
            memory: 4 << 30,
            apic_page: apic && !amd && !shadow,
            vcpus,
            pcpus: 1,
            ..MachineConfig::default()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Through the short way and through the long one the same happens, and the same is told.
        #[test]
        fn the_short_way_comes_to_the_same(
            config in config(),
            ops in prop::collection::vec((op(), 0..2u16), 1..120),
        ) {
            let policy = policy::load("kvm-6.1-lts").unwrap();
            let machine = Machine::new(&config, &policy).unwrap();
            let (mut short, mut long) = (machine.clone(), machine);
            let (mut told, mut expected) = (Heard::default(), Heard::default());
            for (n, (op, vcpu)) in (0..).zip(ops) {
                let actor = Actor::Vcpu(VcpuId(vcpu % config.vcpus));
                let event = Event { time: Time(n), actor, op };
                long.quiet = false;
                let by_long = long.run(&event, n, &mut expected);
                prop_assert_eq!(short.run(&event, n, &mut told), by_long);
            }
            prop_assert_eq!(told.0, expected.0);
            prop_assert_eq!(short.digest(), long.digest());
        }
    }
}
