//! Where results go: standard output or a file, whole or not at all.

use std::fs::Permissions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use crate::args::{Color, Global};
use crate::input::Input;
use crate::interrupt;

/// Whether an error is a reader that went away: nobody is there to be told.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints an error with its causes to standard error.
pub fn report(error: &anyhow::Error, color: Color) {
    let coloured = colours(color, io::stderr().is_terminal());
    let word = if coloured { "\x1b[1;31merror\x1b[0m" } else { "error" };
    // There is nowhere to report a failure to write to standard error.
    let _ = writeln!(io::stderr(), "{word}: {error}");
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors tell their cause themselves.
        if !said.contains(&cause) {
            let _ = writeln!(io::stderr(), "  because: {cause}");
        }
        said = cause;
    }
}

/// Prints a warning to standard error.
pub fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "warning: {message}");
}

/// Whether to use colours.
pub fn colours(color: Color, terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    wanted(color, terminal, set("NO_COLOR"))
}

/// The same; `no_color`: the variable of <https://no-color.org> is set and not empty.
const fn wanted(color: Color, terminal: bool, no_color: bool) -> bool {
    match color {
        Color::Auto => terminal && !no_color,
        Color::Always => true,
        Color::Never => false,
    }
}

/// Writes text to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// Writes a file so that it appears whole or not at all; `-` is standard output.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if path.as_os_str() == "-" {
        let mut out = io::BufWriter::new(io::stdout().lock());
        write(&mut out)?;
        out.flush()?;
        return Ok(());
    }
    let failed = || format!("cannot write {}", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // In the same folder, so that the last step is a rename.
    // Whoever may read what the user writes may read this too: a temporary file is private.
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tlbscope-").permissions(Permissions::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).with_context(failed)?;
    interrupt::writes(file.path(), path);
    let written = fill(&mut file, write).and_then(|()| {
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    });
    interrupt::wrote();
    written.with_context(failed)
}

/// Writes what a file holds.
fn fill(file: &mut NamedTempFile, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = io::BufWriter::new(file.as_file_mut());
    write(&mut out)?;
    out.flush()?;
    Ok(())
}

/// The name and version of the schema of a command's JSON.
pub fn schema(command: &str) -> String {
    format!("tlbscope/{command}/1")
}

/// The program, as outputs name it.
pub fn tool() -> Value {
    json!({ "name": "tlbscope", "version": env!("CARGO_PKG_VERSION") })
}

/// The object that `--format json` prints: `schema`, `tool`, `inputs`, `summary` and the detail.
pub fn envelope(
    command: &str,
    inputs: &[Input],
    summary: impl Serialize,
    detail: Map<String, Value>,
) -> Result<String> {
    let mut object = Map::new();
    object.insert("schema".to_owned(), json!(schema(command)));
    object.insert("tool".to_owned(), tool());
    object.insert("inputs".to_owned(), serde_json::to_value(inputs)?);
    object.insert("summary".to_owned(), serde_json::to_value(summary)?);
    object.extend(detail);
    Ok(serde_json::to_string_pretty(&Value::Object(object))?)
}

/// A progress bar on a terminal, nothing elsewhere: events per second and, where their number is
/// known, what is left. Short work shows none.
pub fn progress(events: Option<u64>, global: &Global) -> ProgressBar {
    /// Events that take no time worth a bar.
    const SHORT: u64 = 1 << 18;
    let short = events.is_some_and(|events| events < SHORT);
    if global.quiet || short || !io::stderr().is_terminal() {
        let bar = ProgressBar::hidden();
        interrupt::counts(&bar, events);
        return bar;
    }
    let (bar, template) = match events {
        Some(events) => {
            let template =
                "{wide_bar} {human_pos} of {human_len} events, {rate} a second, {eta} left";
            (ProgressBar::new(events), template)
        }
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} events, {rate} a second"),
    };
    // The templates are constant and sound; without a style the bar has its default look.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.with_key("rate", rate));
    }
    interrupt::counts(&bar, events);
    bar
}

/// Whole events a second.
fn rate(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    // It is written to memory.
    let _ = write!(out, "{}", HumanCount(state.per_sec() as u64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_without_no_color_and_on_request() {
        assert!(wanted(Color::Auto, true, false));
        assert!(!wanted(Color::Auto, true, true) && !wanted(Color::Auto, false, false));
        assert!(wanted(Color::Always, false, true) && !wanted(Color::Never, true, false));
    }
}
