//! Hyper-V's flush hypercalls in three generations (facts/kvm.md 4.5).

use tlbscope_trace::act::{Hook, HookBy, Request};
use tlbscope_trace::addr::{Gva, PAGE_BYTES};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::HvFlush as Operands;
use tlbscope_trace::regs::MmuKind;

use crate::engine::Machine;
use crate::policy::Ideal;
use crate::policy::mechanics::{HvFlush, HvInput, Noncanonical};

/// Entries of a fifo.
const FIFO: usize = 16;
/// Additional pages that the low bits of an entry can name.
const MORE: u16 = 0xfff;
/// Pages of one hypercall that are owed one by one; a guest cannot list more in one call.
const OWED: usize = 1 << 16;

/// The fifo of one vCPU: `(first page, additional pages)`, `None` stands for "everything".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct HvFifo(Vec<Option<(Gva, u16)>>);

impl HvFifo {
    /// Entries if there is room for all of them and one more, else one that says everything.
    pub fn enqueue(&mut self, list: &[(Gva, u16)]) {
        let free = FIFO - self.0.len();
        if !list.is_empty() && list.len() < free {
            self.0.extend(list.iter().map(|(gva, more)| Some((*gva, more & MORE))));
        } else if free > 0 {
            self.0.push(None);
        } else {
            // Full: what stands there says everything already, or is made to.
            self.0[FIFO - 1] = None;
        }
    }

    /// Every entry in order; `None` if one of them asks for everything.
    pub fn drain(&mut self) -> Option<Vec<(Gva, u16)>> {
        std::mem::take(&mut self.0).into_iter().collect()
    }

    /// Empties it (a full guest flush).
    pub fn purge(&mut self) {
        self.0.clear();
    }
}

impl Machine {
    /// `hvflush`: the hypercall exits, whatever the generation.
    pub(crate) fn hv_flush<O: Observer>(&mut self, v: usize, flush: &Operands, o: &mut O) {
        self.exit(v, None, o);
        let targets = self.targets(&flush.vcpus);
        if self.kicks_take_time() {
            // The flush has happened when the hypercall returns; until its kicks arrive the targets may
            // go on with what they have.
            self.in_flight(o);
        }
        for target in &targets {
            self.owe_hv(*target, &flush.list, o);
        }
        if self.policy.ideal == Ideal::ArchMin || self.input_lost(v) {
            return;
        }
        let request = match self.policy.mechanics.hv_flush {
            HvFlush::Full => Request::TlbFlush,
            HvFlush::Request => Request::TlbFlushGuest,
            HvFlush::Fifo => {
                for target in &targets {
                    self.vcpus[*target].hv.enqueue(&flush.list);
                }
                Request::HvTlbFlush
            }
        };
        self.request_arrived(&targets, request, o);
    }

    /// Whether the input page is looked for at an address that L2 without nested tables does not have:
    /// the hypercall fails, and nothing is flushed.
    fn input_lost(&self, v: usize) -> bool {
        let always = self.policy.mechanics.hv_input == HvInput::GuestMode;
        always && self.vcpus[v].nested.l2.is_some() && self.tables12(v).is_none()
    }

    /// What the guest may count on: the listed pages, or everything, are gone on the target.
    fn owe_hv<O: Observer>(&mut self, v: usize, list: &[(Gva, u16)], o: &mut O) {
        if list.is_empty() {
            self.owe_remote(v, None, o);
            return;
        }
        let pages = list.iter().flat_map(|(gva, more)| {
            let page = gva.0 & !(PAGE_BYTES - 1);
            (0..=u64::from(more & MORE)).map(move |n| Gva(page.wrapping_add(n * PAGE_BYTES)))
        });
        for page in pages.take(OWED) {
            // No translation of an address that is not canonical can exist.
            if self.canonical(v, page) {
                self.owe_remote(v, Some(page), o);
            }
        }
    }

    /// KVM_REQ_HV_TLB_FLUSH: one flush hook a page, or all of it.
    pub(crate) fn hv_tlb_flush<O: Observer>(&mut self, v: usize, o: &mut O) {
        let unable = self.config.mmu == MmuKind::Shadow || !self.config.hyperv;
        match self.vcpus[v].hv.drain() {
            Some(mut entries) if !unable => {
                if self.ideal() {
                    // KVM takes a list as it comes; an ideal flushes no page twice.
                    entries = pages_once(&entries);
                }
                for (gva, more) in entries {
                    self.hv_flush_entry(v, gva, more, o);
                }
            }
            _ => self.guest_flush(v, o),
        }
    }

    /// Whether an address is canonical on a vCPU, whatever its mode.
    fn canonical(&self, v: usize, gva: Gva) -> bool {
        let five = self.vcpus[v].regs.cr4 & tlbscope_trace::regs::Cr4::LA57.bits() != 0;
        let top = (gva.0 as i64) >> if five { 56 } else { 47 };
        top == 0 || top == -1
    }

    fn hv_flush_entry<O: Observer>(&mut self, v: usize, gva: Gva, more: u16, o: &mut O) {
        let page = gva.0 & !(PAGE_BYTES - 1);
        for n in 0..=u64::from(more) {
            let page = page.wrapping_add(n * PAGE_BYTES);
            // The counter ticks once for an entry, however many pages it names.
            let by = if n == 0 { HookBy::Request } else { HookBy::Direct };
            if self.canonical(v, Gva(page)) {
                self.flush_hook(v, Hook::Gva(Gva(page)), by, o);
            } else if self.policy.mechanics.hv_noncanonical == Noncanonical::Pass {
                self.flush_noncanonical(v, Gva(page), by, o);
            }
        }
    }
}

/// The same pages, each by itself and once.
fn pages_once(entries: &[(Gva, u16)]) -> Vec<(Gva, u16)> {
    let pages = entries.iter().flat_map(|(gva, more)| {
        let page = gva.0 & !(PAGE_BYTES - 1);
        (0..=u64::from(*more)).map(move |n| page.wrapping_add(n * PAGE_BYTES))
    });
    let once: std::collections::BTreeSet<u64> = pages.collect();
    once.into_iter().map(|page| (Gva(page), 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(n: u64) -> Vec<(Gva, u16)> {
        (0..n).map(|n| (Gva(n * PAGE_BYTES), 0)).collect()
    }

    /// H1, H2 of facts 5.11, and the rule "more than 15 list entries pushes flush-all" of 4.5.
    #[test]
    fn fifteen_entries_fit_and_sixteen_are_everything() {
        let mut fifo = HvFifo::default();
        fifo.enqueue(&pages(15));
        assert_eq!(fifo.drain().map(|e| e.len()), Some(15));
        fifo.enqueue(&pages(16));
        assert_eq!(fifo.drain(), None);
        assert_eq!(fifo.drain(), Some(Vec::new()));
    }

    #[test]
    fn an_address_space_or_no_room_is_everything() {
        let mut fifo = HvFifo::default();
        fifo.enqueue(&[]);
        assert_eq!(fifo.drain(), None);
        fifo.enqueue(&pages(10));
        fifo.enqueue(&pages(6));
        assert_eq!(fifo.drain(), None);
        for _ in 0..40 {
            fifo.enqueue(&[]);
        }
        assert_eq!(fifo.drain(), None);
    }
}
