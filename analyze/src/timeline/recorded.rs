//! The timeline of a recording: it shows what its host did.

use std::collections::BTreeSet;

use tlbscope_trace::act::{Act, Hook};
use tlbscope_trace::op::Op;
use tlbscope_trace::recording::{Body, Record, Recording};
use tlbscope_trace::text;

use super::effect::{Kind, Lane};
use super::keep::{Keeper, Timeline};
use super::{Span, words};
use crate::audit::{Audit, Found};
use crate::finding;

/// The timeline of an audited recording, with at most `budget` effects, and from where to where
/// each finding reaches. Events are its records.
#[must_use]
pub fn of_recording(recording: &Recording, audit: &Audit, budget: usize) -> (Timeline, Vec<Span>) {
    let named: BTreeSet<u64> =
        audit.found.iter().flat_map(|f| [f.finding.cause, f.seen as u64]).collect();
    let mut keeper = Keeper::new(budget, &named);
    let mut seen: Vec<(usize, usize)> =
        audit.found.iter().enumerate().map(|(n, found)| (found.seen, n)).collect();
    seen.sort_unstable();
    let mut verdicts = seen.into_iter().peekable();
    let mut spans: Vec<Span> = audit.found.iter().map(|found| span(recording, found)).collect();
    // Exposures whose vCPU has not been flushed since.
    let mut exposed: Vec<usize> = Vec::new();
    for (index, record) in recording.records.iter().enumerate() {
        let event = index as u64;
        keeper.event(event, record.time.0);
        let at = (event, record.time.0);
        if let Some((kind, what)) = effect(record, named.contains(&event)) {
            keeper.push(at, record.actor.into(), kind, None, what);
        }
        if is_wide_flush(&record.body) {
            exposed.retain(|n| {
                let open = Lane::Vcpu(audit.found[*n].finding.vcpu) != record.actor.into();
                if !open {
                    (spans[*n].to, spans[*n].to_time) = at;
                }
                open
            });
        }
        while let Some((_, n)) = verdicts.next_if(|(seen, _)| *seen == index) {
            let finding = &audit.found[n].finding;
            let excess = matches!(finding.kind, finding::Kind::Excessive(_));
            if finding.kind == finding::Kind::Exposed {
                exposed.push(n);
            }
            let kind = if excess { Kind::Excess } else { Kind::Stale };
            let lane = Lane::Vcpu(finding.vcpu);
            keeper.push(at, lane, kind, Some(n as u32), || words::verdict(finding));
        }
    }
    let timeline = keeper.finish();
    for n in exposed {
        (spans[n].to, spans[n].to_time) = (timeline.last_event, timeline.last_time);
    }
    (timeline, spans)
}

/// Whether a recorded act flushes more than a page of its vCPU.
const fn is_wide_flush(body: &Body) -> bool {
    matches!(
        body,
        Body::Act(Act::Hook { hook: Hook::All | Hook::Current | Hook::Guest, effective: true, .. })
    )
}

fn span(recording: &Recording, found: &Found) -> Span {
    let time = |index: u64| {
        let record = usize::try_from(index).ok().and_then(|index| recording.records.get(index));
        record.map_or(0, |record| record.time.0)
    };
    let (from, to) = (found.finding.cause, found.seen as u64);
    Span { from, from_time: time(from), to, to_time: time(to) }
}

/// What a record is in a timeline, and its words.
fn effect(record: &Record, named: bool) -> Option<(Kind, impl FnOnce() -> String + '_)> {
    let kind = match &record.body {
        Body::Op(op) => {
            let kind = Kind::of_op(op);
            (kind != Kind::Operation || named && !matches!(op, Op::Exit(_))).then_some(kind)?
        }
        Body::Act(act) => Kind::of_act(act)?,
        Body::Gap(_) => Kind::Gap,
    };
    let what = move || match &record.body {
        Body::Op(op) => text::write_op(op),
        Body::Act(act) => words::act(act),
        Body::Gap(None) => "events were lost here".to_owned(),
        Body::Gap(Some(number)) => format!("{number} events were lost here"),
    };
    Some((kind, what))
}
