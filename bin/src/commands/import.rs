//! `import`: any recording as a native trace.

use anyhow::{Context, Result};
use serde_json::{Map, json};
use tlbscope_trace::native::{Packing, Spool};
use tlbscope_trace::{Imported, Recording};

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{Format, Global, Import};
use crate::{input, output};

/// Runs the command.
pub fn run(command: &Import, global: &Global) -> Result<Verdict> {
    // The digest takes a reading of its own.
    let read = match global.format {
        Format::Json => Some(input::Input::of_file(&command.input)?),
        _ => None,
    };
    let name = command.output.display().to_string();
    let packing = command.zstd.map_or(Packing::Plain, Packing::Zstd);
    let mut spool = Spool::new(&name, packing);
    let options = input::options(&command.reading)?;
    let Imported { meta, census } = tlbscope_trace::stream(&command.input, &options, &mut spool)?;
    let recording = Recording { meta, census, records: Vec::new() };
    warn_of_losses(&recording);
    let (operations, acts) = (spool.operations, spool.acts);
    output::write_file(&command.output, |mut out| {
        spool
            .write(&recording.meta, &recording.census, &mut out)
            .context("cannot encode the recording")
    })?;
    let unknown: u64 = recording.census.unknown.values().sum();
    let to_stdout = command.output.as_os_str() == "-";
    if to_stdout || (global.quiet && global.format == Format::Text) {
        return Ok(verdict(&[recording], false));
    }
    let text = match global.format {
        Format::Json => {
            let read: Vec<_> = read.into_iter().collect();
            let summary = json!({
                "operations": operations,
                "acts": acts,
                "not_understood": unknown,
                "output": name,
            });
            let mut detail = Map::new();
            detail.insert("meta".to_owned(), json!(recording.meta));
            output::envelope("import", &read, summary, detail)?
        }
        _ => format!(
            "{name}: {operations} operations and {acts} acts; {unknown} lines not understood\n"
        ),
    };
    output::print(&text)?;
    Ok(verdict(&[recording], false))
}
