//! Policies: what a hypervisor does when the guest changes its translation. A policy is data (a
//! TOML file): *rules*, from an operation to actions, and *mechanics*, how kernels differ below
//! the rules.

mod builtin;
mod draft;
mod error;
mod knob;
mod library;
pub mod mechanics;
pub mod nearest;
pub mod rule;
mod rule_text;
#[cfg(test)]
mod tests;

pub use error::PolicyError;
pub use library::Library;

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

/// Name and text of every built-in, the oldest kernel first.
#[must_use]
pub const fn builtins() -> &'static [(&'static str, &'static str)] {
    builtin::BUILTINS
}

/// The policy of a built-in's name or a path.
///
/// # Errors
/// The name is unknown, a file cannot be read, or what is wrong with its text.
pub fn load(name_or_path: &str) -> Result<Policy, PolicyError> {
    Library::new().load(name_or_path)
}

/// The policy of a text; `origin` names it in errors, `library` holds what it may extend.
///
/// # Errors
/// What is wrong with the text, or with what it extends.
pub fn parse(text: &str, origin: &str, library: &Library) -> Result<Policy, PolicyError> {
    library.parse(text, origin)
}

impl Policy {
    /// No rules, and the mechanics of mainline 7.3: what a policy without `extends` starts from.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            name: String::new(),
            about: String::new(),
            mechanics: Mechanics::default(),
            ideal: Ideal::No,
            control: Control::None,
            rules: Default::default(),
        }
    }

    /// The whole policy as one TOML document, with nothing inherited.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let quote = |text: &str| toml::Value::from(text).to_string();
        let mut out = format!("name = {}\nabout = {}\n", quote(&self.name), quote(&self.about));
        for register in Register::ALL {
            for rule in self.rules(register) {
                out += &format!("\n[[{}]]\nid = {}\n", register.key(), quote(&rule.id));
                out += &format!("about = {}\n", quote(&rule.about));
                out += &format!("source = {}\n", quote(&rule.source));
                if rule.or_else {
                    out += "else = true\n";
                }
                if rule.when != rule::When::All(Box::default()) {
                    out += &format!("when = {}\n", rule.when.text(register));
                }
                let actions: Vec<String> =
                    rule.actions.iter().map(|action| quote(&action.text())).collect();
                out += &format!("do = [{}]\n", actions.join(", "));
            }
        }
        out += "\n[mechanics]\n";
        for (key, value) in self.mechanics.entries() {
            out += &format!("{key} = {value}\n");
        }
        match self.ideal {
            Ideal::No => {}
            Ideal::HwMin => out += "ideal = \"hw-min\"\n",
            Ideal::ArchMin => out += "ideal = \"arch-min\"\n",
        }
        match self.control {
            Control::None => {}
            Control::FlushAll => out += "exit-flush = true\n",
            Control::Never => out += "never = true\n",
        }
        out
    }

    /// The rules of a register, in order.
    #[must_use]
    pub fn rules(&self, register: Register) -> &[Rule] {
        &self.rules[register as usize]
    }

    /// The rule of that id, with the register it belongs to.
    #[must_use]
    pub fn rule(&self, id: &str) -> Option<(Register, &Rule)> {
        Register::ALL.into_iter().find_map(|register| {
            self.rules(register).iter().find(|rule| rule.id == id).map(|rule| (register, rule))
        })
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
