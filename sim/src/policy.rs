//! Policies: what a hypervisor does when the guest changes its translation. A policy is data (a
//! TOML file): *rules*, from an operation to actions, and *mechanics*, how kernels differ below
//! the rules.

mod knob;
pub mod mechanics;
pub mod nearest;
pub mod rule;

use mechanics::Mechanics;
use rule::{Change, Matching, Register, Rule};

/// What an ideal policy aims at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ideal {
    /// No ideal: the rules decide.
    #[default]
    No,
    /// The cheapest that real instructions can do.
    HwMin,
    /// Exactly what is owed.
    ArchMin,
}

/// A policy that is no policy but a control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Control {
    /// No control.
    #[default]
    None,
    /// Every exit flushes everything.
    FlushAll,
    /// Nothing is flushed, synced, or dropped for invalidation.
    Never,
}

/// A policy, with everything that it inherits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// One sentence.
    pub about: String,
    /// How it differs below the rules.
    pub mechanics: Mechanics,
    /// An ideal, with `ideal = "hw-min" | "arch-min"` in its mechanics.
    pub ideal: Ideal,
    /// A control, with `exit-flush = true` or `never = true` in its mechanics.
    pub control: Control,
    rules: [Vec<Rule>; Register::ALL.len()],
}

impl Policy {
    /// The rules of a register, in order.
    #[must_use]
    pub fn rules(&self, register: Register) -> &[Rule] {
        &self.rules[register as usize]
    }

    /// The rules that apply to a change, in order.
    #[inline]
    pub fn matching<'a>(&'a self, register: Register, change: &'a Change) -> Matching<'a> {
        let ignored = register == Register::Cr0 && self.wp_ignored(change);
        let rules = if ignored { &[] } else { self.rules(register) };
        Matching { rules: rules.iter(), change, taken: false }
    }

    /// Whether `wp-nonpaging = "ignore"` answers this CR0 write.
    fn wp_ignored(&self, change: &Change) -> bool {
        use tlbscope_trace::regs::Cr0;
        self.mechanics.wp_nonpaging == mechanics::WpNonpaging::Ignore
            && change.old ^ change.new == Cr0::WP.bits()
            && change.new & Cr0::PG.bits() == 0
    }

    /// The policy with one of its rules made never to match; the same policy if there is no such
    /// rule. What said `else` to it says so to the rule before it, if it was part of a chain.
    #[must_use]
    pub fn without_rule(&self, register: Register, index: usize) -> Self {
        let mut policy = self.clone();
        let rules = &mut policy.rules[register as usize];
        if index < rules.len() {
            let removed = rules.remove(index);
            if let Some(next) = rules.get_mut(index) {
                next.or_else &= removed.or_else;
            }
        }
        policy
    }
}
