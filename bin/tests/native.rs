//! Traces of any length on the command line: made up, looked into, replayed as a stream, damaged.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let Output { status, stdout, stderr } = output;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn generate(folder: &Path, profile: &str, more: &[&str]) {
    let mut args = vec!["generate", profile, "-o", "t.tlbt", "--events", "40000"];
    args.extend_from_slice(more);
    let (code, out, err) = run(folder, &args);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out, format!("t.tlbt: 40000 events of {profile}\n"));
}

#[test]
fn what_is_generated_is_looked_into_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), "pti-syscalls", &["--seed", "7"]);
    let (code, out, err) = run(folder.path(), &["info", "t.tlbt"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    // 40000 events are ten blocks of 4096.
    for words in ["10 blocks", "all checksums hold", "40000 operations, 0 acts, 0 gaps"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    let compare = ["compare", "t.tlbt", "--policy", "kvm-5.17,never", "--threads"];
    let with = |threads| run(folder.path(), &[&compare[..], &[threads]].concat());
    assert_eq!(with("1"), with("2"));
    assert_eq!(with("1").0, Some(0));
    let (code, out, _) = run(folder.path(), &["simulate", "t.tlbt", "--policy", "never"]);
    assert_eq!(code, Some(1), "the control policy is caught");
    assert!(out.contains("cause: @"), "events are told of a stream, too");
}

#[test]
fn a_packed_trace_and_a_pipe_give_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let summary = |answer: (Option<i32>, String, String)| {
        let at = answer.1.find(" under kvm-5.17").expect("a summary");
        (answer.0, answer.1[at..].to_owned())
    };
    generate(folder.path(), "mmap-churn", &[]);
    let args = ["simulate", "t.tlbt", "--policy", "kvm-5.17", "-q"];
    let plain = summary(run(folder.path(), &args));
    let file = fs::File::open(folder.path().join("t.tlbt")).unwrap();
    let mut piped = Command::new(env!("CARGO_BIN_EXE_tlbscope"));
    let piped = piped.args(["simulate", "-", "--policy", "kvm-5.17", "-q"]);
    let output = piped.stdin(Stdio::from(file)).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert_eq!(summary((plain.0, output, String::new())), plain);
    let before = fs::metadata(folder.path().join("t.tlbt")).unwrap().len();
    generate(folder.path(), "mmap-churn", &["--zstd", "3"]);
    assert!(fs::metadata(folder.path().join("t.tlbt")).unwrap().len() < before);
    assert_eq!(summary(run(folder.path(), &args)), plain);
}

#[test]
fn damage_is_said_and_exits_3() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), "context-switch", &[]);
    let path = folder.path().join("t.tlbt");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    for args in [
        &["info", "t.tlbt"][..],
        &["simulate", "t.tlbt", "--policy", "kvm-5.17", "-q"],
        &["compare", "t.tlbt", "--policy", "kvm-5.17"],
    ] {
        let (code, out, err) = run(folder.path(), args);
        assert_eq!(code, Some(3), "{out}{err}");
        assert!((out + &err).contains("4096 records are lost"), "{args:?}");
    }
    bytes[4] = 1;
    fs::write(&path, &bytes).unwrap();
    let (code, _, err) = run(folder.path(), &["info", "t.tlbt"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("version 1 of the native form"), "{err}");
}

#[test]
fn profiles_are_listed_and_unknown_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = run(folder.path(), &["generate", "--list"]);
    assert_eq!(code, Some(0));
    for name in ["pti-syscalls", "boot", "dirty-log", "adversarial"] {
        assert!(out.lines().any(|line| line == name), "{name}");
    }
    let (code, _, err) = run(folder.path(), &["generate", "pti", "-o", "x.tlbt"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("unknown profile `pti`; known are pti-syscalls,"), "{err}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}
