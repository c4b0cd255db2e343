//! Both oracles on the hard cases, driven by hand-written calls. Expected verdicts are worked out
//! from the manuals' tables: SDM vol. 3, 4.10.4 and 28.3.3; APM vol. 2, 5.5 and 15.16.

mod stage;

use stage::*;
use tlbscope_analyze::finding::{Class as Excess, Kind};
use tlbscope_trace::act::*;
use tlbscope_trace::addr::*;
use tlbscope_trace::op::{AccessKind, Invpcid, InvpcidType};
use tlbscope_trace::regs::{Cr4, MmuKind, Vendor};

const ALL: u64 = P | W | U | A | D;

/// (kind, rule, cause, uses) of every finding, sorted by cause.
fn found(s: &Stage) -> Vec<(Kind, &'static str, u64, u64)> {
    s.o.findings().sorted().iter().map(|f| (f.kind, f.rule, f.cause, f.count)).collect()
}

fn excessive(s: &Stage) -> Vec<(Excess, &'static str)> {
    let of = |kind| if let Kind::Excessive(class) = kind { Some(class) } else { None };
    s.o.findings().kept().iter().filter_map(|f| Some((of(f.kind)?, f.rule))).collect()
}

#[test]
fn a_pge_toggle_outlaws_globals_of_every_pcid() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let one = s.warm(7, 0x50000, ALL | G);
    s.cr3(0x1002, false);
    s.inv(Inv::Guest(GuestInv::PcidNonglobal(Pcid(2))));
    let two = s.warm(8, 0x51000, ALL | G);
    s.map(7, 0x60000, ALL | G);
    s.map(8, 0x61000, ALL | G);
    assert_eq!((s.read(&one), s.read(&two)), (None, None), "nothing is owed for a store");
    let toggle = s.cr4(Cr4::PGE);
    s.enter();
    assert_eq!((s.read(&one), s.read(&two)), (Some(true), Some(true)));
    assert_eq!(
        found(&s),
        [
            (Kind::Missed { harmful: true }, "cr4-pge", toggle, 2),
            (Kind::Exposed, "cr4-pge", toggle, 1),
        ]
    );
}

#[test]
fn a_served_pge_toggle_leaves_nothing() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    s.warm(7, 0x50000, ALL | G);
    s.map(7, 0x60000, ALL);
    s.cr4(Cr4::PGE);
    s.act(Act::Serve(Request::TlbFlushGuest));
    s.hook(Hook::Guest, HookBy::Request);
    s.inv(Inv::VpidSingle(Vpid(3)));
    s.enter();
    let new = s.fill(7, 0x60000, ALL, Source::Guest);
    assert_eq!(s.read(&new), None);
    s.o.finish(&s.w);
    assert_eq!(found(&s), []);
}

#[test]
fn smep_reaches_globals_of_its_own_pcid_and_is_advised_for_others() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let own = s.warm(7, 0x50000, ALL | G);
    s.cr3(0x1002, true);
    let other = s.warm(8, 0x51000, ALL | G);
    s.cr3(0x1001, true);
    s.map(8, 0x61000, ALL | G);
    let smep = s.cr4(Cr4::SMEP);
    assert_eq!(s.read(&own), Some(false), "missed, but memory says the same");
    assert_eq!(s.read(&other), None);
    assert_eq!(
        found(&s),
        [
            (Kind::Missed { harmful: false }, "cr4-smep-set", smep, 1),
            (Kind::Advised, "cr4-smep-other-globals", smep, 1),
        ]
    );
}

/// PCID 1 has the root sp1 over sp2, sp3 and the leaf sp4; PCID 2 has the root sp9.
fn shadowed() -> Stage {
    let mut s = intel(MmuKind::Shadow);
    s.map(7, 0x50000, ALL);
    for (sp, gfn, level) in [(1, 1, 4), (2, 2, 3), (3, 3, 2), (4, 4, 1), (9, 1, 4)] {
        s.act(Act::SpNew { sp: Sp(sp), gfn, level, role: 0 });
    }
    for sp in 1..4 {
        s.act(Act::SpLink { parent: Sp(sp), index: 0, child: Sp(sp + 1) });
    }
    s.act(Act::SpteSet { sp: Sp(4), index: 7 });
    s.enter_root(Some(Sp(1)));
    s
}

