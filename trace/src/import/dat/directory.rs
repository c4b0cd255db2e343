//! Where everything lies in a trace.dat.

use super::super::header::{Cursor, Description, Front, parts};
use super::pages::{Packing, unpack};
use super::{File, SECTION_BYTES};

/// Lists of sections in one file; a file with more goes in circles.
const LISTS: usize = 64;
/// CPUs of one file, over all its buffers.
const CPUS: usize = 1 << 12;

/// The pages of one CPU in one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cpu {
    pub cpu: u16,
    pub offset: u64,
    pub size: u64,
    pub packing: Option<Packing>,
    pub page_bytes: u64,
}

/// What the file says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub description: Description,
    /// Offset and size of `common_type`, by which an event's format is found.
    pub kind: (usize, usize),
    pub kallsyms: Vec<u8>,
    pub cpus: Vec<Cpu>,
    pub long_bytes: u64,
    /// The kernel's release.
    pub release: Option<String>,
    pub losses: Vec<String>,
    /// Multiplier and shift from cycles to nanoseconds.
    cycles: Option<(u64, u32)>,
}

impl Directory {
    /// The recorder's clock in nanoseconds.
    pub fn clock(&self, time: u64) -> u64 {
        match self.cycles {
            Some((factor, shift)) => {
                let wide = (u128::from(time) * u128::from(factor)) >> shift;
                u64::try_from(wide).unwrap_or(u64::MAX)
            }
            None => time,
        }
    }
}

/// Reads it, or says what is wrong.
pub(super) fn read(file: &mut File<'_>) -> Result<Directory, String> {
    let head = file.at(0, file.length.min(4096)).ok_or("cannot be read")?;
    let mut cursor = Cursor { rest: &head };
    let front = Front::read(&mut cursor)?;
    let mut directory = Directory { long_bytes: front.long_bytes, ..Directory::default() };
    match front.version.as_str() {
        "6" => version_6(file, &front, (head.len() - cursor.rest.len()) as u64, &mut directory)?,
        "7" => version_7(file, &mut cursor, &mut directory)?,
        other => return Err(format!("version {other} of trace.dat; versions 6 and 7 are read")),
    }
    let description = &directory.description;
    if description.commit.1 == 0 {
        return Err("it does not describe its pages".to_owned());
    }
    let kind = description.formats.values().find_map(|format| format.place(b"common_type"));
    directory.kind = kind.filter(|(offset, size)| offset + size <= 64).ok_or("no event formats")?;
    if directory.cpus.is_empty() {
        return Err("it holds no buffer of any CPU: cut off, or still being recorded".to_owned());
    }
    Ok(directory)
}

/// Version 6: one part behind the other, then options, then the list of the CPUs' pages.
fn version_6(
    file: &mut File<'_>,
    front: &Front,
    from: u64,
    directory: &mut Directory,
) -> Result<(), String> {
    // The pages come behind; where they begin is not known before the list is read.
    let all = file.at(from, (file.length - from).min(SECTION_BYTES)).ok_or("cannot be read")?;
    let mut cursor = Cursor { rest: &all };
    directory.kallsyms = parts(&mut cursor, &mut directory.description)?.to_vec();
    let cut = || "cut off before the list of its CPUs".to_owned();
    let mut skip = |bytes: u64| -> Option<()> {
        let size = cursor.num(bytes)?;
        cursor.take(size).map(drop)
    };
    skip(4).and_then(|()| skip(8)).ok_or_else(cut)?;
    let cpus = cursor.num(4).ok_or_else(cut)?;
    let mut instances = Vec::new();
    let mut tag = cursor.take(10).ok_or_else(cut)?;
    if tag.starts_with(b"options") {
        loop {
            let id = cursor.num(2).ok_or_else(cut)?;
            if id == 0 {
                break;
            }
            let size = cursor.num(4).ok_or_else(cut)?;
            let option = cursor.take(size).ok_or_else(cut)?;
            match id {
                3 => instances.extend(Cursor { rest: option }.num(8)),
                _ => plain_option(id, option, directory),
            }
        }
        tag = cursor.take(10).ok_or_else(cut)?;
    }
    if !tag.starts_with(b"flyrecord") {
        return Err("its events are text (`trace-cmd record` of a latency tracer)".to_owned());
    }
    list(&mut cursor, cpus, front.page_bytes, directory).ok_or_else(cut)?;
    for offset in instances {
        let bytes = file.at(offset, (10 + 16 * cpus.min(CPUS as u64)).min(file.length));
        let bytes = bytes.unwrap_or_default();
        let mut cursor = Cursor { rest: &bytes };
        let known = cursor.take(10).is_some_and(|tag| tag.starts_with(b"flyrecord"));
        if !known || list(&mut cursor, cpus, front.page_bytes, directory).is_none() {
            directory.losses.push(format!("the buffer at byte {offset} cannot be read"));
        }
    }
    Ok(())
}

/// Version 6's list: offset and size of each CPU's pages.
fn list(cursor: &mut Cursor<'_>, cpus: u64, page_bytes: u64, to: &mut Directory) -> Option<()> {
    for cpu in 0..cpus.min(CPUS as u64) {
        let (offset, size) = (cursor.num(8)?, cursor.num(8)?);
        let cpu = u16::try_from(cpu).ok()?;
        if size > 0 && to.cpus.len() < CPUS {
            to.cpus.push(Cpu { cpu, offset, size, packing: None, page_bytes });
        }
    }
    Some(())
}

