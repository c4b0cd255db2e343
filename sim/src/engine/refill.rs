//! The miss that most misses are: a translation that had to make room comes back as it was. Between the
//! fill before and this one there were only hits and such refills, so the walk would read the same
//! entries and find the same frame, and an observer that had nothing to say then has nothing to say now.
//! What the walk leaves behind stays as it is, too: the translation in its set, and which of the
//! paging-structure and nested entries was used last.
//!
//! What a walk does when it is not so short is in [`super::access`]; it says which fills can be repeated.

use std::fmt;

use serde::{Deserialize, Serialize};
use tlbscope_trace::act::Tag;
use tlbscope_trace::addr::{Gva, PAGE_BYTES};
use tlbscope_trace::op::{Access, AccessKind};

use crate::arch::access::{Permitted, Rights};
use crate::arch::mode::Mode;
use crate::tlb::{Entry, Tlb};

/// Fills that are remembered.
const FILLS: usize = 1 << 14;

/// From where a walk that can be repeated went on: what has to be there for it the next time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Below {
    /// From the root: the processor has no paging-structure caches.
    #[default]
    Root,
    /// From a cached entry of this level, which led to the table with the leaf.
    Structure(Mode, u8),
}

/// A fill that can be repeated.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Repeatable {
    pub below: Below,
    /// Entries read.
    pub refs: u8,
    /// What the copy may carry.
    pub note: u64,
}

/// A fill.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Fill {
    /// The era it was made in; 0: there is none.
    era: u64,
    page: u64,
    entry: Entry,
    pcpu: u16,
    of: Repeatable,
}

/// The latest fills that can be repeated, by page, and the era: how often something happened that was
/// neither a hit nor a fill that can be repeated.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "Written", from = "Written")]
pub(super) struct Refills {
    era: u64,
    /// Empty until there is one.
    fills: Vec<Fill>,
    /// Of the event under way.
    made: Option<Fill>,
}

/// The fills of the present era.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    era: u64,
    fills: Vec<Fill>,
}

impl Refills {
    fn written(&self) -> Written {
        let present = self.fills.iter().filter(|fill| fill.era == self.era);
        Written { era: self.era, fills: present.copied().collect() }
    }
}

impl From<Refills> for Written {
    fn from(refills: Refills) -> Self {
        refills.written()
    }
}

impl fmt::Debug for Refills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written().fmt(f)
    }
}

impl From<Written> for Refills {
    fn from(Written { era, fills }: Written) -> Self {
        let mut refills = Self { era, ..Self::default() };
        fills.into_iter().for_each(|fill| refills.keep(fill));
        refills
    }
}

impl Default for Refills {
    fn default() -> Self {
        Self { era: 1, fills: Vec::new(), made: None }
    }
}

/// Where the fill of a page is remembered. Neighbours do not meet, nor do pages that lie apart by a power of
/// two.
const fn place(pcpu: u16, page: u64) -> usize {
    (page ^ page >> 14 ^ page >> 28 ^ (pcpu as u64) << 7) as usize % FILLS
}

/// What a refill under the tag of a vCPU needs beside its page.
pub(super) struct Under<'a> {
    pub pcpu: u16,
    pub tag: &'a Tag,
    /// The tag of guest-physical mappings, where they are cached by themselves.
    pub physical: Option<&'a Tag>,
    pub permitted: &'a Permitted,
}

impl Refills {
    fn keep(&mut self, fill: Fill) {
        if self.fills.is_empty() {
            self.fills.resize(FILLS, Fill::default());
        }
        self.fills[place(fill.pcpu, fill.page)] = fill;
    }

    /// The event under way fills a translation, and the fill can be repeated if nothing else happens.
    pub fn fills(&mut self, pcpu: u16, gva: Gva, entry: &Entry, of: Repeatable) {
        let page = gva.0 / PAGE_BYTES;
        self.made = Some(Fill { era: self.era, page, entry: *entry, pcpu, of });
    }

