//! Every format from the command line, read back by a parser that knows nothing of the program, and
//! held to values worked out by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::Value;

/// The write of CR4.PGE in line 5 owes the flush of the global translation that line 3 cached; line
/// 6 uses it. `never` serves neither that nor the MOV CR3 of line 1, whose old root nobody uses
/// again: a harmful miss and two exposures. Events count from 0.
const MISSED: &str = "v0 cr3 0x10000\nv0 map 0x7000 0x5000 rwxg\nv0 read 0x7000\n\
                      v0 map 0x7000 0x6000 rwxg\nv0 cr4 -PGE\nv0 read 0x7000\n";
/// Nothing is owed, and nothing done.
const CLEAN: &str = "v0 map 0x7000 0x5000 rwx\nv0 read 0x7000\n";

struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run_in(folder: &Path, args: &[&str]) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlbscope"));
    let output = command.args(args).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A run on a list of events in t.txt, beside s.toml.
fn run(events: &str, suppress: &str, args: &[&str]) -> Answer {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.txt"), events).unwrap();
    fs::write(folder.path().join("s.toml"), suppress).unwrap();
    run_in(folder.path(), args)
}

fn simulate(events: &str, format: &str) -> Answer {
    run(events, "", &["simulate", "t.txt", "--policy", "never", "--format", format])
}

fn table(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.deserialize().collect::<Result<_, _>>().unwrap()
}

/// The elements of a document with their attributes, and the text of each.
fn elements(xml: &str) -> Vec<(String, BTreeMap<String, String>, String)> {
    let mut reader = Reader::from_str(xml);
    let mut all: Vec<(String, BTreeMap<String, String>, String)> = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(start) | Event::Empty(start) => {
                let attribute = |a: quick_xml::events::attributes::Attribute<'_>| {
                    let value = a
                        .normalized_value(quick_xml::XmlVersion::Explicit1_0)
                        .unwrap()
                        .into_owned();
                    (String::from_utf8(a.key.as_ref().to_vec()).unwrap(), value)
                };
                let attributes = start.attributes().map(|a| attribute(a.unwrap())).collect();
                let name = String::from_utf8(start.name().as_ref().to_vec()).unwrap();
                all.push((name, attributes, String::new()));
            }
            Event::Text(text) => {
                if let Some((_, _, into)) = all.last_mut() {
                    *into += &text.decode().unwrap();
                }
            }
            Event::Eof => return all,
            _ => {}
        }
    }
}

fn count(xml: &[(String, BTreeMap<String, String>, String)], name: &str) -> usize {
    xml.iter().filter(|(element, ..)| element == name).count()
}

#[test]
fn csv_has_one_line_for_each_finding() {
    let answer = simulate(MISSED, "csv");
    assert_eq!(answer.code, Some(1), "{}", answer.err);
    let rows = table(&answer.out);
    let missed: Vec<_> = rows.iter().filter(|row| row["verdict"] == "missed").collect();
    let [row] = missed[..] else { panic!("{rows:?}") };
    for (column, value) in [
        ("trace", "t.txt"),
        ("policy", "never"),
        ("line", "5"),
        ("event", "4"),
        ("vcpu", "0"),
        ("harmful", "true"),
        ("rule", "cr4-pge"),
        ("operation", "cr4"),
        ("seen_line", "6"),
        ("seen_event", "5"),
        ("address", "0x7000"),
        ("count", "1"),
        ("suppressed", ""),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
    // A table without lines has its header.
    let clean = simulate(CLEAN, "csv");
    assert_eq!((clean.code, clean.out.lines().count()), (Some(0), 1), "{}", clean.out);
    assert!(clean.out.starts_with("trace,policy,line,"), "{}", clean.out);
}

#[test]
fn csv_of_a_comparison_has_its_numbers() {
    let events = "v0 cr4 +SMEP\nv0 cr4 -SMEP\n";
    let args = ["compare", "t.txt", "--policy", "kvm-5.17,never", "--by", "register"];
    let answer = run(events, "", &[&args[..], &["--format", "csv"]].concat());
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    let rows = table(&answer.out);
    let value = |part: &str, number: &str, policy: &str| {
        let is = |row: &&BTreeMap<String, String>| {
            row["part"] == part && row["number"] == number && row["policy"] == policy
        };
        rows.iter().find(is).unwrap_or_else(|| panic!("{part} {number}: {rows:?}"))["value"].clone()
    };
    // Both writes change the role of 5.17 and exit, under every policy.
    assert_eq!(value("", "resets", "kvm-5.17"), "2");
    assert_eq!(value("cr4", "resets", "kvm-5.17"), "2");
    assert_eq!(
        (value("", "exits", "never"), value("cr4", "exits", "never")),
        ("2".into(), "2".into())
    );
    let cycles = rows.iter().find(|row| row["number"] == "cycles" && row["policy"] == "never");
    assert_eq!(cycles.unwrap()["first"], value("", "cycles", "kvm-5.17"));
}

#[test]
fn json_lines_are_objects_with_a_type() {
    let answer = simulate(MISSED, "jsonl");
    let lines: Vec<Value> =
        answer.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["type"], &lines[0]["schema"]),
        (&"header".into(), &"tlbscope/simulate/1l".into())
    );
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
    assert_eq!(of("summary").len(), 1);
    assert_eq!(
        (&of("summary")[0]["missed"], &of("summary")[0]["policy"]),
        (&1.into(), &"never".into())
    );
    let finding = of("finding").into_iter().find(|finding| finding["rule"] == "cr4-pge").unwrap();
    assert_eq!((&finding["at"]["line"], &finding["seen"]["line"]), (&5.into(), &6.into()));
    assert_eq!(finding["kind"]["missed"]["harmful"], true);
}

