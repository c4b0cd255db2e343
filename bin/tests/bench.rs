//! `bench` as a CI uses it: the commands of the Makefile under docs/ci, and what makes them fail.

use std::fs;
use std::path::Path;
use std::process::Command;

fn make(folder: &Path, target: &str) -> (Option<i32>, String) {
    let makefile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ci/Makefile");
    let program = format!("TLBSCOPE={}", env!("CARGO_BIN_EXE_tlbscope"));
    let output = Command::new("make")
        .args(["-f", makefile.to_str().unwrap(), target, program.as_str(), "POLICIES=kvm-5.19"])
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

fn bench(args: &[&str]) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tlbscope")).arg("bench").args(args).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_change_is_seen_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(make(folder.path(), "baseline").0, Some(0));
    let (code, text) = make(folder.path(), "check");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Nothing changed"), "{text}");
    // A baseline of a kernel that was cheaper: one guest flush less each, a tenth of the cycles.
    let path = folder.path().join("tlb-baseline.json");
    let mut value: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for entry in value["summary"].as_array_mut().unwrap() {
        let cycles = entry["cycles"].as_u64().unwrap();
        entry["cycles"] = (cycles / 10).into();
    }
    fs::write(&path, value.to_string()).unwrap();
    let (code, text) = make(folder.path(), "check");
    assert_ne!(code, Some(0));
    assert!(text.contains("FAILED") && text.contains("`cycles>+2%` holds for boot"), "{text}");
    assert!(text.contains("| boot | kvm-5.19 | cycles |"), "{text}");
}

#[test]
fn conditions_that_cannot_be_tried() {
    let fails = |args: &[&str], word: &str| {
        let (code, text) = bench(args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(word), "{text}");
    };
    fails(&["--fail-on", "missed>+0"], "--baseline");
    fails(&["--fail-on", "missed=0"], "`>` is missing");
    fails(&["--fail-on", "cycels>0", "--policy", "never"], "no such number");
    fails(&["--baseline", "/nonexistent"], "/nonexistent");
}
