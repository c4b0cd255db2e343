//! The event text: hand-written lines with their meaning, errors with their place, and the round
//! trip of every operation.

use proptest::prelude::*;
use tlbscope_trace::addr::{Asid, Gpa, Gva, Hpa, PageSize, Pcid, PcpuId, Time, VcpuId};
use tlbscope_trace::op::*;
use tlbscope_trace::text::{Outcome, parse, write_event};

fn op(line: &str) -> Op {
    let mut lines = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(lines.len(), 1, "{line}");
    lines.remove(0).op
}

fn fails(list: &str) -> (u32, u32, String, Option<String>) {
    let error = parse(list).expect_err(list);
    (error.line, error.column, error.message, error.suggestion)
}

#[test]
fn labels_times_comments_and_numbers() {
    let lines = parse("\n# nothing\n  warm:  @2us v1 read 0x7_000 user = 0x6000|fault:5 # why\n")
        .expect("parses");
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!((line.number, line.label.as_deref()), (3, Some("warm")));
    assert_eq!(line.time, Some(Time(2000)));
    assert_eq!(line.actor, Actor::Vcpu(VcpuId(1)));
    let access = Access { gva: Gva(0x7000), kind: AccessKind::Read, user: true, ac: false };
    assert_eq!(line.op, Op::Access(access));
    assert_eq!(line.outcomes, [Outcome::Gpa(Gpa(0x6000)), Outcome::Fault(Some(5))]);
    for (text, ns) in [("@1500", 1500), ("@3ms", 3_000_000), ("@1s", 1_000_000_000), ("@7ns", 7)] {
        assert_eq!(parse(&format!("{text} v0 clts")).unwrap()[0].time, Some(Time(ns)), "{text}");
    }
}

#[test]
fn registers() {
    // CR4: SMEP is bit 20, PGE bit 7 (SDM vol. 3, 2.5).
    assert_eq!(op("v0 cr4 +SMEP-PGE"), Op::Cr4(RegWrite { clear: 1 << 7, set: 1 << 20 }));
    assert_eq!(op("v0 cr0 0x80000011"), Op::Cr0(RegWrite { clear: !0, set: 0x8000_0011 }));
    // EFER.NXE is bit 11.
    assert_eq!(op("v0 msr efer 0xd00"), Op::Efer(RegWrite { clear: !0, set: 0xd00 }));
    assert_eq!(op("v0 efer -NXE"), Op::Efer(RegWrite { clear: 1 << 11, set: 0 }));
    assert_eq!(op("v0 cr3 0x10000 pcid=5 noflush"), Op::Cr3(0x8000_0000_0001_0005));
    assert_eq!(op("v0 emul clts"), Op::Emul(Box::new(Op::Clts)));
}

#[test]
fn sizes_and_ranges() {
    let unmap = |gpa, size| Op::Host(Box::new(HostOp::Unmap { gpa: Gpa(gpa), size }));
    assert_eq!(op("host unmap 0x5000"), unmap(0x5000, 4096));
    assert_eq!(op("host unmap 0x200000 2m"), unmap(0x20_0000, 0x20_0000));
    assert_eq!(op("host unmap 0 16k"), unmap(0, 16384));
    let map = |size, hpa| Op::Host(Box::new(HostOp::Map { gpa: Gpa(0x5000), size, hpa }));
    assert_eq!(op("host map 0x5000 0x9000"), map(4096, Some(Hpa(0x9000))));
    assert_eq!(op("host map 0x5000 8k 0x9000"), map(8192, Some(Hpa(0x9000))));
    assert_eq!(op("host map 0x5000 8k"), map(8192, None));
    assert_eq!(
        op("v0 map 0x400000 0x800000 4m rw root=0x3000"),
        Op::Map {
            gva: Gva(0x40_0000),
            gpa: Gpa(0x80_0000),
            size: PageSize::Size4M,
            perms: Perms { read: true, write: true, ..Perms::default() },
            root: Some(Gpa(0x3000)),
        }
    );
}

