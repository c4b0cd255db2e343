//! The numbers of the variants in native files: a file that was written once is read for ever.
//!
//! A variant that is new stands at the end of its enum and of its list here, and the small file gets
//! a successor: `TLBSCOPE_WRITE_FIXTURE=1 cargo test -p tlbscope-trace --test numbers` writes it.
//! A number that changes needs another version of the form.

use std::path::{Path, PathBuf};

use tlbscope_trace::act::{
    Act, Class, Context, FreeWhy, GuestInv, Hook, HookBy, Inv, Request, RootLookup, RootSlot, Tag,
};
use tlbscope_trace::addr::{
    Asid, Ep4ta, Gpa, Gva, Hpa, PageSize, Pcid, PcpuId, Sp, Time, VcpuId, Vpid,
};
use tlbscope_trace::native;
use tlbscope_trace::op::{
    Access, AccessKind, Actor, HostOp, HvFlush, Invlpgb, Invpcid, InvpcidType, L1Op, L2Enter,
    MemslotChange, Op, Perms, RegWrite, Sregs,
};
use tlbscope_trace::regs::{MmuKind, Regs, Vendor};
use tlbscope_trace::{Body, Census, Meta, Record, Recording, codec};

/// A function that gives one value of each variant with its number. A variant without a line does
/// not compile.
macro_rules! numbers {
    ($name:ident: $of:ty { $($number:literal $pattern:pat => $sample:expr,)* }) => {
        fn $name() -> Vec<(u8, $of)> {
            let number = |value: &$of| -> u8 {
                match value {
                    $($pattern => $number,)*
                }
            };
            let samples: Vec<$of> = vec![$($sample,)*];
            samples.into_iter().map(|value| (number(&value), value)).collect()
        }
    };
}

const GVA: Gva = Gva(0x7fff_1234_5678);
const GPA: Gpa = Gpa(0x1_2345_6000);
const V1: VcpuId = VcpuId(1);
const P2: PcpuId = PcpuId(2);
const SIZE: u64 = 0x3000;
const PERMS: Perms = Perms { read: true, write: false, exec: true, user: true, global: false };
const LIST: [VcpuId; 2] = [VcpuId(0), VcpuId(2)];

fn host(op: HostOp) -> Box<HostOp> {
    Box::new(op)
}

