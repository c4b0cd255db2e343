//! Runs a trace once more under the policies that it was judged under, and watches.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use tlbscope_sim::engine::{BOOT, Machine};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::act::{Accessed, Act, ArchOp, At, Fill, GuestInv, Instead, Inv, Mark, Tag};
use tlbscope_trace::addr::Gpa;
use tlbscope_trace::feed::Feed;
use tlbscope_trace::native::Batch;
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::Regs;
use tlbscope_trace::text;

use super::effect::{Kind, Lane};
use super::keep::{Keeper, Timeline};
use super::{Span, words};
use crate::explain::{Chain, Witness};
use crate::finding::{self, Finding, Findings};
use crate::oracle::Oracle;
use crate::replay::{Replay, ReplayError, Setup, StreamError};

/// Events after which a run is watched no more.
const EVENTS_MAX: u64 = 1 << 26;
/// Flushes that are remembered, so that a refill can be charged to the operation behind its flush.
const KILLERS_MAX: usize = 1 << 18;

/// What a report has to tell of a run.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The kept findings, sorted as [`Findings::sorted`] has them.
    pub findings: Vec<Finding>,
    /// Their chains of cause.
    pub chains: Vec<Chain>,
    /// From where to where each reaches.
    pub spans: Vec<Span>,
    /// The events that they name, with their lines in the source.
    pub events: BTreeMap<u64, (Event, u32)>,
    /// The effects.
    pub timeline: Timeline,
    /// Refills of translations that a flush had dropped, by the operation that the flush was for.
    pub refills: BTreeMap<String, u64>,
}

/// What there is to tell of runs that [`crate::replay::stream`] made of the same trace under the
/// same policies, each with at most `budget` effects. `feed` begins again.
///
/// # Errors
///
/// Those of the runs, which would have met them before.
pub fn gather(
    feed: &mut Feed,
    setup: &Setup,
    policies: &[Policy],
    runs: &[Replay],
    budget: usize,
) -> Result<Vec<Told>, StreamError> {
    let sorted: Vec<Vec<Finding>> = runs.iter().map(|run| run.findings.sorted()).collect();
    let watchers: Result<Vec<_>, ReplayError> = policies
        .iter()
        .zip(runs.iter().zip(&sorted))
        .map(|(policy, (run, sorted))| Watched::new(setup, policy, run, sorted, budget))
        .collect();
    let mut watchers = watchers?;
    let mut batch = Batch::default();
    while feed.next_batch(&mut batch)? {
        if batch.first > EVENTS_MAX {
            watchers.iter_mut().for_each(|one| one.gather.keeper.cut());
            break;
        }
        let work = |one: &mut Watched<'_>| one.batch(&batch);
        watchers
            .par_iter_mut()
            .with_max_len(1)
            .map(work)
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<(), _>>()?;
    }
    let told = watchers.into_iter().zip(sorted.iter());
    Ok(told.map(|(one, findings)| one.gather.told(findings.clone())).collect())
}

/// One run that is watched.
struct Watched<'a> {
    setup: &'a Setup,
    policy: &'a Policy,
    machine: Machine,
    gather: Gather<'a>,
}

