//! The judge is independent of what it judges: this reads the imports and holds it to that
//! (DESIGN, section 4).

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a source folder").map(|e| e.expect("an entry").path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// The lines of every file below `folder` of the workspace that contain `needle`.
fn lines(folder: &str, needle: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let files = sources(&root);
    assert!(!files.is_empty(), "{folder} has no sources");
    let text = files.iter().map(|f| fs::read_to_string(f).expect("readable"));
    text.flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|l| l.contains(needle) && !l.trim_start().starts_with("//"))
        .collect()
}

#[test]
fn oracles_know_the_manuals_and_nothing_else_of_the_machine() {
    for folder in ["analyze/src/oracle", "analyze/src/naive"] {
        let used = lines(folder, "tlbscope_sim");
        assert!(!used.is_empty(), "{folder} reads the table of requirements");
        for line in used {
            let allowed = ["tlbscope_sim::arch::", "tlbscope_sim::paging::"];
            assert!(allowed.iter().any(|a| line.contains(a)), "{folder}: {line}");
        }
    }
}

#[test]
fn the_naive_oracle_shares_no_code_with_the_fast_one() {
    for needle in ["crate::oracle", "super::oracle"] {
        assert_eq!(lines("analyze/src/naive", needle), Vec::<String>::new());
    }
}

#[test]
fn the_tlb_never_reads_the_table_of_requirements() {
    assert_eq!(lines("sim/src/tlb", "required"), Vec::<String>::new());
    assert_eq!(lines("sim/src/tlb", "crate::kvm"), Vec::<String>::new());
}

#[test]
fn arrows_run_one_way() {
    for (folder, upper) in [
        ("trace/src", ["tlbscope_sim", "tlbscope_analyze"]),
        ("sim/src", ["tlbscope_analyze", "clap"]),
    ] {
        for needle in upper {
            assert_eq!(lines(folder, needle), Vec::<String>::new(), "{folder}");
        }
    }
}
