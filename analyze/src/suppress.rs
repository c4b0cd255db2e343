//! Suppressions: kinds of finding that somebody looked at and accepts, each with the reason.
//!
//! ```toml
//! [[suppress]]
//! rule = "mmu-reset"              # the rule, or what was too much, as findings print it
//! function = "kvm_set_cr4"        # the operation or the mechanism: a word of findings or of KVM
//! policy = "kvm-6.1-lts"          # only under this policy, or in recordings of this kernel
//! verdict = "excessive"           # only this verdict, or a class of it (`unrequired`)
//! reason = "6.1 resets on every role bit; fixed by the patch under review"
//! ```
//!
//! A key that is left out matches everything; `reason`, and one of `rule` and `function`, must be
//! there. What is suppressed is a [`Group`] as a whole, so that nothing is remembered of single
//! findings.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tlbscope_sim::arch::required::RULES;
use tlbscope_trace::text::nearest;
use toml::Spanned;

use crate::finding::{Class, Group, Kind};

/// What is done too much, as findings call it, with the functions of KVM that do it.
const MECHANISMS: [(&str, &[&str]); 7] = [
    ("mmu-reset", &["kvm_mmu_reset_context"]),
    ("mmu-unload", &["kvm_mmu_unload"]),
    ("root-free", &["kvm_mmu_free_roots", "kvm_mmu_free_guest_mode_roots"]),
    ("flush-all", &["kvm_vcpu_flush_tlb_all", "vmx_flush_tlb_all", "svm_flush_tlb_all"]),
    (
        "flush-current",
        &["kvm_vcpu_flush_tlb_current", "vmx_flush_tlb_current", "svm_flush_tlb_current"],
    ),
    ("flush-guest", &["kvm_vcpu_flush_tlb_guest", "vmx_flush_tlb_guest", "svm_flush_tlb_guest"]),
    ("flush-gva", &["kvm_mmu_invalidate_gva", "vmx_flush_tlb_gva", "svm_flush_tlb_gva"]),
];

/// Operations, as findings call them, with the functions of KVM that carry them out.
const OPERATIONS: [(&str, &[&str]); 25] = [
    ("cr0", &["kvm_set_cr0", "kvm_post_set_cr0", "kvm_lmsw"]),
    ("cr3", &["kvm_set_cr3"]),
    ("cr4", &["kvm_set_cr4", "kvm_post_set_cr4"]),
    ("efer", &["set_efer", "vmx_set_efer", "svm_set_efer"]),
    ("taskswitch", &["kvm_task_switch"]),
    ("invlpg", &["kvm_mmu_invlpg"]),
    ("invpcid", &["kvm_handle_invpcid"]),
    ("page-fault", &["kvm_inject_emulated_page_fault", "kvm_mmu_page_fault"]),
    ("init", &["kvm_vcpu_reset"]),
    ("reset", &[]),
    ("smi", &["enter_smm"]),
    ("rsm", &["emulator_leave_smm"]),
    ("mtrr", &["kvm_mtrr_set_msr"]),
    ("pat", &[]),
    ("pkru", &[]),
    ("sregs", &["__set_sregs", "kvm_arch_vcpu_ioctl_set_sregs"]),
    ("l2enter", &["nested_vmx_run", "nested_svm_vmrun"]),
    ("l2exit", &["nested_vmx_vmexit", "nested_svm_vmexit"]),
    ("invvpid", &["handle_invvpid"]),
    ("invept", &["handle_invept"]),
    ("vmfunc", &["handle_vmfunc"]),
    ("host-change", &[]),
    ("host-dead", &["kvm_unmap_gfn_range"]),
    ("remote-flush", &["kvm_flush_remote_tlbs"]),
    ("release", &[]),
];

/// How a stale copy is used, and where findings have no operation.
const OTHERS: [&str; 7] =
    ["tlb", "shadow-tlb", "paging-structure", "lockless-walk", "entry", "other", "unknown"];

/// Verdicts and their classes.
const VERDICTS: [&str; 9] = [
    "missed",
    "exposed",
    "latent",
    "advised",
    "excessive",
    "unrequired",
    "redundant",
    "over-broad",
    "bookkeeping",
];

/// What is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    all: Vec<Suppression>,
}