numbers!(ops: Op {
    0 Op::Cr0(_) => Op::Cr0(RegWrite { clear: 1, set: 1 << 31 }),
    1 Op::Clts => Op::Clts,
    2 Op::Lmsw(_) => Op::Lmsw(0x123),
    3 Op::Cr3(_) => Op::Cr3(0x8000_0000_0012_3005),
    4 Op::Cr4(_) => Op::Cr4(RegWrite { clear: 1 << 7, set: 1 << 17 }),
    5 Op::Efer(_) => Op::Efer(RegWrite::value(0xd01)),
    6 Op::Map { .. } => Op::Map { gva: GVA, gpa: GPA, size: PageSize::Size2M, perms: PERMS, root: Some(Gpa(0x9000)) },
    7 Op::Unmap { .. } => Op::Unmap { gva: GVA, root: None },
    8 Op::Protect { .. } => Op::Protect { gva: GVA, perms: PERMS, root: Some(Gpa(0x9000)) },
    9 Op::Table { .. } => Op::Table { gpa: GPA, level: 3 },
    10 Op::Link { .. } => Op::Link { gva: GVA, level: 2, table: GPA, perms: PERMS, root: None },
    11 Op::Store { .. } => Op::Store { gpa: Gpa(0x1008), value: 0xdead_beef_0000_0067 },
    12 Op::Access(_) => Op::Access(Access { gva: GVA, kind: AccessKind::Write, user: true, ac: false }),
    13 Op::Prefetch(_) => Op::Prefetch(GVA),
    14 Op::Invlpg(_) => Op::Invlpg(GVA),
    15 Op::Invpcid(_) => Op::Invpcid(Invpcid { kind: InvpcidType::Single, pcid: 5, gva: GVA }),
    16 Op::Invlpga { .. } => Op::Invlpga { gva: GVA, asid: Asid(3) },
    17 Op::Invlpgb(_) => Op::Invlpgb(Box::new(Invlpgb { va: Some(GVA), pcid: None, asid: Some(Asid(4)), global: true, count: 7 })),
    18 Op::Tlbsync => Op::Tlbsync,
    19 Op::Init => Op::Init,
    20 Op::Reset => Op::Reset,
    21 Op::Smi => Op::Smi,
    22 Op::Rsm => Op::Rsm,
    23 Op::TaskSwitch(_) => Op::TaskSwitch(0x5000),
    24 Op::MsrMtrr(_) => Op::MsrMtrr(0xc06),
    25 Op::MsrPat(_) => Op::MsrPat(0x7_0406),
    26 Op::Pkru(_) => Op::Pkru(0x5555_5554),
    27 Op::Cpuid => Op::Cpuid,
    28 Op::Code { .. } => Op::Code { long: true },
    29 Op::MsrApicBase(_) => Op::MsrApicBase(0xfee0_0900),
    30 Op::Sregs(_) => Op::Sregs(Box::new(Sregs { cr0: Some(1), cr3: None, cr4: Some(0x20), efer: Some(0x500) })),
    31 Op::Emul(_) => Op::Emul(Box::new(Op::Invlpg(GVA))),
    32 Op::PvFlush(_) => Op::PvFlush(Box::new(LIST.to_vec())),
    33 Op::HvFlush(_) => Op::HvFlush(Box::new(HvFlush { vcpus: LIST.to_vec(), list: vec![(GVA, 3)] })),
    34 Op::L2Enter(_) => Op::L2Enter(Box::new(L2Enter { vpid: Some(2), eptp: Some(0x3_001e), ncr3: None, cr3: Some(0x4000), cr4: None, tlb_control: Some(3), fail: true })),
    35 Op::L2Exit(_) => Op::L2Exit(Some(48)),
    36 Op::L1(_) => Op::L1(Box::new(L1Op::Vmxon)),
    37 Op::Out => Op::Out,
    38 Op::In => Op::In,
    39 Op::InFail => Op::InFail,
    40 Op::Exit(_) => Op::Exit(Some(12)),
    41 Op::Release { .. } => Op::Release { gpa: GPA, size: SIZE },
    42 Op::Host(_) => Op::Host(host(HostOp::ZapAll)),
    43 Op::HostBegin(_) => Op::HostBegin(host(HostOp::Unmap { gpa: GPA, size: SIZE })),
    44 Op::HostEnd(_) => Op::HostEnd(host(HostOp::Unmap { gpa: GPA, size: SIZE })),
    45 Op::PageFault { .. } => Op::PageFault { gva: GVA, error: 5 },
    46 Op::Hlt => Op::Hlt,
    47 Op::InvlpgbLarge(_) => Op::InvlpgbLarge(Box::new(Invlpgb { va: Some(GVA), pcid: Some(Pcid(3)), asid: None, global: false, count: 2 })),
    48 Op::WalkBegin(_) => Op::WalkBegin(GVA),
    49 Op::WalkEnd => Op::WalkEnd,
});