const LEAF: Source = Source::Shadow { sp: Sp(4), index: 7 };

/// Leaves PCID 1, flushes it with INVPCID 1 from PCID 2, and returns with NOFLUSH.
fn flush_and_return(s: &mut Stage) -> (u64, Held) {
    s.cr3(0x1002, true);
    s.enter_root(Some(Sp(9)));
    let invpcid = Invpcid { kind: InvpcidType::Single, pcid: 1, gva: Gva(0) };
    let flush = s.op(ArchOp::Invpcid(invpcid));
    s.inv(Inv::VpidSingle(Vpid(3)));
    s.enter_root(Some(Sp(9)));
    s.cr3(0x1001, true);
    s.enter_root(Some(Sp(1)));
    (flush, s.fill(7, 0x50000, ALL, LEAF))
}

#[test]
fn noflush_to_a_synced_root_is_clean() {
    let mut s = shadowed();
    let (_, held) = flush_and_return(&mut s);
    assert_eq!(s.read(&held), None);
    assert_eq!(found(&s), []);
}

#[test]
fn noflush_to_an_unsync_root_is_found() {
    let mut s = shadowed();
    s.act(Act::SpUnsync { sp: Sp(4) });
    s.map(7, 0x60000, ALL);
    let (flush, held) = flush_and_return(&mut s);
    assert_eq!(s.read(&held), Some(true));
    assert_eq!(
        found(&s),
        [
            (Kind::Missed { harmful: true }, "invpcid-single", flush, 1),
            (Kind::Exposed, "invpcid-single", flush, 1),
        ]
    );
}

#[test]
fn a_root_that_turns_unsync_after_the_flush_is_advised() {
    let mut s = shadowed();
    s.cr3(0x1002, true);
    s.enter_root(Some(Sp(9)));
    let all = Invpcid { kind: InvpcidType::All, pcid: 0, gva: Gva(0) };
    s.op(ArchOp::Invpcid(all));
    s.inv(Inv::VpidSingle(Vpid(3)));
    s.enter_root(Some(Sp(9)));
    s.act(Act::SpUnsync { sp: Sp(4) });
    s.map(7, 0x60000, ALL);
    let back = s.cr3(0x1001, true);
    s.enter_root(Some(Sp(1)));
    let held = s.fill(7, 0x50000, ALL, LEAF);
    assert_eq!(s.read(&held), None);
    assert_eq!(found(&s), [(Kind::Advised, "noflush-residence", back, 1)]);
}

#[test]
fn a_synced_page_is_live_whatever_was_owed() {
    let mut s = shadowed();
    s.act(Act::SpUnsync { sp: Sp(4) });
    s.cr4(Cr4::PGE);
    s.inv(Inv::VpidSingle(Vpid(3)));
    s.act(Act::SpSync { sp: Sp(4), changed: false });
    s.enter_root(Some(Sp(1)));
    let held = s.fill(7, 0x50000, ALL, LEAF);
    assert_eq!((s.read(&held), found(&s)), (None, vec![]));
}

#[test]
fn invvpid_over_an_unsync_root_discharges_nothing() {
    let mut s = shadowed();
    s.act(Act::SpUnsync { sp: Sp(4) });
    let toggle = s.cr4(Cr4::PGE);
    s.hook(Hook::Guest, HookBy::Request);
    s.inv(Inv::VpidSingle(Vpid(3)));
    s.enter_root(Some(Sp(1)));
    assert_eq!(found(&s), [(Kind::Exposed, "cr4-pge", toggle, 1)]);
}

#[test]
fn invlpg_reaches_its_pcid_and_globals_of_any() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let own = s.warm(7, 0x50000, ALL);
    s.cr3(0x1002, true);
    let other = s.fill(7, 0x50000, ALL, Source::Guest);
    let global = s.warm(7, 0x50000, ALL | G);
    s.cr3(0x1001, true);
    s.map(7, 0x60000, ALL);
    s.op(ArchOp::Invlpg(Gva(0x7abc)));
    assert_eq!(s.read(&own), Some(true));
    assert_eq!(s.read(&other), None);
    assert_eq!(s.read(&global), Some(true));
    let next = s.warm(8, 0x51000, ALL);
    s.op(ArchOp::Invlpg(Gva(0x7000)));
    assert_eq!(s.read(&next), None, "another page");
}