#[test]
fn sarif_has_rules_levels_and_places() {
    let answer = simulate(MISSED, "sarif");
    assert_eq!(answer.code, Some(1));
    let log: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    assert!(results.iter().all(|result| result["level"] == "error"));
    let verdict = |result: &Value| result["properties"]["verdict"].clone();
    let missed = results.iter().find(|result| verdict(result) == "missed").unwrap();
    assert_eq!(missed["ruleId"], "cr4-pge");
    let rule = &run["tool"]["driver"]["rules"][missed["ruleIndex"].as_u64().unwrap() as usize];
    assert_eq!(rule["id"], "cr4-pge");
    assert!(rule["help"]["text"].as_str().unwrap().contains("SDM"), "{rule}");
    let place = &missed["locations"][0];
    assert_eq!(place["physicalLocation"]["artifactLocation"]["uri"], "t.txt");
    assert_eq!(place["physicalLocation"]["region"]["startLine"], 5);
    assert_eq!(place["logicalLocations"][0]["fullyQualifiedName"], "t.txt:5");
    assert_eq!(missed["relatedLocations"][0]["physicalLocation"]["region"]["startLine"], 6);
    assert_eq!(
        (&missed["properties"]["vcpu"], &missed["properties"]["policy"]),
        (&0.into(), &"never".into())
    );
    assert!(missed.get("suppressions").is_none());
    assert_eq!(run["invocations"][0]["executionSuccessful"], true);
    let clean: Value = serde_json::from_str(&simulate(CLEAN, "sarif").out).unwrap();
    assert_eq!(clean["runs"][0]["results"], Value::Array(Vec::new()));
}

#[test]
fn junit_fails_where_the_program_does() {
    let answer = simulate(MISSED, "junit");
    let xml = elements(&answer.out);
    let failures: Vec<_> = xml.iter().filter(|(name, ..)| name == "failure").collect();
    let [(_, attributes, text), (_, second, _), (_, third, _)] = failures[..] else {
        panic!("{}", answer.out)
    };
    assert_eq!(
        [&attributes["type"], &second["type"], &third["type"]],
        ["missed", "exposed", "exposed"]
    );
    assert!(
        attributes["message"].starts_with("1 times; first: v0 used a stale copy"),
        "{attributes:?}"
    );
    assert!(text.contains("t.txt:5") && text.contains("cr4-pge"), "{text}");
    let suite = &xml.iter().find(|(name, ..)| name == "testsuite").unwrap().1;
    assert_eq!((&suite["failures"][..], &suite["name"][..]), ("3", "t.txt under never"));
    let clean = elements(&simulate(CLEAN, "junit").out);
    assert_eq!((count(&clean, "testcase"), count(&clean, "failure")), (2, 0));
}

#[test]
fn markdown_escapes_what_comes_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a|b<img src=x>.txt";
    fs::write(folder.path().join(name), MISSED).unwrap();
    let args = ["simulate", name, "--policy", "never", "--format", "markdown"];
    let answer = run_in(folder.path(), &args);
    assert_eq!(answer.code, Some(1), "{}", answer.err);
    assert!(
        answer.out.contains("### a\\|b&lt;img src=x>.txt under never: FAILED"),
        "{}",
        answer.out
    );
    assert!(answer.out.contains("| missed harmful | 1 |"), "{}", answer.out);
    assert!(answer.out.contains("| missed flush | cr4-pge | cr4 |"), "{}", answer.out);
    let outside = answer.out.split("```").step_by(2).collect::<String>();
    assert!(!outside.contains("<img"), "{outside}");
}

