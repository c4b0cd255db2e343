//! Rows typed by hand from the facts on KVM, 1.3, 1.4 and 1.6.

use tlbscope_sim::policy;
use tlbscope_trace::regs::{Cr0, Cr4};

use super::*;

fn both(case: Case, a: &str, b: &str) -> [Outcome; 2] {
    let [a, b] = [a, b].map(|name| policy::load(name).unwrap());
    run(&case, [&a, &b]).unwrap()
}

fn cr4(set: Cr4, clear: Cr4) -> Change {
    Change { register: Register::Cr4, set: set.bits(), clear: clear.bits() }
}

/// Requests, reset and unload of an outcome, by name. TLB_FLUSH is left out: LOAD's sync of a page
/// that the micro scenario made unsync raises it (facts 2.6), no rule does.
fn acts(outcome: &Outcome) -> Vec<&'static str> {
    let wanted = |key: &Key| {
        key.name().starts_with("request") && *key != Key::RequestAll
            || matches!(*key, Key::MmuReset | Key::MmuUnload)
    };
    outcome.acts.iter().map(|(key, _)| key).filter(|key| wanted(key)).map(|k| k.name()).collect()
}

#[test]
fn g1_paging_off() {
    let change = Change { register: Register::Cr0, set: 0, clear: Cr0::PG.bits() };
    let case = (Vendor::Intel, MmuKind::Tdp, State::Pae, change);
    let [old, new] = both(case, "kvm-5.17", "kvm-patch-v2");
    assert_eq!(acts(&old), ["mmu-reset"]);
    assert_eq!(acts(&new), ["request-guest", "mmu-reset"]);
    assert_eq!(old.owed, ["cr0-pg-clear"]);
}

#[test]
fn g2_and_g3_pcide_with_ept() {
    let clear = (Vendor::Intel, MmuKind::Tdp, State::Level4Pcid, cr4(Cr4::empty(), Cr4::PCIDE));
    let [old, new] = both(clear, "kvm-5.17", "kvm-patch-v2");
    assert_eq!(acts(&old), ["request-reload", "mmu-unload"]);
    assert_eq!(acts(&new), ["request-guest"]);
    // INVEPT of the new root leaves what the VPID holds under the old one, out of reach (G2).
    assert_eq!((old.verdict, new.verdict), (Verdict::Latent, Verdict::Served));
    let set = (Vendor::Intel, MmuKind::Tdp, State::Level4, cr4(Cr4::PCIDE, Cr4::empty()));
    let [old, new] = both(set, "kvm-5.17", "kvm-patch-v2");
    assert_eq!(acts(&old), ["request-reload", "mmu-unload"]);
    assert_eq!(acts(&new), [""; 0]);
    assert_eq!(old.verdict, Verdict::Wasted);
    assert_eq!(new.verdict, Verdict::NothingDone);
}

#[test]
fn g7_pcide_set_in_shadow_mode() {
    let set = (Vendor::Intel, MmuKind::Shadow, State::Level4, cr4(Cr4::PCIDE, Cr4::empty()));
    let [posted, merged] = both(set, "kvm-patch-v2", "kvm-5.19");
    assert_eq!(acts(&posted), ["request-reload", "mmu-unload"]);
    assert_eq!(acts(&merged), ["mmu-unload"]);
}

#[test]
fn g4_and_g12_smep() {
    let smep = (Vendor::Intel, MmuKind::Tdp, State::Level4, cr4(Cr4::SMEP, Cr4::empty()));
    let [old, new] = both(smep, "kvm-5.17", "kvm-patch-v2");
    assert_eq!(acts(&old), ["mmu-reset"]);
    assert_eq!(acts(&new), ["request-current", "mmu-reset"]);
    let pair = (Vendor::Intel, MmuKind::Shadow, State::Level4, cr4(Cr4::SMEP, Cr4::PGE));
    let [old, new] = both(pair, "kvm-5.17", "kvm-patch-v2");
    assert_eq!(acts(&old), ["mmu-reset"]);
    assert_eq!(acts(&new), ["request-guest", "mmu-reset"]);
}

#[test]
fn g13_smap_is_no_difference() {
    for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
        let smap = (Vendor::Intel, mmu, State::Level4, cr4(Cr4::SMAP, Cr4::empty()));
        let [old, new] = both(smap, "kvm-5.17", "kvm-patch-v2");
        assert_eq!(acts(&old), ["mmu-reset"]);
        assert_eq!(old, new);
    }
}

