//! Which findings are shown, and which are accepted.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tlbscope_analyze::finding::Group;
use tlbscope_analyze::suppress::{Suppression, Suppressions};
use tlbscope_trace::import::Moment;

use crate::args;
use crate::output;

/// What was typed, read.
pub struct Showing {
    /// The findings that are accepted.
    pub suppressions: Arc<Suppressions>,
    vcpus: Vec<u16>,
    from: u64,
    to: u64,
}

impl Showing {
    /// Reads the files and times that were named.
    pub fn of(typed: &args::Showing) -> Result<Self> {
        let mut suppressions = Suppressions::default();
        for path in &typed.suppress {
            let text = read(path)?;
            suppressions.add(&path.display().to_string(), &text)?;
        }
        Ok(Self {
            suppressions: Arc::new(suppressions),
            vcpus: typed.show_vcpu.clone(),
            from: moment(typed.show_from.as_deref())?.unwrap_or(0),
            to: moment(typed.show_to.as_deref())?.unwrap_or(u64::MAX),
        })
    }

    /// Whether a finding of this vCPU is shown, whose cause and use are at these instants.
    pub fn wants(&self, vcpu: u16, times: impl IntoIterator<Item = u64>) -> bool {
        (self.vcpus.is_empty() || self.vcpus.contains(&vcpu))
            && times.into_iter().any(|time| (self.from..=self.to).contains(&time))
    }

    /// A suppression by its number.
    pub fn suppression(&self, number: Option<usize>) -> Option<&Suppression> {
        self.suppressions.all().get(number?)
    }

    /// Says on standard error which suppressions accepted nothing: the next reader should not
    /// believe that they are needed.
    pub fn warn_of_unused(&self, used: &BTreeSet<usize>, quiet: bool) {
        if quiet {
            return;
        }
        for one in self.suppressions.unused(used) {
            output::warn(&format!("{}:{}: suppresses nothing", one.file, one.line));
        }
    }
}

/// The suppressions that groups of findings used.
pub fn used<'a>(
    groups: impl Iterator<Item = (&'a Group, u64)>,
    find: impl Fn(&Group) -> Option<usize>,
) -> impl Iterator<Item = usize> {
    groups.filter_map(move |(group, _)| find(group))
}

fn moment(text: Option<&str>) -> Result<Option<u64>> {
    match text.map(Moment::parse).transpose().map_err(anyhow::Error::msg)? {
        None => Ok(None),
        Some(Moment::Since(ns)) => Ok(Some(ns)),
        Some(Moment::Clock(_)) => {
            bail!("findings have times since the start: give 1500ns, 2ms, 1s")
        }
    }
}

fn read(path: &Path) -> Result<String> {
    const BYTES_MAX: u64 = 16 << 20;
    let failed = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(failed)?;
    file.take(BYTES_MAX).read_to_string(&mut text).with_context(failed)?;
    Ok(text)
}
