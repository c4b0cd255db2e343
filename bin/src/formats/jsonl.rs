//! JSON Lines: one object a line, each with its `type`. The first says what follows.

use anyhow::Result;
use serde_json::{Value, json};

use super::document::{Document, Run};
use crate::output;

/// The lines.
pub fn write(document: &Document<'_>) -> Result<String> {
    let mut out = String::new();
    let mut line = |value: &Value| {
        out += &value.to_string();
        out.push('\n');
    };
    line(&json!({
        "type": "header",
        "schema": format!("{}l", output::schema(document.command)),
        "tool": output::tool(),
        "inputs": document.inputs,
    }));
    for run in &document.runs {
        line(&with("summary", run.summary.clone(), run));
        for item in &run.items {
            let mut value = item.json();
            value["at"] = json!(item.cause);
            value["seen"] = json!(item.seen);
            line(&with("finding", value, run));
        }
        for group in run.groups_json() {
            line(&with("group", group, run));
        }
        for (kind, value) in &run.more {
            line(&with(kind, value.clone(), run));
        }
    }
    for comparison in document.comparisons {
        let policies: Vec<&str> = comparison.policies().collect();
        let of = |part: Value, row: Value| {
            let mut value = json!({ "type": "row", "trace": comparison.trace, "part": part });
            value["policies"] = json!(policies);
            merge(&mut value, &row);
            value
        };
        for row in &comparison.rows {
            line(&of(Value::Null, json!(row)));
        }
        for section in &comparison.sections {
            for row in &section.rows {
                line(&of(json!(section.name), json!(row)));
            }
        }
    }
    Ok(out)
}

/// An object with its type, and the trace and policy that it belongs to.
fn with(kind: &str, value: Value, run: &Run) -> Value {
    let mut line = json!({ "type": kind, "trace": run.trace });
    if let Some(policy) = &run.policy {
        line["policy"] = json!(policy);
    }
    merge(&mut line, &value);
    line
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        into.extend(from.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}
