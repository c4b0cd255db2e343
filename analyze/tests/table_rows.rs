//! The rows of the table of requirements that no instruction of a processor calls upon, hypervisors'
//! duties and judges' rules, hold up scenarios: without one of them some expectation fails. The rest
//! of the table is tried by `conformance.rs`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tlbscope_analyze::conformance::{CaseFile, Subject};
use tlbscope_analyze::scenario::Scenario;
use tlbscope_sim::arch::required::processor::Demand;
use tlbscope_sim::arch::required::rules;

fn scenarios(folder: &Path, found: &mut Vec<Scenario>) {
    let entries = fs::read_dir(folder).expect("the folder exists");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("it can be read").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            scenarios(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "toml") {
            let text = fs::read_to_string(&path).expect("it can be read");
            found.push(Scenario::parse(&path.display().to_string(), &text).expect("it is right"));
        }
    }
}

/// Rows that no scenario need rest on: at INIT a VMCB gets a new ASID whatever the policy.
const NEED_NOT: [&str; 1] = ["init-amd"];

/// The rows that architecture cases call upon.
fn of_instructions() -> BTreeSet<&'static str> {
    let named = RefCell::new(BTreeSet::new());
    let note = |d: Demand| {
        named.borrow_mut().insert(d.rule.id);
        Some(d)
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/conformance");
    for name in ["arch-cases.json", "more-cases.json"] {
        let text = fs::read_to_string(folder.join(name)).expect("a readable file");
        let file = CaseFile::parse(name, &text).expect("a case file");
        let _ = file.run_on(Subject { mutation: &note, ..Subject::default() });
    }
    named.into_inner()
}

#[test]
fn a_row_without_an_instruction_holds_up_a_scenario() {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios");
    scenarios(&root, &mut files);
    let (mut held, mut not_held) = (Vec::new(), Vec::new());
    let of_instructions = of_instructions();
    for row in rules().map(|rule| rule.id).filter(|row| !of_instructions.contains(row)) {
        let fails = files.iter().any(|scenario| {
            let mut expects = scenario.expects.iter();
            expects.any(|expect| {
                scenario.run_case(expect).passed()
                    && !scenario.run_case_without(expect, Some(row)).passed()
            })
        });
        if fails { held.push(row) } else { not_held.push(row) }
    }
    println!("rows held up by scenarios: {held:?}; not: {not_held:?}");
    not_held.retain(|row| !NEED_NOT.contains(row));
    assert_eq!(not_held, <[&str; 0]>::default());
}
