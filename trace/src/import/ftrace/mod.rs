//! Recordings as text: `/sys/kernel/tracing/trace`, `trace-cmd report`, `perf script`.

//!
//! Every line can be taken apart for itself, what it means depends on those before it: while one
//! thread interprets some blocks of lines, the others take the next apart and read on.

mod blocks;
mod line;

use std::io::BufRead;
use std::sync::Arc;

use rayon::prelude::*;

use blocks::{Block, Blocks};
pub(super) use line::seconds;
use line::{Line, Printer};

use super::event::Fields;
use super::kvm::Importer;
use super::symbols::Symbols;
use super::{ImportError, Imported, Options, Sink};
use crate::Recording;

/// Blocks that are in hand at each stage.
const BLOCKS: usize = 4;

/// Reads a recording into memory. `name` is for messages.
///
/// # Errors
/// Reading fails, time runs backwards, or there is nothing of KVM in it.
pub fn import(reader: impl BufRead + Send, name: &str) -> Result<Recording, ImportError> {
    let mut records = Vec::new();
    let imported = stream(reader, name, &Options::default(), &mut records)?;
    Ok(Recording { meta: imported.meta, census: imported.census, records })
}

/// Reads a recording and hands its records on as they come.
///
/// # Errors
/// As for [`import`], and when the sink fails.
pub fn stream(
    reader: impl BufRead + Send,
    name: &str,
    options: &Options,
    sink: &mut dyn Sink,
) -> Result<Imported, ImportError> {
    let symbols = Arc::new(options.symbols.clone());
    let apart = |texts: Vec<Vec<u8>>| -> Vec<Block> {
        texts.into_par_iter().map(|text| Block::of(text, &symbols)).collect()
    };
    let mut blocks = Blocks::new(reader);
    let mut meaning = Meaning { importer: Importer::new(name, options), lines: 0, form: None };
    let mut texts = blocks.several(BLOCKS);
    let mut ready = Vec::new();
    while !ready.is_empty() || !texts.is_empty() {
        let (done, next) = rayon::join(
            || ready.iter().try_for_each(|block| meaning.block(block, sink)),
            || rayon::join(|| apart(texts), || blocks.several(BLOCKS)),
        );
        done?;
        (ready, texts) = next;
    }
    let Meaning { mut importer, lines, form } = meaning;
    match blocks.end {
        Some(Err(error)) if lines == 0 => {
            return Err(ImportError::Io { name: name.to_owned(), error });
        }
        // A cut or damaged packed file: what came out of it is worth having.
        Some(Err(error)) => importer.lose(format!("reading stopped behind line {lines}: {error}")),
        _ => {}
    }
    if form.is_none() && !importer.header() {
        let first = blocks.first.unwrap_or_default();
        let first = String::from_utf8_lossy(&first).trim_end().to_owned();
        return Err(ImportError::NotFtrace { name: name.to_owned(), first });
    }
    let form = match form {
        Some(Printer::Perf) => "perf script",
        _ if importer.report() => "trace-cmd report",
        _ => "ftrace",
    };
    importer.finish(form, sink)
}

/// What lines mean, in order.
struct Meaning<'o> {
    importer: Importer<'o>,
    lines: u32,
    /// Who printed the first event.
    form: Option<Printer>,
}

impl Meaning<'_> {
    fn block(&mut self, block: &Block, sink: &mut dyn Sink) -> Result<(), ImportError> {
        let lines = block.borrow_dependent();
        for (line, words) in &lines.lines {
            self.lines = self.lines.saturating_add(1);
            match line {
                Line::Event(event, printer) => {
                    let mut event = *event;
                    event.line = self.lines;
                    event.fields = Fields::Words(event.text(), &lines.words[words.clone()]);
                    self.form = self.form.or(Some(*printer));
                    self.importer.event(&event, sink)?;
                }
                Line::Comment(comment) => self.importer.comment(comment),
                Line::Lost(count) => self.importer.lost(*count, self.lines, None),
                Line::Blank => {}
                Line::Junk => self.importer.junk(),
            }
        }
        Ok(())
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
