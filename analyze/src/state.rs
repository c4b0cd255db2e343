//! How parts of the judge's state are written down, for checkpoints: forms for
//! `#[serde(with = "...")]` beside those of `tlbscope_trace::state`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tlbscope_trace::state::Word;

/// A row of the table of requirements, by its name.
pub mod rule {
    use serde::de::Error;
    use tlbscope_sim::arch::required::{Rule, rule};

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes its name.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(rule: &&'static Rule, to: S) -> Result<S::Ok, S::Error> {
        rule.id.serialize(to)
    }

    /// Finds it by its name.
    ///
    /// # Errors
    /// The deserializer's, or there is no such row.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<&'static Rule, D::Error> {
        let id = String::deserialize(from)?;
        rule(&id).ok_or_else(|| D::Error::custom(format!("no rule `{id}`")))
    }
}

/// Things with a name, in order.
pub mod named {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Word};

    /// Writes them.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Serialize, S: Serializer>(
        list: &[(T, &'static str)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|(what, name)| (what, Word(name))))
    }

    /// Reads them.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(T, &'static str)>, D::Error> {
        let list = Vec::<(T, Word)>::deserialize(from)?;
        Ok(list.into_iter().map(|(what, name)| (what, name.0)).collect())
    }
}

/// Findings: reports write them otherwise.
pub mod findings {
    use super::{Deserialize, Deserializer, Serialize, Serializer};
    use crate::finding::{Findings, Saved};

    /// Writes them.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(findings: &Findings, to: S) -> Result<S::Ok, S::Error> {
        findings.save().serialize(to)
    }

    /// Reads them.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Findings, D::Error> {
        Ok(Findings::of_saved(Saved::deserialize(from)?))
    }
}

/// Counters, every one: reports leave out those that are 0.
pub mod counts {
    use serde::de::Error;

    use super::{Deserialize, Deserializer, Serializer};
    use crate::tally::Counts;

    /// Writes them.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(counts: &Counts, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(counts.iter().map(|(_, n)| n).collect::<Vec<u64>>())
    }

    /// Reads them.
    ///
    /// # Errors
    /// The deserializer's, or there are not as many as there are counters.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Counts, D::Error> {
        let numbers = Vec::<u64>::deserialize(from)?;
        Counts::of(&numbers).ok_or_else(|| D::Error::custom("another number of counters"))
    }
}

/// The same, of many.
pub mod counts_list {
    use super::{Deserialize, Deserializer, Serialize, Serializer, counts};
    use crate::tally::Counts;

    #[derive(Serialize)]
    struct Shown<'a>(#[serde(with = "counts")] &'a Counts);

    #[derive(Deserialize)]
    struct Read(#[serde(with = "counts")] Counts);

    /// Writes them.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(list: &[Counts], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(Shown))
    }

    /// Reads them.
    ///
    /// # Errors
    /// The deserializer's, or one has another number of counters.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Counts>, D::Error> {
        Ok(Vec::<Read>::deserialize(from)?.into_iter().map(|read| read.0).collect())
    }
}
