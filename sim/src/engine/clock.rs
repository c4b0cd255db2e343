//! The time that a kick takes. Between the instant at which an IPI is sent and the one at which its
//! target leaves the guest, whatever other actors have due by the clock goes first: the target runs on,
//! and the sender, which waits, goes on when the kick is delivered (`ipi-latency`; facts/kvm.md 5.1 to
//! 5.3: every request that interrupts is one that waits).
//!
//! Only events whose time is given can fall into such a window. One without a time follows the line
//! before it, whatever that takes.

use std::collections::VecDeque;

use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Actor, Event, Op};

use super::{BOOT, Machine, Step};

/// An event still to come.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Ahead {
    index: u64,
    event: Event,
    timed: bool,
}

/// What is known of the events to come.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Clock {
    ahead: VecDeque<Ahead>,
    /// Actors in the middle of something.
    busy: Vec<Actor>,
    /// Events that fell into a window and were carried out there.
    done: Vec<u64>,
}

impl Machine {
    /// Tells the machine of the events to come, in their order, and which of them have a time of their
    /// own. Their index is their place. Without latency nothing can fall between, and nothing is kept.
    pub fn foresee(&mut self, events: impl IntoIterator<Item = (Event, bool)>) {
        if self.config.ipi_latency == 0 {
            return;
        }
        let ahead = (0u64..).zip(events);
        let ahead = ahead.map(|(index, (event, timed))| Ahead { index, event, timed }).collect();
        self.clock = Some(Box::new(Clock { ahead, ..Clock::default() }));
        self.quiet = false;
    }

    /// Whether an event was carried out already, while a kick was on its way.
    #[must_use]
    pub fn carried_out_early(&self, index: u64) -> bool {
        self.clock.as_ref().is_some_and(|clock| clock.done.contains(&index))
    }

    /// An event begins: it is no longer to come.
    pub(super) fn clock_reaches(&mut self, index: u64) {
        if let Some(clock) = &mut self.clock {
            clock.ahead.retain(|ahead| ahead.index > index);
        }
    }

    /// Whether kicks take time.
    pub(crate) fn kicks_take_time(&self) -> bool {
        self.clock.is_some() && self.at.event != BOOT
    }

    /// Whether a vCPU is in the middle of something that waits for a kick.
    pub(super) fn waits_for_kick(&self, v: usize) -> bool {
        let is = |actor: &Actor| matches!(actor, Actor::Vcpu(id) if usize::from(id.0) == v);
        self.clock.as_ref().is_some_and(|clock| clock.busy.iter().any(is))
    }

    /// Kicks are on their way: the events that are due before they arrive.
    pub(crate) fn in_flight<O: Observer>(&mut self, o: &mut O) {
        let outer = (self.at, self.emulated);
        let due = self.at.time.0.saturating_add(self.config.ipi_latency);
        let Some(clock) = &mut self.clock else { return };
        clock.busy.push(outer.0.actor);
        while let Some(Ahead { index, event, .. }) = self.next_due(due) {
            self.emulated = false;
            match self.carry_out(&event, index, o) {
                Ok(step) => {
                    self.settle(o);
                    self.drain(o);
                    if !step.waits {
                        self.backlog.came_late(index, step);
                    }
                }
                Err(refused) => {
                    let step = Step { fault: Some(refused.op), ..Step::default() };
                    self.backlog.came_late(index, step);
                }
            }
            (self.at, self.emulated) = outer;
        }
        if let Some(clock) = &mut self.clock {
            clock.busy.pop();
        }
        // What the operation does from here on, another kick perhaps, it does then.
        self.at.time.0 = due;
    }

    /// Takes the first event that is due before `due` and can start now; each actor keeps its order.
    fn next_due(&mut self, due: u64) -> Option<Ahead> {
        let clock = self.clock.as_ref()?;
        let mut passed: Vec<Actor> = Vec::new();
        let mut found = None;
        for (place, ahead) in clock.ahead.iter().enumerate() {
            if ahead.event.time.0 >= due {
                break;
            }
            let actor = ahead.event.actor;
            if !passed.contains(&actor) {
                if ahead.timed && self.can_start(&ahead.event) {
                    found = Some(place);
                    break;
                }
                passed.push(actor);
            }
        }
        let clock = self.clock.as_mut()?;
        let ahead = clock.ahead.remove(found?)?;
        clock.done.push(ahead.index);
        Some(ahead)
    }

    fn can_start(&self, event: &Event) -> bool {
        let busy = |actor| self.clock.as_ref().is_some_and(|clock| clock.busy.contains(&actor));
        if busy(event.actor) {
            return false;
        }
        let locked = self.notifier.lock_held();
        match event.actor {
            Actor::Host => !locked,
            Actor::Vcpu(id) => self.vcpus.get(usize::from(id.0)).is_some_and(|vcpu| {
                let runs = vcpu.in_guest && matches!(event.op, Op::Access(_));
                !vcpu.destroyed && (!locked || runs)
            }),
        }
    }
}
