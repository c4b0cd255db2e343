//! What of a window is fed to the model: its operations, and the hints that stand for memory.

use tlbscope_sim::engine::drive::LoadHint;
use tlbscope_trace::act::{Act, Hook, Request};
use tlbscope_trace::addr::{Gva, PcpuId};
use tlbscope_trace::op::{InvpcidType, Op};
use tlbscope_trace::recording::Body;
use tlbscope_trace::regs::Regs;

use super::token::{Alphabet, Side, Token};
use super::window::{Item, Outside};

/// Something that the model is made to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// An operation, with the old value of the register as far as the recording shows it.
    Op(Box<Op>, Option<(u8, u64)>),
    /// kvm_arch_vcpu_load.
    Load(PcpuId),
    /// A #PF that KVM injects.
    Fault(Gva, u32),
    /// A register as it is seen behind lost events.
    Reg(u8, u64),
    /// Whether the PCID bits of a CR3 that was written without an exit are clear.
    PcidBits(bool),
}

/// A window, read.
#[derive(Clone, Debug)]
pub struct Feed {
    /// What KVM did.
    pub side: Side,
    /// A remote flush of its own is not served yet.
    own_flush: bool,
    /// The recording shows no reset but by its parts.
    no_reset: bool,
    /// The line of each token.
    pub lines: Vec<u32>,
    /// What the model is made to do.
    pub steps: Vec<Step>,
    /// Remote flushes and zaps from elsewhere, each with the number of tokens before it, and
    /// whether it is this vCPU's own thread's.
    pub outside: Vec<(usize, Outside, bool)>,
    /// Remote flushes of each sync.
    pub syncs: Vec<u8>,
    /// Whether each sync was followed by FLUSH_CURRENT.
    pub sync_current: Vec<bool>,
    /// Unsync cached roots of each guest flush.
    pub unsync: Vec<u8>,
    /// Each LOAD.
    pub loads: Vec<LoadHint>,
    /// Remote flushes of the address operation.
    pub address: u8,
    /// Remote flushes of each free of obsolete roots.
    pub obsolete: Vec<u8>,
    /// For each load of the PDPTEs: whether the active root was freed for it.
    pub pdptes: Vec<bool>,
    /// Roots printed before anything happened.
    pub before: Vec<Act>,
    /// Roots printed by the entry function.
    pub roots: Vec<Act>,
    /// Requests that were seen pending, as bits of [`Request`].
    pub posted: u32,
    /// Faults of the guest's own that nothing but their invalidation tells of.
    pub guest_faults: u64,
    /// Shadow pages found or made, for the count of inputs.
    pub pages: u64,
}

/// CR4.PCIDE.
const PCIDE: u64 = 1 << 17;
/// #PF error code: the entry was present.
const PRESENT: u32 = 1;

/// What the last tokens say of where KVM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Elsewhere,
    Sync,
    Load,
    Address,
    Obsolete,
}

