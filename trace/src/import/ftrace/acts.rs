//! Lines that tell what KVM did.

use super::Importer;
use super::line::{Event, arg, number, text_arg, word_after};
use super::names::Shows;
use super::vcpu::{CR0, CR3, CR4, EFER, Place};
use crate::act::{Act, Hook, HookBy, Request, RootLookup};
use crate::addr::{Gva, Hpa, Pcid, Sp, VcpuId};
use crate::op::Op;

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
const INVALID_ROOT: u64 = u64::MAX;

impl Importer {
    /// Compares `req=` with what it was: new bits were posted, gone ones are being served.
    pub(super) fn requests(&mut self, vcpu: VcpuId, event: &Event<'_>) {
        let Some(req) = arg(event.args, b"req=") else { return };
        let old = self.state(vcpu).req.replace(req);
        let reload = self.clues.before_5_12.then_some(RELOAD);
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
            Shows::ResetContext => Act::Reset { role_changed: None },
            Shows::InitMmu => Act::Init,
            Shows::Unload => Act::Unload,
            Shows::FreeRoots => {
                let mask = arg(event.args, b"mask=").unwrap_or(0xf);
                Act::FreeRoots { mask: (mask & 0xf) as u8 }
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
            Shows::NewPgd => Act::NewPgd(new_pgd(event.args)),
            Shows::Load => {
                self.state(vcpu).in_load = true;
                Act::Load
            }
            Shows::LoadPgd => {
                let root = arg(event.args, b"root_hpa=").or_else(|| arg(event.args, b"root="));
                Act::LoadPgd { root: Hpa(root.unwrap_or(0)) }
            }
            Shows::SyncRoots => Act::SyncRoots,
            Shows::SyncPrevRoots => Act::SyncPrevRoots,
            Shows::InvpcidGva => return self.invpcid_operand(vcpu, event, true),
            Shows::InvalidatePcid => {
                self.invpcid_operand(vcpu, event, false);
                Act::InvalidatePcid(Pcid(arg(event.args, b"pcid=").unwrap_or(0) as u16 & 0xfff))
            }
            Shows::InvalidateGva => Act::InvalidateGva(gva(event)),
            Shows::LoadPdptrs => Act::LoadPdptrs { changed: None },
            Shows::RemoteFlush => Act::RemoteFlush { ipi: None },
            Shows::TracePageFault => Act::PageFault {
                address: word_after(event.args, b"address").and_then(bare_hex).unwrap_or(0),
                error: word_after(event.args, b"error_code").and_then(bare_hex).unwrap_or(0),
            },
            Shows::TraceInject => match injected(event.args) {
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
                let req = arg(event.args, b"req=").unwrap_or(0);
                self.state(vcpu).current_requested = Some(req >> 34 & 1 == 1);
            }
            Shows::Run => self.run(vcpu, event),
            Shows::TraceEntry => {
                self.state(vcpu).window(Place::Guest);
                self.act(vcpu, Act::EntrySeen);
            }
            Shows::TraceExit => self.exit(vcpu, event),
            Shows::TraceUserspaceExit => self.state(vcpu).window(Place::Userspace),
            Shows::TraceEmulate => self.state(vcpu).wrmsr = true,
            Shows::SpGet | Shows::SpUnsync | Shows::SpSync | Shows::SpZap => {
                self.shadow_page(vcpu, shows, event);
            }
            _ => {}
        }
    }

    /// A flush hook of the vendor.
    fn hook(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        let caller = text_arg(event.args, b"caller=").unwrap_or(b"");
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
            && arg(event.args, b"root=") == Some(INVALID_ROOT);
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
        let state = self.state(vcpu);
        state.learn(CR0, arg(event.args, b"cr0="));
        state.learn(CR3, arg(event.args, b"cr3=").or_else(|| arg(event.args, b"gcr3=")));
        state.learn(CR4, arg(event.args, b"cr4=").or_else(|| arg(event.args, b"gcr4=")));
        state.learn(EFER, arg(event.args, b"efer="));
        if let Some(vpid) = arg(event.args, b"vpid=") {
            state.vpid = Some(vpid);
        }
        if let Some(cr3) = arg(event.args, b"cr3=").or_else(|| arg(event.args, b"gcr3=")) {
            state.cr3 = cr3;
        }
    }

    /// The register's value before the write under way, as KVM read it.
    pub(super) fn old_seen(&mut self, vcpu: VcpuId, register: u8, event: &Event<'_>) {
        if let Some(old) = arg(event.args, b"old=") {
            self.act(vcpu, Act::OldSeen { register, old });
        }
    }

