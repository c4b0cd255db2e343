//! A policy that is no built-in, as the table that a scenario carries: what it changes of the
//! built-in that is nearest to it.

use tlbscope_sim::policy::{self, Policy};
use toml::{Table, Value};

/// The name that the scenario uses, and the table `[policy.NAME]` where it is no built-in.
pub(super) fn table(of: &Policy) -> Option<(String, Option<Table>)> {
    let builtins = policy::builtins().iter().filter_map(|(name, _)| policy::load(name).ok());
    let builtins: Vec<Policy> = builtins.collect();
    if builtins.contains(of) {
        return Some((of.name.clone(), None));
    }
    let whole: Table = of.to_toml().parse().ok()?;
    let nearest = builtins
        .iter()
        .filter(|base| base.ideal == of.ideal && base.control == of.control)
        .filter_map(|base| Some((base, changes(&whole, &base.to_toml().parse().ok()?))))
        .min_by_key(|(_, changes)| weight(changes));
    let mut table = Table::new();
    if !of.about.is_empty() && nearest.as_ref().is_none_or(|(base, _)| base.about != of.about) {
        table.insert("about".to_owned(), Value::from(of.about.clone()));
    }
    match nearest {
        Some((base, changes)) => {
            table.insert("extends".to_owned(), Value::from(base.name.clone()));
            table.extend(changes);
        }
        None => table.extend(whole.into_iter().filter(|(key, _)| key != "name" && key != "about")),
    }
    let taken = builtins.iter().any(|base| base.name == of.name);
    let name = if taken { format!("{}-changed", of.name) } else { of.name.clone() };
    Some((name, Some(table)))
}

/// What stands in one document and not in the other: rules by register, mechanics one by one.
fn changes(of: &Table, base: &Table) -> Table {
    let mut changes = Table::new();
    for (key, value) in of.iter().filter(|(key, _)| *key != "name" && *key != "about") {
        match (value, base.get(key)) {
            (_, Some(same)) if same == value => {}
            (Value::Table(of), Some(Value::Table(base))) => {
                let below = of.iter().filter(|(key, value)| base.get(*key) != Some(value));
                let below: Table = below.map(|(k, v)| (k.clone(), v.clone())).collect();
                changes.insert(key.clone(), Value::Table(below));
            }
            _ => _ = changes.insert(key.clone(), value.clone()),
        }
    }
    // A register without rules is not in the document.
    for (key, _) in base.iter().filter(|(key, value)| value.is_array() && !of.contains_key(*key)) {
        changes.insert(key.clone(), Value::Array(Vec::new()));
    }
    changes
}

/// How much there is to read.
fn weight(changes: &Table) -> usize {
    toml::to_string(changes).map_or(usize::MAX, |text| text.len())
}
