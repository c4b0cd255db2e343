//! `compare`: the table for people, and the numbers taken apart.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn run(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlbscope"));
    let output = command.args(args).current_dir(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `compare` of a list of events, with these arguments.
fn compare(events: &str, args: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.txt"), events).unwrap();
    run(folder.path(), &[&["compare", "t.txt"], args].concat())
}

fn sections(events: &str, by: &str) -> Vec<Value> {
    let args = ["--policy", "kvm-5.17,never", "--by", by, "--format", "json"];
    let value: Value = serde_json::from_str(&compare(events, &args)).unwrap();
    value["comparisons"][0]["sections"].as_array().unwrap().clone()
}

/// What the first policy has of a section's row.
fn first(sections: &[Value], name: &str, row: &str) -> u64 {
    let section = sections.iter().find(|section| section["name"] == name);
    let section = section.unwrap_or_else(|| panic!("no {name} in {sections:?}"));
    let rows = section["rows"].as_array().unwrap();
    let found = rows.iter().find(|r| r["name"] == row);
    found.map_or(0, |row| row["values"][0].as_u64().unwrap())
}

/// SMEP is in the role of 5.17, so both writes of CR4 reset the MMU; so is CR0.WP.
const WRITES: &str = "v0 cr4 +SMEP\nv0 cr4 -SMEP\nv1 cr0 -WP\nv0 invlpg 0x7000\n";

#[test]
fn by_register() {
    let sections = sections(WRITES, "register");
    let operations =
        |name| sections.iter().find(|s| s["name"] == name).unwrap()["operations"].clone();
    assert_eq!((operations("cr4"), operations("cr0")), (2.into(), 1.into()));
    assert_eq!(first(&sections, "cr4", "resets"), 2);
    assert_eq!(first(&sections, "cr0", "resets"), 1);
    assert_eq!(first(&sections, "invlpg", "resets"), 0);
    assert_eq!(first(&sections, "invlpg", "flush-gva"), 1);
    assert_eq!(first(&sections, "cr4", "flush-gva"), 0);
}

#[test]
fn by_transition() {
    let sections = sections(WRITES, "transition");
    for name in ["CR4 +SMEP, paging", "CR4 -SMEP, paging", "CR0 -WP, paging"] {
        assert_eq!(first(&sections, name, "resets"), 1, "{name}");
        assert_eq!(first(&sections, name, "exits"), 1, "{name}");
    }
}

#[test]
fn by_vcpu() {
    // `never` serves neither obligation of v0; v1's store of a page table is no obligation.
    let sections = sections(WRITES, "vcpu");
    assert_eq!((first(&sections, "v0", "exits"), first(&sections, "v1", "exits")), (3, 1));
    assert_eq!((first(&sections, "v0", "resets"), first(&sections, "v1", "resets")), (2, 1));
}

#[test]
fn what_differs_and_what_is_best_is_marked() {
    // As in the README: `never` is out of the ranking of costs because it exposes.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let trace = "testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz";
    let policies = "kvm-5.17,kvm-patch-v2,kvm-5.19,never";
    let out = run(&root, &["compare", trace, "--policy", policies]);
    let row = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    // What an act costs is the processor's: the marks follow from the acts. The patch loads a root
    // less than 5.17, 5.19 resets once more.
    let marks = |words: Vec<String>| -> Vec<String> {
        words
            .iter()
            .map(|word| word.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
            .collect()
    };
    assert_eq!(marks(row("cycles")), ["", "*<", "*>", "*"]);
    assert_eq!(marks(row("exposed")), ["<", "<", "<", "*>"]);
    assert_eq!(marks(row("flush-gva")), ["", "", "", "*"]);
    assert!(out.contains("never!\n") && out.contains("! misses or exposes"), "{out}");
    assert!(out.contains("exposed [invpcid-all] at invpcid: never 2\n  --> testdata/"), "{out}");
}

#[test]
fn every_built_in_policy_fits_a_hundred_columns() {
    let names = [
        "kvm-5.10",
        "kvm-5.15",
        "kvm-5.17",
        "kvm-patch-v2",
        "kvm-5.17-keep-roots",
        "kvm-patch-v2-18",
        "kvm-5.19",
        "kvm-6.1-lts",
        "never",
    ];
    let out = compare(WRITES, &["--policy", &names.join(",")]);
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    assert_eq!(out.lines().filter(|line| line.starts_with("exits")).count(), 1, "{out}");
    let twice = [names, names].concat().join(",");
    let out = compare(WRITES, &["--policy", &twice]);
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    // Each block begins with the policy that the others are compared with.
    let heads = out.lines().filter(|line| line.split_whitespace().next() == Some("5.10"));
    assert!(heads.count() >= 2, "{out}");
}

#[test]
fn colour_is_for_terminals_and_on_request() {
    let policies = ["--policy", "kvm-5.17,never"];
    let plain = compare(WRITES, &policies);
    assert!(!plain.contains('\x1b'), "a pipe is no terminal");
    let coloured = compare(WRITES, &[&policies[..], &["--color", "always"]].concat());
    assert!(coloured.contains("\x1b[31m"), "{coloured}");
    let mut without = coloured;
    for code in ["\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"] {
        without = without.replace(code, "");
    }
    assert_eq!(without, plain, "colour is all that it adds");
}
