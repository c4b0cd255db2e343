//! The judge: missed, exposed and excessive TLB flushes.

pub mod tally;
