//! `fidelity`: does the model do what the recorded kernel did?

use anyhow::{Context, Result, bail};
use serde_json::{Map, json};
use tlbscope_analyze::fidelity;
use tlbscope_analyze::replay::Work;
use tlbscope_sim::policy;

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{Fidelity, Format, Global};
use crate::{input, output};

/// Runs the command.
pub fn run(command: &Fidelity, global: &Global) -> Result<Verdict> {
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
        Format::Text => fidelity::text(&result, global.verbose),
    };
    output::print(&text)?;
    Ok(verdict(&[recording], false))
}
