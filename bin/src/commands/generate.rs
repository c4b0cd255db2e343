//! `generate`: made-up traces.

use anyhow::{Context, Result, bail};
use serde_json::{Map, json};
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::native::{Packing, Writer};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::{MmuKind, Vendor};
use tlbscope_trace::{Body, Record};

use crate::Verdict;
use crate::args::{self, Format, Generate, Global, Mmu};
use crate::output;

/// Runs the command.
pub fn run(command: &Generate, global: &Global) -> Result<Verdict> {
    let (Some(name), Some(path)) = (&command.profile, &command.output) else {
        return list(global);
    };
    if command.list {
        return list(global);
    }
    let options = options(command, name)?;
    let packing = command.zstd.map_or(Packing::Plain, Packing::Zstd);
    let shown = path.display().to_string();
    let bar = output::progress(Some(options.events), global);
    output::write_file(path, |mut out| {
        let mut writer = Writer::new(&shown, &mut out, &options.header(), packing)?;
        for (n, Event { time, actor, op }) in (1_u64..).zip(Generator::new(&options)) {
            writer.push(Record { time, actor, line: 0, body: Body::Op(op) })?;
            if n.is_multiple_of(1 << 16) {
                bar.inc(1 << 16);
            }
        }
        writer.finish().context("cannot end the trace")
    })?;
    bar.finish_and_clear();
    if path.as_os_str() == "-" || (global.quiet && global.format == Format::Text) {
        return Ok(Verdict::Clean);
    }
    let text = match global.format {
        Format::Json => {
            let summary = json!({
                "profile": name,
                "events": options.events,
                "seed": options.seed,
                "vcpus": options.vcpus,
                "output": shown,
            });
            output::envelope("generate", &[], summary, Map::new())?
        }
        _ => format!("{shown}: {} events of {name}\n", options.events),
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}

fn options(command: &Generate, name: &str) -> Result<Options> {
    let Some(profile) = Profile::from_name(name) else {
        let known: Vec<&str> = Profile::ALL.iter().map(|(_, name)| *name).collect();
        bail!("unknown profile `{name}`; known are {}", known.join(", "));
    };
    let vendor = match command.vendor {
        args::Vendor::Intel => Vendor::Intel,
        args::Vendor::Amd => Vendor::Amd,
    };
    let mmu = match command.mmu {
        Some(Mmu::Shadow) => MmuKind::Shadow,
        Some(Mmu::Tdp) => MmuKind::Tdp,
        None => profile.mmu(),
    };
    let (events, seed, vcpus) = (command.events, command.seed, command.vcpus);
    Ok(Options { profile, events, seed, vcpus, vendor, mmu })
}

/// What the profiles do.
fn list(global: &Global) -> Result<Verdict> {
    let profiles = Profile::ALL.map(|(profile, name)| (name, profile.about()));
    let text = match global.format {
        Format::Json => {
            let list: Vec<_> = profiles
                .iter()
                .map(|(name, about)| json!({ "name": name, "about": about }))
                .collect();
            output::envelope("generate-list", &[], list, Map::new())?
        }
        _ => profiles.iter().map(|(name, about)| format!("{name}\n  {about}\n")).collect(),
    };
    output::print(&text)?;
    Ok(Verdict::Clean)
}
