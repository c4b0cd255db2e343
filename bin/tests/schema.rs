//! The checked-in schemas are the generated ones, and what the commands print keeps to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlbscope"));
    let output = command.args(args).current_dir(root()).output().unwrap();
    assert!(
        output.status.code() < Some(2),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&run(&["schema", name])).unwrap()
}

/// The part of JSON Schema that the generated schemas use. What is not known here fails: a schema
/// that says more must be read with more.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Value::Bool(any) = schema {
        return if *any { Ok(()) } else { Err(format!("{at}: not allowed")) };
    }
    let object = schema.as_object().unwrap();
    let wrong = |what: &str| Err(format!("{at}: {what}: {value}"));
    for (key, rule) in object {
        match key.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "format" | "default"
            | "minimum" | "maximum" => {}
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                check(root, &root["$defs"][name], value, at)?;
            }
            "type" => {
                let names: Vec<&str> = match rule {
                    Value::Array(names) => names.iter().map(|n| n.as_str().unwrap()).collect(),
                    name => vec![name.as_str().unwrap()],
                };
                let is = |name: &&str| match *name {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                if !names.iter().any(is) {
                    return wrong(&format!("no {names:?}"));
                }
            }
            "const" if value != rule => return wrong(&format!("not {rule}")),
            "enum" if !rule.as_array().unwrap().contains(value) => return wrong("not in the list"),
            "const" | "enum" => {}
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.is_object() && value.get(name.as_str().unwrap()).is_none() {
                        return wrong(&format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, below) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(root, below, value, &format!("{at}/{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = object.get("properties").and_then(Value::as_object);
                for (name, value) in value.as_object().into_iter().flatten() {
                    if known.is_none_or(|known| !known.contains_key(name)) {
                        check(root, rule, value, &format!("{at}/{name}"))?;
                    }
                }
            }
            "items" => {
                let from = object.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
                for (n, value) in value.as_array().into_iter().flatten().enumerate().skip(from) {
                    check(root, rule, value, &format!("{at}/{n}"))?;
                }
            }
            "prefixItems" => {
                let pairs =
                    rule.as_array().unwrap().iter().zip(value.as_array().into_iter().flatten());
                for (n, (rule, value)) in pairs.enumerate() {
                    check(root, rule, value, &format!("{at}/{n}"))?;
                }
            }
            "minItems" | "maxItems" => {
                let (n, limit) =
                    (value.as_array().map_or(0, Vec::len) as u64, rule.as_u64().unwrap());
                if (key == "minItems" && n < limit) || (key == "maxItems" && n > limit) {
                    return wrong(key);
                }
            }
            "allOf" => {
                for rule in rule.as_array().unwrap() {
                    check(root, rule, value, at)?;
                }
            }
            "anyOf" | "oneOf" => {
                let tried: Vec<_> =
                    rule.as_array().unwrap().iter().map(|r| check(root, r, value, at)).collect();
                let fit = tried.iter().filter(|one| one.is_ok()).count();
                if fit == 0 || key == "oneOf" && fit > 1 {
                    return wrong(&format!("{fit} of {key} fit: {tried:?}"));
                }
            }
            other => panic!("{at}: the schema says `{other}`, which this test does not know"),
        }
    }
    Ok(())
}

#[track_caller]
fn keeps(name: &str, args: &[&str]) {
    let document: Value = serde_json::from_str(&run(args)).unwrap();
    let schema = schema(name);
    check(&schema, &schema, &document, "").unwrap();
    assert_eq!(document["schema"], schema["$id"]);
}

#[test]
fn the_checked_in_files_are_the_generated_ones() {
    let names = run(&["schema"]);
    assert!(names.lines().count() >= 7, "{names}");
    for name in names.lines() {
        let path = root().join("docs/schema").join(format!("{name}.json"));
        let file = fs::read_to_string(&path).unwrap_or_default();
        let says = format!("write it with `tlbscope schema {name} > docs/schema/{name}.json`");
        assert!(file == run(&["schema", name]), "{}: {says}", path.display());
    }
}

const SHADOW: &str = "testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz";
const TDP: &str = "testdata/recordings/vmx-a-blob-ept1.trace.txt.xz";

#[test]
fn documents_keep_to_their_schemas() {
    keeps("simulate", &["simulate", SHADOW, "--policy", "never", "--format", "json"]);
    keeps("simulate", &["simulate", SHADOW, "--policy", "kvm-5.19", "--format", "json"]);
    let policies = ["--policy", "kvm-5.17,never", "--format", "json"];
    keeps("compare", &[&["compare", SHADOW, TDP], &policies[..]].concat());
    keeps("compare", &[&["compare", SHADOW, "--by", "transition"], &policies[..]].concat());
    keeps("audit", &["audit", SHADOW, TDP, "--format", "json"]);
    keeps("audit", &["audit", TDP, "--no-transitions", "--format", "json"]);
    keeps("fidelity", &["fidelity", SHADOW, "--format", "json"]);
    keeps("scenarios", &["scenarios", "testdata/scenarios/golden", "--format", "json"]);
    let race = "testdata/scenarios/mechanics/pv-flush.toml";
    keeps("scenarios", &["scenarios", race, "--interleave", "3", "--format", "json"]);
}

#[test]
fn what_is_wrong_does_not_keep_to_it() {
    let schema = schema("simulate");
    let args = ["simulate", SHADOW, "--policy", "never", "--format", "json"];
    let good: Value = serde_json::from_str(&run(&args)).unwrap();
    let bad = |change: &dyn Fn(&mut Value)| {
        let mut document = good.clone();
        change(&mut document);
        check(&schema, &schema, &document, "").unwrap_err()
    };
    bad(&|d| d["summary"][0]["missed"] = "none".into());
    bad(&|d| d["schema"] = "tlbscope/simulate/2".into());
    bad(&|d| d["more"] = 1.into());
    bad(&|d| d["findings"][0]["kind"] = "perhaps".into());
    bad(&|d| drop(d.as_object_mut().unwrap().remove("groups")));
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlbscope"));
    let output = command.args(["schema", "simulat"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("did you mean `simulate`?"), "{said}");
    assert_eq!(run(&["schema", "tlbscope/audit/1"]), run(&["schema", "audit"]));
}
