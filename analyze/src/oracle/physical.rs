//! How old the guest-physical mappings are through which copies are made: by processor and EP4TA, so
//! that an INVEPT, which leaves none of them, frees what is known of them too. What remains is bounded
//! by guest memory and the EP4TAs in use.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tlbscope_trace::act::{Inv, Tag};

/// EP4TAs of all processors that are kept apart: the least recently used goes.
const GROUPS: usize = 256;

/// `h` and `n` of a mapping.
type Stamps = (u64, u64);

/// Mappings of one EP4TA on one processor, by page of L1 and log2 of its size.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Group {
    pcpu: u16,
    ep4ta: u64,
    #[serde(with = "tlbscope_trace::state::map")]
    of: FxHashMap<(u64, u8), Stamps>,
}

/// The stamps of guest-physical copies; the group used last comes first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Physical {
    groups: Vec<Group>,
    /// Page sizes (log2) of all mappings so far.
    sizes: u64,
}

impl Physical {
    /// The stamps of the copy of a page.
    #[must_use]
    pub fn get(&self, tag: &Tag, page: u64, shift: u8) -> Option<Stamps> {
        let key = (tag.pcpu.0, tag.ep4ta.0);
        if self.sizes & 1 << shift == 0 {
            return None;
        }
        let group = self.groups.iter().find(|group| (group.pcpu, group.ep4ta) == key)?;
        group.of.get(&(page, shift)).copied()
    }

    /// A copy of a page was made.
    pub fn insert(&mut self, tag: &Tag, page: u64, shift: u8, stamps: Stamps) {
        let (pcpu, ep4ta) = (tag.pcpu.0, tag.ep4ta.0);
        self.sizes |= 1 << shift;
        let place = self.groups.iter().position(|g| (g.pcpu, g.ep4ta) == (pcpu, ep4ta));
        match place {
            Some(0) => {}
            Some(place) => self.groups[..=place].rotate_right(1),
            None => {
                self.groups.truncate(GROUPS - 1);
                self.groups.insert(0, Group { pcpu, ep4ta, of: FxHashMap::default() });
            }
        }
        self.groups[0].of.insert((page, shift), stamps);
    }

    /// An invalidation on a processor.
    pub fn invalidate(&mut self, pcpu: u16, inv: &Inv) {
        match *inv {
            Inv::EptSingle(root) => {
                self.groups.retain(|group| group.pcpu != pcpu || group.ep4ta != root.0);
            }
            Inv::EptGlobal => self.groups.retain(|group| group.pcpu != pcpu),
            _ => {}
        }
    }
}