numbers!(host_ops: HostOp {
    0 HostOp::Map { .. } => HostOp::Map { gpa: GPA, size: SIZE, hpa: Some(Hpa(0x8000)) },
    1 HostOp::Unmap { .. } => HostOp::Unmap { gpa: GPA, size: SIZE },
    2 HostOp::Protect { .. } => HostOp::Protect { gpa: GPA, size: SIZE },
    3 HostOp::Ro { .. } => HostOp::Ro { gpa: GPA, size: SIZE },
    4 HostOp::Age { .. } => HostOp::Age { gpa: GPA, size: SIZE },
    5 HostOp::DirtyLog { .. } => HostOp::DirtyLog { gpa: GPA, size: SIZE },
    6 HostOp::Split { .. } => HostOp::Split { gpa: GPA, size: SIZE },
    7 HostOp::Collapse { .. } => HostOp::Collapse { gpa: GPA, size: SIZE },
    8 HostOp::ZapAll => HostOp::ZapAll,
    9 HostOp::Memslot { .. } => HostOp::Memslot { change: MemslotChange::Move, gpa: GPA, size: SIZE },
    10 HostOp::Migrate { .. } => HostOp::Migrate { vcpu: V1, pcpu: P2 },
    11 HostOp::Preempt { .. } => HostOp::Preempt { vcpu: V1 },
    12 HostOp::Run { .. } => HostOp::Run { vcpu: V1, pcpu: Some(P2) },
    13 HostOp::VcpuCreate { .. } => HostOp::VcpuCreate { vcpu: V1 },
    14 HostOp::VcpuDestroy { .. } => HostOp::VcpuDestroy { vcpu: V1 },
    15 HostOp::MsrEfer { .. } => HostOp::MsrEfer { vcpu: V1, value: 0xd01 },
    16 HostOp::Clean { .. } => HostOp::Clean { gpa: GPA, size: SIZE },
    17 HostOp::Invlpgb { .. } => HostOp::Invlpgb { va: Some(GVA), asid: Some(Asid(5)) },
});

numbers!(l1_ops: L1Op {
    0 L1Op::Invept { .. } => L1Op::Invept { kind: 1, eptp: Some(0x3_001e) },
    1 L1Op::Invvpid { .. } => L1Op::Invvpid { kind: 2, vpid: 3, gva: Some(GVA) },
    2 L1Op::Vmfunc(_) => L1Op::Vmfunc(1),
    3 L1Op::Vmxon => L1Op::Vmxon,
    4 L1Op::Vmxoff => L1Op::Vmxoff,
});

numbers!(invpcid_types: InvpcidType {
    0 InvpcidType::Addr => InvpcidType::Addr,
    1 InvpcidType::Single => InvpcidType::Single,
    2 InvpcidType::All => InvpcidType::All,
    3 InvpcidType::AllNonglobal => InvpcidType::AllNonglobal,
    4 InvpcidType::Reserved(_) => InvpcidType::Reserved(9),
});

numbers!(memslot_changes: MemslotChange {
    0 MemslotChange::Add => MemslotChange::Add,
    1 MemslotChange::Move => MemslotChange::Move,
    2 MemslotChange::Delete => MemslotChange::Delete,
});

numbers!(access_kinds: AccessKind {
    0 AccessKind::Read => AccessKind::Read,
    1 AccessKind::Write => AccessKind::Write,
    2 AccessKind::Exec => AccessKind::Exec,
});

numbers!(page_sizes: PageSize {
    0 PageSize::Size4K => PageSize::Size4K,
    1 PageSize::Size2M => PageSize::Size2M,
    2 PageSize::Size4M => PageSize::Size4M,
    3 PageSize::Size1G => PageSize::Size1G,
});

numbers!(actors: Actor {
    0 Actor::Vcpu(_) => Actor::Vcpu(V1),
    1 Actor::Host => Actor::Host,
});

numbers!(vendors: Vendor {
    0 Vendor::Intel => Vendor::Intel,
    1 Vendor::Amd => Vendor::Amd,
});

numbers!(mmus: MmuKind {
    0 MmuKind::Shadow => MmuKind::Shadow,
    1 MmuKind::Tdp => MmuKind::Tdp,
});

numbers!(bodies: Body {
    0 Body::Op(_) => Body::Op(Op::Clts),
    1 Body::Act(_) => Body::Act(Act::Init),
    2 Body::Gap(_) => Body::Gap(Some(3)),
});

