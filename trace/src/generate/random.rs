//! Choices: xorshift, whose numbers are the same on every machine.

use rand_core::{Rng, SeedableRng};
use rand_xorshift::XorShiftRng;

/// A source of choices.
#[derive(Clone, Debug)]
pub(super) struct Random(XorShiftRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(XorShiftRng::seed_from_u64(seed))
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `n` times in a million.
    pub fn chance(&mut self, n: u64) -> bool {
        self.below(1_000_000) < n
    }
}
