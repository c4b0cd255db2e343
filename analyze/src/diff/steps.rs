//! What a policy does at one operation of the guest, step by step, from the write to the next entry.

use serde::Serialize;
use tlbscope_sim::arch::required::{self, Strength};
use tlbscope_sim::policy::Policy;
use tlbscope_sim::policy::rule::{Change, Register};
use tlbscope_trace::act::{Act, ArchOp, At};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{InvpcidType, Op};
use tlbscope_trace::regs::{CR3_NOFLUSH, Cr4, MmuKind, Regs, Vendor};

use super::micro::{self, Script};
use super::{State, Verdict};
use crate::explain::words;

/// A rule of the policy that answers the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// Its name.
    pub id: String,
    /// What it is for.
    pub about: String,
    /// Where in the kernel.
    pub source: String,
}

/// What happens on one kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Whose processor.
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    pub mmu: MmuKind,
    /// The states in which it happens so.
    pub states: Vec<State>,
    /// Rules of the manual that bind, and those that advise.
    pub owed: Vec<(&'static str, Strength)>,
    /// Rules of the policy that match, in order.
    pub rules: Vec<Matched>,
    /// Each step in words.
    pub steps: Vec<String>,
    /// Why the processor or KVM refuses the operation.
    pub fault: Option<&'static str>,
    /// What came of it.
    pub verdict: Verdict,
}

/// Collects what is done in the event of the write.
struct Watch {
    write: u64,
    exits: bool,
    owed: Vec<(&'static str, Strength)>,
    steps: Vec<String>,
}

impl Observer for Watch {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        if at.event != self.write {
            return;
        }
        let tlbscope_trace::op::Actor::Vcpu(vcpu) = at.actor else { return };
        let after = world.regs(vcpu);
        for owed in required::of_guest(world.vendor(), op, before, after, native) {
            if micro::by_guest(&owed) {
                self.owed.push((owed.rule.id, owed.strength));
            }
        }
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, _: &W) {
        if at.event != self.write {
            return;
        }
        match act {
            Act::Exit(_) => {
                self.exits = true;
                self.steps.push("the write exits to KVM".to_owned());
            }
            Act::Entry(_) => self.steps.push("the vCPU enters the guest".to_owned()),
            Act::EntryAborted { failed: false } => {
                self.steps.push("requests are pending: the entry is tried again".to_owned());
            }
            _ => self.steps.extend(words::act(act)),
        }
    }
}

/// What `policy` does at `op` on every machine and in every state in which it can happen.
#[must_use]
pub fn steps(policy: &Policy, op: &Op) -> Vec<Steps> {
    let mut out: Vec<Steps> = Vec::new();
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
            for state in State::ALL {
                let Some(new) = one(policy, op, vendor, mmu, state) else { continue };
                let same = |old: &&mut Steps| {
                    let states = old.states.clone();
                    **old == Steps { states, ..new.clone() }
                };
                match out.iter_mut().find(same) {
                    Some(old) => old.states.push(state),
                    None => out.push(new),
                }
            }
        }
    }
    out
}

fn one(policy: &Policy, op: &Op, vendor: Vendor, mmu: MmuKind, state: State) -> Option<Steps> {
    let config = micro::config(vendor, mmu, state);
    let script = Script::of(state, op)?;
    let mut watch =
        Watch { write: script.write(), exits: false, owed: Vec::new(), steps: Vec::new() };
    let (before, after, fault) = script.watch(&config, policy, &mut watch)?;
    if !watch.exits {
        watch.steps.insert(0, "no exit: the processor carries it out".to_owned());
    }
    let rules = if watch.exits && fault.is_none() {
        matched(policy, op, vendor, mmu, &before, &after)
    } else {
        Vec::new()
    };
    let verdict = script.run(&config, policy)?.verdict;
    let (owed, steps) = (watch.owed, watch.steps);
    Some(Steps { vendor, mmu, states: vec![state], owed, rules, steps, fault, verdict })
}

/// The rules that answer an operation.
fn matched(
    policy: &Policy,
    op: &Op,
    vendor: Vendor,
    mmu: MmuKind,
    before: &Regs,
    after: &Regs,
) -> Vec<Matched> {
    let pcide = after.cr4().contains(Cr4::PCIDE);
    let pae = after.paging()
        && after.cr4().contains(Cr4::PAE)
        && !after.efer().contains(tlbscope_trace::regs::Efer::LMA);
    let tdp = mmu == MmuKind::Tdp;
    let change = Change { tdp, vendor, pcide, pae, ..Change::default() };
    let of = |old, new| Change { old, new, same: old == new, ..change };
    let op = if let Op::Emul(inner) = op { inner } else { op };
    let (register, change) = match op {
        Op::Cr0(_) | Op::Clts | Op::Lmsw(_) => (Register::Cr0, of(before.cr0, after.cr0)),
        Op::Cr4(_) => (Register::Cr4, of(before.cr4, after.cr4)),
        Op::Efer(_) => (Register::Efer, of(before.efer, after.efer)),
        Op::Cr3(value) => {
            let noflush = pcide && value & CR3_NOFLUSH != 0;
            (Register::Cr3, Change { noflush, ..of(before.cr3, after.cr3) })
        }
        Op::Init | Op::Reset => {
            let init = matches!(op, Op::Init);
            (Register::Init, Change { init, ..of(before.cr0, after.cr0) })
        }
        Op::Invlpg(_) => (Register::Invlpg, change),
        Op::Invpcid(operands) => {
            let kind = match operands.kind {
                InvpcidType::Addr => 0,
                InvpcidType::Single => 1,
                InvpcidType::All => 2,
                InvpcidType::AllNonglobal => 3,
                InvpcidType::Reserved(_) => return Vec::new(),
            };
            (Register::Invpcid, Change { invpcid: Some(kind), ..change })
        }
        _ => return Vec::new(),
    };
    let rules = policy.matching(register, &change);
    rules
        .map(|rule| Matched {
            id: rule.id.clone(),
            about: rule.about.clone(),
            source: rule.source.clone(),
        })
        .collect()
}