numbers!(requests: Request {
    0 Request::TlbFlush => Request::TlbFlush,
    1 Request::TlbFlushCurrent => Request::TlbFlushCurrent,
    2 Request::TlbFlushGuest => Request::TlbFlushGuest,
    3 Request::MmuSync => Request::MmuSync,
    4 Request::LoadMmuPgd => Request::LoadMmuPgd,
    5 Request::MmuReload => Request::MmuReload,
    6 Request::MmuFreeObsoleteRoots => Request::MmuFreeObsoleteRoots,
    7 Request::HvTlbFlush => Request::HvTlbFlush,
    8 Request::MmuUpdateRoot => Request::MmuUpdateRoot,
    9 Request::StealUpdate => Request::StealUpdate,
    10 Request::ApicPageReload => Request::ApicPageReload,
});

numbers!(hooks: Hook {
    0 Hook::All => Hook::All,
    1 Hook::Current => Hook::Current,
    2 Hook::Guest => Hook::Guest,
    3 Hook::Gva(_) => Hook::Gva(GVA),
});

numbers!(hook_bys: HookBy {
    0 HookBy::Request => HookBy::Request,
    1 HookBy::Load => HookBy::Load,
    2 HookBy::Register => HookBy::Register,
    3 HookBy::Direct => HookBy::Direct,
});

numbers!(root_slots: RootSlot {
    0 RootSlot::Current => RootSlot::Current,
    1 RootSlot::Prev(_) => RootSlot::Prev(2),
});

numbers!(root_lookups: RootLookup {
    0 RootLookup::Current => RootLookup::Current,
    1 RootLookup::Prev(_) => RootLookup::Prev(1),
    2 RootLookup::Miss => RootLookup::Miss,
});

numbers!(invs: Inv {
    0 Inv::VpidAddress { .. } => Inv::VpidAddress { vpid: Vpid(1), gva: GVA },
    1 Inv::VpidSingle(_) => Inv::VpidSingle(Vpid(1)),
    2 Inv::VpidAll => Inv::VpidAll,
    3 Inv::VpidNonglobal(_) => Inv::VpidNonglobal(Vpid(1)),
    4 Inv::EptSingle(_) => Inv::EptSingle(Ep4ta(0x7000)),
    5 Inv::EptGlobal => Inv::EptGlobal,
    6 Inv::VpidZeroTransition => Inv::VpidZeroTransition,
    7 Inv::TlbControlAll => Inv::TlbControlAll,
    8 Inv::TlbControlAsid(_) => Inv::TlbControlAsid(Asid(5)),
    9 Inv::TlbControlNonglobal(_) => Inv::TlbControlNonglobal(Asid(5)),
    10 Inv::Invlpga { .. } => Inv::Invlpga { asid: Asid(5), gva: GVA },
    11 Inv::Guest(_) => Inv::Guest(GuestInv::All),
    12 Inv::Exact => Inv::Exact,
});

numbers!(guest_invs: GuestInv {
    0 GuestInv::All => GuestInv::All,
    1 GuestInv::Nonglobal => GuestInv::Nonglobal,
    2 GuestInv::Pcid(_) => GuestInv::Pcid(Pcid(6)),
    3 GuestInv::PcidNonglobal(_) => GuestInv::PcidNonglobal(Pcid(6)),
    4 GuestInv::Address { .. } => GuestInv::Address { pcid: Pcid(6), gva: GVA },
    5 GuestInv::AddressNonglobal { .. } => GuestInv::AddressNonglobal { pcid: Pcid(6), gva: GVA },
    6 GuestInv::Fault { .. } => GuestInv::Fault { pcid: Pcid(6), gva: GVA },
    7 GuestInv::AddressPath { .. } => GuestInv::AddressPath { pcid: Pcid(6), gva: GVA },
});

numbers!(classes: Class {
    0 Class::Linear => Class::Linear,
    1 Class::Combined => Class::Combined,
    2 Class::GuestPhysical => Class::GuestPhysical,
    3 Class::Asid => Class::Asid,
});

