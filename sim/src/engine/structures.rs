//! The paging-structure caches at a walk: where it starts, and what it leaves in them (facts A.8).
//!
//! A walk that misses the TLB starts below the lowest upper-level entry that is cached for the
//! address; what lies above is neither read nor checked again, and its rights are used as cached.
//! The entries it reads go into the caches if they lead to a table and have A = 1, which a walk
//! that succeeds has set. Not for L2's own tables: those walks start at the root, which hardware is free
//! to do.
//!
//! Guest-physical entries, tagged with the EP4TA alone (facts D.1), are kept for the tables that stand for
//! L1's EPT: INVEPT drops them, INVVPID does not, an EPT violation drops the path (D.2). KVM's own
//! two-dimensional trees have no tables in this machine, and none that is freed or pointed elsewhere
//! while their root lives: what such an entry leads to is what the walk from the root finds.

use std::ops::RangeInclusive;

use tlbscope_trace::act::{
    Act, Copied, Fill, FillKind, GuestInv, Instead, Inv, Mark, Path, Source, Tag, path_entry,
    path_table,
};
use tlbscope_trace::addr::{Gpa, Gva, Hpa, PAGE_BYTES, PageSize, Sp};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::Access;
use tlbscope_trace::regs::Vendor;

use super::Machine;
use super::access::Walked;
use crate::arch::access::Rights;
use crate::arch::mode::Mode;
use crate::kvm::shadow::{Leaf, ShadowPages, Spte, index};
use crate::paging::walk::{Start, Step, Walk};
use crate::tlb::PscEntry;

const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const XD: u64 = 1 << 63;

/// Levels whose entries may be cached. PDPTEs of PAE paging are not: they are registers, or are read
/// at every walk (facts A.3, A.8). Without paging there is nothing to cache.
const fn cacheable(mode: Mode) -> RangeInclusive<u8> {
    let top = match mode {
        Mode::Off => 1,
        Mode::Bits32 | Mode::Pae => 2,
        Mode::Level4 => 4,
        Mode::Level5 => 5,
    };
    2..=top
}

/// The mode of shadow tables with a root of this level: 8-byte entries whatever the guest has.
pub(super) const fn shadow_mode(level: u8) -> Mode {
    match level {
        5 => Mode::Level5,
        4 => Mode::Level4,
        _ => Mode::Pae,
    }
}

/// A descent through shadow tables.
pub(super) struct Descent {
    /// The links followed: page, index, where it points.
    links: [(Sp, u16, Sp); 4],
    count: usize,
    path: Path,
    /// The leaf entry, if the path is present.
    pub leaf: Option<(Sp, u16, Leaf)>,
}

impl Descent {
    /// Whether the first entry that was read is the leaf.
    pub const fn is_short(&self) -> bool {
        self.count == 0
    }
}

impl PscEntry {
    /// Where a walk goes on.
    pub(super) const fn start(&self) -> Start {
        Start { level: self.level - 1, table: self.gpa, rights: self.rights }
    }

    /// The shadow page where a walk goes on.
    pub(super) fn shadow_page(&self) -> Option<Sp> {
        let entry = *self.path.get(usize::from(self.level).checked_sub(2)?)?;
        path_table(entry).map(|sp| Sp(sp as u32))
    }
}

impl Machine {
    /// The cached guest-physical entry below which the walk of L1's EPT for `at` starts.
    pub(super) fn nested_structure<O: Observer>(
        &mut self,
        v: usize,
        tag: &Tag,
        at: Gpa,
        o: &mut O,
    ) -> Option<PscEntry> {
        let (mode, gva, pcpu) = (Mode::Level4, Gva(at.0), self.vcpus[v].pcpu.0 as usize);
        let found = self.pcpus[pcpu].tlb.psc_lookup(tag, mode, gva, cacheable(mode))?;
        let (shift, path) = (mode.shift(found.level), found.path);
        let instead = Instead::Structure { gva, shift, path };
        o.walk_uses(&self.at_vcpu(v), found.mark, instead, tag);
        Some(found)
    }

