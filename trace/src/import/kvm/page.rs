//! What tells one shadow page from another: frame and role, as far as every form shows them. The
//! kernel's text leaves out some role bits and `trace-cmd report` others.

use super::super::event::Event;
use super::super::number::{bare_hex, words};

/// Bits of the raw role that every form shows: level, size of entries, quadrant, direct, access,
/// NX (`union kvm_mmu_page_role`, equal from 5.10 to 6.18).
const ROLE: u64 = 0x17ff;

/// A shadow page's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PageKey {
    gfn: u64,
    role: u64,
}

/// What an event tells of a shadow page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// `None`: the form leaves out the frame (`trace-cmd report`, but for kvm_mmu_get_page).
    pub key: Option<PageKey>,
    pub gfn: u64,
    pub level: u8,
    pub new: bool,
}

impl Page {
    pub fn of(event: &Event<'_>) -> Self {
        if let (Some(gfn), Some(role)) = (event.num(b"gfn"), event.num(b"role")) {
            let level = (role & 0xf) as u8;
            let key = Some(PageKey { gfn, role: role & ROLE });
            return Self { key, gfn, level, new: event.num(b"created") == Some(1) };
        }
        printed(event.text())
    }
}

/// `sp gen 0 gfn 250 l1 8-byte q0 direct wux nxe ad root 0 sync new`; trace-cmd writes
/// `new sp gfn 250 1 q0 direct wux !pae nxe !wp root 0 sync`.
fn printed(text: &[u8]) -> Page {
    let mut page = Page::default();
    let (mut gfn, mut role, mut level_next) = (None, 0_u64, true);
    let mut words = words(text);
    while let Some(word) = words.next() {
        match word {
            b"gfn" => {
                gfn = words.next().and_then(bare_hex);
                level_next = true;
            }
            b"gen" => {
                words.next();
                level_next = false;
            }
            b"root" => {
                words.next();
            }
            b"new" => page.new = true,
            b"4-byte" | b"pae" => role |= 1 << 4,
            b"direct" => role |= 1 << 7,
            b"nxe" => role |= 1 << 12,
            [b'q', quadrant] => role |= u64::from(quadrant & 3) << 5,
            [b'l', level] if level.is_ascii_digit() => page.level = level - b'0',
            [level] if level_next && level.is_ascii_digit() => page.level = level - b'0',
            _ if is_access(word) => {
                let bits = word.iter().filter(|&&c| c != b'-');
                role |= bits.fold(0, |bits, c| bits | access(*c)) << 8;
            }
            _ => {}
        }
    }
    page.gfn = gfn.unwrap_or(0);
    page.key = gfn.map(|gfn| PageKey { gfn, role: role | u64::from(page.level) });
    page
}

/// `wux`, `w-x`, `rwux`.
fn is_access(word: &[u8]) -> bool {
    matches!(word.len(), 3 | 4)
        && word.iter().all(|c| matches!(c, b'r' | b'w' | b'u' | b'x' | b'-'))
}

const fn access(letter: u8) -> u64 {
    match letter {
        b'x' => 1,
        b'w' => 2,
        b'u' => 4,
        _ => 8,
    }
}

/// The letters of access that a printed page has: `rwux` has four.
pub(super) fn access_letters(text: &[u8]) -> Option<usize> {
    words(text).find(|word| is_access(word)).map(<[u8]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_names_a_page_alike() {
        let kernel = printed(b"sp gen 0 gfn 48 l1 8-byte q0 w-x nxe ad root 0 unsync");
        let report = printed(b"new sp gfn 48 1 q0 w-x !pae nxe !wp smap root 0 sync");
        assert_eq!(kernel.key, report.key);
        assert!(report.new && !kernel.new);
        // Role 37633 = 0x9301: level 1, access 3 (w, x), NX, and bits that texts leave out.
        let key = PageKey { gfn: 0x48, role: 37633 & ROLE };
        assert_eq!(kernel.key, Some(key));
        assert_eq!(printed(b"2 q0 direct wux !pae nxe !wp root 0 sync").key, None);
        assert_eq!(printed(b"2 q0 direct wux !pae nxe !wp root 0 sync").level, 2);
    }
}
