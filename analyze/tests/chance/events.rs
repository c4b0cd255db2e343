//! Random event lists on few pages, frames, roots and PCIDs, so that they meet.

use proptest::prelude::*;
use tlbscope_sim::machine::config::{MachineConfig, Mode};
use tlbscope_trace::addr::{Asid, Gpa, Gva, Hpa, PAGE_BYTES, PageSize, Pcid, PcpuId, Time, VcpuId};
use tlbscope_trace::op::{
    Access, AccessKind, Actor, Event, HostOp, HvFlush, Invlpgb, Invpcid, InvpcidType,
    MemslotChange, Op, Perms, RegWrite,
};
use tlbscope_trace::regs::{CR3_NOFLUSH, Cr0, Cr4, Efer, Vendor};

pub const PAGES: [u64; 4] = [0x7000, 0x8000, 0x40_0000, 0x80_3000];
const FRAMES: [u64; 4] = [0x5000, 0x6000, 0x9000, 0xa000];
pub const ROOTS: [u64; 3] = [0x1000, 0x2000, 0x1000];
const PCIDS: [u64; 3] = [0, 1, 2];

fn gva() -> impl Strategy<Value = Gva> {
    prop::sample::select(PAGES.to_vec()).prop_map(Gva)
}

fn gpa() -> impl Strategy<Value = Gpa> {
    prop::sample::select(FRAMES.to_vec()).prop_map(Gpa)
}

fn root() -> impl Strategy<Value = Option<Gpa>> {
    prop::option::weighted(0.3, prop::sample::select(ROOTS.to_vec()).prop_map(Gpa))
}

fn perms() -> impl Strategy<Value = Perms> {
    let bit = prop::bool::weighted;
    (bit(0.95), bit(0.7), bit(0.8), bit(0.6), bit(0.3))
        .prop_map(|(read, write, exec, user, global)| Perms { read, write, exec, user, global })
}

fn access() -> impl Strategy<Value = Op> {
    let kinds = vec![AccessKind::Read, AccessKind::Write, AccessKind::Exec];
    (gva(), prop::sample::select(kinds), prop::bool::weighted(0.3), prop::bool::weighted(0.1))
        .prop_map(|(gva, kind, user, ac)| Op::Access(Access { gva, kind, user, ac }))
}

/// Large pages; what the paging mode does not have is refused and skipped.
fn large() -> impl Strategy<Value = Op> {
    let sizes = vec![PageSize::Size2M, PageSize::Size2M, PageSize::Size4M, PageSize::Size1G];
    let places = prop::sample::select(vec![0u64, 0x40_0000, 0x80_0000]);
    (prop::sample::select(sizes), places.clone(), places, perms(), root()).prop_map(
        |(size, gva, gpa, perms, root)| {
            let within = |address: u64| address & !(size.bytes() - 1);
            Op::Map { gva: Gva(within(gva)), gpa: Gpa(within(gpa)), size, perms, root }
        },
    )
}

fn stores() -> impl Strategy<Value = Op> {
    let size = PageSize::Size4K;
    // Entries of the tables that `map` allocates first, from 0x10_0000 upward.
    let entry = (0u64..6, 0u64..16, 0u64..6, prop::sample::select(FRAMES.to_vec()));
    prop_oneof![
        5 => (gva(), gpa(), perms(), root())
            .prop_map(move |(gva, gpa, perms, root)| Op::Map { gva, gpa, size, perms, root }),
        1 => (gva(), root()).prop_map(|(gva, root)| Op::Unmap { gva, root }),
        2 => (gva(), perms(), root())
            .prop_map(|(gva, perms, root)| Op::Protect { gva, perms, root }),
        1 => large(),
        1 => (gva(), 0u64..3, perms(), root()).prop_map(|(gva, table, perms, root)| {
            // A page table of its own, or one of those that `map` makes first: a PDE moves there.
            let table = Gpa([0x30_0000, 0x10_2000, 0x10_3000][table as usize]);
            Op::Link { gva, level: 2, table, perms, root }
        }),
        1 => entry.prop_map(|(table, index, bits, frame)| {
            let bits = [0x27, 0x67, 0x25, 0x167, 0x23, 0][bits as usize];
            Op::Store { gpa: Gpa(0x10_0000 + table * PAGE_BYTES + index * 8), value: frame | bits }
        }),
    ]
}

