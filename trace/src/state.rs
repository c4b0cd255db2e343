//! How the state of a run is written down, for checkpoints: forms for `#[serde(with = "...")]`.
//!
//! Equal states are written as equal bytes: hash maps go by their keys, for the order in which they
//! keep them depends on how they grew. Names that the program holds as `&'static str` are written as
//! text.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that the program holds. serde takes a field that is spelled `&str` for one that borrows from
/// what is read.
pub type Name = &'static str;

/// A name that lives as long as the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(pub &'static str);

/// The same text for as long as the program runs. There are no more of them than the program has
/// names, or than a state that is read has places: each is kept once.
fn kept(text: &str) -> &'static str {
    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut words = WORDS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(word) = words.get(text) {
        return word;
    }
    let word: &'static str = Box::leak(text.into());
    words.insert(word);
    word
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(kept(&String::deserialize(deserializer)?)))
    }
}

/// A name.
pub mod word {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Word};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(word: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
        Word(word).serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
        Ok(Word::deserialize(from)?.0)
    }
}

/// A name, or none.
pub mod word_or_none {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Word};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(
        word: &Option<&'static str>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        word.map(Word).serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<&'static str>, D::Error> {
        Ok(Option::<Word>::deserialize(from)?.map(|word| word.0))
    }
}

/// A number and a name: an event and its operation.
pub mod numbered_word {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Word};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(
        (number, word): &(u64, &'static str),
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (number, Word(word)).serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<(u64, &'static str), D::Error> {
        let (number, word) = <(u64, Word)>::deserialize(from)?;
        Ok((number, word.0))
    }
}

/// A hash map, by its keys.
pub mod map {
    use std::collections::HashMap;
    use std::hash::{BuildHasher, Hash};

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<K, V, B, S>(map: &HashMap<K, V, B>, serializer: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize + Ord,
        V: Serialize,
        S: Serializer,
    {
        let mut sorted: Vec<(&K, &V)> = map.iter().collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        serializer.collect_seq(sorted)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, K, V, B, D>(from: D) -> Result<HashMap<K, V, B>, D::Error>
    where
        K: Deserialize<'de> + Eq + Hash,
        V: Deserialize<'de>,
        B: BuildHasher + Default,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

/// A hash set, in order.
pub mod set {
    use std::collections::HashSet;
    use std::hash::{BuildHasher, Hash};

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T, B, S>(set: &HashSet<T, B>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize + Ord,
        S: Serializer,
    {
        let mut sorted: Vec<&T> = set.iter().collect();
        sorted.sort_unstable();
        serializer.collect_seq(sorted)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, T, B, D>(from: D) -> Result<HashSet<T, B>, D::Error>
    where
        T: Deserialize<'de> + Eq + Hash,
        B: BuildHasher + Default,
        D: Deserializer<'de>,
    {
        Ok(Vec::<T>::deserialize(from)?.into_iter().collect())
    }
}

/// The entries of a table: 512 in a box.
pub mod table {
    use serde::de::Error;

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    /// How many.
    const ENTRIES: usize = 512;

    /// Writes them.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Serialize, S: Serializer>(
        entries: &[T; ENTRIES],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(entries.iter())
    }

    /// Reads them.
    ///
    /// # Errors
    /// The deserializer's, or there are not 512.
    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Box<[T; ENTRIES]>, D::Error> {
        let entries = Vec::<T>::deserialize(from)?.into_boxed_slice();
        entries.try_into().map_err(|_| D::Error::custom("a table has 512 entries"))
    }
}

/// The entries of a table, or none.
pub mod table_or_none {
    use super::{Deserialize, Deserializer, Serialize, Serializer, table};

    #[derive(Serialize)]
    struct Shown<'a>(#[serde(with = "table")] &'a [u64; 512]);

    #[derive(Deserialize)]
    struct Read(#[serde(with = "table")] Box<[u64; 512]>);

    /// Writes them.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(
        entries: &Option<Box<[u64; 512]>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        entries.as_deref().map(Shown).serialize(serializer)
    }

    /// Reads them.
    ///
    /// # Errors
    /// The deserializer's, or there are not 512.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Box<[u64; 512]>>, D::Error> {
        Ok(Option::<Read>::deserialize(from)?.map(|read| read.0))
    }
}
