//! Roots as printed at an entry, against the model's: same CR3 in the same slot, and the same page
//! wherever the same page was met before.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;
use tlbscope_sim::engine::drive::RootView;
use tlbscope_trace::act::{Act, RootSlot};
use tlbscope_trace::addr::Hpa;

/// A slot as recorded: CR3 and page.
pub type Seen = Option<(u64, Hpa)>;

/// What the recording said of one vCPU's roots, and which of its pages are which of the model's.
#[derive(Clone, Debug, Default)]
pub struct Printed {
    /// The last print of each slot; `None`: never printed.
    slots: [Option<Seen>; 4],
    /// Whether CR3 values were printed.
    pgd: bool,
}

/// The recording's page of each of the model's.
pub type Pages = HashMap<Hpa, Hpa, FxBuildHasher>;

impl Printed {
    /// Takes a print; answers whether all slots are told with it.
    pub fn take(&mut self, act: &Act) {
        let Act::RootSeen { slot, pgd, root } = *act else { return };
        let n = match slot {
            RootSlot::Current => 0,
            RootSlot::Prev(n) => 1 + usize::from(n & 3).min(2),
        };
        self.pgd |= pgd.is_some();
        self.slots[n] = Some(root.map(|root| (pgd.unwrap_or(0), root)));
    }

    /// Whether anything was printed.
    pub fn any(&self) -> bool {
        self.slots[0].is_some()
    }

    /// What differs from the model's roots. Direct roots (`tdp`, or paging off) have no CR3.
    pub fn differs(
        &self,
        model: &[Option<RootView>; 4],
        direct: bool,
        pages: &mut Pages,
    ) -> Option<String> {
        for (n, seen) in self.slots.iter().enumerate() {
            let Some(seen) = seen else { continue };
            let name = ["the active root", "prev_roots[0]", "prev_roots[1]", "prev_roots[2]"][n];
            match (seen, model[n]) {
                (None, None) => {}
                (Some(_), None) => return Some(format!("{name} is invalid in the model")),
                (None, Some(_)) => return Some(format!("{name} is valid in the model alone")),
                (Some((pgd, page)), Some(root)) => {
                    if self.pgd && !direct && *pgd != root.pgd {
                        let model = root.pgd;
                        return Some(format!("{name} is for {pgd:#x}, the model's for {model:#x}"));
                    }
                    let known = *pages.entry(root.hpa).or_insert(*page);
                    if known != *page {
                        return Some(format!("{name} is page {:#x}, not {:#x}", page.0, known.0));
                    }
                }
            }
        }
        None
    }

    /// The CR3 of each slot that is valid, the model's own where nothing was printed.
    pub fn to_take_over(&self, model: &[Option<RootView>; 4]) -> [Option<u64>; 4] {
        std::array::from_fn(|n| match self.slots[n] {
            Some(Some((pgd, _))) if self.pgd => Some(pgd),
            Some(Some(_)) => Some(model[n].map_or(0, |root| root.pgd)),
            Some(None) => None,
            None => model[n].map(|root| root.pgd),
        })
    }
}
