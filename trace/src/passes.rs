//! A trace that is read several times from its beginning. A native file is read block by block, in memory
//! that does not grow with it; any other trace is in memory as a whole.

use std::path::{Path, PathBuf};

use crate::native::Reader;
use crate::recording::{Record, Recording};
use crate::source::{Stream, once};
use crate::{Error, Opened, Options, Order, open_lazily};

/// A trace to be read several times.
pub struct Passes {
    /// All but the records, where those are not in memory.
    head: Recording,
    /// The native file, and its reader if nothing was read yet.
    file: Option<(PathBuf, Option<Box<Reader<Stream>>>)>,
}

impl Passes {
    /// Opens the wanted part of a trace.
    ///
    /// # Errors
    /// As for [`crate::open_with`].
    pub fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        if once(path) {
            return Ok(Self { head: crate::open_with(path, options)?, file: None });
        }
        match open_lazily(path, options)? {
            Opened::Whole(head) => Ok(Self { head: *head, file: None }),
            Opened::Native(reader) => match reader.header_ref() {
                // Without one the file is damaged, and the records tell what it holds.
                None => Ok(Self { head: crate::open_with(path, options)?, file: None }),
                Some(header) => {
                    let (meta, census) = (header.meta.clone(), header.census.clone());
                    let head = Recording { meta, census, records: Vec::new() };
                    Ok(Self { head, file: Some((path.to_owned(), Some(reader))) })
                }
            },
        }
    }

    /// What is known of the trace, without its records; what is lost of a file after a pass only.
    #[must_use]
    pub fn head_alone(&self) -> Recording {
        let Recording { meta, census, .. } = &self.head;
        Recording { meta: meta.clone(), census: census.clone(), records: Vec::new() }
    }

    /// Hands all records on, in order. While some are looked at the next are read.
    ///
    /// # Errors
    /// The file cannot be read again, or its times are not in order.
    pub fn pass(&mut self, each: &mut (dyn FnMut(&[Record]) + Send)) -> Result<(), Error> {
        let Some((path, reader)) = &mut self.file else {
            each(&self.head.records);
            return Ok(());
        };
        let first = reader.is_some();
        let mut reader = match reader.take() {
            Some(reader) => reader,
            None => match open_lazily(path, &Options::default())? {
                Opened::Native(reader) => reader,
                Opened::Whole(recording) => {
                    each(&recording.records);
                    return Ok(());
                }
            },
        };
        let (mut now, mut next) = (Vec::new(), Vec::new());
        let mut order = Order::default();
        let mut more = reader.append(&mut now)?;
        while more || !now.is_empty() {
            order.follow(&now, &self.head.meta.source)?;
            next.clear();
            let read = || if more { reader.append(&mut next) } else { Ok(false) };
            let ((), read) = rayon::join(|| each(&now), read);
            more = read?;
            std::mem::swap(&mut now, &mut next);
        }
        if first {
            self.head.meta.losses.extend(reader.take_losses());
            order.end(&self.head.meta)?;
        }
        Ok(())
    }
}
