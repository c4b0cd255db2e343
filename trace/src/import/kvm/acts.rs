//! Lines that tell what KVM did.

use super::super::event::Event;
use super::super::number::{bare_hex, number, word_after, words};
use super::names::Shows;
use super::page::Page;
use super::vcpu::{CR0, CR3, CR4, EFER, Place};
use super::{Importer, PAGES};
use crate::act::{Act, Hook, HookBy, Request, RootLookup, RootSlot};
use crate::addr::{Gva, Hpa, Pcid, Sp, VcpuId};
use crate::op::{Actor, InvpcidType, Op};
use crate::recording::Body;

/// Request numbers: equal in all kernels that print them, but for MMU_RELOAD, which is 5.10's bit 1
/// (facts/kvm.md 5.1, versions of the recordings).
const BITS: [(u32, Request); 7] = [
    (0, Request::TlbFlush),
    (11, Request::MmuSync),
    (13, Request::LoadMmuPgd),
    (34, Request::TlbFlushCurrent),
    (35, Request::TlbFlushGuest),
    (39, Request::MmuFreeObsoleteRoots),
    (40, Request::HvTlbFlush),
];
const RELOAD: (u32, Request) = (1, Request::MmuReload);
/// KVM_REQ_SCAN_IOAPIC.
const SCAN_IOAPIC: u64 = 23;
const INVALID_ROOT: u64 = u64::MAX;

