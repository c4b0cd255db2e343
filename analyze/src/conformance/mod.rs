//! Conformance: architecture cases (cached entries, operations, what must be gone) run against the
//! TLB model and against the table of requirements, separately. The TLB never reads that table.

mod case;
mod error;
mod file;
mod hardware;
mod operation;
mod report;
mod run;
mod table;

use std::collections::BTreeSet;

use tlbscope_sim::arch::processor::Refusal;
use tlbscope_sim::tlb::processors::{Erratum, sound};

use case::{Cached, Case};
use file::{Expected, RawCase, RawFile};

pub use error::CaseFileError;
pub use file::Confidence;
pub use report::{By, CaseReport, Failure, Group, Verdict, groups};
pub use table::{Mutation, unchanged};

/// Bytes of a case file; larger ones are refused by [`CaseFile::parse`].
pub const FILE_BYTES_MAX: usize = 64 << 20;

/// A file of cases.
#[derive(Clone, Debug)]
pub struct CaseFile {
    name: String,
    cases: Vec<RawCase>,
}

/// What is run against the cases: the model as it is, or a defective one to try the cases on.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The last word on each drop of the hardware.
    pub erratum: Erratum<'a>,
    /// The last word on each demand of the table.
    pub mutation: Mutation<'a>,
}

impl Default for Subject<'_> {
    fn default() -> Self {
        Self { erratum: &sound, mutation: &unchanged }
    }
}

impl CaseFile {
    /// Reads a file; `name` is what messages call it.
    ///
    /// # Errors
    ///
    /// [`CaseFileError`] with the place, if the text is no case file.
    pub fn parse(name: &str, text: &str) -> Result<Self, CaseFileError> {
        if text.len() > FILE_BYTES_MAX {
            let message = format!("is larger than {FILE_BYTES_MAX} bytes");
            return Err(CaseFileError::about(name, "", "", message).hint("split it"));
        }
        let raw: RawFile =
            serde_json::from_str(text).map_err(|error| CaseFileError::json(name, &error))?;
        if let Some(version) = raw.schema_version.filter(|v| *v != file::SCHEMA_VERSION) {
            let message = format!("schema_version {version} is not known");
            let error = CaseFileError::about(name, text, "schema_version", message);
            return Err(error.hint(format!("this program reads {}", file::SCHEMA_VERSION)));
        }
        let mut ids = BTreeSet::new();
        for case in &raw.cases {
            if !ids.insert(&case.id) {
                let message = format!("two cases are called `{}`", case.id);
                return Err(CaseFileError::about(name, text, &case.id, message));
            }
            check(name, text, case)?;
        }
        Ok(Self { name: name.to_owned(), cases: raw.cases })
    }

    /// Runs every case against the model.
    #[must_use]
    pub fn run(&self) -> Vec<CaseReport> {
        self.run_on(Subject::default())
    }

    /// Runs every case against a model with a defect.
    #[must_use]
    pub fn run_on(&self, subject: Subject<'_>) -> Vec<CaseReport> {
        self.cases.iter().map(|case| report(&self.name, case, subject)).collect()
    }
}

/// Names inside a case that must agree.
fn check(name: &str, text: &str, case: &RawCase) -> Result<(), CaseFileError> {
    let about = |message| CaseFileError::about(name, text, &case.id, message);
    let mut ids = BTreeSet::new();
    for entry in &case.entries {
        if !ids.insert(entry.id.as_str()) {
            return Err(about(format!("{}: two entries are called `{}`", case.id, entry.id)));
        }
    }
    match case.expect.keys().find(|id| !ids.contains(id.as_str())) {
        None => Ok(()),
        Some(id) => {
            let meant = case::unknown(id, ids.iter().copied());
            Err(about(format!("{}: `expect` names no entry: {meant}", case.id)))
        }
    }
}

/// The name without its last part: `I-INVLPG` of `I-INVLPG-03`.
fn group(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(group, _)| group)
}

fn report(file: &str, raw: &RawCase, subject: Subject<'_>) -> CaseReport {
    let mut report = CaseReport {
        file: file.to_owned(),
        id: raw.id.clone(),
        group: group(&raw.id).to_owned(),
        title: raw.title.clone(),
        source: raw.source.clone(),
        verdict: Verdict::Skipped,
        failures: Vec::new(),
        may_remain: 0,
        dropped: 0,
    };
    if raw.confidence == Confidence::Contradictory {
        return report;
    }
    match Case::new(raw) {
        Ok(case) => judge(raw, &case, subject, &mut report),
        Err(message) => report.failures.push(Failure { by: By::Model, entry: None, message }),
    }
    let clean = report.failures.is_empty();
    report.verdict = if clean { Verdict::Passed } else { Verdict::Failed };
    report
}

fn judge(raw: &RawCase, case: &Case, subject: Subject<'_>, report: &mut CaseReport) {
    let hardware = hardware::outcome(case, subject.erratum);
    let table = table::outcome(case, subject.mutation);
    let mut fail = |by, cached: Option<&Cached>, message: String| {
        let entry = cached.map(|cached| cached.id.clone());
        report.failures.push(Failure { by, entry, message });
    };
    if let Some(message) = fault(raw.fault.as_deref(), hardware.refusal.as_ref()) {
        fail(By::Hardware, None, message);
    }
    for (cached, (left, demanded)) in
        case.cached.iter().zip(hardware.left.iter().zip(&table.demanded))
    {
        match (cached.expected, demanded) {
            (Some(Expected::MustBeInvalid), demanded) => {
                if *left {
                    fail(By::Hardware, Some(cached), "must be invalid, and is still there".into());
                }
                if demanded.is_none() {
                    fail(By::Table, Some(cached), "must be invalid, and no rule says so".into());
                }
            }
            (Some(Expected::MayRemain), demanded) => {
                report.may_remain += 1;
                report.dropped += usize::from(!left);
                if let Some(rule) = demanded {
                    let message = format!("may remain, but `{}` wants it gone", rule.id);
                    fail(By::Table, Some(cached), message);
                }
            }
            (None, _) => {}
        }
    }
    // Both see the same operations refused; a table that went on would be a defect of this program.
    debug_assert_eq!(hardware.refusal, table.refusal);
}

/// What is wrong with the fault that the operations raised, if anything.
fn fault(expected: Option<&str>, raised: Option<&Refusal>) -> Option<String> {
    let plain = |name: &str| name.trim().trim_end_matches("(0)").to_ascii_lowercase();
    match (expected, raised) {
        (None, None) => None,
        (Some(expected), Some(raised)) if plain(expected) == plain(&raised.name()) => None,
        (Some(expected), Some(raised)) => Some(format!("{expected} is expected, not {raised}")),
        (Some(expected), None) => Some(format!("{expected} is expected, and nothing is refused")),
        (None, Some(raised)) => Some(format!("nothing is expected to be refused, but: {raised}")),
    }
}
