//! The finite caches of a processor: which arrays, for what, of how many sets and ways.

use serde::Deserialize;
use tlbscope_trace::addr::PageSize;

/// Entries that one array may have, and arrays that one processor may have: several times what any
/// processor has, and still no danger to memory.
const ENTRIES_MAX: u32 = 1 << 14;
const ARRAYS_MAX: usize = 32;

/// All translation caches of a logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Geometry {
    /// TLB arrays. A translation may sit in every array that takes its size and use.
    pub tlb: Vec<Array>,
    /// Paging-structure caches; empty: none is modelled.
    #[serde(default)]
    pub structure: Vec<StructureCache>,
    /// Page walks that can be under way at once.
    pub walkers: u8,
    /// 1 GiB translations are kept as 2 MiB ones.
    #[serde(default)]
    pub smash_1g: bool,
}

/// What an array serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Instruction fetches.
    Instruction,
    /// Loads and stores.
    Data,
    /// Loads only.
    Load,
    /// Stores only.
    Store,
    /// Everything.
    Any,
}

/// One TLB array.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Array {
    /// 1: looked up with the access; 2: on a miss there.
    pub level: u8,
    /// What it serves.
    #[serde(rename = "use")]
    pub serves: Use,
    /// Page sizes that it holds.
    pub sizes: Vec<PageSize>,
    /// Entries.
    pub entries: u32,
    /// Ways; equal to `entries` if fully associative.
    pub ways: u32,
    /// Where the numbers are from.
    pub source: String,
    /// No manual or measurement bears them out.
    #[serde(default)]
    pub unverified: bool,
}

impl Array {
    /// Sets: entries / ways.
    #[must_use]
    pub const fn sets(&self) -> u32 {
        self.entries / self.ways
    }
}

/// A paging-structure cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StructureCache {
    /// The level of the entries it holds: 2 = PDE, 3 = PDPTE, 4 = PML4E, 5 = PML5E.
    pub level: u8,
    /// Entries; fully associative.
    pub entries: u32,
    /// Where the numbers are from.
    pub source: String,
    /// No manual or measurement bears them out.
    #[serde(default)]
    pub unverified: bool,
}

impl Geometry {
    /// Entries and ways of the last level as one cache of 4 KiB data pages, for a model of one
    /// level: arrays that such a page may sit in are joined if they have the same sets (their ways
    /// add up), otherwise the largest stands for all. (0, 0) only if no array takes such pages,
    /// which no loaded machine has.
    #[must_use]
    pub fn last_level(&self) -> (u32, u32) {
        let takes = |a: &&Array| {
            a.sizes.contains(&PageSize::Size4K)
                && matches!(a.serves, Use::Data | Use::Any | Use::Load)
        };
        let level = self.tlb.iter().filter(takes).map(|a| a.level).max();
        let last: Vec<&Array> =
            self.tlb.iter().filter(takes).filter(|a| Some(a.level) == level).collect();
        let Some(largest) = last.iter().max_by_key(|a| a.entries) else { return (0, 0) };
        if last.iter().any(|a| a.sets() != largest.sets()) {
            return (largest.entries, largest.ways);
        }
        let join = |f: fn(&Array) -> u32| last.iter().map(|a| f(a)).fold(0, u32::saturating_add);
        (join(|a| a.entries), join(|a| a.ways))
    }

    /// What is wrong with the numbers, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.tlb.len() > ARRAYS_MAX || self.structure.len() > ARRAYS_MAX {
            return Err(format!("more than {ARRAYS_MAX} arrays"));
        }
        for (n, array) in self.tlb.iter().enumerate() {
            let wrong = |what: &str| Err(format!("tlb array {}: {what}", n + 1));
            let (entries, ways) = (array.entries, array.ways);
            if !matches!(array.level, 1 | 2) {
                return wrong("level is neither 1 nor 2");
            }
            if entries == 0 || entries > ENTRIES_MAX || ways == 0 || entries % ways != 0 {
                return wrong("entries must be a multiple of ways, and neither 0");
            }
            if !array.sets().is_power_of_two() {
                return wrong("entries / ways is not a power of two");
            }
            if array.sizes.is_empty() {
                return wrong("sizes is empty");
            }
        }
        if self.last_level() == (0, 0) {
            return Err("no tlb array takes 4k data pages".to_owned());
        }
        for cache in &self.structure {
            if !(2..=5).contains(&cache.level) || !(1..=ENTRIES_MAX).contains(&cache.entries) {
                return Err("a structure cache has a level from 2 to 5 and entries".to_owned());
            }
        }
        Ok(())
    }
}
