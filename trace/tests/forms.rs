//! The same runs of a scripted guest in every form of recording. Counts were made with grep and awk
//! on the text that `trace-cmd report` prints, never by the importer.

use std::io::Read;
use std::path::PathBuf;

use tlbscope_trace::act::{Act, Hook};
use tlbscope_trace::addr::{Sp, VcpuId};
use tlbscope_trace::import::{ImportError, Moment, VmChoice, ftrace};
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::{Body, Error, Options, Record, Recording, open, open_with, source};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(name)
}

fn recorded(name: &str) -> Recording {
    open(&path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Records without lines, which binary forms lack, and with times in microseconds of the
/// recorder's clock, which texts round down to; `base` is that clock at the first record.
fn coarse(records: &[Record], base: u64) -> Vec<(u64, Actor, Body)> {
    let coarse =
        |record: &Record| ((base + record.time.0) / 1000, record.actor, record.body.clone());
    records.iter().map(coarse).collect()
}

/// Without the shadow pages' names, which `trace-cmd report` prints in part only.
fn nameless(records: &[Record]) -> Vec<(Actor, Body)> {
    let mut found: Vec<_> =
        records.iter().map(|record| (record.actor, record.body.clone())).collect();
    for (_, body) in &mut found {
        if let Body::Act(
            Act::SpNew { sp, .. }
            | Act::SpFound { sp }
            | Act::SpUnsync { sp }
            | Act::SpSync { sp, .. }
            | Act::SpZap { sp },
        ) = body
        {
            *sp = Sp(0);
        }
    }
    found
}

fn ops(recording: &Recording, wanted: impl Fn(&Op) -> bool) -> usize {
    let inner = |op: &Op| match op {
        Op::Emul(inner) => wanted(inner),
        other => wanted(other),
    };
    recording.ops().filter(|(_, op)| inner(op)).count()
}

fn acts(recording: &Recording, wanted: impl Fn(&Act) -> bool) -> usize {
    recording.acts().filter(|(_, act)| wanted(act)).count()
}

#[test]
fn a_trace_dat_has_the_counts_of_awk() {
    let r = recorded("svm-tiny-npt0.trace.dat");
    assert_eq!(r.meta.form, "trace.dat");
    assert_eq!(r.meta.kernel.as_deref(), Some("kvm-6.1-lts"));
    assert!(r.meta.evidence.iter().any(|e| e.contains("6.1.0-56-amd64")), "{:?}", r.meta.evidence);
    assert!(!r.damaged(), "{:?}", r.meta.losses);
    // set_cr0 56, set_cr3 97, set_cr4 151, invpcid 11; kvm_exit and kvm_entry 1899 each
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr0(_))), 56);
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr3(_))), 97);
    assert_eq!(ops(&r, |op| matches!(op, Op::Cr4(_))), 151);
    assert_eq!(ops(&r, |op| matches!(op, Op::Invpcid(_))), 11);
    assert_eq!(acts(&r, |act| matches!(act, Act::Exit(_))), 1899);
    assert_eq!(acts(&r, |act| matches!(act, Act::EntrySeen)), 1899);
    // mmu_load 180, mmu_reset 133, free_roots 411, sync_roots 347, kvm_page_fault 488
    assert_eq!(acts(&r, |act| matches!(act, Act::Load)), 180);
    assert_eq!(acts(&r, |act| matches!(act, Act::Reset { .. })), 133);
    assert_eq!(acts(&r, |act| matches!(act, Act::FreeRoots { .. })), 411);
    assert_eq!(acts(&r, |act| matches!(act, Act::SyncRoots)), 347);
    assert_eq!(acts(&r, |act| matches!(act, Act::PageFault { .. })), 488);
    // flush_current 267, flush_all 88; flush_asid 431, of which 267 + 88 are tails of those.
    let hooks = |kind: Hook| acts(&r, |act| matches!(act, Act::Hook { hook, .. } if *hook == kind));
    assert_eq!((hooks(Hook::Current), hooks(Hook::All)), (267, 88));
    assert_eq!(hooks(Hook::Guest), 431 - 267 - 88);
    // kvm_pio 437 and the markers 436 are left out by design; nothing is unknown.
    assert_eq!(r.census.ignored["kvm_pio"].0, 437);
    assert_eq!(r.census.ignored["print"].0, 436);
    assert!(r.census.unknown.is_empty(), "{:?}", r.census.unknown);
}

