//! Random policies: the built-in ones, and built-in ones with rules taken out or mechanics flipped.

use std::fmt;

use proptest::prelude::*;
use tlbscope_sim::policy::rule::Register;
use tlbscope_sim::policy::{Library, Policy, load, parse};

/// Mechanics that a random policy may have otherwise, as TOML.
const FLIPS: [&str; 22] = [
    "guest-flush-shadow = \"hw-only\"",
    "guest-flush-shadow = \"unload\"",
    "guest-flush-shadow = \"sync\"",
    "load-flush = false",
    "reset = \"update-root\"",
    "reset = \"unload\"",
    "prev-roots = 0",
    "prev-root-min-level = 4",
    "prev-root-min-level = 0",
    "new-pgd-hit-flush = true",
    "invalidate-pcid = \"current\"",
    "invalidate-pcid-without-pcide = \"cached\"",
    "invlpg-roots = \"current\"",
    "invlpg = \"all\"",
    "pdptr-cr4 = []",
    "pdptr-cr0 = []",
    "refind-requests-sync = true",
    "vendor-reset-flush = false",
    "svm-pge-hook = true",
    "wp-nonpaging = \"reset\"",
    "remote-flush = { zap = false }",
    "remote-flush = { sync = false }",
];

/// How a policy is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    base: &'static str,
    /// Rules taken out, by register and place.
    without: Vec<(usize, usize)>,
    flips: Vec<usize>,
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (register, index) in &self.without {
            writeln!(f, "# without rule {index} of {}", Register::ALL[*register].key())?;
        }
        let lines = self.mechanics();
        if !lines.is_empty() {
            writeln!(f, "\n[policy.random]\nextends = \"{}\"", self.base)?;
            writeln!(f, "[policy.random.mechanics]\n{}", lines.join("\n"))?;
        }
        Ok(())
    }
}

impl Pick {
    /// A built-in policy as it is.
    pub const fn builtin(base: &'static str) -> Self {
        Self { base, without: Vec::new(), flips: Vec::new() }
    }

    /// Its name in a scenario file.
    pub fn name(&self) -> String {
        if self.flips.is_empty() { format!("\"{}\"", self.base) } else { "random".to_owned() }
    }

    /// Its mechanics, each key once.
    fn mechanics(&self) -> Vec<&'static str> {
        let key = |line: &'static str| line.split(' ').next();
        let mut lines: Vec<&'static str> = Vec::new();
        for line in self.flips.iter().map(|flip| FLIPS[*flip]) {
            if lines.iter().all(|other| key(other) != key(line)) {
                lines.push(line);
            }
        }
        lines
    }

    /// One of these, as they are.
    pub fn one_of(names: &'static [&'static str]) -> impl Strategy<Value = Self> {
        prop::sample::select(names).prop_map(Self::builtin)
    }

    /// Any: half of them built-in ones, half of them changed.
    pub fn any() -> impl Strategy<Value = Self> {
        let names: Vec<&'static str> =
            tlbscope_sim::policy::builtins().iter().map(|(name, _)| *name).collect();
        let without = prop::collection::vec((0..Register::ALL.len(), 0usize..8), 0..6);
        let flips = prop::collection::vec(0..FLIPS.len(), 0..3);
        let changes = prop_oneof![Just((Vec::new(), Vec::new())), (without, flips)];
        (prop::sample::select(names), changes).prop_map(|(base, (without, flips))| Self {
            base,
            without,
            flips,
        })
    }
}

/// Makes the policy. A flip of a mechanic that cannot be laid over the one before is an error.
pub fn policy(pick: &Pick) -> Policy {
    let mut made = load(pick.base).expect("a built-in");
    let last = pick.mechanics();
    if !last.is_empty() {
        let lines = last.join("\n");
        let text = format!("extends = \"{}\"\n[mechanics]\n{lines}\n", pick.base);
        made = parse(&text, "flipped", &Library::new()).expect("known mechanics");
    }
    for (register, index) in &pick.without {
        made = made.without_rule(Register::ALL[*register], *index);
    }
    made
}
