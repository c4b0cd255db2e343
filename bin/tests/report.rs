//! `--report` as its readers get it: the parts of the page with values worked out by hand, the same
//! bytes each time, and hostile names that stay data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

fn recording(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(file);
    path.display().to_string()
}

/// Runs the program in a folder.
fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The page that a command writes, and the data in it.
fn page(folder: &Path, args: &[&str]) -> (String, Value) {
    let args = [args, &["--report", "page.html"]].concat();
    let (code, err) = run(folder, &args);
    assert!(matches!(code, Some(0 | 1)), "{code:?} {err}");
    let html = fs::read_to_string(folder.join("page.html")).unwrap();
    let data = html.split_once(r#"id="data">"#).unwrap().1.split_once("</script>").unwrap().0;
    let data = serde_json::from_str(data).unwrap();
    (html, data)
}

/// A page is mapped and used, its entry cleared, and nothing invalidated but by MOV CR3; under
/// `never` that is a harmful miss.
const STALE: &str = "\
v0 map 0x400000 0x5000 rw
v0 read 0x400000
v0 unmap 0x400000
v0 cr3 0x1000
v0 read 0x400000
v0 read 0x400000
";

fn stale(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, STALE).unwrap();
    (folder, path)
}

#[test]
fn a_finding_is_there_with_its_chain_its_window_and_its_uses() {
    let (folder, _) = stale("stale.txt");
    let (_, data) = page(folder.path(), &["simulate", "stale.txt", "--policy", "never"]);
    let run = &data["runs"][0];
    let finding = &run["findings"][0];
    assert_eq!(finding["kind"], "missed, harmful");
    assert_eq!(finding["op"], "cr3");
    // Events count from 0: the write is the fourth line, the uses are the fifth and the sixth.
    let span = finding["span"].as_array().unwrap();
    assert_eq!((&span[0], &span[2]), (&Value::from(3), &Value::from(5)));
    let heads: Vec<&str> =
        finding["chain"].as_array().unwrap().iter().map(|s| s["head"].as_str().unwrap()).collect();
    assert_eq!(heads.first(), Some(&"operation"));
    assert_eq!(heads.last(), Some(&"until it is used"));
    let rule = &run["rules"][finding["rule"].as_str().unwrap()];
    assert!(!rule["citation"].as_str().unwrap().is_empty());
    // Two marks are about it, both in the row of verdicts; the exposure by the same write has its own.
    let timeline = &run["timeline"];
    let mut about = timeline["about"].as_array().unwrap().clone();
    about.retain(|pair| pair[1] == 0);
    assert_eq!(about.len(), 2, "{about:?}");
    for pair in about {
        let kind = timeline["kind"][pair[0].as_u64().unwrap() as usize].as_u64().unwrap();
        assert_eq!(data["kinds"][kind as usize][0], "stale");
    }
    let texts = timeline["texts"].as_array().unwrap();
    assert!(texts.iter().any(|text| text.as_str().unwrap().starts_with("CR3 0x1000")), "{texts:?}");
    assert_eq!(
        timeline["total"].as_u64().unwrap(),
        timeline["kind"].as_array().unwrap().len() as u64
    );
    assert_eq!(data["cards"][0]["tone"], "bad");
    assert_eq!(data["cards"][0]["verdict"], "1 harmful missed flush");
}