/// One kind of finding that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Suppression {
    /// The rule, or what was too much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The operation or mechanism, as it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The same as findings call it.
    #[serde(skip)]
    word: Option<String>,
    /// The policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The verdict or its class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Why it is accepted.
    pub reason: String,
    /// The file that says so.
    pub file: String,
    /// And the line.
    pub line: usize,
}

/// A file that cannot be read as suppressions.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}:{column}: {what}")]
pub struct SuppressError {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// And column.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    suppress: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    rule: Option<Spanned<String>>,
    function: Option<Spanned<String>>,
    policy: Option<String>,
    verdict: Option<Spanned<String>>,
    reason: Option<Spanned<String>>,
}

impl Suppressions {
    /// Adds those of a file.
    ///
    /// # Errors
    ///
    /// It is no TOML, has a key or a name that is not known, or an entry has no reason.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), SuppressError> {
        let at = |offset: usize, what: String| {
            let before = text.get(..offset.min(text.len())).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            SuppressError { file: file.to_owned(), line, column, what }
        };
        let parsed: File = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            at(start, error.message().replace('\n', ", "))
        })?;
        for spanned in parsed.suppress {
            let start = spanned.span().start;
            let entry = spanned.into_inner();
            let one = entry.check(file, at(start, String::new()).line);
            let one = one.map_err(|(place, what)| at(place.unwrap_or(start), what))?;
            self.all.push(one);
        }
        Ok(())
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, in the order of the files.
    #[must_use]
    pub fn all(&self) -> &[Suppression] {
        &self.all
    }

    /// The number of the first that accepts findings of this group under this policy.
    #[must_use]
    pub fn find(&self, group: &Group, policy: &str) -> Option<usize> {
        self.all.iter().position(|one| one.accepts(group, policy))
    }

    /// Those that were not found in `used`.
    pub fn unused<'a>(
        &'a self,
        used: &'a BTreeSet<usize>,
    ) -> impl Iterator<Item = &'a Suppression> {
        self.all.iter().enumerate().filter(|(n, _)| !used.contains(n)).map(|(_, one)| one)
    }
}

impl Suppression {
    fn accepts(&self, group: &Group, policy: &str) -> bool {
        let is = |wanted: &Option<String>, has: &[&str]| {
            wanted.as_ref().is_none_or(|wanted| has.contains(&wanted.as_str()))
        };
        is(&self.rule, &[group.rule])
            && is(&self.word, &[group.op, group.mechanism])
            && is(&self.policy, &[policy])
            && is(&self.verdict, &words(group.kind))
    }
}

/// The words for a verdict.
const fn words(kind: Kind) -> [&'static str; 2] {
    match kind {
        Kind::Missed { .. } => ["missed", ""],
        Kind::Exposed => ["exposed", ""],
        Kind::Latent => ["latent", ""],
        Kind::Advised => ["advised", ""],
        Kind::Excessive(Class::Unrequired) => ["excessive", "unrequired"],
        Kind::Excessive(Class::Redundant) => ["excessive", "redundant"],
        Kind::Excessive(Class::OverBroad) => ["excessive", "over-broad"],
        Kind::Excessive(Class::Bookkeeping) => ["bookkeeping", ""],
    }
}

/// What is wrong with an entry, and where, if not in it as a whole.
type Wrong = (Option<usize>, String);

impl Entry {
    fn check(self, file: &str, line: usize) -> Result<Suppression, Wrong> {
        let Some(reason) = self.reason.filter(|reason| !reason.get_ref().trim().is_empty()) else {
            let what = "`reason` is missing: say why these findings are accepted";
            return Err((None, what.to_owned()));
        };
        if self.rule.is_none() && self.function.is_none() {
            let what = "neither `rule` nor `function`: it would accept everything";
            return Err((None, what.to_owned()));
        }
        let mechanisms = || MECHANISMS.iter().map(|(name, _)| *name);
        let rules = || RULES.iter().map(|rule| rule.id).chain(mechanisms()).chain(["forgotten"]);
        known("rule", self.rule.as_ref(), rules)?;
        known("verdict", self.verdict.as_ref(), || VERDICTS.into_iter())?;
        let all = || MECHANISMS.iter().chain(&OPERATIONS);
        let functions = || {
            all().flat_map(|(name, of)| [*name].into_iter().chain(of.iter().copied())).chain(OTHERS)
        };
        known("function", self.function.as_ref(), functions)?;
        let taken = |value: Option<Spanned<String>>| value.map(Spanned::into_inner);
        let function = taken(self.function);
        let word = function.as_ref().map(|function| {
            let found = all().find(|(_, of)| of.contains(&function.as_str()));
            found.map_or_else(|| function.clone(), |(name, _)| (*name).to_owned())
        });
        Ok(Suppression {
            rule: taken(self.rule),
            function,
            word,
            policy: self.policy,
            verdict: taken(self.verdict),
            reason: reason.into_inner(),
            file: file.to_owned(),
            line,
        })
    }
}

