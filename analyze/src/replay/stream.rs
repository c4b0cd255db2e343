//! A trace of any length under several policies: one decode feeds them all.

use std::path::Path;

use rayon::prelude::*;
use thiserror::Error;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::feed::Feed;
use tlbscope_trace::native::{Batch, NativeError};
use tlbscope_trace::{Error, Opened, Options};

use super::recorded::guest_work;
use super::run::Run;
use super::work::Setup;
use super::{Replay, ReplayError, Wanted};
use crate::explain::{Chain, Witness};
use crate::finding::Finding;

/// Why a stream could not be run to its end.
#[derive(Debug, Error)]
pub enum StreamError {
    /// A run could not be finished.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The trace cannot be read.
    #[error(transparent)]
    Native(#[from] NativeError),
}

/// Opens a trace of any form for replay: a native one of operations alone as a stream; any other
/// whole, the set-up of its vCPUs left out. `-` is standard input.
///
/// # Errors
/// It cannot be read, or its form is not known.
pub fn open(path: &Path, options: &Options) -> Result<Feed, Error> {
    let recording = match tlbscope_trace::open_lazily(path, options)? {
        Opened::Whole(recording) => *recording,
        Opened::Native(reader) => match Feed::of_native(reader) {
            Ok(feed) => return Ok(feed),
            Err(reader) => reader.into_recording()?,
        },
    };
    Ok(Feed::of(guest_work(recording)))
}

/// Batches that each of several runs works through before it is another one's turn. A run alone keeps
/// pace with the decoder and finds its events in the second-level cache. Several displace each other's
/// machines there, which costs more than to fetch the events from further away.
const TURN: usize = 16;

/// Reads as many batches as there is room for. Returns how many there were.
fn read(feed: &mut Feed, batches: &mut [Batch]) -> Result<usize, NativeError> {
    for (count, batch) in batches.iter_mut().enumerate() {
        if !feed.next_batch(batch)? {
            return Ok(count);
        }
    }
    Ok(batches.len())
}

/// Runs a trace under every policy, in parallel. While the runs work on some batches the next are
/// decoded; no more than these are ever in memory. Each run sees every event in order, so the
/// results, which come in the order of the policies, do not depend on the number of threads.
/// `wanted` says what is kept of each run.
/// `progress` is told the number of events that one more run has done.
///
/// # Errors
///
/// The trace cannot be read, or the first policy in their order could not be finished.
pub fn stream(
    feed: &mut Feed,
    setup: &Setup,
    policies: &[Policy],
    wanted: impl Into<Wanted>,
    progress: impl Fn(u64) + Sync,
) -> Result<Vec<Replay>, StreamError> {
    let wanted = wanted.into();
    let runs: Result<Vec<Run>, _> =
        policies.iter().map(|policy| Run::new(setup, policy, &wanted)).collect();
    let mut runs = runs?;
    let turn = if runs.len() > 1 { TURN } else { 1 };
    let (mut now, mut next) = (vec![Batch::default(); turn], vec![Batch::default(); turn]);
    let mut count = read(feed, &mut now)?;
    while count > 0 {
        let (decoded, done) = rayon::join(
            || read(feed, &mut next),
            || {
                let work = |run: &mut Run| {
                    now[..count].iter().try_for_each(|batch| {
                        let done = run.batch(batch);
                        progress(batch.events.len() as u64);
                        done
                    })
                };
                runs.par_iter_mut().with_max_len(1).map(work).collect::<Vec<_>>()
            },
        );
        done.into_iter().collect::<Result<(), _>>()?;
        count = decoded?;
        std::mem::swap(&mut now, &mut next);
    }
    Ok(runs.into_par_iter().map(Run::finish).collect())
}

/// The chains of cause of findings that [`stream`] made of the same trace under the same policy, in
/// their order. `feed` begins again, and is run as far as the last of them, or the 2^26th event:
/// what lies behind is told without its story.
///
/// # Errors
///
/// Those of [`stream`], which would have met them before.
pub fn explain_stream(
    feed: &mut Feed,
    setup: &Setup,
    policy: &Policy,
    findings: &[Finding],
) -> Result<Vec<Chain>, StreamError> {
    const EVENTS_MAX: u64 = 1 << 26;
    let mut witness = Witness::new(findings);
    if findings.is_empty() {
        return Ok(Vec::new());
    }
    let mut machine = setup.machine(policy)?;
    let last = witness.last_event().min(EVENTS_MAX);
    let mut batch = Batch::default();
    while feed.next_batch(&mut batch)? {
        for (index, (event, line)) in (batch.first..).zip(batch.events.iter().zip(&batch.lines)) {
            if index > last {
                return Ok(witness.chains());
            }
            match machine.run(event, index, &mut witness) {
                Err(refused) if !batch.after_loss => {
                    return Err(setup.refused(policy, index, *line, refused).into());
                }
                _ => {}
            }
        }
    }
    Ok(witness.chains())
}