numbers!(whys: FreeWhy {
    0 FreeWhy::Reset => FreeWhy::Reset,
    1 FreeWhy::Unload => FreeWhy::Unload,
    2 FreeWhy::Evict => FreeWhy::Evict,
    3 FreeWhy::InvalidatePcid => FreeWhy::InvalidatePcid,
    4 FreeWhy::SyncPrev => FreeWhy::SyncPrev,
    5 FreeWhy::Pdptrs => FreeWhy::Pdptrs,
    6 FreeWhy::Obsolete => FreeWhy::Obsolete,
    7 FreeWhy::NotCacheable => FreeWhy::NotCacheable,
    8 FreeWhy::NestedInvvpid => FreeWhy::NestedInvvpid,
    9 FreeWhy::NestedInvept => FreeWhy::NestedInvept,
    10 FreeWhy::Destroy => FreeWhy::Destroy,
});

/// What runs after an entry.
fn context(class: Class) -> Context {
    let tag = Tag { pcpu: P2, class, id: 3, ep4ta: Ep4ta(0x7000), pcid: Pcid(6) };
    Context { tag, root: Hpa(0x9000), shadow_root: Some(Sp(4)) }
}

numbers!(acts: Act {
    0 Act::Post(_) => Act::Post(Request::TlbFlush),
    1 Act::Serve(_) => Act::Serve(Request::TlbFlushGuest),
    2 Act::Reset { .. } => Act::Reset { role_changed: Some(true) },
    3 Act::Init => Act::Init,
    4 Act::RoleChange => Act::RoleChange,
    5 Act::Unload => Act::Unload,
    6 Act::FreeRoot { .. } => Act::FreeRoot { slot: RootSlot::Current, root: Hpa(0x9000), sp: Some(Sp(4)), why: FreeWhy::Reset },
    7 Act::FreeRoots { .. } => Act::FreeRoots { mask: 0xf },
    8 Act::NewPgd(_) => Act::NewPgd(Some(RootLookup::Miss)),
    9 Act::Load => Act::Load,
    10 Act::LoadPgd { .. } => Act::LoadPgd { root: Hpa(0x9000) },
    11 Act::SyncRoots => Act::SyncRoots,
    12 Act::SyncPrevRoots => Act::SyncPrevRoots,
    13 Act::FreeObsoleteRoots => Act::FreeObsoleteRoots,
    14 Act::InvalidatePcid(_) => Act::InvalidatePcid(Pcid(6)),
    15 Act::InvalidateGva(_) => Act::InvalidateGva(GVA),
    16 Act::LoadPdptrs { .. } => Act::LoadPdptrs { changed: Some(false) },
    17 Act::Hook { .. } => Act::Hook { hook: Hook::All, by: HookBy::Load, effective: true },
    18 Act::Inv(_) => Act::Inv(Inv::VpidAll),
    19 Act::NewAsid(_) => Act::NewAsid(Asid(5)),
    20 Act::RemoteFlush { .. } => Act::RemoteFlush { ipi: Some(true) },
    21 Act::Ipi(_) => Act::Ipi(P2),
    22 Act::ZapAll => Act::ZapAll,
    23 Act::SpNew { .. } => Act::SpNew { sp: Sp(4), gfn: 0x55, level: 2, role: 0x42 },
    24 Act::SpFound { .. } => Act::SpFound { sp: Sp(4) },
    25 Act::SpLink { .. } => Act::SpLink { parent: Sp(4), index: 9, child: Sp(5) },
    26 Act::SpUnlink { .. } => Act::SpUnlink { parent: Sp(4), index: 9, child: Sp(5) },
    27 Act::SpteSet { .. } => Act::SpteSet { sp: Sp(4), index: 511 },
    28 Act::SpteClear { .. } => Act::SpteClear { sp: Sp(4), index: 511 },
    29 Act::SpUnsync { .. } => Act::SpUnsync { sp: Sp(4) },
    30 Act::SpSync { .. } => Act::SpSync { sp: Sp(4), changed: true },
    31 Act::SpZap { .. } => Act::SpZap { sp: Sp(4) },
    32 Act::PageFault { .. } => Act::PageFault { address: 0x7fff_0000_1234, error: 0x6 },
    33 Act::Inject { .. } => Act::Inject { vector: 14, error: Some(6) },
    34 Act::Entry(_) => Act::Entry(context(Class::Linear)),
    35 Act::EntrySeen => Act::EntrySeen,
    36 Act::EntryAborted { .. } => Act::EntryAborted { failed: true },
    37 Act::Exit(_) => Act::Exit(Some(28)),
    38 Act::VcpuLoad(_) => Act::VcpuLoad(P2),
    39 Act::VmcsLoad => Act::VmcsLoad,
    40 Act::Refill { .. } => Act::Refill { refs: 4, ghost: Some(77) },
    41 Act::SpuriousFault => Act::SpuriousFault,
    42 Act::RootSeen { .. } => Act::RootSeen { slot: RootSlot::Prev(1), pgd: Some(0x1000), root: Some(Hpa(0x9000)) },
    43 Act::RequestAll(_) => Act::RequestAll(Request::MmuReload),
    44 Act::OldSeen { .. } => Act::OldSeen { register: 4, old: 0x20 },
    45 Act::RegSeen { .. } => Act::RegSeen { register: 8, value: 0xd01 },
    46 Act::RootNew(_) => Act::RootNew(Hpa(0x9000)),
    47 Act::SpFree { .. } => Act::SpFree { sp: Sp(7) },
    48 Act::SpRead { .. } => Act::SpRead { sp: Sp(7) },
    49 Act::Broadcast => Act::Broadcast,
    50 Act::HeldPage { .. } => Act::HeldPage { gpa: GPA, hpa: Hpa(0x9000) },
});

