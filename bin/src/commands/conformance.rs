//! `conformance`: runs architecture cases against the TLB model and the table of requirements.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, json};
use tlbscope_analyze::conformance::{
    CaseFile, CaseReport, FILE_BYTES_MAX, Group, Verdict as CaseVerdict, groups,
};

use crate::Verdict;
use crate::args::{Conformance, Format, Global};
use crate::formats::cases::{Outcome, Suites};
use crate::input::Input;
use crate::output;

/// Runs the command.
pub fn run(command: &Conformance, global: &Global) -> Result<Verdict> {
    // Every file is read before the first runs, so that a typing error is not found at the end.
    let (mut files, mut inputs) = (Vec::new(), Vec::new());
    for path in &command.files {
        let text = read(path)?;
        inputs.push(Input::of_bytes(path, text.as_bytes()));
        files.push(CaseFile::parse(&path.display().to_string(), &text)?);
    }
    let cases: Vec<CaseReport> = files.iter().flat_map(CaseFile::run).collect();
    let groups = groups(&cases);
    let count = |verdict| cases.iter().filter(|case| case.verdict == verdict).count();
    let failed = count(CaseVerdict::Failed);
    let (passed, skipped) = (count(CaseVerdict::Passed), count(CaseVerdict::Skipped));
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            detail.insert("groups".to_owned(), json!(groups));
            detail.insert("cases".to_owned(), json!(cases));
            let summary = json!({ "passed": passed, "failed": failed, "skipped": skipped });
            output::envelope("conformance", &inputs, summary, detail)?
        }
        Format::Text => {
            let mut text = report(&groups, &cases, global);
            text += &format!("{passed} passed, {failed} failed, {skipped} skipped");
            text + &over_flushing(&groups)
        }
        format => suites(&cases).write(format)?,
    };
    output::print(&text)?;
    Ok(if failed > 0 { Verdict::Found } else { Verdict::Clean })
}

/// One suite for each file.
fn suites(cases: &[CaseReport]) -> Suites {
    let mut suites = Suites::new("conformance");
    for case in cases {
        let first = case.failures.first().map(ToString::to_string).unwrap_or_default();
        let outcome = match case.verdict {
            CaseVerdict::Passed => Outcome::Passed,
            CaseVerdict::Skipped => Outcome::Skipped("marked contradictory: not judged".to_owned()),
            CaseVerdict::Failed => Outcome::Failed(first, case.to_string()),
        };
        suites.add(&case.file, case.id.clone(), outcome);
    }
    suites
}

/// Groups with a failure or a flush beyond what is due, or all with `-v`; their cases below them.
fn report(groups: &[Group], cases: &[CaseReport], global: &Global) -> String {
    let mut out = String::new();
    let told = |group: &&Group| global.verbose || group.failed > 0 || group.dropped > 0;
    for group in groups.iter().filter(told) {
        out += &format!(
            "{}: {} passed, {} failed ({} by hardware, {} by table), {} skipped, \
             {} of {} entries that may remain dropped\n",
            group.name,
            group.passed,
            group.failed,
            group.failed_by_hardware,
            group.failed_by_table,
            group.skipped,
            group.dropped,
            group.may_remain,
        );
        let shown = |case: &&CaseReport| {
            case.group == group.name
                && match case.verdict {
                    CaseVerdict::Failed => !global.quiet,
                    CaseVerdict::Passed | CaseVerdict::Skipped => global.verbose,
                }
        };
        for case in cases.iter().filter(shown) {
            out += &format!("{case}\n");
        }
    }
    out
}

fn over_flushing(groups: &[Group]) -> String {
    let dropped: usize = groups.iter().map(|group| group.dropped).sum();
    let may_remain: usize = groups.iter().map(|group| group.may_remain).sum();
    format!("; {dropped} of {may_remain} entries that may remain were dropped\n")
}

fn read(path: &Path) -> Result<String> {
    let name = path.display();
    let failed = || format!("cannot read {name}");
    let mut bytes = Vec::new();
    let limit = FILE_BYTES_MAX as u64 + 1;
    if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).with_context(failed)?;
    } else {
        let file = File::open(path).with_context(failed)?;
        if file.metadata().with_context(failed)?.is_dir() {
            bail!("{name}: is a directory, a file of cases is wanted");
        }
        file.take(limit).read_to_end(&mut bytes).with_context(failed)?;
    }
    if bytes.trim_ascii().is_empty() {
        bail!("{name}:1:1: is empty; a file of cases is a JSON object with `cases`");
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let valid = &error.as_bytes()[..offset];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = valid.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        anyhow!("{name}:{line}:{column}: binary content; a file of cases is JSON in UTF-8")
    })
}
