//! `conformance` as its users meet it: what fails and by whom, exit codes, places and mends.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// One INVLPG of `VA`, an entry for 0x1000 of which `EXPECT` is expected.
const CASE: &str = r#"{"schema_version": 1, "cases": [
 {"id": "T-INVLPG-01", "vendor": "intel",
  "state": {"cr0": "0x80050033", "cr3": "0x1000", "cr4": "0xb0", "efer": "0xd01"},
  "entries": [{"id": "x", "kind": "tlb", "map": "linear", "va": "0x1000"}],
  "ops": [{"name": "invlpg", "va": "VA"}],
  "fault": null, "expect": {"x": "EXPECT"}, "confidence": "explicit"}
]}"#;

fn case(va: &str, expect: &str) -> String {
    CASE.replace("VA", va).replace("EXPECT", expect)
}

/// Exit code, standard output, standard error.
fn run(text: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.json"), text).unwrap();
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program)
        .args(["conformance", "c.json"])
        .args(args)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let (code, out, err) = run(text, &[]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    for word in words {
        assert!(err.contains(word), "`{word}` is not in: {err}");
    }
}

#[test]
fn a_case_passes_with_the_fewest_keys() {
    let (code, out, _) = run(&case("0x1000", "must_be_invalid"), &[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.starts_with("1 passed, 0 failed, 0 skipped; 0 of 0 entries"), "{out}");
}

#[test]
fn a_failure_names_group_case_entry_and_who_failed_it() {
    let (code, out, _) = run(&case("0x2000", "must_be_invalid"), &[]);
    assert_eq!(code, Some(1));
    for words in [
        "T-INVLPG: 0 passed, 1 failed (1 by hardware, 1 by table)",
        "FAILED T-INVLPG-01",
        "hardware: entry `x`: must be invalid, and is still there",
        "table: entry `x`: must be invalid, and no rule says so",
    ] {
        assert!(out.contains(words), "`{words}` is not in: {out}");
    }
    // The hardware may drop what may remain; the table may not demand it.
    let (code, out, _) = run(&case("0x1000", "may_remain"), &[]);
    assert_eq!(code, Some(1));
    assert!(out.contains("(0 by hardware, 1 by table)"), "{out}");
    assert!(out.contains("1 of 1 entries that may remain dropped"), "{out}");
    assert!(out.contains("may remain, but `invlpg` wants it gone"), "{out}");
}

#[test]
fn json_has_the_summary_groups_and_cases() {
    let contradictory = case("0x2000", "must_be_invalid").replace("explicit", "contradictory");
    let (code, out, _) = run(&contradictory, &["--format", "json"]);
    assert_eq!(code, Some(0));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["summary"], serde_json::json!({"passed": 0, "failed": 0, "skipped": 1}));
    assert_eq!(value["groups"][0]["name"], "T-INVLPG");
    assert_eq!(value["cases"][0]["verdict"], "skipped");
    assert_eq!(value["inputs"][0]["path"], "c.json");
}

#[test]
fn faults_are_compared() {
    let fault = |text: &str| case("0x2000", "may_remain").replace("null", text);
    let (code, out, _) = run(&fault("\"#GP(0)\""), &[]);
    assert_eq!(code, Some(1));
    assert!(out.contains("#GP(0) is expected, and nothing is refused"), "{out}");
    let user = fault("null").replace("\"cr0\"", "\"cpl\": 3, \"cr0\"");
    let (code, out, _) = run(&user, &[]);
    assert_eq!(code, Some(1));
    assert!(out.contains("#GP(0): a privileged instruction at CPL > 0"), "{out}");
    assert_eq!(run(&user.replace("null", "\"#GP(0)\""), &[]).0, Some(0));
}

#[test]
fn what_the_model_cannot_express_fails_and_is_named() {
    let op = case("0x1000", "must_be_invalid").replace("\"invlpg\"", "\"invlpgx\"");
    let state = case("0x1000", "must_be_invalid").replace("\"efer\"", "\"ept\": 1, \"efer\"");
    let operand = case("0x1000", "must_be_invalid")
        .replace("\"va\": \"0x1000\"}],\n  \"f", "\"vb\": 1}],\n  \"f");
    for (text, words) in [
        (op, "`invlpgx` (did you mean `invlpg`?) is not modelled"),
        (state, "the state `ept` (did you mean `eptp`?) is not modelled"),
        (operand, "`invlpg` takes no operand `vb` (did you mean `va`?)"),
    ] {
        let (code, out, err) = run(&text, &[]);
        assert_eq!(code, Some(1), "{err}");
        assert!(out.contains("0 passed, 1 failed"), "{out}");
        assert!(out.contains(words), "`{words}` is not in: {out}");
    }
}

#[test]
fn broken_files_are_refused_with_place_and_mend() {
    let good = case("0x1000", "must_be_invalid");
    refused("", &["c.json:1:1"]);
    refused("\u{feff}", &["c.json:1:1"]);
    refused("{\"cases\": [", &["c.json:1:11"]);
    refused("[1]", &["c.json:1:"]);
    refused("{}", &["c.json:1:2", "missing field `cases`"]);
    refused(&good.replace("\"ops\"", "\"opps\""), &["c.json:5:", "`opps`", "did you mean `ops`?"]);
    refused(&good.replace("\"kind\"", "\"knd\""), &["c.json:4:", "did you mean `kind`?"]);
    refused(&good.replace("\"tlb\"", "\"tbl\""), &["c.json:4:", "did you mean `tlb`?"]);
    refused(&good.replace("{\"x\":", "{\"y\":"), &["c.json:2:", "names no entry", "`y`"]);
    refused(&good.replace("n\": 1", "n\": 9"), &["c.json:1:2", "schema_version 9", "reads 1"]);
    let absent = Path::new(env!("CARGO_BIN_EXE_tlbscope"));
    let output = Command::new(absent).args(["conformance", "no-such.json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such.json"));
}
