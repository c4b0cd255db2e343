//! Roots as printed at an entry, against the model's: same CR3 in the same slot, and the same page
//! wherever the same page was met before.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;
use tlbscope_sim::engine::drive::RootView;
use tlbscope_trace::act::{Act, RootSlot};
use tlbscope_trace::addr::Hpa;

/// A slot as recorded: CR3, where it was printed, and page.
pub type Seen = Option<(Option<u64>, Hpa)>;

/// What the recording said of one vCPU's roots, and which of its pages are which of the model's.
#[derive(Clone, Debug, Default)]
pub struct Printed {
    /// The last print of each slot; `None`: never printed.
    slots: [Option<Seen>; 4],
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
        // A print of the page alone says nothing of another CR3 while the page is the same.
        let before = self.slots[n].flatten().filter(|(_, page)| Some(*page) == root);
        let pgd = pgd.or(before.and_then(|(pgd, _)| pgd));
        self.slots[n] = Some(root.map(|root| (pgd, root)));
    }

    /// Whether every slot was printed.
    pub fn complete(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    /// The CR3 of the active root, where printed.
    pub fn active(&self) -> Option<u64> {
        self.slots[0].flatten().and_then(|(pgd, _)| pgd)
    }

    /// Takes the printed pages for the model's, whatever they were taken for before.
    pub fn bind(&self, model: &[Option<RootView>; 4], pages: &mut Pages) {
        for (seen, root) in self.slots.iter().zip(model) {
            if let (Some(Some((_, page))), Some(root)) = (seen, root) {
                pages.insert(root.hpa, *page);
            }
        }
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
                    if let Some(pgd) = pgd.filter(|pgd| !direct && *pgd != root.pgd) {
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
            Some(Some((pgd, _))) => pgd.or(Some(model[n].map_or(0, |root| root.pgd))),
            Some(None) => None,
            None => model[n].map(|root| root.pgd),
        })
    }
}