fn registers(amd: bool) -> impl Strategy<Value = Op> {
    let toggled = |bits: &[u64]| {
        (prop::sample::select(bits.to_vec()), any::<bool>())
            .prop_map(|(bit, on)| RegWrite { clear: bit, set: if on { bit } else { 0 } })
    };
    let cr0 = [Cr0::WP, Cr0::WP, Cr0::TS, Cr0::CD, Cr0::PG].map(|b| b.bits());
    let mut cr4 =
        [Cr4::PGE, Cr4::PCIDE, Cr4::SMEP, Cr4::SMAP, Cr4::PKE, Cr4::PSE, Cr4::PAE, Cr4::LA57]
            .map(|b| b.bits());
    if amd {
        cr4[4] = Cr4::PGE.bits();
    }
    let efer = [Efer::NXE, Efer::SCE, Efer::LME, Efer::TCE].map(|b| b.bits());
    let cr3 =
        (prop::sample::select(ROOTS.to_vec()), prop::sample::select(PCIDS.to_vec()), any::<bool>());
    prop_oneof![
        4 => cr3.prop_map(|(root, pcid, noflush)| {
            Op::Cr3(root | pcid | if noflush { CR3_NOFLUSH } else { 0 })
        }),
        2 => toggled(&cr0).prop_map(Op::Cr0),
        4 => toggled(&cr4).prop_map(Op::Cr4),
        1 => toggled(&efer).prop_map(Op::Efer),
    ]
}

fn invlpgb() -> impl Strategy<Value = Op> {
    let pcid = prop::option::of(prop::sample::select(PCIDS.to_vec()));
    let operands = (prop::option::of(gva()), pcid, any::<bool>(), 0u16..3);
    operands.prop_map(|(va, pcid, global, count)| {
        let pcid = pcid.map(|pcid| Pcid(pcid as u16));
        let operands = Box::new(Invlpgb { va, pcid, asid: None, global, count });
        if count == 1 { Op::InvlpgbLarge(operands) } else { Op::Invlpgb(operands) }
    })
}

fn invalidations() -> impl Strategy<Value = Op> {
    let kinds =
        vec![InvpcidType::Addr, InvpcidType::Single, InvpcidType::All, InvpcidType::AllNonglobal];
    let invpcid = (prop::sample::select(kinds), prop::sample::select(PCIDS.to_vec()), gva());
    prop_oneof![
        4 => gva().prop_map(Op::Invlpg),
        2 => invpcid.prop_map(|(kind, pcid, gva)| Op::Invpcid(Invpcid { kind, pcid, gva })),
        1 => Just(Op::Init),
        1 => Just(Op::Smi),
        2 => Just(Op::Rsm),
        1 => (gva(), 0u32..3).prop_map(|(gva, asid)| Op::Invlpga { gva, asid: Asid(asid) }),
        1 => invlpgb(),
        1 => Just(Op::Tlbsync),
        1 => gva().prop_map(Op::Prefetch),
        1 => Just(Op::Exit(None)),
        1 => Just(Op::Out),
        2 => Just(Op::In),
        1 => Just(Op::Hlt),
        1 => gva().prop_map(Op::WalkBegin),
        1 => gpa().prop_map(|gpa| Op::Release { gpa, size: PAGE_BYTES }),
        1 => (0u64..6).prop_map(|table| {
            let gpa = Gpa(0x10_0000 + table * PAGE_BYTES);
            Op::Release { gpa, size: PAGE_BYTES }
        }),
    ]
}

