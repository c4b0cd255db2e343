//! CR0 and CR4: the decision tables of every version, typed from the sources.

use tlbscope_trace::regs::{Cr0, Cr4};

use super::super::rule::{Change, Register};
use super::{actions, builtin};

/// Columns of the CR4 table that share their rules.
const CR4_COLUMNS: [(&str, &[&str]); 5] = [
    ("V510", &["kvm-5.10"]),
    ("V515", &["kvm-5.15"]),
    ("V517", &["kvm-5.17", "kvm-5.17-keep-roots"]),
    ("P2", &["kvm-patch-v2", "kvm-patch-v2-18"]),
    (
        "MRG",
        &[
            "kvm-5.19",
            "kvm-6.1-lts",
            "kvm-6.4",
            "kvm-6.12-lts",
            "kvm-6.18",
            "kvm-7.3",
            "flush-all",
            "never",
        ],
    ),
];

/// A row: old bits, new bits, the actions in each column with TDP, and without.
type Row = (Cr4, Cr4, [&'static str; 5], [&'static str; 5]);

/// No action.
const N: &str = "";
/// RESET.
const R: &str = "mmu-reset";
/// RESET and CUR.
const RC: &str = "mmu-reset; CURRENT";
/// RESET and GUEST.
const RG: &str = "mmu-reset; GUEST";
/// GUEST.
const G: &str = "GUEST";
/// RELOAD.
const L: &str = "mmu-reload";
/// UNLOAD.
const U: &str = "mmu-unload";