impl<'a> Watched<'a> {
    fn new(
        setup: &'a Setup,
        policy: &'a Policy,
        run: &Replay,
        sorted: &'a [Finding],
        budget: usize,
    ) -> Result<Self, ReplayError> {
        let machine = setup.machine(policy)?;
        let gather = Gather::new(setup.machine.vcpus, &run.findings, sorted, budget);
        Ok(Self { setup, policy, machine, gather })
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), ReplayError> {
        for (index, (event, line)) in (batch.first..).zip(batch.events.iter().zip(&batch.lines)) {
            self.gather.event(index, event, *line);
            match self.machine.run(event, index, &mut self.gather) {
                Err(refused) if !batch.after_loss => {
                    return Err(self.setup.refused(self.policy, index, *line, refused));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Watches a run whose findings are known. The judge judges again, and so tells when each of them
/// is seen, not only the first time.
struct Gather<'a> {
    oracle: Oracle,
    witness: Witness<'a>,
    keeper: Keeper,
    /// The place in the sorted list of each finding that the judge keeps.
    places: Vec<u32>,
    sorted: &'a [Finding],
    spans: Vec<Span>,
    /// Findings by the event of their cause.
    causes: BTreeMap<u64, Vec<u32>>,
    named: BTreeSet<u64>,
    events: BTreeMap<u64, (Event, u32)>,
    /// Exposures whose vCPU has not been flushed since.
    exposed: Vec<u32>,
    /// Of [`Findings::touched`].
    touched: u64,
    refills: Refills,
}

impl<'a> Gather<'a> {
    fn new(vcpus: u16, judged: &Findings, sorted: &'a [Finding], budget: usize) -> Self {
        let named = judged.cited();
        let mut causes: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (n, finding) in sorted.iter().enumerate() {
            causes.entry(finding.cause).or_default().push(n as u32);
        }
        Self {
            oracle: Oracle::with_max_findings(vcpus, judged.max()),
            witness: Witness::new(sorted),
            keeper: Keeper::new(budget, &named),
            places: places(judged.kept()),
            sorted,
            spans: vec![Span::default(); sorted.len()],
            causes,
            named,
            events: BTreeMap::new(),
            exposed: Vec::new(),
            touched: 0,
            refills: Refills::default(),
        }
    }

    /// An event is about to be carried out.
    fn event(&mut self, index: u64, event: &Event, line: u32) {
        let time = event.time.0;
        self.keeper.event(index, time);
        self.refills.event(index, event);
        let kind = Kind::of_op(&event.op);
        let cause = self.causes.get(&index);
        for n in cause.into_iter().flatten() {
            self.spans[*n as usize] =
                Span { from: index, from_time: time, to: index, to_time: time };
        }
        if self.named.contains(&index) {
            self.events.insert(index, (event.clone(), line));
        }
        // Register writes and invalidations are told where they take effect.
        if kind == Kind::Host || cause.is_some() && kind == Kind::Operation {
            let what = || text::write_op(&event.op);
            self.keeper.push((index, time), event.actor.into(), kind, None, what);
        }
    }

    fn push(&mut self, at: &At, kind: Kind, what: impl FnOnce() -> String) {
        let event = if at.event == BOOT { 0 } else { at.event };
        self.keeper.push((event, at.time.0), at.actor.into(), kind, None, what);
    }

    /// Tells of a finding that the judge has just seen.
    fn verdict(&mut self, at: &At, address: Option<u64>) {
        let (times, last) = self.oracle.findings().touched();
        if std::mem::replace(&mut self.touched, times) == times {
            return;
        }
        let Some(place) = last.and_then(|slot| self.places.get(slot)) else { return };
        let place = *place;
        let (Some(finding), Some(span)) =
            (self.sorted.get(place as usize), self.spans.get_mut(place as usize))
        else {
            return;
        };
        let event = if at.event == BOOT { 0 } else { at.event };
        (span.to, span.to_time) = (event, at.time.0);
        if finding.kind == finding::Kind::Exposed {
            self.exposed.push(place);
        }
        let excess = matches!(finding.kind, finding::Kind::Excessive(_));
        let kind = if excess { Kind::Excess } else { Kind::Stale };
        let what = || match address {
            Some(address) if !excess => format!("{address:#x} through {}", finding.mechanism),
            _ => words::verdict(finding),
        };
        let lane = Lane::Vcpu(finding.vcpu);
        self.keeper.push((event, at.time.0), lane, kind, Some(place), what);
    }

    /// A flush of a vCPU ends its exposures, as far as a timeline can tell.
    fn flushed(&mut self, at: &At) {
        let (sorted, spans) = (self.sorted, &mut self.spans);
        self.exposed.retain(|place| {
            let n = *place as usize;
            let open = Lane::Vcpu(sorted[n].vcpu) != at.actor.into();
            if !open {
                (spans[n].to, spans[n].to_time) = (at.event, at.time.0);
            }
            open
        });
    }

    fn told(self, findings: Vec<Finding>) -> Told {
        let timeline = self.keeper.finish();
        let mut spans = self.spans;
        for place in self.exposed {
            let span = &mut spans[place as usize];
            (span.to, span.to_time) = (timeline.last_event, timeline.last_time);
        }
        for (span, finding) in spans.iter_mut().zip(&findings) {
            // What is still cached at the end is stale up to there.
            if finding.kind == finding::Kind::Latent {
                (span.to, span.to_time) = (timeline.last_event, timeline.last_time);
            }
        }
        Told {
            findings,
            chains: self.witness.chains(),
            spans,
            events: self.events,
            timeline,
            refills: self.refills.by_operation,
        }
    }
}

/// Whether an invalidation covers more than a page.
const fn is_wide(inv: &Inv) -> bool {
    !matches!(
        inv,
        Inv::VpidAddress { .. }
            | Inv::Invlpga { .. }
            | Inv::Guest(
                GuestInv::Address { .. }
                    | GuestInv::AddressNonglobal { .. }
                    | GuestInv::AddressPath { .. }
                    | GuestInv::Fault { .. }
            )
    )
}

/// The place in the sorted list of each finding in the order in which they were found.
fn places(kept: &[Finding]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..kept.len() as u32).collect();
    order.sort_by_key(|n| &kept[*n as usize]);
    let mut places = vec![0; kept.len()];
    for (place, n) in order.iter().enumerate() {
        places[*n as usize] = place as u32;
    }
    places
}

/// Charges refills to the operation whose flush dropped the same translation before.
#[derive(Default)]
struct Refills {
    by_operation: BTreeMap<String, u64>,
    /// The event under way and its operation's name, made when it is wanted.
    now: (u64, Option<Event>),
    /// Names of the operations whose flushes dropped something, and the latest such events.
    names: Vec<String>,
    killers: BTreeMap<u64, u16>,
}

impl Refills {
    fn event(&mut self, index: u64, event: &Event) {
        self.now = (index, Some(event.clone()));
    }

    fn dropped(&mut self, at: &At) {
        let (index, Some(event)) = &self.now else { return };
        if at.event != *index || self.killers.contains_key(index) {
            return;
        }
        let text = text::write_op(&event.op);
        let name = text.split(' ').next().unwrap_or_default();
        let at = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        if self.killers.len() == KILLERS_MAX {
            self.killers.pop_first();
        }
        // Operations have a few dozen names.
        self.killers.insert(*index, at as u16);
    }

    fn refilled(&mut self, flush: u64) {
        let name = self.killers.get(&flush).and_then(|n| self.names.get(usize::from(*n)));
        let name = name.map_or("an earlier flush", String::as_str);
        match self.by_operation.get_mut(name) {
            Some(number) => *number += 1,
            None => drop(self.by_operation.insert(name.to_owned(), 1)),
        }
    }
}

impl Observer for Gather<'_> {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        self.oracle.arch(at, op, before, native, world);
        self.witness.arch(at, op, before, native, world);
        if let Some(kind) = Kind::of_arch(op) {
            self.push(at, kind, || words::arch(op, native));
        }
        self.verdict(at, None);
    }

    fn store<W: World>(&mut self, at: &At, gpa: Gpa, bytes: u8, old: u64, new: u64, world: &W) {
        self.oracle.store(at, gpa, bytes, old, new, world);
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, world: &W) {
        self.oracle.act(at, act, world);
        self.witness.act(at, act, world);
        match act {
            Act::Refill { ghost: Some(flush), .. } => self.refills.refilled(*flush),
            Act::Inv(inv) if !self.exposed.is_empty() && is_wide(inv) => self.flushed(at),
            _ => {}
        }
        if let Some(kind) = Kind::of_act(act) {
            self.push(at, kind, || words::act(act));
        }
        self.verdict(at, None);
    }

    fn dropped(&mut self, at: &At, tag: &Tag, global: bool, entries: u32) {
        self.oracle.dropped(at, tag, global, entries);
        if entries > 0 {
            self.refills.dropped(at);
        }
        self.verdict(at, None);
    }

    fn walk_begin(&mut self, at: &At) {
        self.oracle.walk_begin(at);
    }

    fn walk_uses(&mut self, at: &At, mark: Mark, instead: Instead, tag: &Tag) {
        self.oracle.walk_uses(at, mark, instead, tag);
    }

    fn fill<W: World>(&mut self, at: &At, fill: &Fill, world: &W) -> Mark {
        self.witness.fill(at, fill, world);
        self.oracle.fill(at, fill, world)
    }

    fn access<W: World>(&mut self, at: &At, access: &Accessed, world: &W) {
        self.oracle.access(at, access, world);
        self.witness.access(at, access, world);
        self.verdict(at, Some(access.access.gva.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Kind as Verdict;

    #[test]
    fn findings_are_found_again_at_their_places() {
        let finding = |cause, vcpu| Finding {
            cause,
            vcpu,
            kind: Verdict::Exposed,
            rule: "r",
            op: "cr3",
            mechanism: "tlb",
            use_: None,
            address: None,
            count: 1,
        };
        // Found in this order; sorted by cause, then vCPU: (3, 0), (5, 0), (5, 1), (9, 0).
        let kept = [finding(9, 0), finding(5, 1), finding(3, 0), finding(5, 0)];
        assert_eq!(places(&kept), [3, 2, 0, 1]);
    }
}
