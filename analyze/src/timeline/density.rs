//! How many effects there were, over a run of any length in memory that does not grow.

/// Bins of a histogram.
const BINS: usize = 512;

/// Numbers of effects by where they happened. A bin is a power of two wide; when a run outgrows
/// the bins, neighbours are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Density {
    shift: u32,
    bins: Vec<u64>,
}

impl Default for Density {
    fn default() -> Self {
        Self { shift: 0, bins: vec![0; BINS] }
    }
}

impl Density {
    /// Counts one effect.
    pub fn add(&mut self, at: u64) {
        while at >> self.shift >= BINS as u64 {
            for n in 0..BINS / 2 {
                self.bins[n] = self.bins[2 * n] + self.bins[2 * n + 1];
            }
            self.bins[BINS / 2..].fill(0);
            self.shift += 1;
        }
        self.bins[(at >> self.shift) as usize] += 1;
    }

    /// How wide a bin is.
    #[must_use]
    pub const fn width(&self) -> u64 {
        1 << self.shift
    }

    /// The bins up to the last that is not empty.
    #[must_use]
    pub fn bins(&self) -> &[u64] {
        let used = self.bins.iter().rposition(|n| *n > 0).map_or(0, |last| last + 1);
        &self.bins[..used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_when_the_run_outgrows_the_bins() {
        let mut density = Density::default();
        for at in [0, 1, 511] {
            density.add(at);
        }
        assert_eq!((density.width(), density.bins().len()), (1, 512));
        density.add(1024);
        assert_eq!(density.width(), 4, "1024 is in bin 512 of 2, in bin 256 of 4");
        assert_eq!(density.bins()[0], 2);
        assert_eq!(density.bins()[511 / 4], 1);
        assert_eq!(density.bins()[256], 1);
        assert_eq!(density.bins().len(), 257);
    }

    #[test]
    fn the_end_of_time_fits() {
        let mut density = Density::default();
        density.add(u64::MAX);
        density.add(0);
        assert_eq!(density.bins().iter().sum::<u64>(), 2);
    }
}
