//! How one value of a policy is read and written: booleans, numbers, names, lists of bits.

use toml::Spanned;
use toml::de::DeValue;

use super::mechanics::{LoadPdptrs, RemoteFlush, RemoteFlushPatch, RoleBits};
use super::nearest::nearest;

/// A value with its place in the text.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// What is wrong with a value, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnobError {
    /// Byte offset in the text.
    pub at: usize,
    /// The sentence.
    pub message: String,
}

impl KnobError {
    /// At the start of `value`.
    pub(super) fn new(value: &Value<'_>, message: impl Into<String>) -> Self {
        Self { at: value.span().start, message: message.into() }
    }

    /// A value of the wrong type.
    pub(super) fn expected(value: &Value<'_>, what: &str) -> Self {
        Self::new(value, format!("expected {what}, found {}", value.get_ref().type_str()))
    }
}

/// `; did you mean ...?` if some name is near.
pub(super) fn nearest_hint(word: &str, names: &[&str]) -> String {
    match nearest(word, names.iter().copied()) {
        Some(name) => format!("; did you mean \"{name}\"?"),
        None if names.len() <= 16 => format!("; known are {}", names.join(", ")),
        None => String::new(),
    }
}

/// A value of a knob. `names` are the bits of those that are lists of bits.
pub(super) trait Knob: Sized {
    /// Reads it.
    fn read(value: &Value<'_>, names: &[(&str, u64)]) -> Result<Self, KnobError>;
    /// Writes it as TOML.
    fn write(&self, names: &[(&str, u64)]) -> String;
}

/// Declares a set of named values.
macro_rules! values {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// The values, as written in a policy.
            pub const NAMES: &[&str] = &[$($text),*];

            /// As written in a policy.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl Knob for $name {
            fn read(value: &Value<'_>, _: &[(&str, u64)]) -> Result<Self, KnobError> {
                match value.get_ref().as_str() {
                    $(Some($text) => Ok(Self::$variant),)*
                    Some(other) => Err(KnobError::new(
                        value,
                        format!("unknown value \"{other}\"{}", nearest_hint(other, Self::NAMES)),
                    )),
                    None => Err(KnobError::expected(value, "a string")),
                }
            }

            fn write(&self, _: &[(&str, u64)]) -> String {
                format!("\"{}\"", self.name())
            }
        }
    };
}
pub(super) use values;

impl Knob for bool {
    fn read(value: &Value<'_>, _: &[(&str, u64)]) -> Result<Self, KnobError> {
        value.get_ref().as_bool().ok_or_else(|| KnobError::expected(value, "true or false"))
    }

    fn write(&self, _: &[(&str, u64)]) -> String {
        self.to_string()
    }
}

impl Knob for u8 {
    fn read(value: &Value<'_>, _: &[(&str, u64)]) -> Result<Self, KnobError> {
        value
            .get_ref()
            .as_integer()
            .and_then(|i| Self::from_str_radix(i.as_str(), i.radix()).ok())
            .ok_or_else(|| KnobError::expected(value, "a whole number from 0 to 255"))
    }

    fn write(&self, _: &[(&str, u64)]) -> String {
        self.to_string()
    }
}

/// The strings of a list.
pub(super) fn strings<'v>(
    value: &'v Value<'_>,
) -> Result<Vec<(&'v str, &'v Value<'v>)>, KnobError> {
    let list = value
        .get_ref()
        .as_array()
        .ok_or_else(|| KnobError::expected(value, "a list of strings"))?;
    list.iter()
        .map(|item| match item.get_ref().as_str() {
            Some(text) => Ok((text, item)),
            None => Err(KnobError::expected(item, "a string")),
        })
        .collect()
}

/// A list of bits as a mask.
pub(super) fn read_bits(value: &Value<'_>, names: &[(&str, u64)]) -> Result<u64, KnobError> {
    let mut mask = 0;
    for (word, item) in strings(value)? {
        let Some(&(_, bit)) = names.iter().find(|(name, _)| *name == word) else {
            let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
            let hint = nearest_hint(word, &known);
            return Err(KnobError::new(item, format!("unknown bit \"{word}\"{hint}")));
        };
        mask |= bit;
    }
    Ok(mask)
}

/// A mask as a list of bits.
pub(super) fn write_bits(mask: u64, names: &[(&str, u64)]) -> String {
    let words: Vec<String> = names
        .iter()
        .filter(|(_, bit)| mask & bit != 0)
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    format!("[{}]", words.join(", "))
}

impl Knob for u64 {
    fn read(value: &Value<'_>, names: &[(&str, u64)]) -> Result<Self, KnobError> {
        read_bits(value, names)
    }

    fn write(&self, names: &[(&str, u64)]) -> String {
        write_bits(*self, names)
    }
}

impl Knob for RoleBits {
    fn read(value: &Value<'_>, names: &[(&str, u64)]) -> Result<Self, KnobError> {
        // The table holds bits below 2^32 only.
        read_bits(value, names).map(|mask| Self(u32::try_from(mask).unwrap_or(u32::MAX)))
    }

    fn write(&self, names: &[(&str, u64)]) -> String {
        write_bits(self.0.into(), names)
    }
}

/// The effects of load_pdptrs by name.
const PDPTR_EFFECTS: &[(&str, u64)] = &[("free-root", 1), ("request-pgd", 2)];

impl Knob for LoadPdptrs {
    fn read(value: &Value<'_>, _: &[(&str, u64)]) -> Result<Self, KnobError> {
        let mask = read_bits(value, PDPTR_EFFECTS)?;
        Ok(Self { free_root: mask & 1 != 0, request_pgd: mask & 2 != 0 })
    }

    fn write(&self, _: &[(&str, u64)]) -> String {
        write_bits(u64::from(self.free_root) | u64::from(self.request_pgd) << 1, PDPTR_EFFECTS)
    }
}

impl Knob for RemoteFlush {
    /// Not called: the loader lays the table over what is inherited (see `load`).
    fn read(value: &Value<'_>, _: &[(&str, u64)]) -> Result<Self, KnobError> {
        let table =
            value.get_ref().as_table().ok_or_else(|| KnobError::expected(value, "a table"))?;
        let mut patch = RemoteFlushPatch::default();
        for (key, item) in table {
            read_key(&mut patch, key, item)?;
        }
        let mut whole = Self::default();
        patch.apply(&mut whole);
        Ok(whole)
    }

    fn write(&self, _: &[(&str, u64)]) -> String {
        let items: Vec<String> =
            self.entries().into_iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("{{ {} }}", items.join(", "))
    }
}

/// Takes one key of `[mechanics.remote-flush]`.
pub(super) fn read_key(
    patch: &mut RemoteFlushPatch,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    item: &Value<'_>,
) -> Result<(), KnobError> {
    let word = key.get_ref().as_ref();
    patch.set(word, item).unwrap_or_else(|| {
        Err(KnobError {
            at: key.span().start,
            message: format!(
                "unknown mechanic \"remote-flush.{word}\"{}",
                nearest_hint(word, RemoteFlushPatch::KEYS)
            ),
        })
    })
}
