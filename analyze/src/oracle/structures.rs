//! Paging-structure copies: tested when a walk uses them (facts A.8).
//!
//! Under TDP such a copy has the stamp of its read. In shadow mode it copies links between shadow
//! pages above the last level. Those pages are write-protected as long as they are linked, so a copy
//! equals the guest's entries until the hypervisor takes one of its links away, or makes another
//! root the current one: up to then it is live, whatever is owed.

use tlbscope_sim::arch::required::{BIRTH, RELEASE};
use tlbscope_trace::act::{Accessed, At, Copied, Outcome, Path, Tag, path_table};
use tlbscope_trace::addr::{Gpa, Gva, Sp, VcpuId};
use tlbscope_trace::observe::World;

use super::floors::Target;
use super::judge::Cause;
use super::nested::fresh_now;
use super::{Oracle, Stamp, frames_differ};

/// A paging-structure copy that a walk used instead of memory.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Structure {
    /// When it was read.
    pub g: u64,
    /// The host's mapping of the table it leads to.
    pub h: u64,
    /// L1's nested table, of a guest-physical copy in L2; else 0.
    pub n: u64,
    /// Where it sits.
    pub tag: Tag,
    /// The address that was translated.
    pub gva: Gva,
    /// log2 of the bytes that it covers.
    pub shift: u32,
    /// The tables on the way.
    pub path: Path,
}

impl Structure {
    fn target(&self) -> Target {
        let (pcid, gva, shift) = (self.tag.pcid.0, self.gva.0, self.shift);
        Target { global: false, structure: true, pcid, gva, shift }
    }

    /// The table that it leads to.
    fn table(&self) -> Option<u64> {
        self.path.iter().find_map(|entry| path_table(*entry))
    }
}

/// A use that is a missed or an advised flush.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Outlawed {
    event: u64,
    used: Structure,
    cause: Cause,
}

/// The paging-structure copies that walks used instead of memory.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Uses {
    /// The walk under way came through links of shadow tables that are gone: what it finds may be
    /// what no walk of the guest's tables gives now, without anybody's fault.
    pub strayed: bool,
    /// The walk under way started from such a copy.
    pub any: bool,
    /// Uses of the access under way, in all its walks: one that ended in a fault which the guest
    /// does not see went through an outlawed copy all the same.
    outlawed: Vec<Outlawed>,
}

impl Uses {
    /// Another walk begins.
    pub const fn walk_begins(&mut self) {
        self.strayed = false;
        self.any = false;
    }

    /// The access is over.
    pub fn clear(&mut self) {
        self.walk_begins();
        self.outlawed.clear();
    }

    /// Whether there is anything to judge.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.outlawed.is_empty()
    }
}

impl Oracle {
    /// Whether every link of a copy of shadow tables has stood since it was read, below the root
    /// that is current.
    fn live(&self, root: Sp, used: &Structure) -> bool {
        let pages = || used.path.iter().rev().filter_map(|entry| path_table(*entry));
        let sp = |page: u64| Sp(page as u32);
        pages().next().is_some_and(|top| sp(top) == root)
            && pages().zip(pages().skip(1)).all(|(parent, child)| {
                self.shadow.linked_since(sp(parent), sp(child), used.gva.0, used.g)
            })
    }

    /// The walk under way uses a copy. It is judged now: what the walk comes to may owe something
    /// itself.
    pub(super) fn structure_used(&mut self, at: &At, id: usize, mut used: Structure) {
        let root = self.vcpus[id].context.shadow_root;
        let live = root.is_some_and(|root| self.live(root, &used));
        self.uses.any = true;
        self.uses.strayed = root.is_some() && !live;
        if live {
            used.g = self.now;
        }
        if let Some(cause) = self.structure_cause(id, &used, root.is_some())
            && !self.lacks(&cause)
        {
            self.uses.outlawed.push(Outlawed { event: at.event, used, cause });
        }
    }

    /// The walk under way uses a copy of a table that stands for one of L1's EPT. Those tables are
    /// write-protected too: as long as its links stand it equals L1's, and else what L1 was promised since
    /// it was read decides.
    pub(super) fn nested_structure_used(&mut self, at: &At, id: usize, mut used: Structure) {
        let pages = || used.path.iter().rev().filter_map(|entry| path_table(*entry));
        let sp = |page: u64| Sp(page as u32);
        let live = pages().zip(pages().skip(1)).all(|(parent, child)| {
            self.shadow.linked_since(sp(parent), sp(child), used.gva.0, used.n)
        });
        if live {
            used.n = self.now;
        }
        let floors = self.vcpus[id].floors.nested();
        if floors.is_some_and(|floors| floors.outlawed(&used.target(), used.n).0) {
            let cause = Cause::Nested;
            self.uses.outlawed.push(Outlawed { event: at.event, used, cause });
        }
    }

    fn structure_cause(&self, id: usize, used: &Structure, shadow: bool) -> Option<Cause> {
        let (must, advised) = self.vcpus[id].floors.outlawed(&used.target(), used.g);
        let table = if shadow { None } else { used.table() };
        let host = |gpa| self.host.outlaws(gpa, used.h, false);
        if must {
            Some(Cause::Guest { must })
        } else if let Some((event, op)) = self.hardware.birth(&used.tag, used.g, used.h) {
            Some(Cause::Other { rule: &BIRTH, op, event })
        } else if table.is_some_and(host) {
            Some(Cause::Host)
        } else if let Some(event) = self.released_table(used, shadow) {
            Some(Cause::Other { rule: &RELEASE, op: "release", event })
        } else {
            advised.then_some(Cause::Guest { must })
        }
    }

    /// Reports the outlawed copies that the access's walks used instead of memory.
    pub(super) fn judge_structures<W: World>(
        &mut self,
        at: &At,
        id: usize,
        a: &Accessed,
        world: &W,
    ) {
        let uses = std::mem::take(&mut self.uses.outlawed);
        for Outlawed { used, cause, .. } in uses.iter().filter(|used| used.event == at.event) {
            let now = fresh_now(world, id, world.regs(VcpuId(id as u16)), &a.access);
            let harmful = a.outcome != now.outcome
                || matches!(a.outcome, Outcome::Gpa(_)) && frames_differ(a.hpa, now.copied.hpa)
                || now.sets_ad;
            let (g, h, shift, target) = (used.g, used.h, used.shift, used.target());
            let stamp = Stamp { g, h, n: used.n, shift, impossible: false, mode: 0 };
            let copy = Copied { gpa: Gpa(used.table().unwrap_or(0)), ..Copied::default() };
            let mechanism = "paging-structure";
            self.report_use(at, id, a, *cause, &target, &stamp, &copy, harmful, mechanism);
        }
    }

    /// The release of one of the tables that a walk came through by this copy.
    fn released_table(&self, used: &Structure, shadow: bool) -> Option<u64> {
        if !self.host.released_after(used.g) {
            return None;
        }
        let tables = used.path.iter().filter_map(|entry| path_table(*entry));
        let frames = tables.filter_map(|table| match shadow {
            true => self.shadow.guest_table(Sp(table as u32)),
            false => Some(table),
        });
        frames.filter_map(|frame| self.host.released(frame, used.g)).min()
    }
}
