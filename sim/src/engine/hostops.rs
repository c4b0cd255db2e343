//! What the host does: mmu_notifier invalidations, dirty logging, ageing, huge pages and memory
//! slots (facts/kvm.md 5.7 to 5.9, 7.5). `host begin` and `host end` are the two halves of each
//! operation under mmu_lock; the whole runs both, with a point between at which others may go on.

use std::ops::Range;

use tlbscope_trace::act::{Act, ArchOp, Request};
use tlbscope_trace::addr::{Gpa, Hpa, PAGE_BYTES, Sp};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{HostOp, MemslotChange, Op};
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::{Machine, Point, Refused, Step};
use crate::kvm::root::Root;
use crate::kvm::shadow::Spte;
use crate::policy::Ideal;
use crate::policy::mechanics::{ApicPageReload, UnmapRoots, ZapAllRequest};

/// What is done to the backing while its SPTEs are gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Taken,
    Kept,
    ReadOnly,
    Moved(Hpa),
}

impl Machine {
    /// Carries out an operation of the host.
    pub(super) fn run_host<O: Observer>(&mut self, op: &Op, o: &mut O) -> Result<Step, Refused> {
        match op {
            Op::Host(host) => self.host_op(host, o)?,
            Op::HostBegin(host) => self.host_begin(host, o),
            Op::HostEnd(host) => self.host_end(host, o),
            Op::Release { gpa, size } => {
                let op = ArchOp::Release { gpa: *gpa, size: *size };
                self.arch(o, None, &op, false);
            }
            other => {
                let why = "it is an operation of a vCPU, not of the host".into();
                return Err(Refused { op: super::run::name(other), why });
            }
        }
        Ok(Step::default())
    }

    fn host_op<O: Observer>(&mut self, op: &HostOp, o: &mut O) -> Result<(), Refused> {
        match *op {
            HostOp::Unmap { .. } | HostOp::ZapAll | HostOp::DirtyLog { .. } => {
                self.host_begin(op, o);
                self.race(Point::Unlocked, None, o);
                self.host_end(op, o);
            }
            HostOp::Map { gpa, size, hpa } => self.host_map(gpa, size, hpa, o),
            HostOp::Protect { gpa, size } => self.notify(gpa, size, false, Backing::Kept, o),
            HostOp::Ro { gpa, size } => self.notify(gpa, size, true, Backing::ReadOnly, o),
            HostOp::Age { gpa, size } => self.age(gpa, size, o),
            HostOp::Split { gpa, size } => self.split(gpa, size, o),
            HostOp::Collapse { gpa, size } => self.collapse(gpa, size, o),
            HostOp::Memslot { change, gpa, size } => self.memslot(change, gpa, size, o),
            HostOp::Migrate { vcpu, pcpu } => self.migrate(usize::from(vcpu.0), pcpu, o)?,
            HostOp::Preempt { vcpu } => self.preempt(vcpu, o)?,
            HostOp::Run { vcpu, pcpu } => self.run_again(vcpu, pcpu, o)?,
            HostOp::VcpuCreate { vcpu } => self.vcpu_create(vcpu, o)?,
            HostOp::VcpuDestroy { vcpu } => self.vcpu_destroy(vcpu, o)?,
            HostOp::MsrEfer { vcpu, value } => self.msr_efer(vcpu, value, o)?,
            HostOp::Clean { gpa, size } => self.clean(gpa, size, o),
            HostOp::Invlpgb { va, asid } => self.host_invlpgb(va, asid, o)?,
        }
        Ok(())
    }

    /// Up to and with the release of mmu_lock.
    fn host_begin<O: Observer>(&mut self, op: &HostOp, o: &mut O) {
        let flush = match *op {
            HostOp::Unmap { gpa, size } => {
                self.invalidate_begin(gpa, size, false, Backing::Taken, o)
            }
            HostOp::DirtyLog { gpa, size } => self.dirty_log_begin(gpa, size, o),
            HostOp::ZapAll => {
                self.zap_all_begin(Gpa(0), self.config.memory, o);
                false
            }
            _ => false,
        };
        self.notifier.open_half(*op, flush);
    }

    /// The rest of it.
    fn host_end<O: Observer>(&mut self, op: &HostOp, o: &mut O) {
        let flush = self.notifier.close_half(op);
        match *op {
            HostOp::Unmap { gpa, size } => {
                if !self.policy.mechanics.fault_retry {
                    // Only now does the page go that faults have found since.
                    let change = ArchOp::HostChange { gpa, size, rights: false };
                    self.arch(o, None, &change, false);
                    self.frames(gpa, size).for_each(|gfn| self.host.unmap(gfn));
                }
                self.invalidate_end(gpa, size, flush, o);
            }
            HostOp::DirtyLog { gpa, size } => {
                if flush {
                    self.remote_flush_range(gpa, size, o);
                }
                self.arch(o, None, &ArchOp::HostDead { gpa, size }, false);
            }
            HostOp::ZapAll => self.zap_all_end(Gpa(0), self.config.memory, o),
            _ => {}
        }
    }

