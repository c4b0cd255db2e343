//! `export --to perfetto`: the timeline of a run, for ui.perfetto.dev and `trace_processor`.

use anyhow::Result;
use tlbscope_analyze::perfetto;

use super::export_scenario::Found;
use super::simulate::verdict_of;
use crate::Verdict;
use crate::args::{Export, Format, Global};
use crate::output;

/// Runs the command.
pub fn run(command: &Export, global: &Global) -> Result<Verdict> {
    let Found { mut feed, setup, policy, kept } = Found::by_a_run(command, global)?;
    let bar = output::progress(feed.operations(), global);
    let mut written = perfetto::Written::default();
    output::write_file(&command.output, |out| {
        written =
            perfetto::write(&mut feed, &setup, &policy, &kept, out, |events| bar.inc(events))?;
        Ok(())
    })?;
    bar.finish_and_clear();
    if written.without_lane > 0 {
        output::warn(&format!(
            "{} roots or stale windows overlap too many others and are left out",
            written.without_lane
        ));
    }
    let to_stdout = command.output.as_os_str() == "-";
    let silent = global.quiet && global.format == Format::Text;
    if !to_stdout && !silent {
        let text = format!(
            "{}: {} events under {}; open it in ui.perfetto.dev\n",
            command.output.display(),
            written.events,
            policy.name
        );
        output::print(&text)?;
    }
    Ok(verdict_of(!feed.meta().losses.is_empty(), false))
}