#[test]
fn a_comparison_has_its_charts_and_every_number() {
    let folder = tempfile::tempdir().unwrap();
    let trace = recording("vmx-b-pcid-ept0.trace.txt.xz");
    let policies = "kvm-5.17,kvm-6.1-lts,never";
    let (html, data) = page(folder.path(), &["compare", &trace, "--policy", policies]);
    let section = &data["sections"][0];
    let charts: Vec<&str> = section["charts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["title"].as_str().unwrap())
        .collect();
    assert_eq!(charts, ["Flushes by kind", "Cycles by cause", "Refills after flushes"]);
    assert_eq!(section["charts"][0]["bars"].as_array().unwrap().len(), 3);
    assert_eq!(data["cards"].as_array().unwrap().len(), 3);
    // The causes add up to the cycles of the card.
    for n in 0..3 {
        let parts = section["charts"][1]["parts"].as_array().unwrap();
        let sum: u64 = parts.iter().map(|part| part[1][n].as_u64().unwrap()).sum();
        let facts = data["cards"][n]["facts"].as_array().unwrap();
        assert_eq!(facts.iter().find(|f| f[0] == "cycles").unwrap()[1], sum);
        let refills: u64 = section["charts"][2]["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| part[1][n].as_u64().unwrap())
            .sum();
        assert_eq!(facts.iter().find(|f| f[0] == "refills").unwrap()[1], refills);
    }
    for part in ["summary", "numbers", "timeline", "findings", "inputs"] {
        assert!(html.contains(&format!("<section id=\"{part}\"")), "{part}");
    }
    let again = page(folder.path(), &["compare", &trace, "--policy", policies, "--threads", "1"]).0;
    assert_eq!(html, again, "the same bytes whatever the number of threads");
}

#[test]
fn an_audit_has_its_recording_and_what_was_not_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (_, data) = page(folder.path(), &["audit", &recording("vmx-a-blob-ept1.trace.txt.xz")]);
    assert_eq!(data["command"], "audit");
    assert_eq!(data["cards"][0]["facts"][2][0], "exposed");
    assert_eq!(data["cards"][0]["facts"][2][1], 0);
    let tables: Vec<&str> = data["sections"][0]["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["title"].as_str().unwrap())
        .collect();
    assert_eq!(tables, ["What the host did", "Not judged"]);
    let timeline = &data["runs"][0]["timeline"];
    assert!(timeline["total"].as_u64().unwrap() > 100);
    assert_eq!(timeline["wholeUntil"], Value::Null);
}

#[test]
fn hostile_names_stay_data() {
    let evil = "<script>alert(1)<!--\u{2028}'\".txt";
    let (folder, _) = stale(evil);
    let policy = "name = \"</script><img src=x onerror=alert(1)>\"\nextends = \"never\"\n";
    fs::write(folder.path().join("evil.toml"), policy).unwrap();
    let (html, data) = page(folder.path(), &["compare", evil, "--policy", "evil.toml,never"]);
    assert_eq!(data["inputs"][0]["path"], evil);
    assert_eq!(data["cards"][0]["title"], "</script><img src=x onerror=alert(1)>");
    assert!(
        !html.contains("<img") && !html.contains("<script>alert") && !html.contains('\u{2028}')
    );
    assert_eq!(html.matches("</script>").count(), 3, "data, D3, the page's own");
}

#[test]
fn only_a_part_of_many_effects_is_shown_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for n in 0..60_000 {
        text += if n % 2 == 0 { "v0 cr4 -PGE\n" } else { "v0 cr4 +PGE\n" };
    }
    fs::write(folder.path().join("long.txt"), text).unwrap();
    let (_, data) = page(folder.path(), &["simulate", "long.txt", "--policy", "kvm-5.17"]);
    let timeline = &data["runs"][0]["timeline"];
    assert_eq!(timeline["kind"].as_array().unwrap().len(), 100_000);
    assert!(timeline["total"].as_u64().unwrap() > 100_000);
    let whole = timeline["wholeUntil"].as_u64().unwrap();
    assert!((1..60_000).contains(&whole), "{whole}");
    let bins = timeline["byEvent"]["bins"].as_array().unwrap();
    let sum: u64 = bins.iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(sum, timeline["total"].as_u64().unwrap(), "the overview counts all");
}

#[test]
fn standard_output_is_no_file_for_a_page() {
    let (folder, _) = stale("stale.txt");
    let (code, err) =
        run(folder.path(), &["simulate", "stale.txt", "--policy", "never", "--report", "-"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("name a file"), "{err}");
    let (code, err) = run(
        folder.path(),
        &["simulate", "stale.txt", "--policy", "never", "--report", "no/x.html"],
    );
    assert_eq!(code, Some(2), "{err}");
    assert!(!folder.path().join("no").exists());
}
