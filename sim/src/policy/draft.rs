//! One policy document, read but not yet laid over what it extends.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{PolicyError, place};
use super::knob::{Knob, KnobError, Value, nearest_hint, read_key};
use super::mechanics::{MechanicsPatch, PREV_ROOTS_MAX, RemoteFlushPatch};
use super::rule::{Register, Rule};
use super::rule_text::read_rules;
use super::{Control, Ideal, Policy};

/// A key with its place.
pub(super) type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;

/// The keys of a document, rule lists apart.
const KEYS: [&str; 4] = ["name", "about", "extends", "mechanics"];
/// Keys of `[mechanics]` that are kept in the policy itself.
const SPECIAL: [&str; 4] = ["ideal", "exit-flush", "never", "remote-flush"];

/// What a document extends.
#[derive(Clone, Debug)]
pub(super) struct Extends {
    /// The name or path.
    pub name: String,
    /// Where it is said.
    pub place: (usize, usize),
}

/// One document.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    /// Where it is from.
    pub origin: String,
    name: Option<String>,
    about: Option<String>,
    /// What it extends.
    pub extends: Option<Extends>,
    mechanics: MechanicsPatch,
    remote_flush: RemoteFlushPatch,
    ideal: Option<Ideal>,
    exit_flush: Option<bool>,
    never: Option<bool>,
    rules: [Option<Vec<Rule>>; Register::ALL.len()],
}

impl Draft {
    /// Reads a whole text.
    pub(super) fn parse(text: &str, origin: &str) -> Result<Self, PolicyError> {
        let table = DeTable::parse(text).map_err(|e| PolicyError::toml(origin, text, &e))?;
        Self::from_table(table.get_ref(), text, origin)
    }

    /// Reads a table of a text.
    pub(super) fn from_table(
        table: &DeTable<'_>,
        text: &str,
        origin: &str,
    ) -> Result<Self, PolicyError> {
        let mut draft = Self { origin: origin.to_owned(), ..Self::default() };
        for (key, value) in table {
            draft
                .take(key, value, text)
                .map_err(|e| PolicyError::at(origin, text, e.at, e.message))?;
        }
        Ok(draft)
    }

    fn take(&mut self, key: &Key<'_>, value: &Value<'_>, text: &str) -> Result<(), KnobError> {
        let word = key.get_ref().as_ref();
        match word {
            "name" => self.name = Some(string(value)?.to_owned()),
            "about" => self.about = Some(string(value)?.to_owned()),
            "extends" => {
                let name = string(value)?.to_owned();
                self.extends = Some(Extends { name, place: place(text, value.span().start) });
            }
            "mechanics" => {
                for (key, value) in table(value)? {
                    self.take_mechanic(key, value)?;
                }
            }
            _ => {
                let Some(register) = Register::ALL.into_iter().find(|r| r.key() == word) else {
                    return Err(unknown_key(key));
                };
                self.rules[register as usize] = Some(read_rules(register, value)?);
            }
        }
        Ok(())
    }

    fn take_mechanic(&mut self, key: &Key<'_>, value: &Value<'_>) -> Result<(), KnobError> {
        let word = key.get_ref().as_ref();
        match word {
            "ideal" => {
                self.ideal = Some(match string(value)? {
                    "no" => Ideal::No,
                    "hw-min" => Ideal::HwMin,
                    "arch-min" => Ideal::ArchMin,
                    other => {
                        let hint = nearest_hint(other, &["no", "hw-min", "arch-min"]);
                        return Err(KnobError::new(
                            value,
                            format!("unknown value \"{other}\"{hint}"),
                        ));
                    }
                });
            }
            "exit-flush" => self.exit_flush = Some(boolean(value)?),
            "never" => self.never = Some(boolean(value)?),
            "remote-flush" => {
                for (key, value) in table(value)? {
                    read_key(&mut self.remote_flush, key, value)?;
                }
            }
            "prev-roots" if u8::read(value, &[])? > PREV_ROOTS_MAX => {
                let message = format!("KVM's root cache has at most {PREV_ROOTS_MAX} entries");
                return Err(KnobError::new(value, message));
            }
            _ => {
                return self.mechanics.set(word, value).unwrap_or_else(|| {
                    let known = [MechanicsPatch::KEYS, &SPECIAL].concat();
                    let hint = nearest_hint(word, &known);
                    Err(at_key(key, format!("unknown mechanic \"{word}\"{hint}")))
                });
            }
        }
        Ok(())
    }

    /// The policy: this document over `base`. `fallback` is its name if it gives none.
    pub(super) fn over(self, base: Policy, fallback: &str) -> Policy {
        let mut policy = base;
        policy.name = self.name.unwrap_or_else(|| fallback.to_owned());
        policy.about = self.about.unwrap_or(policy.about);
        self.mechanics.apply(&mut policy.mechanics);
        self.remote_flush.apply(&mut policy.mechanics.remote_flush);
        policy.ideal = self.ideal.unwrap_or(policy.ideal);
        let flush = self.exit_flush.unwrap_or(policy.control == Control::FlushAll);
        let never = self.never.unwrap_or(policy.control == Control::Never);
        policy.control = match (never, flush) {
            (true, _) => Control::Never,
            (false, true) => Control::FlushAll,
            (false, false) => Control::None,
        };
        for (inherited, own) in policy.rules.iter_mut().zip(self.rules) {
            if let Some(own) = own {
                *inherited = own;
            }
        }
        policy
    }
}

/// An unknown key of a document.
fn unknown_key(key: &Key<'_>) -> KnobError {
    let word = key.get_ref().as_ref();
    let mut known: Vec<&str> = KEYS.to_vec();
    known.extend(Register::ALL.map(Register::key));
    if MechanicsPatch::KEYS.contains(&word) || SPECIAL.contains(&word) {
        return at_key(key, format!("\"{word}\" is a mechanic: write it below [mechanics]"));
    }
    at_key(key, format!("unknown key \"{word}\"{}", nearest_hint(word, &known)))
}

/// An error at a key.
pub(super) fn at_key(key: &Key<'_>, message: String) -> KnobError {
    KnobError { at: key.span().start, message }
}

/// A string.
pub(super) fn string<'v>(value: &'v Value<'_>) -> Result<&'v str, KnobError> {
    value.get_ref().as_str().ok_or_else(|| KnobError::expected(value, "a string"))
}

/// A boolean.
pub(super) fn boolean(value: &Value<'_>) -> Result<bool, KnobError> {
    value.get_ref().as_bool().ok_or_else(|| KnobError::expected(value, "true or false"))
}

/// A table.
pub(super) fn table<'v, 'a>(value: &'v Value<'a>) -> Result<&'v DeTable<'a>, KnobError> {
    value.get_ref().as_table().ok_or_else(|| KnobError::expected(value, "a table"))
}

/// A list.
pub(super) fn list<'v, 'a>(value: &'v Value<'a>) -> Result<&'v [Spanned<DeValue<'a>>], KnobError> {
    value
        .get_ref()
        .as_array()
        .map(|array| &**array)
        .ok_or_else(|| KnobError::expected(value, "a list"))
}
