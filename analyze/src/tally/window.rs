//! What one operation caused, up to the end of the next successful entry of its vCPU.

use tlbscope_trace::act::{Act, At};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::Actor;

use super::key::{Counts, Key};

/// Where a window stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum State {
    /// The operation has caused no exit yet.
    Waiting,
    /// Counting for the operation of a vCPU.
    Open,
    /// The vCPU has entered; only what the hardware invalidates with that entry still counts.
    Entered,
    /// Counting for a host operation while its event runs; `true`: that vCPU has not re-entered.
    Host,
    /// The host operation is over; these vCPUs are still outside the guest.
    Trailing(Vec<VcpuId>),
    /// Complete.
    Ended,
}

/// A window of one event.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Window {
    event: u64,
    actor: Actor,
    state: State,
    #[serde(with = "crate::state::counts")]
    counts: Counts,
}

impl Window {
    pub(super) fn new(event: u64, actor: Actor) -> Self {
        let state = match actor {
            Actor::Vcpu(_) => State::Waiting,
            Actor::Host => State::Host,
        };
        Self { event, actor, state, counts: Counts::default() }
    }

    pub(super) const fn event(&self) -> u64 {
        self.event
    }

    pub(super) const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Moves on before `act` is counted. `in_guest` holds an exit that is this very act.
    pub(super) fn before(&mut self, at: &At, act: &Act, in_guest: &[bool]) {
        match &self.state {
            State::Waiting if at.event > self.event => self.state = State::Ended,
            State::Waiting if at.actor == self.actor => {
                let Actor::Vcpu(v) = self.actor else { return };
                if !in_guest.get(usize::from(v.0)).copied().unwrap_or(true) {
                    self.state = State::Open;
                }
            }
            // SVM invalidates as part of a successful VMRUN; the machine may report the entry
            // first and the invalidation just after it.
            State::Entered if at.event > self.event || !matches!(act, Act::Inv(_)) => {
                self.state = State::Ended;
            }
            State::Host if at.event > self.event => {
                // Whoever exits in this very act was in the guest when the operation ended.
                let leaving = matches!(act, Act::Exit(_)).then_some(at.actor);
                let outside = (0..in_guest.len())
                    .filter(|&v| !in_guest[v])
                    .filter_map(|v| u16::try_from(v).ok().map(VcpuId))
                    .filter(|&v| leaving != Some(Actor::Vcpu(v)))
                    .collect();
                self.state = State::Trailing(outside);
            }
            _ => {}
        }
    }

    /// Counts, if this act belongs here.
    pub(super) fn add(&mut self, at: &At, key: Key, n: u64) {
        let mine = match &self.state {
            // Another vCPU's acts in this event are caused by the operation; in a later event
            // (the vCPU was held outside) only its own are.
            State::Open => at.event == self.event || at.actor == self.actor,
            State::Entered | State::Host => true,
            State::Trailing(vcpus) => match at.actor {
                Actor::Vcpu(v) => vcpus.contains(&v),
                Actor::Host => false,
            },
            State::Waiting | State::Ended => false,
        };
        if mine {
            self.counts.add(key, n);
        }
    }

    /// This vCPU has entered the guest.
    pub(super) fn entered(&mut self, vcpu: VcpuId) {
        match &mut self.state {
            State::Open if self.actor == Actor::Vcpu(vcpu) => self.state = State::Entered,
            State::Trailing(vcpus) => {
                vcpus.retain(|v| *v != vcpu);
                if vcpus.is_empty() {
                    self.state = State::Ended;
                }
            }
            _ => {}
        }
    }

    /// Whether nothing can be added any more once `event` has begun.
    pub(super) fn ended(&self, event: u64) -> bool {
        match &self.state {
            State::Ended => true,
            State::Waiting => event > self.event,
            State::Trailing(vcpus) => vcpus.is_empty(),
            State::Open | State::Entered | State::Host => false,
        }
    }
}