#[test]
fn invlpg_in_shadow_must_reach_the_frozen_entry() {
    let mut s = shadowed();
    s.act(Act::SpUnsync { sp: Sp(4) });
    let invlpg = s.op(ArchOp::Invlpg(Gva(0x7000)));
    s.hook(Hook::Gva(Gva(0x7000)), HookBy::Direct);
    s.inv(Inv::VpidAddress { vpid: Vpid(3), gva: Gva(0x7000) });
    s.enter_root(Some(Sp(1)));
    assert_eq!(found(&s), [(Kind::Exposed, "invlpg", invlpg, 1)]);

    let mut s = shadowed();
    s.act(Act::SpUnsync { sp: Sp(4) });
    s.op(ArchOp::Invlpg(Gva(0x7000)));
    s.act(Act::SpteClear { sp: Sp(4), index: 7 });
    s.hook(Hook::Gva(Gva(0x7000)), HookBy::Direct);
    s.inv(Inv::VpidAddress { vpid: Vpid(3), gva: Gva(0x7000) });
    s.enter_root(Some(Sp(1)));
    assert_eq!(found(&s), []);
}

/// A host change of the frame of page 7, served by `inv`; then the refill through whatever
/// guest-physical copy survived.
fn host_change(inv: Inv, survives: bool) -> (Stage, u64, Option<bool>) {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    s.map(7, 0x50000, ALL);
    let at = s.at(0);
    let tag = Tag { class: Class::GuestPhysical, id: 0, ..s.tag(0) };
    let copy = Copied { gpa: Gpa(0x50000), hpa: Hpa(0x50000), ..Copied::default() };
    let physical = Fill {
        tag,
        kind: FillKind::Translation,
        address: 0x50000,
        size: PageSize::Size4K,
        global: false,
        source: Source::Host,
        copy,
    };
    use tlbscope_trace::observe::Observer;
    let mark = s.o.fill(&at, &physical, &s.w);
    s.n.fill(&at, &physical, &s.w);
    s.fill(7, 0x50000, ALL, Source::Guest);
    let change = s.host(ArchOp::HostChange { gpa: Gpa(0x50000), size: 0x1000, rights: false });
    s.act(Act::Exit(None));
    s.hook(Hook::All, HookBy::Request);
    s.inv(inv);
    s.w.backing.insert(0x50000, 0xaa000);
    s.host(ArchOp::HostDead { gpa: Gpa(0x50000), size: 0x1000 });
    s.enter();
    let at = s.at(0);
    s.o.walk_begin(&at);
    s.n.walk_begin(&at);
    if survives {
        s.o.walk_uses(&at, mark, Instead::GuestPhysical, &tag);
        s.n.walk_uses(&at, mark, Instead::GuestPhysical, &tag);
    } else {
        s.o.fill(&at, &physical, &s.w);
        s.n.fill(&at, &physical, &s.w);
    }
    let mut held = s.fill(7, 0x50000, ALL, Source::Guest);
    if !survives {
        held.copy.hpa = Hpa(0xaa000);
    }
    let event = s.event();
    let _ = event;
    let verdict = s.access(&held, AccessKind::Read, Outcome::Gpa(Gpa(0x50000)));
    (s, change, verdict)
}

#[test]
fn invvpid_leaves_guest_physical_mappings() {
    let (s, change, verdict) = host_change(Inv::VpidSingle(Vpid(3)), true);
    assert_eq!(verdict, Some(true), "the old frame is reached");
    assert_eq!(s.n.verdict(), Some(true));
    assert_eq!(
        found(&s),
        [
            (Kind::Missed { harmful: true }, "host-change", change, 1),
            (Kind::Exposed, "host-change", change, 1),
        ]
    );
}