/// Accepts what MISSED shows, and what nobody finds.
const SUPPRESS: &str = "[[suppress]]\nrule = 'cr4-pge'\npolicy = 'never'\nreason = 'the control'\n\n\
                        [[suppress]]\nrule = 'cr0-pg-set'\nreason = 'unused'\n\n\
                        [[suppress]]\nfunction = 'kvm_set_cr3'\nreason = 'no old root is used'\n";

#[test]
fn what_is_suppressed_is_shown_counted_and_fails_nothing() {
    let simulate = |format: &str| {
        let args = ["simulate", "t.txt", "--policy", "never", "--suppress", "s.toml"];
        let answer = run(MISSED, SUPPRESS, &[&args[..], &["--format", format]].concat());
        assert_eq!(answer.code, Some(0), "{format}: {}{}", answer.out, answer.err);
        assert_eq!(answer.err, "warning: s.toml:6: suppresses nothing\n");
        answer.out
    };
    let json: Value = serde_json::from_str(&simulate("json")).unwrap();
    let summary = &json["summary"][0];
    assert_eq!((&summary["missed"], &summary["missed_harmful"]), (&0.into(), &0.into()));
    let of_pge = |list: &Value| -> u64 {
        let is = |group: &&Value| group["group"]["rule"] == "cr4-pge";
        list.as_array().unwrap().iter().filter(is).map(|g| g["count"].as_u64().unwrap()).sum()
    };
    assert_eq!((&summary["exposed"], &summary["suppressed"]), (&0.into(), &3.into()));
    assert_eq!(of_pge(&json["groups"]), 2, "the miss and the exposure");
    let finding = json["findings"].as_array().unwrap().iter().find(|f| f["rule"] == "cr4-pge");
    assert_eq!(finding.unwrap()["suppressed"]["reason"], "the control");
    let log: Value = serde_json::from_str(&simulate("sarif")).unwrap();
    let mut results = log["runs"][0]["results"].as_array().unwrap().iter();
    let result = results.find(|result| result["ruleId"] == "cr4-pge").unwrap();
    assert_eq!(result["suppressions"][0]["kind"], "external");
    assert_eq!(result["suppressions"][0]["justification"], "the control");
    let rows = table(&simulate("csv"));
    assert!(rows.iter().any(|r| r["rule"] == "cr4-pge" && r["suppressed"] == "the control"));
    let xml = elements(&simulate("junit"));
    assert_eq!(count(&xml, "failure"), 0);
    assert!(count(&xml, "skipped") > 0);
    let text = simulate("text");
    assert!(text.contains("missed flush [cr4-pge] at cr4: the control (s.toml:1)"), "{text}");
    assert!(simulate("markdown").contains(", suppressed: the control |"));
}

#[test]
fn a_suppression_of_another_policy_accepts_nothing() {
    let suppress = SUPPRESS.replace("'never'", "'kvm-5.17'");
    let args = ["simulate", "t.txt", "--policy", "never", "--suppress", "s.toml"];
    let answer = run(MISSED, &suppress, &args);
    assert_eq!(answer.code, Some(1), "{}", answer.out);
    assert!(answer.err.contains("s.toml:1: suppresses nothing"), "{}", answer.err);
    let wrong = run(MISSED, "[[suppress]]\nrule = 'cr4-pge'\n", &args);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("s.toml:1:1: `reason` is missing"), "{}", wrong.err);
}

