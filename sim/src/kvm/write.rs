//! Register writes and invalidation instructions: who sees them (facts/kvm.md 1.2), what the CPU
//! does by itself, and what the policy's rules do after an exit (1.3, 1.4, 2.1, 3).

use tlbscope_trace::act::{ArchOp, GuestInv, Hook, HookBy, Inv, Request, RootLookup};
use tlbscope_trace::addr::{Gva, Pcid};
use tlbscope_trace::observe::Observer;
use tlbscope_trace::op::{Invpcid, InvpcidType};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

use super::smm::Smram;
use crate::arch::fault::{self, Gp};
use crate::arch::mode::Mode;
use crate::engine::Machine;
use crate::policy::mechanics::{InvlpgKind, InvlpgRoots, Noncanonical};
use crate::policy::rule::{Action, Change, HookName, Register};
use crate::tlb::instruction;

/// A register write that has been found legal.
#[derive(Clone, Copy, Debug)]
struct Write {
    register: Register,
    old: u64,
    new: u64,
    noflush: bool,
    op: ArchOp,
}

impl Machine {
    pub(super) fn tdp(&self) -> bool {
        self.config.mmu == MmuKind::Tdp
    }

    /// MOV CR0, CLTS, LMSW.
    pub(crate) fn write_cr0<O: Observer>(
        &mut self,
        v: usize,
        new: u64,
        o: &mut O,
    ) -> Result<(), Gp> {
        let regs = self.vcpus[v].regs;
        let old = regs.cr0;
        let new = new | Cr0::ET.bits();
        let exits = match self.config.vendor {
            Vendor::Intel => {
                let wp = if self.tdp() { 0 } else { Cr0::WP.bits() };
                (old ^ new) & !(self.policy.mechanics.own_cr0 & !wp) != 0
            }
            // Selective CR0 write intercept: anything but TS and MP. In shadow mode the hardware
            // value differs from the guest's, so every write exits.
            Vendor::Amd => !self.tdp() || (old ^ new) & !(Cr0::TS | Cr0::MP).bits() != 0,
        };
        let exits = exits || self.emulated;
        if let Err(gp) = fault::cr0(&regs, new, &self.limits()) {
            self.refuse(v, exits, o);
            return Err(gp);
        }
        let op = ArchOp::Cr0 { old, new };
        let write = Write { register: Register::Cr0, old, new, noflush: false, op };
        self.write_register(v, write, exits, o)
    }

    /// MOV CR4.
    pub(crate) fn write_cr4<O: Observer>(
        &mut self,
        v: usize,
        new: u64,
        o: &mut O,
    ) -> Result<(), Gp> {
        let regs = self.vcpus[v].regs;
        let old = regs.cr4;
        let shadow_only = (Cr4::PGE | Cr4::PCIDE | Cr4::PAE | Cr4::SMEP | Cr4::PSE).bits();
        let owned = self.policy.mechanics.own_cr4 & if self.tdp() { !0 } else { !shadow_only };
        let exits = self.config.vendor == Vendor::Amd || (old ^ new) & !owned != 0 || self.emulated;
        if let Err(gp) = fault::cr4(&regs, new, &self.limits()) {
            self.refuse(v, exits, o);
            return Err(gp);
        }
        let op = ArchOp::Cr4 { old, new };
        let write = Write { register: Register::Cr4, old, new, noflush: false, op };
        self.write_register(v, write, exits, o)
    }

    /// MOV CR3, or the CR3 of a hardware task switch.
    pub(crate) fn write_cr3<O: Observer>(
        &mut self,
        v: usize,
        operand: u64,
        task_switch: bool,
        o: &mut O,
    ) -> Result<(), Gp> {
        let regs = self.vcpus[v].regs;
        // Without unrestricted guest KVM needs to see CR3 while guest paging is off.
        let identity_map =
            self.config.vendor == Vendor::Intel && !self.config.unrestricted && !regs.paging();
        let exits = !self.tdp() || identity_map || task_switch || self.emulated;
        let new = match fault::cr3(&regs, operand, &self.limits()) {
            Ok(new) => new,
            Err(gp) => {
                self.refuse(v, exits, o);
                return Err(gp);
            }
        };
        if self.bad_pdptes(&Regs { cr3: new.value, ..regs }) {
            self.refuse(v, exits, o);
            return Err(Gp("a present PDPTE has reserved bits set"));
        }
        let noflush = new.noflush;
        let op = ArchOp::Cr3 { old: regs.cr3, new: new.value, noflush, task_switch };
        let write = Write { register: Register::Cr3, old: regs.cr3, new: new.value, noflush, op };
        self.write_register(v, write, exits, o)
    }

