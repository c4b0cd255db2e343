//! Random lists in which L1 and L2 change places.

use proptest::prelude::*;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_trace::addr::{Gpa, Gva, PageSize, Time, VcpuId};
use tlbscope_trace::op::{Actor, Event, L1Op, L2Enter, Op, Perms};
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::events::{self, PAGES, ROOTS};
use super::{Case, LIST, Pick};

/// L1's EPTs: EPT entries under the one, plain ones under the other.
const EPTS: [u64; 2] = [0x3_001e, 0x4_0000];
/// Where L1 may map it: to frames that L2 reaches in no other way, for the slow oracle does not see
/// which of two mappings of a frame a walk used.
const OWN_FRAMES: [u64; 3] = [0xb000, 0xc000, 0xd000];
/// A page of L2 that the two may map anywhere; below 2 MiB they map each to itself.
const MOVED: Gpa = Gpa(0x20_0000);
const ALL: Perms = Perms { read: true, write: true, exec: true, user: true, global: false };

fn enter(intel: bool, tdp: bool) -> impl Strategy<Value = Op> {
    let vpid = prop::option::weighted(0.7, 1u16..3);
    let eptp = prop::option::weighted(0.5, prop::sample::select(EPTS.to_vec()));
    let cr3 = prop::option::weighted(0.4, prop::sample::select(ROOTS.to_vec()));
    let control = prop::sample::select(vec![0u8, 0, 1, 3, 7]);
    (vpid, eptp, cr3, control, prop::bool::weighted(0.1)).prop_map(
        move |(vpid, tables, cr3, control, fail)| {
            let tables = tables.filter(|_| tdp);
            Op::L2Enter(Box::new(L2Enter {
                vpid,
                eptp: tables.filter(|_| intel),
                ncr3: tables.filter(|_| !intel).map(|root| root & !0xfff),
                cr3,
                cr4: None,
                tlb_control: (!intel).then_some(control),
                fail,
            }))
        },
    )
}

fn l1() -> impl Strategy<Value = Op> {
    let eptp = prop::sample::select(EPTS.to_vec());
    let page = prop::sample::select(PAGES.to_vec());
    let frame = prop::sample::select(OWN_FRAMES.to_vec());
    prop_oneof![
        4 => (0u64..4, 1u16..3, page).prop_map(|(kind, vpid, gva)| {
            Op::L1(Box::new(L1Op::Invvpid { kind, vpid, gva: Some(Gva(gva)) }))
        }),
        3 => (1u64..3, eptp.clone())
            .prop_map(|(kind, eptp)| Op::L1(Box::new(L1Op::Invept { kind, eptp: Some(eptp) }))),
        1 => Just(Op::L1(Box::new(L1Op::Vmxoff))),
        5 => (frame, eptp).prop_map(|(frame, eptp)| Op::Map {
            gva: Gva(MOVED.0),
            gpa: Gpa(frame),
            size: PageSize::Size4K,
            perms: ALL,
            root: Some(Gpa(eptp)),
        }),
    ]
}

/// A page of L2 that the two EPTs may map elsewhere.
fn moved() -> impl Strategy<Value = Op> {
    prop::sample::select(PAGES.to_vec()).prop_map(|gva| Op::Map {
        gva: Gva(gva),
        gpa: MOVED,
        size: PageSize::Size4K,
        perms: ALL,
        root: None,
    })
}

/// One vCPU whose L1 runs an L2, under the policies that `picks` gives.
pub fn cases(picks: impl Strategy<Value = Pick>) -> impl Strategy<Value = Case> {
    let vendor = prop::sample::select(vec![Vendor::Intel, Vendor::Intel, Vendor::Amd]);
    let mmu = prop::sample::select(vec![MmuKind::Tdp, MmuKind::Shadow]);
    (vendor, mmu, prop::bool::weighted(0.85), picks).prop_flat_map(|(vendor, mmu, vpid, policy)| {
        let machine = MachineConfig { vendor, mmu, vpid, ..Default::default() };
        let (intel, tdp) = (vendor == Vendor::Intel, mmu == MmuKind::Tdp);
        let op = prop_oneof![
            4 => enter(intel, tdp),
            3 => Just(Op::L2Exit(None)),
            3 => l1(),
            2 => moved(),
        ];
        let step = prop_oneof![
            2 => events::list(&machine, 4),
            1 => op.prop_map(|op| vec![Event { time: Time(0), actor: Actor::Vcpu(VcpuId(0)), op }]),
        ];
        prop::collection::vec(step, 1..LIST / 2).prop_map(move |steps| {
            let identity = EPTS.map(|root| Op::Map {
                gva: Gva(0),
                gpa: Gpa(0),
                size: PageSize::Size2M,
                perms: ALL,
                root: Some(Gpa(root)),
            });
            let actor = Actor::Vcpu(VcpuId(0));
            let first = identity.map(|op| Event { time: Time(0), actor, op });
            let all = first.into_iter().chain(steps.into_iter().flatten());
            let events = all.enumerate();
            let events = events.map(|(n, e)| Event { time: Time(n as u64 + 1), ..e }).collect();
            Case { machine: machine.clone(), policy: policy.clone(), events }
        })
    })
}
