//! The border between the machine and whoever watches it: the machine reports, the observer
//! answers nothing but the mark that stays with a cached copy. All calls are statically
//! dispatched; an observer that ignores a call costs nothing.

use crate::act::{Accessed, Act, ArchOp, At, Fill, Instead, Mark, Tag};
use crate::addr::{Gpa, Hpa, VcpuId};
use crate::nested::L2;
use crate::regs::{MmuKind, Regs, Vendor};

/// What of the machine an observer may look at: architectural state only, nothing that a
/// hypervisor or a cache knows.
pub trait World {
    /// The vendor.
    fn vendor(&self) -> Vendor;
    /// Shadow paging or TDP.
    fn mmu(&self) -> MmuKind;
    /// Physical-address width in bits.
    fn maxphyaddr(&self) -> u32;
    /// Whether CPUID enumerates 1 GiB pages.
    fn gbpages(&self) -> bool;
    /// The guest's registers.
    fn regs(&self, vcpu: VcpuId) -> &Regs;
    /// The 8 bytes at `gpa` (aligned down to 8) of guest memory, 0 if never written.
    fn read(&self, gpa: Gpa) -> u64;
    /// The frame of guest memory around `gpa`, as [`World::read`] gives it word by word.
    fn frame(&self, gpa: Gpa) -> [u64; 512] {
        std::array::from_fn(|word| self.read(Gpa((gpa.0 & !0xfff) + word as u64 * 8)))
    }
    /// The host frame that backs this guest page now; `None` if nothing does.
    fn backing(&self, gpa: Gpa) -> Option<Hpa>;
    /// Bytes of guest memory: what lies above is MMIO and has no backing.
    fn memory_bytes(&self) -> u64;
    /// What L1's processor knows of L2 while L2 runs; `None` in L1. [`World::regs`] are L2's then.
    fn l2(&self, vcpu: VcpuId) -> Option<L2> {
        let _ = vcpu;
        None
    }
}

/// Someone who watches a run.
pub trait Observer {
    /// An architectural operation took effect. `before` are the registers it found, those it left
    /// are in `world`. `native`: the guest's CPU carried it out without an exit, so that its own
    /// invalidation follows at once as [`crate::act::Inv::Guest`] and its deadline is the next
    /// guest instruction; otherwise the deadline is the next entry.
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        let _ = (at, op, before, native, world);
    }

    /// Software stored to guest memory: `bytes` (4 or 8) at `gpa`, as `old` and `new` values. Called
    /// before memory changes. Accessed and dirty bits set by a walk are not reported.
    fn store<W: World>(&mut self, at: &At, gpa: Gpa, bytes: u8, old: u64, new: u64, world: &W) {
        let _ = (at, gpa, bytes, old, new, world);
    }

    /// Hypervisor or hardware did something.
    fn act<W: World>(&mut self, at: &At, act: &Act, world: &W) {
        let _ = (at, act, world);
    }

    /// The invalidation reported last dropped `entries` usable translations of one container:
    /// `tag`, with `global` telling global from PCID-tagged ones (for a global container `tag.pcid`
    /// is meaningless).
    fn dropped(&mut self, at: &At, tag: &Tag, global: bool, entries: u32) {
        let _ = (at, tag, global, entries);
    }

    /// A hardware walk begins; the copies it uses instead of memory follow as
    /// [`Observer::walk_uses`], and what it fills as [`Observer::fill`].
    fn walk_begin(&mut self, at: &At) {
        let _ = at;
    }

    /// The walk under way uses this cached copy (a paging-structure-cache entry, or a
    /// guest-physical mapping) instead of reading memory.
    fn walk_uses(&mut self, at: &At, mark: Mark, instead: Instead, tag: &Tag) {
        let _ = (at, mark, instead, tag);
    }

    /// The hardware caches a copy; the answer stays with it.
    fn fill<W: World>(&mut self, at: &At, fill: &Fill, world: &W) -> Mark {
        let _ = (at, fill, world);
        Mark::default()
    }

    /// An access of which this observer need not be told, because it is [indifferent](Self::indifferent)
    /// to the copy, caches that copy again as it was cached before. Since then there were only hits
    /// and such refills. `refs` entries of page tables were read. Whoever counts refills
    /// ([`Act::Refill`]) and is indifferent counts them here as well.
    fn refill(&mut self, at: &At, refs: u8) {
        let _ = (at, refs);
    }

    /// An access finished.
    fn access<W: World>(&mut self, at: &At, access: &Accessed, world: &W) {
        let _ = (at, access, world);
    }

    /// The copies of which this observer need not be told that an access of `vcpu` used one which
    /// permits it: most accesses are of this kind. That holds until anything else happens. `None`:
    /// it wants to be told of every access.
    fn indifferent<W: World>(&self, vcpu: VcpuId, world: &W) -> Option<Marks> {
        let _ = (vcpu, world);
        None
    }

    /// Whether there was nothing to say of the copy that the access told last used, so that
    /// [`Marks::note`] may be noted on it.
    fn approves(&self) -> bool {
        false
    }
}

