//! Paging-structure copies for the slow oracle: which one a walk used, and, in shadow mode, whether
//! the links it copies stand.

use tlbscope_trace::act::{Accessed, Act, At, Path, Tag, Via, path_entry};
use tlbscope_trace::addr::Sp;
use tlbscope_trace::observe::World;
use tlbscope_trace::op::Actor;
use tlbscope_trace::regs::MmuKind;

use super::Naive;
use super::nested::Made;

/// The copy that the walk under way used instead of memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    tag: Tag,
    bytes: u64,
    path: Path,
}

impl Used {
    pub(super) fn new(tag: Tag, shift: u32, path: Path) -> Self {
        Self { tag, bytes: 1 << shift, path }
    }
}

/// The links between shadow pages, and those that were.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    now: Vec<(Sp, u16, Sp)>,
    /// Pages that lost a link or died, and when.
    lost: Vec<(Sp, u64)>,
    /// The current root of each vCPU.
    roots: Vec<(Actor, Option<Sp>)>,
}

impl Links {
    fn remove(&mut self, place: (Sp, u16), now: u64) {
        for (_, _, child) in self.now.extract_if(.., |l| (l.0, l.1) == place) {
            self.lost.push((child, now));
        }
    }

    pub(super) fn act(&mut self, at: &At, act: &Act, now: u64) {
        match *act {
            Act::SpLink { parent, index, child } => {
                self.remove((parent, index), now);
                self.now.push((parent, index, child));
            }
            Act::SpUnlink { parent, index, .. } => self.remove((parent, index), now),
            Act::SpZap { sp } => {
                for (_, _, child) in self.now.extract_if(.., |l| l.0 == sp) {
                    self.lost.push((child, now));
                }
                self.now.retain(|l| l.2 != sp);
                self.lost.push((sp, now));
            }
            Act::Entry(context) => {
                self.roots.retain(|(actor, _)| *actor != at.actor);
                self.roots.push((at.actor, context.shadow_root));
            }
            _ => {}
        }
    }

    /// Whether a path read at `since` is still that of the tables below the root of `actor`.
    fn stand(&self, actor: Actor, path: &Path, since: u64) -> bool {
        let Some((_, Some(root))) = self.roots.iter().find(|(of, _)| *of == actor) else {
            return false;
        };
        let top = path.iter().rev().find(|entry| **entry != 0);
        top == Some(&path_entry(u64::from(root.0)))
            && self.lost.iter().all(|(page, when)| {
                *when <= since || !path.contains(&path_entry(u64::from(page.0)))
            })
    }
}

impl Naive {
    /// Whether the access's walk used a struck-out paging-structure copy.
    pub(super) fn used_struck<W: World>(&self, vcpu: u16, a: &Accessed, world: &W) -> bool {
        let Some(used) = self.used else { return false };
        if matches!(a.via, Via::Copy { fresh: false, .. }) {
            return false;
        }
        let gva = a.access.gva.0;
        let found = self.copies.iter().rev().find(|c| {
            c.structure
                && (c.vcpu, c.tag, c.bytes) == (vcpu, used.tag, used.bytes)
                && gva >= c.address
                && gva - c.address < c.bytes
        });
        let Some(copy) = found else { return false };
        let struck = self.struck_for(copy, Made::now(world, vcpu));
        match world.mmu() {
            MmuKind::Shadow => {
                let actor = Actor::Vcpu(tlbscope_trace::addr::VcpuId(vcpu));
                struck && !self.links.stand(actor, &used.path, copy.read)
            }
            MmuKind::Tdp => struck || self.host_struck(&copy.content, copy.host_read),
        }
    }
}
