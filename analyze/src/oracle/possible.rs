//! Whether a walk could have given a copy at all.

use std::fmt;

use rustc_hash::FxHashMap;
use tlbscope_trace::act::{Copied, Fill, FillKind, Source};
use tlbscope_trace::addr::{Gpa, Gva, Sp, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::regs::{Cr4, Efer, Regs, Vendor};

use super::{Oracle, fresh};

/// Entries that are remembered; then all are forgotten.
const KNOWN: usize = 1 << 16;

/// What was found of a shadow entry when a copy of it was made: a walk of the guest's tables is
/// repeated only when something may have changed that it reads. No part of a saved state.
#[derive(Clone, Default)]
pub(super) struct Known(FxHashMap<(u16, Sp, u16), Once>);

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known")
    }
}

/// One finding, and what it depends on beside guest memory and shadow pages.
#[derive(Clone, Copy, Debug)]
struct Once {
    when: u64,
    address: u64,
    copy: Copied,
    /// CR0, CR3, CR4, EFER.
    regs: [u64; 4],
    found: (bool, bool),
}

impl Oracle {
    /// Whether no walk gives this copy of a shadow entry, and whether it grants more than the
    /// guest's own entries do, so that each use of it has to be compared.
    pub(super) fn possible<W: World>(
        &mut self,
        id: usize,
        sp: Sp,
        index: u16,
        fill: &Fill,
        world: &W,
    ) -> (bool, bool) {
        let Regs { cr0, cr3, cr4, efer, .. } = *world.regs(VcpuId(id as u16));
        let regs = [cr0, cr3, cr4, efer];
        let key = (id as u16, sp, index);
        let changed = self.stored.max(self.shadow.changed);
        if let Some(once) = self.known.0.get(&key)
            && once.when > changed
            && (once.address, once.copy, once.regs) == (fill.address, fill.copy, regs)
        {
            return once.found;
        }
        let found = self.impossible(id, sp, fill, world);
        // PAE paging begins in registers of which nobody tells that they are loaded.
        let registers = Cr4::from_bits_retain(cr4).contains(Cr4::PAE)
            && !Efer::from_bits_retain(efer).contains(Efer::LMA);
        if !registers {
            if self.known.0.len() == KNOWN {
                self.known.0.clear();
            }
            let (when, address, copy) = (self.now, fill.address, fill.copy);
            self.known.0.insert(key, Once { when, address, copy, regs, found });
        }
        found
    }

    /// Whether a translation was read through other PDPTE registers than the guest's: the
    /// hypervisor loads them for it (Intel, PAE paging).
    pub(super) fn other_pdptes<W: World>(&self, id: usize, fill: &Fill, world: &W) -> bool {
        let regs = world.regs(VcpuId(id as u16));
        let registers = regs.paging()
            && regs.cr4().contains(Cr4::PAE)
            && !regs.efer().contains(Efer::LMA)
            && world.vendor() == Vendor::Intel;
        if !registers || self.uses.any || fill.kind != FillKind::Translation {
            return false;
        }
        let walked = fresh::walk(world, regs, Gva(fill.address), |at| world.read(at));
        let offset = fill.size.bytes() - 1;
        walked.is_ok_and(|walked| (walked.gpa.0 ^ fill.copy.gpa.0) & !offset != 0)
            || walked.is_err()
    }

    /// Whether no walk gives this copy of a shadow entry, and whether it grants more than the
    /// guest's own entries do, so that each use of it has to be compared. Guest memory is read as it
    /// was when the leaf's page turned unsync.
    fn impossible<W: World>(&self, id: usize, sp: Sp, fill: &Fill, world: &W) -> (bool, bool) {
        let regs = world.regs(VcpuId(id as u16));
        let pae = regs.cr4().contains(Cr4::PAE);
        if !pae && regs.paging() && self.shadow.snapshot(sp).is_some() {
            return (false, false);
        }
        let frozen = self.shadow.snapshot(sp);
        let walked = fresh::walk(world, regs, Gva(fill.address), |at| match frozen {
            Some((gfn, table)) if at.0 >> 12 == gfn => table[(at.0 >> 3 & 511) as usize],
            _ => world.read(at),
        });
        let Ok(walked) = walked else { return (true, false) };
        if let Some((gfn, _)) = frozen
            && let Source::Shadow { index, .. } = fill.source
            && let Some(overwritten) = self.shadow.overwritten(sp, index)
        {
            let upper = walked.entries.map(|at| if at.0 >> 12 == gfn { Gpa(0) } else { at });
            // The page is linked where it never was while it held this entry.
            if self.shadow.pointed(&upper).is_some_and(|(since, _)| since > overwritten) {
                return (true, false);
            }
        }
        let page = walked.gpa.0 & !0xfff;
        let elsewhere =
            page != fill.copy.gpa.0 && walked.gpa.0 & !(fill.size.bytes() - 1) != fill.copy.gpa.0;
        let copy = &fill.copy;
        let generous =
            copy.write && !walked.write || copy.user != walked.user || !copy.xd && walked.xd;
        (elsewhere, generous)
    }
}
