//! The state that a list starts from, written as operations: registers, and of the page tables what
//! the list's accesses walk.

use std::collections::BTreeSet;
use std::ops::Range;

use tlbscope_sim::arch::mode::Mode;
use tlbscope_sim::engine::Machine;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::paging::walk::{Walk, walk_unchecked};
use tlbscope_trace::addr::{Gpa, Gva, PageSize, Time, VcpuId};
use tlbscope_trace::observe::{Nobody, World};
use tlbscope_trace::op::{Access, AccessKind, Actor, Event, Op, Perms, Sregs};
use tlbscope_trace::regs::{Cr4, MmuKind, Regs, Vendor};

use super::judge::{Case, Item};
use super::part::{Part, Told};
use crate::replay::{Setup, mode};

/// A state of more operations is none that a person reads.
const MAX: usize = 8192;

/// How page tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As mappings; their tables may lie elsewhere.
    Maps,
    /// As the entries themselves, where they lay.
    Stores,
}

/// What the trace begins with, up to `end`.
pub(super) fn from_the_beginning(part: &Part, setup: &Setup, end: usize) -> Option<Case> {
    let machine = setup.machine.clone();
    let mut items = Vec::new();
    for (v, regs) in (0..machine.vcpus).zip(&setup.regs) {
        let Some(regs) = regs else { continue };
        items.extend(registers(VcpuId(v), regs, &machine.initial_regs()));
    }
    items.extend(told(part.events.get(..end)?));
    Some(Case { machine, items })
}

/// The window of the trace, from the state that it found.
pub(super) fn from_a_state(
    part: &Part,
    setup: &Setup,
    window: Range<usize>,
    form: Form,
) -> Option<Case> {
    let at_start = part.machine_at(window.start);
    let window = part.events.get(window)?;
    let mut machine = setup.machine.clone();
    let vcpus = 0..machine.vcpus;
    // L2 has state that no single operation makes.
    if vcpus.clone().any(|v| at_start.l2(VcpuId(v)).is_some()) {
        return None;
    }
    machine.mode = mode(at_start.regs(VcpuId(0)));
    let initial = machine.initial_regs();
    let walks = walks(&at_start, window, machine.vcpus);
    let mut items = Vec::new();
    for v in vcpus.map(VcpuId) {
        let regs = at_start.regs(v);
        let set = registers(v, regs, &initial);
        let of = walks.iter().filter(|(vcpu, ..)| *vcpu == v);
        let tables = tables(v, of, &machine, form);
        let same = Mode::of(regs) == Mode::of(&initial);
        if !same {
            items.extend(set.clone());
        }
        items.extend(tables);
        // PAE loads its PDPTEs with CR3: once the tables are there.
        if same || Mode::of(regs) == Mode::Pae {
            items.extend(set);
        }
    }
    if items.len() > MAX {
        return None;
    }
    items.extend(told(window));
    Some(Case { machine, items })
}

fn told(window: &[Told]) -> impl Iterator<Item = Item> {
    window
        .iter()
        .map(|told| Item { event: told.event.clone(), origin: Some((told.index, told.line)) })
}

fn item(vcpu: VcpuId, op: Op) -> Item {
    let event = Event { time: Time(0), actor: Actor::Vcpu(vcpu), op };
    Item { event, origin: None }
}

/// What makes these registers of those that a vCPU starts with.
fn registers(vcpu: VcpuId, regs: &Regs, initial: &Regs) -> Vec<Item> {
    let mut items = Vec::new();
    let other = |new: u64, old: u64| (new != old).then_some(new);
    let sregs = Sregs {
        cr0: other(regs.cr0, initial.cr0),
        cr3: other(regs.cr3, initial.cr3),
        cr4: other(regs.cr4, initial.cr4),
        efer: other(regs.efer, initial.efer),
    };
    match sregs {
        Sregs { cr0: None, cr3: None, cr4: None, efer: None } => {}
        Sregs { cr0: None, cr3: Some(cr3), cr4: None, efer: None }
            if regs.cr4 & Cr4::PCIDE.bits() == 0 =>
        {
            items.push(item(vcpu, Op::Cr3(cr3)));
        }
        _ => items.push(item(vcpu, Op::Sregs(Box::new(sregs)))),
    }
    if regs.pkru != initial.pkru {
        items.push(item(vcpu, Op::Pkru(regs.pkru)));
    }
    if regs.code32 != initial.code32 {
        items.push(item(vcpu, Op::Code { long: !regs.code32 }));
    }
    items
}

