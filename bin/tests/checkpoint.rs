//! `simulate --checkpoint-every` and `--resume`: stopped and resumed, the same bytes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

type Answer = (Option<i32>, String, String);

fn run(folder: &Path, args: &[&str]) -> Answer {
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// In every format, with the checkpoint that a run of `every` events leaves behind.
fn survives(folder: &Path, trace: &str, policy: &str, every: u64) {
    let every = every.to_string();
    for format in [&["--format", "json"][..], &["-v"], &[]] {
        let simulate = |more: &[&str]| {
            let args = ["simulate", trace, "--policy", policy, "--machine", "zen2"];
            run(folder, &[&args[..], format, more].concat())
        };
        let through = simulate(&[]);
        assert!(matches!(through.0, Some(0 | 1)), "{}", through.2);
        let written = simulate(&["--checkpoint-every", &every, "--checkpoint", "c"]);
        assert_eq!(written, through, "{trace}: writing a checkpoint changes nothing");
        assert_eq!(simulate(&["--resume", "c"]), through, "{trace}");
    }
}

#[test]
fn recordings_and_event_lists() {
    let folder = tempfile::tempdir().unwrap();
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings");
    for (name, policy, every) in [
        ("svm-tiny-npt0.trace.txt.zst", "never", 300),
        ("svm-kut-pcid-npt1.trace.txt.zst", "kvm-6.1-lts", 40),
        ("vmx-a-blob-ept0-head.trace.txt.xz", "kvm-5.17", 100),
        ("vmx-b-pcid-ept1.trace.txt.xz", "never", 5),
    ] {
        let trace = testdata.join(name);
        survives(folder.path(), trace.to_str().unwrap(), policy, every);
    }
    let events = "v0 map 0x7000 0x5000 rwxg\nv0 read 0x7000\nv0 map 0x7000 0x6000 rwxg\n\
                  v0 cr4 -PGE\nv0 read 0x7000\nv0 cr4 0x80000000\nv0 read 0x7000\n";
    fs::write(folder.path().join("list.txt"), events).unwrap();
    for every in 1..7 {
        survives(folder.path(), "list.txt", "never", every);
    }
}

#[test]
fn a_killed_run_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (profile, more, policy) in [
        ("fork-exit", &["--vendor", "amd", "--vcpus", "2"][..], "never"),
        ("migration", &["--vcpus", "3"], "kvm-5.17"),
    ] {
        let generate = ["generate", profile, "-o", "t.tlbt", "--events", "200000", "-q"];
        assert_eq!(run(at, &[&generate[..], more].concat()).0, Some(0));
        let args = ["simulate", "t.tlbt", "--policy", policy, "--format", "json"];
        let through = run(at, &args);
        let file = at.join("t.tlbt.checkpoint");
        let _ = fs::remove_file(&file);
        let mut child = Command::new(env!("CARGO_BIN_EXE_tlbscope"))
            .args(args)
            .args(["--checkpoint-every", "3000"])
            .current_dir(at)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !file.exists() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let resume = [&args[..], &["--resume", "t.tlbt.checkpoint"]].concat();
        assert_eq!(run(at, &resume), through, "{profile}");
    }
}

#[test]
fn a_pipe_is_resumed_by_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, &["generate", "boot", "-o", "t.tlbt", "--events", "40000", "--seed", "3"]);
    run(at, &["generate", "boot", "-o", "other.tlbt", "--events", "40000", "--seed", "4"]);
    let piped = |trace: &str, more: &[&str]| {
        let program = env!("CARGO_BIN_EXE_tlbscope");
        let args = ["simulate", "-", "--policy", "kvm-5.17", "--format", "json"];
        let file = fs::File::open(at.join(trace)).unwrap();
        let mut command = Command::new(program);
        command.args(args).args(more).current_dir(at).stdin(Stdio::from(file));
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let through = piped("t.tlbt", &[]);
    assert_eq!(through.0, Some(0), "{}", through.2);
    let written = piped("t.tlbt", &["--checkpoint-every", "17000", "--checkpoint", "c"]);
    assert_eq!(written, through);
    assert_eq!(piped("t.tlbt", &["--resume", "c"]), through);
    let (code, _, why) = piped("other.tlbt", &["--resume", "c"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("c: made with another trace"), "{why}");
    let (code, _, why) = piped("t.tlbt", &["--checkpoint-every", "17000"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("--checkpoint"), "{why}");
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run(at, &["generate", "pge-toggle", "-o", "t.tlbt", "--events", "5000"]);
    let simulate = |more: &[&str]| {
        run(at, &[&["simulate", "t.tlbt", "--policy", "kvm-5.17"][..], more].concat())
    };
    simulate(&["--checkpoint-every", "2000"]);
    let (code, out, why) = simulate(&["--resume", "t.tlbt.checkpoint", "--machine", "zen3"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(why.contains("made with another machine: unbounded; this is zen3"), "{why}");
    let (code, _, why) = simulate(&["--resume", "t.tlbt.checkpoint", "--to", "1us"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("another reading of the trace"), "{why}");
    let whole = fs::read(at.join("t.tlbt.checkpoint")).unwrap();
    fs::write(at.join("cut"), &whole[..whole.len() - 3]).unwrap();
    let (code, out, why) = simulate(&["--resume", "cut"]);
    assert_eq!((code, out.as_str()), (Some(3), ""));
    assert!(why.contains("cut or damaged"), "{why}");
    let (code, _, why) = simulate(&["--checkpoint", "c"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("--checkpoint-every"), "{why}");
    assert_eq!(simulate(&["--checkpoint-every", "0"]).0, Some(2));
}
