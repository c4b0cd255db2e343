//! How to record on a host: which tracepoints and functions its kernel has, and the script that
//! records them under names and arguments the importer reads.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

mod bpftrace;
mod btf;
mod probes;
mod resolve;
mod shell;

use btf::Btf;
use probes::{PROBES, TRACEPOINTS};
use resolve::{Fields, Placed};

/// Whose virtualization extension the host uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VMX.
    Intel,
    /// SVM.
    Amd,
}

/// The program that records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// A shell and the files of tracefs: text, in microseconds. Nothing needs to be installed.
    #[default]
    Tracefs,
    /// `trace-cmd record`: a trace.dat, in nanoseconds, with formats and symbols of its own.
    TraceCmd,
    /// `perf record`: a perf.data, in nanoseconds, with the symbols in a file beside it.
    Perf,
    /// A program for bpftrace, whose lines are written as tracefs would.
    Bpftrace,
}

impl Flavour {
    /// What the recording is called unless it is given a name.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Tracefs | Self::Bpftrace => "trace.txt",
            Self::TraceCmd => "trace.dat",
            Self::Perf => "perf.data",
        }
    }
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
pub fn recipe(
    root: &Path,
    vendor: Option<Vendor>,
    flavour: Flavour,
    seconds: u64,
) -> Result<Recipe, Error> {
    let tracing = tracefs(root)?;
    let functions = functions(root, &tracing)?;
    if !functions.iter().any(|name| name.starts_with("kvm_")) {
        return Err(Error::NoKvm);
    }
    let vendor = vendor.or_else(|| loaded(root)).ok_or(Error::NoVendor)?;
    let mut lost = Vec::new();
    let btf = Btf::of_host(root);
    let names = fs::read_to_string(tracing.join("README"))
        .is_ok_and(|readme| readme.contains("<argname>[->field"));
    let fields = match &btf {
        Some(btf) => Fields::Offsets(btf),
        None if names && flavour != Flavour::Bpftrace => {
            lost.push(
                "no type information of kvm in /sys/kernel/btf: cached roots are left out".into(),
            );
            Fields::Names
        }
        None => {
            lost.push(
                "no type information of kvm in /sys/kernel/btf (BTF), and kprobes do not read it: vCPU \
                 numbers, requests, roots and old register values are left out"
                    .into(),
            );
            Fields::None
        }
    };
    let mut placed = Vec::new();
    for probe in PROBES.iter().filter(|probe| probe.vendor.is_none_or(|its| its == vendor)) {
        match probe.functions.iter().find(|name| functions.contains(**name)) {
            Some(function) => placed.push(Placed::new(probe, function, &fields, &mut lost)),
            None => lost
                .push(format!("not on this kernel, or inlined: {}", probe.functions.join(" or "))),
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
    let script = match flavour {
        Flavour::Tracefs => shell::tracefs(&tracing, &placed, &events, seconds),
        Flavour::TraceCmd => shell::trace_cmd(&tracing, &placed, &events, seconds),
        Flavour::Perf => shell::perf(&tracing, &placed, &events, seconds),
        Flavour::Bpftrace => bpftrace::script(&placed, &events, vendor, seconds, &mut lost),
    };
    Ok(Recipe { script, lost })
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
