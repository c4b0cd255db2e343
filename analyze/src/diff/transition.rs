//! Which register writes are compared: one or two flush-relevant bits, from each start state.

use std::fmt;

use serde::{Serialize, Serializer};
use tlbscope_sim::machine::config::Mode;
use tlbscope_trace::op::{Op, RegWrite};
use tlbscope_trace::regs::{Cr0, Cr4};

/// The state in which a write finds the guest, as far as the written bits leave it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// 4-level paging without PCIDs.
    #[serde(rename = "4-level")]
    Level4,
    /// 4-level paging with PCIDs.
    #[serde(rename = "4-level-pcid")]
    Level4Pcid,
    /// PAE paging.
    Pae,
    /// 32-bit paging.
    #[serde(rename = "32-bit")]
    Bits32,
}

impl State {
    /// Every state, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Level4, Self::Level4Pcid, Self::Pae, Self::Bits32];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Level4 => "4-level",
            Self::Level4Pcid => "4-level-pcid",
            Self::Pae => "pae",
            Self::Bits32 => "32-bit",
        }
    }

    /// The mode of a machine that starts in it.
    #[must_use]
    pub const fn mode(self) -> Mode {
        match self {
            Self::Level4 | Self::Level4Pcid => Mode::Level4,
            Self::Pae => Mode::Pae,
            Self::Bits32 => Mode::Bits32,
        }
    }

    /// CR4 of the state. PGE is on everywhere, so that global pages are global.
    #[must_use]
    pub fn cr4(self) -> Cr4 {
        match self {
            Self::Level4 => Cr4::PAE | Cr4::PGE,
            Self::Level4Pcid => Cr4::PAE | Cr4::PGE | Cr4::PCIDE,
            Self::Pae => Cr4::PSE | Cr4::PAE | Cr4::PGE,
            Self::Bits32 => Cr4::PSE | Cr4::PGE,
        }
    }
}

/// A written register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
}

/// Bits that a write flips: those set and those cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// The register.
    pub register: Register,
    /// Bits that go 0 to 1.
    pub set: u64,
    /// Bits that go 1 to 0.
    pub clear: u64,
}

impl Change {
    /// How many bits change.
    #[must_use]
    pub const fn bits(&self) -> u32 {
        (self.set | self.clear).count_ones()
    }

    /// The change of each of its bits alone.
    pub fn singles(&self) -> impl Iterator<Item = Self> + use<> {
        let Self { register, set, clear } = *self;
        (0..64)
            .map(|n| 1u64 << n)
            .filter(move |bit| (set | clear) & bit != 0)
            .map(move |bit| Self { register, set: set & bit, clear: clear & bit })
    }

    /// The guest's write.
    #[must_use]
    pub const fn op(&self) -> Op {
        let write = RegWrite { clear: self.clear, set: self.set };
        match self.register {
            Register::Cr0 => Op::Cr0(write),
            Register::Cr4 => Op::Cr4(write),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, bits): (_, &[(&str, u64)]) = match self.register {
            Register::Cr0 => ("cr0 ", &CR0),
            Register::Cr4 => ("cr4 ", &CR4),
        };
        f.write_str(word)?;
        for (name, bit) in bits {
            if self.set & bit != 0 {
                write!(f, "+{name}")?;
            } else if self.clear & bit != 0 {
                write!(f, "-{name}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const CR0: [(&str, u64); 2] = [("PG", Cr0::PG.bits()), ("WP", Cr0::WP.bits())];

const CR4: [(&str, u64); 8] = [
    ("PGE", Cr4::PGE.bits()),
    ("PSE", Cr4::PSE.bits()),
    ("PAE", Cr4::PAE.bits()),
    ("PCIDE", Cr4::PCIDE.bits()),
    ("SMEP", Cr4::SMEP.bits()),
    ("SMAP", Cr4::SMAP.bits()),
    ("PKE", Cr4::PKE.bits()),
    ("LA57", Cr4::LA57.bits()),
];

/// Every change of one or two bits, single ones first. Whether it is legal in a state the machine
/// says.
#[must_use]
pub fn changes() -> Vec<Change> {
    let mut all = Vec::new();
    for (register, bits) in [(Register::Cr0, &CR0[..]), (Register::Cr4, &CR4[..])] {
        for (n, (_, one)) in bits.iter().enumerate() {
            for other in std::iter::once(0).chain(bits[n + 1..].iter().map(|(_, bit)| *bit)) {
                let both = one | other;
                let directions = [both, *one, other, 0];
                // A single bit has two directions, a pair four.
                for set in &directions[if other == 0 { 1..3 } else { 0..4 }] {
                    all.push(Change { register, set: *set, clear: both & !set });
                }
            }
        }
    }
    all.sort_by_key(|change| (change.bits() > 1, change.register));
    all
}
