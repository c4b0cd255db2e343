//! What a report shows of a run: its effects in the order in which they happened, the stretches in
//! which a stale copy was in reach, and how much of it all there was.
//!
//! A run keeps no history, so a timeline is [gathered](gather) by running the same work once more,
//! with the findings at hand: the machine is deterministic. A recording (`recorded`) is its own
//! history. Either way no more than a budget of effects is kept (`keep`), those around findings
//! first; the others are counted. Runs without a report pay nothing.

mod density;
mod effect;
mod gather;
mod keep;
mod recorded;
mod words;

pub use density::Density;
pub use effect::{Effect, Kind, Lane};
pub use gather::{Told, gather};
pub use keep::Timeline;
pub use recorded::of_recording;

/// From the operation that made copies stale to the last use of one that is known; of an exposure,
/// of which no use is known, to the next flush of its vCPU that is wider than a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The operation's event.
    pub from: u64,
    /// Its instant, in nanoseconds.
    pub from_time: u64,
    /// The event in which it ends.
    pub to: u64,
    /// Its instant.
    pub to_time: u64,
}