#[test]
fn text_and_trace_dat_tell_the_same() {
    let text = recorded("svm-tiny-npt0.trace.txt.zst");
    let binary = recorded("svm-tiny-npt0.trace.dat");
    // The clock at the first event, `13.404765` in the text; the rest of it is 0 to 999 ns.
    let base = 13_404_765_000;
    let text_times = coarse(&text.records, base);
    let near = |(a, b): (&(u64, Actor, Body), &(u64, Actor, Body))| {
        a.1 == b.1 && a.2 == b.2 && a.0.abs_diff(b.0) <= 1
    };
    let binary_times = coarse(&binary.records, base);
    assert_eq!(text_times.len(), binary_times.len());
    let wrong = text_times.iter().zip(&binary_times).position(|pair| !near(pair));
    assert_eq!(wrong.map(|at| (&text_times[at], &binary_times[at])), None);
    assert_eq!(text.meta.initial_regs, binary.meta.initial_regs);
    assert_eq!(text.meta.features, binary.meta.features);
}

#[test]
fn version_6_tells_the_beginning_of_it() {
    let head = recorded("svm-tiny-npt0-head.v6.trace.dat.xz");
    let whole = recorded("svm-tiny-npt0.trace.dat");
    assert!(!head.damaged() && head.records.len() > 1500, "{:?}", head.meta.losses);
    // What later events complete is open where the file ends.
    let sure = head.records.len() - 20;
    assert_eq!(head.records[..sure], whole.records[..sure]);
}

#[test]
fn the_report_tells_the_same_when_it_knows_the_functions() {
    let mut options = Options::default();
    let mut kallsyms = Vec::new();
    let mut file = source::open(&path("svm-tiny-npt0.kallsyms.xz")).expect("opens");
    file.read_to_end(&mut kallsyms).expect("unpacks");
    assert!(options.symbols.add_kallsyms(&kallsyms) > 1000);
    let report = open_with(&path("svm-tiny-npt0.report.txt.zst"), &options).expect("imports");
    assert_eq!(report.meta.form, "trace-cmd report");
    let text = recorded("svm-tiny-npt0.trace.txt.zst");
    assert_eq!(nameless(&report.records), nameless(&text.records));
    assert!(report.meta.evidence.iter().all(|e| !e.starts_with("assumption")));
    // Without them it takes the names for what they say, and says so; what the emulator did is
    // not told from what an exit did.
    let assumed = recorded("svm-tiny-npt0.report.txt.zst");
    assert_eq!(assumed.records.len(), text.records.len());
    assert!(assumed.meta.evidence.iter().any(|e| e.starts_with("assumption")));
}

#[test]
fn perf_data_and_perf_script_tell_the_same() {
    let data = recorded("svm-tiny-npt0-2vcpu.perf.data.zst");
    let script = recorded("svm-tiny-npt0-2vcpu.perf.script.txt.zst");
    assert_eq!((data.meta.form.as_str(), script.meta.form.as_str()), ("perf.data", "perf script"));
    assert_eq!(data.meta.vcpus, 2);
    let bodies = |r: &Recording| -> Vec<(Actor, Body)> {
        r.records.iter().map(|record| (record.actor, record.body.clone())).collect()
    };
    assert!(data.records.len() > 9000 && !data.damaged());
    assert_eq!(bodies(&data), bodies(&script));
    let apart = data.records.iter().zip(&script.records);
    let most = apart.map(|(a, b)| a.time.0.abs_diff(b.time.0)).max();
    assert!(most <= Some(1000), "{most:?}");
}

#[test]
fn what_a_page_lost_is_a_gap() {
    let mut bytes = Vec::new();
    let file = path("svm-tiny-npt0-head.v6.trace.dat.xz");
    source::open(&file).expect("opens").read_to_end(&mut bytes).expect("unpacks");
    // The pages end the file: 40 of CPU 0, one of CPU 1. Bit 31 of the commit (byte 8) of the
    // third says that something was lost before it.
    let page = bytes.len() - 39 * 4096;
    bytes[page + 11] |= 0x80;
    let mut records = Vec::new();
    let mut input = std::io::Cursor::new(bytes);
    let imported = tlbscope_trace::import::dat::stream(
        &mut input,
        "lost",
        None,
        &Options::default(),
        &mut records,
    )
    .expect("imports");
    let gaps: Vec<&Record> = records.iter().filter(|r| matches!(r.body, Body::Gap(None))).collect();
    assert_eq!(gaps.len(), 1);
    assert_eq!(imported.meta.losses.len(), 1, "{:?}", imported.meta.losses);
}

