//! The timeline of a run as a Perfetto trace, for ui.perfetto.dev and `trace_processor`.
//!
//! The VM is a process and its vCPUs are threads. On a vCPU's track are the writes of control
//! registers, requests, flushes and stale uses; below it, in lanes, the lifetimes of its roots and
//! its stale windows; its cycles lost (what exits, flushes, refills and the upkeep of roots have cost
//! so far) and the occupancy of each TLB are counters. A flow leads from the operation that required
//! a flush to the first use of what it left.
//!
//! A stale window begins with that operation. It ends with the first invalidation of a whole context
//! of the vCPU after the finding's last event, or with the trace: when a copy that nobody used again
//! went away is not known to anyone.
//!
//! The findings come from an earlier run, since their causes are written before their uses are met;
//! nothing else is kept, so that memory does not grow with the trace. The same run gives the same
//! bytes.

pub mod proto;
mod tracks;

use std::collections::BTreeMap;
use std::io::{self, Write};

use thiserror::Error;
use tlbscope_sim::engine::{BOOT, Machine};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::act::{Act, At, Inv};
use tlbscope_trace::addr::{Hpa, PcpuId, VcpuId};
use tlbscope_trace::feed::Feed;
use tlbscope_trace::native::{Batch, NativeError};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{Actor, Event, Op};
use tlbscope_trace::text;

use crate::explain::words;
use crate::finding::{Finding, Kind};
use crate::replay::{ReplayError, Setup};
use crate::tally::Tally;
use tracks::{Lanes, Mark, Note, Packets, Track};

/// Events between two samples of the counters where nothing is flushed.
const SAMPLE: u64 = 64;

/// Why a timeline could not be written.
#[derive(Debug, Error)]
pub enum TimelineError {
    /// The run could not be finished.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The trace cannot be read.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// It cannot be written.
    #[error("cannot write the timeline")]
    Io(#[source] io::Error),
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Events that were carried out.
    pub events: u64,
    /// Roots and stale windows for which there was no lane.
    pub without_lane: u64,
}

/// Runs `feed`, which begins again, under `policy` and writes its timeline. `findings` are those
/// that the same run has shown before. `progress` is told of events done, now and then.
///
/// # Errors
///
/// The run cannot be finished, or the timeline cannot be written.
pub fn write(
    feed: &mut Feed,
    setup: &Setup,
    policy: &Policy,
    findings: &[Finding],
    out: impl Write,
    progress: impl Fn(u64),
) -> Result<Written, TimelineError> {
    let mut machine = setup.machine(policy)?;
    let vcpus = setup.machine.vcpus;
    let name = format!("{} under {}", setup.trace, policy.name);
    let timeline = Timeline::new(Packets::new(out, name), vcpus, findings);
    let mut watching = (timeline, Tally::new(usize::from(vcpus)));
    let mut written = Written::default();
    let mut batch = Batch::default();
    while feed.next_batch(&mut batch)? {
        for (index, (event, line)) in (batch.first..).zip(batch.events.iter().zip(&batch.lines)) {
            watching.0.before(index, *line, event);
            match machine.run(event, index, &mut watching) {
                Ok(_) => written.events += 1,
                Err(_) if batch.after_loss => {}
                Err(refused) => return Err(setup.refused(policy, index, *line, refused).into()),
            }
            if watching.0.flushed || index % SAMPLE == 0 {
                sample(&mut watching, &machine, setup);
            }
        }
        progress(batch.events.len() as u64);
        watching.0.packets.failed().map_err(TimelineError::Io)?;
    }
    sample(&mut watching, &machine, setup);
    let (mut timeline, _) = watching;
    timeline.finish();
    timeline.packets.failed().map_err(TimelineError::Io)?;
    written.without_lane = timeline.without_lane;
    Ok(written)
}

/// The counters, where they have changed.
fn sample<W: Write>(watching: &mut (Timeline<'_, W>, Tally), machine: &Machine, setup: &Setup) {
    let (timeline, tally) = watching;
    timeline.flushed = false;
    for pcpu in 0..setup.machine.pcpus {
        timeline.counter(Track::Occupancy(pcpu), machine.occupancy(PcpuId(pcpu)));
    }
    for v in 0..setup.machine.vcpus {
        let Some(counts) = tally.of(Actor::Vcpu(VcpuId(v))) else { continue };
        let cost = setup.processor.cost.total(counts.iter().map(|(key, n)| (key.name(), n)));
        timeline.counter(Track::Cycles(v), cost.cycles);
    }
}

/// Writes the timeline of a run that it watches.
struct Timeline<'a, W: Write> {
    packets: Packets<W>,
    findings: &'a [Finding],
    causes: BTreeMap<u64, Vec<usize>>,
    uses: BTreeMap<u64, Vec<usize>>,
    now: u64,
    roots: Vec<Lanes<Hpa>>,
    /// By vCPU, findings by their place.
    stale: Vec<Lanes<usize>>,
    counters: BTreeMap<Track, u64>,
    flushed: bool,
    without_lane: u64,
}

impl<'a, W: Write> Timeline<'a, W> {
    fn new(mut packets: Packets<W>, vcpus: u16, findings: &'a [Finding]) -> Self {
        for v in 0..vcpus {
            packets.declare(Track::Vcpu(v));
        }
        let (mut causes, mut uses) = (BTreeMap::new(), BTreeMap::new());
        for (n, finding) in findings.iter().enumerate() {
            causes.entry(finding.cause).or_insert_with(Vec::new).push(n);
            if let Some(used) = finding.use_ {
                uses.entry(used).or_insert_with(Vec::new).push(n);
            }
        }
        let mut timeline = Self {
            packets,
            findings,
            causes,
            uses,
            now: 0,
            roots: vec![Lanes::default(); usize::from(vcpus)],
            stale: vec![Lanes::default(); usize::from(vcpus)],
            counters: BTreeMap::new(),
            flushed: false,
            without_lane: 0,
        };
        timeline.windows_of(BOOT);
        timeline
    }

