//! The fast and the naive oracle agree on missed and harmful, on random hardware that keeps what
//! it likes and a hypervisor that flushes when it likes.

mod stage;

use proptest::prelude::*;
use stage::*;
use tlbscope_trace::act::*;
use tlbscope_trace::addr::*;
use tlbscope_trace::op::{AccessKind, Invpcid, InvpcidType};
use tlbscope_trace::regs::{Cr4, MmuKind, Vendor};

/// One step: what, and two choices.
type Step = (u8, u8, u8);

fn invpcid(which: u8, page: u64) -> ArchOp {
    let kind = match which & 3 {
        0 => InvpcidType::Addr,
        1 => InvpcidType::Single,
        2 => InvpcidType::All,
        _ => InvpcidType::AllNonglobal,
    };
    let pcid = 1 + u64::from(which >> 2 & 1);
    ArchOp::Invpcid(Invpcid { kind, pcid, gva: Gva(page << 12) })
}

/// Runs steps and returns how many accesses were missed.
fn run(vendor: Vendor, mmu: MmuKind, steps: &[Step]) -> u32 {
    let mut s = stage(vendor, mmu);
    let shadow = mmu == MmuKind::Shadow;
    if shadow {
        s.act(Act::SpNew { sp: Sp(4), gfn: 4, level: 1, role: 0 });
    }
    let root = shadow.then_some(Sp(4));
    let mut held: Vec<Held> = Vec::new();
    let mut spte = [(0u64, 0u64); 4];
    let mut unsync = false;
    let mut missed = 0;
    s.enter_root(root);
    for &(what, a, b) in steps {
        let page = u64::from(a & 3);
        match what % 12 {
            0 | 1 => {
                let bits = P | U | A | u64::from(b & 1) * W | u64::from(b & 2) * (D >> 1);
                let global = if b & 4 != 0 { G } else { 0 };
                if shadow && !unsync {
                    unsync = true;
                    s.act(Act::SpUnsync { sp: Sp(4) });
                }
                s.map(page, 0x50000 + u64::from(b >> 4) * 0x1000, bits | global);
            }
            2 | 3 if shadow => {
                let (gpa, bits) = &mut spte[page as usize];
                let entry = s.w.memory.get(&(0x4000 + page * 8)).copied().unwrap_or(0);
                if *bits == 0 || b & 1 == 0 && !unsync {
                    if entry & P == 0 {
                        continue;
                    }
                    (*gpa, *bits) = (entry & !0xfff, entry & 0xfff);
                    s.act(Act::SpteSet { sp: Sp(4), index: page as u16 });
                }
                let source = Source::Shadow { sp: Sp(4), index: page as u16 };
                let (gpa, bits) = spte[page as usize];
                let new = s.fill(page, gpa, bits, source);
                replace(&mut held, new);
            }
            2 | 3 => {
                let entry = s.w.memory.get(&(0x4000 + page * 8)).copied().unwrap_or(0);
                if entry & P != 0 {
                    let new = s.fill(page, entry & !0xfff, entry & 0xfff, Source::Guest);
                    replace(&mut held, new);
                }
            }
            4 => {
                s.cr3(0x1001 + u64::from(a & 1), b & 1 != 0);
            }
            5 => {
                s.op(ArchOp::Invlpg(Gva(page << 12)));
            }
            6 => {
                s.op(invpcid(b, page));
            }
            7 => {
                let bit = [Cr4::PGE, Cr4::SMEP, Cr4::PSE, Cr4::SMAP][usize::from(b & 3)];
                s.cr4(bit);
            }
            8 => {
                held.retain(|_| b & 1 == 0);
                if shadow && b & 2 != 0 {
                    unsync = false;
                    s.act(Act::SpSync { sp: Sp(4), changed: true });
                    for (index, (gpa, bits)) in spte.iter_mut().enumerate() {
                        let entry = s.w.memory.get(&(0x4000 + index as u64 * 8)).copied();
                        let entry = entry.unwrap_or(0);
                        if *bits != 0 && (*gpa | *bits) != entry {
                            s.act(Act::SpteClear { sp: Sp(4), index: index as u16 });
                            *bits = 0;
                        }
                    }
                }
                s.enter_root(root);
            }
            9 => {
                s.op(if b & 1 == 0 { ArchOp::PageFault(Gva(page << 12)) } else { ArchOp::Init });
            }
            _ => {
                let current = s.pcid();
                let usable = |h: &&Held| h.page == page && (h.global || h.tag.pcid.0 == current);
                let Some(copy) = held.iter().find(usable).copied() else { continue };
                let kind = if b & 1 == 0 { AccessKind::Read } else { AccessKind::Write };
                let refused = kind == AccessKind::Write && !copy.copy.write;
                let outcome = if refused { Outcome::Fault(3) } else { Outcome::Gpa(copy.copy.gpa) };
                s.access(&copy, kind, outcome);
                let fast = s.o.verdict();
                // Impossible translations are the fast oracle's alone.
                if s.o.findings().kept().iter().all(|f| f.rule != "impossible-translation") {
                    assert_eq!(fast, s.n.verdict(), "after {steps:?}");
                }
                missed += u32::from(fast.is_some());
            }
        }
    }
    missed
}

fn replace(held: &mut Vec<Held>, new: Held) {
    held.retain(|h| (h.page, h.tag.pcid, h.global) != (new.page, new.tag.pcid, new.global));
    held.push(new);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agree(steps in prop::collection::vec(any::<Step>(), 1..120)) {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
                run(vendor, mmu, &steps);
            }
        }
    }
}

#[test]
fn the_property_is_not_vacuous() {
    // Maps page 0 with G, fills it, maps it elsewhere, toggles PGE, reads through the old copy.
    let steps = [(0, 0, 7), (2, 0, 0), (0, 0, 0x17), (7, 0, 0), (10, 0, 0)];
    assert_eq!(run(Vendor::Intel, MmuKind::Tdp, &steps), 1);
}
