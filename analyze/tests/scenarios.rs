//! The scenario files of the project.

use std::fs;
use std::path::{Path, PathBuf};

use tlbscope_analyze::scenario::Scenario;

fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/scenarios")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder exists") {
            let path = entry.expect("it can be read").path();
            match path.extension().and_then(|end| end.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("toml") => files.push(path),
                _ => {}
            }
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

#[test]
fn every_expectation_holds() {
    let reports: Vec<_> = files().iter().flat_map(|file| parse(file).run()).collect();
    let failed: Vec<String> =
        reports.iter().filter(|r| !r.passed()).map(ToString::to_string).collect();
    assert!(reports.len() >= 100);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A runner that passes everything would pass the test above.
#[test]
fn a_wrong_expectation_fails_with_its_line() {
    let file = files().into_iter().find(|f| f.ends_with("g06-shadow-pge-off.toml"));
    let text = fs::read_to_string(file.expect("it exists")).expect("it can be read");
    let wrong = text.replacen("request-guest = 1", "request-guest = 2", 1);
    let reports = Scenario::parse("g06.toml", &wrong).expect("it is well formed").run();
    let failures: Vec<_> = reports.iter().flat_map(|r| &r.failures).collect();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].what, "at.off.counts.request-guest");
    assert_eq!((failures[0].expected.as_str(), failures[0].got.as_str()), ("2", "1"));
}
