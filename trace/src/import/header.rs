//! The description that binary recordings carry: `trace.dat` version 6 begins with it, `perf.data`
//! has it as a feature section, version 7 has its parts in sections of their own.

use rustc_hash::FxHashMap;

use super::format::{Format, little};

/// Event formats; a file with more is not believed.
const EVENTS: usize = 1 << 16;

/// A reader of little-endian numbers, names and blobs. Everything answers `None` at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    pub rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let count = usize::try_from(count).ok()?;
        let (head, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(head)
    }

    /// A number of so many bytes.
    pub fn num(&mut self, bytes: u64) -> Option<u64> {
        self.take(bytes).map(little)
    }

    /// Text up to a zero byte.
    pub fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&c| c == 0)?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(name)
    }
}

/// How a ring buffer's pages are laid out, and the events on them.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    /// Offset and size of the field `commit` of a page.
    pub commit: (usize, usize),
    /// Offset and size of its field `timestamp`.
    pub time: (usize, usize),
    /// Where a page's events begin.
    pub data: usize,
    pub formats: FxHashMap<u64, Format>,
}

impl Description {
    /// Reads tracefs' `events/header_page`.
    pub fn page(&mut self, text: &[u8]) -> Option<()> {
        let format = Format::parse(&[b"name: page\nID: 0\n", text].concat())?;
        let (commit, time) = (format.place(b"commit")?, format.place(b"timestamp")?);
        self.data = format.place(b"data")?.0;
        let sane = |(offset, size): (usize, usize)| offset < 64 && size <= 8;
        (self.commit, self.time) = (commit, time);
        (sane(commit) && sane(time) && self.data < 256).then_some(())
    }

    /// Adds the format of an event; one that cannot be read is left out, as are its events.
    pub fn event(&mut self, text: &[u8]) {
        if self.formats.len() < EVENTS
            && let Some(format) = Format::parse(text)
        {
            self.formats.insert(format.id, format);
        }
    }

    /// Reads ftrace's own event formats: a count, then each with its size.
    pub fn ftrace_events(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        for _ in 0..cursor.num(4)? {
            let size = cursor.num(8)?;
            self.event(cursor.take(size)?);
        }
        Some(())
    }

    /// Reads the event formats by system.
    pub fn events(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        for _ in 0..cursor.num(4)? {
            cursor.name()?;
            for _ in 0..cursor.num(4)? {
                let size = cursor.num(8)?;
                self.event(cursor.take(size)?);
            }
        }
        Some(())
    }
}

/// What stands at the front of a trace.dat, and of perf's section of tracing data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Front {
    pub version: String,
    pub long_bytes: u64,
    pub page_bytes: u64,
}

/// The first bytes of it.
pub(super) const MAGIC: &[u8] = b"\x17\x08\x44tracing";

impl Front {
    /// Reads it, or says what is wrong.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let cut = || "cut off within its first bytes".to_owned();
        let magic = cursor.take(MAGIC.len() as u64).ok_or_else(cut)?;
        if magic != MAGIC {
            return Err("it does not begin as a trace.dat does".to_owned());
        }
        let version = String::from_utf8_lossy(cursor.name().ok_or_else(cut)?).into_owned();
        if cursor.num(1).ok_or_else(cut)? != 0 {
            return Err("recorded on a big-endian machine: no x86 host".to_owned());
        }
        let long_bytes = cursor.num(1).ok_or_else(cut)?;
        let page_bytes = cursor.num(4).ok_or_else(cut)?;
        if !matches!(long_bytes, 4 | 8) || !(1024..=1 << 20).contains(&page_bytes) {
            return Err(format!("a page of {page_bytes} bytes, a long of {long_bytes}: damaged"));
        }
        Ok(Self { version, long_bytes, page_bytes })
    }
}

/// Reads the parts that follow the front in version 6 and in perf.data, up to kallsyms, which is
/// answered.
pub(super) fn parts<'a>(
    cursor: &mut Cursor<'a>,
    description: &mut Description,
) -> Result<&'a [u8], String> {
    fn inner<'a>(cursor: &mut Cursor<'a>, to: &mut Description) -> Option<&'a [u8]> {
        for name in [&b"header_page"[..], b"header_event"] {
            if cursor.name()? != name {
                return None;
            }
            let size = cursor.num(8)?;
            let text = cursor.take(size)?;
            if name == b"header_page" {
                to.page(text)?;
            }
        }
        to.ftrace_events(cursor)?;
        to.events(cursor)?;
        let size = cursor.num(4)?;
        cursor.take(size)
    }
    inner(cursor, description).ok_or_else(|| "its event formats are cut or damaged".to_owned())
}
