//! What must hold on every machine, under every policy, whatever the guest and the host do.
//!
//! `TLBSCOPE_RANDOM_EVENTS` sets how many events each property is tried on, `TLBSCOPE_RANDOM_SEED`
//! which ones. A failure is shrunk and printed as the parts of a scenario.

mod chance;

use chance::{Case, Pick, Run, cases, check, run};
use tlbscope_analyze::finding::{Class, Finding, Kind};
use tlbscope_trace::op::{Op, RegWrite};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind};

/// Kernels from 5.19 on force NX in the role of every shadow root, so that shadow pages are shared
/// across a change of EFER.NXE: a page with XD set stays readable where a walk with NXE = 0 finds
/// a reserved bit. No flush is at fault, and the ideal policies and `flush-all` have that role: in
/// lists that change EFER.NXE in shadow mode, translations called impossible are left out.
fn nx_forced(case: &Case, found: &Finding) -> bool {
    let nxe = |w: &RegWrite| (w.clear | w.set) & Efer::NXE.bits() != 0;
    found.rule == "impossible-translation"
        && case.machine.mmu == MmuKind::Shadow
        && case.events.iter().any(|e| matches!(&e.op, Op::Efer(w) if nxe(w)))
}

/// With WP = 0 a supervisor's write to a read-only user page makes its shadow entry a supervisor page
/// (facts 7.2, smap_andnot_wp). KVM holds that SMAP has refused such a write before; with EFLAGS.AC = 1
/// it has not, and accesses with AC = 0 then reach the page where SMAP forbids it. No flush is at fault.
fn supervisor_page(case: &Case, found: &Finding) -> bool {
    let smap = |w: &RegWrite| w.set & Cr4::SMAP.bits() != 0;
    let wp = |w: &RegWrite| (w.clear & !w.set) & Cr0::WP.bits() != 0;
    let lists = &case.events;
    found.rule == "impossible-translation"
        && case.machine.mmu == MmuKind::Shadow
        && lists.iter().any(|e| matches!(&e.op, Op::Cr4(w) if smap(w)))
        && lists.iter().any(|e| matches!(&e.op, Op::Cr0(w) if wp(w)))
        && lists.iter().any(|e| matches!(&e.op, Op::Access(a) if a.ac))
}

/// A flush of everything serves what a Hyper-V list asks for as well, but KVM empties the queue on its
/// flush of the guest's translations alone (kvm_hv_vcpu_purge_flush_tlb, from 6.2 on): after a full one
/// for the host the listed pages are flushed once more. Every policy has that order, the ideal too.
fn queued(case: &Case, found: &Finding) -> bool {
    found.kind == Kind::Excessive(Class::Redundant)
        && found.mechanism == "flush-gva"
        && case.events.iter().any(|e| matches!(&e.op, Op::HvFlush(_)))
}

/// Open: `arch-min` answers a host's change while a vCPU is in SMM for the root of SMM alone; RSM goes
/// back to the other one's mappings. The exposure is right, the policy is not.
fn smm_root(case: &Case, found: &Finding) -> bool {
    found.rule == "host-change"
        && case.policy == Pick::builtin("arch-min")
        && case.events.iter().any(|e| matches!(&e.op, Op::Smi))
}

/// What is known and left out.
fn known(case: &Case, found: &Finding) -> bool {
    // Software that reuses a frame without a flush is at fault itself.
    let software = found.rule == "release";
    software
        || nx_forced(case, found)
        || supervisor_page(case, found)
        || queued(case, found)
        || smm_root(case, found)
}

fn none_of(case: &Case, wrong: impl Fn(&Finding) -> bool) -> Result<(), String> {
    let findings = run(case).findings;
    match findings.kept().iter().find(|f| wrong(f) && !known(case, f)) {
        Some(found) => Err(format!("{found:?}")),
        None => Ok(()),
    }
}

#[test]
fn the_oracles_agree_on_every_access() {
    check(&cases(Pick::any()), |case| run(case).differ.map_or(Ok(()), Err));
}

#[test]
fn the_oracles_agree_on_l2() {
    check(&chance::nested::cases(Pick::any()), |case| run(case).differ.map_or(Ok(()), Err));
}

#[test]
fn linux_is_never_wrong_of_l2() {
    check(&chance::nested::cases(Pick::one_of(&["kvm-7.3", "flush-all"])), |case| {
        none_of(case, |found| matches!(found.kind, Kind::Missed { .. }))
    });
}

#[test]
fn hw_min_is_never_wrong() {
    check(&cases(Pick::one_of(&["hw-min"])), |case| {
        none_of(case, |found| {
            use Class::{Redundant, Unrequired};
            let excess = matches!(found.kind, Kind::Excessive(Unrequired | Redundant));
            excess || matches!(found.kind, Kind::Missed { .. } | Kind::Exposed)
        })
    });
}

#[test]
fn arch_min_is_never_wrong() {
    check(&cases(Pick::one_of(&["arch-min"])), |case| {
        none_of(case, |found| {
            matches!(found.kind, Kind::Missed { .. } | Kind::Exposed | Kind::Excessive(_))
        })
    });
}

#[test]
fn flush_all_misses_nothing() {
    check(&cases(Pick::one_of(&["flush-all"])), |case| {
        none_of(case, |found| matches!(found.kind, Kind::Missed { .. }))
    });
}

#[test]
fn never_is_caught() {
    let caught = std::cell::Cell::new(0u32);
    check(&cases(Pick::one_of(&["never"])), |case| {
        let Run { findings, naive, .. } = run(case);
        if naive > 0 && findings.missed() == 0 {
            return Err(format!("{naive} stale uses, none found"));
        }
        caught.set(caught.get() + u32::from(naive > 0));
        Ok(())
    });
    assert!(caught.get() > 10, "only {} lists used a stale copy", caught.get());
}

#[test]
fn the_same_list_comes_out_the_same() {
    check(&cases(Pick::any()), |case| {
        let (first, second) = (run(case), run(case));
        if first.digest != second.digest || first.findings != second.findings {
            return Err("two runs differ".to_owned());
        }
        Ok(())
    });
}
