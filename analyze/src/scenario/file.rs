//! Reads a scenario file.

use serde::Deserialize;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::{Library, Policy};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::Scenario;
use super::error::{ScenarioError, Source};
use super::events::List;
use super::expect::{self, Expect};
use super::policies;
use super::value::{string, table};

/// Top-level keys.
const KEYS: [&str; 7] = ["name", "about", "source", "events", "machine", "policy", "expect"];
/// A scenario is written by hand; what is larger is none.
const MAX_BYTES: usize = 4 << 20;

type Value<'a> = Spanned<DeValue<'a>>;
/// Policies by the names that the file gives them.
type NamedPolicies = Vec<(String, Policy)>;

impl Scenario {
    /// Reads a scenario. `file` is its name in errors.
    ///
    /// # Errors
    ///
    /// Text that is no TOML, and any key, label, operation, count, bit or policy that is not
    /// known, with its place.
    pub fn parse(file: &str, text: &str) -> Result<Self, ScenarioError> {
        let source = Source { file, text };
        if text.len() > MAX_BYTES {
            return Err(source.error_at(1, 1, "larger than 4 MiB: this is no scenario"));
        }
        let root = DeTable::parse(text).map_err(|error| {
            source.error(&error.span().unwrap_or(0..0), error.message().to_owned())
        })?;
        let root = root.get_ref();
        check_keys(source, root)?;
        let lists = lists(source, root)?;
        let machine = machine(source, root)?;
        for list in &lists {
            list.check_vcpus(source, machine.vcpus)?;
        }
        let library = policies::library(source, root)?;
        let (expects, policies) = expects(source, root, &lists, &library)?;
        Ok(Self {
            file: file.to_owned(),
            name: required(source, root, "name")?,
            about: required(source, root, "about")?,
            source: required(source, root, "source")?,
            lists,
            machine,
            expects,
            policies,
        })
    }
}

/// Refuses unknown keys, and top-level keys that slipped into a table.
fn check_keys(source: Source<'_>, root: &DeTable<'_>) -> Result<(), ScenarioError> {
    for (key, _) in root {
        let name = key.get_ref().as_ref();
        if !KEYS.contains(&name) {
            let error = source.error(&key.span(), format!("unknown key `{name}`"));
            return Err(error.did_you_mean(name, KEYS));
        }
    }
    for name in ["events", "name", "about", "source"] {
        if root.contains_key(name) {
            continue;
        }
        for (key, value) in root {
            if let Some((path, span)) = find_inside(key.get_ref(), value, name, 3) {
                let message = format!("`{name}` stands inside the table `[{path}]`");
                return Err(source.error(&span, message).hint(format!(
                    "`{name}` is a top-level key: move it above the first `[table]`"
                )));
            }
        }
    }
    Ok(())
}

/// Where a key stands inside a table, as the path of the table and the key's place.
fn find_inside(
    path: &str,
    value: &Value<'_>,
    name: &str,
    depth: u8,
) -> Option<(String, std::ops::Range<usize>)> {
    let entries = value.get_ref().as_table()?;
    for (key, value) in entries {
        // `about` is a key of a policy too.
        let policy = path.starts_with("policy.") && name != "events";
        if key.get_ref() == name && !policy && !value.get_ref().is_table() {
            return Some((path.to_owned(), key.span()));
        }
        if depth > 0 {
            let below = format!("{path}.{}", key.get_ref());
            if let Some(found) = find_inside(&below, value, name, depth - 1) {
                return Some(found);
            }
        }
    }
    None
}

fn required(source: Source<'_>, root: &DeTable<'_>, name: &str) -> Result<String, ScenarioError> {
    let Some(value) = root.get(name) else {
        return Err(source
            .error_at(1, 1, format!("`{name}` is missing"))
            .hint(format!("write `{name} = \"...\"` above the first `[table]`")));
    };
    Ok(string(source, value, &format!("`{name}`"))?.to_owned())
}

/// The lists of `events`: one without a name, or a table of named ones.
fn lists(source: Source<'_>, root: &DeTable<'_>) -> Result<Vec<List>, ScenarioError> {
    let Some(value) = root.get("events") else {
        return Err(source
            .error_at(1, 1, "`events` is missing")
            .hint("write `events = '''...'''` above the first `[table]`"));
    };
    let Some(named) = value.get_ref().as_table() else {
        return Ok(vec![List::parse(source, None, value)?]);
    };
    let mut lists = Vec::new();
    for (key, value) in named {
        lists.push(List::parse(source, Some(key.get_ref().to_string()), value)?);
    }
    Ok(lists)
}

fn machine(source: Source<'_>, root: &DeTable<'_>) -> Result<MachineConfig, ScenarioError> {
    let Some(value) = root.get("machine") else {
        return Ok(MachineConfig::default());
    };
    table(source, value, "`machine`")?;
    let config = MachineConfig::deserialize(ValueDeserializer::from(value.clone()));
    let config = config.map_err(|error| {
        source.error(&error.span().unwrap_or_else(|| value.span()), error.message().to_owned())
    })?;
    match config.conflict() {
        Some(why) => Err(source.error(&value.span(), why.to_owned())),
        None => Ok(config),
    }
}

/// `[expect.POLICY]` and `[expect.POLICY.LIST]`.
fn expects(
    source: Source<'_>,
    root: &DeTable<'_>,
    lists: &[List],
    library: &Library,
) -> Result<(Vec<Expect>, NamedPolicies), ScenarioError> {
    let Some(value) = root.get("expect") else {
        return Err(source
            .error_at(1, 1, "`[expect.POLICY]` is missing")
            .hint("without it no policy is run"));
    };
    let (mut expects, mut policies) = (Vec::new(), Vec::new());
    for (key, value) in table(source, value, "`expect`")? {
        let name = key.get_ref().as_ref();
        let entries = table(source, value, &format!("`expect.{name}`"))?;
        let below: Vec<_> = entries.iter().map(|(k, v)| (k.get_ref().as_ref(), v)).collect();
        policies.push((name.to_owned(), policies::find(source, library, key, &below)?));
        if lists.iter().all(|list| list.name.is_none()) {
            expects.push(expect::parse(source, name, (lists, 0), (&key.span(), entries))?);
            continue;
        }
        for (key, value) in entries {
            let list = key.get_ref().as_ref();
            let Some(at) = lists.iter().position(|known| known.name.as_deref() == Some(list))
            else {
                let message = format!("no list of events is called `{list}`");
                let names = lists.iter().filter_map(|known| known.name.as_deref());
                return Err(source.error(&key.span(), message).did_you_mean(list, names));
            };
            let entries = table(source, value, &format!("`expect.{name}.{list}`"))?;
            expects.push(expect::parse(source, name, (lists, at), (&key.span(), entries))?);
        }
    }
    Ok((expects, policies))
}
