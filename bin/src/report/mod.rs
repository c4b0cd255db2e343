//! `--report FILE.html`: what a command found, as one page that needs nothing else.
//!
//! [`replays`] and [`audits`] say what is on it, [`data`] is the object that the page is given, and
//! [`page`] puts object, template, style and scripts together. The same input gives the same bytes.

mod audits;
mod charts;
mod data;
mod page;
mod replays;

use std::path::Path;

use anyhow::{Context, Result, bail};
use data::Page;

pub use audits::{Recorded, audit};
pub use replays::{Replayed, replay};

use crate::output;

/// Effects that a page shows, over all its runs.
pub const EFFECTS_MAX: usize = 100_000;

/// Refuses a file that cannot be, before the work is done.
pub fn check(path: Option<&Path>) -> Result<()> {
    if path.is_some_and(|path| path.as_os_str() == "-") {
        bail!("--report -: standard output has the text; name a file");
    }
    Ok(())
}

fn write(path: &Path, page: &Page) -> Result<()> {
    let html = page::render(page).context("cannot write the report")?;
    output::write_file(path, |out| Ok(out.write_all(html.as_bytes())?))
}
