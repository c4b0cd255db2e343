//! Links between the pages, and paths into the sources.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::page::prose;
use crate::{pages, read, root};

/// The targets of the links of a page.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, line) in prose(text) {
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            found.push((at, target.to_owned()));
        }
    }
    found
}

/// The anchors of a page: its headings in lower case, spaces as hyphens, other signs left out.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|(_, line)| line.starts_with('#'));
    let kept = |sign: char| sign.is_alphanumeric() || matches!(sign, ' ' | '-' | '_');
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title.chars().filter(|&sign| kept(sign)).collect::<String>().replace(' ', "-")
        })
        .collect()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[test]
fn every_link_leads_somewhere() {
    let mut faults = Vec::new();
    for page in pages() {
        for (line, target) in links(&read(&page)) {
            if target.starts_with("https://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let path = plain(&path);
            let leads = root().join(&path).exists()
                && (anchor.is_empty() || anchors(&read(&path)).contains(anchor));
            if !leads {
                faults.push(format!("{}:{line}: `{target}` leads nowhere", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_summary_holds_every_chapter_once() {
    let summary = PathBuf::from("docs/src/SUMMARY.md");
    let mut listed: Vec<PathBuf> = links(&read(&summary))
        .into_iter()
        .map(|(_, target)| plain(&summary.with_file_name(target)))
        .collect();
    let mut chapters = pages();
    chapters.retain(|page| page.starts_with("docs") && *page != summary);
    listed.sort();
    assert_eq!(listed, chapters);
}

#[test]
fn paths_into_the_sources_exist() {
    let folders = ["trace/", "sim/", "analyze/", "bin/", "benches/", "testdata/", "docs/", ".ci/"];
    let mut faults = Vec::new();
    for page in pages() {
        let text = read(&page);
        for (line, prose) in prose(&text) {
            for word in prose.split('`').skip(1).step_by(2) {
                let named = folders.iter().any(|folder| word.starts_with(folder));
                let path = word.split("::").next().unwrap();
                if named && !word.contains([' ', '*']) && !root().join(path).exists() {
                    faults.push(format!("{}:{line}: there is no `{word}`", page.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