fn host(vcpus: u16) -> impl Strategy<Value = Op> {
    let size = PAGE_BYTES;
    let vcpu = move || (0..vcpus).prop_map(VcpuId);
    let memslots =
        prop::sample::select(vec![MemslotChange::Add, MemslotChange::Move, MemslotChange::Delete]);
    let backing = prop::option::of((0u64..4).prop_map(|n| Hpa(0x900_0000 + n * PAGE_BYTES)));
    prop_oneof![
        6 => gpa().prop_map(move |gpa| HostOp::Unmap { gpa, size }),
        2 => Just(HostOp::ZapAll),
        3 => (0u16..2, 0u16..2).prop_map(|(vcpu, pcpu)| HostOp::Migrate {
            vcpu: VcpuId(vcpu),
            pcpu: PcpuId(pcpu),
        }),
        2 => (gpa(), backing).prop_map(move |(gpa, hpa)| HostOp::Map { gpa, size, hpa }),
        1 => gpa().prop_map(move |gpa| HostOp::Protect { gpa, size }),
        1 => gpa().prop_map(move |gpa| HostOp::Ro { gpa, size }),
        1 => gpa().prop_map(move |gpa| HostOp::Age { gpa, size }),
        2 => gpa().prop_map(move |gpa| HostOp::DirtyLog { gpa, size }),
        1 => Just(HostOp::Collapse { gpa: Gpa(0), size: 2 << 20 }),
        1 => Just(HostOp::Split { gpa: Gpa(0), size: 2 << 20 }),
        1 => vcpu().prop_map(|vcpu| HostOp::Preempt { vcpu }),
        2 => vcpu().prop_map(|vcpu| HostOp::Run { vcpu, pcpu: None }),
        1 => (memslots, gpa()).prop_map(move |(change, gpa)| HostOp::Memslot { change, gpa, size }),
        1 => vcpu().prop_map(|vcpu| HostOp::VcpuDestroy { vcpu }),
        2 => vcpu().prop_map(|vcpu| HostOp::VcpuCreate { vcpu }),
    ]
    .prop_map(|op| Op::Host(Box::new(op)))
}

/// A change of the host's in its two halves, between which anything may fall.
fn halves() -> impl Strategy<Value = Op> {
    let size = PAGE_BYTES;
    (gpa(), any::<bool>()).prop_map(move |(gpa, begins)| {
        let op = Box::new(HostOp::Unmap { gpa, size });
        if begins { Op::HostBegin(op) } else { Op::HostEnd(op) }
    })
}

/// Flushes that the guest asks for on other vCPUs.
fn remote(vcpus: u16) -> impl Strategy<Value = Op> {
    let targets = || prop::collection::vec((0..vcpus).prop_map(VcpuId), 1..4);
    let list = prop::collection::vec((gva(), 0u16..2), 0..3);
    prop_oneof![
        targets().prop_map(|targets| Op::PvFlush(Box::new(targets))),
        (targets(), list).prop_map(|(vcpus, list)| Op::HvFlush(Box::new(HvFlush { vcpus, list }))),
    ]
}

/// A vCPU that reads shadow pages without a lock does nothing else: a few steps later it ends.
fn walks_end(steps: impl Iterator<Item = (u16, Op)>) -> Vec<(u16, Op)> {
    let mut all: Vec<(u16, Op)> = Vec::new();
    let mut reading: Vec<(usize, u16)> = Vec::new();
    for (n, (v, op)) in steps.enumerate() {
        if matches!(op, Op::WalkBegin(_)) {
            reading.push((n + 4, v));
        }
        all.push((v, op));
        if let Some((_, v)) = reading.first().copied().filter(|(end, _)| *end <= n) {
            reading.remove(0);
            all.push((v, Op::WalkEnd));
        }
    }
    all
}

/// Lists for a machine: the first events switch on what the mode has (PCIDs and globals).
pub fn list(machine: &MachineConfig, most: usize) -> impl Strategy<Value = Vec<Event>> + use<> {
    let op = prop_oneof![
        16 => access(),
        12 => stores(),
        6 => registers(machine.vendor == Vendor::Amd),
        4 => invalidations(),
        2 => host(machine.vcpus),
        1 => halves(),
        2 => remote(machine.vcpus),
    ];
    let vcpus = machine.vcpus;
    let long = matches!(machine.mode, Mode::Level4 | Mode::Level5);
    let steps = prop::collection::vec((0..vcpus, op), 1..most);
    (steps, any::<bool>()).prop_map(move |(steps, pcide)| {
        let pcide = (pcide && long).then(|| {
            let bit = Cr4::PCIDE.bits();
            (0, Op::Cr4(RegWrite { clear: bit, set: bit }))
        });
        let ops = walks_end(pcide.into_iter().chain(steps));
        let event = |(n, (v, op)): (usize, (u16, Op))| {
            let host = matches!(op, Op::Host(_) | Op::HostBegin(_) | Op::HostEnd(_));
            let actor = if host { Actor::Host } else { Actor::Vcpu(VcpuId(v)) };
            Event { time: Time(n as u64 + 1), actor, op }
        };
        ops.into_iter().enumerate().map(event).collect()
    })
}