    /// WRMSR EFER, which always exits.
    pub(crate) fn write_efer<O: Observer>(
        &mut self,
        v: usize,
        new: u64,
        o: &mut O,
    ) -> Result<(), Gp> {
        let regs = self.vcpus[v].regs;
        let new = new & !Efer::LMA.bits() | regs.efer & Efer::LMA.bits();
        if let Err(gp) = fault::efer(&regs, new, &self.limits()) {
            self.refuse(v, true, o);
            return Err(gp);
        }
        let op = ArchOp::Efer { old: regs.efer, new };
        let write = Write { register: Register::Efer, old: regs.efer, new, noflush: false, op };
        self.write_register(v, write, true, o)
    }

    /// A faulting write exits if it is intercepted; the hypervisor injects #GP and nothing else.
    fn refuse<O: Observer>(&mut self, v: usize, exits: bool, o: &mut O) {
        if exits {
            self.exit(v, None, o);
            self.act(o, tlbscope_trace::act::Act::Inject { vector: 13, error: Some(0) });
        }
    }

    fn write_register<O: Observer>(
        &mut self,
        v: usize,
        write: Write,
        exits: bool,
        o: &mut O,
    ) -> Result<(), Gp> {
        let before = self.vcpus[v].regs;
        let after = updated(&before, write.register, write.new);
        let reload = loads_pdptes(&before, &after, write.register);
        if reload && self.bad_pdptes(&after) {
            self.refuse(v, exits, o);
            return Err(Gp("a present PDPTE has reserved bits set"));
        }
        if exits {
            self.exit(v, None, o);
        }
        if exits && self.kvm_reloads_pdptrs(&before, &after, write.register) {
            self.load_pdptrs(v, o);
        }
        self.vcpus[v].regs = after;
        if reload {
            self.reload_pdptes(v, !exits);
        }
        self.vcpus[v].context.tag.pcid = self.vcpus[v].regs.pcid();
        let at = self.at_vcpu(v);
        o.arch(&at, &write.op, &before, !exits, self);
        if exits {
            self.vendor_register_hook(v, &write, o);
            self.apply_rules(v, &write, o);
            self.serve_ideal(v, &write.op, &before, o);
        } else {
            let (vendor, after) = (self.config.vendor, self.vcpus[v].regs);
            if let Some((_, inv)) = instruction::register_write(vendor, &write.op, &before, &after)
            {
                self.invalidate(v, Inv::Guest(inv), o);
            }
        }
        Ok(())
    }

    /// Whether KVM loads the PDPTEs before a write of CR0 or CR4 that exited; for CR3 the rules
    /// say so. Which bits it takes for a reason is the policy's.
    fn kvm_reloads_pdptrs(&self, before: &Regs, after: &Regs, register: Register) -> bool {
        if Mode::of(after) != Mode::Pae {
            return false;
        }
        let mechanics = &self.policy.mechanics;
        match register {
            Register::Cr0 => (before.cr0 ^ after.cr0) & mechanics.pdptr_cr0 != 0,
            Register::Cr4 => (before.cr4 ^ after.cr4) & mechanics.pdptr_cr4 != 0,
            _ => false,
        }
    }

    /// Whether a load of the PDPTE registers would meet reserved bits.
    fn bad_pdptes(&self, regs: &Regs) -> bool {
        Mode::of(regs) == Mode::Pae
            && (self.config.vendor == Vendor::Intel || !self.tdp())
            && (0..4).any(|n| {
                let gpa = tlbscope_trace::addr::Gpa(regs.root().0 + 8 * n);
                let value = self.memory.read(gpa);
                fault::pdpte_reserved(value, &self.limits())
            })
    }

    /// The architecture's reload of the PDPTE registers (facts A.3). If the processor itself has
    /// carried the write out, the VMCS holds them, and KVM finds them there.
    pub(crate) fn reload_pdptes(&mut self, v: usize, native: bool) {
        let root = self.vcpus[v].regs.root().0;
        let new = std::array::from_fn(|n| {
            self.memory.read(tlbscope_trace::addr::Gpa(root + 8 * n as u64))
        });
        let vcpu = &mut self.vcpus[v];
        vcpu.regs.pdpte = new;
        if native {
            vcpu.kvm_pdpte = new;
            vcpu.vmcs_pdpte = new;
        }
    }

