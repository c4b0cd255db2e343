//! Paging-structure copies for the slow oracle: which one a walk used, and, in shadow mode, whether
//! the links it copies stand.

use tlbscope_trace::act::{Act, At, Instead, Path, Tag, path_table};
use tlbscope_trace::addr::{Sp, VcpuId};
use tlbscope_trace::op::Actor;

use super::{Cached, Naive};

/// The bit of the raw role word of a page that no guest table stands behind (facts/kvm.md 7.2).
const DIRECT: u32 = 1 << 7;

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
    /// The level of each page, and the guest's table behind it, if there is one.
    levels: Vec<(Sp, u8, Option<u64>)>,
    /// The current root of each vCPU.
    roots: Vec<(Actor, Option<Sp>)>,
}

impl Links {
    pub(super) fn act(&mut self, at: &At, act: &Act, now: u64) {
        match *act {
            Act::SpNew { sp, level, gfn, role } => {
                self.levels.retain(|l| l.0 != sp);
                self.levels.push((sp, level, (role & DIRECT == 0).then_some(gfn << 12)));
            }
            Act::SpLink { parent, index, child } => {
                self.links.retain(|l| (l.parent, l.index) != (parent, index));
                self.links.push(Link { parent, index, child, made: now });
            }
            Act::SpUnlink { parent, index, .. } => {
                self.links.retain(|l| (l.parent, l.index) != (parent, index));
            }
            Act::SpZap { sp } => {
                self.links.retain(|l| l.parent != sp && l.child != sp);
                self.levels.retain(|l| l.0 != sp);
            }
            Act::Entry(context) => {
                self.roots.retain(|(actor, _)| *actor != at.actor);
                self.roots.push((at.actor, context.shadow_root));
            }
            _ => {}
        }
    }

    fn stands(&self, parent: Sp, child: Sp, gva: u64, since: u64) -> bool {
        let Some((_, level, _)) = self.levels.iter().find(|l| l.0 == parent) else { return false };
        let index = gva >> (u32::from(*level) * 9 + 3) & 0x1ff;
        self.links.iter().any(|l| {
            (l.parent, l.child, u64::from(l.index)) == (parent, child, index) && l.made < since
        })
    }

    /// The guest's table behind a page.
    fn table(&self, sp: Sp) -> Option<u64> {
        self.levels.iter().find(|l| l.0 == sp)?.2
    }

    /// The current root, where it is a shadow page.
    fn root(&self, actor: Actor) -> Option<Sp> {
        self.roots.iter().find(|(of, _)| *of == actor)?.1
    }

    /// Whether a path read at `since` is still that of the tables below `root`, if that is named.
    fn all_stand(&self, root: Option<Sp>, path: &Path, gva: u64, since: u64) -> bool {
        let pages: Vec<Sp> =
            path.iter().rev().filter_map(|e| path_table(*e)).map(|sp| Sp(sp as u32)).collect();
        root.is_none_or(|root| pages.first() == Some(&root))
            && pages.windows(2).all(|pair| self.stands(pair[0], pair[1], gva, since))
    }
}

impl Naive {
    /// A walk uses a paging-structure copy instead of memory: whether it is struck out.
    pub(super) fn structure_struck(&self, at: &At, tag: &Tag, instead: Instead) -> bool {
        let Instead::Structure { gva, shift, path } = instead else { return false };
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return false };
        let of = |mine: bool| {
            self.copies.iter().rev().find(|c| {
                c.structure
                    && (c.vcpu == vcpu) == mine
                    && (c.tag, c.bytes) == (*tag, 1 << shift)
                    && gva.0 >= c.address
                    && gva.0 - c.address < c.bytes
            })
        };
        let Some(copy) = of(true).or_else(|| of(false)) else { return false };
        if copy.physical {
            // Of the EP4TA, whoever made it: what the L1 of this vCPU was promised counts.
            let own = Cached { vcpu, ..copy.clone() };
            let struck = self.owed.iter().any(|o| o.time > copy.read && o.strikes(&own));
            return struck && !self.links.all_stand(None, &path, gva.0, copy.read);
        }
        let struck = copy.struck && copy.vcpu == vcpu;
        let tables = path.iter().filter_map(|entry| path_table(*entry));
        match self.links.root(at.actor) {
            Some(root) => {
                let frames = tables.filter_map(|sp| self.links.table(Sp(sp as u32)));
                (struck || self.structure_outlived(copy, frames))
                    && !self.links.all_stand(Some(root), &path, gva.0, copy.read)
            }
            None => {
                struck
                    || self.host_struck(&copy.content, copy.host_read)
                    || self.structure_outlived(copy, tables)
            }
        }
    }
}
