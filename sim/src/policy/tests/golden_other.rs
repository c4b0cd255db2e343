//! CR3, EFER, INIT, INVLPG, INVPCID, SMM and CPUID, typed from the sources.

use tlbscope_trace::regs::{Cr0, Efer, Vendor};

use super::super::mechanics::{
    GuestFlushShadow, InvalidatePcid, LoadPdptrs, RoleVersion, SyncWhen, WithoutPcide,
};
use super::super::rule::{Change, Register};
use super::{actions, builtin};

/// Every built-in that is a kernel's, from 5.15 on.
const SINCE_515: [&str; 11] = [
    "kvm-5.15",
    "kvm-5.17",
    "kvm-patch-v2",
    "kvm-5.17-keep-roots",
    "kvm-patch-v2-18",
    "kvm-5.19",
    "kvm-6.1-lts",
    "kvm-6.4",
    "kvm-6.12-lts",
    "kvm-6.18",
    "kvm-7.3",
];

#[test]
fn cr3() {
    // same, noflush, pae; 5.10; 5.15 and later.
    let rows = [
        (true, false, false, "sync-now; CURRENT", "invalidate-pcid"),
        (true, true, false, "", ""),
        (false, false, false, "load-pdptrs; new-pgd", "new-pgd; invalidate-pcid"),
        (false, true, false, "load-pdptrs; new-pgd", "new-pgd"),
        (true, false, true, "load-pdptrs; new-pgd", "load-pdptrs; invalidate-pcid"),
        (false, false, true, "load-pdptrs; new-pgd", "load-pdptrs; new-pgd; invalidate-pcid"),
    ];
    for (same, noflush, pae, old, new) in rows {
        let change = Change { same, noflush, pae, ..Change::default() };
        assert_eq!(actions(&builtin("kvm-5.10"), Register::Cr3, &change), old, "{change:?}");
        for name in SINCE_515 {
            assert_eq!(actions(&builtin(name), Register::Cr3, &change), new, "{name} {change:?}");
        }
    }
}

#[test]
fn cr3_mechanics() {
    let m = |name: &str| builtin(name).mechanics;
    assert!(m("kvm-5.10").new_pgd_hit_flush);
    assert_eq!(m("kvm-5.10").guest_flush_shadow, GuestFlushShadow::HwOnly);
    assert_eq!(m("kvm-5.10").invalidate_pcid_sync, SyncWhen::Now);
    assert_eq!(m("kvm-5.10").load_pdptrs, LoadPdptrs { free_root: false, request_pgd: false });
    assert_eq!(m("kvm-5.10").role, RoleVersion::V510);
    assert_eq!(m("kvm-5.15").guest_flush_shadow, GuestFlushShadow::Unload);
    assert_eq!(m("kvm-5.15").invalidate_pcid_without_pcide, WithoutPcide::Cached);
    assert_eq!(m("kvm-5.15").load_pdptrs, LoadPdptrs { free_root: false, request_pgd: true });
    for name in &SINCE_515[1..] {
        let m = m(name);
        assert!(!m.new_pgd_hit_flush, "{name}");
        assert_eq!(m.guest_flush_shadow, GuestFlushShadow::Sync, "{name}");
        assert_eq!(m.invalidate_pcid, InvalidatePcid::CurrentAndCached, "{name}");
        assert_eq!(m.invalidate_pcid_without_pcide, WithoutPcide::Current, "{name}");
        assert_eq!(m.load_pdptrs, LoadPdptrs { free_root: true, request_pgd: true }, "{name}");
    }
    let levels: Vec<u8> = SINCE_515.iter().map(|name| m(name).prev_root_min_level).collect();
    assert_eq!(levels, [4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0]);
    let hook: Vec<bool> = SINCE_515.iter().map(|name| m(name).svm_pge_hook).collect();
    let old = true;
    assert_eq!(hook, [old, old, old, old, old, old, old, old, old, false, false]);
}

#[test]
fn efer() {
    let change =
        |old: Efer, new: Efer| Change { old: old.bits(), new: new.bits(), ..Change::default() };
    let none = Efer::empty();
    for name in SINCE_515.iter().copied().chain(["kvm-5.10"]) {
        let policy = builtin(name);
        let get = |old, new| actions(&policy, Register::Efer, &change(old, new));
        assert_eq!(get(none, Efer::NXE), "mmu-reset", "{name}");
        assert_eq!(get(Efer::NXE, none), "mmu-reset", "{name}");
        assert_eq!(get(none, Efer::SCE | Efer::SVME | Efer::LMA), "", "{name}");
        // A role bit in 5.15.85 (a backport) and from 5.18 on.
        let lme = match name {
            "kvm-5.10"
            | "kvm-5.17"
            | "kvm-5.17-keep-roots"
            | "kvm-patch-v2"
            | "kvm-patch-v2-18" => "",
            _ => "mmu-reset",
        };
        assert_eq!(get(none, Efer::LME), lme, "{name}");
    }
}

#[test]
fn init_and_reset() {
    let change = |paging: bool, init, vendor| Change {
        old: if paging { Cr0::PG.bits() } else { 0 },
        init,
        vendor,
        ..Change::default()
    };
    for name in SINCE_515.iter().copied().chain(["kvm-5.10"]) {
        let policy = builtin(name);
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let get =
                |paging, init| actions(&policy, Register::Init, &change(paging, init, vendor));
            let expected = match (name, vendor) {
                // Without TDP: VMX enters real mode, SVM rewrites the VMCB (facts 1.5, 3.2).
                ("kvm-5.10", _) => ["mmu-reset"; 3],
                ("kvm-5.15" | "kvm-5.17" | "kvm-5.17-keep-roots", _) => {
                    ["mmu-reset; GUEST", "GUEST", ""]
                }
                _ => ["GUEST; mmu-reset; GUEST", "GUEST", ""],
            };
            let found = [get(true, true), get(false, true), get(false, false)];
            assert_eq!(found, expected, "{name} {vendor:?}");
        }
    }
}

#[test]
fn explicit_invalidations() {
    let invpcid = |t| Change { invpcid: Some(t), ..Change::default() };
    for name in SINCE_515.iter().copied().chain(["kvm-5.10"]) {
        let policy = builtin(name);
        let all = if name == "kvm-5.10" { "mmu-reload" } else { "GUEST" };
        let expected = ["", "invalidate-pcid", all, all, ""];
        for (t, expected) in expected.iter().enumerate() {
            let change = invpcid(u8::try_from(t).unwrap());
            assert_eq!(actions(&policy, Register::Invpcid, &change), *expected, "{name} {t}");
        }
        let change = Change::default();
        assert_eq!(actions(&policy, Register::Invlpg, &change), "", "{name}");
        assert_eq!(actions(&policy, Register::Smm, &change), "mmu-reset", "{name}");
        let cpuid = match name {
            "kvm-5.17-keep-roots" | "kvm-patch-v2-18" => "mmu-unload; mmu-reset",
            _ => "mmu-reset",
        };
        assert_eq!(actions(&policy, Register::Cpuid, &change), cpuid, "{name}");
    }
}

#[test]
fn the_patch_changes_rules_and_no_mechanics() {
    let (before, after) = (builtin("kvm-5.17"), builtin("kvm-patch-v2"));
    assert_eq!(before.mechanics, after.mechanics);
    let changed: Vec<Register> =
        Register::ALL.into_iter().filter(|r| before.rules(*r) != after.rules(*r)).collect();
    assert_eq!(changed, [Register::Cr0, Register::Cr4, Register::Init]);
}
