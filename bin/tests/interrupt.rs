//! Ctrl-C leaves no half file and says how far it came; a reader that goes away is no error.
#![cfg(unix)]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn start(folder: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tlbscope"))
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Waits until `ready`; what runs far longer than any of these takes is stopped by the caller.
fn wait_for(ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ready(), "it never began");
}

#[track_caller]
fn signalled(child: Child, signal: &str) -> (Option<i32>, String) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn an_interrupted_command_leaves_no_file() {
    // 10^10 events take hours: it is surely interrupted in the middle.
    let long = ["generate", "boot", "-o", "long.tlbt", "--events", "10000000000"];
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let child = start(folder.path(), &long);
        let written = || {
            let size = |entry: fs::DirEntry| entry.metadata().map_or(0, |m| m.len());
            fs::read_dir(folder.path()).unwrap().any(|entry| size(entry.unwrap()) > 1 << 18)
        };
        wait_for(written);
        let (ended, told) = signalled(child, signal);
        assert_eq!(ended, Some(code), "{told}");
        assert!(told.starts_with("interrupted: long.tlbt is not written; "), "{told}");
        assert!(told.contains(" of 10000000000 events were done"), "{told}");
        assert_eq!(names(folder.path()), [""; 0], "nothing is left, whole or half");
    }
}

#[test]
fn an_old_file_stays_when_the_new_one_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("out.tlbt"), "as it was").unwrap();
    let args = ["generate", "boot", "-o", "out.tlbt", "--events", "10000000000"];
    let child = start(folder.path(), &args);
    wait_for(|| names(folder.path()).len() > 1);
    assert_eq!(signalled(child, "-INT").0, Some(130));
    assert_eq!(names(folder.path()), ["out.tlbt"]);
    assert_eq!(fs::read_to_string(folder.path().join("out.tlbt")).unwrap(), "as it was");
}

/// Reads a few bytes and goes away, as `head` does.
#[track_caller]
fn read_in_part(folder: &Path, args: &[&str]) {
    let mut child = start(folder, args);
    let mut some = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {told}");
    assert_eq!(told, "", "{args:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let made = ["generate", "fork-exit", "-o", "t.tlbt", "--events", "20000", "-q"];
    assert!(start(folder.path(), &made).wait().unwrap().success());
    for args in [
        &["generate", "boot", "-o", "-", "--events", "10000000000"][..],
        &["export", "t.tlbt", "-o", "-", "--to", "text"],
        &["export", "t.tlbt", "-o", "-", "--to", "jsonl"],
        &["export", "t.tlbt", "-o", "-", "--to", "perfetto", "--policy", "kvm-5.17"],
        &["import", "t.tlbt", "-o", "-"],
        &["policy", "diff", "kvm-5.17", "kvm-patch-v2"],
        &["policy", "show", "never"],
        &["completions", "zsh"],
        &["record", "--help"],
    ] {
        read_in_part(folder.path(), args);
    }
}