#[test]
fn resets_that_keep_their_roots() {
    let smep = |vendor, mmu| (vendor, mmu, State::Level4, cr4(Cr4::SMEP, Cr4::empty()));
    // The lines before the patch have nothing but the reset; the posted ones ask for CURRENT.
    let ept = smep(Vendor::Intel, MmuKind::Tdp);
    let [before, posted] = both(ept, "kvm-5.17-keep-roots", "kvm-patch-v2-18");
    assert_eq!((before.verdict, before.owed), (Verdict::MissedHarmful, vec!["cr4-smep-set"]));
    assert!(!posted.verdict.missed(), "{posted:?}");
    let smep_only = before.unedited;
    assert_eq!(smep_only, Some(Verdict::MissedBenign), "the check of SMEP is made at each use");
    // CURRENT flushes the hardware and leaves the unsync page.
    let shadow = smep(Vendor::Intel, MmuKind::Shadow);
    let [_, posted] = both(shadow, "kvm-patch-v2", "kvm-patch-v2-18");
    assert_eq!(posted.verdict, Verdict::MissedHarmful);
    assert_eq!(posted.unedited.map(Verdict::missed), Some(false));
    // On AMD PSE and PKE 0 to 1 owe a flush for which the posted rules have only the reset.
    for change in [cr4(Cr4::PSE, Cr4::empty()), cr4(Cr4::PKE, Cr4::empty())] {
        let case = (Vendor::Amd, MmuKind::Tdp, State::Level4, change);
        let [whole, kept] = both(case, "kvm-patch-v2", "kvm-patch-v2-18");
        assert_eq!(whole.verdict, Verdict::Served, "{change}");
        assert_eq!(kept.verdict, Verdict::MissedHarmful, "{change}");
        let case = (Vendor::Intel, MmuKind::Tdp, State::Level4, change);
        let [_, kept] = both(case, "kvm-patch-v2", "kvm-patch-v2-18");
        assert!(kept.owed.is_empty() && !kept.verdict.missed(), "{change}");
    }
}

#[test]
fn paging_on_over_a_cached_root() {
    let change = Change { register: Register::Cr0, set: (Cr0::PG | Cr0::WP).bits(), clear: 0 };
    let case = (Vendor::Amd, MmuKind::Tdp, State::Level4, change);
    let [whole, kept] = both(case, "kvm-patch-v2", "kvm-patch-v2-18");
    assert_eq!((whole.verdict, whole.owed), (Verdict::Served, vec!["cr0-pg-set"]));
    assert_eq!(kept.verdict, Verdict::MissedHarmful);
    assert!(kept.acts.contains(&(Key::RootHit, 1)));
    // No edit is needed: what was cached without paging maps each address to itself.
    assert_eq!(kept.unedited, Some(Verdict::MissedHarmful));
}

#[test]
fn a_noflush_switch_within_a_new_pcid_0_blames_no_write() {
    // PCIDE 0 to 1 leaves both address spaces in PCID 0. What A left there B may see: the guest's
    // own doing. SMEP's missed flush alone is benign, with PCIDE beside it too.
    let change = cr4(Cr4::PCIDE | Cr4::SMEP, Cr4::empty());
    let case = (Vendor::Intel, MmuKind::Tdp, State::Level4, change);
    let [kept, _] = both(case, "kvm-5.17-keep-roots", "kvm-patch-v2-18");
    assert_eq!(kept.unedited, Some(Verdict::MissedBenign));
}

#[test]
fn breadth_of_what_serves() {
    // SMEP 0 to 1 owes the current PCID; INVEPT and INVVPID of one context drop the other's too.
    let smep = cr4(Cr4::SMEP, Cr4::empty());
    let verdicts = |mmu, state| {
        both((Vendor::Intel, mmu, state, smep), "kvm-patch-v2", "kvm-patch-v2-18")[1].verdict
    };
    assert_eq!(verdicts(MmuKind::Tdp, State::Level4), Verdict::Served);
    assert_eq!(verdicts(MmuKind::Tdp, State::Level4Pcid), Verdict::OverBroad);
    // LOAD's flush counts as well: before the patch nothing else flushes.
    let case = (Vendor::Intel, MmuKind::Shadow, State::Level4Pcid, smep);
    assert_eq!(both(case, "kvm-5.17", "kvm-5.17")[0].verdict, Verdict::OverBroad);
    // PGE owes everything: nothing is too broad.
    let pge = cr4(Cr4::empty(), Cr4::PGE);
    let case = (Vendor::Amd, MmuKind::Tdp, State::Level4Pcid, pge);
    assert_eq!(both(case, "kvm-5.19", "kvm-5.19")[0].verdict, Verdict::Served);
}

#[test]
fn what_both_miss_alike_is_listed() {
    let one = policy::load("kvm-patch-v2-18").unwrap();
    let diff = diff([&one, &one]);
    assert!(diff.rows.is_empty());
    let cases: usize = diff.missed_alike.iter().map(|row| row.states.len()).sum();
    assert_eq!([cases, cases], diff.missed);
    let pse = cr4(Cr4::PSE, Cr4::empty());
    let listed = |mmu| {
        diff.missed_alike
            .iter()
            .any(|row| (row.vendor, row.mmu, row.change) == (Vendor::Amd, mmu, pse))
    };
    assert!(listed(MmuKind::Tdp) && listed(MmuKind::Shadow));
}

#[test]
fn a_policy_does_not_differ_from_itself() {
    let one = policy::load("kvm-5.19").unwrap();
    let diff = diff([&one, &one]);
    assert!(diff.transitions > 500, "{}", diff.transitions);
    assert_eq!((diff.differing, diff.rows.len()), (0, 0));
    assert_eq!(diff.missed, [0, 0]);
}

#[test]
fn changes_are_one_or_two_bits() {
    let all = transition::changes();
    // CR0: 2 bits, 1 pair; CR4: 8 bits, 28 pairs.
    assert_eq!(all.len(), 2 * 2 + 4 + 8 * 2 + 28 * 4);
    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert!(text.contains(&"cr4 -PGE+SMEP".to_owned()), "{text:?}");
}