    /// svm_set_cr4 with NPT flushes on PGE by itself, before the post-set handler (facts 1.5, 15.1).
    fn vendor_register_hook<O: Observer>(&mut self, v: usize, write: &Write, o: &mut O) {
        let pge = (write.old ^ write.new) & Cr4::PGE.bits() != 0;
        if self.config.vendor == Vendor::Amd
            && self.tdp()
            && write.register == Register::Cr4
            && pge
            && self.policy.mechanics.svm_pge_hook
        {
            self.flush_hook(v, Hook::Current, HookBy::Register, o);
        }
    }

    /// One setter with its full post-set logic, as a part of a larger operation (facts 3.3): what it
    /// takes is known to be legal, and the judge hears of the whole operation only.
    pub(super) fn set_register<O: Observer>(
        &mut self,
        v: usize,
        register: Register,
        new: u64,
        op: ArchOp,
        o: &mut O,
    ) {
        let before = self.vcpus[v].regs;
        let after = updated(&before, register, new);
        if self.kvm_reloads_pdptrs(&before, &after, register) {
            self.load_pdptrs(v, o);
        }
        self.vcpus[v].regs = after;
        if loads_pdptes(&before, &after, register) {
            self.reload_pdptes(v, false);
        }
        let old = match register {
            Register::Cr0 => before.cr0,
            Register::Cr3 => before.cr3,
            Register::Cr4 => before.cr4,
            _ => before.efer,
        };
        let write = Write { register, old, new, noflush: false, op };
        self.vendor_register_hook(v, &write, o);
        self.apply_rules(v, &write, o);
    }

    /// The vendor's set_cr4 alone, without the common post-set logic (SMM entry, facts 3.3).
    pub(super) fn vendor_set_cr4<O: Observer>(&mut self, v: usize, old: u64, new: u64, o: &mut O) {
        let op = ArchOp::Cr4 { old, new };
        let write = Write { register: Register::Cr4, old, new, noflush: false, op };
        self.vendor_register_hook(v, &write, o);
    }

    fn apply_rules<O: Observer>(&mut self, v: usize, write: &Write, o: &mut O) {
        let regs = self.vcpus[v].regs;
        let change = Change {
            old: write.old,
            new: write.new,
            tdp: self.tdp(),
            vendor: self.config.vendor,
            same: write.old == write.new,
            noflush: write.noflush,
            pcide: regs.cr4().contains(Cr4::PCIDE),
            pae: Mode::of(&regs) == Mode::Pae,
            noncoherent_dma: self.config.noncoherent_dma,
            ..Change::default()
        };
        let pcid = regs.pcid();
        self.run_rules(v, write.register, &change, pcid, o);
    }

    /// Carries out what the rules of one register say, in their order.
    pub(crate) fn run_rules<O: Observer>(
        &mut self,
        v: usize,
        register: Register,
        change: &Change,
        pcid: Pcid,
        o: &mut O,
    ) {
        let policy = self.policy.clone();
        for action in policy.matching(register, change).flat_map(|rule| rule.actions.iter()) {
            self.act_on(v, *action, change, pcid, o);
        }
    }

    /// kvm_mmu_new_pgd; V510 asks for a sync and a flush of the switch only where the cache was hit
    /// (facts 2.1).
    fn switch_root<O: Observer>(&mut self, v: usize, noflush: bool, o: &mut O) {
        let pgd = self.vcpus[v].regs.cr3;
        let hit = self.new_pgd(v, pgd, o) != RootLookup::Miss;
        if hit && !noflush && self.policy.mechanics.new_pgd_hit_flush {
            self.post(v, Request::MmuSync, o);
            self.post(v, Request::TlbFlushCurrent, o);
        }
    }

    fn act_on<O: Observer>(
        &mut self,
        v: usize,
        action: Action,
        change: &Change,
        pcid: Pcid,
        o: &mut O,
    ) {
        match action {
            Action::MmuReset => self.mmu_reset(v, o),
            Action::MmuInit => self.mmu_init(v, o),
            Action::MmuUnload => self.mmu_unload(v, o),
            Action::MmuReload => self.post(v, Request::MmuReload, o),
            Action::FreeObsoleteRoots => self.post(v, Request::MmuFreeObsoleteRoots, o),
            Action::Request(request) => self.post(v, request, o),
            Action::InvalidatePcid => self.invalidate_pcid(v, pcid, o),
            Action::LoadPdptrs if change.pae => self.load_pdptrs(v, o),
            Action::LoadPdptrs => {}
            Action::SyncNow => self.sync_roots(v, o),
            Action::ZapAll => self.zap_all(o),
            Action::FlushHook(name) => {
                let hook = match name {
                    HookName::All => Hook::All,
                    HookName::Current => Hook::Current,
                    HookName::Guest => Hook::Guest,
                    HookName::Gva => Hook::Gva(Gva(0)),
                };
                self.flush_hook(v, hook, HookBy::Direct, o);
            }
            Action::NewPgd => self.switch_root(v, change.noflush, o),
        }
    }

