//! When something last happened to a frame, without a search: an answer that is never too early.

/// log2 of the buckets that frames share.
const BITS: u32 = 12;

/// An upper bound for the time of the latest range that covers a frame. Several frames share a
/// bucket, so that the bound may be that of another frame; who needs the exact answer searches
/// after the bound says that there may be one.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Recent {
    /// By a hash of the frame's number; empty until something happens.
    buckets: Vec<u64>,
    /// The latest range that covers more frames than there are buckets.
    wide: u64,
    /// The latest range of all.
    latest: u64,
}

impl Recent {
    /// Something happened to the bytes from `gpa` up to `end`.
    pub fn note(&mut self, gpa: u64, end: u64, time: u64) {
        if gpa >= end {
            return;
        }
        self.latest = self.latest.max(time);
        let (first, last) = (gpa >> 12, (end - 1) >> 12);
        if last - first >= 1 << BITS {
            self.wide = self.wide.max(time);
            return;
        }
        self.buckets.resize(1 << BITS, 0);
        for frame in first..=last {
            let bucket = &mut self.buckets[Self::bucket(frame)];
            *bucket = time.max(*bucket);
        }
    }

    /// Whether something may have happened to the frame of this byte after `since`.
    #[must_use]
    pub fn may_be_after(&self, gpa: u64, since: u64) -> bool {
        self.latest > since
            && (self.wide > since
                || self.buckets.get(Self::bucket(gpa >> 12)).is_some_and(|time| *time > since))
    }

    /// When something happened last to any frame.
    #[must_use]
    pub const fn latest(&self) -> u64 {
        self.latest
    }

    /// Page tables and data lie in runs of neighbouring frames: a multiplication by the golden
    /// ratio keeps runs apart from each other.
    const fn bucket(frame: u64) -> usize {
        (frame.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_never_too_early() {
        let mut recent = Recent::default();
        assert!(!recent.may_be_after(0x5000, 0), "nothing happened");
        recent.note(0x5000, 0x7000, 10);
        assert!(recent.may_be_after(0x5000, 9) && recent.may_be_after(0x6fff, 9));
        assert!(!recent.may_be_after(0x5000, 10), "not after its own time");
        assert!(!recent.may_be_after(0x4fff, 0) && !recent.may_be_after(0x7000, 0));
        recent.note(0, u64::MAX, 20);
        assert!(recent.may_be_after(0x1234_5000, 19) && !recent.may_be_after(0x5000, 20));
        recent.note(0x5000, 0x5001, 15);
        assert!(recent.may_be_after(0x5000, 14), "an older time does not hide a later one");
        recent.note(0x8000, 0x8000, 30);
        assert!(!recent.may_be_after(0x8000, 20), "an empty range is nothing");
    }
}