/// A walk of the state at the start, by the registers of a later access.
type Walked = (VcpuId, Gpa, Gva, Walk);

/// What the window's accesses would have walked at its start.
fn walks(at_start: &Machine, window: &[Told], vcpus: u16) -> Vec<Walked> {
    let mut machine = at_start.clone();
    let (mut seen, mut all) = (BTreeSet::new(), Vec::new());
    for told in window {
        let op = if let Op::Emul(inner) = &told.event.op { inner } else { &told.event.op };
        let access = match op {
            Op::Access(access) => Some(*access),
            Op::Prefetch(gva) => {
                Some(Access { gva: *gva, kind: AccessKind::Read, user: false, ac: false })
            }
            _ => None,
        };
        if let (Some(access), Actor::Vcpu(v)) = (access, told.event.actor)
            && v.0 < vcpus
            && machine.l2(v).is_none()
        {
            let regs = machine.regs(v);
            if regs.paging() && seen.insert((v, regs.root(), access.gva.0 >> 12)) {
                all.push((v, regs.root(), access.gva, walk_unchecked(at_start, regs, &access)));
            }
        }
        let _ = machine.run(&told.event, told.index, &mut Nobody);
        machine.take_late();
    }
    all
}

/// The page tables of these walks.
fn tables<'a>(
    vcpu: VcpuId,
    walks: impl Iterator<Item = &'a Walked>,
    machine: &MachineConfig,
    form: Form,
) -> Vec<Item> {
    let (mut seen, mut items) = (BTreeSet::new(), Vec::new());
    for (_, root, gva, walk) in walks {
        match form {
            Form::Maps => {
                let Some(map) = map(*root, *gva, walk) else { continue };
                let Op::Map { gva, size, .. } = map else { continue };
                if seen.insert((root.0, gva.0, size.bytes())) {
                    items.push(item(vcpu, map));
                }
            }
            Form::Stores => {
                let registers = machine.vendor == Vendor::Intel || machine.mmu == MmuKind::Shadow;
                if walk.mode == Mode::Pae && registers {
                    // The PDPTEs are in registers: where they were read from is not in the walk.
                    continue;
                }
                for step in walk.read().iter().filter(|step| step.value & 1 != 0) {
                    let table = Gpa(step.gpa.0 & !0xfff);
                    if seen.insert((table.0, 0, 0)) {
                        items.push(item(vcpu, Op::Table { gpa: table, level: step.level }));
                    }
                    if seen.insert((step.gpa.0, 1, 0)) {
                        let store = Op::Store { gpa: step.gpa, value: step.value };
                        items.push(item(vcpu, store));
                    }
                }
            }
        }
    }
    items
}

/// The mapping that a walk found.
fn map(root: Gpa, gva: Gva, walk: &Walk) -> Option<Op> {
    const G: u64 = 1 << 8;
    let leaf = walk.result.ok()?;
    let entry = walk.read().last()?.value;
    let perms = Perms {
        read: true,
        write: leaf.rights.write,
        exec: !leaf.rights.xd,
        user: leaf.rights.user,
        global: entry & G != 0,
    };
    let size: PageSize = leaf.size;
    let gva = Gva(gva.0 & !(size.bytes() - 1));
    Some(Op::Map { gva, gpa: leaf.gpa, size, perms, root: Some(root) })
}
