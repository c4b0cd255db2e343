//! `export --to scenario`: one finding becomes a file that shows it again.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../");

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tlbscope")).args(args).current_dir(folder).output().unwrap()
}

/// Exports finding `n` of `trace` and runs the result; the file's text.
#[track_caller]
fn exported(folder: &Path, trace: &str, policy: &str, n: usize) -> String {
    let n = n.to_string();
    let args = ["export", trace, "-o", "bug.toml", "--to", "scenario", "--policy", policy];
    let made = run(folder, &[&args[..], &["--max-findings", "3", "--around", &n]].concat());
    let err = String::from_utf8_lossy(&made.stderr).into_owned();
    assert_eq!(made.status.code(), Some(0), "{trace} under {policy}, finding {n}: {err}");
    let text = fs::read_to_string(folder.join("bug.toml")).unwrap();
    let ran = run(folder, &["scenarios", "bug.toml"]);
    assert_eq!(ran.status.code(), Some(0), "{}\n{text}", String::from_utf8_lossy(&ran.stdout));
    text
}

/// The findings of a run as JSON: rule and number.
fn findings(folder: &Path, trace: &str, policy: &str) -> Vec<String> {
    let args = ["simulate", trace, "--policy", policy, "--max-findings", "3", "--format", "json"];
    let out = run(folder, &args);
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let all = value["findings"].as_array().unwrap().iter();
    all.map(|finding| finding["rule"].as_str().unwrap().to_owned()).collect()
}

/// Finding after finding: the rule that the file is about is the finding's.
#[track_caller]
fn each(folder: &Path, trace: &str, policy: &str, step: usize) {
    let rules = findings(folder, trace, policy);
    assert!(!rules.is_empty(), "{trace} under {policy} has no finding");
    for (n, rule) in rules.iter().enumerate().step_by(step) {
        let text = exported(folder, trace, policy, n + 1);
        assert!(text.contains(&format!("[{rule}]")), "{rule}:\n{text}");
        let lines = text.lines().filter(|line| line.contains("  # event ")).count();
        assert!((1..=20).contains(&lines), "{lines} operations:\n{text}");
    }
}

#[test]
fn what_the_finding_does_not_take_is_dropped() {
    // The list of the README between operations that have nothing to do with it. CR3 need not be
    // written: the mapping may as well lie in the root that a vCPU starts with.
    let list = "v1 read 0x9000\nv0 cr3 0x10000\nv0 map 0x7000 0x5000 rwxg\nv0 cpuid\n\
                v0 read 0x7000\nv0 map 0x8000 0x4000 rw\nv0 map 0x7000 0x6000 rwxg\n\
                v0 read 0x8000\nv0 cr4 -PGE\nv1 cr4 -PGE\nv0 read 0x7000\nv0 exit\n";
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("work.txt"), list).unwrap();
    let rules = findings(folder.path(), "work.txt", "never");
    let number = rules.iter().position(|rule| rule == "cr4-pge").unwrap() + 1;
    let text = exported(folder.path(), "work.txt", "never", number);
    let (_, after) = text.split_once("events = '''\n").unwrap();
    let (events, after) = after.split_once("'''").unwrap();
    let events: Vec<&str> =
        events.lines().filter_map(|line| line.split('#').next()).map(str::trim).collect();
    assert_eq!(
        events,
        [
            "v0 map 0x7000 0x5000 4k rwxg",
            "v0 read 0x7000",
            "v0 map 0x7000 0x6000 4k rwxg",
            "cause: v0 cr4 -PGE",
            "use:   v0 read 0x7000 = 0x6000",
        ],
        "{text}"
    );
    assert!(!after.contains("vcpus"), "one vCPU will do: {text}");
    let expected = "[expect.never]\nmissed = [{ use = \"use\", cause = \"cause\" }]\n";
    assert!(after.contains(expected), "{text}");
    assert!(after.contains("[expect.hw-min]\nmissed = []\n"), "{text}");
    assert!(text.contains("SDM vol. 3"), "the rule of the manual is cited: {text}");
}

#[test]
fn findings_of_recordings_under_never() {
    let folder = tempfile::tempdir().unwrap();
    for (name, step) in [("vmx-b-pcid-ept0.trace.txt.xz", 3), ("svm-tiny-npt0-head.trace.dat", 5)] {
        each(folder.path(), &format!("{ROOT}testdata/recordings/{name}"), "never", step);
    }
}

#[test]
fn findings_of_a_removed_rule() {
    let folder = tempfile::tempdir().unwrap();
    let policy = "name = \"no-cr4\"\nextends = \"kvm-5.17\"\ncr4 = []\n";
    fs::write(folder.path().join("no-cr4.toml"), policy).unwrap();
    let trace = format!("{ROOT}testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz");
    each(folder.path(), &trace, "./no-cr4.toml", 1);
    let text = fs::read_to_string(folder.path().join("bug.toml")).unwrap();
    let own = "[policy.no-cr4]\nextends = \"kvm-5.17\"\ncr4 = []\n";
    assert!(text.contains(own), "only what it changes is told: {text}");
}

#[test]
fn findings_of_made_up_traces() {
    let folder = tempfile::tempdir().unwrap();
    let made = ["generate", "fork-exit", "-o", "t.tlbt", "--events", "3000", "--vcpus", "2"];
    assert_eq!(run(folder.path(), &made).status.code(), Some(0));
    each(folder.path(), "t.tlbt", "never", 2);
}

#[test]
fn what_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("work.txt"), "v0 cr4 +SMEP\n").unwrap();
    let args = ["export", "work.txt", "-o", "bug.toml", "--to", "scenario", "--policy", "kvm-5.19"];
    let err = |more: &[&str]| {
        let out = run(folder.path(), &[&args[..], more].concat());
        assert_eq!(out.status.code(), Some(2));
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(err(&[]).contains("--around"));
    assert!(err(&["--around", "7"]).contains("there is no finding 7 under kvm-5.19"));
    assert!(err(&["--around", "1", "--before", "3 parsecs"]).contains("3ms"));
    assert!(!folder.path().join("bug.toml").exists());
}

#[test]
fn a_hostile_name_of_a_trace_stays_a_string() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a\"\n[policy.x]\n'''\u{1b}[31m.txt";
    let list = "v0 map 0x7000 0x5000 rwxg\nv0 read 0x7000\nv0 map 0x7000 0x6000 rwxg\nv0 cr4 -PGE\n\
                v0 read 0x7000\n";
    fs::write(folder.path().join(name), list).unwrap();
    let text = exported(folder.path(), name, "never", 1);
    assert!(!text.contains('\u{1b}') && !text.contains("\n[policy"), "{text}");
}
