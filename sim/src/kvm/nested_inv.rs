//! L1's instructions on its nested state: INVEPT, INVVPID, VMFUNC, VMXON, VMXOFF (facts/kvm.md 4.6,
//! 2.5).

use tlbscope_trace::act::{ArchOp, Request};
use tlbscope_trace::act::{FreeWhy, Inv, RootSlot};
use tlbscope_trace::addr::{Gpa, Gva, Vpid};
use tlbscope_trace::nested::{L2, NestedOp, Tables};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::L1Op;
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::role::Role;
use super::root::{Mmu, PREV_ROOTS_MAX, Root};
use crate::engine::{Machine, Refused};
use crate::machine::config::InvvpidTypes;
use crate::policy::mechanics::{
    NestedInvept, NestedInveptReach, NestedInvvpid, NestedInvvpidElsewhere, NestedInvvpidRoots,
    NestedVmfunc,
};

impl Machine {
    /// `l1 ...`. What fails on hardware (VMfail) exits and has no other effect.
    pub(crate) fn l1<O: Observer>(
        &mut self,
        v: usize,
        op: &L1Op,
        o: &mut O,
    ) -> Result<(), Refused> {
        let refuse = |why: &str| Err(Refused { op: "l1", why: why.into() });
        if self.config.vendor == Vendor::Amd {
            return refuse("these instructions are Intel's");
        }
        let in_l2 = self.vcpus[v].nested.l2;
        match (op, in_l2) {
            (L1Op::Vmfunc(index), Some(l2)) => return self.vmfunc(v, *index, l2, o),
            (L1Op::Vmfunc(_), None) => return refuse("VMFUNC is executed by L2: `l2enter` first"),
            (_, Some(_)) => return refuse("L2 runs: `l2exit` first"),
            _ => {}
        }
        self.exit(v, None, o);
        match *op {
            L1Op::Vmxon => self.vmxon(v),
            L1Op::Vmxoff => self.vmxoff(v, o),
            L1Op::Invept { kind: 1, eptp: Some(eptp) } => {
                self.invept(v, Some(Tables::ept(eptp).root), o);
            }
            L1Op::Invept { kind: 1, eptp: None } => {
                return refuse("INVEPT 1 needs an EPTP");
            }
            L1Op::Invept { kind: 2, .. } => self.invept(v, None, o),
            L1Op::Invvpid { kind, vpid, gva } => {
                let fails = kind > 3 || vpid == 0 && kind != 2;
                if !fails {
                    self.invvpid(v, kind, vpid, gva.unwrap_or(Gva(0)), o);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn report_l1<O: Observer>(&mut self, v: usize, op: NestedOp, o: &mut O) {
        let at = self.at_vcpu(v);
        let regs = self.vcpus[v].regs;
        o.arch(&at, &ArchOp::Nested(op), &regs, false, self);
    }

    /// INVEPT: roots of guest_mmu that match are dropped; LOAD syncs and flushes their successors.
    fn invept<O: Observer>(&mut self, v: usize, root: Option<Gpa>, o: &mut O) {
        self.report_l1(v, NestedOp::Invept(root), o);
        if self.never() {
            return;
        }
        let named = match self.policy.mechanics.nested_invept {
            NestedInvept::Nothing => return,
            NestedInvept::AsAsked => root,
            NestedInvept::Loaded => root.and(self.vcpus[v].nested.loaded),
        };
        let matches = |r: &Root| named.is_none_or(|named| r.pgd == named.0);
        self.with_parked(v, |machine| {
            machine.free_matching(v, FreeWhy::NestedInvept, matches, o);
        });
        if self.policy.mechanics.nested_invept_reach == NestedInveptReach::Vm {
            self.invept_elsewhere(v, matches, o);
        }
    }

    /// What other vCPUs have made of the same nested tables goes too, before they run again.
    fn invept_elsewhere<O: Observer>(
        &mut self,
        v: usize,
        matches: impl Fn(&Root) -> bool + Copy,
        o: &mut O,
    ) {
        let others = (0..self.vcpus.len()).filter(|u| *u != v && !self.vcpus[*u].destroyed);
        for u in others.collect::<Vec<_>>() {
            let vcpu = &self.vcpus[u];
            let has = |mmu: &Mmu| mmu.root.iter().chain(mmu.prev.iter().flatten()).any(matches);
            if !has(&vcpu.mmu) && !has(&vcpu.nested.parked) {
                continue;
            }
            self.request_some(&[u], Request::TlbFlush, o);
            let actor = self.at_vcpu(u).actor;
            let own = std::mem::replace(&mut self.at.actor, actor);
            match self.vcpus[u].nested.l2 {
                Some(_) => self.free_matching(u, FreeWhy::NestedInvept, matches, o),
                None => self.with_parked(u, |machine| {
                    machine.free_matching(u, FreeWhy::NestedInvept, matches, o);
                }),
            }
            self.at.actor = own;
        }
    }

    /// Drops every root, current or cached, of the active MMU that matches.
    fn free_matching<O: Observer>(
        &mut self,
        v: usize,
        why: FreeWhy,
        matches: impl Fn(&Root) -> bool,
        o: &mut O,
    ) {
        if self.vcpus[v].mmu.root.as_ref().is_some_and(&matches) {
            self.free_root(v, RootSlot::Current, why, o);
        }
        for slot in 0..PREV_ROOTS_MAX {
            if self.vcpus[v].mmu.prev[slot].as_ref().is_some_and(&matches) {
                self.free_root(v, RootSlot::Prev(slot as u8), why, o);
            }
        }
    }

    /// INVVPID: carried out on vpid02, whatever VPID was named; without EPT, L2's roots go.
    fn invvpid<O: Observer>(&mut self, v: usize, kind: u64, vpid: u16, gva: Gva, o: &mut O) {
        self.report_l1(v, NestedOp::Invvpid { kind, vpid, gva }, o);
        if self.never() {
            return;
        }
        let mechanics = &self.policy.mechanics;
        let (how, roots) = (mechanics.nested_invvpid, mechanics.nested_invvpid_roots);
        let defer = mechanics.nested_invvpid_elsewhere == NestedInvvpidElsewhere::FlushNextEntry;
        let vcpu = &mut self.vcpus[v];
        let elsewhere = vcpu.nested.away.vmcs_pcpu.is_some_and(|pcpu| pcpu != vcpu.pcpu);
        if elsewhere && defer {
            vcpu.nested.last_vpid12 = 0;
        } else {
            let vpid02 = match vcpu.nested.vpid02 {
                Vpid(0) => vcpu.vpid,
                vpid02 => vpid02,
            };
            let address = kind == 0
                && how == NestedInvvpid::AsAsked
                && self.config.invvpid.contains(InvvpidTypes::ADDRESS);
            let inv = if address && vpid02 != Vpid(0) {
                Some(Inv::VpidAddress { vpid: vpid02, gva })
            } else {
                self.invvpid_context(vpid02)
            };
            if let Some(inv) = inv {
                self.invalidate(v, inv, o);
            }
        }
        if self.config.mmu == MmuKind::Shadow && roots != NestedInvvpidRoots::None {
            let all = roots == NestedInvvpidRoots::All;
            let matches = |r: &Root| all || r.role.0 & Role::GUEST_MODE != 0;
            self.free_matching(v, FreeWhy::NestedInvvpid, matches, o);
        }
    }

    /// VMFUNC 0 of L2. The EPTP list holds the EPTPs that L1 has entered L2 with, in the order of
    /// their first use.
    fn vmfunc<O: Observer>(
        &mut self,
        v: usize,
        index: u64,
        l2: L2,
        o: &mut O,
    ) -> Result<(), Refused> {
        let refuse = |why: &str| Err(Refused { op: "l1", why: why.into() });
        let entry = usize::try_from(index).ok().and_then(|index| self.eptps.get(index)).copied();
        let (Some(eptp), Some(_)) = (entry, l2.tables) else {
            return refuse("VMFUNC 0 needs EPT in L2, and an index of an EPTP that L1 used before");
        };
        self.exit(v, None, o);
        let l2 = L2 { tables: Some(Tables::ept(eptp)), ..l2 };
        self.vcpus[v].nested.l2 = Some(l2);
        self.vcpus[v].nested.loaded = Some(Tables::ept(eptp).root);
        self.report_l1(v, NestedOp::Vmfunc(l2), o);
        match self.policy.mechanics.nested_vmfunc {
            NestedVmfunc::Unload => {
                self.mmu_unload(v, o);
                self.mmu_init(v, o);
            }
            NestedVmfunc::NewPgd => {
                self.mmu_init(v, o);
                self.new_pgd(v, eptp, o);
                if l2.tag == 0 {
                    self.post(v, Request::TlbFlushGuest, o);
                }
            }
        }
        Ok(())
    }
}