/// Version 7: lists of options, each ending in the place of the next, that name sections.
fn version_7(
    file: &mut File<'_>,
    cursor: &mut Cursor<'_>,
    directory: &mut Directory,
) -> Result<(), String> {
    let cut = || "cut off within its first bytes".to_owned();
    let method = cursor.name().ok_or_else(cut)?;
    let packing = Packing::named(method)?;
    cursor.name().ok_or_else(cut)?;
    let mut at = cursor.num(8).ok_or_else(cut)?;
    let mut buffers = Vec::new();
    for _ in 0..LISTS {
        if at == 0 {
            break;
        }
        let Some(section) = section(file, at, packing) else {
            directory.losses.push(format!("the options at byte {at} are cut off or damaged"));
            break;
        };
        at = 0;
        let mut cursor = Cursor { rest: &section };
        while let (Some(id), Some(size)) = (cursor.num(2), cursor.num(4)) {
            let Some(option) = cursor.take(size) else { break };
            match id {
                0 => {
                    at = Cursor { rest: option }.num(8).unwrap_or(0);
                    break;
                }
                3 => buffers.push(option.to_vec()),
                16..=19 => {
                    let place = Cursor { rest: option }.num(8).unwrap_or(0);
                    if described(file, id, place, packing, directory).is_none() {
                        let what = format!("the section at byte {place} is cut off or damaged");
                        directory.losses.push(what);
                    }
                }
                _ => plain_option(id, option, directory),
            }
        }
    }
    for buffer in buffers {
        if buffer_7(file, &buffer, packing, directory).is_none() {
            directory.losses.push("a buffer's list of CPUs is damaged".to_owned());
        }
    }
    Ok(())
}

/// A section's content, unpacked if it is packed.
fn section(file: &mut File<'_>, at: u64, packing: Option<Packing>) -> Option<Vec<u8>> {
    let head = file.at(at, 16)?;
    let mut cursor = Cursor { rest: &head };
    let (_, flags, _, size) = (cursor.num(2)?, cursor.num(2)?, cursor.num(4)?, cursor.num(8)?);
    let bytes = file.at(at + 16, size)?;
    if flags & 1 == 0 {
        return Some(bytes);
    }
    let mut cursor = Cursor { rest: &bytes };
    let (packed, plain) = (cursor.num(4)?, cursor.num(4)?);
    unpack(packing?, cursor.take(packed)?, plain, SECTION_BYTES)
}

/// One of the sections that describe pages, events and symbols.
fn described(
    file: &mut File<'_>,
    id: u64,
    place: u64,
    packing: Option<Packing>,
    to: &mut Directory,
) -> Option<()> {
    let bytes = section(file, place, packing)?;
    let mut cursor = Cursor { rest: &bytes };
    match id {
        16 => {
            if cursor.name()? != b"header_page" {
                return None;
            }
            let size = cursor.num(8)?;
            to.description.page(cursor.take(size)?)
        }
        17 => to.description.ftrace_events(&mut cursor),
        18 => to.description.events(&mut cursor),
        _ => {
            let size = cursor.num(4)?;
            to.kallsyms = cursor.take(size)?.to_vec();
            Some(())
        }
    }
}

/// A buffer: its section, name, clock, page size, and the CPUs' pages.
fn buffer_7(
    file: &mut File<'_>,
    option: &[u8],
    packing: Option<Packing>,
    to: &mut Directory,
) -> Option<()> {
    let mut cursor = Cursor { rest: option };
    let head = file.at(cursor.num(8)?, 16)?;
    let packed = head[2] & 1 == 1;
    let packing = if packed { Some(packing?) } else { None };
    cursor.name()?;
    cursor.name()?;
    let page_bytes = cursor.num(4)?;
    if !(1024..=1 << 20).contains(&page_bytes) {
        return None;
    }
    for _ in 0..cursor.num(4)? {
        let (cpu, offset, size) = (cursor.num(4)?, cursor.num(8)?, cursor.num(8)?);
        let cpu = u16::try_from(cpu).ok()?;
        if size > 0 && to.cpus.len() < CPUS {
            to.cpus.push(Cpu { cpu, offset, size, packing, page_bytes });
        }
    }
    Some(())
}

/// Options that are the same in both versions.
fn plain_option(id: u64, option: &[u8], to: &mut Directory) {
    match id {
        // `Linux host 6.1.0-56-amd64 x86_64`
        5 => {
            let text = String::from_utf8_lossy(option);
            let mut words = text.trim_end_matches('\0').split_whitespace();
            to.release = words.nth(2).map(str::to_owned);
        }
        // Multiplier, shift and offset of a clock that counts cycles.
        14 => {
            let mut cursor = Cursor { rest: option };
            if let (Some(factor), Some(shift)) = (cursor.num(4), cursor.num(4))
                && factor > 0
                && shift < 64
            {
                to.cycles = Some((factor, shift as u32));
            }
        }
        _ => {}
    }
}
