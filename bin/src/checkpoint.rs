//! Where `simulate` keeps its checkpoints, and of what run they are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tlbscope_analyze::replay::{
    CheckpointError, Checkpoints, IdentityPart, Replay, Setup, Wanted, checkpointed,
};
use tlbscope_sim::policy::Policy;
use tlbscope_trace::feed::Feed;

use crate::args::{Checkpointing, Reading};
use crate::input::Input;

/// Runs a trace as `simulate` does, from a checkpoint or with checkpoints.
pub fn run(
    feed: &mut Feed,
    setup: &Setup,
    policy: &Policy,
    wanted: &Wanted,
    typed: &Checkpointing,
    (trace, read, reading): (&Path, &Input, &Reading),
    progress: impl Fn(u64) + Sync,
) -> Result<Replay> {
    let file = file(typed, trace)?;
    let checkpoints = Checkpoints {
        every: typed.checkpoint_every,
        file: file.as_deref(),
        resume: typed.resume.as_deref(),
        identity: identity(feed, read, reading)?,
    };
    checkpointed(feed, setup, policy, wanted, &checkpoints, progress).map_err(|error| match error {
        CheckpointError::Stream(error) => error.into(),
        error => error.into(),
    })
}

/// Where checkpoints are written.
fn file(typed: &Checkpointing, trace: &Path) -> Result<Option<PathBuf>> {
    if typed.checkpoint_every.is_none() {
        return Ok(None);
    }
    if let Some(file) = typed.checkpoint.as_ref().or(typed.resume.as_ref()) {
        return Ok(Some(file.clone()));
    }
    if trace.as_os_str() == "-" {
        bail!("standard input has no name to put a checkpoint beside: name one with --checkpoint");
    }
    let mut name = trace.as_os_str().to_owned();
    name.push(".checkpoint");
    Ok(Some(name.into()))
}

/// The program, the trace and how it is read.
fn identity(feed: &Feed, read: &Input, reading: &Reading) -> Result<Vec<IdentityPart>> {
    let program = std::env::current_exe()
        .and_then(std::fs::read)
        .context("cannot read the program itself, which checkpoints name")?;
    let version = concat!("tlbscope ", env!("CARGO_PKG_VERSION"));
    let trace = if read.digest.is_empty() {
        // What standard input holds is not known before it is gone: its header must do.
        let header = format!("{:?} {:?}", feed.meta(), feed.operations());
        IdentityPart::new("trace", feed.meta().source.as_str(), header.as_bytes())
    } else {
        IdentityPart::new("trace", format!("digest {}", read.digest), &[])
    };
    Ok(vec![
        IdentityPart::new("program", version, &program),
        trace,
        IdentityPart::new("reading of the trace", options(reading), &[]),
    ])
}

/// The options by which it is read, as they are typed.
fn options(reading: &Reading) -> String {
    let Reading { kallsyms, probes, vm, vcpu, from, to } = reading;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let vcpus: Vec<String> = vcpu.iter().map(u16::to_string).collect();
    let options = [
        ("--kallsyms", path(kallsyms)),
        ("--probes", path(probes)),
        ("--vm", vm.clone()),
        ("--vcpu", (!vcpus.is_empty()).then(|| vcpus.join(","))),
        ("--from", from.clone()),
        ("--to", to.clone()),
    ];
    let typed =
        options.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)));
    let typed: Vec<String> = typed.collect();
    if typed.is_empty() { "the whole".to_owned() } else { typed.join(" ") }
}
