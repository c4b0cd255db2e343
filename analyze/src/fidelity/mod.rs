//! Does the model do what the recorded kernel did? The guest operations of a recording are fed to
//! the machine under a policy, and what both did between each exit and the next entry is compared,
//! action by action.
//!
//! Taken from the recording besides the operations (`inputs_taken`): whether a sync changed entries,
//! which pages are unsync, what the host zapped, whether a shadow page is new or existing, whether
//! load_pdptrs read other PDPTEs. All of these rest on memory that a recording does not show. A fault
//! of the guest's own is counted with them, although it is an operation. Everything else is predicted.

mod align;
mod feed;
mod report;
mod roots;
mod stats;
mod token;
mod window;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_sim::engine::{EngineError, Machine};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::Recording;

use crate::replay::Work;

pub use report::{Row, text};
pub use token::{Alphabet, Kind, Token};

/// The numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Summary {
    /// The recording.
    pub trace: String,
    /// The policy.
    pub policy: String,
    /// Operations, and entries that an action precedes.
    pub operations: u64,
    /// Of these, those with every action equal, in order.
    pub agreed: u64,
    /// Those besides in which a difference may come of what the recording does not show: it begins,
    /// or events were lost, a little before.
    pub not_compared: u64,
    /// What was taken from the recording, by kind.
    pub inputs_taken: BTreeMap<&'static str, u64>,
}

/// Agreement of one kind of operation or action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Agreement {
    /// How many there are.
    pub total: u64,
    /// How many are equal.
    pub agreed: u64,
}

/// One operation on which model and kernel differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Disagreement {
    /// The vCPU.
    pub vcpu: u16,
    /// First and last line of the window in the recording.
    pub lines: (u32, u32),
    /// Nanoseconds since the first record.
    pub time: u64,
    /// The operations, as text.
    pub operation: String,
    /// What KVM did, with the line of each action.
    pub recorded: Vec<(u32, String)>,
    /// What the model did.
    pub modelled: Vec<String>,
    /// What differs, in words.
    pub why: String,
}

/// The comparison of one recording with one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fidelity {
    /// The numbers.
    pub summary: Summary,
    /// By kind of operation.
    pub by_operation: BTreeMap<String, Agreement>,
    /// By kind of action.
    pub by_action: BTreeMap<&'static str, Agreement>,
    /// The first disagreements.
    pub disagreements: Vec<Disagreement>,
    /// Counters as the model and the recording have them.
    pub counters: BTreeMap<&'static str, Counter>,
}

/// A counter on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Counter {
    /// Counted in the recording.
    pub recorded: u64,
    /// Counted in the model.
    pub modelled: u64,
    /// What KVM's own statistics say, where they were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<u64>,
}

/// Compares. The first `keep` disagreements are kept.
///
/// # Errors
/// The machine that the recording shows cannot be made.
pub fn compare(
    recording: &Recording,
    work: &Work,
    policy: &Policy,
    keep: usize,
) -> Result<Fidelity, EngineError> {
    let machine = Machine::new(&work.machine, policy)?.with_regs(&work.regs);
    Ok(window::Run::new(recording, machine, &policy.name, &work.trace, keep).run())
}

/// The control: a model that predicts nothing. It must agree on nothing.
///
/// # Errors
/// As [`compare`].
pub fn compare_with_nothing(
    recording: &Recording,
    work: &Work,
    policy: &Policy,
) -> Result<Fidelity, EngineError> {
    let machine = Machine::new(&work.machine, policy)?.with_regs(&work.regs);
    Ok(window::Run::new(recording, machine, "nothing", &work.trace, 0).muted().run())
}
