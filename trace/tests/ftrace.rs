//! Imports of ftrace text. The counts of the Intel recording are copied from the list that came
//! with it, those of the AMD one were counted with grep: never by the importer.

use std::path::PathBuf;

use tlbscope_trace::act::{Act, Hook, HookBy, Request, RootLookup, RootSlot};
use tlbscope_trace::addr::{Gpa, Gva, Hpa, PcpuId, VcpuId};
use tlbscope_trace::import::ftrace::import;
use tlbscope_trace::op::*;
use tlbscope_trace::regs::{MmuKind, Vendor};
use tlbscope_trace::{Body, Recording, open};

fn recorded(name: &str) -> Recording {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(name);
    open(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn acts(recording: &Recording, wanted: impl Fn(&Act) -> bool) -> usize {
    recording.acts().filter(|(_, act)| wanted(act)).count()
}

fn ops(recording: &Recording, wanted: impl Fn(&Op) -> bool) -> usize {
    recording.ops().filter(|(_, op)| wanted(op)).count()
}

fn hooks(recording: &Recording, wanted: Hook) -> usize {
    acts(recording, |act| matches!(act, Act::Hook { hook, .. } if *hook == wanted))
}

#[test]
fn intel_recording_has_the_counts_of_its_list() {
    let r = recorded("vmx-b-pcid-ept0.trace.txt.xz");
    assert_eq!(r.meta.vendor, Some(Vendor::Intel));
    assert_eq!(r.meta.mmu, Some(MmuKind::Shadow));
    assert_eq!(r.meta.vpid, Some(true));
    assert_eq!(r.meta.kernel.as_deref(), Some("kvm-6.1-lts"));
    assert_eq!(r.meta.vcpus, 1);
    for feature in ["invpcid", "pcid"] {
        assert!(r.meta.features.iter().any(|f| f == feature), "{:?}", r.meta.features);
    }
    assert!(!r.damaged());
    // kvm_exit=351, kvm_entry=351, kvm_page_fault=33, kvm_inj_exception=5
    assert_eq!(acts(&r, |act| matches!(act, Act::Exit(_))), 351);
    assert_eq!(acts(&r, |act| matches!(act, Act::EntrySeen)), 351);
    assert_eq!(acts(&r, |act| matches!(act, Act::PageFault { .. })), 33);
    assert_eq!(acts(&r, |act| matches!(act, Act::Inject { .. })), 5);
    // vmx_flush_tlb_current=16, vmx_flush_tlb_all=5, vmx_flush_tlb_guest=4, vmx_flush_tlb_gva=1
    assert_eq!(hooks(&r, Hook::Current), 16);
    assert_eq!(hooks(&r, Hook::All), 5);
    assert_eq!(hooks(&r, Hook::Guest), 4);
    // kvm_mmu_load=8: each ends in a flush of its own
    assert_eq!(acts(&r, |act| matches!(act, Act::Load)), 8);
    let by_load = |act: &Act| matches!(act, Act::Hook { by: HookBy::Load, .. });
    assert_eq!(acts(&r, by_load), 8);
    // kvm_mmu_sync_roots=16, kvm_mmu_sync_prev_roots=4, vmx_load_mmu_pgd=9, kvm_mmu_free_roots=24
    assert_eq!(acts(&r, |act| matches!(act, Act::SyncRoots)), 16);
    assert_eq!(acts(&r, |act| matches!(act, Act::SyncPrevRoots)), 4);
    assert_eq!(acts(&r, |act| matches!(act, Act::LoadPgd { .. })), 9);
    assert_eq!(acts(&r, |act| matches!(act, Act::FreeRoots { .. })), 24);
    // kvm_mmu_reset_context=4, kvm_init_mmu=6, kvm_invalidate_pcid=4, kvm_flush_remote_tlbs=8
    assert_eq!(acts(&r, |act| matches!(act, Act::Reset { .. })), 4);
    assert_eq!(acts(&r, |act| matches!(act, Act::Init)), 6);
    assert_eq!(acts(&r, |act| matches!(act, Act::InvalidatePcid(_))), 4);
    assert_eq!(acts(&r, |act| matches!(act, Act::RemoteFlush { .. })), 8);
    // mmu_cache_miss=10 of the counters, kvm_arch_vcpu_load=280
    assert_eq!(acts(&r, |act| matches!(act, Act::SpNew { .. })), 10);
    assert_eq!(acts(&r, |act| matches!(act, Act::VcpuLoad(_))), 280);
    // kvm_set_cr4=5, kvm_handle_invpcid=7
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr4(_))), 5);
    assert_eq!(ops(&r, |op| matches!(op, Op::Invpcid(_))), 7);
    // kvm_fpu=532 and kvm_pio=268 are left out, nothing is unknown.
    assert_eq!(r.census.ignored["kvm_fpu"].0, 532);
    assert_eq!(r.census.ignored["kvm_pio"].0, 268);
    assert_eq!(r.census.understood["kvm_service_local_tlb_flush_requests"], 295);
    assert!(r.census.unknown.is_empty(), "{:?}", r.census.unknown);
}

