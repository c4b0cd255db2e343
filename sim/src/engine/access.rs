//! One access: look it up, walk, fault, fill, again (facts A.4 to A.7).

use tlbscope_trace::act::{
    Accessed, Act, ArchOp, Class, Copied, Fill, FillKind, GuestInv, Instead, Inv, Mark, Outcome,
    Source, Tag, Via,
};
use tlbscope_trace::addr::{Ep4ta, Gpa, Gva, Hpa, PAGE_BYTES, PageSize, Pcid, VcpuId};
use tlbscope_trace::nested::VIOLATION;
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

use super::Machine;
use super::refill::{Below, Repeatable};
use super::structures::shadow_mode;
use crate::arch::access::{self, Live, Rights};
use crate::arch::mode::Mode;
use crate::kvm::fault::Fixed;
use crate::paging::walk;
use crate::tlb::Entry;

/// Tries before an access that never settles is given up as a fault without a code.
const TRIES: u32 = 32;

/// The frame of one page-table walk.
pub(super) enum Walked {
    /// A translation that is cached now, and how the walk can be repeated, if it can.
    Filled(Entry, Option<Repeatable>),
    /// The guest's own fault.
    Fault(u32),
    /// The hypervisor repaired something: walk again.
    Again,
    /// MMIO: nothing is cached.
    Mmio(Gpa),
    /// The hypervisor has to wait for the host.
    Wait,
}

/// The host's side of a translation as the hardware sees it, from a cached copy or the table.
#[derive(Clone, Copy)]
struct HostLeaf {
    hpa: Hpa,
    write: bool,
    dirty: bool,
}

/// Whether an access goes on.
enum Used {
    Done(Outcome),
    /// Done, and the observer has nothing to say of the copy as long as it carries this note, whether it
    /// had to be told or not.
    Lawful(Outcome, u64),
    Again,
    Wait,
}

