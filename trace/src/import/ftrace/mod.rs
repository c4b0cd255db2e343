//! Recordings as text: `/sys/kernel/tracing/trace`, `trace-cmd report`, `perf script`.

mod line;

use std::io::BufRead;

pub(super) use line::seconds;
use line::{Line, Printer};

use super::args::Args;
use super::event::Fields;
use super::kvm::Importer;
use super::symbols::Symbols;
use super::{ImportError, Imported, Options, Sink};
use crate::Recording;

/// A longer line is no event: it is cut, and the rest of it skipped.
const LINE_BYTES: usize = 64 << 10;

/// Reads a recording into memory. `name` is for messages.
///
/// # Errors
/// Reading fails, time runs backwards, or there is nothing of KVM in it.
pub fn import(reader: impl BufRead, name: &str) -> Result<Recording, ImportError> {
    let mut records = Vec::new();
    let imported = stream(reader, name, &Options::default(), &mut records)?;
    Ok(Recording { meta: imported.meta, census: imported.census, records })
}

/// Reads a recording and hands its records on as they come.
///
/// # Errors
/// As for [`import`], and when the sink fails.
pub fn stream(
    mut reader: impl BufRead,
    name: &str,
    options: &Options,
    sink: &mut dyn Sink,
) -> Result<Imported, ImportError> {
    let mut importer = Importer::new(name, options);
    let mut buffer = Vec::with_capacity(1024);
    let mut args = Args::default();
    let mut first: Option<Vec<u8>> = None;
    let mut number = 0_u32;
    let mut form = None;
    loop {
        match read_line(&mut reader, &mut buffer) {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) if number == 0 => {
                return Err(ImportError::Io { name: name.to_owned(), error });
            }
            // A cut or damaged packed file: what came out of it is worth having.
            Err(error) => {
                importer.lose(format!("reading stopped behind line {number}: {error}"));
                break;
            }
        }
        number = number.saturating_add(1);
        if first.is_none() && !buffer.trim_ascii().is_empty() {
            first = Some(buffer[..buffer.len().min(80)].to_vec());
        }
        match line::parse(&buffer, &options.symbols) {
            Line::Event(mut event, printer) => {
                event.line = number;
                args.find(event.text());
                event.fields = Fields::Words(event.text(), &args);
                form = form.or(Some(printer));
                importer.event(&event, sink)?;
            }
            Line::Comment(comment) => importer.comment(comment),
            Line::Lost(count) => importer.lost(count, number, None),
            Line::Blank => {}
            Line::Junk => importer.junk(),
        }
    }
    if form.is_none() && !importer.header() {
        let first = String::from_utf8_lossy(&first.unwrap_or_default()).trim_end().to_owned();
        return Err(ImportError::NotFtrace { name: name.to_owned(), first });
    }
    let form = match form {
        Some(Printer::Perf) => "perf script",
        _ if importer.report() => "trace-cmd report",
        _ => "ftrace",
    };
    importer.finish(form, sink)
}

/// Reads a line without what is beyond [`LINE_BYTES`]; false at the end.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = memchr::memchr(b'\n', available);
        let used = end.map_or(available.len(), |end| end + 1);
        let room = LINE_BYTES - line.len();
        line.extend_from_slice(&available[..used.min(room)]);
        reader.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Whether a line looks like one of a recording: an event or the header.
#[must_use]
pub fn looks_like(text: &[u8]) -> bool {
    match line::parse(text, &Symbols::default()) {
        Line::Event(..) => true,
        Line::Lost(_) => text.trim_ascii_start().starts_with(b"CPU:"),
        Line::Comment(comment) => {
            comment.starts_with(b"# tracer:") || comment.starts_with(b"cpus=")
        }
        _ => false,
    }
}
