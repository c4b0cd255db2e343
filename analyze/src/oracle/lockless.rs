//! Shadow pages that are freed under somebody who reads them without a lock.
//!
//! A page's memory may be anything once it is freed. A reader that uses what stands there takes it for
//! the page table at which it has arrived: a walk through a frame that was declared reused, and as such
//! a missed flush, whoever had to wait for the reader. It is harmful if the access comes out otherwise
//! than by the guest's tables. As long as a page is only zapped, what is read there is that nothing is
//! mapped, which owes nobody anything.

use tlbscope_sim::arch::required::RELEASE;
use tlbscope_trace::act::{Accessed, Act, At, Copied};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::World;

use super::floors::Target;
use super::judge::Cause;
use super::latest::Latest;
use super::nested::fresh_now;
use super::{Oracle, Stamp, frames_differ};

/// Pages that were freed under a reader and are remembered.
const FREED: usize = 1 << 12;

/// What is known of them.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Lockless {
    /// The event that freed a page.
    freed: Latest<u32, u64, FREED>,
    /// A vCPU has read such a page, freed by this event, for the access that comes.
    read: Option<(usize, u64)>,
}

impl Lockless {
    /// Whether the access that comes may act on what was read in a freed page.
    pub const fn reads(&self) -> bool {
        self.read.is_some()
    }

    /// Takes an act in; `id`: the vCPU whose it is.
    pub fn act(&mut self, at: &At, act: &Act, id: Option<usize>) {
        match act {
            Act::SpFree { sp } => self.freed.insert(sp.0, at.event),
            Act::SpRead { sp } => {
                let event = self.freed.get(&sp.0).copied();
                self.read = id.zip(event);
            }
            _ => {}
        }
    }
}

impl Oracle {
    /// The access under way acts on what a reader found in a page that was freed.
    pub(super) fn judge_freed_table<W: World>(
        &mut self,
        at: &At,
        id: usize,
        a: &Accessed,
        world: &W,
    ) {
        let Some((_, event)) = self.lockless.read.take_if(|(reader, _)| *reader == id) else {
            return;
        };
        let cause = Cause::Other { rule: &RELEASE, op: "release", event };
        if self.lacks(&cause) {
            return;
        }
        let now = fresh_now(world, id, world.regs(VcpuId(id as u16)), &a.access);
        let harmful = a.outcome != now.outcome || frames_differ(a.hpa, now.copied.hpa);
        let (pcid, gva) = (0, a.access.gva.0);
        let target = Target { global: false, structure: true, pcid, gva, shift: 12 };
        let stamp = Stamp { g: 0, h: 0, n: 0, shift: 12, impossible: false, mode: 0 };
        let copy = Copied::default();
        self.report_use(at, id, a, cause, &target, &stamp, &copy, harmful, "lockless-walk");
    }
}
