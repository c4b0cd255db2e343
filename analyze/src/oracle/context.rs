//! Whose obligation: L1's processor tags what it holds with VPIDs (ASIDs on AMD) and EP4TAs of
//! its own, and what is owed is owed within such a tag. Tag 0 is L1 itself and every L2 without a
//! VPID; without nesting there is no other.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use tlbscope_sim::arch::nested::Whose;
use tlbscope_sim::arch::required::Scope;

use super::floors::{Floors, Obligation};

/// The floors of one vCPU by virtual tag. It acts as the floors of the tag that is current.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Contexts {
    /// The tag whose floors are at hand.
    tag: u16,
    here: Floors,
    /// The floors of the other tags.
    away: BTreeMap<u16, Floors>,
    /// Floors over copies made through L1's nested tables, by what tags them.
    tables: BTreeMap<Nested, Floors>,
    /// What tags those that are current.
    current: Option<Nested>,
    /// The latest obligation of every tag: a tag that is used later begins with it.
    every: Option<Obligation>,
}

/// What tags mappings through nested tables: on Intel the EP4TA, on AMD the ASID.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Nested {
    /// The top table of an EPT.
    Ep4ta(u64),
    /// An ASID of L1's processor.
    Asid(u16),
}

impl Deref for Contexts {
    type Target = Floors;

    fn deref(&self) -> &Floors {
        &self.here
    }
}

impl DerefMut for Contexts {
    fn deref_mut(&mut self) -> &mut Floors {
        &mut self.here
    }
}

impl Contexts {
    /// The current virtual tag.
    #[must_use]
    pub const fn tag(&self) -> u16 {
        self.tag
    }

    /// Another tag and other nested tables are current from here on.
    pub fn switch(&mut self, tag: u16, tables: Option<Nested>) {
        self.current = tables;
        if let Some(tables) = tables {
            self.tables.entry(tables).or_default();
        }
        if tag == self.tag {
            return;
        }
        let floors = self.away.remove(&tag).unwrap_or_else(|| self.born(tag));
        let floors = std::mem::replace(&mut self.here, floors);
        self.away.insert(std::mem::replace(&mut self.tag, tag), floors);
    }

    /// Whether the tag was ever current.
    #[must_use]
    pub fn knows(&self, tag: u16) -> bool {
        tag == self.tag || self.away.contains_key(&tag)
    }

    /// Floors over copies made through the current nested tables.
    #[must_use]
    pub fn nested(&self) -> Option<&Floors> {
        self.tables.get(&self.current?)
    }

    /// The same, to name a cause.
    pub fn nested_mut(&mut self) -> Option<&mut Floors> {
        self.tables.get_mut(&self.current?)
    }

    /// Every obligation that can be named.
    pub fn all(&self) -> impl Iterator<Item = &Obligation> {
        self.here.log.iter().chain(self.away.values().flat_map(|floors| &floors.log))
    }

    /// The page of this address was invalidated in the group `done`: the latest obligations of every
    /// tag that are owed for it are served there.
    pub fn served(&mut self, gva: u64, done: (u16, u32)) {
        for floors in std::iter::once(&mut self.here).chain(self.away.values_mut()) {
            floors.served(gva, done);
        }
    }

    /// The obligation of this instant and scope, in whichever tag it is owed.
    #[must_use]
    pub fn find(&self, time: u64, scope: &Scope) -> Option<&Obligation> {
        [&self.here].into_iter().chain(self.away.values()).find_map(|floors| {
            let place = floors.log.partition_point(|o| o.time < time);
            floors.log.range(place..).take(4).find(|o| o.time == time && o.scope == *scope)
        })
    }

    /// The floors of a tag that was never current.
    fn born(&self, tag: u16) -> Floors {
        let mut floors = Floors::default();
        if let Some(every) = &self.every {
            floors.raise(Obligation { tag, ..every.clone() });
        }
        floors
    }

    fn of(&mut self, tag: u16) -> &mut Floors {
        if tag == self.tag {
            return &mut self.here;
        }
        if !self.away.contains_key(&tag) {
            let floors = self.born(tag);
            self.away.insert(tag, floors);
        }
        self.away.entry(tag).or_default()
    }

    /// An obligation of an operation that names its tag or tables. False if it reaches nothing
    /// that was ever used.
    pub fn raise_for(&mut self, whose: Whose, o: &Obligation) -> bool {
        if matches!(whose, Whose::Tags | Whose::TagsAndL1) {
            self.every = Some(o.clone());
        }
        let known: Vec<u16> = self.away.keys().copied().chain([self.tag]).collect();
        let tags: Vec<u16> = match whose {
            Whose::NewTag(tag) if self.knows(tag) => return false,
            Whose::Tag(tag) | Whose::NewTag(tag) => vec![tag],
            Whose::Tags => known.into_iter().filter(|tag| *tag != 0).collect(),
            Whose::TagsAndL1 => known,
            Whose::Tables(_) | Whose::AllTables => Vec::new(),
        };
        for tag in &tags {
            self.of(*tag).raise(Obligation { tag: *tag, ..o.clone() });
        }
        let mut any = !tags.is_empty();
        for (of, floors) in &mut self.tables {
            let reached = match (*of, whose) {
                (Nested::Ep4ta(root), Whose::Tables(named)) => root == named,
                (Nested::Ep4ta(_), Whose::AllTables) => true,
                (Nested::Asid(asid), _) => tags.contains(&asid),
                _ => false,
            };
            if reached {
                floors.raise(o.clone());
                any = true;
            }
        }
        any
    }
}
