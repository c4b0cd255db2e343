//! The mmu_notifier's sequence and mmu_lock (facts/kvm.md 5.9): why a page fault has to wait or to
//! be taken again.

use tlbscope_trace::op::HostOp;

/// Invalidations of the host's mappings that have begun and not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Notifier {
    /// Ranges of guest frames (first, how many) whose invalidation is in progress.
    open: Vec<(u64, u64)>,
    /// Counts ended invalidations: a fault that saw another number starts again.
    pub seq: u64,
    /// How many hold mmu_lock while others run.
    locks: u32,
    /// Operations of which the first half was run, and whether a flush is left over.
    halves: Vec<(HostOp, bool)>,
}

impl Notifier {
    /// mmu_invalidate_begin.
    pub fn begin(&mut self, first: u64, frames: u64) {
        self.open.push((first, frames));
    }

    /// mmu_invalidate_end.
    pub fn end(&mut self, first: u64, frames: u64) {
        self.seq += 1;
        if let Some(at) = self.open.iter().position(|open| *open == (first, frames)) {
            self.open.remove(at);
        }
    }

    /// Whether a fault on this frame must be retried: its range is being invalidated.
    #[must_use]
    pub fn in_progress(&self, gfn: u64) -> bool {
        self.open.iter().any(|(first, frames)| gfn.wrapping_sub(*first) < *frames)
    }

    /// The first half of an operation is over.
    pub fn open_half(&mut self, op: HostOp, flush: bool) {
        self.halves.push((op, flush));
    }

    /// The second half begins: whether a flush was left to it.
    pub fn close_half(&mut self, op: &HostOp) -> bool {
        let open = self.halves.iter().rposition(|(of, _)| of == op);
        open.is_some_and(|at| self.halves.remove(at).1)
    }

    /// mmu_lock is taken by somebody who may be interrupted.
    pub fn lock(&mut self) {
        self.locks += 1;
    }

    /// It is released.
    pub fn unlock(&mut self) {
        self.locks = self.locks.saturating_sub(1);
    }

    /// Whether a fault has to wait for mmu_lock.
    #[must_use]
    pub fn lock_held(&self) -> bool {
        self.locks > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_of_an_open_range_wait() {
        let mut notifier = Notifier::default();
        notifier.begin(4, 2);
        notifier.begin(5, 1);
        assert_eq!([3, 4, 5, 6].map(|gfn| notifier.in_progress(gfn)), [false, true, true, false]);
        notifier.end(4, 2);
        assert_eq!([4, 5].map(|gfn| notifier.in_progress(gfn)), [false, true]);
        notifier.end(5, 1);
        assert!(!notifier.in_progress(5));
        assert_eq!(notifier.seq, 2);
    }
}
