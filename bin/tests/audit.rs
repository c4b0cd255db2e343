//! `audit` as its users meet it: exit codes, the summary, findings with the lines they rest on.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn recording(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file)
}

fn text(file: &str) -> String {
    let mut text = String::new();
    let mut source = tlbscope_trace::source::open(&recording(file)).unwrap();
    source.read_to_string(&mut text).unwrap();
    text
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tlbscope")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const SHADOW: &str = "vmx-b-pcid-ept0.trace.txt.xz";
const TDP: &str = "vmx-a-blob-ept1.trace.txt.xz";

/// A copy of a recording with line `number` replaced, in a folder of its own.
fn replaced(number: usize, by: &str) -> (tempfile::TempDir, String) {
    let text = text(SHADOW);
    let mut lines: Vec<&str> = text.lines().collect();
    assert!(lines[number - 1].contains("vmx_flush_tlb_guest"), "{}", lines[number - 1]);
    lines[number - 1] = by;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.txt");
    fs::write(&path, lines.join("\n")).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

/// The line of the flush that answers INVPCID 2 at line 2344 of the recording.
const FLUSH: usize = 2353;

#[test]
fn a_right_kernel_is_clean_and_the_summary_adds_up() {
    let path = recording(TDP).display().to_string();
    let (code, out, err) = run(&["audit", "--format", "json", &path]);
    assert_eq!(code, Some(0), "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["schema"], "tlbscope/audit/1");
    let summary = &json["summary"][0];
    for verdict in ["missed", "exposed", "advised"] {
        assert_eq!(summary[verdict], 0, "{verdict}");
    }
    let unjudged = summary["unjudged"].as_object().unwrap();
    let sum: u64 = unjudged.values().map(|n| n.as_u64().unwrap()).sum();
    let judged = summary["judged"].as_u64().unwrap();
    assert_eq!(summary["operations"].as_u64().unwrap(), judged + sum);
    assert!(unjudged.contains_key("cr3-not-intercepted"), "EPT: MOV CR3 does not exit");
    // CR4.SMEP, SMAP, PSE and the like change no role of an EPT root, and 6.1 resets all the same.
    assert!(summary["excessive"].as_u64().unwrap() > 0);
    assert!(json["recordings"][0]["transitions"].as_array().unwrap().len() > 20);
}

#[test]
fn a_flush_that_is_cut_reads_like_a_compiler_error() {
    let (_folder, path) = replaced(FLUSH, "#");
    let (code, out, err) = run(&["audit", "--no-transitions", &path]);
    assert_eq!(code, Some(1), "{err}");
    for words in [
        "exposed [invpcid-all]: invpcid on v0",
        "cut.txt:2344",
        "cause: ",
        "kvm_mmu_sync_prev_roots",
        "enters the guest",
        "INVPCID 2 drops everything in all PCIDs",
        "SDM vol. 3",
        "exposed 1",
    ] {
        assert!(out.contains(words), "`{words}` is not in:\n{out}");
    }
}

#[test]
fn lost_events_make_it_damaged_and_claim_nothing() {
    let (_folder, path) = replaced(FLUSH, "CPU:0 [LOST 1 EVENTS]");
    let (code, out, err) = run(&["audit", "--no-transitions", &path]);
    assert_eq!(code, Some(3), "{out}");
    assert!(err.contains("lost"), "{err}");
    assert!(out.contains("exposed 0") && out.contains("unjudged, gap: "), "{out}");
}

#[test]
fn what_shows_no_vendor_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.txt");
    fs::write(&path, "v0 cr3 0x1000\n").unwrap();
    let (code, _, err) = run(&["audit", &path.display().to_string()]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("does not show the vendor") && err.contains("kvm_exit"), "{err}");
}

#[test]
fn threads_do_not_change_the_output() {
    let files: Vec<String> = [SHADOW, TDP, "svm-tiny-npt0-head.trace.txt.xz"]
        .map(|file| recording(file).display().to_string())
        .to_vec();
    let with = |threads: &str| {
        let mut args = vec!["audit", "--threads", threads, "--excessive"];
        args.extend(files.iter().map(String::as_str));
        run(&args)
    };
    assert_eq!(with("1"), with("4"));
}
