//! `remote-flush.range`: a remote flush that hits pages instead of whole contexts. No hardware does it;
//! it is the bound on cost of `arch-min`, and, with other pages than are owed, a defect.

use tlbscope_trace::act::{Act, Inv};
use tlbscope_trace::observe::Observer;

use crate::engine::Machine;
use crate::policy::mechanics::RemoteRange;

impl Machine {
    /// Notes frames whose two-dimensional mapping went, for the flush that follows.
    pub(crate) fn note_lost(&mut self, first: u64, frames: u64) {
        if self.policy.mechanics.remote_flush.range != RemoteRange::None {
            self.lost.push((first, frames));
        }
    }

    /// Drops the translations of the frames that lost a mapping, on every vCPU, in no time and without
    /// an exit.
    pub(super) fn flush_frames<O: Observer>(&mut self, range: RemoteRange, o: &mut O) {
        let mut lost = std::mem::take(&mut self.lost);
        lost.extend(self.shadow.take_lost().into_iter().map(|gfn| (gfn, 1)));
        lost.sort_unstable();
        let exact = range == RemoteRange::Exact;
        match range {
            RemoteRange::FirstPage => {
                lost.truncate(1);
                lost.iter_mut().for_each(|(_, frames)| *frames = 1);
            }
            RemoteRange::Shifted => lost.iter_mut().for_each(|(first, frames)| *first += *frames),
            RemoteRange::Exact | RemoteRange::None => {}
        }
        let hit = |gfn: u64| lost.iter().any(|(first, n)| (*first..first + n).contains(&gfn));
        let event = self.at.event;
        for v in 0..self.vcpus.len() {
            let at = self.at_vcpu(v);
            let pcpu = self.vcpus[v].pcpu.0 as usize;
            // A defect flushes less than the judge would take an exact flush for.
            if exact {
                o.act(&at, &Act::Inv(Inv::Exact), self);
            }
            let tlb = &mut self.pcpus[pcpu].tlb;
            tlb.drop_frames(&hit, event, &mut |tag, global, n| o.dropped(&at, tag, global, n));
        }
        self.act(o, Act::RemoteFlush { ipi: Some(false) });
    }
}
