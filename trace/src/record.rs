//! How to record on a host: which tracepoints and functions its kernel has, and the script that
//! records them under names and arguments the importer reads.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

mod probes;

use probes::{PROBES, Probe, TRACEPOINTS};

/// Whose virtualization extension the host uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VMX.
    Intel,
    /// SVM.
    Amd,
}

/// Why no recipe can be given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither mount point holds a tracefs.
    #[error("no tracefs is mounted: run `mount -t tracefs nodev /sys/kernel/tracing` as root")]
    NoTracefs,
    /// The tracefs is there but closed.
    #[error(
        "{path} cannot be read: run as root; in a container or under kernel lockdown, \
         run on the host itself or start it without lockdown",
        path = path.display()
    )]
    Locked {
        /// What could not be read.
        path: PathBuf,
        /// The system's own word.
        source: io::Error,
    },
    /// KVM's functions are not in the kernel.
    #[error("KVM is not loaded: run `modprobe kvm_intel` or `modprobe kvm_amd` as root")]
    NoKvm,
    /// Neither vendor module is loaded.
    #[error("neither kvm_intel nor kvm_amd is loaded: give --vendor")]
    NoVendor,
}

/// What a recording script does on this host, and what it cannot show.
#[derive(Debug)]
pub struct Recipe {
    /// The shell script.
    pub script: String,
    /// What the recording will lack, one sentence each.
    pub lost: Vec<String>,
}

/// The recipe for the host whose file system starts at `root`.
///
/// # Errors
///
/// When the tracefs is absent or closed, or KVM is not loaded.
pub fn recipe(root: &Path, vendor: Option<Vendor>, seconds: u64) -> Result<Recipe, Error> {
    let tracing = tracefs(root)?;
    let functions = functions(root, &tracing)?;
    if !functions.iter().any(|name| name.starts_with("kvm_")) {
        return Err(Error::NoKvm);
    }
    let vendor = vendor.or_else(|| loaded(root)).ok_or(Error::NoVendor)?;
    let btf = fs::read_to_string(tracing.join("README"))
        .is_ok_and(|readme| readme.contains("<argname>[->field"));
    let mut lost = Vec::new();
    if !btf {
        lost.push(
            "this kernel's kprobes do not read BTF: vCPU numbers, requests and old register values \
             are left out"
                .to_owned(),
        );
    }
    let mut lines = Vec::new();
    for probe in PROBES.iter().filter(|probe| probe.vendor.is_none_or(|its| its == vendor)) {
        match probe.functions.iter().find(|name| functions.contains(**name)) {
            Some(function) => lines.push(Line::new(probe, function, btf)),
            None => lost.push(format!("not on this kernel: {}", probe.functions.join(" or "))),
        }
    }
    let mut events = Vec::new();
    for event in TRACEPOINTS {
        if tracing.join("events").join(event).is_dir() {
            events.push(*event);
        } else {
            lost.push(format!("no tracepoint {event}"));
        }
    }
    Ok(Recipe { script: script(&tracing, &lines, &events, seconds), lost })
}

fn tracefs(root: &Path) -> Result<PathBuf, Error> {
    for place in ["sys/kernel/tracing", "sys/kernel/debug/tracing"] {
        let path = root.join(place);
        match fs::read_dir(path.join("events")) {
            Ok(_) => return Ok(path),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Locked { path, source }),
        }
    }
    Err(Error::NoTracefs)
}

/// Names that can be probed; without ftrace only the symbol table tells.
fn functions(root: &Path, tracing: &Path) -> Result<BTreeSet<String>, Error> {
    let path = tracing.join("available_filter_functions");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(column(&text, 0)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            let path = root.join("proc/kallsyms");
            let text =
                fs::read_to_string(&path).map_err(|source| Error::Locked { path, source })?;
            Ok(column(&text, 2))
        }
        Err(source) => Err(Error::Locked { path, source }),
    }
}

fn column(text: &str, at: usize) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split_whitespace().nth(at)).map(str::to_owned).collect()
}

fn loaded(root: &Path) -> Option<Vendor> {
    let module = |name: &str| root.join("sys/module").join(name).is_dir();
    if module("kvm_intel") { Some(Vendor::Intel) } else { module("kvm_amd").then_some(Vendor::Amd) }
}

/// A probe as the kernel is asked for it.
struct Line {
    function: String,
    /// With fields through BTF, if the kernel may read them.
    wanted: String,
    /// Registers only: a field that this version does not have must not cost the probe.
    plain: String,
}

impl Line {
    fn new(probe: &Probe, function: &str, btf: bool) -> Self {
        let with = |arguments: &[&str]| {
            let mut line = format!("p:kvmtlb/{function} {function}");
            for argument in arguments {
                let _ = write!(line, " {argument}");
            }
            line
        };
        let plain = with(probe.arguments);
        let wanted =
            if btf { with(&[probe.arguments, probe.fields].concat()) } else { plain.clone() };
        Self { function: function.to_owned(), wanted, plain }
    }
}

/// Asks for a probe in the script, and says what was refused.
const PROBE: &str = r#"probe() {
  { echo "$2" >> $T/kprobe_events; } 2>/dev/null && return
  if { echo "$3" >> $T/kprobe_events; } 2>/dev/null; then
    echo "only registers are recorded of $1" >&2
  else
    echo "the kernel refuses a probe on $1" >&2
  fi
}
"#;

/// An instance of its own leaves other users of the tracefs alone. Ctrl-C ends the wait, not the
/// script, and what was set up is taken down however it ends.
fn script(tracing: &Path, lines: &[Line], events: &[&str], seconds: u64) -> String {
    let mut text = format!(
        "#!/bin/sh\nset -eu\nout=${{1:-trace.txt}}\nT={}\nI=$T/instances/tlbscope\n",
        tracing.display()
    );
    text += "cleanup() {\n  status=$?\n  set +e\n  echo 0 > $I/tracing_on\n  echo 0 > $I/events/enable\n  rmdir $I\n";
    for line in lines {
        let _ = writeln!(text, "  echo '-:kvmtlb/{}' >> $T/kprobe_events", line.function);
    }
    text += "  rm -f \"$out.part\"\n  [ $status = 0 ] || exit 2\n} 2>/dev/null\nmkdir $I || exit 2\ntrap cleanup EXIT\ntrap 'exit 1' INT TERM HUP\n";
    text += PROBE;
    text += "echo 0 > $I/tracing_on\necho 65536 > $I/buffer_size_kb\n";
    for line in lines {
        let Line { function, wanted, plain } = line;
        let _ = writeln!(text, "probe {function} '{wanted}' '{plain}'");
    }
    for event in events.iter().chain(&["kvmtlb"]) {
        let _ = writeln!(text, "echo 1 > $I/events/{event}/enable");
    }
    let _ = writeln!(text, "trap : INT\necho 1 > $I/tracing_on\nsleep {seconds} || true");
    text += "echo 0 > $I/tracing_on\ncat $I/trace > \"$out.part\"\nmv \"$out.part\" \"$out\"\n";
    text
}
