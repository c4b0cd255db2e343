//! KVM's own statistics beside the counters: what debugfs or KVM_GET_STATS_FD told at the end of the
//! recorded run, as `NAME VALUE` lines, with `vm` or `vcpuN` before the name or not.

use std::collections::BTreeMap;

use super::Fidelity;

/// The values by name, vCPUs added up. Lines of another form are passed over: such files often hold
/// more.
#[must_use]
pub fn read(text: &str) -> BTreeMap<&str, u64> {
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(value), Some(name)) = (words.next_back(), words.next_back()) else { continue };
        let whose = words.next().unwrap_or("vm");
        let of_kvm = whose == "vm" || whose.starts_with("vcpu");
        if of_kvm
            && words.next().is_none()
            && let Ok(value) = value.parse::<u64>()
        {
            let sum: &mut u64 = values.entry(name).or_default();
            *sum = sum.saturating_add(value);
        }
    }
    values
}

impl Fidelity {
    /// Puts the statistics of a file beside the counters of the same names. How many were found.
    pub fn with_statistics(&mut self, text: &str) -> usize {
        let values = read(text);
        let mut found = 0;
        for (name, counter) in &mut self.counters {
            counter.statistics = values.get(name).copied();
            found += usize::from(counter.statistics.is_some());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_vcpus_added_up() {
        let values = read("vm mmu_unsync 5\nvcpu0 invlpg 53\nvcpu1 invlpg 8\n");
        assert_eq!(values, [("invlpg", 61), ("mmu_unsync", 5)].into());
        let values = read("===STAT\ntlb_flush 192\nL1 cpus: 1\nevent of a kind 7\n");
        assert_eq!(values.get("tlb_flush"), Some(&192));
        assert_eq!(values.get("kind"), None, "a sentence is no statistic");
    }
}
