//! The invalidation instructions that only AMD has, executed by a guest (facts C.1, C.3; facts/kvm.md
//! 1.2, 4.1).
//!
//! INVLPGA always exits and KVM treats it as INVLPG: a vCPU has one ASID, whatever number its guest
//! names. INVLPGB and TLBSYNC do not exit under NPT: the processor puts the ASID of the vCPU that
//! executes INVLPGB in the place of the operand's and broadcasts, so that other vCPUs are reached only
//! as far as they run under the same number (KVM gives ASIDs away per pCPU, and therefore offers
//! INVLPGB to no guest). The VMCB has an intercept for it (APM vol. 2, appendix B, offset 014h): a policy that uses it
//! (`invlpgb = "intercept"`) serves every vCPU, whatever number each runs under. With shadow paging
//! the processor would flush what the shadow tables still say; no KVM lets a guest have it there: #UD.

use tlbscope_trace::act::{Act, ArchOp, GuestInv, Inv, Request};
use tlbscope_trace::addr::{Asid, Gva, PageSize};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Invlpgb, Invpcid, InvpcidType};
use tlbscope_trace::regs::Vendor;

use crate::arch::fault::Gp;
use crate::arch::mode::Mode;
use crate::engine::{Machine, Refused};
use crate::policy::Ideal;
use crate::policy::mechanics::InvlpgbKind;

impl Machine {
    /// An instruction that the processor does not have, or the guest not.
    fn undefined<O: Observer>(&self, o: &mut O, why: &'static str) -> Result<(), Gp> {
        self.act(o, Act::Inject { vector: 6, error: None });
        Err(Gp(why))
    }

