//! `record`: the script that records on this host.

use anyhow::Result;
use tlbscope_trace::record::{self, Vendor};

use crate::Verdict;
use crate::args::{HostVendor, Record};
use crate::output;

/// `record`.
pub fn run(command: &Record) -> Result<Verdict> {
    let vendor = command.vendor.map(|vendor| match vendor {
        HostVendor::Intel => Vendor::Intel,
        HostVendor::Amd => Vendor::Amd,
    });
    let recipe = record::recipe(&command.root, vendor, command.seconds)?;
    for lost in &recipe.lost {
        output::warn(lost);
    }
    output::print(&recipe.script)?;
    Ok(Verdict::Clean)
}