/// A name must be one of those that are known.
fn known<I: Iterator<Item = &'static str>>(
    key: &str,
    value: Option<&Spanned<String>>,
    names: impl Fn() -> I,
) -> Result<(), Wrong> {
    let Some(value) = value else { return Ok(()) };
    let word = value.get_ref().as_str();
    if names().any(|name| name == word) {
        return Ok(());
    }
    let hint = nearest(word, names()).map(|name| format!(": did you mean `{name}`?"));
    Err((Some(value.span().start), format!("unknown {key} `{word}`{}", hint.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESET: Group = Group {
        kind: Kind::Excessive(Class::Unrequired),
        rule: "mmu-reset",
        op: "cr4",
        mechanism: "mmu-reset",
    };

    fn read(text: &str) -> Result<Suppressions, SuppressError> {
        let mut all = Suppressions::default();
        all.add("s.toml", text).map(|()| all)
    }

    #[test]
    fn a_group_is_accepted_by_rule_function_verdict_and_policy() {
        let accepts = |keys: &str| {
            let all = read(&format!("[[suppress]]\n{keys}\nreason = 'known'")).unwrap();
            all.find(&RESET, "kvm-5.17").is_some()
        };
        assert!(accepts("rule = 'mmu-reset'"));
        assert!(accepts("function = 'kvm_set_cr4'") && accepts("function = 'cr4'"));
        assert!(accepts("function = 'kvm_mmu_reset_context'"));
        assert!(accepts("function = 'cr4'\nverdict = 'excessive'\npolicy = 'kvm-5.17'"));
        assert!(accepts("function = 'cr4'\nverdict = 'unrequired'"));
        assert!(!accepts("function = 'cr4'\nverdict = 'redundant'"));
        assert!(!accepts("function = 'cr0'") && !accepts("rule = 'cr4-pge'"));
        assert!(!accepts("function = 'cr4'\npolicy = 'kvm-5.19'"));
    }

    #[test]
    fn mistakes_name_their_place_and_the_nearest_word() {
        let fails = |text: &str, place: &str, word: &str| {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(word), "{error}");
        };
        fails("[[suppress]]\nrule = 'cr4-pge'\n", "s.toml:1:", "`reason` is missing");
        fails("[[suppress]]\nrule = 'cr4-pge'\nreason = ' '", "s.toml:1:", "`reason` is missing");
        fails("[[suppress]]\nreason = 'all'\n", "s.toml:1:", "everything");
        fails("\n[[suppress]]\nrule = 'cr4-pgee'\nreason = 'r'", "s.toml:3:8", "mean `cr4-pge`?");
        let text = "[[suppress]]\nfunction = 'kvm_set_cr5'\nreason = 'r'";
        fails(text, "s.toml:2:12", "mean `kvm_set_cr");
        fails("[[suppress]]\nfuncton = 'cr4'\nreason = 'r'", "s.toml:2:1", "unknown field");
        fails("[[suppress]\n", "s.toml:1:", "");
    }

    #[test]
    fn what_was_not_used_is_told_with_its_line() {
        let all = read(
            "[[suppress]]\nrule = 'cr4-pge'\nreason = 'a'\n\n[[suppress]]\nfunction = 'cr4'\nreason = 'b'\n",
        );
        let all = all.unwrap();
        let used = all.find(&RESET, "never").into_iter().collect();
        let unused: Vec<_> = all.unused(&used).map(|one| (one.line, one.reason.as_str())).collect();
        assert_eq!(unused, [(1, "a")]);
        assert_eq!(all.all()[1].line, 5);
    }
}
