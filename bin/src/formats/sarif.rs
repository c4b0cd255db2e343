//! SARIF 2.1.0: one run of the tool, one result for each kept finding.
//!
//! The physical location is the line of a text recording; the logical one names the event, and is
//! all there is in a binary trace. Levels: `error` for what makes the program exit with 1, `warning`
//! for benign misses, `note` for the rest.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use tlbscope_analyze::finding::Kind;

use super::document::{Document, Item, Place, Run, fails, message, rule, word};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [ToolRun; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolRun {
    tool: Value,
    invocations: Value,
    artifacts: Vec<Value>,
    results: Vec<SarifResult>,
    column_kind: &'static str,
    properties: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SarifResult {
    rule_id: &'static str,
    rule_index: usize,
    level: &'static str,
    message: Text,
    locations: Vec<Location>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    related_locations: Vec<Location>,
    occurrence_count: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suppressions: Vec<Value>,
    partial_fingerprints: BTreeMap<&'static str, String>,
    properties: Value,
}

#[derive(Serialize)]
struct Text {
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    physical_location: Value,
    logical_locations: [Value; 1],
    message: Text,
}

/// The log.
pub fn write(document: &Document<'_>) -> Result<String> {
    let (mut rules, mut results) = (Vec::new(), Vec::new());
    for run in &document.runs {
        results.extend(run.items.iter().map(|item| result(run, item, &mut rules)));
    }
    let driver = json!({
        "name": "tlbscope",
        "version": env!("CARGO_PKG_VERSION"),
        "rules": rules.iter().map(|id| describe(id)).collect::<Vec<_>>(),
    });
    let artifact = |input: &crate::input::Input| {
        let hashes = json!({ "xxh3-64": input.digest });
        json!({ "location": { "uri": uri(&input.path) }, "hashes": hashes })
    };
    let unlisted: u64 = document.runs.iter().map(Run::unlisted).sum();
    let summaries: Vec<&Value> = document.runs.iter().map(|run| &run.summary).collect();
    let run = ToolRun {
        tool: json!({ "driver": driver }),
        invocations: invocations(document),
        artifacts: document.inputs.iter().map(artifact).collect(),
        results,
        column_kind: "unicodeCodePoints",
        properties: json!({ "command": document.command, "unlisted": unlisted, "summary": summaries }),
    };
    let schema = "https://json.schemastore.org/sarif-2.1.0.json";
    Ok(serde_json::to_string_pretty(&Log { schema, version: "2.1.0", runs: [run] })?)
}

/// Whether the whole of the input was seen, and what not.
fn invocations(document: &Document<'_>) -> Value {
    let losses = document.runs.iter().flat_map(|run| {
        run.losses.iter().map(move |loss| {
            let text = format!("{}: {loss}", run.trace);
            json!({ "level": "error", "message": { "text": text } })
        })
    });
    let losses: Vec<Value> = losses.collect();
    json!([{ "executionSuccessful": losses.is_empty(), "toolExecutionNotifications": losses }])
}

/// A rule of a manual, or the name of what was too much.
fn describe(id: &str) -> Value {
    match rule(id) {
        Some(rule) => json!({
            "id": id,
            "shortDescription": { "text": rule.sentence },
            "help": { "text": rule.citation },
        }),
        None => json!({
            "id": id,
            "shortDescription": { "text": format!("{id}: more was done than was owed") },
        }),
    }
}

fn result(run: &Run, item: &Item, rules: &mut Vec<&'static str>) -> SarifResult {
    let f = &item.finding;
    let rule_index = rules.iter().position(|id| *id == f.rule).unwrap_or_else(|| {
        rules.push(f.rule);
        rules.len() - 1
    });
    let under = run.policy.as_ref().map(|policy| format!("under {policy}: ")).unwrap_or_default();
    let mut properties = json!({
        "trace": run.trace, "policy": run.policy, "verdict": word(f.kind), "vcpu": f.vcpu,
        "operation": f.op, "mechanism": f.mechanism, "event": f.cause, "timeNs": item.cause.time,
    });
    if let Kind::Missed { harmful } = f.kind {
        properties["harmful"] = json!(harmful);
    }
    if let Some(address) = f.address {
        properties["address"] = json!(format!("{address:#x}"));
    }
    let policy = run.policy.as_deref().unwrap_or_default();
    // What stays the same while a trace is recorded anew.
    let fingerprint =
        format!("{policy}/{}/{}/{}/{}/v{}", word(f.kind), f.rule, f.op, f.mechanism, f.vcpu);
    SarifResult {
        rule_id: f.rule,
        rule_index,
        level: level(f.kind),
        message: Text { text: format!("{under}{}", message(f)) },
        locations: vec![location(run, &item.cause, f.vcpu, None)],
        related_locations: item
            .seen
            .iter()
            .map(|seen| location(run, seen, f.vcpu, Some(1)))
            .collect(),
        occurrence_count: f.count.max(1),
        suppressions: item
            .suppressed
            .iter()
            .map(|by| {
                let region = json!({ "startLine": by.line });
                let location = json!({
                    "physicalLocation": {
                        "artifactLocation": { "uri": uri(&by.file) }, "region": region,
                    },
                });
                json!({ "kind": "external", "justification": by.reason, "location": location })
            })
            .collect(),
        partial_fingerprints: [("tlbscope/v1", fingerprint)].into(),
        properties,
    }
}

const fn level(kind: Kind) -> &'static str {
    match kind {
        kind if fails(kind) => "error",
        Kind::Missed { .. } => "warning",
        _ => "note",
    }
}

fn location(run: &Run, place: &Place, vcpu: u16, id: Option<u32>) -> Location {
    let mut physical = json!({ "artifactLocation": { "uri": uri(&run.trace) } });
    let qualified = match place.line {
        0 => format!("{}#{}", run.trace, place.event),
        line => {
            physical["region"] = json!({ "startLine": line });
            format!("{}:{line}", run.trace)
        }
    };
    let name = format!("event {} on v{vcpu}", place.event);
    Location {
        id,
        physical_location: physical,
        logical_locations: [json!({ "name": name, "fullyQualifiedName": qualified })],
        message: Text { text: place.what.clone() },
    }
}

/// A path as a URI reference.
fn uri(path: &str) -> String {
    let mut out = String::new();
    if path.starts_with('/') {
        out.push_str("file://");
    }
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}