#[test]
fn invept_serves_a_host_change() {
    let (s, _, verdict) = host_change(Inv::EptSingle(Ep4ta(0x9_0000)), false);
    assert_eq!((verdict, found(&s)), (None, vec![]));
}

#[test]
fn a_permission_upgrade_may_fault_once() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let held = s.warm(7, 0x50000, P | U | A);
    s.map(7, 0x50000, ALL);
    assert_eq!(s.access(&held, AccessKind::Write, Outcome::Fault(3)), None);
    assert_eq!(s.o.findings().spurious_faults, 1);
    assert_eq!(found(&s), []);
}

#[test]
fn a_dirty_bit_lost_through_an_outlawed_copy_is_harmful() {
    for (owed, expected) in [(false, None), (true, Some(true))] {
        let mut s = intel(MmuKind::Tdp);
        s.enter();
        let held = s.warm(7, 0x50000, ALL);
        s.map(7, 0x50000, ALL & !D);
        if owed {
            s.op(ArchOp::Invlpg(Gva(0x7000)));
        }
        let verdict = s.access(&held, AccessKind::Write, Outcome::Gpa(Gpa(0x50000)));
        assert_eq!((verdict, s.n.verdict()), (expected, expected));
        if owed {
            assert_eq!(s.read(&held), Some(false), "a read sets no dirty bit");
        }
    }
}

#[test]
fn the_explicit_request_is_credited_and_the_reset_is_not_required() {
    let explicit = |s: &mut Stage| {
        s.act(Act::Serve(Request::TlbFlushGuest));
        s.hook(Hook::Guest, HookBy::Request);
        s.inv(Inv::VpidSingle(Vpid(3)));
    };
    let load = |s: &mut Stage| {
        s.act(Act::Load);
        s.hook(Hook::Current, HookBy::Load);
        s.inv(Inv::VpidSingle(Vpid(3)));
    };
    for load_first in [false, true] {
        let mut s = shadowed();
        s.cr4(Cr4::PGE);
        s.act(Act::Reset { role_changed: Some(false) });
        if load_first {
            load(&mut s);
            explicit(&mut s);
        } else {
            explicit(&mut s);
            load(&mut s);
        }
        s.enter_root(Some(Sp(1)));
        assert_eq!(excessive(&s), [(Excess::Unrequired, "mmu-reset")]);
        assert_eq!(s.o.findings().excessive(), 1);
    }
}

#[test]
fn a_reset_that_drops_outlawed_roots_is_required() {
    let mut s = shadowed();
    s.act(Act::SpUnsync { sp: Sp(4) });
    s.cr4(Cr4::PGE);
    s.act(Act::Reset { role_changed: Some(false) });
    assert_eq!(excessive(&s), []);
}

#[test]
fn flushes_are_unrequired_redundant_or_over_broad() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    s.event();
    s.hook(Hook::Current, HookBy::Request);
    s.enter();
    assert_eq!(excessive(&s), [(Excess::Unrequired, "flush-current")]);
    s.cr4(Cr4::SMEP);
    s.hook(Hook::Guest, HookBy::Request);
    s.inv(Inv::VpidSingle(Vpid(3)));
    let (at, own, other) = (s.at(0), s.tag(1), s.tag(2));
    use tlbscope_trace::observe::Observer;
    s.o.dropped(&at, &own, false, 5);
    assert_eq!(s.o.findings().excessive(), 1, "PCID 1 is in the scope of SMEP");
    s.o.dropped(&at, &other, false, 5);
    s.hook(Hook::Current, HookBy::Request);
    assert_eq!(
        excessive(&s)[1..],
        [(Excess::OverBroad, "flush-guest"), (Excess::Redundant, "flush-current")]
    );
    s.act(Act::Hook { hook: Hook::All, by: HookBy::Request, effective: false });
    assert_eq!(s.o.findings().excessive(), 3, "a hook without effect wastes nothing");
}