impl Machine {
    /// Carries an access out, with every fault and refill on its way. `None`: it has to wait.
    pub(crate) fn access<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        o: &mut O,
    ) -> Option<Outcome> {
        let mut spurious = false;
        for tries in 0..TRIES {
            if !self.enter(v, false, o) && (self.schedule.is_some() || self.kicks_take_time()) {
                return None;
            }
            let tag = self.vcpus[v].context.tag;
            let pcpu = self.vcpus[v].pcpu.0 as usize;
            // The short way has looked already, and nothing has happened since.
            let hit = match std::mem::take(&mut self.missed) {
                true => None,
                false => self.pcpus[pcpu].tlb.lookup(&tag, access.gva).copied(),
            };
            let Some(entry) = hit else {
                match self.walk(v, access, true, o) {
                    Walked::Filled(entry, repeatable) => {
                        match self.use_copy(v, access, &entry, true, &mut spurious, o) {
                            Used::Lawful(outcome, note) => {
                                let again = tries == 0 && self.pcpus[pcpu].tlb.makes_room();
                                if let Some(of) = repeatable.filter(|_| again) {
                                    let of = Repeatable { note, ..of };
                                    self.refills.fills(pcpu as u16, access.gva, &entry, of);
                                }
                                return Some(outcome);
                            }
                            Used::Done(outcome) => return Some(outcome),
                            Used::Wait => return None,
                            Used::Again => {}
                        }
                    }
                    Walked::Fault(VIOLATION) => {
                        let outcome = self.finish_walk(v, access, Outcome::Fault(VIOLATION), o);
                        self.nested_violation(v, o);
                        return Some(outcome);
                    }
                    Walked::Fault(code) => return Some(self.guest_fault(v, access, code, o)),
                    Walked::Mmio(gpa) => {
                        return Some(self.finish_walk(v, access, Outcome::Gpa(gpa), o));
                    }
                    Walked::Again => {}
                    Walked::Wait => return None,
                }
                continue;
            };
            match self.use_copy(v, access, &entry, false, &mut spurious, o) {
                Used::Done(outcome) | Used::Lawful(outcome, _) => return Some(outcome),
                Used::Wait => return None,
                Used::Again => {}
            }
        }
        Some(self.guest_fault(v, access, 0, o))
    }

    /// Uses a cached translation, unless it faults or lacks the dirty bit.
    fn use_copy<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        entry: &Entry,
        fresh: bool,
        spurious: &mut bool,
        o: &mut O,
    ) -> Used {
        let copy = entry.copy;
        let rights = Rights { write: copy.write, user: copy.user, xd: copy.xd, key: copy.key };
        if !access::permits(rights, access, self.live(v)) {
            let code = access::refused(rights, access, &self.hardware_regs(v));
            return self.copy_fault(v, access, entry, code, fresh, spurious, o);
        }
        if access.kind == AccessKind::Write && !copy.dirty {
            self.drop_copy(v, access.gva);
            return Used::Again;
        }
        let offset = access.gva.0 & (entry.size.bytes() - 1);
        let (outcome, hpa) = (Outcome::Gpa(Gpa(copy.gpa.0 + offset)), Hpa(copy.hpa.0 + offset));
        let untold = o.indifferent(VcpuId(v as u16), self);
        if !self.config.apic_page && untold.is_some_and(|marks| marks.has(entry.mark, 0)) {
            return Used::Lawful(outcome, 0);
        }
        self.report(v, access, self.via(v, entry, fresh), outcome, hpa, o);
        match o.indifferent(VcpuId(v as u16), self).filter(|_| o.approves()) {
            Some(untold) => Used::Lawful(outcome, untold.note),
            None => Used::Done(outcome),
        }
    }

    fn via(&self, v: usize, entry: &Entry, fresh: bool) -> Via {
        let tag = Tag { pcid: entry.pcid, ..self.vcpus[v].context.tag };
        Via::Copy { mark: entry.mark, tag, global: entry.global, copy: entry.copy, fresh }
    }

    /// The rights of a copy forbid the access.
    #[expect(clippy::too_many_arguments, reason = "the state of one access, used in one place")]
    fn copy_fault<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        entry: &Entry,
        code: u32,
        fresh: bool,
        spurious: &mut bool,
        o: &mut O,
    ) -> Used {
        self.drop_copy(v, access.gva);
        if self.config.mmu == MmuKind::Shadow {
            return self.shadow_exit(v, access, o);
        }
        let permitted = self.own_walk(v, access).result.is_ok();
        if entry.host_read_only && permitted {
            // The host's part of the copy forbids it: an EPT violation, after which it is gone.
            return Used::Again;
        }
        // AMD confirms a fault by another walk before it raises it (facts C.1); Intel raises it,
        // the guest finds nothing wrong and tries again.
        if permitted && !fresh && (self.config.vendor == Vendor::Amd || !*spurious) {
            if self.config.vendor == Vendor::Intel {
                *spurious = true;
                self.page_fault_effects(v, access.gva, o);
                let at = self.at_vcpu(v);
                o.act(&at, &Act::SpuriousFault, self);
            }
            return Used::Again;
        }
        let outcome = Outcome::Fault(code);
        self.report(v, access, self.via(v, entry, fresh), outcome, Hpa(0), o);
        self.page_fault_effects(v, access.gva, o);
        Used::Done(outcome)
    }

    fn drop_copy(&mut self, v: usize, gva: Gva) {
        let tag = self.vcpus[v].context.tag;
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let event = self.at.event;
        self.pcpus[pcpu].tlb.drop_entry(&tag, gva, event, &mut |_, _, _| {});
    }

    /// A page fault drops the page and the path to it (facts B.1).
    pub(crate) fn page_fault_effects<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) {
        let regs = self.vcpus[v].regs;
        let at = self.at_vcpu(v);
        o.arch(&at, &ArchOp::PageFault(gva), &regs, true, self);
        self.invalidate(v, Inv::Guest(GuestInv::Fault { pcid: regs.pcid(), gva }), o);
    }

    /// A #PF in shadow mode is the hypervisor's; the hardware drops its copies all the same.
    fn shadow_exit<O: Observer>(&mut self, v: usize, access: &Access, o: &mut O) -> Used {
        let pcid = self.vcpus[v].context.tag.pcid;
        self.invalidate(v, Inv::Guest(GuestInv::Fault { pcid, gva: access.gva }), o);
        self.exit(v, None, o);
        let fixed = self.shadow_fault(v, access, o);
        if fixed == Fixed::Wait {
            return Used::Wait;
        }
        self.enter(v, false, o);
        match fixed {
            Fixed::Retry | Fixed::Wait => Used::Again,
            Fixed::Guest(code) => Used::Done(self.finish_walk(v, access, Outcome::Fault(code), o)),
            Fixed::Mmio(gpa) => Used::Done(self.finish_walk(v, access, Outcome::Gpa(gpa), o)),
        }
    }

    fn guest_fault<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        code: u32,
        o: &mut O,
    ) -> Outcome {
        let outcome = self.finish_walk(v, access, Outcome::Fault(code), o);
        if self.config.mmu == MmuKind::Tdp {
            self.page_fault_effects(v, access.gva, o);
        }
        outcome
    }

    fn finish_walk<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        outcome: Outcome,
        o: &mut O,
    ) -> Outcome {
        self.report(v, access, Via::Walk, outcome, Hpa(0), o);
        outcome
    }

    fn report<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        via: Via,
        outcome: Outcome,
        hpa: Hpa,
        o: &mut O,
    ) {
        if let (Via::Copy { copy, .. }, true) = (&via, self.config.apic_page) {
            self.apic_access(v, copy.gpa, o);
        }
        let at = self.at_vcpu(v);
        o.access(&at, &Accessed { access: *access, via, outcome, hpa }, self);
    }

    /// The registers the hardware runs with: in shadow mode WP is forced on (facts/kvm.md 1.2), and
    /// the shadow tables have 8-byte entries with XD whatever the guest's mode (facts/kvm.md 7.2).
    fn hardware_regs(&self, v: usize) -> Regs {
        let regs = self.vcpus[v].regs;
        match self.config.mmu {
            MmuKind::Shadow => Regs {
                cr0: regs.cr0 | Cr0::WP.bits(),
                cr4: regs.cr4 | Cr4::PAE.bits(),
                efer: regs.efer | Efer::NXE.bits(),
                ..regs
            },
            MmuKind::Tdp => regs,
        }
    }

    /// What of them an access is checked against.
    pub(super) fn live(&self, v: usize) -> Live {
        let live = Live::of(&self.vcpus[v].regs);
        if self.config.mmu == MmuKind::Shadow { live.shadowed() } else { live }
    }

    /// The hardware walks, from below a paging-structure-cache entry if it may use one.
    fn walk<O: Observer>(&mut self, v: usize, access: &Access, cached: bool, o: &mut O) -> Walked {
        let at = self.at_vcpu(v);
        o.walk_begin(&at);
        match self.config.mmu {
            MmuKind::Shadow => self.walk_shadow(v, access, cached, o),
            MmuKind::Tdp => self.walk_nested(v, access, cached, o),
        }
    }

    fn walk_shadow<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        cached: bool,
        o: &mut O,
    ) -> Walked {
        let root = self.vcpus[v].context.shadow_root;
        let levels = root.map_or(0, |root| self.shadow.page(root).role.level());
        let mode = shadow_mode(levels);
        let start =
            if cached && root.is_some() { self.structure(v, mode, access.gva, o) } else { None };
        let descent = root.map(|root| self.descend(root, start.as_ref(), access.gva));
        let found = descent.as_ref().and_then(|descent| descent.leaf);
        let live = self.live(v);
        let allowed = found.filter(|(_, _, leaf)| {
            let rights = Rights { write: leaf.write, user: leaf.user, xd: leaf.xd, key: 0 };
            access::permits(rights, access, live)
        });
        let (Some((sp, index, leaf)), Some(descent)) = (allowed, &descent) else {
            if start.is_some() {
                self.drop_shadow_path(v, access.gva, o);
            }
            self.exit(v, None, o);
            let fixed = self.shadow_fault(v, access, o);
            if fixed == Fixed::Wait {
                return Walked::Wait;
            }
            self.enter(v, false, o);
            return match fixed {
                Fixed::Retry | Fixed::Wait => Walked::Again,
                Fixed::Guest(code) => Walked::Fault(code),
                Fixed::Mmio(gpa) => Walked::Mmio(gpa),
            };
        };
        let copy = Copied {
            gpa: leaf.gpa,
            hpa: leaf.hpa,
            write: leaf.write,
            user: leaf.user,
            xd: leaf.xd,
            dirty: leaf.write,
            key: 0,
        };
        self.keep_descent(v, mode, access.gva, descent, o);
        // Entries read (facts E.3); the PDPTEs of PAE paging are registers on Intel (A.3).
        let registers = mode == Mode::Pae && self.config.vendor == Vendor::Intel;
        let refs = start.map_or(levels - u8::from(registers), |entry| entry.level - 1);
        let source = Source::Shadow { sp, index };
        let below = match start {
            Some(entry) => descent.is_short().then_some(Below::Structure(mode, entry.level)),
            None => (!self.keeps_structures(v)).then_some(Below::Root),
        };
        let entry = self.fill(v, access.gva, copy, PageSize::Size4K, false, source, refs, o);
        Walked::Filled(entry, below.map(|below| Repeatable { below, refs, note: 0 }))
    }

    fn walk_nested<O: Observer>(
        &mut self,
        v: usize,
        access: &Access,
        cached: bool,
        o: &mut O,
    ) -> Walked {
        if let Some(tables) = self.tables12(v) {
            return self.walk_l2(v, tables, access, o);
        }
        let vcpu = &self.vcpus[v];
        let regs = Regs { pdpte: vcpu.vmcs_pdpte, ..vcpu.regs };
        let start = if cached { self.structure(v, Mode::of(&regs), access.gva, o) } else { None };
        let walk = match &start {
            Some(entry) => walk::walk_from(self, &regs, access, entry.start()),
            None => walk::walk(self, &regs, access),
        };
        let mut tables = [Hpa(0); 5];
        for (n, step) in walk.read().iter().enumerate() {
            // A combined entry holds the host's address of the table it leads to.
            tables[n] = match (&start, n) {
                (Some(entry), 0) => entry.hpa,
                _ => match self.nested(v, step.gpa, false, o) {
                    Ok(table) => table.hpa,
                    Err(stopped) => return self.violation(v, access.gva, stopped),
                },
            };
        }
        let leaf = match walk.result {
            Ok(leaf) => leaf,
            Err(code) if start.is_some() => return self.structure_fault(v, access, code, o),
            Err(code) => return Walked::Fault(code),
        };
        let write = access.kind == AccessKind::Write;
        self.set_accessed(&walk, &regs, write);
        self.keep_walk(v, access.gva, &walk, &tables, start.as_ref(), o);
        let page = access.gva.0 & (leaf.size.bytes() - 1) & !(PAGE_BYTES - 1);
        let gpa = Gpa(leaf.gpa.0 + page);
        if gpa.0 >= self.config.memory || !self.host.has_slot(gpa.0 / PAGE_BYTES) {
            return Walked::Mmio(Gpa(gpa.0 | access.gva.0 & (PAGE_BYTES - 1)));
        }
        let host = match self.nested(v, gpa, write, o) {
            Ok(host) => host,
            Err(stopped) => return self.violation(v, access.gva, stopped),
        };
        let copy = Copied {
            gpa,
            hpa: host.hpa,
            write: leaf.rights.write && host.write,
            user: leaf.rights.user,
            xd: leaf.rights.xd,
            // CR0.WP = 0 lets a supervisor past the guest's entries, never past the host's.
            dirty: (leaf.dirty && host.dirty && host.write) || write,
            key: leaf.rights.key,
        };
        // Guest entries read, and four of the host's for each table and the page (facts E.3): from
        // below a combined entry the first table needs none.
        let refs = walk.count * 5 + if start.is_some() { 0 } else { 4 };
        let (size, global) = (leaf.size, leaf.global);
        let entry = self.fill(v, access.gva, copy, size, global, Source::Guest, refs, o);
        let entry = if host.write { entry } else { self.host_forbids(v, access.gva, entry) };
        // Only the page itself was looked up among the mappings of guest-physical addresses.
        let short = start.filter(|_| walk.count == 1);
        let below = short.map(|entry| Below::Structure(walk.mode, entry.level));
        Walked::Filled(entry, below.map(|below| Repeatable { below, refs, note: 0 }))
    }

    /// Notes in a translation just cached that the host's tables, not the guest's, forbid writes.
    pub(super) fn host_forbids(&mut self, v: usize, gva: Gva, entry: Entry) -> Entry {
        let entry = Entry { host_read_only: true, ..entry };
        let (tag, pcpu) = (self.vcpus[v].context.tag, self.vcpus[v].pcpu.0 as usize);
        self.pcpus[pcpu].tlb.insert(&tag, Gva(gva.0 & !(PAGE_BYTES - 1)), entry);
        entry
    }

    /// The tag of guest-physical mappings: the EP4TA alone (facts D.1).
    pub(super) fn physical_tag(&self, v: usize) -> Tag {
        let mut context = self.vcpus[v].context.tag;
        if self.config.enlightened_npt {
            context.ep4ta = Ep4ta(self.root_hpa(v).0);
        }
        Tag { class: Class::GuestPhysical, id: 0, pcid: Pcid(0), ..context }
    }

    /// Whether mappings of guest-physical addresses are cached by themselves: AMD keeps none; a hypervisor
    /// below may.
    pub(super) fn keeps_physical(&self) -> bool {
        self.config.vendor == Vendor::Intel || self.config.enlightened_npt
    }

    /// Translates a guest-physical address of a walk; an error if the hypervisor has to act first.
    fn nested<O: Observer>(
        &mut self,
        v: usize,
        gpa: Gpa,
        write: bool,
        o: &mut O,
    ) -> Result<HostLeaf, Walked> {
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let tag = self.physical_tag(v);
        let at = self.at_vcpu(v);
        let kept = self.keeps_physical();
        if kept && let Some(entry) = self.pcpus[pcpu].tlb.lookup_gpa(&tag, gpa).copied() {
            let Copied { hpa, write: writable, dirty, .. } = entry.copy;
            if !write || writable && dirty {
                o.walk_uses(&at, entry.mark, Instead::GuestPhysical, &tag);
                return Ok(HostLeaf { hpa, write: writable, dirty });
            }
        }
        let gfn = gpa.0 / PAGE_BYTES;
        let frame = self.trees.get(self.root_hpa(v)).and_then(|t| t.frame(gfn));
        let writable = self.host_writable(gfn);
        let untracked = self.has_accessed_bits() || !self.host.is_aged(gfn);
        let (Some(hpa), true, true) = (frame, writable || !write, untracked) else {
            return Err(self.nested_fault(v, gpa, write, o));
        };
        self.host.accessed(gfn);
        if write {
            self.host.dirtied(gfn);
        }
        let dirty = !self.host.clean(gfn);
        if kept {
            let page = Gpa(gpa.0 & !(PAGE_BYTES - 1));
            let copy =
                Copied { gpa: page, hpa, write: writable, user: true, dirty, ..Copied::default() };
            let fill = Fill {
                tag,
                kind: FillKind::Translation,
                address: page.0,
                size: PageSize::Size4K,
                global: false,
                source: Source::Host,
                copy,
            };
            let mark = o.fill(&at, &fill, self);
            let entry = entry(copy, mark, PageSize::Size4K, false, tag.pcid);
            self.pcpus[pcpu].tlb.insert_gpa(&tag, page, entry);
        }
        Ok(HostLeaf { hpa, write: writable, dirty })
    }

    /// An EPT violation or nested page fault.
    fn nested_fault<O: Observer>(&mut self, v: usize, gpa: Gpa, write: bool, o: &mut O) -> Walked {
        self.exit(v, None, o);
        if self.tdp_fault(v, gpa, write, o) == Fixed::Wait {
            return Walked::Wait;
        }
        self.enter(v, false, o);
        Walked::Again
    }

    #[expect(clippy::too_many_arguments, reason = "one call for both kinds of walk")]
    pub(super) fn fill<O: Observer>(
        &mut self,
        v: usize,
        gva: Gva,
        copy: Copied,
        guest_size: PageSize,
        global: bool,
        source: Source,
        refs: u8,
        o: &mut O,
    ) -> Entry {
        let tag = self.vcpus[v].context.tag;
        let at = self.at_vcpu(v);
        // Guest memory is backed in 4 KiB pages: larger guest pages are cached in fragments.
        let size = PageSize::Size4K;
        let page = gva.0 & !(size.bytes() - 1);
        self.host.accessed(copy.gpa.0 / PAGE_BYTES);
        let kind = FillKind::Translation;
        let fill = Fill { tag, kind, address: page, size, global, source, copy };
        let mark = o.fill(&at, &fill, self);
        let entry = Entry { guest_size, ..entry(copy, mark, size, global, tag.pcid) };
        let pcpu = self.vcpus[v].pcpu.0 as usize;
        let ghost = self.pcpus[pcpu].tlb.insert(&tag, Gva(page), entry);
        o.act(&at, &Act::Refill { refs, ghost }, self);
        entry
    }

    /// The hardware fills for an address if a walk from the root succeeds, and faults for nobody.
    pub(super) fn prefetch<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) {
        let access = Access { gva, kind: AccessKind::Read, user: false, ac: true };
        if self.vcpus[v].in_guest && self.own_walk(v, &access).result.is_ok() {
            let present = match (self.config.mmu, self.vcpus[v].context.shadow_root) {
                (MmuKind::Shadow, Some(root)) => self.shadow.walk(root, gva.0).is_some(),
                (MmuKind::Shadow, None) => false,
                (MmuKind::Tdp, _) => true,
            };
            if present {
                self.walk(v, &access, false, o);
            }
        }
    }
}

/// An entry that is no fragment of a larger guest page.
pub(super) const fn entry(
    copy: Copied,
    mark: Mark,
    size: PageSize,
    global: bool,
    pcid: Pcid,
) -> Entry {
    Entry { copy, mark, size, guest_size: size, global, pcid, host_read_only: false }
}