/// Checks that values are written behind the number of their variant, and that the numbers are
/// those of the list, from 0.
fn check<T: bincode::Encode>(of: &str, values: Vec<(u8, T)>) {
    for (place, (number, value)) in values.iter().enumerate() {
        let mut bytes = Vec::new();
        codec::encode(value, &mut bytes).unwrap();
        assert_eq!((usize::from(*number), bytes[0]), (place, *number), "{of} {number}");
    }
}

#[test]
fn variants_keep_their_numbers() {
    check("Op", ops());
    check("HostOp", host_ops());
    check("L1Op", l1_ops());
    check("InvpcidType", invpcid_types());
    check("MemslotChange", memslot_changes());
    check("AccessKind", access_kinds());
    check("PageSize", page_sizes());
    check("Actor", actors());
    check("Vendor", vendors());
    check("MmuKind", mmus());
    check("Body", bodies());
    check("Act", acts());
    check("Request", requests());
    check("Hook", hooks());
    check("HookBy", hook_bys());
    check("RootSlot", root_slots());
    check("RootLookup", root_lookups());
    check("Inv", invs());
    check("GuestInv", guest_invs());
    check("Class", classes());
    check("FreeWhy", whys());
}

fn values<T>(list: Vec<(u8, T)>) -> impl Iterator<Item = T> {
    list.into_iter().map(|(_, value)| value)
}

/// Where the record of this number stands.
fn place(n: u64) -> (Time, Actor, u32) {
    let actor = if n.is_multiple_of(3) { Actor::Host } else { Actor::Vcpu(V1) };
    (Time(100 * n), actor, 2 * n as u32 + 1)
}