#[test]
fn a_failed_vmrun_flushes_nothing() {
    let mut s = stage(Vendor::Amd, MmuKind::Tdp);
    s.enter();
    let held = s.warm(7, 0x50000, ALL);
    s.cr4(Cr4::PGE);
    s.hook(Hook::Guest, HookBy::Request);
    s.act(Act::EntryAborted { failed: true });
    s.hook(Hook::Guest, HookBy::Request);
    assert_eq!(excessive(&s), [], "the first one was lost");
    s.inv(Inv::TlbControlAsid(Asid(3)));
    s.enter();
    assert_eq!(found(&s), []);
    assert_eq!(s.read(&held), Some(false), "had it survived");
}

#[test]
fn init_is_binding_on_intel_and_advised_on_amd() {
    for (vendor, verdict, kind) in [
        (Vendor::Intel, Some(false), Kind::Missed { harmful: false }),
        (Vendor::Amd, None, Kind::Advised),
    ] {
        let mut s = stage(vendor, MmuKind::Tdp);
        s.enter();
        let held = s.warm(7, 0x50000, ALL | G);
        let init = s.op(ArchOp::Init);
        assert_eq!(s.read(&held), verdict);
        assert_eq!(found(&s)[0].0, kind);
        assert_eq!(found(&s)[0].2, init);
    }
}

#[test]
fn a_vpid_with_a_new_owner_holds_nothing_of_the_old() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let held = s.warm(7, 0x50000, ALL);
    let context = Context { tag: s.tag(1), root: Hpa(0x9_0000), shadow_root: None };
    use tlbscope_trace::observe::Observer;
    let at = At { actor: tlbscope_trace::op::Actor::Vcpu(VcpuId(1)), ..s.at(0) };
    s.o.act(&at, &Act::Entry(context), &s.w);
    let Held { tag, global, copy, mark, .. } = held;
    let accessed = Accessed {
        access: tlbscope_trace::op::Access {
            gva: Gva(0x7000),
            kind: AccessKind::Read,
            user: false,
            ac: false,
        },
        via: Via::Copy { mark, tag, global, copy, fresh: false },
        outcome: Outcome::Gpa(Gpa(0x50000)),
        hpa: Hpa(0x50000),
    };
    s.o.access(&at, &accessed, &s.w);
    assert_eq!(s.o.verdict(), Some(false));
}

#[test]
fn a_shadow_translation_that_no_walk_gives_is_missed() {
    let mut s = shadowed();
    let wrong = s.fill(7, 0x77000, ALL, LEAF);
    let verdict = s.access(&wrong, AccessKind::Read, Outcome::Gpa(Gpa(0x77000)));
    assert_eq!(verdict, Some(true));
    assert_eq!(s.o.findings().kept()[0].rule, "impossible-translation");
}

#[test]
fn what_was_never_used_is_latent() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    s.warm(7, 0x50000, ALL);
    let toggle = s.cr4(Cr4::PGE);
    s.o.finish(&s.w);
    assert_eq!(found(&s), [(Kind::Latent, "cr4-pge", toggle, 1)]);
}

#[test]
fn the_earliest_unserved_obligation_is_the_cause() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let held = s.warm(7, 0x50000, ALL);
    let first = s.cr3(0x1001, false);
    s.cr4(Cr4::PGE);
    assert_eq!(s.read(&held), Some(false));
    assert_eq!(found(&s), [(Kind::Missed { harmful: false }, "cr3-pcid", first, 1)]);
}

#[test]
fn root_frees_are_judged_by_their_reason() {
    let free =
        |why| Act::FreeRoot { slot: RootSlot::Prev(0), root: Hpa(0x9000), sp: Some(Sp(1)), why };
    let mut s = shadowed();
    s.event();
    s.act(free(FreeWhy::InvalidatePcid));
    assert_eq!(excessive(&s), [], "with PCIDE = 1 the PCID's root must go");
    s.cr4(Cr4::PCIDE);
    s.act(free(FreeWhy::InvalidatePcid));
    assert_eq!(excessive(&s), [(Excess::Unrequired, "root-free")]);

    let mut s = shadowed();
    s.event();
    s.act(Act::SpUnsync { sp: Sp(4) });
    s.act(free(FreeWhy::SyncPrev));
    assert_eq!(excessive(&s), [], "an unsync root");
    s.act(Act::SpSync { sp: Sp(4), changed: false });
    s.act(free(FreeWhy::SyncPrev));
    assert_eq!(excessive(&s), [(Excess::Unrequired, "root-free")]);
}