fn cr4_rows() -> Vec<Row> {
    let none = Cr4::empty();
    let both = |old: Cr4, new: Cr4, row: [&'static str; 5]| (old, new, row, row);
    let mut rows = vec![
        both(none, Cr4::PGE, [R, R, G, G, G]),
        both(Cr4::PGE, none, [R, R, G, G, G]),
        (none, Cr4::PCIDE, [N, N, L, N, N], [N, N, L, L, U]),
        both(Cr4::PCIDE, none, [R, R, L, G, G]),
        both(none, Cr4::PAE, [R, R, R, RC, RC]),
        both(Cr4::PAE, none, [R, R, R, RC, RC]),
        both(none, Cr4::SMEP, [R, R, R, RC, RC]),
        both(Cr4::SMEP, none, [R, R, R, R, R]),
        both(none, Cr4::LA57, [N, R, R, R, R]),
        both(Cr4::LA57, none, [N, R, R, R, R]),
        // Several bits in one write: 5.17's chain is exclusive, the patch's steps are not, and
        // GUEST suppresses CURRENT.
        both(none, Cr4::PGE | Cr4::SMAP, [R, R, R, RG, RG]),
        both(none, Cr4::PGE | Cr4::SMEP, [R, R, R, RG, RG]),
        both(Cr4::PCIDE | Cr4::PAE, none, [R, R, R, RG, RG]),
        both(Cr4::SMEP | Cr4::PGE, none, [R, R, R, RG, RG]),
        both(Cr4::PGE | Cr4::PCIDE, none, [R, R, L, G, G]),
        (
            none,
            Cr4::PCIDE | Cr4::PGE,
            [R, R, L, G, G],
            [R, R, L, "mmu-reload; GUEST", "mmu-unload; GUEST"],
        ),
        (
            none,
            Cr4::PCIDE | Cr4::SMEP,
            [R, R, R, RC, RC],
            [R, R, R, "mmu-reset; mmu-reload; CURRENT", "mmu-reset; mmu-unload; CURRENT"],
        ),
        both(Cr4::all(), Cr4::all(), [N; 5]),
    ];
    for bit in [Cr4::SMAP, Cr4::PSE, Cr4::PKE] {
        rows.push(both(none, bit, [R; 5]));
        rows.push(both(bit, none, [R; 5]));
    }
    for bit in [
        Cr4::OSXSAVE,
        Cr4::CET,
        Cr4::LAM_SUP,
        Cr4::UMIP,
        Cr4::FSGSBASE,
        Cr4::TSD,
        Cr4::DE,
        Cr4::PVI,
        Cr4::VME,
        Cr4::PCE,
        Cr4::MCE,
        Cr4::OSFXSR,
        Cr4::OSXMMEXCPT,
        Cr4::SMXE,
        Cr4::VMXE,
        Cr4::PKS,
    ] {
        rows.push(both(none, bit, [N; 5]));
        rows.push(both(bit, none, [N; 5]));
    }
    rows
}

#[test]
fn cr4_decision_table() {
    for (column, (label, names)) in CR4_COLUMNS.iter().enumerate() {
        for name in *names {
            let policy = builtin(name);
            for (old, new, tdp, shadow) in cr4_rows() {
                for (with_tdp, expected) in [(true, tdp[column]), (false, shadow[column])] {
                    let change = Change {
                        old: old.bits(),
                        new: new.bits(),
                        tdp: with_tdp,
                        ..Change::default()
                    };
                    assert_eq!(
                        actions(&policy, Register::Cr4, &change),
                        expected,
                        "{name} ({label}), tdp {with_tdp}: {old:?} -> {new:?}"
                    );
                }
            }
        }
    }
}

/// Columns of the CR0 table that share their rules.
const CR0_COLUMNS: [(&str, &[&str]); 5] = [
    ("V510 V515 V517", &["kvm-5.10", "kvm-5.15", "kvm-5.17", "kvm-5.17-keep-roots"]),
    ("P2 MRG", &["kvm-patch-v2", "kvm-patch-v2-18", "kvm-5.19"]),
    ("V64", &["kvm-6.4"]),
    ("V61s", &["kvm-6.1-lts"]),
    ("V612s HEAD", &["kvm-6.12-lts", "kvm-6.18", "kvm-7.3", "flush-all", "never"]),
];

#[test]
fn cr0_decision_table() {
    const GR: &str = "GUEST; mmu-reset";
    const I: &str = "mmu-init";
    let (pe, pg, wp) = (Cr0::PE, Cr0::PG, Cr0::WP);
    let on = pe | pg;
    // Old, new, with TDP, without.
    let rows: [(Cr0, Cr0, [&str; 5], [&str; 5]); 11] = [
        (pe, on, [R; 5], [R; 5]),
        (on, pe, [R, GR, GR, GR, GR], [R, GR, GR, GR, GR]),
        (on, on | wp, [R, R, I, I, I], [R; 5]),
        (on | wp, on, [R, R, I, I, I], [R; 5]),
        (pe, pe | wp, [R, R, N, I, N], [R, R, N, R, N]),
        (pe | wp, pe, [R, R, N, I, N], [R, R, N, R, N]),
        // WP with any other bit: the role rule.
        (on, on | wp | Cr0::TS, [R; 5], [R; 5]),
        (pe, on | wp, [R; 5], [R; 5]),
        (on | wp, pe, [R, GR, GR, GR, GR], [R, GR, GR, GR, GR]),
        (pe | wp, pe | Cr0::TS, [R; 5], [R; 5]),
        // Bits that never matter here; CD without non-coherent DMA.
        (
            on,
            pg | Cr0::NW | Cr0::CD | Cr0::TS | Cr0::MP | Cr0::EM | Cr0::NE | Cr0::AM | Cr0::ET,
            [N; 5],
            [N; 5],
        ),
    ];
    for (column, (label, names)) in CR0_COLUMNS.iter().enumerate() {
        for name in *names {
            let policy = builtin(name);
            for (old, new, tdp, shadow) in rows {
                for (with_tdp, expected) in [(true, tdp[column]), (false, shadow[column])] {
                    let change = Change {
                        old: old.bits(),
                        new: new.bits(),
                        tdp: with_tdp,
                        ..Change::default()
                    };
                    assert_eq!(
                        actions(&policy, Register::Cr0, &change),
                        expected,
                        "{name} ({label}), tdp {with_tdp}: {old:?} -> {new:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn cr0_cd_zaps_the_vm_up_to_6_4_with_noncoherent_dma() {
    for (column, expected) in ["zap-all", "zap-all", "zap-all", "zap-all", ""].iter().enumerate() {
        for name in CR0_COLUMNS[column].1 {
            for (old, new) in [(Cr0::CD, Cr0::empty()), (Cr0::empty(), Cr0::CD)] {
                let change = Change {
                    old: old.bits(),
                    new: new.bits(),
                    noncoherent_dma: true,
                    ..Change::default()
                };
                assert_eq!(actions(&builtin(name), Register::Cr0, &change), *expected, "{name}");
            }
        }
    }
}