impl Importer<'_> {
    /// Compares `req=` with what it was: new bits were posted, gone ones are being served.
    pub(super) fn requests(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let Some(req) = event.num(b"req") else { return };
        let old = self.state(vcpu).req.replace(req);
        if old == Some(req) {
            return;
        }
        let reload = self.clues.before_5_12().then_some(RELOAD);
        for (bit, request) in BITS.into_iter().chain(reload) {
            let mask = 1_u64 << bit;
            // Before the first `req=` a set bit is told as posted: when, nobody saw.
            match (old.unwrap_or(0) & mask != 0, req & mask != 0) {
                (false, true) => self.act(vcpu, Act::Post(request)),
                (true, false) => self.act(vcpu, Act::Serve(request)),
                _ => {}
            }
        }
    }

    pub(super) fn act_event(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        let act = match shows {
            Shows::ResetContext => {
                self.smm(vcpu, event.symbol(b"caller").unwrap_or(b""));
                self.state(vcpu).in_reset = true;
                Act::Reset { role_changed: None }
            }
            Shows::InitMmu => {
                // KVM_SET_CPUID as a thread's first work: the frees before it were this vCPU's.
                if self.orphan.take_if(|pid| *pid == event.pid).is_some() {
                    self.set_cpuid(vcpu);
                    self.act(vcpu, Act::FreeRoots { mask: 0xf });
                }
                self.inlined_reset(vcpu);
                Act::Init
            }
            Shows::Unload => {
                self.state(vcpu).in_reset = true;
                Act::Unload
            }
            Shows::FreeRoots => {
                let mask = (event.num(b"mask").unwrap_or(0xf) & 0xf) as u8;
                self.invpcid_of_freed(vcpu, event, mask);
                self.bare_free(vcpu, mask);
                Act::FreeRoots { mask: mask & !empty_slots(event, mask) }
            }
            Shows::FreeObsolete => Act::FreeObsoleteRoots,
            Shows::FreeObsoleteHalf => {
                let state = self.state(vcpu);
                state.obsolete_half = !state.obsolete_half;
                if !state.obsolete_half {
                    return;
                }
                Act::FreeObsoleteRoots
            }
            Shows::NewPgd => {
                self.roots(vcpu, event, true);
                Act::NewPgd(new_pgd(event))
            }
            Shows::Load => {
                self.state(vcpu).in_load = true;
                Act::Load
            }
            Shows::LoadPgd => {
                let root = event.num(b"root_hpa").or_else(|| event.num(b"root"));
                Act::LoadPgd { root: Hpa(root.unwrap_or(0)) }
            }
            Shows::RequestAll => return self.request_all(Actor::Vcpu(vcpu), event),
            Shows::ReloadAll => Act::RequestAll(Request::MmuReload),
            Shows::SyncRoots => {
                // INVPCID of one PCID syncs at once (5.10): it is the current one.
                self.state(vcpu).invpcid = None;
                Act::SyncRoots
            }
            Shows::SyncPrevRoots => Act::SyncPrevRoots,
            Shows::InvpcidGva => return self.invpcid_operand(vcpu, event, true),
            Shows::InvalidatePcid => {
                self.invpcid_operand(vcpu, event, false);
                Act::InvalidatePcid(Pcid(event.num(b"pcid").unwrap_or(0) as u16 & 0xfff))
            }
            Shows::InvalidateGva => Act::InvalidateGva(gva(event)),
            // Outside a register write a software walk reads the PDPTEs, as it does entries.
            Shows::LoadPdptrs if self.state(vcpu).setting.is_none() => return,
            Shows::LoadPdptrs => Act::LoadPdptrs { changed: None },
            Shows::RemoteFlush => Act::RemoteFlush { ipi: None },
            Shows::TracePageFault => Act::PageFault {
                address: printed(event, b"fault_address", b"address"),
                error: printed(event, b"error_code", b"error_code"),
            },
            Shows::TraceInject => match injected(event) {
                Some(act) => act,
                None => return,
            },
            _ => return self.other(vcpu, shows, event),
        };
        self.act(vcpu, act);
    }

    fn other(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        match shows {
            Shows::FlushAll | Shows::FlushCurrent | Shows::FlushGuest | Shows::FlushGva => {
                self.hook(vcpu, shows, event);
            }
            // The tail of flush_all or flush_current; alone it is flush_guest.
            Shows::FlushAsid if std::mem::take(&mut self.state(vcpu).tail_follows) => {}
            Shows::FlushAsid => self.hook(vcpu, Shows::FlushGuest, event),
            Shows::ServiceFlushes => {
                let req = event.num(b"req").unwrap_or(0);
                self.state(vcpu).current_requested = Some(req >> 34 & 1 == 1);
            }
            Shows::Run => self.run(vcpu, event),
            Shows::TraceEntry => {
                self.state(vcpu).window(Place::Guest);
                self.act(vcpu, Act::EntrySeen);
            }
            Shows::TraceExit => self.exit(vcpu, event),
            Shows::TraceUserspaceExit => self.state(vcpu).window(Place::Userspace),
            Shows::TraceEmulate => {
                self.state(vcpu).wrmsr = true;
                self.emulated_invlpg(vcpu);
            }
            Shows::SpGet | Shows::SpUnsync | Shows::SpSync | Shows::SpZap => {
                self.shadow_page(vcpu, shows, event);
            }
            _ => {}
        }
    }

    /// A flush hook of the vendor.
    fn hook(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        let caller = event.symbol(b"caller").unwrap_or(b"");
        let state = self.state(vcpu);
        let in_load = state.in_load;
        let by = if caller.starts_with(b"kvm_mmu_load") {
            HookBy::Load
        } else if caller.starts_with(b"svm_set_cr") {
            HookBy::Register
        } else {
            match shows {
                Shows::FlushGva => HookBy::Direct,
                Shows::FlushCurrent if in_load => HookBy::Load,
                Shows::FlushCurrent if state.current_requested == Some(false) => HookBy::Direct,
                _ => HookBy::Request,
            }
        };
        let hook = match shows {
            Shows::FlushAll => Hook::All,
            Shows::FlushCurrent => Hook::Current,
            Shows::FlushGva => Hook::Gva(gva(event)),
            _ => Hook::Guest,
        };
        // flush_current executes nothing without a valid root; with VPID 0 no hook does, as every
        // entry and exit flushes (facts/kvm.md 6.2).
        let rootless = hook == Hook::Current
            && event.name.starts_with(b"vmx")
            && event.num(b"root") == Some(INVALID_ROOT);
        let effective = !rootless && state.vpid != Some(0);
        if hook == Hook::Current {
            state.in_load = false;
            state.current_requested = state.current_requested.map(|_| false);
        }
        state.tail_follows = matches!(shows, Shows::FlushAll | Shows::FlushCurrent);
        self.act(vcpu, Act::Hook { hook, by, effective });
    }

    /// The last function before the hardware entry prints the guest's registers.
    fn run(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        self.learn(vcpu, CR0, event.num(b"cr0"));
        self.learn(vcpu, CR3, event.num(b"cr3").or_else(|| event.num(b"gcr3")));
        self.learn(vcpu, CR4, event.num(b"cr4").or_else(|| event.num(b"gcr4")));
        self.learn(vcpu, EFER, event.num(b"efer"));
        let state = self.state(vcpu);
        if let Some(vpid) = event.num(b"vpid") {
            state.vpid = Some(vpid);
        }
        if let Some(cr3) = event.num(b"cr3").or_else(|| event.num(b"gcr3")) {
            state.cr3 = cr3;
        }
        self.roots(vcpu, event, false);
    }

    /// A register's value, if it is the first that is known, or the first behind lost events.
    pub(super) fn learn(&mut self, vcpu: VcpuId, reg: usize, value: Option<u64>) {
        const NUMBERS: [u8; 4] = [0, 3, 4, 8];
        let state = self.state(vcpu);
        state.learn(reg, value);
        if let Some(value) = value
            && std::mem::take(&mut state.relearn[reg])
        {
            self.act(vcpu, Act::RegSeen { register: NUMBERS[reg], value });
        }
    }

    /// The roots that a function prints, all or those that changed: SVM's VMCB holds the active one
    /// as nested CR3, or as CR3 under shadow paging.
    fn roots(&mut self, vcpu: VcpuId, event: &Event<'_>, all: bool) {
        const KEYS: [(&[u8], &[u8], &[u8]); 4] = [
            (b"pgd", b"root", b"root"),
            (b"p0", b"h0", b"r0"),
            (b"p1", b"h1", b"r1"),
            (b"p2", b"h2", b"r2"),
        ];
        for (n, (pgd, root, other)) in KEYS.into_iter().enumerate() {
            let printed = event.num(root).or_else(|| event.num(other));
            let vmcb = || {
                let nested = event.num(b"ncr3").filter(|&root| root != 0);
                // The low bits of a shadow CR3 are the PCID.
                nested.or_else(|| event.num(b"hcr3").map(|root| root & !0xfff))
            };
            let printed = if n == 0 { printed.or_else(vmcb) } else { printed };
            let Some(root) = printed else { continue };
            let root = (root != INVALID_ROOT).then_some(Hpa(root));
            let pgd = event.num(pgd).filter(|_| root.is_some());
            let told = &mut self.state(vcpu).roots[n];
            let known = if all { None } else { told.replace((pgd, root)) };
            if n == 0 || known != Some((pgd, root)) {
                let slot = if n == 0 { RootSlot::Current } else { RootSlot::Prev(n as u8 - 1) };
                self.act(vcpu, Act::RootSeen { slot, pgd, root });
            }
        }
    }

    /// kvm_make_all_cpus_request; remote flushes have their own function.
    pub(super) fn request_all(&mut self, actor: Actor, event: &Event<'_>) {
        let number = event.num(b"reqnr").or_else(|| event.num(b"reqno"));
        // The low 8 bits are the number, the others are flags.
        match (number.map(|number| number & 0xff), actor) {
            (Some(39), _) => {
                self.push(actor, Body::Act(Act::RequestAll(Request::MmuFreeObsoleteRoots)));
            }
            // kvm_recalculate_apic_map during a reset: there is a local APIC, now in xAPIC mode.
            (Some(SCAN_IOAPIC), Actor::Vcpu(vcpu)) if self.state(vcpu).reset_hooks[EFER] => {
                let bootstrap = if vcpu == VcpuId(0) { 1 << 8 } else { 0 };
                self.op(vcpu, Op::MsrApicBase(0xfee0_0800 | bootstrap));
            }
            _ => {}
        }
    }

    /// 5.10 tells nothing of INVPCID's operand but what follows: cached roots of its PCID are
    /// freed, and of the current one the active root is synced before.
    fn invpcid_of_freed(&mut self, vcpu: VcpuId, event: &Event<'_>, mask: u8) {
        const KEYS: [&[u8]; 3] = [b"p0", b"p1", b"p2"];
        let Some(number) = self.state(vcpu).invpcid.take() else { return };
        let pgds = KEYS.map(|key| event.num(key));
        let freed = (0..3).find(|slot| mask >> 1 >> slot & 1 != 0).and_then(|slot| pgds[slot]);
        let current = self.state(vcpu).cr3;
        let used =
            |pcid: u64| pgds.iter().flatten().chain([&current]).any(|pgd| pgd & 0xfff == pcid);
        // A PCID that no root has, where none was freed.
        let pcid = freed.map(|pgd| pgd & 0xfff).or_else(|| (0..0x1000).rev().find(|p| !used(*p)));
        if let Some(Op::Invpcid(op)) = self.op_at(number)
            && op.kind == InvpcidType::Single
        {
            op.pcid = pcid.unwrap_or(op.pcid);
        }
    }

    /// The register's value before the write under way, as KVM read it.
    pub(super) fn old_seen(&mut self, vcpu: VcpuId, register: u8, event: &Event<'_>) {
        if let Some((CR0, number)) = self.state(vcpu).setting {
            self.code_is_32(number);
        }
        if let Some(old) = event.num(b"old") {
            self.act(vcpu, Act::OldSeen { register, old });
        }
    }

    /// kvm_mmu_invpcid_gva and kvm_invalidate_pcid tell the operands of INVPCID.
    fn invpcid_operand(&mut self, vcpu: VcpuId, event: &Event<'_>, address: bool) {
        let (pcid, target) = (event.num(b"pcid"), gva(event));
        if address {
            self.act(vcpu, Act::InvalidateGva(target));
        }
        let Some(index) = self.state(vcpu).invpcid.take() else { return };
        if let Some(Op::Invpcid(op)) = self.op_at(index) {
            op.pcid = pcid.unwrap_or(op.pcid);
            if address {
                op.gva = target;
            }
        }
    }

    /// A page is named by frame and role.
    fn shadow_page(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        let page = Page::of(event);
        let new = shows == Shows::SpGet && page.new;
        let known = match page.key {
            None => Some(Sp::UNNAMED),
            Some(_) if new => None,
            Some(key) => self.pages.get(&key).copied(),
        };
        let sp = known.unwrap_or_else(|| {
            let sp = Sp(self.pages_made);
            self.pages_made = self.pages_made.saturating_add(1).min(Sp::UNNAMED.0 - 1);
            if let Some(key) = page.key
                && self.pages.len() < PAGES
            {
                self.pages.insert(key, sp);
            }
            sp
        });
        let act = match shows {
            // A role's raw value differs between kernels, and texts have it in words: left 0.
            Shows::SpGet if new => Act::SpNew { sp, gfn: page.gfn, level: page.level, role: 0 },
            Shows::SpGet => Act::SpFound { sp },
            Shows::SpUnsync => Act::SpUnsync { sp },
            // Whether an entry changed is not told; a flush that follows is.
            Shows::SpSync => Act::SpSync { sp, changed: true },
            _ => {
                if let Some(key) = page.key {
                    self.pages.remove(&key);
                }
                Act::SpZap { sp }
            }
        };
        self.act(vcpu, act);
    }
}

