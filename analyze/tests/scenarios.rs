//! The scenario files of the project.

use std::fs;
use std::path::{Path, PathBuf};

use tlbscope_analyze::scenario::Scenario;

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios");
    let mut files = Vec::new();
    for folder in ["golden", "oracle"] {
        for entry in fs::read_dir(root.join(folder)).expect("the folder exists") {
            files.push(entry.expect("it can be read").path());
        }
    }
    files.sort();
    files
}

fn parse(file: &Path) -> Scenario {
    let text = fs::read_to_string(file).expect("it can be read");
    match Scenario::parse(&file.display().to_string(), &text) {
        Ok(scenario) => scenario,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_scenario_is_right_and_named_like_its_file() {
    assert!(files().len() >= 30);
    for file in files() {
        let scenario = parse(&file);
        assert_eq!(Some(scenario.name.as_str()), file.file_stem().and_then(|s| s.to_str()));
        assert!(!scenario.expects.is_empty(), "{}", scenario.name);
    }
}

#[test]
fn every_golden_row_speaks_of_every_column() {
    for file in files().iter().filter(|f| f.parent().is_some_and(|p| p.ends_with("golden"))) {
        let scenario = parse(file);
        for column in ["kvm-5.10", "kvm-5.17", "kvm-patch-v2", "kvm-5.19"] {
            let expect = scenario.expects.iter().find(|e| e.policy == column);
            let counts = expect.and_then(|e| e.at.first()).map_or(0, |at| at.counts.len());
            assert!(counts > 0, "{}: {column}", scenario.name);
        }
    }
}