    /// The links that the walk of L1's EPT followed are cached.
    pub(super) fn keep_nested<O: Observer>(
        &mut self,
        v: usize,
        tag: &Tag,
        at: Gpa,
        descent: &Descent,
        o: &mut O,
    ) {
        for (entry, source) in self.links_of(descent, Mode::Level4) {
            self.keep_under(v, tag, Mode::Level4, Gva(at.0), entry, source, o);
        }
    }

    /// Whether upper-level entries are cached in walks of this vCPU.
    pub(super) fn keeps_structures(&self, v: usize) -> bool {
        let vcpu = &self.vcpus[v];
        vcpu.nested.l2.is_none() && self.pcpus[usize::from(vcpu.pcpu.0)].tlb.has_structures()
    }

    /// The cached upper-level entry below which the walk of `gva` starts.
    pub(super) fn structure<O: Observer>(
        &mut self,
        v: usize,
        mode: Mode,
        gva: Gva,
        o: &mut O,
    ) -> Option<PscEntry> {
        if !self.keeps_structures(v) {
            return None;
        }
        let (tag, pcpu) = (self.vcpus[v].context.tag, self.vcpus[v].pcpu.0 as usize);
        let found = self.pcpus[pcpu].tlb.psc_lookup(&tag, mode, gva, cacheable(mode))?;
        let (shift, path) = (mode.shift(found.level), found.path);
        let instead = Instead::Structure { gva, shift, path };
        o.walk_uses(&self.at_vcpu(v), found.mark, instead, &tag);
        Some(found)
    }

    fn keep<O: Observer>(
        &mut self,
        v: usize,
        mode: Mode,
        gva: Gva,
        entry: PscEntry,
        source: Source,
        o: &mut O,
    ) {
        let tag = self.vcpus[v].context.tag;
        self.keep_under(v, &tag, mode, gva, entry, source, o);
    }

    #[expect(clippy::too_many_arguments, reason = "one cached entry, its tag and its source")]
    fn keep_under<O: Observer>(
        &mut self,
        v: usize,
        tag: &Tag,
        mode: Mode,
        gva: Gva,
        entry: PscEntry,
        source: Source,
        o: &mut O,
    ) {
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        if !self.pcpus[pcpu].tlb.has_psc(entry.level) {
            return;
        }
        let fill = Fill {
            tag: *tag,
            kind: FillKind::Structure(entry.level),
            address: gva.0 >> mode.shift(entry.level) << mode.shift(entry.level),
            size: mode.page_size(entry.level).unwrap_or(PageSize::Size1G),
            global: false,
            source,
            copy: Copied { gpa: entry.gpa, hpa: entry.hpa, ..Copied::default() },
        };
        let mark = o.fill(&self.at_vcpu(v), &fill, self);
        self.pcpus[pcpu].tlb.psc_insert(tag, mode, gva, PscEntry { mark, ..entry });
    }