    /// An event that was no hit is over. `quiet`: nothing happened in it but what the vCPU itself did.
    #[inline]
    pub fn over(&mut self, quiet: bool) {
        if self.made.is_none() || !quiet {
            self.era += 1;
            self.made = None;
        } else if let Some(fill) = self.made.take() {
            self.keep(fill);
        }
    }

    /// Fills for an access as it was filled before in this era, and gives the entries that were read;
    /// `None`: the walk has to be made.
    pub fn again(&self, tlb: &mut Tlb, under: &Under<'_>, access: &Access) -> Option<u8> {
        let page = access.gva.0 / PAGE_BYTES;
        let fill = self.fills.get(place(under.pcpu, page))?;
        if (fill.era, fill.page, fill.pcpu) != (self.era, page, under.pcpu) {
            return None;
        }
        let copy = fill.entry.copy;
        let write = access.kind == AccessKind::Write;
        let rights = Rights { write: copy.write, user: copy.user, xd: copy.xd, key: copy.key };
        if write && !copy.dirty || !under.permitted.permits(rights, access) {
            return None;
        }
        if let Some(tag) = under.physical {
            tlb.lookup_gpa(tag, copy.gpa)?;
        }
        if let Below::Structure(mode, level) = fill.of.below {
            tlb.psc_lookup(under.tag, mode, access.gva, level..=level)?;
        }
        tlb.insert_noted(under.tag, Gva(page * PAGE_BYTES), fill.entry, fill.of.note);
        Some(fill.of.refs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tlbscope_trace::act::{Act, At};
    use tlbscope_trace::addr::{Gpa, PageSize, Time, VcpuId};
    use tlbscope_trace::observe::{Marks, Observer, World};
    use tlbscope_trace::op::{Actor, Event, Op, Perms, RegWrite};
    use tlbscope_trace::regs::{Cr0, Cr4, MmuKind, Vendor};

    use super::*;
    use crate::engine::Machine;
    use crate::machine::config::MachineConfig;
    use crate::policy;

    const FEW_ENTRIES: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/machines/few-entries.toml");

    /// Has nothing to say of any copy, and counts refills, in which event each was, and how many were told
    /// of in short.
    #[derive(Default)]
    struct Counts {
        refills: Vec<(At, u8)>,
        short: usize,
    }

    impl Observer for Counts {
        fn act<W: World>(&mut self, at: &At, act: &Act, _: &W) {
            if let Act::Refill { refs, .. } = act {
                self.refills.push((*at, *refs));
            }
        }

        fn refill(&mut self, at: &At, refs: u8) {
            self.refills.push((*at, refs));
            self.short += 1;
        }

        fn indifferent<W: World>(&self, _: VcpuId, _: &W) -> Option<Marks> {
            Some(Marks::ALL)
        }
    }

    fn machine(config: &MachineConfig) -> Machine {
        Machine::new(config, &policy::load("kvm-6.1-lts").unwrap()).unwrap()
    }

    /// Runs of hits and refills at once.
    fn at_once(mut machine: Machine, events: &[Event]) -> (Counts, u64) {
        let (mut counts, mut at) = (Counts::default(), 0);
        loop {
            at += machine.hits(&events[at..], at as u64, &mut counts);
            let Some(event) = events.get(at) else { break };
            let _refused = machine.run(event, at as u64, &mut counts);
            at += 1;
        }
        (counts, machine.digest())
    }

    /// Every walk is made.
    fn one_by_one(mut machine: Machine, events: &[Event]) -> (Counts, u64) {
        let mut counts = Counts::default();
        for (n, event) in (0..).zip(events) {
            let _refused = machine.run(event, n, &mut counts);
        }
        (counts, machine.digest())
    }

    /// Pages, of which 5 is remembered where 0 is.
    fn page(n: u64) -> Gva {
        Gva(match n {
            0..3 => 0x7000 + n * 0x1000,
            3 | 4 => 0x7000 + (n - 2) * 0x20_0000,
            5 => (FILLS as u64 | 6) * PAGE_BYTES,
            // Two of one region, then others.
            6 => 0x4000_8000,
            _ => 0x7000 + (n - 6) * 0x4000_0000,
        })
    }

    fn read(n: u64) -> Op {
        let gva = Gva(page(n).0 + 8);
        Op::Access(Access { gva, kind: AccessKind::Read, user: false, ac: false })
    }

    fn map(n: u64, frame: u64, perms: Perms) -> Op {
        let (size, root) = (PageSize::Size4K, None);
        Op::Map { gva: page(n), gpa: Gpa(0x5000 + frame * 0x1000), size, perms, root }
    }

    fn events(ops: impl IntoIterator<Item = (Op, u16)>) -> Vec<Event> {
        let event = |(n, (op, vcpu))| Event { time: Time(n), actor: Actor::Vcpu(VcpuId(vcpu)), op };
        (0..).zip(ops).map(event).collect()
    }

    const ALL: Perms = Perms { read: true, write: true, exec: true, user: false, global: false };

    /// Every kind of processor and of second tables.
    fn configs() -> [MachineConfig; 4] {
        [
            (Vendor::Intel, MmuKind::Tdp),
            (Vendor::Intel, MmuKind::Shadow),
            (Vendor::Amd, MmuKind::Tdp),
            (Vendor::Amd, MmuKind::Shadow),
        ]
        .map(|(vendor, mmu)| MachineConfig {
            vendor,
            mmu,
            tlb: FEW_ENTRIES.to_owned(),
            ..MachineConfig::default()
        })
    }

    /// Reads of these pages in turn.
    fn turns(pages: &[u64]) -> Vec<Op> {
        pages.iter().cycle().take(30).map(|n| read(*n)).collect()
    }

    /// After every page is mapped: the short way comes to the same as all walks. How many refills were
    /// short.
    fn the_same(config: &MachineConfig, ops: &[Op]) -> usize {
        let maps = (0..10).map(|n| map(n, n, ALL));
        let events = events(maps.chain(ops.iter().cloned()).map(|op| (op, 0)));
        let (short, digest) = at_once(machine(config), &events);
        let (walked, expected) = one_by_one(machine(config), &events);
        let of = (config.vendor, config.mmu);
        assert_eq!(short.refills, walked.refills, "{of:?}");
        assert_eq!(digest, expected, "{of:?}");
        assert_eq!(walked.short, 0);
        short.short
    }

    /// Three pages take turns in two entries: after each was filled once undisturbed, no walk is made
    /// again until something happens.
    #[test]
    fn what_made_room_comes_back_without_a_walk() {
        let toggle = Op::Cr4(RegWrite { clear: Cr4::SMEP.bits(), set: 0 });
        let ops = [turns(&[0, 1, 2]), vec![toggle], turns(&[0, 1, 2])].concat();
        for config in configs() {
            let short = the_same(&config, &ops);
            // Intel keeps mappings of guest-physical addresses as well, in two entries: they make room too.
            let kept = config.vendor == Vendor::Intel && config.mmu == MmuKind::Tdp;
            // Each of the three is faulted in, then filled once; behind the toggle it is filled once.
            assert_eq!(short, if kept { 0 } else { 60 - 6 - 3 }, "{:?}", config.vendor);
        }
    }

    /// What the walk begins below may have had to make room as well: three regions, two entries.
    #[test]
    fn a_walk_from_further_up_is_made() {
        for config in configs() {
            the_same(&config, &turns(&[0, 1, 3, 4]));
            the_same(&config, &turns(&[0, 3, 1, 4, 2]));
        }
    }

    /// Which entries above were used last is told by which had to make room for a third one.
    #[test]
    fn what_a_walk_begins_below_was_used() {
        let known = [turns(&[4]), turns(&[0, 1, 2, 3])].concat();
        let ops = [known, vec![read(3), read(0), read(4), read(1)]].concat();
        for config in configs() {
            the_same(&config, &ops);
        }
    }

    /// Tables apart by gigabytes: no entry above is left of one when its turn comes, and the walk from
    /// the root leaves what the next one begins below.
    #[test]
    fn a_walk_from_the_root_leaves_something() {
        let known = [turns(&[6]), turns(&[7, 8, 9])].concat();
        let ops = [known, vec![read(7), read(6)]].concat();
        for config in configs() {
            the_same(&config, &ops);
        }
    }

    /// A write to what was read: the dirty bit is for a walk to set.
    #[test]
    fn a_write_to_a_clean_page_is_a_walk() {
        let write = |n| {
            let gva = Gva(page(n).0 + 8);
            vec![Op::Access(Access { gva, kind: AccessKind::Write, user: false, ac: false })]
        };
        let ops = [turns(&[0, 1, 2]), write(0), turns(&[1, 2, 0]), write(1), write(0)].concat();
        for config in configs() {
            the_same(&config, &ops);
        }
    }

    /// Two pages that are remembered in one place are told apart.
    #[test]
    fn pages_that_meet_are_told_apart() {
        assert_eq!(place(0, page(0).0 / PAGE_BYTES), place(0, page(5).0 / PAGE_BYTES));
        for config in configs() {
            the_same(&config, &turns(&[0, 1, 2, 5]));
            the_same(&config, &[turns(&[0, 1, 2]), turns(&[5, 1, 2])].concat());
        }
    }

    fn op() -> impl Strategy<Value = Vec<Op>> {
        let perms = any::<[bool; 4]>().prop_map(|[write, exec, user, global]| Perms {
            read: true,
            write,
            exec,
            user,
            global,
        });
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Exec];
        let access = (0..6u64, prop::sample::select(kinds.to_vec()), any::<bool>());
        let access = access.prop_map(|(n, kind, user)| {
            vec![Op::Access(Access { gva: Gva(page(n).0 + 8), kind, user, ac: false })]
        });
        let turns = (0..6u64, 2..5u64)
            .prop_map(|(first, pages)| (0..12).map(|n| read((first + n % pages) % 6)).collect());
        let toggled = [Cr4::SMEP, Cr4::SMAP, Cr4::PGE].map(|bit| bit.bits());
        let write = |bits: u64, on: bool| RegWrite { clear: bits, set: if on { bits } else { 0 } };
        let cr4 = (prop::sample::select(toggled.to_vec()), any::<bool>());
        let one = |op: Op| vec![op];
        prop_oneof![
            4 => turns,
            4 => access,
            3 => (0..6u64, 0..4u64, perms).prop_map(move |(n, frame, perms)| one(map(n, frame, perms))),
            1 => (0..6u64).prop_map(move |n| one(Op::Invlpg(page(n)))),
            1 => cr4.prop_map(move |(bits, on)| one(Op::Cr4(write(bits, on)))),
            1 => any::<bool>().prop_map(move |on| one(Op::Cr0(write(Cr0::WP.bits(), on)))),
            1 => Just(one(Op::Exit(None))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whether walks are made or not, the same is filled, and the same had to make room for it.
        #[test]
        fn a_refill_is_what_its_walk_would_be(
            [amd, shadow] in any::<[bool; 2]>(),
            vcpus in 1..3u16,
            ops in prop::collection::vec((op(), 0..2u16), 1..40),
        ) {
            let config = MachineConfig {
                vendor: if amd { Vendor::Amd } else { Vendor::Intel },
                mmu: if shadow { MmuKind::Shadow } else { MmuKind::Tdp },
                tlb: FEW_ENTRIES.to_owned(),
                vcpus,
                pcpus: 1,
                ..MachineConfig::default()
            };
            let all = ops.into_iter().flat_map(|(ops, vcpu)| ops.into_iter().map(move |op| (op, vcpu % vcpus)));
            let events = events(all);
            let (short, digest) = at_once(machine(&config), &events);
            let (walked, expected) = one_by_one(machine(&config), &events);
            prop_assert_eq!(short.refills, walked.refills);
            prop_assert_eq!(digest, expected);
        }
    }
}
