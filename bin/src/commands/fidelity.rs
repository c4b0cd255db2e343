//! `fidelity`: does the model do what the recorded kernel did?

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Map, json};
use tlbscope_analyze::fidelity::{self, Fidelity};
use tlbscope_analyze::replay::Work;
use tlbscope_sim::policy;

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{self, Format, Global};
use crate::formats::{escaped, fenced};
use crate::{input, output};

/// Runs the command.
pub fn run(command: &args::Fidelity, global: &Global) -> Result<Verdict> {
    let (recording, read) = input::open(&command.recording, &command.reading)?;
    warn_of_losses(&recording);
    if recording.acts().next().is_none() {
        bail!("{} tells nothing of what a hypervisor did: it is no recording", read.path);
    }
    let name = match (&command.policy, &recording.meta.kernel) {
        (Some(name), _) => name,
        (None, Some(kernel)) => kernel,
        (None, None) => {
            let told =
                |sentence: &&String| sentence.contains("kernel") && sentence.contains("--policy");
            match recording.meta.evidence.iter().find(told) {
                Some(sentence) => bail!("{}: {sentence}", read.path),
                None => bail!("{} does not show its kernel: name one with --policy", read.path),
            }
        }
    };
    let policy = policy::load(name).with_context(|| format!("cannot load the policy {name}"))?;
    let work = Work::new(&recording, &read.path, None)?;
    let mut result = fidelity::compare(&recording, &work, &policy, command.max_findings)?;
    if let Some(file) = &command.stats {
        let text =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        if result.with_statistics(&String::from_utf8_lossy(&text)) == 0 {
            bail!("{} holds none of the statistics that are counted", file.display());
        }
    }
    let text = match global.format {
        Format::Json => {
            let mut detail = Map::new();
            detail.insert("by_operation".to_owned(), json!(result.by_operation));
            detail.insert("by_action".to_owned(), json!(result.by_action));
            detail.insert("counters".to_owned(), json!(result.counters));
            detail.insert("disagreements".to_owned(), json!(result.disagreements));
            output::envelope("fidelity", &[read], &result.summary, detail)?
        }
        Format::Markdown => markdown(&result),
        _ => fidelity::text(&result, global.verbose),
    };
    output::print(&text)?;
    Ok(verdict(&[recording], false))
}

/// The agreement as tables, and the first disagreements.
fn markdown(result: &Fidelity) -> String {
    let s = &result.summary;
    let mut out = String::from("## tlbscope fidelity\n\n");
    let (trace, policy) = (escaped(&s.trace), escaped(&s.policy));
    let _ =
        writeln!(out, "{trace} under {policy}: {} of {} operations agree", s.agreed, s.operations);
    out += "\n| operation or action | agree | of |\n| --- | ---: | ---: |\n";
    let actions = result.by_action.iter().map(|(name, row)| (*name, row));
    let operations = result.by_operation.iter().map(|(name, row)| (name.as_str(), row));
    for (name, row) in operations.chain(actions) {
        let _ = writeln!(out, "| {} | {} | {} |", escaped(name), row.agreed, row.total);
    }
    for one in result.disagreements.iter().take(10) {
        let (from, to) = one.lines;
        let head = escaped(&format!("{}: {}", one.operation, one.why));
        let recorded: Vec<&str> = one.recorded.iter().map(|(_, text)| text.as_str()).collect();
        let text = format!(
            "lines {from} to {to}, v{}, {} ns\nrecorded: {}\nmodelled: {}",
            one.vcpu,
            one.time,
            recorded.join("; "),
            one.modelled.join("; ")
        );
        let _ = writeln!(out, "\n{head}\n\n{}", fenced(&text));
    }
    out
}