    /// The event itself, as far as it is shown.
    fn before(&mut self, index: u64, line: u32, event: &Event) {
        self.now = self.now.max(event.time.0);
        let caused = self.causes.get(&index).cloned().unwrap_or_default();
        let used = self.uses.get(&index).cloned().unwrap_or_default();
        if shown(&event.op) || !caused.is_empty() {
            let mut mark = self.mark("operation", text::write_op(&event.op), index, line, &caused);
            mark.flows = self.flows(&caused);
            self.packets.instant(self.now, track(event.actor), mark);
        }
        self.windows_of(index);
        if !used.is_empty() {
            let name = format!("stale use: {}", text::write_op(&event.op));
            let mut mark = self.mark("stale", name, index, line, &used);
            mark.ends = self.flows(&used);
            self.packets.instant(self.now, track(event.actor), mark);
        }
    }

    fn mark(
        &self,
        category: &'static str,
        name: String,
        index: u64,
        line: u32,
        of: &[usize],
    ) -> Mark {
        let mut notes = vec![("event", Note::Number(index))];
        if line > 0 {
            notes.push(("line", Note::Number(line.into())));
        }
        for n in of {
            let Finding { kind, rule, mechanism, .. } = &self.findings[*n];
            let text = format!("{}: {} [{rule}], {mechanism}", n + 1, words_of(*kind));
            notes.push(("finding", Note::Text(text)));
        }
        Mark { category, name, notes, ..Mark::default() }
    }

    /// Arrows of findings from cause to use, each by its finding's number.
    fn flows(&self, of: &[usize]) -> Vec<u64> {
        of.iter().filter(|n| self.findings[**n].use_.is_some()).map(|n| *n as u64 + 1).collect()
    }

    /// Opens the stale windows that this event begins.
    fn windows_of(&mut self, event: u64) {
        for n in self.causes.get(&event).cloned().unwrap_or_default() {
            let finding = &self.findings[n];
            if matches!(finding.kind, Kind::Excessive(_)) {
                continue;
            }
            let Some(lanes) = self.stale.get_mut(usize::from(finding.vcpu)) else { continue };
            let Some(lane) = lanes.open(n) else {
                self.without_lane += 1;
                continue;
            };
            let track = Track::Stale(finding.vcpu, lane);
            let name = format!("{} [{}]", words_of(finding.kind), finding.rule);
            let notes = vec![("finding", Note::Number(n as u64 + 1))];
            self.packets.begin(
                self.now,
                track,
                Mark { category: "stale", name, notes, ..Mark::default() },
            );
        }
    }

    /// Closes the windows of a vCPU whose finding's last event lies before this one.
    fn whole_context_dropped(&mut self, vcpu: VcpuId, event: u64) {
        let findings = self.findings;
        let over = |n: &usize| {
            let Finding { cause, use_, .. } = findings[*n];
            let cause = if cause == BOOT { 0 } else { cause };
            cause.max(use_.unwrap_or(0)) < event
        };
        let Some(lanes) = self.stale.get_mut(usize::from(vcpu.0)) else { return };
        for lane in lanes.close(over) {
            self.packets.end(self.now, Track::Stale(vcpu.0, lane));
        }
    }

