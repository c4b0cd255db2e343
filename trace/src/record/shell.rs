//! Scripts that define the probes in tracefs and leave the recording to tracefs itself, trace-cmd or
//! perf.

use std::fmt::Write as _;
use std::path::Path;

use super::Flavour;
use super::resolve::Placed;

/// Kilobytes of buffer on each CPU: a guest that writes CR3 all the time fills this in seconds.
const BUFFER: u32 = 65536;

/// Asks for a probe in the script, and says what was refused.
const PROBE: &str = r#"probe() {
  { echo "$2" >> "$T/kprobe_events"; } 2>/dev/null && return
  if [ "$3" != "$2" ] && { echo "$3" >> "$T/kprobe_events"; } 2>/dev/null; then
    echo "only registers are recorded of $1" >&2
  else
    echo "the kernel refuses a probe on $1" >&2
  fi
}
"#;

/// What was set up is taken down however the script ends: `undo`, then the probes.
fn head(tracing: &Path, probes: &[Placed], flavour: Flavour, setup: &str, undo: &str) -> String {
    let mut text = format!(
        "#!/bin/sh\nset -eu\nout=${{1:-{}}}\nT={}\n{setup}",
        flavour.file(),
        quoted(&tracing.display().to_string())
    );
    text += "cleanup() {\n  status=$?\n  set +e\n";
    text += undo;
    for probe in probes {
        for end in if probe.returns { &["_ret", ""][..] } else { &[""] } {
            let _ =
                writeln!(text, "  echo '-:kvmtlb/{}{end}' >> \"$T/kprobe_events\"", probe.function);
        }
    }
    text += "  rm -f \"$out.part\"\n  [ $status = 0 ] || exit 2\n} 2>/dev/null\n";
    text
}

fn ask(probes: &[Placed]) -> String {
    let mut text = PROBE.to_owned();
    for probe in probes {
        let function = probe.function;
        let (wanted, plain) = (probe.definition(), probe.registers());
        let _ = writeln!(text, "probe {function} '{wanted}' '{plain}'");
        if let Some(line) = probe.on_return() {
            let _ = writeln!(text, "probe '{function} (return)' '{line}' '{line}'");
        }
    }
    text
}

/// An instance of its own leaves other users of the tracefs alone. Ctrl-C ends the wait, not the
/// script.
pub(super) fn tracefs(tracing: &Path, probes: &[Placed], events: &[&str], seconds: u64) -> String {
    let undo = "  echo 0 > \"$I/tracing_on\"\n  echo 0 > \"$I/events/enable\"\n  rmdir \"$I\"\n";
    let setup = "I=$T/instances/tlbscope\n";
    let mut text = head(tracing, probes, Flavour::Tracefs, setup, undo);
    text += "mkdir \"$I\" || exit 2\ntrap cleanup EXIT\ntrap 'exit 1' INT TERM HUP\n";
    text += &ask(probes);
    let _ = writeln!(text, "echo 0 > \"$I/tracing_on\"\necho {BUFFER} > \"$I/buffer_size_kb\"");
    // All CPUs by one clock; thread groups tell VMs apart.
    text += "echo mono > \"$I/trace_clock\" || true\n";
    text += "echo 1 > \"$I/options/record-tgid\" || true\n";
    for event in events.iter().chain(&["kvmtlb"]) {
        let _ = writeln!(text, "echo 1 > \"$I/events/{event}/enable\"");
    }
    let _ = writeln!(text, "trap : INT\necho 1 > \"$I/tracing_on\"\nsleep {seconds} || true");
    text += "echo 0 > \"$I/tracing_on\"\ncat \"$I/trace\" > \"$out.part\"\n";
    text += "mv \"$out.part\" \"$out\"\n";
    text
}

/// trace-cmd records events of tracefs; the file carries formats and symbols.
pub(super) fn trace_cmd(
    tracing: &Path,
    probes: &[Placed],
    events: &[&str],
    seconds: u64,
) -> String {
    let mut text = head(tracing, probes, Flavour::TraceCmd, "", "");
    text += "trap cleanup EXIT\ntrap 'exit 1' INT TERM HUP\n";
    text += &ask(probes);
    let _ = write!(text, "trap : INT\ntrace-cmd record -q -o \"$out.part\" -C mono -b {BUFFER}");
    for event in events {
        let _ = write!(text, " \\\n  -e {}", event.replace('/', ":"));
    }
    let _ = writeln!(text, " \\\n  -e kvmtlb sleep {seconds} || [ -s \"$out.part\" ]");
    text += "mv \"$out.part\" \"$out\"\n";
    text
}

/// perf.data knows a probe by its event's name alone, and addresses by no name: definitions and
/// symbols are put beside it.
pub(super) fn perf(tracing: &Path, probes: &[Placed], events: &[&str], seconds: u64) -> String {
    let mut text = head(tracing, probes, Flavour::Perf, "", "");
    text += "trap cleanup EXIT\ntrap 'exit 1' INT TERM HUP\n";
    text += &ask(probes);
    text += "grep ':kvmtlb/' \"$T/kprobe_events\" > \"$out.probes\" || true\n";
    text += "grep '\\[kvm' /proc/kallsyms > \"$out.kallsyms\" || true\n";
    text += "trap : INT\nperf record -q -a -k CLOCK_MONOTONIC -m 4096 -o \"$out.part\"";
    for event in events {
        let _ = write!(text, " \\\n  -e {}", event.replace('/', ":"));
    }
    let _ = writeln!(text, " \\\n  -e 'kvmtlb:*' -- sleep {seconds} || [ -s \"$out.part\" ]");
    text += "mv \"$out.part\" \"$out\"\n";
    text += "echo \"read it with --kallsyms $out.kallsyms --probes $out.probes\" >&2\n";
    text
}

/// A word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
