//! The world of a recording: registers, and no guest memory.

use tlbscope_trace::addr::{Gpa, Hpa, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::RegWrite;
use tlbscope_trace::recording::Meta;
use tlbscope_trace::regs::{Cr0, Efer, MmuKind, Regs, Vendor};

/// What a recording shows of the architecture's state.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Whose hardware.
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    pub mmu: MmuKind,
    /// Registers by vCPU.
    pub regs: Vec<Regs>,
    /// Those of a vCPU that nothing was seen of.
    none: Regs,
}

impl Shown {
    /// The state before the first record.
    pub fn new(meta: &Meta, vendor: Vendor, mmu: MmuKind) -> Self {
        let start = |mut regs: Regs| {
            follow_lma(&mut regs);
            regs
        };
        let regs = meta.initial_regs.iter().copied().map(start).collect();
        Self { vendor, mmu, regs, none: Regs::default() }
    }

    /// The registers of a vCPU, to change them.
    pub fn regs_mut(&mut self, id: usize) -> &mut Regs {
        if id >= self.regs.len() {
            self.regs.resize(id + 1, Regs::default());
        }
        &mut self.regs[id]
    }
}

impl World for Shown {
    fn vendor(&self) -> Vendor {
        self.vendor
    }
    fn mmu(&self) -> MmuKind {
        self.mmu
    }
    fn maxphyaddr(&self) -> u32 {
        52
    }
    fn gbpages(&self) -> bool {
        true
    }
    fn regs(&self, vcpu: VcpuId) -> &Regs {
        self.regs.get(usize::from(vcpu.0)).unwrap_or(&self.none)
    }
    fn read(&self, _: Gpa) -> u64 {
        0
    }
    fn backing(&self, _: Gpa) -> Option<Hpa> {
        None
    }
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// EFER.LMA follows CR0.PG and EFER.LME (facts A.1).
pub fn follow_lma(regs: &mut Regs) {
    let long = Efer::LME.bits() | Efer::LMA.bits();
    if regs.cr0 & Cr0::PG.bits() != 0 && regs.efer & long != 0 {
        regs.efer |= long;
    } else {
        regs.efer &= !Efer::LMA.bits();
    }
}

/// The value of EFER that a write leaves: LMA cannot be written.
pub const fn written_efer(old: u64, write: RegWrite) -> u64 {
    let lma = Efer::LMA.bits();
    write.apply(old) & !lma | old & lma
}

/// The registers after INIT or RESET (SDM vol. 3, table 9-1): INIT keeps CR0.CD and NW.
pub fn reset(regs: &Regs, init: bool) -> Regs {
    let cache = (Cr0::CD | Cr0::NW).bits();
    let kept = if init { regs.cr0 & cache } else { cache };
    Regs { cr0: Cr0::ET.bits() | kept, ..Regs::default() }
}
