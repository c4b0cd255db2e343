//! A case against the TLB model: which of its entries are still there at the end.

use tlbscope_sim::arch::access::Rights;
use tlbscope_sim::arch::mode::Mode;
use tlbscope_sim::arch::processor::{Instruction, Processor, Refusal, Step};
use tlbscope_sim::tlb::processors::{Erratum, Processors};
use tlbscope_sim::tlb::{Entry, PscEntry, Tlb};
use tlbscope_trace::act::{Copied, Mark, Tag};
use tlbscope_trace::addr::{Gpa, Gva, PcpuId};

use super::case::{Cached, Case, Copy};
use super::run::{Watcher, run};

impl Watcher for Processors<'_> {
    fn step(&mut self, pcpu: PcpuId, cpu: &Processor, did: &Instruction, step: &Step) {
        Processors::step(self, pcpu, cpu, did, step);
    }
}

/// What the hardware made of a case.
pub(super) struct Outcome {
    pub refusal: Option<Refusal>,
    /// For each entry whether it is still there.
    pub left: Vec<bool>,
}

/// Runs a case on the TLB model. Entries that no hardware would hold at once (two global
/// translations of one page) are cached in rounds of their own.
pub(super) fn outcome(case: &Case, erratum: Erratum<'_>) -> Outcome {
    let mut left = vec![false; case.cached.len()];
    let mut waiting: Vec<usize> = (0..left.len()).collect();
    let mut refusal;
    loop {
        let mut processors = Processors::new(erratum);
        let (mut loaded, mut later) = (Vec::new(), Vec::new());
        for at in waiting {
            let cached = &case.cached[at];
            let clash = loaded.iter().any(|other| clash(cached, &case.cached[*other]));
            if clash { later.push(at) } else { loaded.push(at) }
        }
        for at in &loaded {
            insert(processors.tlb(case.cached[*at].tag.pcpu), &case.cached[*at], *at);
        }
        refusal = run(case, &mut processors);
        for at in loaded {
            left[at] = holds(processors.tlb(case.cached[at].tag.pcpu), &case.cached[at], at);
        }
        if later.is_empty() {
            break;
        }
        waiting = later;
    }
    Outcome { refusal, left }
}

/// Whether one of the two would stand where the other does.
fn clash(a: &Cached, b: &Cached) -> bool {
    let tag = |c: &Cached| if c.global { Tag { pcid: Default::default(), ..c.tag } } else { c.tag };
    let (size, same) = match (a.copy, b.copy) {
        (Copy::Translation(size, _), Copy::Translation(other, _))
        | (Copy::Physical(size), Copy::Physical(other)) => (size.shift(), size == other),
        (Copy::Structure(level, shift), Copy::Structure(other, _)) => (shift, level == other),
        _ => return false,
    };
    same && tag(a) == tag(b) && a.global == b.global && a.address >> size == b.address >> size
}

/// Copies carry the number of their entry, so that none is taken for another.
fn mark(at: usize) -> Mark {
    Mark { g: at as u64 + 1, ..Mark::default() }
}

fn translation(cached: &Cached, at: usize) -> Option<Entry> {
    let (size, guest_size) = match cached.copy {
        Copy::Translation(size, whole) => (size, whole),
        Copy::Physical(size) => (size, size),
        Copy::Structure(..) => return None,
    };
    let rights = cached.rights;
    let copy = Copied {
        write: rights.write,
        user: rights.user,
        xd: rights.xd,
        dirty: rights.dirty,
        ..Copied::default()
    };
    let (global, pcid) = (cached.global, cached.tag.pcid);
    Some(Entry { copy, mark: mark(at), size, guest_size, global, pcid, host_read_only: false })
}

/// The level and mode under which a paging-structure entry is kept: only 32-bit paging has PDEs
/// over 4 MiB.
const fn structure(copy: Copy) -> Option<(Mode, u8)> {
    match copy {
        Copy::Structure(2, 22) => Some((Mode::Bits32, 2)),
        Copy::Structure(level, _) => Some((Mode::Level5, level)),
        _ => None,
    }
}

fn insert(tlb: &mut Tlb, cached: &Cached, at: usize) {
    let (tag, address) = (&cached.tag, cached.address);
    if let Some((mode, level)) = structure(cached.copy) {
        let Cached { rights, .. } = cached;
        let rights =
            Rights { write: rights.write, user: rights.user, xd: rights.xd, ..Rights::FULL };
        let entry = PscEntry { level, rights, mark: mark(at), ..PscEntry::default() };
        tlb.psc_insert(tag, mode, Gva(address), entry);
    } else if let Some(entry) = translation(cached, at) {
        if matches!(cached.copy, Copy::Physical(_)) {
            tlb.insert_gpa(tag, Gpa(address), entry);
        } else {
            tlb.insert(tag, Gva(address), entry);
        }
    }
}

fn holds(tlb: &mut Tlb, cached: &Cached, at: usize) -> bool {
    let (tag, address) = (&cached.tag, cached.address);
    if let Some((mode, level)) = structure(cached.copy) {
        let found = tlb.psc_lookup(tag, mode, Gva(address), level..=level);
        return found.is_some_and(|entry| entry.mark == mark(at));
    }
    translation(cached, at).is_some_and(|entry| {
        if matches!(cached.copy, Copy::Physical(_)) {
            tlb.holds_gpa(tag, Gpa(address), &entry)
        } else {
            tlb.holds(tag, Gva(address), &entry)
        }
    })
}