    fn root_installed(&mut self, vcpu: VcpuId, root: Hpa) {
        let Some(lanes) = self.roots.get_mut(usize::from(vcpu.0)) else { return };
        let Some(lane) = lanes.open(root) else { return };
        let name = format!("root {:#x}", root.0);
        let mark = Mark { category: "root", name, ..Mark::default() };
        self.packets.begin(self.now, Track::Roots(vcpu.0, lane), mark);
    }

    fn root_freed(&mut self, vcpu: VcpuId, root: Hpa) {
        let Some(lanes) = self.roots.get_mut(usize::from(vcpu.0)) else { return };
        for lane in lanes.close(|open| *open == root) {
            self.packets.end(self.now, Track::Roots(vcpu.0, lane));
        }
    }

    fn counter(&mut self, track: Track, value: u64) {
        if self.counters.insert(track, value) != Some(value) {
            self.packets.counter(self.now, track, value);
        }
    }

    /// Ends what is open still.
    fn finish(&mut self) {
        for (v, (roots, stale)) in (0_u16..).zip(self.roots.iter_mut().zip(&mut self.stale)) {
            for lane in roots.close(|_| true) {
                self.packets.end(self.now, Track::Roots(v, lane));
            }
            for lane in stale.close(|_| true) {
                self.packets.end(self.now, Track::Stale(v, lane));
            }
        }
    }
}

impl<W: Write> Observer for Timeline<'_, W> {
    fn act<M: World>(&mut self, at: &At, act: &Act, _: &M) {
        if let Some(category) = category(act)
            && let Some(name) = words::act(act)
        {
            let notes = vec![("event", Note::Number(at.event))];
            let notes = if at.event == BOOT { Vec::new() } else { notes };
            let mark = Mark { category, name, notes, ..Mark::default() };
            self.packets.instant(self.now, track(at.actor), mark);
        }
        let Actor::Vcpu(vcpu) = at.actor else { return };
        match act {
            Act::LoadPgd { root } => self.root_installed(vcpu, *root),
            Act::FreeRoot { root, .. } => self.root_freed(vcpu, *root),
            Act::Inv(inv) => {
                self.flushed = true;
                if whole_context(inv) {
                    self.whole_context_dropped(vcpu, at.event);
                }
            }
            Act::NewAsid(_) => {
                self.flushed = true;
                self.whole_context_dropped(vcpu, at.event);
            }
            _ => {}
        }
    }
}

const fn track(actor: Actor) -> Track {
    match actor {
        Actor::Vcpu(vcpu) => Track::Vcpu(vcpu.0),
        Actor::Host => Track::Host,
    }
}

/// Operations that are shown even if no finding is about them: those that bear on what may be cached.
const fn shown(op: &Op) -> bool {
    !matches!(
        op,
        Op::Map { .. }
            | Op::Unmap { .. }
            | Op::Protect { .. }
            | Op::Table { .. }
            | Op::Link { .. }
            | Op::Store { .. }
            | Op::Access(_)
            | Op::Prefetch(_)
            | Op::Exit(_)
            | Op::Cpuid
    )
}

/// The category of an act that is shown.
const fn category(act: &Act) -> Option<&'static str> {
    match act {
        Act::Post(_) | Act::Serve(_) => Some("request"),
        Act::Hook { .. } | Act::Inv(_) | Act::NewAsid(_) | Act::RemoteFlush { .. } => Some("flush"),
        Act::Reset { .. }
        | Act::Unload
        | Act::NewPgd(_)
        | Act::Load
        | Act::FreeRoot { .. }
        | Act::SyncRoots
        | Act::SyncPrevRoots
        | Act::ZapAll => Some("root"),
        _ => None,
    }
}

/// Whether everything that the vCPU could use is dropped.
const fn whole_context(inv: &Inv) -> bool {
    matches!(
        inv,
        Inv::VpidSingle(_)
            | Inv::VpidAll
            | Inv::EptSingle(_)
            | Inv::EptGlobal
            | Inv::VpidZeroTransition
            | Inv::TlbControlAll
            | Inv::TlbControlAsid(_)
            | Inv::Guest(tlbscope_trace::act::GuestInv::All)
    )
}

/// A verdict in a word or two.
const fn words_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Missed { harmful: true } => "missed, harmful",
        Kind::Missed { harmful: false } => "missed, benign",
        Kind::Exposed => "exposed",
        Kind::Latent => "latent",
        Kind::Advised => "advised",
        Kind::Excessive(_) => "excessive",
    }
}
