//! Orders of events: between the steps of a hypervisor action that another CPU can fall into, the
//! next events of other actors may run (DESIGN section 8).
//!
//! What the guest does keeps its order over all vCPUs, for guest software has synchronised it; what
//! the host does keeps its own. Between the two, and inside the windows that [`Point`] names, a
//! chooser decides. An action that is interrupted goes on when the other has finished: a window
//! inside a window nests. Outside such an exploration an event runs to its end, and a point costs
//! one test.

use std::collections::VecDeque;
use std::fmt;

use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Actor, Event, HostOp, Op};

use super::{BOOT, Machine, Refused, Step};

/// Where another actor may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Between two events.
    Between,
    /// A vCPU was loaded and has not looked at its requests.
    Loaded,
    /// The steal-time byte was read and is not yet cleared.
    StealByte,
    /// The vCPU leaves, and PREEMPTED is not yet published.
    PreemptStore,
    /// vcpu->mode says IN_GUEST_MODE; the last check of requests follows.
    Committed,
    /// A page fault has found its host page and not yet taken mmu_lock.
    FaultResolved,
    /// SPTEs are gone, TLBs are not flushed, mmu_lock is held.
    Zapped,
    /// mmu_lock was released; the rest of the host's operation follows.
    Unlocked,
}

impl Point {
    /// In words, after "while ...".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Between => "between events",
            Self::Loaded => "loaded, requests not yet looked at",
            Self::StealByte => "steal-time byte read, not yet cleared",
            Self::PreemptStore => "scheduled out, PREEMPTED not yet stored",
            Self::Committed => "in guest mode, before the last check of requests",
            Self::FaultResolved => "page fault resolved, mmu_lock not yet taken",
            Self::Zapped => "SPTEs zapped, TLBs not yet flushed",
            Self::Unlocked => "mmu_lock released, operation not yet over",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One decision of the chooser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where.
    pub point: Point,
    /// On which vCPU, if it is a vCPU's window.
    pub vcpu: Option<VcpuId>,
    /// In which event; [`BOOT`] between events.
    pub during: u64,
    /// How many ways there were.
    pub options: u32,
    /// Which was taken; 0 is what happens without a chooser.
    pub taken: u32,
    /// The event that runs then; `None`: what was under way goes on.
    pub event: Option<u64>,
}

/// Who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chooser {
    /// These answers in turn, then always 0.
    Script(Vec<u32>),
    /// A generator (SplitMix64) that answers 0 but once in 2^`rarely` times.
    Seeded {
        /// Its state.
        state: u64,
        /// How rarely it deviates.
        rarely: u8,
    },
}

impl Chooser {
    /// A generator whose rate follows from its seed, between every second time and every sixteenth: a
    /// race that needs two deviations close together, and one that needs a single one late, are both
    /// found.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        let mixed = (seed ^ seed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self::Seeded { state: seed, rarely: 1 + (mixed >> 62) as u8 }
    }

    fn choose(&mut self, turn: usize, options: u32) -> u32 {
        match self {
            Self::Script(answers) => answers.get(turn).copied().unwrap_or(0).min(options - 1),
            Self::Seeded { state, rarely } => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^= z >> 31;
                if z & ((1 << *rarely) - 1) != 0 || options < 2 {
                    return 0;
                }
                1 + ((z >> *rarely) % u64::from(options - 1)) as u32
            }
        }
    }
}

/// The events still to come.
#[derive(Clone, Debug)]
pub struct Schedule {
    guest: VecDeque<(u64, Event)>,
    host: VecDeque<(u64, Event)>,
    chooser: Chooser,
    choices: Vec<Choice>,
    steps: Vec<(u64, Step)>,
    /// vCPUs in the middle of something.
    suspended: Vec<usize>,
    host_suspended: u32,
    refused: Option<(u64, Refused)>,
}

/// One order, as it came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interleaved {
    /// Every decision for which there was more than one way.
    pub choices: Vec<Choice>,
    /// The results, in the order in which events finished.
    pub steps: Vec<(u64, Step)>,
    /// Events that could not start: the order is not one that can happen.
    pub stuck: bool,
    /// The event that could not be carried out, and why.
    pub refused: Option<(u64, Refused)>,
}

impl Machine {
    /// Runs all events in an order that `chooser` picks among the reachable ones; the index of an
    /// event is its place in `events`.
    pub fn run_interleaved<O: Observer>(
        &mut self,
        events: &[Event],
        chooser: Chooser,
        o: &mut O,
    ) -> Interleaved {
        self.boot(o);
        let numbered = (0u64..).zip(events.iter().cloned());
        let (host, guest) = numbered.partition(|(_, event)| event.actor == Actor::Host);
        self.schedule = Some(Box::new(Schedule {
            guest,
            host,
            chooser,
            choices: Vec::new(),
            steps: Vec::new(),
            suspended: Vec::new(),
            host_suspended: 0,
            refused: None,
        }));
        while let Some(host) = self.choose(Point::Between, None, BOOT) {
            self.start(host, o);
        }
        self.finish_waiting(o);
        let late = self.take_late();
        let Some(schedule) = self.schedule.take() else { unreachable!("it was set above") };
        let Schedule { guest, host, choices, mut steps, refused, .. } = *schedule;
        steps.extend(late);
        let stuck = refused.is_none() && !(guest.is_empty() && host.is_empty());
        Interleaved { choices, steps, stuck, refused }
    }

    /// What waits for a vCPU that nobody schedules in again runs at the end.
    fn finish_waiting<O: Observer>(&mut self, o: &mut O) {
        for v in 0..self.vcpus.len() {
            if self.backlog.holds(v) {
                self.schedule_in(v, o);
            }
        }
        self.drain(o);
    }