#[test]
fn amd_recording_has_the_counts_of_grep() {
    let r = recorded("svm-tiny-npt0-head.trace.txt.xz");
    assert_eq!(r.meta.vendor, Some(Vendor::Amd));
    assert_eq!(r.meta.mmu, Some(MmuKind::Shadow));
    assert_eq!(r.meta.kernel.as_deref(), Some("kvm-6.1-lts"));
    // kvm_set_cr0 19 times, two of them by the emulator (em_clts); kvm_set_cr3 16, kvm_set_cr4 34.
    let emulated = |op: &Op| matches!(op, Op::Emul(inner) if matches!(**inner, Op::Cr0(_)));
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr0(_))) + ops(&r, emulated), 19);
    assert_eq!(ops(&r, emulated), 2);
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr3(_))), 16);
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr4(_))), 34);
    assert_eq!(ops(&r, |op| matches!(op, Op::Efer(_))), 4);
    // The exit, with its address, and kvm_mmu_invlpg tell one operation.
    assert_eq!(ops(&r, |op| matches!(op, Op::Invlpg(_))), 3);
    assert_eq!(ops(&r, |op| matches!(op, Op::Sregs(_))), 1);
    // svm_flush_tlb_asid 92 times: 79 as the tail of _current, 1 of _all, the rest guest flushes.
    assert_eq!(hooks(&r, Hook::Current), 79);
    assert_eq!(hooks(&r, Hook::All), 1);
    assert_eq!(hooks(&r, Hook::Guest), 92 - 79 - 1);
    assert_eq!(acts(&r, |act| matches!(act, Act::Load)), 55);
    assert_eq!(
        acts(&r, |act| matches!(act, Act::Hook { by: HookBy::Load, .. })),
        55,
        "each LOAD ends in one flush"
    );
    assert_eq!(acts(&r, |act| matches!(act, Act::Exit(_))), 255);
    assert_eq!(acts(&r, |act| matches!(act, Act::Reset { .. })), 41);
}

/// Lines by hand: task, thread 7, CPU 0, a microsecond apart.
fn lines(events: &[&str]) -> Recording {
    let mut text = String::from("# tracer: nop\n");
    for (at, event) in events.iter().enumerate() {
        text += &format!("  vm m-7   [000] d..1.  1.{:06}: {event}\n", at + 1);
    }
    import(text.as_bytes(), "test").expect("imports")
}

fn bodies(recording: &Recording) -> Vec<Body> {
    recording.records.iter().map(|record| record.body.clone()).collect()
}

#[test]
fn a_cr3_write_is_one_operation_however_often_it_is_told() {
    let r = lines(&[
        "kvm_exit: vcpu 0 reason CR_ACCESS rip 0x1 info1 0x3 info2 0x0",
        "kvm_cr: cr_write 3 = 0x8000000000005001",
        "whatever: (kvm_set_cr3+0x0/0x1 [kvm]) id=0 req=0x0 cr3=0x8000000000005001 old=0x4000",
        "x: (kvm_mmu_new_pgd+0x0/0x1 [kvm]) id=0 req=0x0 new_pgd=0x5001 pgd=0x4000 root=0x9000",
        "y: (kvm_service_local_tlb_flush_requests+0x0/0x1 [kvm]) id=0 req=0x2000",
        "z: (vmx_load_mmu_pgd+0x0/0x1 [kvm_intel]) id=0 req=0x0 root_hpa=0x8000 level=4",
        "kvm_entry: vcpu 0, rip 0x2",
    ]);
    assert_eq!(
        bodies(&r),
        [
            Body::Act(Act::EntrySeen),
            Body::Act(Act::Exit(Some(28))),
            Body::Op(Op::Cr3(0x8000_0000_0000_5001)),
            Body::Act(Act::RootSeen {
                slot: RootSlot::Current,
                pgd: Some(0x4000),
                root: Some(Hpa(0x9000)),
            }),
            Body::Act(Act::NewPgd(Some(RootLookup::Miss))),
            Body::Act(Act::Post(Request::LoadMmuPgd)),
            Body::Act(Act::Serve(Request::LoadMmuPgd)),
            Body::Act(Act::LoadPgd { root: Hpa(0x8000) }),
            Body::Act(Act::EntrySeen),
        ]
    );
    assert_eq!(r.records[1].line, 2, "the header is line 1");
    assert_eq!(r.records[2].time.0, 1000, "a microsecond after the first event");
    assert_eq!(r.meta.initial_regs[0].cr3, 0x4000);
}

