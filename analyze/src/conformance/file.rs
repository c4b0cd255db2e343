//! A case file as it is written. Keys of files, cases and entries are fixed: an unknown one is an
//! error with its place. Keys of states and operations that this version does not know make their
//! case a failure that names them, so that a newer file still runs.

use std::collections::BTreeMap;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tlbscope_trace::regs::Vendor;

/// The version of the format that is read here.
pub(super) const SCHEMA_VERSION: u64 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFile {
    pub schema_version: Option<u64>,
    #[serde(default, rename = "title")]
    _title: Value,
    #[serde(default, rename = "how_to_use")]
    _how_to_use: Value,
    #[serde(default, rename = "fields")]
    _fields: Value,
    #[serde(default, rename = "lookup_rules")]
    _lookup_rules: Value,
    #[serde(default, rename = "creation_invariants")]
    _creation_invariants: Value,
    pub cases: Vec<RawCase>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCase {
    pub id: String,
    pub vendor: Vendor,
    #[serde(default)]
    pub title: String,
    pub state: RawState,
    pub entries: Vec<RawEntry>,
    pub ops: Vec<RawOp>,
    #[serde(default)]
    pub fault: Option<String>,
    pub expect: BTreeMap<String, Expected>,
    #[serde(default)]
    pub source: String,
    #[serde(default = "explicit")]
    pub confidence: Confidence,
    #[serde(default, rename = "note")]
    _note: Option<String>,
}

const fn explicit() -> Confidence {
    Confidence::Explicit
}

/// How sure the case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Stated in the cited section.
    Explicit,
    /// Follows from stated rules, or from an omission.
    Derived,
    /// The vendor's own manual says both: not judged.
    Contradictory,
}

/// What a case expects of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Expected {
    MustBeInvalid,
    MayRemain,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawState {
    #[serde(default)]
    pub mode: Option<String>,
    #[serde(default)]
    pub context: Option<String>,
    #[serde(default)]
    pub cpu: Number,
    #[serde(default)]
    pub vpid: Option<Number>,
    #[serde(default)]
    pub asid: Option<Number>,
    pub cr0: Number,
    pub cr3: Number,
    pub cr4: Number,
    pub efer: Number,
    #[serde(default)]
    pub maxphyaddr: Option<Number>,
    #[serde(default)]
    pub cpl: Number,
    #[serde(default)]
    pub intercepted: bool,
    #[serde(default)]
    pub eptp: Option<Number>,
    #[serde(default)]
    pub vpid_enabled: Option<bool>,
    #[serde(default, rename = "np_enable")]
    _np_enable: Option<bool>,
    #[serde(default)]
    pub flush_by_asid: Option<bool>,
    #[serde(default)]
    pub pdpte_reserved_set: bool,
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Tlb,
    Psc,
    Gpa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Map {
    Linear,
    Combined,
    GuestPhysical,
    AsidTagged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Pde,
    Pdpte,
    Pml4e,
    Pml5e,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEntry {
    pub id: String,
    pub kind: Kind,
    #[serde(default)]
    pub level: Option<Level>,
    pub map: Map,
    #[serde(default)]
    pub cpu: Option<Number>,
    #[serde(default)]
    pub vpid: Option<Number>,
    #[serde(default)]
    pub asid: Option<Number>,
    #[serde(default)]
    pub pcid: Option<Number>,
    #[serde(default)]
    pub ep4ta: Option<Number>,
    #[serde(default)]
    pub va: Option<Number>,
    #[serde(default)]
    pub gpa: Option<Number>,
    #[serde(default)]
    pub size: Option<String>,
    #[serde(default)]
    pub fractured_from: Option<String>,
    #[serde(default)]
    pub global: bool,
    #[serde(default, rename = "pte_g")]
    _pte_g: bool,
    #[serde(default)]
    pub flags: String,
    #[serde(default, rename = "note")]
    _note: Option<String>,
}

/// An operation: its name and whatever operands any operation has.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawOp {
    pub name: String,
    #[serde(flatten)]
    pub operands: BTreeMap<String, Value>,
}

/// A number: JSON's own, or a string in decimal or `0x` hexadecimal with `_` allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Number(pub u64);

impl Number {
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().replace('_', "");
        let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
        let number = match hex {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        number.ok().map(Self)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = Number;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, or a string with a decimal or 0x hexadecimal one")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
                Number::parse(text).ok_or_else(wrong)
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}
