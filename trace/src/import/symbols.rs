//! What function a probe sits on: by the address and `/proc/kallsyms`, else by a list of probes,
//! else by the names that recorders give, which is an assumption.

use rustc_hash::FxHashMap;

use super::event::Event;
use super::kvm::well_known;
use super::number::{hex, words};

/// A probe on a function's entry lies at most so many bytes behind its start: `endbr64` and the
/// call of the function tracer come first (kprobes of kernels with IBT show `+0x4`).
const ENTRY_BYTES: u64 = 9;

/// Symbols and probes by name.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    text: Vec<u8>,
    /// Address with begin and end of the name, ascending.
    table: Vec<(u64, u32, u32)>,
    probes: FxHashMap<Vec<u8>, Vec<u8>>,
}

impl Symbols {
    /// Reads the text of `/proc/kallsyms`. Addresses of 0 (hidden from who read them) do not count.
    #[must_use]
    pub fn from_kallsyms(text: &[u8]) -> Self {
        let mut symbols = Self::default();
        symbols.add_kallsyms(text);
        symbols
    }

    /// As [`Self::from_kallsyms`]; answers how many symbols there are.
    pub fn add_kallsyms(&mut self, text: &[u8]) -> usize {
        self.text = text[..text.len().min(u32::MAX as usize)].to_vec();
        self.table.clear();
        let mut from = 0;
        for line in self.text.split(|&c| c == b'\n') {
            let start = from;
            from += line.len() + 1;
            let Some(blank) = line.iter().position(|&c| c == b' ') else { continue };
            let Some(address) = hex(&line[..blank]).filter(|&address| address != 0) else {
                continue;
            };
            // `address type name`, then a tab and the module; data is no function.
            let kind = line.get(blank + 1).copied().unwrap_or(0);
            if !matches!(kind, b't' | b'T' | b'w' | b'W') || line.get(blank + 2) != Some(&b' ') {
                continue;
            }
            let name = &line[blank + 3..];
            let end = name.iter().position(u8::is_ascii_whitespace).unwrap_or(name.len());
            let begin = start + blank + 3;
            self.table.push((address, begin as u32, (begin + end) as u32));
        }
        // Of several names of one address the first in the file stands.
        self.table.sort_by_key(|entry| entry.0);
        self.table.dedup_by_key(|entry| entry.0);
        self.table.len()
    }

    /// Reads probe definitions as `kprobe_events` takes and gives them: `p:group/name function
    /// arguments`, `r:...` for returns, and plain `name function`. Answers how many there are.
    pub fn add_probes(&mut self, text: &[u8]) -> usize {
        let before = self.probes.len();
        for line in text.split(|&c| c == b'\n') {
            let mut words = words(line.trim_ascii());
            let (Some(name), Some(function)) = (words.next(), words.next()) else { continue };
            let name = match name.iter().position(|&c| c == b':') {
                Some(colon) if matches!(name.first(), Some(b'p' | b'r' | b'f')) => {
                    &name[colon + 1..]
                }
                Some(_) => continue,
                None if name.starts_with(b"#") => continue,
                None => name,
            };
            let name = name.rsplit(|&c| c == b'/').next().unwrap_or(name);
            // `module:function+offset`
            let function = function.rsplit(|&c| c == b':').next().unwrap_or(function);
            let (function, offset) = split_offset(function);
            if offset <= ENTRY_BYTES && !function.is_empty() {
                self.probes.insert(name.to_vec(), plain(function).to_vec());
            }
        }
        self.probes.len() - before
    }

    /// Whether there are symbols.
    pub(super) const fn has_addresses(&self) -> bool {
        !self.table.is_empty()
    }

    /// The symbol at or before an address, with the distance.
    pub(super) fn at(&self, address: u64) -> Option<(&[u8], u64)> {
        let behind = self.table.partition_point(|entry| entry.0 <= address);
        let (start, begin, end) = *self.table.get(behind.checked_sub(1)?)?;
        // The last symbol reaches nowhere in particular.
        if behind == self.table.len() && address - start > 1 << 20 {
            return None;
        }
        Some((plain(self.text.get(begin as usize..end as usize)?), address - start))
    }

    /// Tells what an event of a probe sits on; `ip` is the probe's address and `back` where a
    /// return goes. An event that nothing knows keeps its own name.
    pub(super) fn resolve<'a>(&'a self, mut event: Event<'a>, ip: u64, back: u64) -> Event<'a> {
        if event.ret {
            event.caller = self.at(back).map_or(b"", |(name, _)| name);
        }
        match self.at(ip) {
            Some((name, offset)) if offset <= ENTRY_BYTES => {
                event.name = name;
                event.function = true;
                return event;
            }
            // Within a function: its entry it does not show.
            Some(_) => {
                event.inside = true;
                return event;
            }
            None => {}
        }
        let own = event.name.strip_suffix(b"_ret").unwrap_or(event.name);
        if let Some(function) = self.probes.get(event.name).or_else(|| self.probes.get(own)) {
            event.name = function;
            event.function = true;
        } else if let Some(function) = well_known(event.name) {
            event.name = function;
            event.function = true;
            event.assumed = true;
        }
        event
    }
}

/// A symbol without what the compiler appends to it (`.constprop.0`, `.isra.0`).
pub(super) fn plain(name: &[u8]) -> &[u8] {
    let end = name.iter().position(|&c| c == b'.').unwrap_or(name.len());
    if end == 0 || name[end..].starts_with(b".cold") || name[end..].starts_with(b".part") {
        return name;
    }
    &name[..end]
}

/// `function+0x4/0x30` as name and offset.
pub(super) fn split_offset(text: &[u8]) -> (&[u8], u64) {
    let Some(plus) = text.iter().position(|&c| c == b'+') else { return (text, 0) };
    let offset = &text[plus + 1..];
    (&text[..plus], super::number::number(offset).unwrap_or(u64::MAX))
}

/// Whether a probe at this offset sits on the entry.
pub(super) const fn on_entry(offset: u64) -> bool {
    offset <= ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kallsyms_probes_and_offsets() {
        let text =
            b"0000000000000000 T hidden\nffff1000 T a\nffff1040 t kvm_mmu_load.isra.0\t[kvm]\n\
            ffff1080 D data\nffff1090 t z.cold\n";
        let mut symbols = Symbols::from_kallsyms(text);
        assert_eq!(symbols.at(0xffff_1044), Some((&b"kvm_mmu_load"[..], 4)));
        assert_eq!(symbols.at(0xffff_1085), Some((&b"kvm_mmu_load"[..], 0x45)), "no data");
        assert_eq!(symbols.at(0xfff), None);
        let list = b"p:kg/load kvm_mmu_load id=+36(%di):s32\nr10:kg/load_ret kvm_mmu_load\n\
            # a comment\nwhere kvm:kvm_set_cr3\np:kg/inside kvm_set_cr0+0x30\n";
        assert_eq!(symbols.add_probes(list), 3);
        assert_eq!(symbols.probes[&b"where"[..]], b"kvm_set_cr3");
    }
}