#[test]
fn tracepoints_alone_still_tell_operations() {
    let r = lines(&[
        "kvm_exit: vcpu 0 reason CR_ACCESS rip 0x1 info1 0x4 info2 0x0",
        "kvm_cr: cr_write 4 = 0xa0",
        "kvm_entry: vcpu 0, rip 0x2",
        "kvm_exit: vcpu 0 reason INVLPG rip 0x1 info1 0x7000 info2 0x0",
        "kvm_entry: vcpu 0, rip 0x2",
        "kvm_exit: vcpu 0 reason MSR_WRITE rip 0x1 info1 0x0 info2 0x0",
        "kvm_msr: msr_write c0000080 = 0xd01",
    ]);
    let found: Vec<Op> = r.ops().map(|(_, op)| op.clone()).collect();
    let efer = Op::Efer(RegWrite::value(0xd01));
    assert_eq!(found, [Op::Cr4(RegWrite::value(0xa0)), Op::Invlpg(Gva(0x7000)), efer]);
}

#[test]
fn efer_is_told_before_what_it_causes_with_the_value_of_the_guest() {
    let r = lines(&[
        "kvm_exit: vcpu 0 reason MSR_WRITE rip 0x1 info1 0x0 info2 0x0",
        "a: (vmx_set_efer+0x0/0x1 [kvm_intel]) id=0 req=0x0 efer=0xd00 old=0x500",
        "b: (kvm_mmu_reset_context+0x0/0x1 [kvm]) id=0 req=0x0",
        "kvm_msr: msr_write c0000080 = 0x900",
    ]);
    let efer = Body::Op(Op::Efer(RegWrite::value(0x900)));
    assert_eq!(bodies(&r)[2..], [efer, Body::Act(Act::Reset { role_changed: None })]);
    assert_eq!(r.meta.initial_regs[0].efer, 0x500);
}

#[test]
fn invpcid_takes_its_operands_from_the_lines_behind() {
    let r = lines(&[
        "a: (kvm_handle_invpcid+0x0/0x1 [kvm]) id=0 req=0x0 type=0 gva=0x1051b0",
        "b: (kvm_mmu_invpcid_gva+0x0/0x1 [kvm]) id=0 req=0x0 gva=0x40000000 pcid=0x7",
        "a: (kvm_handle_invpcid+0x0/0x1 [kvm]) id=0 req=0x0 type=9 gva=0x1051b0",
    ]);
    let found: Vec<Op> = r.ops().map(|(_, op)| op.clone()).collect();
    let addr = Invpcid { kind: InvpcidType::Addr, pcid: 7, gva: Gva(0x4000_0000) };
    let bad = Invpcid { kind: InvpcidType::Reserved(9), pcid: 0, gva: Gva(0) };
    assert_eq!(found, [Op::Invpcid(addr), Op::Invpcid(bad)]);
}