/// A number by its field, else behind its word in what the kernel prints.
fn printed(event: &Event<'_>, field: &[u8], word: &[u8]) -> u64 {
    let text = || word_after(event.text(), word).and_then(bare_hex);
    event.num(field).or_else(text).unwrap_or(0)
}

/// Slots that a mask names though no root is in them, where they are printed. A free of all roots
/// stays one.
fn empty_slots(event: &Event<'_>, mask: u8) -> u8 {
    const KEYS: [(&[u8], &[u8]); 3] = [(b"h0", b"r0"), (b"h1", b"r1"), (b"h2", b"r2")];
    if mask == 0xf {
        return 0;
    }
    let empty = |(key, other): &(&[u8], &[u8])| {
        event.num(key).or_else(|| event.num(other)) == Some(INVALID_ROOT)
    };
    let slots = KEYS.iter().enumerate().filter(|(_, keys)| empty(keys));
    slots.fold(0, |mask, (n, _)| mask | 2 << n)
}

fn gva(event: &Event<'_>) -> Gva {
    Gva(event.num(b"gva").unwrap_or(0))
}

/// What kvm_mmu_new_pgd will find, from the roots that it prints at entry: the same test as KVM's
/// but for the role, which is not printed. So a match is told only where it is surely a miss.
fn new_pgd(event: &Event<'_>) -> Option<RootLookup> {
    let new = event.num(b"new_pgd").or_else(|| event.num(b"new"))?;
    let cached = |pgd: &[u8], root: &[u8], other: &[u8]| {
        let root = event.num(root).or_else(|| event.num(other));
        event.num(pgd) == Some(new) && root.is_some_and(|root| root != INVALID_ROOT)
    };
    if cached(b"pgd", b"root", b"root")
        || cached(b"p0", b"h0", b"r0")
        || cached(b"p1", b"h1", b"r1")
        || cached(b"p2", b"h2", b"r2")
    {
        return None;
    }
    Some(RootLookup::Miss)
}

