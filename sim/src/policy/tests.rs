//! Tests of the policies: decision tables typed by hand, errors, round trips.

mod builtin;
mod errors;
mod golden_cr;
mod golden_other;
mod hostile;
mod knobs;

use super::rule::{Change, Register};
use super::{Policy, load};

/// The actions of a policy for a change, as one line.
fn actions(policy: &Policy, register: Register, change: &Change) -> String {
    let texts: Vec<String> = policy
        .matching(register, change)
        .flat_map(|rule| rule.actions.iter().map(|action| action.text()))
        .collect();
    texts.join("; ").replace("request TLB_FLUSH_", "")
}

/// A built-in.
fn builtin(name: &str) -> Policy {
    load(name).unwrap_or_else(|e| panic!("{e}"))
}