/// A recording in which every variant is at least once.
fn everything() -> Recording {
    let access = |kind| Op::Access(Access { gva: GVA, kind, user: false, ac: true });
    let map = |size| Op::Map { gva: GVA, gpa: GPA, size, perms: PERMS, root: None };
    let invpcid = |kind| Op::Invpcid(Invpcid { kind, pcid: 5, gva: GVA });
    let memslot = |change| Op::Host(host(HostOp::Memslot { change, gpa: GPA, size: SIZE }));
    let all_ops = values(ops())
        .chain(values(host_ops()).map(|op| Op::Host(host(op))))
        .chain(values(l1_ops()).map(|op| Op::L1(Box::new(op))))
        .chain(values(access_kinds()).map(access))
        .chain(values(page_sizes()).map(map))
        .chain(values(invpcid_types()).map(invpcid))
        .chain(values(memslot_changes()).map(memslot))
        .map(Body::Op);
    let root = Hpa(0x9000);
    let all_acts = values(acts())
        .chain(values(requests()).map(Act::Post))
        .chain(values(hooks()).map(|hook| Act::Hook { hook, by: HookBy::Direct, effective: false }))
        .chain(values(hook_bys()).map(|by| Act::Hook { hook: Hook::Guest, by, effective: true }))
        .chain(values(root_slots()).map(|slot| Act::RootSeen { slot, pgd: None, root: None }))
        .chain(values(root_lookups()).map(|found| Act::NewPgd(Some(found))))
        .chain(values(invs()).map(Act::Inv))
        .chain(values(guest_invs()).map(|inv| Act::Inv(Inv::Guest(inv))))
        .chain(values(classes()).map(|class| Act::Entry(context(class))))
        .chain(values(whys()).map(|why| Act::FreeRoot {
            slot: RootSlot::Prev(1),
            root,
            sp: None,
            why,
        }))
        .map(Body::Act);
    let bodies = all_ops.chain(all_acts).chain(values(bodies()));
    let record = |(n, body)| {
        let (time, actor, line) = place(n);
        Record { time, actor, line, body }
    };
    let records = (0..).zip(bodies).map(record).collect();
    let text = |text: &str| text.to_owned();
    let regs = Regs { cr0: 0x8001_0011, cr3: 0x1000, cr4: 0xa0, efer: 0xd01, ..Regs::default() };
    let meta = Meta {
        source: text("every variant"),
        form: text("made for a test"),
        vendor: Some(Vendor::Amd),
        mmu: Some(MmuKind::Tdp),
        vpid: Some(true),
        kernel: Some(text("6.1.192")),
        vcpus: 3,
        initial_regs: vec![Regs { code32: true, pkru: 4, pdpte: [1, 2, 3, 4], ..regs }, regs],
        features: vec![text("pcid"), text("nx")],
        evidence: vec![text("a line")],
        losses: Vec::new(),
    };
    let census = Census {
        understood: [(text("kvm_exit"), 3)].into(),
        ignored: [(text("kvm_msr"), (4, text("no translation hangs on it")))].into(),
        unknown: [(text("sched_switch"), 5)].into(),
    };
    Recording { meta, census, records }
}

/// Records of the file of version 2.
const RECORDS_V2: usize = 189;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/traces/every-variant.v2.tlbt")
}

#[test]
fn a_file_of_version_2_is_read() {
    let wanted = everything();
    if std::env::var_os("TLBSCOPE_WRITE_FIXTURE").is_some() {
        native::write(&wanted, &fixture()).unwrap();
    }
    assert_eq!(native::VERSION, 2, "another version wants a file of its own, beside this one");
    let read = native::read(&fixture()).unwrap();
    assert_eq!((&read.meta, &read.census), (&wanted.meta, &wanted.census));
    // A file of the past has what there was then, in the same order.
    let mut wanted_bodies = wanted.records.iter().map(|record| &record.body);
    for (n, record) in (0..).zip(&read.records) {
        let Record { time, actor, line, body } = record;
        assert_eq!((*time, *actor, *line), place(n), "record {n}");
        assert!(
            wanted_bodies.any(|wanted| wanted == body),
            "record {n} is none of these: {body:?}"
        );
    }
    assert_eq!(read.records.len(), RECORDS_V2);
}
