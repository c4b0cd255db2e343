//! `export --to scenario`: one finding of a trace as a scenario file.

use anyhow::{Context, Result, bail};
use tlbscope_analyze::finding::Finding;
use tlbscope_analyze::replay::{self, Setup};
use tlbscope_analyze::reproduce::{self, Around, Subject};
use tlbscope_sim::policy::{self, Policy};
use tlbscope_trace::feed::Feed;

use super::simulate::{verdict_of, warn_of};
use crate::Verdict;
use crate::args::{Export, Format, Global};
use crate::{input, output};

/// A run that has shown its findings, and the trace from its beginning again.
pub(super) struct Found {
    pub feed: Feed,
    pub setup: Setup,
    pub policy: Policy,
    pub kept: Vec<Finding>,
}

impl Found {
    /// Runs the trace as `simulate` does.
    pub fn by_a_run(command: &Export, global: &Global) -> Result<Self> {
        let (mut feed, read) = input::feed(&command.input, &command.reading.reading())?;
        let told = warn_of(feed.meta(), 0);
        let name = match (&command.policy, &feed.meta().kernel) {
            (Some(name), _) => name.clone(),
            (None, Some(kernel)) => kernel.clone(),
            (None, None) => bail!("{} does not show its kernel: name one with --policy", read.path),
        };
        let policy =
            policy::load(&name).with_context(|| format!("cannot load the policy {name}"))?;
        let processor = command.machine.machine.as_deref();
        let setup = Setup::new(feed.meta(), feed.pcpus(), &read.path, processor)?;
        let bar = output::progress(feed.operations(), global);
        let max = command.machine.max_findings;
        let runs =
            replay::stream(&mut feed, &setup, std::slice::from_ref(&policy), max, |n| bar.inc(n));
        bar.finish_and_clear();
        warn_of(feed.meta(), told);
        let kept = runs?.pop().context("no run")?.findings.sorted();
        if !feed.rewind(&command.input)? {
            bail!("a native trace from standard input cannot be read twice: give its file");
        }
        Ok(Self { feed, setup, policy, kept })
    }
}

/// Runs the command.
pub fn run(command: &Export, global: &Global) -> Result<Verdict> {
    let number = command.around.context("which finding: give --around N")?;
    let Found { mut feed, setup, policy, kept } = Found::by_a_run(command, global)?;
    let Some(finding) = number.checked_sub(1).and_then(|n| kept.get(n)) else {
        let (kept, name) = (kept.len(), &policy.name);
        bail!("there is no finding {number} under {name}: `simulate` prints {kept} of them");
    };
    let cited = [Some(finding.cause), finding.use_].into_iter().flatten().collect();
    let cited = feed.events(&command.input, &cited)?;
    let subject = Subject { finding, number, cited: &cited };
    let around = Around { before: command.before, after: command.after, reduce: !command.whole };
    let made = reproduce::reproduce(&mut feed, &setup, &policy, &subject, around)?;
    output::write_file(&command.output, |out| Ok(out.write_all(made.text.as_bytes())?))?;
    let to_stdout = command.output.as_os_str() == "-";
    let silent = global.quiet && global.format == Format::Text;
    if !to_stdout && !silent {
        let text = format!(
            "{}: finding {number} under {}, {} of {} operations\n",
            command.output.display(),
            policy.name,
            made.operations,
            made.looked_at
        );
        output::print(&text)?;
    }
    Ok(verdict_of(!feed.meta().losses.is_empty(), false))
}