    /// INVLPG. Non-canonical addresses are a no-op (facts B.4).
    pub(crate) fn invlpg<O: Observer>(&mut self, v: usize, gva: Gva, o: &mut O) {
        let exits = !self.tdp() || self.emulated;
        self.invlpg_as(v, gva, exits, o);
    }

    /// INVLPG that exits or not; INVLPGA of a guest always does (facts 1.2).
    pub(super) fn invlpg_as<O: Observer>(&mut self, v: usize, gva: Gva, exits: bool, o: &mut O) {
        let regs = self.vcpus[v].regs;
        let canonical = Mode::of(&regs).canonical(gva);
        if exits {
            self.exit(v, None, o);
        }
        if canonical {
            let at = self.at_vcpu(v);
            o.arch(&at, &ArchOp::Invlpg(gva), &regs, !exits, self);
        }
        if exits && self.ideal() {
            if canonical {
                self.serve_ideal(v, &ArchOp::Invlpg(gva), &regs, o);
            }
        } else if exits {
            // The emulator drops a non-canonical address before it asks the MMU.
            if canonical || !self.invlpg_by_emulator() {
                self.kvm_mmu_invlpg(v, gva, canonical, o);
            }
            let change = Change {
                tdp: self.tdp(),
                vendor: self.config.vendor,
                pcide: regs.cr4().contains(Cr4::PCIDE),
                ..Change::default()
            };
            self.run_rules(v, Register::Invlpg, &change, regs.pcid(), o);
        } else if canonical {
            let pcid = regs.pcid();
            let tce = self.config.vendor == Vendor::Amd && regs.efer().contains(Efer::TCE);
            let inv = match tce {
                true => GuestInv::AddressPath { pcid, gva },
                false => GuestInv::Address { pcid, gva },
            };
            self.invalidate(v, Inv::Guest(inv), o);
        }
    }

    /// kvm_mmu_invlpg (facts 4.1).
    fn kvm_mmu_invlpg<O: Observer>(&mut self, v: usize, gva: Gva, canonical: bool, o: &mut O) {
        self.act(o, tlbscope_trace::act::Act::InvalidateGva(gva));
        if !canonical {
            if self.policy.mechanics.invlpg_noncanonical == Noncanonical::Pass {
                self.flush_noncanonical(v, gva, HookBy::Direct, o);
            }
            return;
        }
        match self.policy.mechanics.invlpg {
            InvlpgKind::All => self.post(v, Request::TlbFlush, o),
            InvlpgKind::Gva => self.flush_hook(v, Hook::Gva(gva), HookBy::Direct, o),
            InvlpgKind::None => {}
        }
        if !self.never() {
            let cached = self.policy.mechanics.invlpg_roots == InvlpgRoots::All;
            for root in self.roots_of(v, cached) {
                self.sync_address(v, root, gva, o);
            }
        }
    }

    /// INVPCID (facts 4.2).
    pub(crate) fn invpcid<O: Observer>(
        &mut self,
        v: usize,
        operands: &Invpcid,
        o: &mut O,
    ) -> Result<(), Gp> {
        let regs = self.vcpus[v].regs;
        let exits = !self.tdp() || self.emulated;
        if let Err(gp) = fault::invpcid(&regs, operands, &self.limits()) {
            self.refuse(v, exits, o);
            return Err(gp);
        }
        if exits {
            self.exit(v, None, o);
        }
        let at = self.at_vcpu(v);
        o.arch(&at, &ArchOp::Invpcid(*operands), &regs, !exits, self);
        let pcid = Pcid(operands.pcid as u16);
        if exits && self.ideal() {
            self.serve_ideal(v, &ArchOp::Invpcid(*operands), &regs, o);
        } else if exits {
            self.kvm_handle_invpcid(v, operands, pcid, o);
        } else if let Some((_, inv)) = instruction::invpcid(operands) {
            self.invalidate(v, Inv::Guest(inv), o);
        }
        Ok(())
    }