    /// kvm_mmu_invpcid_gva and kvm_invalidate_pcid tell the operands of INVPCID.
    fn invpcid_operand(&mut self, vcpu: VcpuId, event: &Event<'_>, address: bool) {
        let (pcid, target) = (arg(event.args, b"pcid="), gva(event));
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

    /// `sp gen 0 gfn 250 l1 8-byte q0 wux nxe ad root 0 sync`: a page is named by frame and role.
    fn shadow_page(&mut self, vcpu: VcpuId, shows: Shows, event: &Event<'_>) {
        let gfn = word_after(event.args, b"gfn").and_then(bare_hex).unwrap_or(0);
        let from = event.args.windows(5).position(|w| w == b" gfn ").unwrap_or(0);
        let to = event.args.windows(6).position(|w| w == b" root ").unwrap_or(event.args.len());
        let key = event.args.get(from..to).unwrap_or(b"");
        // The kernel says `new` at the end, trace-cmd's own formatter at the start.
        let new = shows == Shows::SpGet
            && (event.args.ends_with(b"new") || event.args.starts_with(b"new "));
        let known = if new { None } else { self.pages.get(key).copied() };
        let sp = known.unwrap_or_else(|| {
            let sp = Sp(self.pages_made);
            self.pages_made = self.pages_made.saturating_add(1);
            self.pages.insert(key.to_vec(), sp);
            sp
        });
        let act = match shows {
            // The text has the role in words; its raw value differs between kernels and is left 0.
            Shows::SpGet if new => Act::SpNew { sp, gfn, level: level(key), role: 0 },
            Shows::SpGet => Act::SpFound { sp },
            Shows::SpUnsync => Act::SpUnsync { sp },
            // Whether an entry changed is not told; a flush that follows is.
            Shows::SpSync => Act::SpSync { sp, changed: true },
            _ => {
                self.pages.remove(key);
                Act::SpZap { sp }
            }
        };
        self.act(vcpu, act);
    }
}

fn gva(event: &Event<'_>) -> Gva {
    Gva(arg(event.args, b"gva=").unwrap_or(0))
}

/// `gfn 250 l3`: the level of a shadow page; trace-cmd leaves out the `l`.
fn level(key: &[u8]) -> u8 {
    let word = key.split(|&c| c == b' ').filter(|word| !word.is_empty()).nth(2);
    let level = word.and_then(|word| number(word.strip_prefix(b"l").unwrap_or(word)));
    level.map_or(0, |level| (level & 0xff) as u8)
}

/// Tracepoints print most numbers in hex, some with and some without `0x`.
fn bare_hex(text: &[u8]) -> Option<u64> {
    super::line::hex(text.strip_prefix(b"0x").unwrap_or(text))
}

/// What kvm_mmu_new_pgd will find, from the roots that it prints at entry: the same test as KVM's
/// but for the role, which is not printed. So a match is told only where it is surely a miss.
fn new_pgd(args: &[u8]) -> Option<RootLookup> {
    let new = arg(args, b"new_pgd=").or_else(|| arg(args, b"new="))?;
    let cached = |pgd: &[u8], root: &[u8], other: &[u8]| {
        let root = arg(args, root).or_else(|| arg(args, other));
        arg(args, pgd) == Some(new) && root.is_some_and(|root| root != INVALID_ROOT)
    };
    if cached(b"pgd=", b"root=", b"root=")
        || cached(b"p0=", b"h0=", b"r0=")
        || cached(b"p1=", b"h1=", b"r1=")
        || cached(b"p2=", b"h2=", b"r2=")
    {
        return None;
    }
    Some(RootLookup::Miss)
}

/// `#PF (0x0)`, with ` [reinjected]` behind it when it is no new one.
fn injected(args: &[u8]) -> Option<Act> {
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
    // trace-cmd cannot format this event and prints its raw fields.
    if let Some(vector) = arg(args, b"exception=") {
        let error = (arg(args, b"has_error=") == Some(1)).then(|| arg(args, b"error_code="));
        let error = error.flatten().map(|error| error as u32);
        return Some(Act::Inject { vector: u8::try_from(vector).ok()?, error });
    }
    let mut words = args.split(|&c| c == b' ').filter(|word| !word.is_empty());
    let name = words.next()?;
    let vector = names.iter().find(|(known, _)| *known == name).map(|(_, vector)| *vector)?;
    let error = words.next().and_then(|word| word.strip_prefix(b"(")).and_then(number);
    Some(Act::Inject { vector, error: error.map(|error| error as u32) })
}