#[test]
fn end_repeats_what_begin_said() {
    let lines = parse("host begin unmap 0x5000 8k\nhost end unmap").expect("parses");
    let unmap = Box::new(HostOp::Unmap { gpa: Gpa(0x5000), size: 8192 });
    assert_eq!(lines[0].op, Op::HostBegin(unmap.clone()));
    assert_eq!(lines[1].op, Op::HostEnd(unmap));
    assert_eq!(fails("host end unmap").2, "no `host begin unmap` is open");
}

#[test]
fn an_error_about_a_line_without_end_ends() {
    for line in ["x".repeat(1 << 20), format!("v0 invlpg {}", "é".repeat(1 << 20))] {
        let error = parse(&line).expect_err("no event").to_string();
        assert!(error.len() < 1000 && error.contains("..."), "{} bytes", error.len());
    }
}

#[test]
fn errors_name_the_place_and_suggest() {
    let hint = |list| fails(list).3;
    assert_eq!(
        fails("v0 clts\n v0 invplg 0x1000"),
        (2, 5, "unknown operation `invplg`".into(), Some("invlpg".into()))
    );
    assert_eq!(
        fails("v0 cr4 +SMEPP"),
        (1, 8, "unknown bit of CR4 `SMEPP`".into(), Some("SMEP".into()))
    );
    assert_eq!(hint("v0 cr3 0x1000 noflsh").as_deref(), Some("noflush"));
    assert_eq!(hint("host unmpa 0x1000").as_deref(), Some("unmap"));
    assert_eq!(hint("hots unmap 0x1000").as_deref(), Some("host"));
    assert_eq!(fails("v0 invlpg").2, "a linear address is missing");
    assert_eq!(fails("v0 clts now").1, 9);
    assert_eq!(fails("a: v0 clts\na: v0 clts").0, 2);
    assert_eq!(fails("v0 cr3 0x1005 pcid=5").1, 8);
    assert_eq!(fails("v0 cr3 0x1000 pcid=4096").1, 15);
    for bad in ["v0 emul emul clts", "v0 read 0x1 = 0x2 0x3", "v0 lmsw 65536", "v0 cr4 +", "é"] {
        parse(bad).expect_err(bad);
    }
}

fn reg() -> impl Strategy<Value = RegWrite> {
    prop_oneof![
        any::<u64>().prop_map(RegWrite::value),
        (any::<u64>(), any::<u64>())
            .prop_filter("a whole value is the other case", |(c, s)| c & !s != !0)
            .prop_map(|(c, s)| RegWrite { clear: c & !s, set: s }),
    ]
}

fn perms() -> impl Strategy<Value = Perms> {
    any::<[bool; 5]>().prop_map(|[read, write, exec, user, global]| Perms {
        read,
        write,
        exec,
        user,
        global,
    })
}

fn range() -> impl Strategy<Value = (Gpa, u64)> {
    (any::<u64>().prop_map(Gpa), 1..u64::MAX)
}

