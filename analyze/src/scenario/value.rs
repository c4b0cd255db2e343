//! Values of a TOML file, with an error at their place if they are of another type.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ScenarioError, Source};

type Value<'a> = Spanned<DeValue<'a>>;

/// A table.
pub(super) fn table<'v, 'i>(
    source: Source<'_>,
    value: &'v Value<'i>,
    what: &str,
) -> Result<&'v DeTable<'i>, ScenarioError> {
    value.get_ref().as_table().ok_or_else(|| wrong(source, value, what, "a table"))
}

/// A string.
pub(super) fn string<'v>(
    source: Source<'_>,
    value: &'v Value<'_>,
    what: &str,
) -> Result<&'v str, ScenarioError> {
    value.get_ref().as_str().ok_or_else(|| wrong(source, value, what, "a string"))
}

/// A whole number, not negative.
pub(super) fn integer(
    source: Source<'_>,
    value: &Value<'_>,
    what: &str,
) -> Result<u64, ScenarioError> {
    let parsed =
        value.get_ref().as_integer().and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok());
    parsed.ok_or_else(|| wrong(source, value, what, "a whole number from 0 on"))
}

fn wrong(source: Source<'_>, value: &Value<'_>, what: &str, wanted: &str) -> ScenarioError {
    let found = value.get_ref().type_str();
    source.error(&value.span(), format!("{what} must be {wanted}, not {found}"))
}
