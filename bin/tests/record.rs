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
    let syntax = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
    assert!(syntax.success());
}

#[test]
fn fields_are_read_through_btf_where_the_kernel_can() {
    let host = host("kvm_set_cr3 [kvm]\n", "\t<argname>[->field[->field|.field...]],\n");
    let script = text(&record(host.path(), &["--vendor", "intel"]).stdout);
    assert!(script.contains("new=%si:x64 vcpu=vcpu->vcpu_id:u32"), "{script}");
    assert!(script.contains("old=vcpu->arch.cr3:x64'"), "{script}");
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