    /// INVLPGA.
    pub(crate) fn invlpga<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) -> Result<(), Gp> {
        if self.config.vendor != Vendor::Amd {
            return self.undefined(o, "INVLPGA is AMD's: #UD");
        }
        self.invlpg_as(v, gva, true, o);
        Ok(())
    }

    /// INVLPGB of a guest under NPT: the page of each of `count + 1` addresses, `stride` apart. With 2 MiB
    /// these are the addresses of large pages; a small page is dropped only where one of them lies in it.
    pub(crate) fn invlpgb<O: Observer>(
        &mut self,
        v: usize,
        operands: &Invlpgb,
        stride: PageSize,
        o: &mut O,
    ) -> Result<(), Gp> {
        if self.config.vendor != Vendor::Amd || !self.tdp() {
            return self.undefined(o, "INVLPGB is AMD's, and no guest has it in shadow mode: #UD");
        }
        let intercepted = self.policy.mechanics.invlpgb == InvlpgbKind::Intercept;
        if intercepted {
            self.exit(v, None, o);
        }
        let pages = 1 + u64::from(operands.count);
        for n in 0..if operands.va.is_some() { pages } else { 1 } {
            let va = operands.va.map(|va| Gva(va.0.wrapping_add(n * stride.bytes())));
            if va.is_some_and(|va| !Mode::of(&self.vcpus[v].regs).canonical(va)) {
                continue;
            }
            let page = Invlpgb { va, ..*operands };
            match intercepted {
                true => self.broadcast_intercepted(&page, o),
                false => self.broadcast(v, &page, o),
            }
        }
        if intercepted && !self.ideal() {
            let all = self.alive();
            self.request_some(&all, Request::TlbFlushGuest, o);
        }
        Ok(())
    }

    /// The vCPUs that there are.
    fn alive(&self) -> Vec<usize> {
        (0..self.vcpus.len()).filter(|u| !self.vcpus[*u].destroyed).collect()
    }

    /// One page of an intercepted INVLPGB is owed on every vCPU. `arch-min` drops it at once on all of
    /// them, `hw-min` asks the others for a flush of the guest's translations; any other policy asks
    /// once for all pages.
    fn broadcast_intercepted<O: Observer>(&mut self, operands: &Invlpgb, o: &mut O) {
        let own = self.at.actor;
        for u in self.alive() {
            let regs = self.vcpus[u].regs;
            let op = owed(operands, operands.pcid.unwrap_or(regs.pcid()).0);
            let at = self.at_vcpu(u);
            o.arch(&at, &op, &regs, false, self);
            if !self.ideal() {
                continue;
            }
            if self.policy.ideal == Ideal::ArchMin || at.actor == own {
                self.at.actor = at.actor;
                self.serve_ideal(u, &op, &regs, o);
                self.at.actor = own;
            } else {
                self.request_some(&[u], Request::TlbFlushGuest, o);
            }
        }
    }

    /// One page of INVLPGB, or all of them: owed on every vCPU of the guest, carried out where a vCPU
    /// runs under the same ASID.
    fn broadcast<O: Observer>(&mut self, v: usize, operands: &Invlpgb, o: &mut O) {
        let asid = self.vcpus[v].vmcb.asid;
        for u in self.alive() {
            let regs = self.vcpus[u].regs;
            let pcid = operands.pcid.unwrap_or(regs.pcid());
            let at = self.at_vcpu(u);
            o.arch(&at, &owed(operands, pcid.0), &regs, true, self);
            if self.vcpus[u].vmcb.asid != asid {
                continue;
            }
            let inv = match (operands.va, operands.pcid) {
                (Some(gva), Some(pcid)) if operands.global => {
                    Inv::Guest(GuestInv::Address { pcid, gva })
                }
                (Some(gva), Some(pcid)) => Inv::Guest(GuestInv::AddressNonglobal { pcid, gva }),
                // The page under every PCID. That its global translation goes too without the bit
                // is more than is asked for, which is always allowed (facts, Words).
                (Some(gva), None) => Inv::Invlpga { asid, gva },
                (None, Some(pcid)) if operands.global => Inv::Guest(GuestInv::Pcid(pcid)),
                (None, Some(pcid)) => Inv::Guest(GuestInv::PcidNonglobal(pcid)),
                (None, None) if operands.global => Inv::Guest(GuestInv::All),
                (None, None) => Inv::Guest(GuestInv::Nonglobal),
            };
            self.invalidate(u, inv, o);
        }
    }

    /// INVLPGB of the host's kernel (facts C.3). Every processor drops what matches; without a valid ASID
    /// the translations of guests match as well, on whatever processor and under whatever number.
    pub(crate) fn host_invlpgb<O: Observer>(
        &mut self,
        va: Option<Gva>,
        asid: Option<Asid>,
        o: &mut O,
    ) -> Result<(), Refused> {
        if self.config.vendor != Vendor::Amd {
            return Err(Refused { op: "host", why: "INVLPGB is AMD's".into() });
        }
        for u in (0..self.vcpus.len()).filter(|u| !self.vcpus[*u].destroyed).collect::<Vec<_>>() {
            let own = self.vcpus[u].vmcb.asid;
            // 0 is the host's own, of which no guest translation is made.
            if asid.is_some_and(|asid| asid != own) {
                continue;
            }
            let at = self.at_vcpu(u);
            o.act(&at, &Act::Broadcast, self);
            let inv = match va {
                Some(gva) => Inv::Invlpga { asid: own, gva },
                None => Inv::TlbControlAsid(own),
            };
            self.invalidate(u, inv, o);
        }
        Ok(())
    }

    /// TLBSYNC: waits until every processor has carried out the INVLPGBs before it. They are at once
    /// here, so that nothing is left to wait for.
    pub(crate) fn tlbsync<O: Observer>(&mut self, _v: usize, o: &mut O) -> Result<(), Gp> {
        if self.config.vendor != Vendor::Amd || !self.tdp() {
            return self.undefined(o, "TLBSYNC is AMD's, and no guest has it in shadow mode: #UD");
        }
        Ok(())
    }
}

/// What one page of INVLPGB owes a vCPU, in the terms of the instructions that owe the same of one
/// processor.
fn owed(operands: &Invlpgb, pcid: u16) -> ArchOp {
    let invpcid = |kind, gva| ArchOp::Invpcid(Invpcid { kind, pcid: pcid.into(), gva });
    match (operands.va, operands.pcid) {
        (Some(gva), None) if operands.global => ArchOp::Invlpg(gva),
        (Some(gva), _) => invpcid(InvpcidType::Addr, gva),
        (None, Some(_)) => invpcid(InvpcidType::Single, Gva(0)),
        (None, None) if operands.global => invpcid(InvpcidType::All, Gva(0)),
        (None, None) => invpcid(InvpcidType::AllNonglobal, Gva(0)),
    }
}
