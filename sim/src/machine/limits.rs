//! What a scenario's machine means to the model: reserved bits and the caches' geometry.

use tlbscope_trace::regs::{Cr4, Efer};

use super::MachineError;
use super::config::{Features, MachineConfig};
use crate::tlb::Geometry;

impl MachineConfig {
    /// CR4 bits that are not reserved on this machine.
    #[must_use]
    pub const fn cr4_allowed(&self) -> u64 {
        let features = [
            (Features::PCID, Cr4::PCIDE),
            (Features::PGE, Cr4::PGE),
            (Features::SMEP, Cr4::SMEP),
            (Features::SMAP, Cr4::SMAP),
            (Features::LA57, Cr4::LA57),
            (Features::PKU, Cr4::PKE),
        ];
        let mut allowed = Cr4::all().bits();
        let mut n = 0;
        while n < features.len() {
            if !self.features.contains(features[n].0) {
                allowed &= !features[n].1.bits();
            }
            n += 1;
        }
        allowed
    }

    /// EFER bits that are not reserved on this machine.
    #[must_use]
    pub const fn efer_allowed(&self) -> u64 {
        let nx = if self.features.contains(Features::NX) { 0 } else { Efer::NXE.bits() };
        Efer::all().bits() & !nx
    }

    /// The TLB that the processor named by `tlb` gives a simulated CPU: its last level, which is
    /// where a translation ends up.
    ///
    /// # Errors
    /// There is no such processor.
    pub fn tlb_geometry(&self) -> Result<Geometry, MachineError> {
        let geometry = self.processor()?.geometry;
        Ok(geometry.map_or(Geometry::Unbounded, |geometry| {
            let (entries, ways) = geometry.last_level();
            Geometry::Sets { entries, ways }
        }))
    }

    /// The paging-structure caches that it gives him, for PDEs, PDPTEs, PML4Es and PML5Es; `None`:
    /// not modelled.
    ///
    /// # Errors
    /// There is no such processor.
    pub fn structure_caches(&self) -> Result<[Option<Geometry>; 4], MachineError> {
        let Some(geometry) = self.processor()?.geometry else {
            return Ok([Some(Geometry::Unbounded); 4]);
        };
        Ok([2, 3, 4, 5].map(|level| {
            let of = geometry.structure.iter().filter(|cache| cache.level == level);
            let entries = of.map(|cache| cache.entries).fold(0, u32::saturating_add);
            (entries > 0).then_some(Geometry::Sets { entries, ways: entries })
        }))
    }
}
