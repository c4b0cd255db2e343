//! L1 and L2: what L1's operations on its processor's tags owe, and what L2's accesses come to by
//! its own tables and L1's nested ones.
//!
//! Limits. Obligations over nested tables (INVEPT) are judged at uses, not as exposures. L2's page
//! tables are read through L1's nested tables as they are now.

use tlbscope_sim::arch::nested;
use tlbscope_sim::paging::nested::{L2Memory, translate};
use tlbscope_trace::act::{At, Outcome, Source};
use tlbscope_trace::addr::{Gpa, Hpa, VcpuId};
use tlbscope_trace::nested::{NestedOp, VIOLATION};
use tlbscope_trace::observe::World;
use tlbscope_trace::op::{Access, AccessKind};
use tlbscope_trace::regs::{Regs, Vendor};

use super::context::Nested;
use super::fresh::{Fresh, fresh};
use super::{Oracle, open};

impl Oracle {
    /// An operation of L1 on L2, or the passage between them.
    pub(super) fn nested_op<W: World>(&mut self, at: &At, id: usize, op: &NestedOp, world: &W) {
        if let Some((whose, owed)) = nested::required(world.vendor(), op)
            && self.without != Some(owed.rule.id)
        {
            let name = op_name(op);
            let obligation = self.obligation(at, owed.rule, name, owed);
            let vcpu = &mut self.vcpus[id];
            if vcpu.floors.raise_for(whose, &obligation) {
                vcpu.window.owe(open(&obligation));
            }
        }
        let l2 = world.l2(VcpuId(id as u16));
        let tables = l2.and_then(|l2| {
            let tables = l2.tables?;
            Some(match world.vendor() {
                Vendor::Intel => Nested::Ep4ta(tables.root.0),
                Vendor::Amd => Nested::Asid(l2.tag),
            })
        });
        self.vcpus[id].floors.switch(l2.map_or(0, |l2| l2.tag), tables);
    }

    /// The stamps of a copy made through L1's nested tables: (of the nested tables, of the host).
    pub(super) fn nested_stamp(&self, source: Source) -> (u64, u64) {
        match source {
            Source::Shadow { sp, index } => {
                let (n, h) = self.shadow.entry(sp, index);
                (n.unwrap_or(self.now), h.unwrap_or(self.now))
            }
            // The mapping of the leaf's frame is the last that the walk used or made.
            _ => match self.used_h[..self.used_h_count].last() {
                Some((h, n)) => (*n, *h),
                None => (self.now, self.now),
            },
        }
    }

    /// Whether a flush protects a tag that the hypervisor lets several contexts of L1's processor
    /// share: none of this pCPU belongs to the one that is current.
    pub(super) fn shares_tag(&self, id: usize) -> bool {
        let vcpu = &self.vcpus[id];
        vcpu.entered && !self.hardware.has(vcpu.pcpu, (id as u16, vcpu.floors.tag()))
    }
}

/// The name of an operation in findings.
pub(super) const fn op_name(op: &NestedOp) -> &'static str {
    match op {
        NestedOp::Enter { .. } => "l2enter",
        NestedOp::Exit { .. } => "l2exit",
        NestedOp::Invvpid { .. } => "invvpid",
        NestedOp::Invept(_) => "invept",
        NestedOp::Vmfunc(_) => "vmfunc",
    }
}

/// What an access of this vCPU comes to by the tables as they are now, L1's nested ones included.
pub(super) fn fresh_now<W: World>(world: &W, id: usize, regs: &Regs, access: &Access) -> Fresh {
    let Some(tables) = world.l2(VcpuId(id as u16)).and_then(|l2| l2.tables) else {
        return fresh(world, regs, access);
    };
    let memory = L2Memory::new(world, tables);
    let mut now = fresh(&memory, regs, access);
    let Outcome::Gpa(at) = now.outcome else { return now };
    let Some(mapped) = translate(world, &tables, at, access.kind) else {
        now.outcome = Outcome::Fault(VIOLATION);
        return now;
    };
    now.outcome = Outcome::Gpa(mapped.gpa);
    now.copied.gpa = Gpa(mapped.gpa.0 & !0xfff);
    now.copied.hpa = world.backing(now.copied.gpa).unwrap_or(Hpa(0));
    now.copied.write &= mapped.rights.write || access.kind != AccessKind::Write;
    now
}
