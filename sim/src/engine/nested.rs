//! Accesses and stores of L2 on L1's nested tables: two page-table walks, the second through the
//! shadow of those tables.

use tlbscope_trace::act::{Act, Copied, Fill, FillKind, Instead, Source, Tag};
use tlbscope_trace::addr::{Gpa, Gva, PAGE_BYTES, PageSize};
use tlbscope_trace::nested::{Tables, VIOLATION};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::Vendor;

use super::Machine;
use super::access::{Walked, entry};
use crate::arch::mode::Mode;
use crate::kvm::shadow::{Leaf, Spte, index};
use crate::paging::nested::{L2Memory, registers, translate, walk_tables};
use crate::paging::walk::{self, Walk};

/// What translating one of L2's physical addresses came to.
enum Stage2 {
    /// Its mapping; the shadow entry it was read from, if just now.
    Mapped(Leaf, Option<(tlbscope_trace::addr::Sp, u16)>),
    /// The hypervisor had to map it first.
    Again,
    /// The hypervisor has to wait before it may.
    Wait,
    /// L1's own tables do not map it: L1 gets the exit.
    Violation,
    /// No memory stands behind it.
    Mmio(Gpa),
}

impl Machine {
    /// Where an address of this level's memory lies in L1's; `None`: L1's nested tables do not map
    /// it. In L1 the address itself.
    pub(crate) fn l1_gpa(&self, v: usize, gpa: Gpa) -> Option<Gpa> {
        match self.tables12(v) {
            None => Some(gpa),
            Some(tables) => Some(translate(self, &tables, gpa, AccessKind::Read)?.gpa),
        }
    }

    /// A walk of the present level's own tables as they are now.
    pub(super) fn own_walk(&self, v: usize, access: &Access) -> Walk {
        let regs = &self.vcpus[v].regs;
        match self.tables12(v) {
            None => walk::walk(self, regs, access),
            Some(tables) => walk::walk(&L2Memory::new(self, tables), regs, access),
        }
    }

    /// The hardware walks L2's tables and, for each address in them, the nested ones.
    pub(super) fn walk_l2<O: Observer>(
        &mut self,
        v: usize,
        tables: Tables,
        access: &Access,
        o: &mut O,
    ) -> Walked {
        let walk = self.own_walk(v, access);
        for step in walk.read() {
            match self.stage2(v, tables, step.gpa, AccessKind::Read, o) {
                Stage2::Mapped(..) => {}
                Stage2::Again => return Walked::Again,
                Stage2::Wait => return Walked::Wait,
                Stage2::Violation | Stage2::Mmio(_) => return Walked::Fault(VIOLATION),
            }
        }
        let leaf = match walk.result {
            Ok(leaf) => leaf,
            Err(code) => return Walked::Fault(code),
        };
        self.set_accessed_l2(v, &walk, access.kind == AccessKind::Write);
        let page = access.gva.0 & (leaf.size.bytes() - 1) & !(PAGE_BYTES - 1);
        let at = Gpa(leaf.gpa.0 + page);
        let (mapped, read) = match self.stage2(v, tables, at, access.kind, o) {
            Stage2::Mapped(mapped, read) => (mapped, read),
            Stage2::Again => return Walked::Again,
            Stage2::Wait => return Walked::Wait,
            Stage2::Violation => return Walked::Fault(VIOLATION),
            Stage2::Mmio(gpa) => return Walked::Mmio(Gpa(gpa.0 | access.gva.0 & 0xfff)),
        };
        let write = access.kind == AccessKind::Write;
        // A combined mapping has the rights of both levels (SDM vol. 3, 28.3.1).
        let copy = Copied {
            gpa: mapped.gpa,
            hpa: mapped.hpa,
            write: leaf.rights.write && mapped.write,
            user: leaf.rights.user,
            xd: leaf.rights.xd || mapped.xd,
            // A supervisor's write with CR0.WP = 0 walks again, and so finds out what L1 allows.
            dirty: (leaf.dirty || write) && mapped.write,
            key: leaf.rights.key,
        };
        // AMD caches no nested mapping by itself: the copy comes from the entry that was read.
        let source = match read {
            Some((sp, index)) if self.config.vendor == Vendor::Amd => Source::Shadow { sp, index },
            _ => Source::Guest,
        };
        let refs = (walk.count + 1) * 5 - 1;
        let entry = self.fill(v, access.gva, copy, leaf.size, leaf.global, source, refs, o);
        let entry = if mapped.write { entry } else { self.host_forbids(v, access.gva, entry) };
        Walked::Filled(entry, None)
    }

    /// Accessed and dirty bits of L2's tables, where those lie in L1's memory.
    fn set_accessed_l2(&mut self, v: usize, walk: &Walk, write: bool) {
        let bytes = Mode::of(&self.vcpus[v].regs).entry_bytes();
        let marks: Vec<(Gpa, u64)> = walk::entries_to_mark(walk, write).collect();
        for (gpa, value) in marks {
            if let Some(at) = self.l1_gpa(v, gpa) {
                self.memory.write_entry(at, bytes, value);
            }
        }
    }

