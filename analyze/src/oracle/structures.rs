//! Paging-structure copies: tested when a walk uses them (facts A.8).
//!
//! Under TDP such a copy has the stamp of its read. In shadow mode it copies links between shadow
//! pages above the last level. Those pages are write-protected as long as they are linked, so a copy
//! equals the guest's entries until the hypervisor takes one of its links away, or makes another
//! root the current one: up to then it is live, whatever is owed.

use tlbscope_sim::arch::required::{BIRTH, RELEASE};
use tlbscope_trace::act::{Accessed, At, Copied, Outcome, Path, Tag, Via, path_table};
use tlbscope_trace::addr::{Gpa, Sp, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::regs::MmuKind;

use super::floors::Target;
use super::judge::Cause;
use super::nested::fresh_now;
use super::{Oracle, Stamp, frames_differ};

/// The paging-structure copy that the walk under way used instead of memory.
#[derive(Clone, Copy, Debug)]
pub struct Structure {
    /// When it was read.
    pub g: u64,
    /// The host's mapping of the table it leads to.
    pub h: u64,
    /// Where it sits.
    pub tag: Tag,
    /// log2 of the bytes that it covers.
    pub shift: u32,
    /// The tables on the way.
    pub path: Path,
}

impl Structure {
    /// The table that it leads to.
    fn table(&self) -> Option<u64> {
        self.path.iter().find_map(|entry| path_table(*entry))
    }
}

impl Oracle {
    /// Whether every link of a copy of shadow tables has stood since it was read, below the root
    /// that is current.
    pub(super) fn live(&self, id: usize, used: &Structure, gva: u64) -> bool {
        let root = self.vcpus[id].context.shadow_root;
        let pages = || used.path.iter().rev().filter_map(|entry| path_table(*entry));
        let sp = |page: u64| Sp(page as u32);
        pages().next().is_some_and(|top| Some(sp(top)) == root)
            && pages()
                .zip(pages().skip(1))
                .all(|(parent, child)| self.shadow.linked_since(sp(parent), sp(child), gva, used.g))
    }

    /// Whether the walk under way, to `gva`, came through links of shadow tables that are gone: what
    /// it finds may be what no walk of the guest's tables gives now, without anybody's fault.
    pub(super) fn strayed(&self, id: usize, gva: u64) -> bool {
        self.used.is_some_and(|used| !self.live(id, &used, gva))
    }

    /// The paging-structure copy that the access's walk used instead of memory.
    pub(super) fn judge_structure<W: World>(
        &mut self,
        at: &At,
        id: usize,
        a: &Accessed,
        world: &W,
    ) {
        let Some(used) = self.used else { return };
        if matches!(a.via, Via::Copy { fresh: false, .. }) {
            return;
        }
        let shadow = world.mmu() == MmuKind::Shadow;
        let g = if shadow && self.live(id, &used, a.access.gva.0) { self.now } else { used.g };
        let (gva, pcid, shift) = (a.access.gva.0, used.tag.pcid.0, used.shift);
        let target = Target { global: false, structure: true, pcid, gva, shift };
        let table = if shadow { None } else { used.table() };
        let copy = Copied { gpa: Gpa(table.unwrap_or(u64::MAX)), ..Copied::default() };
        let (must, advised) = self.vcpus[id].floors.outlawed(&target, g);
        let host =
            || used.h <= self.host.latest_due && self.host.outlaws(copy.gpa.0, used.h, false);
        let cause = if must {
            Cause::Guest { must }
        } else if self.hardware.birth(&used.tag, g).is_some() {
            Cause::Other { rule: &BIRTH, op: "entry", event: self.vcpus[id].op.0 }
        } else if table.is_some() && host() {
            Cause::Host
        } else if let Some(event) = self.released_table(&used, g, shadow) {
            Cause::Other { rule: &RELEASE, op: "release", event }
        } else if advised {
            Cause::Guest { must }
        } else {
            return;
        };
        if self.lacks(&cause) {
            return;
        }
        let now = fresh_now(world, id, world.regs(VcpuId(id as u16)), &a.access);
        let harmful = a.outcome != now.outcome
            || matches!(a.outcome, Outcome::Gpa(_)) && frames_differ(a.hpa, now.copied.hpa)
            || now.sets_ad;
        let stamp = Stamp { g, h: used.h, n: 0, shift, impossible: false, mode: 0 };
        self.report_use(at, id, a, cause, &target, &stamp, &copy, harmful, "paging-structure");
    }

    /// The release of one of the tables that a walk came through by this copy.
    fn released_table(&self, used: &Structure, stamp: u64, shadow: bool) -> Option<u64> {
        if self.host.releases.is_empty() {
            return None;
        }
        let tables = used.path.iter().filter_map(|entry| path_table(*entry));
        let frames = tables.filter_map(|table| match shadow {
            true => self.shadow.guest_table(Sp(table as u32)),
            false => Some(table),
        });
        frames.filter_map(|frame| self.host.released(frame, stamp)).min()
    }
}