    /// Whether this vCPU is in the middle of something that another actor fell into.
    pub(crate) fn suspended(&self, v: usize) -> bool {
        self.schedule.as_ref().is_some_and(|s| s.suspended.contains(&v)) || self.waits_for_kick(v)
    }

    /// Another actor may go on here. True if one did.
    pub(crate) fn race<O: Observer>(&mut self, point: Point, v: Option<usize>, o: &mut O) -> bool {
        if self.schedule.is_none() || self.at.event == BOOT {
            return false;
        }
        let outer = (self.at, self.emulated);
        let added = self.suspend(v);
        let mut any = false;
        while let Some(host) = self.choose(point, v, outer.0.event) {
            any = true;
            self.start(host, o);
            (self.at, self.emulated) = outer;
        }
        self.resume(added);
        any
    }

    /// The actor of the present event and `v` are in the middle of something. What
    /// [`Self::resume`] has to undo.
    fn suspend(&mut self, v: Option<usize>) -> (usize, bool) {
        let Some(schedule) = &mut self.schedule else { return (0, false) };
        let before = schedule.suspended.len();
        let actor = match self.at.actor {
            Actor::Vcpu(id) => Some(usize::from(id.0)),
            Actor::Host => None,
        };
        schedule.suspended.extend(actor.into_iter().chain(v));
        // A vCPU that enters after a host operation does so by itself: the host goes on.
        let host = actor.is_none();
        schedule.host_suspended += u32::from(host);
        (schedule.suspended.len() - before, host)
    }

    fn resume(&mut self, (added, host): (usize, bool)) {
        if let Some(schedule) = &mut self.schedule {
            let left = schedule.suspended.len() - added;
            schedule.suspended.truncate(left);
            schedule.host_suspended -= u32::from(host);
        }
    }

    /// Asks which event starts now: `Some(true)` the host's next, `Some(false)` the guest's next,
    /// `None` neither.
    fn choose(&mut self, point: Point, v: Option<usize>, during: u64) -> Option<bool> {
        let (guest, host) = (self.guest_can_start(), self.host_can_start());
        let schedule = self.schedule.as_mut()?;
        if schedule.refused.is_some() {
            return None;
        }
        let first = |queue: &VecDeque<(u64, Event)>| queue.front().map(|(index, _)| *index);
        let mut ways: Vec<(Option<u64>, Option<bool>)> = Vec::with_capacity(3);
        if guest {
            ways.push((first(&schedule.guest), Some(false)));
        }
        if host {
            ways.push((first(&schedule.host), Some(true)));
        }
        ways.sort_unstable();
        if point != Point::Between {
            ways.insert(0, (None, None));
        }
        let options = ways.len() as u32;
        if options == 0 {
            return None;
        }
        let mut taken = 0;
        if options > 1 {
            taken = schedule.chooser.choose(schedule.choices.len(), options);
            let vcpu = v.map(|v| VcpuId(v as u16));
            let event = ways[taken as usize].0;
            schedule.choices.push(Choice { point, vcpu, during, options, taken, event });
        }
        ways[taken as usize].1
    }

    fn guest_can_start(&self) -> bool {
        let Some(schedule) = &self.schedule else { return false };
        let Some((_, event)) = schedule.guest.front() else { return false };
        let Actor::Vcpu(id) = event.actor else { return false };
        let v = usize::from(id.0);
        if schedule.suspended.contains(&v) {
            return false;
        }
        let Some(vcpu) = self.vcpus.get(v).filter(|vcpu| !vcpu.destroyed) else {
            // It may be created yet; if not, the refusal says that it does not exist.
            return schedule.host.is_empty();
        };
        if self.notifier.lock_held() {
            return vcpu.in_guest && matches!(event.op, Op::Access(_));
        }
        let moves = matches!(event.op, Op::In | Op::InFail | Op::Out);
        moves || vcpu.in_guest || !vcpu.held
    }

    fn host_can_start(&self) -> bool {
        let Some(schedule) = &self.schedule else { return false };
        let Some((index, event)) = schedule.host.front() else { return false };
        let free = schedule.host_suspended == 0 && !self.notifier.lock_held();
        let Op::Host(op) = &event.op else { return free };
        free && match **op {
            // What needs the vCPU's mutex waits for its KVM_RUN to return.
            HostOp::MsrEfer { vcpu, .. } => !schedule.suspended.contains(&usize::from(vcpu.0)),
            HostOp::VcpuDestroy { vcpu } => {
                let mine = |(at, e): &(u64, Event)| at < index && e.actor == Actor::Vcpu(vcpu);
                let v = usize::from(vcpu.0);
                !schedule.suspended.contains(&v)
                    && !self.backlog.holds(v)
                    && !schedule.guest.iter().any(mine)
            }
            _ => true,
        }
    }

    /// Starts the next event of the guest or of the host.
    fn start<O: Observer>(&mut self, host: bool, o: &mut O) {
        let Some(schedule) = &mut self.schedule else { return };
        let queue = if host { &mut schedule.host } else { &mut schedule.guest };
        let Some((index, event)) = queue.pop_front() else { return };
        self.emulated = false;
        let result = self.carry_out(&event, index, o);
        if result.is_ok() {
            self.settle(o);
            self.drain(o);
            self.worker_runs(index);
        }
        let late = self.take_late();
        let Some(schedule) = &mut self.schedule else { return };
        schedule.steps.extend(late);
        match result {
            Ok(step) if step.waits => {}
            Ok(step) => schedule.steps.push((index, step)),
            Err(refused) => schedule.refused = Some((index, refused)),
        }
    }
}
