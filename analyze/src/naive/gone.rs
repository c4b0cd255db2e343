//! What outlaws a copy although no operation of its vCPU owed it: the tag that it sits under was given
//! to another owner, or software has declared the frame that it reaches reused.

use tlbscope_trace::act::{Act, At, Context, FreeWhy, Tag};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::World;
use tlbscope_trace::op::Actor;

use super::nested::Made;
use super::{Cached, Naive};

/// A VPID or ASID on one processor, with EPT one EP4TA of it.
type Key = (u16, u32, u64);

/// Whose a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A vCPU, under a tag of L1's processor (0: L1 itself).
    Vcpu(u16, u16),
    /// Whoever had it is destroyed.
    Nobody,
}

/// Who has each tag, and since when if another had it before.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners(Vec<(Key, Owner, u64)>);

/// Frames declared reused.
#[derive(Clone, Copy, Debug)]
struct Reuse {
    from: u64,
    end: u64,
    time: u64,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Reuses(Vec<Reuse>);

const fn key(tag: &Tag) -> Key {
    (tag.pcpu.0, tag.id, tag.ep4ta.0)
}

impl Owners {
    fn enters(&mut self, context: &Context, vcpu: u16, virtual_tag: u16, now: u64) {
        let key = key(&context.tag);
        let owner = Owner::Vcpu(vcpu, virtual_tag);
        match self.0.iter_mut().find(|of| of.0 == key) {
            None => self.0.push((key, owner, 0)),
            Some(of) if of.1 == owner => {}
            // Every entry and exit drops VPID 0. Within a vCPU shadow pages may serve several tags of
            // L1, and what each of them owes says what is stale.
            Some(of) if context.tag.id == 0 => of.1 = owner,
            Some(of)
                if context.shadow_root.is_some()
                    && matches!(of.1, Owner::Vcpu(was, _) if was == vcpu) =>
            {
                of.1 = owner;
            }
            Some(of) => *of = (key, owner, now),
        }
    }

    /// Whether a copy under this tag, read at `read`, is that of an earlier owner.
    fn outlived(&self, tag: &Tag, read: u64) -> bool {
        self.0.iter().any(|of| of.0 == key(tag) && of.2 > read)
    }
}

impl Naive {
    pub(super) fn tags_change<W: World>(&mut self, at: &At, act: &Act, world: &W) {
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return };
        match act {
            Act::Entry(context) => {
                let made = Made::now(world, vcpu);
                self.owners.enters(context, vcpu, made.tag, self.now);
            }
            Act::FreeRoot { why: FreeWhy::Destroy, .. } => {
                for of in &mut self.owners.0 {
                    if matches!(of.1, Owner::Vcpu(was, _) if was == vcpu) {
                        of.1 = Owner::Nobody;
                    }
                }
            }
            // Everything under the EP4TA, be it of whatever vCPU and processor, is of another EPT.
            Act::RootNew(root) => {
                for copy in self.copies.iter_mut().filter(|copy| copy.tag.ep4ta.0 == root.0) {
                    copy.orphan = true;
                }
            }
            _ => {}
        }
    }

    pub(super) fn reused(&mut self, from: u64, size: u64) {
        let reuse = Reuse { from, end: from.saturating_add(size), time: self.now };
        self.reuses.0.push(reuse);
    }

    /// Whether a copy of this frame, read at `read`, reaches what is something else now.
    pub(super) fn reaches_reused(&self, frame: u64, read: u64) -> bool {
        self.reuses.0.iter().any(|r| r.from <= frame && frame < r.end && r.time > read)
    }

    /// Whether a translation outlived its tag's owner or its frame's use.
    pub(super) fn outlived(&self, copy: &Cached, tag: &Tag) -> bool {
        copy.orphan
            || self.owners.outlived(tag, copy.read)
            || self.reaches_reused(copy.content.gpa.0, copy.read.min(copy.host_read))
    }

    /// The same of a paging-structure copy, which leads through tables at `frames`.
    pub(super) fn structure_outlived(
        &self,
        copy: &Cached,
        mut frames: impl Iterator<Item = u64>,
    ) -> bool {
        copy.orphan
            || self.owners.outlived(&copy.tag, copy.read)
            || frames.any(|frame| self.reaches_reused(frame, copy.read))
    }
}