impl Feed {
    /// Reads a window.
    pub fn new(items: &[Item<'_>], valid: bool, alphabet: Alphabet, shadow: bool) -> Self {
        let mut feed = Self {
            side: Side::new(valid),
            own_flush: false,
            no_reset: false,
            lines: Vec::new(),
            steps: Vec::new(),
            outside: Vec::new(),
            syncs: Vec::new(),
            sync_current: Vec::new(),
            unsync: Vec::new(),
            loads: Vec::new(),
            address: 0,
            obsolete: Vec::new(),
            pdptes: Vec::new(),
            before: Vec::new(),
            roots: Vec::new(),
            posted: 0,
            guest_faults: 0,
            pages: 0,
        };
        feed.no_reset = !alphabet.has(Token::Reset);
        feed.side.inlined = feed.no_reset;
        let mut place = Place::Elsewhere;
        let mut fault = None;
        for item in items {
            match item {
                Item::Outside(Outside::Request(Request::MmuFreeObsoleteRoots)) => {
                    feed.outside.push((feed.side.tokens.len(), Outside::Pages(0), false));
                }
                Item::Outside(what) => feed.outside.push((feed.side.tokens.len(), *what, false)),
                Item::Record(record) => match &record.body {
                    Body::Op(op) => feed.op(op),
                    Body::Act(act) => {
                        feed.act(act, record.line, &mut place, &mut fault, shadow);
                    }
                    Body::Gap(_) => {}
                },
            }
        }
        feed.illegal_operands(items);
        feed.cr3_bits(items);
        feed
    }

    fn op(&mut self, op: &Op) {
        self.side.inlined = self.no_reset || *op == Op::Cpuid;
        let known = matches!(
            op,
            Op::Cr0(_)
                | Op::Clts
                | Op::Lmsw(_)
                | Op::Cr3(_)
                | Op::Cr4(_)
                | Op::Efer(_)
                | Op::Invlpg(_)
                | Op::Invpcid(_)
                | Op::Init
                | Op::Reset
                | Op::TaskSwitch(_)
                | Op::Cpuid
                | Op::Code { .. }
                | Op::MsrApicBase(_)
                | Op::Smi
                | Op::Rsm
                | Op::Sregs(_)
                | Op::Emul(_)
        );
        if known {
            self.steps.push(Step::Op(Box::new(op.clone()), None));
        }
    }

    fn act(
        &mut self,
        act: &Act,
        line: u32,
        place: &mut Place,
        fault: &mut Option<Gva>,
        shadow: bool,
    ) {
        if let Act::Post(request) = act {
            self.posted |= 1 << *request as u8;
        }
        match *act {
            Act::OldSeen { register, old } => {
                if let Some(Step::Op(_, seen @ None)) = self.steps.last_mut() {
                    *seen = Some((register, old));
                }
            }
            Act::VcpuLoad(pcpu) => self.steps.push(Step::Load(pcpu)),
            // kvm_cr tells of a write before the function that prints the old value.
            Act::RegSeen { register, value } => {
                let ops = self.steps.iter().rev().take_while(|step| matches!(step, Step::Op(..)));
                let at = self.steps.len() - ops.count();
                self.steps.insert(at, Step::Reg(register, value));
            }
            Act::PageFault { address, .. } => *fault = Some(Gva(address)),
            Act::Inject { vector: 14, error: Some(error) } if shadow => {
                if let Some(gva) = fault.take() {
                    self.steps.push(Step::Fault(gva, error));
                }
            }
            // kvm_inj_exception may be off: the invalidation that comes with the fault tells of it.
            Act::InvalidateGva(gva) | Act::Hook { hook: Hook::Gva(gva), .. }
                if shadow && !self.invalidates() =>
            {
                *fault = None;
                self.steps.push(Step::Fault(gva, PRESENT));
                self.guest_faults += 1;
                self.token(act, line, place);
                *place = Place::Address;
            }
            Act::RemoteFlush { .. } => {
                self.own_flush = true;
                self.flushed(*place);
            }
            Act::RequestAll(Request::MmuFreeObsoleteRoots) => {
                self.outside.push((self.side.tokens.len(), Outside::Pages(0), true));
            }
            Act::RequestAll(request) => {
                self.outside.push((self.side.tokens.len(), Outside::Request(request), true));
            }
            Act::SpNew { .. } | Act::SpFound { .. } => {
                self.pages += 1;
                if let (Place::Load, Some(load)) = (*place, self.loads.last_mut()) {
                    load.new.get_or_insert(matches!(act, Act::SpNew { .. }));
                }
            }
            Act::Post(Request::MmuSync) if *place == Place::Load => {
                if let Some(load) = self.loads.last_mut() {
                    load.unsync = true;
                }
            }
            Act::Post(Request::TlbFlush) => self.flush_seen(),
            Act::Post(Request::TlbFlushCurrent) if *place == Place::Load => {
                if let Some(load) = self.loads.last_mut() {
                    load.current = true;
                }
            }
            Act::Post(Request::TlbFlushCurrent) if *place == Place::Sync => {
                if let Some(current) = self.sync_current.last_mut() {
                    *current = true;
                }
            }
            // Whether the walk was for the emulator's sake, before the operation, nobody tells.
            Act::Post(Request::LoadMmuPgd) if !shadow => {
                self.outside.push((0, Outside::Memory(Request::LoadMmuPgd), true));
            }
            Act::Post(request @ (Request::TlbFlushCurrent | Request::MmuSync))
                if !self.steps.iter().any(|step| matches!(step, Step::Op(..))) =>
            {
                self.outside.push((self.side.tokens.len(), Outside::Memory(request), true));
            }
            Act::RootSeen { .. } => self.roots.push(*act),
            // It prints the roots as it finds them.
            Act::NewPgd(_) if self.side.tokens.is_empty() => {
                self.before = std::mem::take(&mut self.roots);
                self.token(act, line, place);
            }
            Act::NewPgd(_) => {
                self.roots.clear();
                self.token(act, line, place);
            }
            _ => self.token(act, line, place),
        }
    }

    fn token(&mut self, act: &Act, line: u32, place: &mut Place) {
        let before = self.side.tokens.len();
        self.side.recorded(act);
        let after = self.side.tokens.len();
        self.lines.resize(after, line);
        if after > before && self.side.tokens.last() == Some(&Token::FlushAll) {
            self.own_flush = false;
        }
        if after > before && self.side.tokens.last() == Some(&Token::Unload) {
            self.obsolete.push(0);
            *place = Place::Obsolete;
            return;
        }
        match act {
            Act::SyncRoots if after > before => {
                self.syncs.push(0);
                self.sync_current.push(false);
                *place = Place::Sync;
            }
            Act::Load => {
                self.loads.push(LoadHint::default());
                *place = Place::Load;
            }
            Act::SyncPrevRoots => {
                self.unsync.push(0);
                *place = Place::Elsewhere;
            }
            Act::FreeRoots { mask } => {
                let second = self.side.tokens.iter().rev().nth(1);
                match (second, self.unsync.last_mut()) {
                    (Some(Token::SyncPrevRoots), Some(unsync)) => *unsync = mask >> 1,
                    (Some(Token::FreeObsolete), _) => self.zapped(*mask),
                    (Some(Token::LoadPdptrs), _) if *mask == 1 => {
                        if let Some(changed) = self.pdptes.last_mut() {
                            *changed = true;
                        }
                    }
                    _ => {}
                }
            }
            Act::LoadPdptrs { .. } => {
                self.pdptes.push(false);
                *place = Place::Elsewhere;
            }
            Act::FreeObsoleteRoots => {
                self.obsolete.push(0);
                *place = Place::Obsolete;
            }
            Act::InvalidateGva(_) => *place = Place::Address,
            Act::Hook { hook: Hook::Gva(_), .. } => {}
            _ if after > before => *place = Place::Elsewhere,
            _ => {}
        }
    }

    /// A flush by another thread is seen pending: it came after the last one that was served,
    /// whatever the order of the lines of two processors.
    fn flush_seen(&mut self) {
        if self.own_flush {
            return;
        }
        let at = self.side.tokens.len();
        let served = self.side.tokens.iter().rposition(|token| *token == Token::FlushAll);
        let mut latest = None;
        for (from, what, own) in &mut self.outside {
            if *what != Outside::Flush || *own {
                continue;
            }
            if served.is_none_or(|served| *from > served) {
                *from = at;
                latest = None;
            } else {
                latest = Some(from);
            }
        }
        if let Some(from) = latest {
            *from = at;
        }
    }

    /// The roots that are freed as obsolete: their pages were zapped when the requests since the
    /// free before were made.
    fn zapped(&mut self, mask: u8) {
        let requests = self.outside.iter_mut().rev().map_while(|(_, what, _)| match what {
            Outside::Pages(zapped) if *zapped == 0 => Some(Some(zapped)),
            Outside::Pages(_) => None,
            _ => Some(None),
        });
        for zapped in requests.flatten() {
            *zapped = mask;
        }
    }

    /// Whether an operation of this window invalidates an address by itself.
    fn invalidates(&self) -> bool {
        let invalidates = |op: &Op| matches!(op, Op::Invlpg(_) | Op::Invpcid(_));
        self.steps.iter().any(|step| match step {
            Step::Op(op, _) => match &**op {
                Op::Emul(inner) => invalidates(inner),
                op => invalidates(op),
            },
            Step::Load(_) | Step::Reg(..) | Step::PcidBits(_) => false,
            Step::Fault(..) => true,
        })
    }

    /// A remote flush on this vCPU's own thread: of a sync, of LOAD's page, of an address, or of
    /// something else that entries changed by.
    fn flushed(&mut self, place: Place) {
        match place {
            Place::Sync => {
                if let Some(flushes) = self.syncs.last_mut() {
                    *flushes = flushes.saturating_add(1);
                }
            }
            Place::Load => {
                if let Some(load) = self.loads.last_mut() {
                    load.flushes = load.flushes.saturating_add(1);
                }
            }
            Place::Obsolete => {
                if let Some(flushes) = self.obsolete.last_mut() {
                    *flushes = flushes.saturating_add(1);
                }
            }
            Place::Address => self.address = self.address.saturating_add(1),
            Place::Elsewhere => {
                self.outside.push((self.side.tokens.len(), Outside::Flush, true));
            }
        }
    }

    /// INVPCID with an operand that the recording does not show: it faulted before KVM told it.
    fn illegal_operands(&mut self, items: &[Item<'_>]) {
        let acts = || {
            items.iter().filter_map(|item| match item {
                Item::Record(record) => match &record.body {
                    Body::Act(act) => Some(act),
                    _ => None,
                },
                Item::Outside(_) => None,
            })
        };
        let faulted = acts().any(|act| matches!(act, Act::Inject { vector: 13, .. }));
        let told = acts().any(|act| matches!(act, Act::InvalidateGva(_) | Act::InvalidatePcid(_)));
        if !faulted || told {
            return;
        }
        for step in &mut self.steps {
            if let Step::Op(op, _) = step
                && let Op::Invpcid(operands) = &mut **op
                && matches!(operands.kind, InvpcidType::Addr | InvpcidType::Single)
            {
                // 12 bits hold a PCID (SDM vol. 2, INVPCID).
                operands.pcid = 1 << 12;
            }
        }
    }
}

impl Feed {
    /// CR4.PCIDE 0->1 faults if CR3 has PCID bits set (SDM vol. 2, MOV CR4): where CR3 is written
    /// without an exit, the fault is all that tells of them.
    fn cr3_bits(&mut self, items: &[Item<'_>]) {
        let faulted = items.iter().any(|item| match item {
            Item::Record(record) => {
                matches!(record.body, Body::Act(Act::Inject { vector: 13, .. }))
            }
            Item::Outside(_) => false,
        });
        let sets = |step: &Step| match step {
            Step::Op(op, _) => matches!(&**op, Op::Cr4(write) if write.set & PCIDE != 0),
            _ => false,
        };
        if let Some(at) = self.steps.iter().position(sets) {
            self.steps.insert(at, Step::PcidBits(!faulted));
        }
    }

    /// Userspace's first register write, of which no probe shows some registers: they are what
    /// the vCPU is first seen with.
    pub fn complete(&mut self, first: &Regs) {
        for step in &mut self.steps {
            if let Step::Op(op, _) = step
                && let Op::Sregs(sregs) = &mut **op
            {
                let slots = [&mut sregs.cr0, &mut sregs.cr3, &mut sregs.cr4, &mut sregs.efer];
                let values = [first.cr0, first.cr3, first.cr4, first.efer];
                for (slot, value) in slots.into_iter().zip(values) {
                    slot.get_or_insert(value);
                }
            }
        }
    }
}
