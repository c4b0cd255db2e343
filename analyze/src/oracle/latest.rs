//! A map that remembers the latest keys only, so that what a judge keeps does not grow with the length of
//! a trace: two generations, of which the older is dropped when the younger is full. Constant time, and
//! between half of the limit and all of it is remembered.

use std::hash::Hash;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// At least the latest `LIMIT / 2` entries written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(
    serialize = "K: Serialize + Ord, V: Serialize",
    deserialize = "K: Deserialize<'de> + Eq + Hash, V: Deserialize<'de>"
))]
pub struct Latest<K, V, const LIMIT: usize> {
    #[serde(with = "tlbscope_trace::state::map")]
    young: FxHashMap<K, V>,
    #[serde(with = "tlbscope_trace::state::map")]
    old: FxHashMap<K, V>,
}

impl<K, V, const LIMIT: usize> Default for Latest<K, V, LIMIT> {
    fn default() -> Self {
        Self { young: FxHashMap::default(), old: FxHashMap::default() }
    }
}

impl<K: Eq + Hash, V, const LIMIT: usize> Latest<K, V, LIMIT> {
    /// What was written for a key last, if it is remembered.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self.young.get_mut(key) {
            Some(value) => Some(value),
            None => self.old.get_mut(key),
        }
    }

    /// Writes.
    pub fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= LIMIT / 2 && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Latest;

    #[test]
    fn the_latest_are_remembered_and_no_more_than_the_limit() {
        let mut recent: Latest<u32, u32, 8> = Latest::default();
        for n in 0..100 {
            recent.insert(n, n * 2);
            assert!(recent.len() <= 8, "{n}");
            for back in 0..4.min(n + 1) {
                assert_eq!(recent.get(&(n - back)), Some(&((n - back) * 2)), "{n} {back}");
            }
        }
        assert_eq!(recent.get(&0), None);
    }

    #[test]
    fn a_key_has_one_value() {
        let mut recent: Latest<u32, u32, 4> = Latest::default();
        recent.insert(1, 1);
        recent.insert(2, 2);
        recent.insert(3, 3);
        recent.insert(1, 9);
        assert_eq!(recent.get(&1), Some(&9));
        assert_eq!(recent.len(), 3);
        if let Some(value) = recent.get_mut(&2) {
            *value = 7;
        }
        assert_eq!(recent.get(&2), Some(&7));
    }
}
