//! Paging-structure copies for the slow oracle: which one a walk used, and, in shadow mode, whether
//! the links it copies stand.

use tlbscope_trace::act::{Accessed, Act, At, Path, Tag, Via, path_table};
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

/// One link between shadow pages.
#[derive(Clone, Copy, Debug)]
struct Link {
    parent: Sp,
    index: u16,
    child: Sp,
    made: u64,
}

/// The links between shadow pages that stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    links: Vec<Link>,
    /// The level of each page.
    levels: Vec<(Sp, u8)>,
    /// The current root of each vCPU.
    roots: Vec<(Actor, Option<Sp>)>,
}

impl Links {
    pub(super) fn act(&mut self, at: &At, act: &Act, now: u64) {
        match *act {
            Act::SpNew { sp, level, .. } => {
                self.levels.retain(|l| l.0 != sp);
                self.levels.push((sp, level));
            }
            Act::SpLink { parent, index, child } => {
                self.links.retain(|l| (l.parent, l.index) != (parent, index));
                self.links.push(Link { parent, index, child, made: now });
            }
            Act::SpUnlink { parent, index, .. } => {
                self.links.retain(|l| (l.parent, l.index) != (parent, index));
            }
            Act::SpZap { sp } => self.links.retain(|l| l.parent != sp && l.child != sp),
            Act::Entry(context) => {
                self.roots.retain(|(actor, _)| *actor != at.actor);
                self.roots.push((at.actor, context.shadow_root));
            }
            _ => {}
        }
    }

    fn stands(&self, parent: Sp, child: Sp, gva: u64, since: u64) -> bool {
        let Some((_, level)) = self.levels.iter().find(|l| l.0 == parent) else { return false };
        let index = gva >> (u32::from(*level) * 9 + 3) & 0x1ff;
        self.links.iter().any(|l| {
            (l.parent, l.child, u64::from(l.index)) == (parent, child, index) && l.made < since
        })
    }

    /// Whether a path read at `since` is still that of the tables below the root of `actor`.
    fn all_stand(&self, actor: Actor, path: &Path, gva: u64, since: u64) -> bool {
        let Some((_, root)) = self.roots.iter().find(|(of, _)| *of == actor) else {
            return false;
        };
        let pages: Vec<Sp> =
            path.iter().rev().filter_map(|e| path_table(*e)).map(|sp| Sp(sp as u32)).collect();
        pages.first().copied() == *root
            && !pages.is_empty()
            && pages.windows(2).all(|pair| self.stands(pair[0], pair[1], gva, since))
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
                struck && !self.links.all_stand(actor, &used.path, gva, copy.read)
            }
            MmuKind::Tdp => struck || self.host_struck(&copy.content, copy.host_read),
        }
    }
}
