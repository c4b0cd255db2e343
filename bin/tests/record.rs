//! `record` against made-up hosts.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn record(root: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlbscope"));
    command.arg("record").arg("--root").arg(root).args(more).output().unwrap()
}

fn host(functions: &str, readme: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tracing = dir.path().join("sys/kernel/tracing");
    fs::create_dir_all(tracing.join("events/kvm/kvm_cr")).unwrap();
    fs::create_dir_all(dir.path().join("sys/module/kvm_amd")).unwrap();
    fs::write(tracing.join("available_filter_functions"), functions).unwrap();
    fs::write(tracing.join("README"), readme).unwrap();
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn older_names_and_registers_only_where_the_kernel_has_no_more() {
    let host = host("kvm_mmu_invalidate_gva [kvm]\nvmx_vcpu_run [kvm_intel]\n", "");
    let out = record(host.path(), &[]);
    let (script, lost) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{lost}");
    assert!(script.contains("'p:kvmtlb/kvm_mmu_invalidate_gva kvm_mmu_invalidate_gva gva=%dx:x64"));
    assert!(script.contains("events/kvm/kvm_cr/enable"));
    assert!(!script.contains("vmx_vcpu_run") && !script.contains("vcpu->"));
    assert!(lost.contains("svm_vcpu_run or kvm_load_guest_xsave_state"), "{lost}");
    assert!(lost.contains("BTF") && lost.contains("no tracepoint kvm/kvm_exit"), "{lost}");
}

#[test]
fn every_flavour_is_a_shell_script_that_records_what_there_is() {
    let host = host("kvm_set_cr3 [kvm]\nkvm_mmu_load [kvm]\n", "");
    for (flavour, does) in [
        ("tracefs", "cat \"$I/trace\""),
        ("trace-cmd", "-e kvm:kvm_cr"),
        ("perf", "-e 'kvmtlb:*'"),
        ("bpftrace", "kprobe:kvm_set_cr3"),
    ] {
        let out = record(host.path(), &["--flavour", flavour]);
        assert!(out.status.success(), "{flavour}: {}", text(&out.stderr));
        let script = text(&out.stdout);
        assert!(script.contains(does), "{flavour}: {script}");
        for shell in ["sh", "bash"] {
            let syntax = Command::new(shell).args(["-n", "-c", &script]).status().unwrap();
            assert!(syntax.success(), "{flavour} by {shell}");
        }
    }
}

/// What the script does against files that stand for a tracefs.
#[test]
fn run_writes_the_files_of_tracefs() {
    let host = host("kvm_set_cr3 [kvm]\nkvm_mmu_load [kvm]\n", "");
    let tracing = host.path().join("sys/kernel/tracing");
    // Removed by the script at its end, which a real tracefs allows with its files in place.
    let instance = tracing.join("instances/tlbscope");
    fs::create_dir_all(tracing.join("instances")).unwrap();
    fs::write(tracing.join("kprobe_events"), "").unwrap();
    let bin = host.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    // The kernel makes an instance's files with its folder.
    let mkdir = "#!/bin/sh\n/bin/mkdir -p \"$1/events/kvm/kvm_cr\" \"$1/events/kvmtlb\" \"$1/options\" &&\n\
         echo recorded > \"$1/trace\"\n";
    script(&bin.join("mkdir"), mkdir);
    script(&bin.join("rmdir"), "#!/bin/sh\n");
    let file = host.path().join("trace.txt");
    let out = Command::new(env!("CARGO_BIN_EXE_tlbscope"))
        .args(["record", "--seconds", "0", "--root"])
        .arg(host.path())
        .arg("--run")
        .arg(&file)
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(fs::read_to_string(&file).unwrap(), "recorded\n");
    let probes = fs::read_to_string(tracing.join("kprobe_events")).unwrap();
    let lines: Vec<&str> = probes.lines().collect();
    assert_eq!(lines[0], "p:kvmtlb/kvm_set_cr3 kvm_set_cr3 new=%si:x64");
    assert_eq!(lines[1], "r:kvmtlb/kvm_set_cr3_ret kvm_set_cr3 ret=$retval:s32");
    assert_eq!(lines[2], "p:kvmtlb/kvm_mmu_load kvm_mmu_load");
    assert_eq!(lines[4..6], ["-:kvmtlb/kvm_set_cr3_ret", "-:kvmtlb/kvm_set_cr3"]);
    let read = |name: &str| fs::read_to_string(instance.join(name)).unwrap();
    assert_eq!(read("events/kvm/kvm_cr/enable"), "1\n");
    assert_eq!(read("events/kvmtlb/enable"), "1\n");
    assert_eq!(read("events/enable"), "0\n", "at the end");
    assert_eq!(read("tracing_on"), "0\n");
    assert_eq!(read("trace_clock"), "mono\n");
}

/// The other programs are called with every event, and leave a file by its name alone.
#[test]
fn run_calls_the_program_of_the_flavour() {
    let host = host("kvm_set_cr3 [kvm]\n", "");
    fs::write(host.path().join("sys/kernel/tracing/kprobe_events"), "").unwrap();
    let bin = host.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let writes = "#!/bin/sh\nwhile [ $# -gt 0 ]; do\n  [ \"$1\" = -o ] && out=$2\n  args=\"$args $1\"\n  \
                  shift\ndone\necho \"$args\" > \"$out\"\n";
    script(&bin.join("trace-cmd"), writes);
    script(&bin.join("perf"), writes);
    // Two CPUs' lines, as they come.
    let lines = "#!/bin/sh\necho 'kvm-7 (5) [001] ..... 2.000000001: kvm_set_cr3: (kvm_set_cr3+0x0/0x0) new=0x1000'\n\
                 echo 'kvm-6 (5) [000] ..... 1.000000009: kvm_entry: vcpu_id=0'\n";
    script(&bin.join("bpftrace"), lines);
    for (flavour, holds) in [
        ("trace-cmd", "-e kvm:kvm_cr -e kvmtlb sleep 1"),
        ("perf", "-e kvm:kvm_cr -e kvmtlb:* -- sleep 1"),
        (
            "bpftrace",
            "# tracer: nop\nkvm-6 (5) [000] ..... 1.000000009: kvm_entry: vcpu_id=0\nkvm-7",
        ),
    ] {
        let file = host.path().join(flavour);
        let out = Command::new(env!("CARGO_BIN_EXE_tlbscope"))
            .args(["record", "--seconds", "1", "--flavour", flavour, "--root"])
            .arg(host.path())
            .arg("--run")
            .arg(&file)
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{flavour}: {}", text(&out.stderr));
        let got = fs::read_to_string(&file).unwrap();
        assert!(got.contains(holds), "{flavour}: {got}");
        assert!(!file.with_file_name(format!("{flavour}.part")).exists());
    }
}

fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn fields_are_read_through_btf_where_the_kernel_can() {
    let host = host("kvm_set_cr3 [kvm]\n", "\t<argname>[->field[->field|.field...]],\n");
    let script = text(&record(host.path(), &["--vendor", "intel"]).stdout);
    assert!(script.contains("new=%si:x64 vcpu=vcpu->vcpu_id:u32"), "{script}");
    assert!(script.contains("old=vcpu->arch.cr3:x64'"), "{script}");
    assert!(!script.contains("prev_roots"), "the kernel looks up no arrays");
}

#[test]
fn hosts_that_cannot_record_are_told_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let out = record(empty.path(), &[]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("mount -t tracefs"));
    let out = record(host("vfs_read\n", "").path(), &[]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("modprobe"));
}

#[test]
fn a_recording_that_cannot_start_leaves_no_file() {
    let host = host("kvm_set_cr3 [kvm]\n", "");
    let file = host.path().join("trace.txt");
    // No folder of instances: the script's first step fails.
    let out = record(host.path(), &["--run", file.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2));
    assert!(!file.exists());
}