#[test]
fn unloads_are_judged_by_what_asked_for_them() {
    let mut s = shadowed();
    s.cr4(Cr4::PGE);
    s.act(Act::Serve(Request::TlbFlushGuest));
    s.act(Act::Unload);
    assert_eq!(excessive(&s), [(Excess::Unrequired, "mmu-unload")], "a sync would have served");
    for (mmu, expected) in
        [(MmuKind::Shadow, vec![]), (MmuKind::Tdp, vec![(Excess::Unrequired, "mmu-unload")])]
    {
        let mut s = intel(mmu);
        s.w.regs[0].cr4 &= !Cr4::PCIDE.bits();
        s.w.regs[0].cr3 = 0x1000;
        s.cr4(Cr4::PCIDE);
        s.act(Act::Unload);
        assert_eq!(excessive(&s), expected);
    }
}

#[test]
fn findings_beyond_the_limit_are_counted_but_not_kept() {
    let mut s = intel(MmuKind::Tdp);
    s.o = tlbscope_analyze::oracle::Oracle::with_max_findings(2, 3);
    for _ in 0..5 {
        s.event();
        s.hook(Hook::Current, HookBy::Request);
    }
    assert_eq!((s.o.findings().kept().len(), s.o.findings().excessive()), (3, 5));
}

#[test]
fn only_the_flush_of_all_serves_what_the_hypervisor_withdrew() {
    let mut s = shadowed();
    s.event();
    s.act(Act::SpteClear { sp: Sp(4), index: 7 });
    s.hook(Hook::Current, HookBy::Request);
    assert_eq!(excessive(&s), [(Excess::Unrequired, "flush-current")]);
    s.act(Act::SpZap { sp: Sp(4) });
    s.hook(Hook::All, HookBy::Request);
    assert_eq!(s.o.findings().excessive(), 1);
    assert_eq!(s.o.findings().bookkeeping, 1);
}

#[test]
fn a_global_is_not_blamed_on_a_flush_that_spares_globals() {
    let mut s = intel(MmuKind::Tdp);
    s.enter();
    let held = s.warm(7, 0x50000, ALL | G);
    let kind = InvpcidType::AllNonglobal;
    s.op(ArchOp::Invpcid(Invpcid { kind, pcid: 0, gva: Gva(0) }));
    assert_eq!(s.read(&held), None);
    let toggle = s.cr4(Cr4::PGE);
    assert_eq!(s.read(&held), Some(false));
    assert_eq!(found(&s), [(Kind::Missed { harmful: false }, "cr4-pge", toggle, 1)]);
}

/// A walk of page 8 that starts below the PDE of the region, read before `between`; the verdict on
/// it by both oracles.
fn structure_use(mmu: MmuKind, between: impl FnOnce(&mut Stage)) -> Option<bool> {
    use tlbscope_trace::observe::Observer;
    let mut s = intel(mmu);
    let root = (mmu == MmuKind::Shadow).then_some(Sp(0));
    let (sps, tables) = ([Sp(2), Sp(1), Sp(0)], [0x4000, 0x3000, 0x2000]);
    if mmu == MmuKind::Shadow {
        for (n, sp) in [Sp(0), Sp(1), Sp(2)].into_iter().enumerate() {
            let (gfn, level) = (2 + n as u64, 3 - n as u8);
            s.act(Act::SpNew { sp, gfn, level, role: u32::from(level) });
        }
        s.act(Act::SpLink { parent: Sp(0), index: 0, child: Sp(1) });
        s.act(Act::SpLink { parent: Sp(1), index: 0, child: Sp(2) });
    }
    s.enter_root(root);
    let tag = s.tag(s.pcid());
    let source = match mmu {
        MmuKind::Shadow => Source::Shadow { sp: Sp(1), index: 0 },
        MmuKind::Tdp => Source::Guest,
    };
    let pde = Fill {
        tag,
        kind: FillKind::Structure(2),
        address: 0,
        size: PageSize::Size2M,
        global: false,
        source,
        copy: Copied { gpa: Gpa(0x4000), hpa: Hpa(0x4000), ..Copied::default() },
    };
    let at = s.at(0);
    let mark = s.o.fill(&at, &pde, &s.w);
    s.n.fill(&at, &pde, &s.w);
    s.map(8, 0x6000, P | W | A);
    between(&mut s);
    s.enter_root(root);
    s.event();
    let at = s.at(0);
    let mut path = [0; 5];
    for n in 0..3 {
        path[n] = match mmu {
            MmuKind::Shadow => path_entry(u64::from(sps[n].0)),
            MmuKind::Tdp => path_entry(tables[n]),
        };
    }
    let instead = Instead::Structure { gva: Gva(0x8000), shift: 21, path };
    s.o.walk_begin(&at);
    s.n.walk_begin(&at);
    s.o.walk_uses(&at, mark, instead, &tag);
    s.n.walk_uses(&at, mark, instead, &tag);
    let held = s.fill(8, 0x6000, P | W | A, Source::Guest);
    // The access belongs to the event of its walk.
    s.event -= 1;
    let verdict = s.access(&held, AccessKind::Read, Outcome::Gpa(Gpa(0x6000)));
    if !s.o.findings().kept().iter().any(|f| f.rule == "release") {
        assert_eq!(verdict, s.n.verdict(), "the oracles agree");
    }
    verdict
}