/// Copies of which an observer need not be told: those with a mark in which the bits that are set in
/// `bits` are as in `are`, and either no word is less than in `least`, or the note on the copy is `note`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Lower bound of each word.
    pub least: Mark,
    /// The bits that must be as in [`Marks::are`].
    pub bits: Mark,
    /// What they must be.
    pub are: Mark,
    /// What is noted on copies that were [approved](Observer::approves) and would be again. 0: nothing is.
    pub note: u64,
}

impl Marks {
    /// Any mark.
    pub const ALL: Self = Self { least: Mark::ZERO, bits: Mark::ZERO, are: Mark::ZERO, note: 0 };

    /// Whether a copy with this mark and this note on it is one of them.
    #[inline]
    #[must_use]
    pub const fn has(&self, mark: Mark, note: u64) -> bool {
        let Self { least, bits, are, .. } = self;
        let differ =
            (mark.g ^ are.g) & bits.g | (mark.h ^ are.h) & bits.h | (mark.n ^ are.n) & bits.n;
        let young = mark.g >= least.g && mark.h >= least.h && mark.n >= least.n;
        differ == 0 && (young || note != 0 && note == self.note)
    }

    /// Marks that are among both: all of them where one of the two is [`Marks::ALL`], else none.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (marks, Self::ALL) | (Self::ALL, marks) => Some(marks),
            _ => None,
        }
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nobody;

impl Observer for Nobody {
    fn indifferent<W: World>(&self, _: VcpuId, _: &W) -> Option<Marks> {
        Some(Marks::ALL)
    }
}

/// Two watch; the first one's mark stays with the copy.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        self.0.arch(at, op, before, native, world);
        self.1.arch(at, op, before, native, world);
    }

    fn store<W: World>(&mut self, at: &At, gpa: Gpa, bytes: u8, old: u64, new: u64, world: &W) {
        self.0.store(at, gpa, bytes, old, new, world);
        self.1.store(at, gpa, bytes, old, new, world);
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, world: &W) {
        self.0.act(at, act, world);
        self.1.act(at, act, world);
    }

    fn dropped(&mut self, at: &At, tag: &Tag, global: bool, entries: u32) {
        self.0.dropped(at, tag, global, entries);
        self.1.dropped(at, tag, global, entries);
    }

    fn walk_begin(&mut self, at: &At) {
        self.0.walk_begin(at);
        self.1.walk_begin(at);
    }

    fn walk_uses(&mut self, at: &At, mark: Mark, instead: Instead, tag: &Tag) {
        self.0.walk_uses(at, mark, instead, tag);
        self.1.walk_uses(at, mark, instead, tag);
    }

    fn fill<W: World>(&mut self, at: &At, fill: &Fill, world: &W) -> Mark {
        let mark = self.0.fill(at, fill, world);
        self.1.fill(at, fill, world);
        mark
    }

    fn refill(&mut self, at: &At, refs: u8) {
        self.0.refill(at, refs);
        self.1.refill(at, refs);
    }

    fn access<W: World>(&mut self, at: &At, access: &Accessed, world: &W) {
        self.0.access(at, access, world);
        self.1.access(at, access, world);
    }

    #[inline]
    fn indifferent<W: World>(&self, vcpu: VcpuId, world: &W) -> Option<Marks> {
        self.0.indifferent(vcpu, world)?.and(self.1.indifferent(vcpu, world)?)
    }

    fn approves(&self) -> bool {
        self.0.approves()
    }
}