    /// Whether a fault on this frame has to wait for an invalidation under way.
    pub(crate) fn waits_for(&self, gfn: u64) -> bool {
        self.policy.mechanics.fault_retry && self.notifier.in_progress(gfn)
    }

    /// The guest frames of a range, as far as there is memory.
    fn frames(&self, gpa: Gpa, size: u64) -> Range<u64> {
        let end = self.config.memory / PAGE_BYTES;
        let first = (gpa.0 / PAGE_BYTES).min(end);
        let last = gpa.0.saturating_add(size.max(1)).div_ceil(PAGE_BYTES);
        first..last.clamp(first, end)
    }

    /// Takes the SPTEs of these frames away. True if there were any.
    fn zap_frames<O: Observer>(&mut self, frames: &Range<u64>, o: &mut O) -> bool {
        let (first, count) = (frames.start, frames.end - frames.start);
        if !self.ideal() {
            // A huge SPTE goes whole, and a flush of a range has to cover all of it.
            let (first, count) = self.trees.reach(first, count);
            self.note_lost(first, count);
        }
        let invalid = self.policy.mechanics.remote_flush.invalid_roots;
        let mut zapped = match self.policy.mechanics.unmap_roots {
            UnmapRoots::All => self.trees.zap(first, count, invalid),
            UnmapRoots::Valid => self.trees.zap_valid(first, count),
        };
        // Shadow paging, or the shadow of L1's nested tables.
        if self.shadow.next() != Sp(0) {
            for gfn in frames.clone() {
                zapped |= self.untold.contains(&gfn);
                for (sp, at) in self.shadow.mapping(gfn) {
                    zapped |= self.clear_spte(sp, at, o);
                }
            }
        }
        zapped
    }

    /// mmu_notifier invalidate_range_start. True if the flush is left to the second half.
    fn invalidate_begin<O: Observer>(
        &mut self,
        gpa: Gpa,
        size: u64,
        rights: bool,
        backing: Backing,
        o: &mut O,
    ) -> bool {
        self.arch(o, None, &ArchOp::HostChange { gpa, size, rights }, false);
        let frames = self.frames(gpa, size);
        let count = frames.end - frames.start;
        self.apic_page_taken(frames.start, count, ApicPageReload::BeforeUnmap, o);
        self.notifier.begin(frames.start, frames.end - frames.start);
        self.notifier.lock();
        let rewritten = match backing {
            Backing::Moved(_) => self.trees.maps_any(&frames),
            _ => false,
        };
        let zapped = self.zap_frames(&frames, o);
        for gfn in frames.clone() {
            match backing {
                // What a fault finds that is not taken again is the old page, up to the end.
                Backing::Taken if !self.policy.mechanics.fault_retry => {}
                Backing::Taken => self.host.unmap(gfn),
                Backing::Kept => {}
                Backing::ReadOnly => self.host.make_read_only(gfn),
                Backing::Moved(hpa) => {
                    self.host.unmap(gfn);
                    self.host.set(gfn, Hpa(hpa.0 + (gfn - frames.start) * PAGE_BYTES));
                }
            }
        }
        self.race(Point::Zapped, None, o);
        let mechanics = self.policy.mechanics.remote_flush.clone();
        let wanted = match backing {
            Backing::Moved(_) if rewritten || zapped => mechanics.pfn_change,
            _ => zapped && mechanics.zap,
        };
        // An exact flush of one frame under a huge SPTE leaves translations of the others behind, of
        // which no SPTE tells any more.
        let wanted = wanted || self.policy.ideal == Ideal::ArchMin;
        if wanted && mechanics.before_unlock {
            self.remote_flush_range(gpa, size, o);
        }
        self.notifier.unlock();
        self.apic_page_taken(frames.start, count, ApicPageReload::AfterUnmap, o);
        wanted && !mechanics.before_unlock
    }

    /// The flush that was left over, and invalidate_range_end.
    fn invalidate_end<O: Observer>(&mut self, gpa: Gpa, size: u64, flush: bool, o: &mut O) {
        if flush {
            self.remote_flush_range(gpa, size, o);
        }
        let frames = self.frames(gpa, size);
        self.notifier.end(frames.start, frames.end - frames.start);
        self.arch(o, None, &ArchOp::HostDead { gpa, size }, false);
    }

