//! The neighbourhood of a finding, cut out of its trace.

use tlbscope_sim::engine::Machine;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::addr::{Time, VcpuId};
use tlbscope_trace::feed::Feed;
use tlbscope_trace::native::Batch;
use tlbscope_trace::observe::Nobody;
use tlbscope_trace::op::Event;

use super::judge::Paging;
use super::{Around, Reach, ReproduceError, Subject};
use crate::finding::Finding;
use crate::replay::{Setup, StreamError};

/// Operations on either side of the cause that are kept at most.
const SIDE_MAX: u64 = 1 << 19;

/// An operation of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Its number in the trace.
    pub index: u64,
    /// Its line in the source, 0 where it has none.
    pub line: u32,
    /// It.
    pub event: Event,
}

/// Operations around a finding, and the machine before the first of them.
pub(super) struct Part {
    pub events: Vec<Told>,
    pub from_the_beginning: bool,
    base: Machine,
}

/// Which operations are looked at.
struct Wanted {
    before: Reach,
    after: Reach,
    cause: (u64, Time),
    last: (u64, Time),
}

impl Wanted {
    fn begins(&self, index: u64, event: &Event) -> bool {
        let (cause, time) = self.cause;
        let near = match self.before {
            Reach::Operations(n) => cause.saturating_sub(index) <= n,
            Reach::Time(ns) => time.0.saturating_sub(event.time.0) <= ns,
        };
        near && cause.saturating_sub(index) <= SIDE_MAX
    }

    fn ends(&self, index: u64, event: &Event) -> bool {
        let (last, time) = self.last;
        let near = match self.after {
            Reach::Operations(n) => index.saturating_sub(last) <= n,
            Reach::Time(ns) => event.time.0.saturating_sub(time.0) <= ns,
        };
        index > last && !(near && index.saturating_sub(last) <= SIDE_MAX)
    }

    /// Between a cause and a use that are far from one another only their surroundings are kept.
    fn between(&self, index: u64) -> bool {
        index.saturating_sub(self.cause.0) > SIDE_MAX
            && self.last.0.saturating_sub(index) > SIDE_MAX
    }
}

impl Part {
    /// Reads the trace from its beginning up to the last operation that is looked at.
    pub fn cut(
        feed: &mut Feed,
        setup: &Setup,
        policy: &Policy,
        subject: &Subject<'_>,
        around: Around,
    ) -> Result<Self, ReproduceError> {
        let Finding { cause, use_, .. } = *subject.finding;
        let at = |event: u64| subject.cited.get(&event).map(|(e, _)| (event, e.time));
        let cause = at(cause).ok_or(ReproduceError::Gone)?;
        let last = match use_ {
            Some(used) => at(used).ok_or(ReproduceError::Gone)?.max(cause),
            None => cause,
        };
        let wanted = Wanted { before: around.before, after: around.after, cause, last };
        let replay = |error: crate::replay::ReplayError| ReproduceError::Stream(error.into());
        let base = setup.machine(policy).map_err(replay)?;
        let mut part = Self { events: Vec::new(), from_the_beginning: false, base };
        let mut batch = Batch::default();
        let native = |error| ReproduceError::Stream(StreamError::Native(error));
        while feed.next_batch(&mut batch).map_err(native)? {
            for (index, (event, line)) in (batch.first..).zip(batch.events.iter().zip(&batch.lines))
            {
                if wanted.ends(index, event) {
                    return Ok(part);
                }
                if part.events.is_empty() && !wanted.begins(index, event) {
                    let done = part.base.run(event, index, &mut Nobody);
                    part.base.take_late();
                    match done {
                        Err(refused) if !batch.after_loss => {
                            return Err(replay(setup.refused(policy, index, *line, refused)));
                        }
                        _ => {}
                    }
                } else if !wanted.between(index) {
                    part.from_the_beginning |= index == 0;
                    part.events.push(Told { index, line: *line, event: event.clone() });
                }
            }
        }
        Ok(part)
    }

    /// The machine before the operation at this position. Operations that it refuses are left
    /// out, as in the run that found the finding.
    pub fn machine_at(&self, position: usize) -> Machine {
        let mut machine = self.base.clone();
        for told in self.events.iter().take(position) {
            let _ = machine.run(&told.event, told.index, &mut Nobody);
            machine.take_late();
        }
        machine
    }

    /// How a vCPU translates before each of these operations; `None`: it is not known.
    pub fn paging(
        &self,
        vcpu: VcpuId,
        events: [Option<u64>; 2],
        vcpus: u16,
    ) -> [Option<Paging>; 2] {
        let positions = events.map(|event| event.and_then(|event| self.position(event)));
        let mut machine = self.base.clone();
        let mut paging = [None; 2];
        for (at, told) in self.events.iter().enumerate() {
            for (wanted, paging) in positions.iter().zip(&mut paging) {
                if *wanted == Some(at) && vcpu.0 < vcpus {
                    *paging = Some(Paging::of(&machine, vcpu));
                }
            }
            let _ = machine.run(&told.event, told.index, &mut Nobody);
            machine.take_late();
        }
        paging
    }

    /// Where the operation of this number stands.
    pub fn position(&self, event: u64) -> Option<usize> {
        self.events.binary_search_by_key(&event, |told| told.index).ok()
    }

    /// Where a list may end: right behind the finding's last event, or later, as what was not used
    /// is found at a later entry.
    pub fn ends(&self, finding: &Finding) -> Vec<usize> {
        const SOON: usize = 100;
        let last = finding.use_.map_or(finding.cause, |used| used.max(finding.cause));
        let near = self.position(last).map_or(0, |at| at + 1);
        let mut ends = vec![near, (near + SOON).min(self.events.len()), self.events.len()];
        ends.dedup();
        ends
    }
}
