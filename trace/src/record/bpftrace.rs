//! A bpftrace program whose lines read like those of tracefs, put in order of time: bpftrace hands
//! on the lines of each CPU as they come.

use std::fmt::Write as _;

use super::resolve::{Argument, Place, Placed};
use super::{Flavour, Vendor};

/// What the importer reads of the tracepoints, as `name=FIELD`, with its format.
const TRACEPOINTS: &[(&str, &[(&str, &str)])] = &[
    ("kvm/kvm_cr", &[("rw", "%d"), ("cr", "%d"), ("val", "0x%lx")]),
    ("kvm/kvm_entry", &[("vcpu_id", "%d")]),
    ("kvm/kvm_msr", &[("write", "%d"), ("ecx", "0x%x"), ("data", "0x%lx")]),
    ("kvm/kvm_page_fault", &[("fault_address", "0x%lx"), ("error_code", "0x%lx")]),
    ("kvm/kvm_inj_exception", &[("exception", "%d"), ("has_error", "%d"), ("error_code", "0x%x")]),
    ("kvm/kvm_emulate_insn", &[]),
    ("kvm/kvm_userspace_exit", &[]),
    ("kvmmmu/kvm_mmu_zap_all_fast", &[]),
];

/// The start of every line: thread and group, CPU, flags, time, event.
const STAMP: &str = "kvm-%d (%d) [%03d] ..... %llu.%09llu: ";
const STAMPED: &str = "tid, pid, cpu, nsecs / 1000000000, nsecs % 1000000000";

pub(super) fn script(
    probes: &[Placed],
    events: &[&str],
    vendor: Vendor,
    seconds: u64,
    lost: &mut Vec<String>,
) -> String {
    let mut program = String::new();
    for event in events {
        if *event == "kvm/kvm_exit" {
            // The number of a reason means nothing without its vendor.
            let isa = if vendor == Vendor::Intel { 1 } else { 2 };
            let (format, values) = line("kvm_exit", &[("exit_reason", "%d")]);
            let _ = writeln!(
                program,
                "tracepoint:kvm:kvm_exit {{ printf(\"{format} isa={isa}\\n\", {values}); }}"
            );
        } else if let Some((_, fields)) = TRACEPOINTS.iter().find(|(name, _)| name == event) {
            let name = event.rsplit('/').next().unwrap_or(event);
            let (format, values) = line(name, fields);
            let at = event.replace('/', ":");
            let _ = writeln!(program, "tracepoint:{at} {{ printf(\"{format}\\n\", {values}); }}");
        } else {
            lost.push(format!("bpftrace: {event} is left out, whose text only the kernel makes"));
        }
    }
    for probe in probes {
        program += &on_entry(probe);
    }
    lost.push(
        "bpftrace: returns are left out: what the emulator writes reads as the guest's".into(),
    );
    wrap(&program, seconds)
}

/// Format and values of a tracepoint's line.
fn line(name: &str, fields: &[(&str, &str)]) -> (String, String) {
    let (mut format, mut values) = (format!("{STAMP}{name}:"), STAMPED.to_owned());
    for (field, how) in fields {
        let _ = write!(format, " {field}={how}");
        let _ = write!(values, ", args.{field}");
    }
    (format, values)
}

fn on_entry(probe: &Placed) -> String {
    let name = probe.function;
    let (mut format, mut values) = (format!("{STAMP}{name}: ({name}+0x0/0x0)"), STAMPED.to_owned());
    for argument in &probe.arguments {
        let Some((value, how)) = value(argument) else { continue };
        let _ = write!(format, " {}={how}", argument.name);
        let _ = write!(values, ", {value}");
    }
    format!("kprobe:{name} {{ printf(\"{format}\\n\", {values}); }}\n")
}

/// An argument as an expression, and its format.
fn value(argument: &Argument) -> Option<(String, &'static str)> {
    const REGISTERS: [(&str, &str); 4] =
        [("%di", "arg0"), ("%si", "arg1"), ("%dx", "arg2"), ("%cx", "arg3")];
    let of = |register: &str| REGISTERS.iter().find(|(name, _)| *name == register).map(|r| r.1);
    if argument.kind == "symbol" {
        return Some(("ksym(*(uint64 *)reg(\"sp\"))".to_owned(), "%s"));
    }
    let (kind, how) = match argument.kind {
        "u8" => ("uint8", "%d"),
        "u32" => ("uint32", "%d"),
        "s32" => ("int32", "%d"),
        "x32" => ("uint32", "0x%x"),
        _ => ("uint64", "0x%lx"),
    };
    match &argument.place {
        Place::Register(register) => Some((format!("({kind}){}", of(register)?), how)),
        Place::Behind(register, offsets) => {
            let (last, pointers) = offsets.split_last()?;
            let follow = |at: String, offset: &u32| format!("*(uint64 *)({at} + {offset})");
            let at = pointers.iter().fold(of(register)?.to_owned(), follow);
            Some((format!("*({kind} *)({at} + {last})"), how))
        }
        Place::Named(_) => None,
    }
}

/// The script around the program.
fn wrap(program: &str, seconds: u64) -> String {
    let out = Flavour::Bpftrace.file();
    format!(
        r#"#!/bin/sh
set -eu
out=${{1:-{out}}}
cleanup() {{
  status=$?
  rm -f "$out.part" "$out.bt" "$out.raw"
  [ $status = 0 ] || exit 2
}}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
cat > "$out.bt" <<'END'
{program}END
trap : INT
BPFTRACE_PERF_RB_PAGES=4096 BPFTRACE_MAX_PROBES=1024 \
  timeout -s INT {seconds} bpftrace -q "$out.bt" > "$out.raw" || [ -s "$out.raw" ]
if grep -q '^Lost ' "$out.raw"; then
  echo "events were lost: record for a shorter time, or by another flavour" >&2
  exit 2
fi
{{ echo '# tracer: nop'; grep '^kvm-' "$out.raw" | sort -s -k5,5n; }} > "$out.part"
mv "$out.part" "$out"
"#
    )
}