    /// Translates one of L2's physical addresses: by a cached mapping, by the shadow of L1's tables,
    /// or after the hypervisor has filled that.
    fn stage2<O: Observer>(
        &mut self,
        v: usize,
        tables: Tables,
        at: Gpa,
        kind: AccessKind,
        o: &mut O,
    ) -> Stage2 {
        let allows = |leaf: &Leaf| match kind {
            AccessKind::Read => true,
            AccessKind::Write => leaf.write,
            AccessKind::Exec => !leaf.xd,
        };
        let tag = self.physical_tag(v);
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let intel = self.config.vendor == Vendor::Intel;
        if intel && let Some(cached) = self.pcpus[pcpu].tlb.lookup_gpa(&tag, at).copied() {
            let Copied { gpa, hpa, write, user, xd, .. } = cached.copy;
            let leaf = Leaf { gpa, hpa, write, user, xd };
            if allows(&leaf) {
                let vcpu = self.at_vcpu(v);
                o.walk_uses(&vcpu, cached.mark, Instead::GuestPhysical, &tag);
                return Stage2::Mapped(leaf, None);
            }
        }
        let root = self.vcpus[v].mmu.root.and_then(|root| root.sp);
        let start = if intel { self.nested_structure(v, &tag, at, o) } else { None };
        let descent = root.map(|root| self.descend(root, start.as_ref(), Gva(at.0)));
        if let Some(descent) = descent
            && let Some((sp, index, leaf)) = descent.leaf.filter(|(.., leaf)| allows(leaf))
        {
            if intel {
                self.keep_nested(v, &tag, at, &descent, o);
                self.fill_physical(v, tag, at, leaf, Source::Shadow { sp, index }, o);
            }
            return Stage2::Mapped(leaf, Some((sp, index)));
        }
        if start.is_some() {
            // The violation drops the path to the address (facts D.2).
            self.pcpus[pcpu].tlb.drop_structures(&tag, Gva(at.0));
        }
        self.exit(v, None, o);
        let fixed = self.l2_fault(v, tables, at, kind, o);
        if !matches!(fixed, Stage2::Violation | Stage2::Wait) {
            self.enter(v, false, o);
        }
        fixed
    }

    fn fill_physical<O: Observer>(
        &mut self,
        v: usize,
        tag: Tag,
        at: Gpa,
        leaf: Leaf,
        source: Source,
        o: &mut O,
    ) {
        let page = Gpa(at.0 & !(PAGE_BYTES - 1));
        let Leaf { gpa, hpa, write, user, xd } = leaf;
        let copy = Copied { gpa, hpa, write, user, xd, dirty: write, key: 0 };
        let (kind, size) = (FillKind::Translation, PageSize::Size4K);
        let fill = Fill { tag, kind, address: page.0, size, global: false, source, copy };
        let vcpu = self.at_vcpu(v);
        let mark = o.fill(&vcpu, &fill, self);
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let entry = entry(copy, mark, size, false, tag.pcid);
        self.pcpus[pcpu].tlb.insert_gpa(&tag, page, entry);
    }

    /// An EPT violation or #NPF in L2: walk L1's tables, reflect or install.
    fn l2_fault<O: Observer>(
        &mut self,
        v: usize,
        tables: Tables,
        at: Gpa,
        kind: AccessKind,
        o: &mut O,
    ) -> Stage2 {
        self.act(o, Act::PageFault { address: at.0, error: 0 });
        let walk = walk_tables(self, &tables, at, kind);
        let Ok(leaf) = walk.result else { return Stage2::Violation };
        let within = at.0 & (leaf.size.bytes() - 1) & !(PAGE_BYTES - 1);
        let gpa = Gpa(leaf.gpa.0 & !(leaf.size.bytes() - 1) | within);
        if self.must_wait(v, gpa) {
            return Stage2::Wait;
        }
        if kind == AccessKind::Write {
            self.host_write_fault(gpa.0 / PAGE_BYTES, o);
        }
        let Some(hpa) = self.back(gpa) else { return Stage2::Mmio(gpa) };
        // The root may have gone with the exit's requests.
        let Some(root) = self.vcpus[v].mmu.root.and_then(|root| root.sp) else {
            return Stage2::Again;
        };
        let sp = self.shadow_path(v, root, &registers(&tables), &walk, Gva(at.0), o);
        let write =
            leaf.rights.write && self.host_writable(gpa.0 / PAGE_BYTES) && !self.is_protected(gpa);
        let place = index(at.0, 1);
        let old = self.shadow.spte(sp, place);
        let moved = matches!(old, Spte::Leaf(old) if old.hpa != hpa);
        if moved {
            self.act(o, Act::SpteClear { sp, index: place });
        }
        let new = Leaf { gpa, hpa, write, user: true, xd: leaf.rights.xd };
        self.shadow.set(sp, place, Spte::Leaf(new));
        self.act(o, Act::SpteSet { sp, index: place });
        if moved && self.policy.mechanics.remote_flush.pfn_change {
            self.remote_flush(o);
        }
        if kind == AccessKind::Write && !write && self.is_protected(gpa) {
            self.table_write_fault(gpa, o);
            let write = leaf.rights.write && !self.is_protected(gpa);
            self.shadow.set(sp, place, Spte::Leaf(Leaf { write, ..new }));
            self.act(o, Act::SpteSet { sp, index: place });
        }
        Stage2::Again
    }
}
