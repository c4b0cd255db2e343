//! The policies that a scenario names: its own, and built-ins.

use tlbscope_sim::policy::{Library, Policy, PolicyError};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ScenarioError, Source};
use super::value::table;

/// Reads the policies of `[policy.NAME]`, so that they and what they extend can be found.
pub(super) fn library(source: Source<'_>, root: &DeTable<'_>) -> Result<Library, ScenarioError> {
    let mut library = Library::new();
    let Some(value) = root.get("policy") else {
        return Ok(library);
    };
    for (key, value) in table(source, value, "`policy`")? {
        let name = key.get_ref().as_ref();
        let entries = table(source, value, &format!("`policy.{name}`"))?;
        library
            .add_table(name, entries, source.text, source.file)
            .map_err(|error| placed(source, &key.span(), error))?;
    }
    Ok(library)
}

/// The policy of that name. One that is not known is answered with the nearest name, or with the
/// quotes that a name with a dot needs.
pub(super) fn find(
    source: Source<'_>,
    library: &Library,
    key: &Spanned<std::borrow::Cow<'_, str>>,
    entries: &[(&str, &Spanned<DeValue<'_>>)],
) -> Result<Policy, ScenarioError> {
    let name = key.get_ref().as_ref();
    if library.names().any(|known| known == name) {
        return library.load(name).map_err(|error| placed(source, &key.span(), error));
    }
    let error = source.error(&key.span(), format!("unknown policy `{name}`"));
    let dotted = entries
        .iter()
        .map(|(below, _)| format!("{name}.{below}"))
        .find(|dotted| library.names().any(|known| known == dotted))
        .or_else(|| {
            let start = format!("{name}.");
            library.names().find(|known| known.starts_with(&start)).map(str::to_owned)
        });
    Err(match dotted {
        Some(dotted) => {
            error.hint(format!("a name with a dot needs quotes: `[expect.\"{dotted}\"]`"))
        }
        None => error.did_you_mean(name, library.names()),
    })
}

/// A policy's error as one of the scenario; without a place of its own it stands at `span`.
fn placed(source: Source<'_>, span: &std::ops::Range<usize>, error: PolicyError) -> ScenarioError {
    match error.place {
        Some((line, column)) if error.origin == source.file => {
            source.error_at(line, column, error.message)
        }
        Some(_) => source.error(span, error.to_string()),
        None => source.error(span, error.message),
    }
}