/// `#PF (0x0)`, with ` [reinjected]` behind it when it is no new one, which is left out.
fn injected(event: &Event<'_>) -> Option<Act> {
    let names: [(&[u8], u8); 20] = [
        (b"#DE", 0),
        (b"#DB", 1),
        (b"#BP", 3),
        (b"#OF", 4),
        (b"#BR", 5),
        (b"#UD", 6),
        (b"#NM", 7),
        (b"#DF", 8),
        (b"#TS", 10),
        (b"#NP", 11),
        (b"#SS", 12),
        (b"#GP", 13),
        (b"#PF", 14),
        (b"#MF", 16),
        (b"#AC", 17),
        (b"#MC", 18),
        (b"#XM", 19),
        (b"#VE", 20),
        (b"#CP", 21),
        (b"#SX", 30),
    ];
    // Delivered again after an exit in its midst: no new one.
    if event.text().ends_with(b"[reinjected]") || event.num(b"reinjected") == Some(1) {
        return None;
    }
    // The tools cannot format this event and print its raw fields.
    if let Some(vector) = event.num(b"exception") {
        let error = (event.num(b"has_error") == Some(1)).then(|| event.num(b"error_code"));
        let error = error.flatten().map(|error| error as u32);
        return Some(Act::Inject { vector: u8::try_from(vector).ok()?, error });
    }
    let mut words = words(event.text());
    let name = words.next()?;
    let vector = names.iter().find(|(known, _)| *known == name).map(|(_, vector)| *vector)?;
    let error = words.next().and_then(|word| word.strip_prefix(b"(")).and_then(number);
    Some(Act::Inject { vector, error: error.map(|error| error as u32) })
}