/// Two VMs on four threads; each line is `thread vCPU`.
fn two_vms(tgid: bool) -> String {
    let mut text = String::from("# tracer: nop\n");
    for (at, (group, thread, vcpu)) in
        [(100, 101, 0), (100, 102, 1), (200, 201, 0), (100, 101, 0), (200, 202, 1)]
            .iter()
            .enumerate()
    {
        let group = if tgid { format!(" ({group:>5})") } else { String::new() };
        for (step, event) in [
            format!("kvm_exit: vcpu {vcpu} reason CR_ACCESS rip 0x1 info1 0x4 info2 0x0"),
            format!("kvm_cr: cr_write 4 = 0x{thread:x}"),
            format!("kvm_entry: vcpu {vcpu}, rip 0x2"),
        ]
        .iter()
        .enumerate()
        {
            text += &format!("  vmm-{thread}{group} [000] d..1.  1.{at:03}{step:03}: {event}\n");
        }
    }
    text
}

fn import_with(text: &str, options: &Options) -> Result<Vec<Record>, ImportError> {
    let mut records = Vec::new();
    ftrace::stream(text.as_bytes(), "test", options, &mut records)?;
    Ok(records)
}

#[test]
fn several_vms_are_told_apart_and_one_must_be_chosen() {
    for tgid in [true, false] {
        let text = two_vms(tgid);
        let error = import_with(&text, &Options::default()).expect_err("ambiguous");
        let message = error.to_string();
        let (a, b) = if tgid { (100, 200) } else { (101, 201) };
        for vm in [a, b] {
            assert!(message.contains(&format!("--vm {vm}")), "{message}");
        }
        let written = |vm: VmChoice| -> Vec<u64> {
            let options = Options { vm, ..Options::default() };
            let records = import_with(&text, &options).expect("imports");
            let ops = records.iter().filter_map(|record| match &record.body {
                Body::Op(Op::Cr4(write)) => Some(write.apply(0)),
                _ => None,
            });
            ops.collect()
        };
        assert_eq!(written(VmChoice::Number(a)), [101, 102, 101]);
        assert_eq!(written(VmChoice::Number(b)), [201, 202]);
        assert_eq!(written(VmChoice::All).len(), 5);
        let options = Options { vm: VmChoice::Number(7), ..Options::default() };
        assert!(matches!(import_with(&text, &options), Err(ImportError::NoVm { vm: 7, .. })));
    }
}

#[test]
fn a_part_is_cut_out_by_vcpu_and_time() {
    let text = two_vms(true);
    let options = Options {
        vm: VmChoice::Number(100),
        vcpus: vec![VcpuId(0)],
        // The second visit of vCPU 0 is 3 ms after the first.
        from: Some(Moment::parse("1ms").expect("a time")),
        to: Some(Moment::parse("@1.003001").expect("a time")),
        ..Options::default()
    };
    let records = import_with(&text, &options).expect("imports");
    assert!(records.iter().all(|r| r.actor == Actor::Vcpu(VcpuId(0)) && r.time.0 >= 3_000_000));
    assert_eq!(records.iter().filter(|r| matches!(r.body, Body::Op(_))).count(), 1);
    assert!(!records.iter().any(|r| r.time.0 > 3_001_000));
    assert!(Moment::parse("1h").is_err());
}

#[test]
fn nothing_of_kvm_is_an_error_that_says_so() {
    let only_header = import_with("# tracer: nop\n#\n", &Options::default());
    assert!(only_header.expect_err("nothing").to_string().contains("no events at all"));
    let other = "# tracer: nop\n t-1 [000] d. 1.000001: sched_switch: prev=1\n";
    let message = import_with(other, &Options::default()).expect_err("nothing").to_string();
    assert!(message.contains("sched_switch"), "{message}");
}

#[test]
fn a_cut_packed_file_gives_what_was_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read(path("svm-tiny-npt0.trace.txt.zst")).expect("reads");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut plain = source::open(&path("svm-tiny-npt0.trace.txt.zst")).expect("opens");
    std::io::copy(&mut plain, &mut gz).expect("packs");
    for (name, bytes) in [("cut.zst", text), ("cut.gz", gz.finish().expect("packs"))] {
        let file = folder.path().join(name);
        std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("writes");
        let r = open(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(r.damaged() && r.records.len() > 3000, "{name}: {} records", r.records.len());
    }
    // xz unpacks in pieces of up to 64 KiB: a small file that is cut gives nothing.
    let bytes = std::fs::read(path("vmx-b-pcid-ept0.trace.txt.xz")).expect("reads");
    let file = folder.path().join("cut.xz");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("writes");
    let ruined = open(&file).expect_err("nothing");
    assert!(matches!(ruined, Error::Source(source::SourceError::Ruined { .. })), "{ruined}");
    // Of a trace.dat in version 7 the list of its parts stands at the end.
    let bytes = std::fs::read(path("svm-tiny-npt0-head.trace.dat")).expect("reads");
    let file = folder.path().join("cut.dat");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("writes");
    assert!(matches!(open(&file), Err(Error::Import(ImportError::Container { .. }))));
}