    /// A walk of the guest's own tables succeeded: its upper entries are cached. `tables` are the
    /// host frames of the tables it read.
    pub(super) fn keep_walk<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        walk: &Walk,
        tables: &[Hpa; 5],
        start: Option<&PscEntry>,
        o: &mut O,
    ) {
        if !self.keeps_structures(v) {
            return;
        }
        let mode = walk.mode;
        let mut path = start.map_or([0; 5], |entry| entry.path);
        let mut rights = start.map_or(Rights::FULL, |entry| entry.rights);
        let frame = |step: &Step| Gpa(step.gpa.0 & !(PAGE_BYTES - 1));
        for (pair, hpa) in walk.read().windows(2).zip(&tables[1..]) {
            let [upper, lower] = pair else { continue };
            for step in [upper, lower] {
                path[usize::from(step.level) - 1] = path_entry(frame(step).0);
            }
            if !cacheable(mode).contains(&upper.level) {
                continue;
            }
            rights.write &= upper.value & WRITE != 0;
            rights.user &= upper.value & USER != 0;
            rights.xd |= mode != Mode::Bits32 && upper.value & XD != 0;
            let (level, gpa, mark) = (upper.level, frame(lower), Mark::default());
            let entry = PscEntry { level, gpa, hpa: *hpa, rights, path, mark };
            self.keep(v, mode, gva, entry, Source::Guest, o);
        }
    }

    /// A walk that started below a cached entry came to a fault. AMD drops the path and walks again
    /// before it raises anything (facts C.1); Intel raises it, and where memory permits the access
    /// the guest finds nothing wrong and tries again.
    pub(super) fn structure_fault<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        code: u32,
        o: &mut O,
    ) -> Walked {
        if self.config.vendor == Vendor::Amd {
            let (tag, pcpu) = (self.vcpus[v].context.tag, self.vcpus[v].pcpu.0 as usize);
            self.pcpus[pcpu].tlb.drop_structures(&tag, access.gva);
            return Walked::Again;
        }
        if self.own_walk(v, access).result.is_err() {
            return Walked::Fault(code);
        }
        self.page_fault_effects(v, access.gva, o);
        o.act(&self.at_vcpu(v), &Act::SpuriousFault, self);
        Walked::Again
    }

    /// An EPT violation drops the combined entries on the path to the address that was translated
    /// (facts D.2); SVM says nothing of the kind.
    pub(super) fn violation(&mut self, v: usize, gva: Gva, stopped: Walked) -> Walked {
        if self.config.vendor == Vendor::Intel {
            let (tag, pcpu) = (self.vcpus[v].context.tag, self.vcpus[v].pcpu.0 as usize);
            self.pcpus[pcpu].tlb.drop_structures(&tag, gva);
        }
        stopped
    }

    /// A #PF in shadow mode drops the path, though it is the hypervisor's to handle.
    pub(super) fn drop_shadow_path<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) {
        let pcid = self.vcpus[v].context.tag.pcid;
        self.invalidate(v, Inv::Guest(GuestInv::Fault { pcid, gva }), o);
    }

    /// The hardware goes down the shadow tables from `root`, or from where a cached entry leads.
    pub(super) fn descend(&self, root: Sp, start: Option<&PscEntry>, gva: Gva) -> Descent {
        let from = start.and_then(PscEntry::shadow_page);
        let path = start.map_or([0; 5], |entry| entry.path);
        let mut sp = from.unwrap_or(root);
        let mut descent = Descent { links: [(sp, 0, sp); 4], count: 0, path, leaf: None };
        loop {
            let level = self.shadow.page(sp).role.level();
            let at = index(gva.0, level);
            if let Some(table) = descent.path.get_mut(usize::from(level).wrapping_sub(1)) {
                *table = path_entry(u64::from(sp.0));
            }
            match self.shadow.spte(sp, at) {
                Spte::None => return descent,
                Spte::Leaf(leaf) => {
                    descent.leaf = Some((sp, at, leaf));
                    return descent;
                }
                Spte::Link(child) => {
                    // Levels go down with every link: there are at most four.
                    let Some(place) = descent.links.get_mut(descent.count) else { return descent };
                    *place = (sp, at, child);
                    descent.count += 1;
                    sp = child;
                }
            }
        }
    }

    /// The links that a descent followed are cached.
    pub(super) fn keep_descent<O: Observer>(
        &mut self,
        v: usize,
        mode: Mode,
        gva: Gva,
        descent: &Descent,
        o: &mut O,
    ) {
        if !self.keeps_structures(v) {
            return;
        }
        for (entry, source) in self.links_of(descent, mode) {
            self.keep(v, mode, gva, entry, source, o);
        }
    }

    /// What may be cached of the links that a descent followed, and where each was read.
    fn links_of(
        &self,
        descent: &Descent,
        mode: Mode,
    ) -> impl Iterator<Item = (PscEntry, Source)> + use<> {
        let mut kept = [None; 4];
        let links = descent.links[..descent.count].iter();
        for (kept, &(parent, index, child)) in kept.iter_mut().zip(links) {
            let level = self.shadow.page(parent).role.level();
            if !cacheable(mode).contains(&level) {
                continue;
            }
            let mut path = descent.path;
            path[..usize::from(level) - 2].fill(0);
            let gpa = Gpa(self.shadow.page(child).gfn * PAGE_BYTES);
            let (hpa, mark, rights) = (ShadowPages::hpa(child), Mark::default(), Rights::FULL);
            let entry = PscEntry { level, gpa, hpa, rights, path, mark };
            *kept = Some((entry, Source::Shadow { sp: parent, index }));
        }
        kept.into_iter().flatten()
    }
}
