//! The README and the book: every command is run and what the page shows of its output compared,
//! every snippet is checked, every link leads somewhere.
//!
//! A page is run from top to bottom in a folder of its own that holds `testdata` and `docs/ci` as a
//! clone does. Blocks marked `console` hold commands (`$ `), each with what it prints: all of it, or
//! with lines `...` for what is left out. An exit code other than 0 must be shown by `$ echo $?`.
//! `BOOK=overwrite cargo test --test book` writes what was printed into the pages; read the
//! difference before it is committed. What a comment in the line before a block says:
//!
//! * `<!-- file: NAME -->`: the block is that file, for the commands below it;
//! * `<!-- policy -->`, `<!-- scenario -->`, `<!-- machine -->`, `<!-- events -->`: checked by itself,
//!   a part of one (`run::Check` has the markers) with what it leaves out;
//! * `<!-- output not compared -->`: run, and only the exit code counts;
//! * `<!-- not run: WHY -->`: only the names of commands and options are checked.

mod links;
mod page;
mod run;
mod whole;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

/// The root of the clone.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The README and the chapters, by their paths from the root.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

fn read(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap()
}

#[test]
fn every_command_prints_what_its_page_shows() {
    let overwrite = std::env::var("BOOK").is_ok_and(|word| word == "overwrite");
    let faults: Vec<String> = thread::scope(|scope| {
        let pages = pages();
        let runs: Vec<_> = pages
            .into_iter()
            .map(|page| scope.spawn(move || run::page(&page, overwrite)))
            .collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
