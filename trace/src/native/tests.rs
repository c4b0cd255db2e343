//! The columns, from inside: every operation and act comes back, and hostile content does not.

use super::pack::Packer;
use super::unpack::unpack;
use crate::act::{Act, Hook, HookBy, Request};
use crate::addr::{Gpa, Gva, PageSize, Time, VcpuId};
use crate::op::{Access, AccessKind, Actor, HvFlush, Invpcid, InvpcidType, Op, Perms, RegWrite};
use crate::recording::{Body, Record};

fn round(records: &[Record]) -> Vec<u8> {
    let mut content = Vec::new();
    Packer::default().pack(records, &mut content).expect("packs");
    let mut back = Vec::new();
    unpack(&content, records.len(), &mut back).expect("unpacks");
    assert_eq!(back, records);
    content
}

fn record(time: u64, actor: Actor, line: u32, body: Body) -> Record {
    Record { time: Time(time), actor, line, body }
}

fn bodies() -> Vec<Body> {
    let gva = |address| Gva(address);
    let perms = Perms { read: true, write: false, exec: true, user: true, global: false };
    let mut ops = vec![
        Op::Cr0(RegWrite::value(0x8000_0033)),
        Op::Cr3(1 << 63 | 0x0612_d804),
        Op::Map {
            gva: gva(0xffff_8000_0000_0000),
            gpa: Gpa(0x20_0000),
            size: PageSize::Size2M,
            perms,
            root: Some(Gpa(0x1_0001)),
        },
        Op::Map { gva: gva(0x1000), gpa: Gpa(!0), size: PageSize::Size1G, perms, root: None },
        Op::Unmap { gva: gva(u64::MAX), root: None },
        Op::Protect {
            gva: gva(0x1234),
            perms: Perms { global: true, ..perms },
            root: Some(Gpa(0)),
        },
        Op::Store { gpa: Gpa(0x1008), value: u64::MAX },
        Op::Prefetch(gva(0x7fff)),
        Op::Invlpg(gva(1)),
        Op::Emul(Box::new(Op::Invlpg(gva(0x5000)))),
        Op::PvFlush(Box::new((0..300).map(VcpuId).collect())),
        Op::HvFlush(Box::new(HvFlush { vcpus: vec![VcpuId(1)], list: vec![(gva(4096), 3)] })),
        Op::Exit(Some(u64::MAX)),
    ];
    for kind in [
        InvpcidType::Addr,
        InvpcidType::Single,
        InvpcidType::All,
        InvpcidType::AllNonglobal,
        InvpcidType::Reserved(9),
    ] {
        ops.push(Op::Invpcid(Invpcid { kind, pcid: 0x1804, gva: gva(0x9008) }));
    }
    for n in 0..48_u64 {
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Exec][n as usize % 3];
        let far = if n % 5 == 0 { 1 << 62 } else { 0 };
        let gva = gva((n * n * 0x1_2345_6789) ^ far);
        ops.push(Op::Access(Access { gva, kind, user: n & 4 != 0, ac: n & 8 != 0 }));
    }
    let acts = [
        Act::Load,
        Act::Post(Request::MmuSync),
        Act::PageFault { address: 0xfee0_0000, error: 0x1_0000_0000 },
        Act::InvalidateGva(gva(0xffff_ffff_ffff_f000)),
        Act::Hook { hook: Hook::Gva(gva(0x7123)), by: HookBy::Register, effective: true },
        Act::Hook { hook: Hook::All, by: HookBy::Load, effective: false },
        Act::Exit(Some(28)),
    ];
    let gaps = [Body::Gap(None), Body::Gap(Some(12))];
    ops.into_iter().map(Body::Op).chain(acts.map(Body::Act)).chain(gaps).collect()
}

#[test]
fn every_body_comes_back() {
    for body in bodies() {
        round(&[record(5, Actor::Host, 0, body)]);
    }
    let all = bodies().into_iter().enumerate();
    let records: Vec<Record> =
        all.map(|(n, body)| record(n as u64 * 10, Actor::Vcpu(VcpuId(0)), 3, body)).collect();
    round(&records);
    round(&[]);
}

#[test]
fn every_head_comes_back() {
    let times = [0, 1000, 2000, 2000, 32_000, 31_000, u64::MAX, 0, 1 << 63, 7];
    let lines = [1, 2, 3, 3, 9, 4, u32::MAX, 0, 0, 1];
    let actors = [0, 1, 1, 2, 0, 300, 65536, 0, 1, 1];
    let records: Vec<Record> = (0..1000)
        .map(|n: usize| {
            let actor = match actors[n % 10] {
                0 => Actor::Host,
                v => Actor::Vcpu(VcpuId((v - 1) as u16)),
            };
            record(times[n % 10], actor, lines[n / 10 % 10], Body::Act(Act::Load))
        })
        .collect();
    round(&records);
}

#[test]
fn more_bodies_than_codes() {
    // 500 different CR3 values: 192 have codes of their own, the others are listed.
    let records: Vec<Record> =
        (0..2000).map(|n| record(n, Actor::Host, 0, Body::Op(Op::Cr3(n % 500 * 4096)))).collect();
    round(&records);
}

#[test]
fn accesses_take_three_bytes() {
    let access = |n: u64| {
        let gva = Gva(0x40_0000 + n * 7919 % 4096 * 4096);
        Body::Op(Op::Access(Access { gva, kind: AccessKind::Read, user: true, ac: false }))
    };
    let records: Vec<Record> =
        (0..10_000).map(|n| record(n * 10, Actor::Vcpu(VcpuId(1)), 0, access(n))).collect();
    // A code, two bytes of page and an eighth of a mark.
    assert!(round(&records).len() < 32_000);
}

#[test]
fn hostile_content_is_refused() {
    let records: Vec<Record> =
        bodies().into_iter().map(|body| record(1, Actor::Host, 1, body)).collect();
    let content = round(&records);
    let mut sink = Vec::new();
    for cut in 0..content.len() {
        assert!(unpack(&content[..cut], records.len(), &mut sink).is_err(), "cut at {cut}");
    }
    assert!(unpack(&content, records.len() + 1, &mut sink).is_err());
    // A flip may give other records, never a panic.
    for at in 0..content.len() {
        let mut other = content.clone();
        other[at] ^= 0x55;
        sink.clear();
        let _ = unpack(&other, records.len(), &mut sink);
    }
}

#[test]
fn a_chain_of_emuls_does_not_exhaust_the_stack() {
    let twice = Op::Emul(Box::new(Op::Emul(Box::new(Op::Clts))));
    let mut content = Vec::new();
    let records = [record(0, Actor::Host, 0, Body::Op(twice))];
    Packer::default().pack(&records, &mut content).expect("packs");
    assert!(unpack(&content, 1, &mut Vec::new()).is_err());
}