fn invlpg_elsewhere(s: &mut Stage) {
    s.act(Act::Exit(None));
    s.op(ArchOp::Invlpg(Gva(0x40_0000)));
}

#[test]
fn a_structure_entry_is_tested_when_a_walk_uses_it() {
    assert_eq!(structure_use(MmuKind::Tdp, |_| {}), None);
    assert_eq!(structure_use(MmuKind::Tdp, invlpg_elsewhere), Some(false));
}

#[test]
fn a_copy_of_shadow_links_lives_as_long_as_they_do() {
    assert_eq!(structure_use(MmuKind::Shadow, invlpg_elsewhere), None);
    let cut = |s: &mut Stage| {
        s.act(Act::Exit(None));
        s.act(Act::SpUnlink { parent: Sp(0), index: 0, child: Sp(1) });
        s.act(Act::SpLink { parent: Sp(0), index: 0, child: Sp(1) });
        s.op(ArchOp::Invlpg(Gva(0x40_0000)));
    };
    assert_eq!(structure_use(MmuKind::Shadow, cut), Some(false));
}

#[test]
fn a_walk_through_a_released_table_is_missed() {
    let release = |gpa| {
        move |s: &mut Stage| {
            s.host(ArchOp::Release { gpa: Gpa(gpa), size: 0x1000 });
        }
    };
    assert_eq!(structure_use(MmuKind::Tdp, release(0x4000)), Some(false));
    assert_eq!(structure_use(MmuKind::Tdp, release(0x3000)), Some(false), "a table above it");
    assert_eq!(structure_use(MmuKind::Tdp, release(0x5000)), None);
}

/// What a walk was found to give is asked again as soon as the tables are stored to or the registers
/// change: each makes a copy impossible that was possible a moment ago.
#[test]
fn what_is_known_of_a_shadow_entry_is_asked_again_after_a_change() {
    let impossible = |change: &dyn Fn(&mut Stage)| {
        let mut s = shadowed();
        for _ in 0..2 {
            let held = s.fill(7, 0x50000, ALL, LEAF);
            assert_eq!(s.access(&held, AccessKind::Read, Outcome::Gpa(held.copy.gpa)), None);
        }
        change(&mut s);
        let held = s.fill(7, 0x50000, ALL, LEAF);
        s.access(&held, AccessKind::Read, Outcome::Gpa(held.copy.gpa)).is_some()
    };
    assert!(!impossible(&|_| {}), "nothing has changed");
    // Another page stands in the guest's entry, which the hypervisor lets stand as it was.
    assert!(impossible(&|s| s.map(7, 0x60000, ALL)), "a store");
    // The copy of another table than the one behind CR3.
    assert!(impossible(&|s| s.w.regs[0].cr3 = 0x8001), "the registers");
}
