//! What the counted acts cost, in cycles of the machine's cost table.

use tlbscope_sim::machine::Processor;
use tlbscope_sim::machine::costs::Total;

use crate::tally::Counts;

/// What cycles go to, and the acts that belong to each.
pub const CAUSES: [(&str, &[&str]); 6] = [
    ("exits and entries", &["exit", "entry"]),
    ("refills", &["refill", "walk-ref", "spurious-fault"]),
    (
        "flushes",
        &[
            "invvpid-address",
            "invvpid-single",
            "invvpid-all",
            "invvpid-nonglobal",
            "invept-single",
            "invept-global",
            "tlb-control-1",
            "tlb-control-3",
            "tlb-control-7",
            "invlpga",
            "new-asid",
        ],
    ),
    ("roots", &["mmu-init", "root-free", "root-load", "root-hit"]),
    ("syncs", &["sync-root", "sync-page"]),
    ("interrupts", &["ipi"]),
];

/// The price of these counts on this processor.
pub(super) fn total(processor: &Processor, counts: &Counts) -> Total {
    processor.cost.total(counts.iter().map(|(key, n)| (key.name(), n)))
}

/// The same by cause, in the order of [`CAUSES`].
#[must_use]
pub fn cycles_by_cause(processor: &Processor, counts: &Counts) -> [Total; CAUSES.len()] {
    CAUSES.map(|(_, acts)| {
        let of = counts.iter().filter(|(key, _)| acts.contains(&key.name()));
        processor.cost.total(of.map(|(key, n)| (key.name(), n)))
    })
}

#[cfg(test)]
mod tests {
    use tlbscope_sim::machine::costs::Costs;

    use super::*;

    #[test]
    fn every_act_with_a_price_has_one_cause() {
        for act in Costs::NAMES {
            let causes = CAUSES.iter().filter(|(_, acts)| acts.contains(act)).count();
            assert_eq!(causes, 1, "{act}");
        }
    }
}
