//! What the counted acts cost, in cycles of the machine's cost table.

use tlbscope_sim::machine::Processor;
use tlbscope_sim::machine::costs::Total;

use crate::tally::Counts;

/// The price of these counts on this processor.
pub(super) fn total(processor: &Processor, counts: &Counts) -> Total {
    processor.cost.total(counts.iter().map(|(key, n)| (key.name(), n)))
}
