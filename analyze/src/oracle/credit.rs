//! Credit within an exit window: which hook served which obligation, and what was too much.

use tlbscope_sim::arch::required::Scope;
use tlbscope_trace::act::Hook;

use super::floors::{Target, address, covers};

/// Obligations of one window that are kept apart.
const OPEN: usize = 64;

/// Who has served an obligation in this exit window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum By {
    /// Nobody yet.
    Nobody,
    /// Only LOAD's flush, which gives way to an explicit request.
    Load,
    /// An explicit flush.
    Explicit,
}

/// An obligation that waits for its flush.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Open {
    /// When it arose.
    pub time: u64,
    /// Of which copies.
    pub scope: Scope,
    /// Who served it.
    pub by: By,
    /// Whether the hardware has carried it out.
    pub done: bool,
    /// Whether a hook that is being judged for over-breadth serves it.
    pub judged: bool,
}

/// What a hook turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It serves something owed.
    Required,
    /// It serves only what was served before in the same window.
    Redundant,
    /// Nothing owed it.
    Unrequired,
}

/// The exit window of one vCPU.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// What is owed.
    pub open: Vec<Open>,
    /// The next explicit flush serves a flush that the guest asked for by hypercall.
    pub bookkeeping: bool,
    /// The vCPU is on another pCPU, or its VMCS was active elsewhere: the next flush of everything is
    /// for what was left there, and takes no credit from what is asked for besides.
    pub moved: bool,
    /// TLB_FLUSH_GUEST was served last.
    pub guest_flush: bool,
    /// The explicit hook whose drops are being judged.
    #[serde(with = "tlbscope_trace::state::word_or_none")]
    pub hook: Option<tlbscope_trace::state::Name>,
}

/// Whether a hook of this kind can serve an obligation of this scope.
fn serves(hook: Hook, shadow: bool, scope: &Scope) -> bool {
    match (hook, scope) {
        (Hook::Gva(gva), _) => address(scope).is_some_and(|a| a >> 12 == gva.0 >> 12),
        (Hook::Guest, Scope::Frames { .. }) => shadow,
        _ => true,
    }
}

impl Window {
    /// Something is owed from now on.
    pub fn owe(&mut self, open: Open) {
        if self.open.len() == OPEN {
            self.open.remove(0);
        }
        self.open.push(open);
    }

    /// An explicit flush is called and will be carried out.
    pub fn explicit(&mut self, hook: Hook, shadow: bool) -> Verdict {
        let (mut pending, mut served) = (false, false);
        for open in self.open.iter_mut().filter(|o| serves(hook, shadow, &o.scope)) {
            open.judged = open.by != By::Explicit;
            pending |= open.judged;
            served |= !open.judged;
            open.by = By::Explicit;
        }
        if pending {
            Verdict::Required
        } else if served {
            Verdict::Redundant
        } else {
            Verdict::Unrequired
        }
    }

    /// LOAD's flush. Returns whether it served anything.
    pub fn load(&mut self, shadow: bool) -> bool {
        let mut any = false;
        for open in &mut self.open {
            if open.by == By::Nobody && serves(Hook::Current, shadow, &open.scope) {
                open.by = By::Load;
                any = true;
            }
        }
        any
    }

    /// The hardware has carried out what was credited.
    pub fn carried_out(&mut self) {
        for open in self.open.iter_mut().filter(|o| o.by != By::Nobody) {
            open.done = true;
        }
    }

    /// A VMRUN failed: what it should have flushed is owed still.
    pub fn failed(&mut self) {
        for open in self.open.iter_mut().filter(|o| !o.done) {
            open.by = By::Nobody;
        }
    }

    /// The obligation that an explicit hook served for which `entries` copies of this container
    /// are too many, if they are.
    #[must_use]
    pub fn over_broad(&self, target: &Target, host: bool, entries: u32) -> Option<&Open> {
        let mut judged = self.open.iter().filter(|o| o.judged).peekable();
        let first = *judged.peek()?;
        let within = judged.any(|o| match o.scope {
            Scope::Frames { size, .. } => u64::from(entries) <= size.div_ceil(4096),
            _ if host => false,
            scope => match address(&scope) {
                Some(gva) => entries <= 1 && covers(&scope, &Target { gva, ..*target }),
                None => covers(&scope, target),
            },
        });
        (!within).then_some(first)
    }
}

/// The name of a hook in findings.
#[must_use]
pub const fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::All => "flush-all",
        Hook::Current => "flush-current",
        Hook::Guest => "flush-guest",
        Hook::Gva(_) => "flush-gva",
    }
}
