//! What holds for every built-in.

use super::super::mechanics::{Mechanics, Scope};
use super::super::rule::{Change, Register};
use super::super::{Control, Ideal, Library, builtins, parse};
use super::{actions, builtin};

#[test]
fn every_built_in_survives_a_round_through_toml() {
    for (name, _) in builtins() {
        let policy = builtin(name);
        assert_eq!(policy.name, *name);
        let text = policy.to_toml();
        let again = parse(&text, "round.toml", &Library::new()).unwrap_or_else(|e| {
            panic!("{e}\n{text}");
        });
        assert_eq!(again, policy, "{text}");
    }
}

#[test]
fn every_rule_says_what_it_is() {
    for (name, _) in builtins() {
        let policy = builtin(name);
        assert!(policy.about.ends_with('.'), "{name}");
        for register in Register::ALL {
            for rule in policy.rules(register) {
                assert!(rule.about.ends_with('.'), "{name}: {}", rule.id);
                assert!(!rule.source.is_empty(), "{name}: {}", rule.id);
                assert!(rule.id.starts_with(register.key()), "{name}: {}", rule.id);
                assert!(!rule.actions.is_empty(), "{name}: {}", rule.id);
                assert_eq!(policy.rule(&rule.id), Some((register, rule)), "{name}: ids are unique");
            }
        }
    }
}

#[test]
fn mainline_has_the_default_mechanics() {
    assert_eq!(builtin("kvm-7.3").mechanics, Mechanics::default());
}

#[test]
fn the_four_special_ones() {
    let special = |name: &str| {
        let policy = builtin(name);
        (policy.ideal, policy.control, policy.mechanics.scope)
    };
    assert_eq!(special("hw-min"), (Ideal::HwMin, Control::None, Scope::Hardware));
    assert_eq!(special("arch-min"), (Ideal::ArchMin, Control::None, Scope::Exact));
    assert_eq!(special("flush-all"), (Ideal::No, Control::FlushAll, Scope::Hardware));
    assert_eq!(special("never"), (Ideal::No, Control::Never, Scope::Hardware));
    assert_eq!(special("kvm-5.17"), (Ideal::No, Control::None, Scope::Hardware));
    let flushes = |register| {
        let policy = builtin("hw-min");
        policy
            .rules(register)
            .iter()
            .any(|rule| rule.actions.iter().any(|action| action.text().contains("FLUSH")))
    };
    assert!(!Register::ALL.into_iter().any(flushes), "the ideal decides every flush");
}

#[test]
fn a_rule_taken_away_takes_nothing_else() {
    let patch = builtin("kvm-patch-v2");
    // PGE and SMEP: role, all PCIDs (which suppresses the current one).
    let change = Change { new: 1 << 7 | 1 << 20, ..Change::default() };
    let without =
        |index| actions(&patch.without_rule(Register::Cr4, index), Register::Cr4, &change);
    assert_eq!(actions(&patch, Register::Cr4, &change), "mmu-reset; GUEST");
    assert_eq!(without(0), "GUEST");
    assert_eq!(without(1), "mmu-reset; GUEST");
    assert_eq!(without(2), "mmu-reset; CURRENT");
    assert_eq!(without(3), "mmu-reset; GUEST");
    assert_eq!(without(4), "mmu-reset; GUEST");
    // In the chain of 5.17 the middle rule's follower still hangs on the first.
    let old = builtin("kvm-5.17").without_rule(Register::Cr4, 1);
    assert_eq!(actions(&old, Register::Cr4, &change), "mmu-reset");
    let pge = Change { new: 1 << 7, ..Change::default() };
    assert_eq!(actions(&old, Register::Cr4, &pge), "GUEST");
}