    /// A whole mmu_notifier invalidation.
    fn notify<O: Observer>(
        &mut self,
        gpa: Gpa,
        size: u64,
        rights: bool,
        backing: Backing,
        o: &mut O,
    ) {
        let flush = self.invalidate_begin(gpa, size, rights, backing, o);
        self.race(Point::Unlocked, None, o);
        self.invalidate_end(gpa, size, flush, o);
    }

    /// `host map`: nothing is owed for frames that had no backing.
    fn host_map<O: Observer>(&mut self, gpa: Gpa, size: u64, hpa: Option<Hpa>, o: &mut O) {
        let frames = self.frames(gpa, size);
        let count = frames.end - frames.start;
        let hpa = hpa.unwrap_or_else(|| self.host.allocate(count, 1));
        let hpa = Hpa(hpa.0 & !(PAGE_BYTES - 1));
        if frames.clone().any(|gfn| self.host.backing(gfn).is_some()) {
            return self.notify(gpa, size, false, Backing::Moved(hpa), o);
        }
        for gfn in frames.clone() {
            self.host.set(gfn, Hpa(hpa.0 + (gfn - frames.start) * PAGE_BYTES));
        }
    }

    /// A write to a read-only page: the host copies it, and the old page is dead for this guest.
    pub(crate) fn break_copy_on_write<O: Observer>(&mut self, gfn: u64, o: &mut O) {
        let gpa = Gpa(gfn * PAGE_BYTES);
        let actor = std::mem::replace(&mut self.at.actor, tlbscope_trace::op::Actor::Host);
        let flush = self.invalidate_begin(gpa, PAGE_BYTES, false, Backing::Taken, o);
        self.host.unmap(gfn);
        self.host.back(gfn);
        self.invalidate_end(gpa, PAGE_BYTES, flush, o);
        self.at.actor = actor;
    }

    /// Whether dirty logging clears D bits: with PML. Otherwise it takes write access away.
    pub(crate) fn logs_by_dirty_bit(&self) -> bool {
        let tdp = self.config.mmu == MmuKind::Tdp;
        tdp && self.config.vendor == Vendor::Intel && self.config.pml && self.config.ept_ad
    }