fn host() -> impl Strategy<Value = HostOp> {
    let vcpu = any::<u16>().prop_map(VcpuId);
    let pcpu = any::<u16>().prop_map(PcpuId);
    prop_oneof![
        (range(), proptest::option::of(any::<u64>().prop_map(Hpa)))
            .prop_map(|((gpa, size), hpa)| HostOp::Map { gpa, size, hpa }),
        range().prop_map(|(gpa, size)| HostOp::Unmap { gpa, size }),
        range().prop_map(|(gpa, size)| HostOp::Protect { gpa, size }),
        range().prop_map(|(gpa, size)| HostOp::Ro { gpa, size }),
        range().prop_map(|(gpa, size)| HostOp::Age { gpa, size }),
        range().prop_map(|(gpa, size)| HostOp::DirtyLog { gpa, size }),
        range().prop_map(|(gpa, size)| HostOp::Split { gpa, size }),
        range().prop_map(|(gpa, size)| HostOp::Collapse { gpa, size }),
        Just(HostOp::ZapAll),
        range().prop_map(|(gpa, size)| HostOp::Memslot { change: MemslotChange::Move, gpa, size }),
        (vcpu.clone(), pcpu.clone()).prop_map(|(vcpu, pcpu)| HostOp::Migrate { vcpu, pcpu }),
        vcpu.clone().prop_map(|vcpu| HostOp::Preempt { vcpu }),
        (vcpu.clone(), proptest::option::of(pcpu))
            .prop_map(|(vcpu, pcpu)| HostOp::Run { vcpu, pcpu }),
        vcpu.clone().prop_map(|vcpu| HostOp::VcpuCreate { vcpu }),
        vcpu.clone().prop_map(|vcpu| HostOp::VcpuDestroy { vcpu }),
        (vcpu, any::<u64>()).prop_map(|(vcpu, value)| HostOp::MsrEfer { vcpu, value }),
        range().prop_map(|(gpa, size)| HostOp::Clean { gpa, size }),
        (
            proptest::option::of(any::<u64>().prop_map(Gva)),
            proptest::option::of(any::<u32>().prop_map(Asid)),
        )
            .prop_map(|(va, asid)| HostOp::Invlpgb { va, asid }),
    ]
}

fn registers_and_memory() -> impl Strategy<Value = Op> {
    let root = || proptest::option::of(any::<u64>().prop_map(Gpa));
    let gva = || any::<u64>().prop_map(Gva);
    let gpa = || any::<u64>().prop_map(Gpa);
    prop_oneof![
        reg().prop_map(Op::Cr0),
        reg().prop_map(Op::Cr4),
        reg().prop_map(Op::Efer),
        any::<u64>().prop_map(Op::Cr3),
        any::<u16>().prop_map(Op::Lmsw),
        any::<u64>().prop_map(Op::TaskSwitch),
        any::<u64>().prop_map(Op::MsrMtrr),
        any::<u64>().prop_map(Op::MsrPat),
        any::<u32>().prop_map(Op::Pkru),
        any::<[Option<u64>; 4]>().prop_map(|[cr0, cr3, cr4, efer]| Op::Sregs(Box::new(Sregs {
            cr0,
            cr3,
            cr4,
            efer
        }))),
        (gva(), gpa(), perms(), root()).prop_map(|(gva, gpa, perms, root)| Op::Map {
            gva,
            gpa,
            size: PageSize::Size1G,
            perms,
            root
        }),
        (gva(), root()).prop_map(|(gva, root)| Op::Unmap { gva, root }),
        (gva(), perms(), root()).prop_map(|(gva, perms, root)| Op::Protect { gva, perms, root }),
        (gpa(), 1..=5u8).prop_map(|(gpa, level)| Op::Table { gpa, level }),
        (gva(), 1..=5u8, gpa(), perms(), root()).prop_map(|(gva, level, table, perms, root)| {
            Op::Link { gva, level, table, perms, root }
        }),
        (gpa(), any::<u64>()).prop_map(|(gpa, value)| Op::Store { gpa, value }),
        (gva(), any::<bool>(), any::<bool>()).prop_map(|(gva, user, ac)| Op::Access(Access {
            gva,
            kind: AccessKind::Exec,
            user,
            ac
        })),
        gva().prop_map(Op::Prefetch),
        gva().prop_map(Op::Invlpg),
        range().prop_map(|(gpa, size)| Op::Release { gpa, size }),
        (gva(), any::<u32>()).prop_map(|(gva, error)| Op::PageFault { gva, error }),
    ]
}