#[test]
fn an_audit_has_the_same_forms() {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz");
    let path = recording.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // 6.1 resets the MMU at a write of CR4 that owes nothing, and at one of EFER.
    let suppress = "[[suppress]]\nfunction = 'kvm_mmu_reset_context'\nreason = 'the role of 6.1'\n";
    fs::write(folder.path().join("s.toml"), suppress).unwrap();
    let audit = |args: &[&str]| {
        let answer = run_in(folder.path(), &[&["audit", path], args].concat());
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        answer.out
    };
    let json: Value = serde_json::from_str(&audit(&["--format", "json"])).unwrap();
    let resets: Vec<&Value> = json["recordings"][0]["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|found| found["finding"]["mechanism"] == "mmu-reset")
        .collect();
    assert!(!resets.is_empty());
    let log: Value = serde_json::from_str(&audit(&["--format", "sarif"])).unwrap();
    let results = log["runs"][0]["results"].as_array().unwrap();
    let line =
        |result: &Value| result["locations"][0]["physicalLocation"]["region"]["startLine"].clone();
    let mut lines: Vec<Value> =
        results.iter().filter(|r| r["ruleId"] == "mmu-reset").map(line).collect();
    let mut stories: Vec<Value> =
        resets.iter().map(|f| f["story"]["cause"]["line"].clone()).collect();
    lines.sort_by_key(|v| v.as_u64());
    stories.sort_by_key(|v| v.as_u64());
    assert_eq!(lines, stories);
    let rows = table(&audit(&["--format", "csv"]));
    assert_eq!(rows.iter().filter(|row| row["rule"] == "mmu-reset").count(), resets.len());
    let quiet: Value =
        serde_json::from_str(&audit(&["--format", "json", "--suppress", "s.toml"])).unwrap();
    let (before, after) = (&json["summary"][0], &quiet["summary"][0]);
    let number = |of: &Value, name: &str| of[name].as_u64().unwrap();
    assert_eq!(number(after, "suppressed"), resets.len() as u64);
    assert_eq!(number(after, "excessive"), number(before, "excessive") - resets.len() as u64);
}

#[test]
fn findings_of_one_vcpu_and_of_a_time_can_be_shown() {
    let events = "@1000 v0 cr3 0x10000\n@2000 v1 cr3 0x10000\n";
    let shown = |args: &[&str]| {
        let base = ["simulate", "t.txt", "--policy", "never", "--format", "csv"];
        table(&run(events, "", &[&base[..], args].concat()).out)
    };
    let all = shown(&[]);
    let of = |rows: &[BTreeMap<String, String>], vcpu: &str| {
        rows.iter().filter(|row| row["vcpu"] == vcpu).count()
    };
    let (zero, one) = (of(&all, "0"), of(&all, "1"));
    assert!(zero > 0 && one > 0, "{all:?}");
    let second = shown(&["--show-vcpu", "1"]);
    assert_eq!((of(&second, "0"), of(&second, "1")), (0, one));
    let later = shown(&["--show-from", "2us"]);
    assert_eq!((of(&later, "0"), of(&later, "1")), (0, one));
    let earlier = shown(&["--show-to", "1500ns"]);
    assert_eq!((of(&earlier, "0"), of(&earlier, "1")), (zero, 0));
}

#[test]
fn each_command_lists_and_takes_its_own_forms() {
    let folder = tempfile::tempdir().unwrap();
    let help = run_in(folder.path(), &["simulate", "--help"]).out;
    assert!(help.contains("sarif") && help.contains("junit") && help.contains("csv"), "{help}");
    let help = run_in(folder.path(), &["fidelity", "--help"]).out;
    assert!(help.contains("markdown") && !help.contains("sarif"), "{help}");
    for args in [&["info", "x", "--format", "sarif"][..], &["--format", "sarif", "info", "x"]] {
        let answer = run_in(folder.path(), args);
        assert_eq!(answer.code, Some(2));
        assert!(answer.err.contains("sarif") && answer.err.contains("json"), "{}", answer.err);
    }
    // Before the command or behind it.
    let first = run_in(folder.path(), &["--format", "json", "policy", "list"]);
    assert_eq!(first.out, run_in(folder.path(), &["policy", "list", "--format", "json"]).out);
    assert_eq!(
        serde_json::from_str::<Value>(&first.out).unwrap()["schema"],
        "tlbscope/policy-list/1"
    );
}

#[test]
fn scenarios_and_cases_as_junit_and_markdown() {
    let folder = tempfile::tempdir().unwrap();
    let text = "name = 'n'\nabout = 'a'\nsource = 's'\nevents = '''\nv0 clts\n'''\n\
                [expect.never]\ncounts = { exit = 99 }\n[expect.\"kvm-5.17\"]\nmissed = []\n";
    fs::write(folder.path().join("s.toml"), text).unwrap();
    let junit = run_in(folder.path(), &["scenarios", "s.toml", "--format", "junit"]);
    assert_eq!(junit.code, Some(1));
    let xml = elements(&junit.out);
    assert_eq!((count(&xml, "testcase"), count(&xml, "failure")), (2, 1));
    let failure = &xml.iter().find(|(name, ..)| name == "failure").unwrap().1;
    assert!(failure["message"].contains("expected 99"), "{failure:?}");
    let markdown = run_in(folder.path(), &["scenarios", "s.toml", "--format", "markdown"]).out;
    assert!(markdown.contains("1 passed, 1 failed, 0 skipped"), "{markdown}");
}
