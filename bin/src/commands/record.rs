//! `record`: the script that records on this host.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use tlbscope_trace::record::{self, Flavour, Vendor};

use crate::Verdict;
use crate::args::{HostVendor, Record, RecordFlavour};
use crate::output;

/// `record`.
pub fn run(command: &Record) -> Result<Verdict> {
    let vendor = command.vendor.map(|vendor| match vendor {
        HostVendor::Intel => Vendor::Intel,
        HostVendor::Amd => Vendor::Amd,
    });
    let flavour = match command.flavour {
        RecordFlavour::Tracefs => Flavour::Tracefs,
        RecordFlavour::TraceCmd => Flavour::TraceCmd,
        RecordFlavour::Perf => Flavour::Perf,
        RecordFlavour::Bpftrace => Flavour::Bpftrace,
    };
    let recipe = record::recipe(&command.root, vendor, flavour, command.seconds)?;
    for lost in &recipe.lost {
        output::warn(lost);
    }
    if let Some(file) = &command.run {
        // In place of this process, so that Ctrl-C reaches the script alone, which cleans up.
        let error = Command::new("sh").args(["-c", &recipe.script, "sh"]).arg(file).exec();
        return Err(error).context("cannot start sh");
    }
    output::print(&recipe.script)?;
    Ok(Verdict::Clean)
}