    /// KVM_GET_DIRTY_LOG: the flush comes after mmu_lock, before the log is returned.
    fn dirty_log_begin<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) -> bool {
        if self.logs_by_dirty_bit() {
            // Buffers of dirty addresses are drained at exits: every vCPU makes one.
            self.force_outside(o);
        }
        self.arch(o, None, &ArchOp::HostChange { gpa, size, rights: true }, false);
        let frames = self.frames(gpa, size);
        let mut changed = false;
        for gfn in frames {
            let dirty = self.host.make_clean(gfn);
            changed |= dirty && self.trees.maps_any(&(gfn..gfn + 1));
            changed |= self.clear_write(gfn);
        }
        // The same holds for an exact flush here as at an invalidation.
        (changed || self.policy.ideal == Ideal::ArchMin)
            && self.policy.mechanics.remote_flush.write_protect
    }

    /// clear_young flushes nothing, clear_flush_young if some accessed bit was set (`age-flush`; facts
    /// 5.9). Without A bits in the EPT the SPTE is made not present, and the next use of it exits.
    fn age<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        let mut young = false;
        for gfn in self.frames(gpa, size) {
            let mapped =
                self.trees.maps_any(&(gfn..gfn + 1)) || !self.shadow.mapping(gfn).is_empty();
            young |= mapped && self.host.age(gfn);
        }
        // A stale accessed bit misleads nobody but the host's reclaim: no ideal flushes for it.
        if young && self.policy.mechanics.age_flush && !self.ideal() {
            self.remote_flush_range(gpa, size, o);
        }
    }

    /// SPTEs are rewritten without their dirty bits, as they were but for that (mmu_spte_update). KVM makes
    /// writable SPTEs dirty, so a bit is set wherever one is writable and was not cleared since. Who
    /// needs to know each later write, the dirty log, flushes by itself; up to 6.12 this did too.
    fn clean<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        let mut dirty = false;
        for gfn in self.frames(gpa, size) {
            let leaf = |(sp, at): &(Sp, u16)| matches!(self.shadow.spte(*sp, *at), Spte::Leaf(l) if l.write);
            let writable = self.trees.maps_any(&(gfn..gfn + 1)) && self.host_writable(gfn)
                || self.shadow.mapping(gfn).iter().any(leaf);
            dirty |= writable && self.host.clear_dirty(gfn);
        }
        if dirty && self.policy.mechanics.clear_dirty_flush && !self.ideal() {
            self.remote_flush_range(gpa, size, o);
        }
    }

    /// Whether the CPU sets accessed bits in the host's tables.
    pub(crate) fn has_accessed_bits(&self) -> bool {
        self.config.vendor == Vendor::Amd
            || self.config.mmu == MmuKind::Shadow
            || self.config.ept_ad
    }

    /// Huge mappings are broken up: the same frames, in small pages.
    fn split<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        let mut any = false;
        for gfn in self.frames(gpa, size) {
            self.host.split(gfn);
            any |= self.trees.split(gfn);
        }
        // The same frames behind the same addresses: nothing is owed.
        if any && self.policy.mechanics.remote_flush.zap && !self.ideal() {
            self.remote_flush_range(gpa, size, o);
        }
    }

    /// Whole blocks of the range become huge pages: backing that is not contiguous is copied first,
    /// as khugepaged does; the small SPTEs and their table go, the next fault maps the block.
    fn collapse<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        let shift = if size >= 1 << 30 && gpa.0.is_multiple_of(1 << 30) { 30 } else { 21 };
        let block = 1u64 << shift;
        let frames = block / PAGE_BYTES;
        let end = gpa.0.saturating_add(size).min(self.config.memory);
        let mut at = gpa.0.next_multiple_of(block);
        while at + block <= end {
            let first = at / PAGE_BYTES;
            if self.host.contiguous(first, frames) {
                self.notify(Gpa(at), block, true, Backing::Kept, o);
            } else {
                let hpa = self.host.allocate(frames, frames);
                self.notify(Gpa(at), block, false, Backing::Moved(hpa), o);
            }
            self.host.collapse(first, shift);
            at += block;
        }
    }

    /// A slot that goes or moves zaps every root; one that comes owes nothing.
    fn memslot<O: Observer>(&mut self, change: MemslotChange, gpa: Gpa, size: u64, o: &mut O) {
        let frames = self.frames(gpa, size);
        if change != MemslotChange::Add {
            self.zap_all_begin(gpa, size, o);
            self.race(Point::Unlocked, None, o);
        }
        for gfn in frames {
            self.host.set_slot(gfn, change != MemslotChange::Delete);
        }
        if change != MemslotChange::Add {
            self.zap_all_end(gpa, size, o);
        }
    }

    /// kvm_mmu_zap_all_fast as one, for a rule of a policy.
    pub(crate) fn zap_all<O: Observer>(&mut self, o: &mut O) {
        let size = self.config.memory;
        self.zap_all_begin(Gpa(0), size, o);
        self.zap_all_end(Gpa(0), size, o);
    }

    /// kvm_mmu_zap_all_fast: every root obsolete, every vCPU told; mmu_lock is released.
    fn zap_all_begin<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        self.act(o, Act::ZapAll);
        self.arch(o, None, &ArchOp::HostChange { gpa, size, rights: false }, false);
        self.trees.invalidate_all();
        for vcpu in &mut self.vcpus {
            for mmu in [&mut vcpu.mmu, &mut vcpu.nested.parked] {
                for root in mmu.root.iter_mut().chain(mmu.prev.iter_mut().flatten()) {
                    let root: &mut Root = root;
                    root.obsolete = true;
                }
            }
        }
        // What is made from here on is of the next generation, and stays.
        self.zap_below = self.shadow.next();
        self.shadow.hide_all();
        let request = match self.policy.mechanics.zap_all_request {
            ZapAllRequest::Reload => Request::MmuReload,
            ZapAllRequest::Obsolete => Request::MmuFreeObsoleteRoots,
        };
        self.request_all(request, o);
    }

    /// The pages of the old generation go, in batches; a table is freed only after the flush.
    fn zap_all_end<O: Observer>(&mut self, gpa: Gpa, size: u64, o: &mut O) {
        let old = self.zap_below;
        let live: Vec<_> = self.shadow.live().filter(|sp| *sp < old).collect();
        for sp in live {
            if !self.shadow.page(sp).special {
                self.zap_page(sp, o);
            }
        }
        // What an SPTE tells of accesses and writes belongs to the page that it maps, still the guest's or
        // not.
        for (gfn, hpa) in self.trees.zap_invalid() {
            self.act(o, Act::HeldPage { gpa: Gpa(gfn * PAGE_BYTES), hpa });
        }
        self.notifier.seq += 1;
        // Nobody can use what a VM without vCPUs leaves; who gets its tags next starts clean.
        let used = self.vcpus.iter().any(|vcpu| !vcpu.destroyed);
        let remote = &self.policy.mechanics.remote_flush;
        let flush = remote.zap && (used || remote.teardown);
        if flush {
            self.remote_flush_range(Gpa(0), self.config.memory, o);
        }
        self.commit_zapped(flush, o);
        self.arch(o, None, &ArchOp::HostDead { gpa, size }, false);
    }
}