fn the_rest() -> impl Strategy<Value = Op> {
    let gva = || any::<u64>().prop_map(Gva);
    let vcpus = || proptest::collection::vec(any::<u16>().prop_map(VcpuId), 1..4);
    let maybe = || proptest::option::of(any::<u64>());
    let kinds = prop_oneof![
        Just(InvpcidType::Addr),
        Just(InvpcidType::Single),
        Just(InvpcidType::All),
        Just(InvpcidType::AllNonglobal),
        (4..u64::MAX).prop_map(InvpcidType::Reserved),
    ];
    prop_oneof![
        proptest::sample::select(vec![
            Op::Clts,
            Op::Cpuid,
            Op::Tlbsync,
            Op::Init,
            Op::Reset,
            Op::Smi,
            Op::Rsm,
            Op::Hlt,
            Op::WalkEnd,
            Op::Out,
            Op::In,
            Op::InFail,
            Op::L1(Box::new(L1Op::Vmxon)),
            Op::L1(Box::new(L1Op::Vmxoff)),
        ]),
        (kinds, any::<u64>(), gva()).prop_map(|(kind, pcid, gva)| Op::Invpcid(Invpcid {
            kind,
            pcid,
            gva
        })),
        (gva(), any::<u32>()).prop_map(|(gva, a)| Op::Invlpga { gva, asid: Asid(a) }),
        (proptest::option::of(gva()), any::<Option<u16>>(), any::<Option<u32>>(), any::<u16>())
            .prop_map(|(va, pcid, asid, count)| {
                let (pcid, asid) = (pcid.map(Pcid), asid.map(Asid));
                let op = Box::new(Invlpgb { va, pcid, asid, global: count & 1 == 1, count });
                if count & 2 == 0 { Op::Invlpgb(op) } else { Op::InvlpgbLarge(op) }
            }),
        gva().prop_map(Op::WalkBegin),
        vcpus().prop_map(|vcpus| Op::PvFlush(Box::new(vcpus))),
        (vcpus(), proptest::collection::vec((gva(), any::<u16>()), 0..3))
            .prop_map(|(vcpus, list)| Op::HvFlush(Box::new(HvFlush { vcpus, list }))),
        (any::<Option<u16>>(), maybe(), maybe(), maybe(), any::<Option<u8>>()).prop_map(
            |(vpid, eptp, cr3, cr4, tlb_control)| Op::L2Enter(Box::new(L2Enter {
                vpid,
                eptp,
                ncr3: None,
                cr3,
                cr4,
                tlb_control,
                fail: vpid.is_some(),
            }))
        ),
        maybe().prop_map(Op::L2Exit),
        maybe().prop_map(Op::Exit),
        (any::<u64>(), maybe())
            .prop_map(|(kind, eptp)| Op::L1(Box::new(L1Op::Invept { kind, eptp }))),
        (any::<u64>(), any::<u16>(), proptest::option::of(gva()))
            .prop_map(|(kind, vpid, gva)| Op::L1(Box::new(L1Op::Invvpid { kind, vpid, gva }))),
        any::<u64>().prop_map(|index| Op::L1(Box::new(L1Op::Vmfunc(index)))),
    ]
}

proptest! {
    #[test]
    fn guest_events_survive_the_round_trip(
        time in any::<u64>(),
        vcpu in any::<u16>(),
        op in prop_oneof![registers_and_memory(), the_rest()],
        emulated in any::<bool>(),
    ) {
        let op = if emulated { Op::Emul(Box::new(op)) } else { op };
        let event = Event { time: Time(time), actor: Actor::Vcpu(VcpuId(vcpu)), op };
        let lines = parse(&write_event(&event)).expect("parses");
        prop_assert_eq!(lines.len(), 1);
        prop_assert_eq!(lines[0].time, Some(event.time));
        prop_assert_eq!(lines[0].actor, event.actor);
        prop_assert_eq!(&lines[0].op, &event.op);
    }

    #[test]
    fn host_events_survive_the_round_trip(time in any::<u64>(), op in host()) {
        let event = Event { time: Time(time), actor: Actor::Host, op: Op::Host(Box::new(op)) };
        let lines = parse(&write_event(&event)).expect("parses");
        prop_assert_eq!(&lines[0].op, &event.op);
        prop_assert_eq!(lines[0].actor, event.actor);
    }

    #[test]
    fn nothing_panics(list in "\\PC{0,60}") {
        let _ = parse(&list);
        let _ = parse(&format!("v0 {list}"));
        let _ = parse(&format!("host {list}"));
    }
}