    fn kvm_handle_invpcid<O: Observer>(
        &mut self,
        v: usize,
        operands: &Invpcid,
        pcid: Pcid,
        o: &mut O,
    ) {
        let kind = match operands.kind {
            InvpcidType::Addr => 0,
            InvpcidType::Single => 1,
            InvpcidType::All => 2,
            InvpcidType::AllNonglobal => 3,
            InvpcidType::Reserved(_) => return,
        };
        if kind == 0 {
            self.invpcid_address(v, operands.gva, pcid, o);
        }
        let regs = &self.vcpus[v].regs;
        let change = Change {
            old: 0,
            new: 0,
            tdp: self.tdp(),
            vendor: self.config.vendor,
            same: pcid == regs.pcid(),
            noflush: false,
            pcide: regs.cr4().contains(Cr4::PCIDE),
            invpcid: Some(kind),
            ..Change::default()
        };
        self.run_rules(v, Register::Invpcid, &change, pcid, o);
    }

    /// kvm_mmu_invpcid_gva: the roots whose PCID matches, and the hook if one did.
    fn invpcid_address<O: Observer>(&mut self, v: usize, gva: Gva, pcid: Pcid, o: &mut O) {
        self.act(o, tlbscope_trace::act::Act::InvalidateGva(gva));
        let regs = self.vcpus[v].regs;
        let pcide = regs.cr4().contains(Cr4::PCIDE);
        let tag = |pgd: u64| if pcide { Pcid((pgd & 0xfff) as u16) } else { Pcid(0) };
        let mmu = self.vcpus[v].mmu;
        let matching: Vec<_> = mmu
            .root
            .iter()
            .chain(mmu.prev.iter().flatten())
            .filter(|r| tag(r.pgd) == pcid)
            .collect();
        if matching.is_empty() {
            return;
        }
        self.flush_hook(v, Hook::Gva(gva), HookBy::Direct, o);
        for sp in matching.iter().filter_map(|r| r.sp) {
            if !self.never() {
                self.sync_address(v, sp, gva, o);
            }
        }
    }

    /// INIT and RESET (facts 3.2).
    pub(crate) fn init<O: Observer>(&mut self, v: usize, init: bool, o: &mut O) {
        self.exit(v, None, o);
        let before = self.vcpus[v].regs;
        let keep = before.cr0 & (Cr0::CD | Cr0::NW).bits();
        let cd_nw = if init { keep } else { (Cr0::CD | Cr0::NW).bits() };
        let regs = Regs { cr0: Cr0::ET.bits() | cd_nw, ..Regs::default() };
        self.vcpus[v].regs = regs;
        self.vcpus[v].kvm_pdpte = regs.pdpte;
        if self.config.vendor == Vendor::Amd {
            // init_vmcb: a VMCB that has not run yet.
            self.vcpus[v].vmcb.generation = 0;
            self.vcpus[v].vmcb.entered = false;
        }
        self.vcpus[v].smm = false;
        self.vcpus[v].smram = Smram::default();
        let at = self.at_vcpu(v);
        let op = if init { ArchOp::Init } else { ArchOp::Reset };
        o.arch(&at, &op, &before, false, self);
        if self.config.vendor == Vendor::Intel && self.policy.mechanics.vendor_reset_flush {
            self.vmx_reset_flush(v, &before, o);
        }
        let change = Change {
            old: before.cr0,
            new: self.vcpus[v].regs.cr0,
            tdp: self.tdp(),
            vendor: self.config.vendor,
            same: false,
            noflush: false,
            pcide: before.cr4().contains(Cr4::PCIDE),
            init,
            ..Change::default()
        };
        self.run_rules(v, Register::Init, &change, Pcid(0), o);
        self.serve_ideal(v, &op, &before, o);
    }
}

/// Whether the architecture loads the PDPTE registers with this write (facts A.3).
fn loads_pdptes(before: &Regs, after: &Regs, register: Register) -> bool {
    Mode::of(after) == Mode::Pae
        && (register == Register::Cr3 || fault::pdptes_changed_by(before, after))
}

/// The registers after a write; LMA follows PG and LME.
fn updated(before: &Regs, register: Register, new: u64) -> Regs {
    let mut regs = *before;
    match register {
        Register::Cr0 => regs.cr0 = new,
        Register::Cr3 => regs.cr3 = new,
        Register::Cr4 => regs.cr4 = new,
        Register::Efer => regs.efer = new,
        _ => {}
    }
    let long = regs.paging() && regs.efer().contains(Efer::LME);
    regs.efer = regs.efer & !Efer::LMA.bits() | if long { Efer::LMA.bits() } else { 0 };
    regs
}