#[test]
fn host_operations_migration_and_lost_events() {
    let r = lines(&[
        "a: (kvm_arch_vcpu_load+0x0/0x1 [kvm]) id=1 req=0x0 cpu=2 last=0",
        "b: (kvm_unmap_gfn_range+0x0/0x1 [kvm]) start=0x10 end=0x12",
        "c: (kvm_mmu_zap_all_fast+0x0/0x1 [kvm])",
        "nonsense: x=1",
    ]);
    let host = |op| Body::Op(Op::Host(Box::new(op)));
    let expected = [
        host(HostOp::Migrate { vcpu: VcpuId(1), pcpu: PcpuId(2) }),
        Body::Act(Act::VcpuLoad(PcpuId(2))),
        host(HostOp::Unmap { gpa: Gpa(0x10000), size: 0x2000 }),
        host(HostOp::ZapAll),
        Body::Act(Act::ZapAll),
    ];
    assert_eq!(bodies(&r), expected);
    assert_eq!(r.meta.vcpus, 2);
    assert_eq!(r.census.unknown["nonsense"], 1);
    let lost = b"# tracer: nop\nCPU:0 [LOST 12 EVENTS]\n v-1 [000] . 1.0: kvm_fpu: load\n";
    let r = import(&lost[..], "test").expect("imports");
    assert_eq!(bodies(&r), [Body::Gap(Some(12))]);
    assert_eq!(r.meta.losses, ["line 2: 12 events were lost"]);
}

#[test]
fn something_else_is_refused_by_name() {
    let error = import(&b"hello\nworld\n"[..], "letter.txt").expect_err("no recording");
    let message = error.to_string();
    assert!(message.contains("letter.txt") && message.contains("hello"), "{message}");
}

proptest::proptest! {
    #[test]
    fn nothing_panics(cut in 0usize..4000, flips in proptest::collection::vec(
        (0usize..4000, proptest::num::u8::ANY), 0..40))
    {
        let mut text = String::from("# tracer: nop\n");
        for event in ["kvm_exit: vcpu 0 reason CR_ACCESS rip 0x1 info1 0x4 info2 0x0",
            "kvm_cr: cr_write 4 = 0xa0", "x: (kvm_set_cr4+0x0/0x1 [kvm]) id=0 req=0x2 val=0xa0",
            "y: (handle_cr+0x6d6/0x890 [kvm_intel] <- kvm_set_cr4) ret=0",
            "kvm_msr: msr_write c0000080 = 0x900", "kvm_inj_exception: #PF (0x0)",
            "kvm_mmu_get_page: sp gen 0 gfn 0 l2 8-byte q0 direct wux nxe ad root 0 sync new"] {
            text += &format!(" v-7 [000] d..1. 1.000001: {event}\n");
        }
        let mut bytes = text.into_bytes();
        for (at, with) in flips {
            let at = at % bytes.len();
            bytes[at] = with;
        }
        bytes.truncate(cut.max(1));
        let _ = import(&bytes[..], "test");
    }
}

#[test]
fn probes_with_an_address_only_are_taken_by_well_known_names_and_that_is_said() {
    let text = "cpus=2\n  t-119 [000] 13.573745: set_cr0:  (ffffffffc05eb660) vcpu=0 old=0x10 \
                new=0x11 req=0x0\n  t-119 [000] 13.574159: set_cr0_ret: (ffffffffc05eb660 <- \
                ffffffffc06dff76) ret=0\n";
    let r = import(text.as_bytes(), "report").expect("imports");
    assert_eq!(bodies(&r), [Body::Op(Op::Cr0(RegWrite::value(0x11)))]);
    assert_eq!(r.census.understood["kvm_set_cr0 (return)"], 1);
    assert!(r.meta.evidence.iter().any(|e| e.starts_with("assumption: 2 events")));
}

/// More text than all blocks in hand hold: every line is read, in order, and keeps its number.
#[test]
fn long_text_is_read_line_by_line() {
    let lines = 100_000_u32;
    let line = |n: u32| {
        let (seconds, rest) = (n / 1_000_000, n % 1_000_000);
        format!("vmm-1 [000] ..... {seconds}.{rest:06}: kvm_cr: cr_write 3 = 0x{n:x}000\n")
    };
    // The thread's vCPU is known from an entry.
    let entry = "vmm-1 [000] ..... 0.000000: kvm_entry: vcpu 0, rip 0x7000\n".to_owned();
    let text: String = std::iter::once(entry).chain((0..lines).map(line)).collect();
    assert!(text.len() > 5 << 20, "{}", text.len());
    let recording = import(text.as_bytes(), "long").expect("it imports");
    let written = recording.ops().filter_map(|(record, op)| match op {
        Op::Cr3(value) => Some((record.line, *value)),
        _ => None,
    });
    assert!(written.eq((0..lines).map(|n| (n + 2, u64::from(n) << 12))));
}
