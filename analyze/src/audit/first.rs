//! The first pass over a recording: which probes it has, which writes KVM refused, what a write
//! replaced, and which operands nobody told. The second pass judges with this at hand.

use rustc_hash::{FxHashMap, FxHashSet};
use tlbscope_trace::act::{Act, Hook, HookBy, Request};
use tlbscope_trace::op::{Actor, InvpcidType, Op};
use tlbscope_trace::recording::{Body, Record};

/// The general-protection fault.
const GP: u8 = 13;

/// What the recording shows at all: each at least once.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each probe")]
pub struct Probes {
    pub entry: bool,
    pub exit: bool,
    pub flush_all: bool,
    pub flush_current: bool,
    pub flush_guest: bool,
    pub flush_gva: bool,
    /// A flush at the end of a root load.
    pub load_flush: bool,
    pub load: bool,
    pub load_pgd: bool,
    pub reset: bool,
    pub free_roots: bool,
    pub sync_roots: bool,
    pub unsync: bool,
    pub invalidate_gva: bool,
    pub invalidate_pcid: bool,
    pub requests: bool,
    pub remote_flush: bool,
    pub vcpu_load: bool,
    pub old_cr0: bool,
    pub old_cr4: bool,
}

impl Probes {
    /// Whether any flush hook was recorded: without, nothing can be judged.
    pub const fn flushes(&self) -> bool {
        self.flush_all || self.flush_current || self.flush_guest || self.flush_gva
    }

    /// Whether the hook that serves a request was ever recorded.
    pub const fn serves(&self, request: Request) -> bool {
        match request {
            Request::TlbFlush => self.flush_all,
            Request::TlbFlushCurrent => self.flush_current,
            Request::TlbFlushGuest => self.flush_guest,
            _ => true,
        }
    }

    fn see(&mut self, act: &Act) {
        match *act {
            Act::EntrySeen | Act::Entry(_) => self.entry = true,
            Act::Exit(_) => self.exit = true,
            Act::Hook { hook, by, .. } => {
                self.load_flush |= by == HookBy::Load;
                match hook {
                    Hook::All => self.flush_all = true,
                    Hook::Current => self.flush_current = true,
                    Hook::Guest => self.flush_guest = true,
                    Hook::Gva(_) => self.flush_gva = true,
                }
            }
            Act::Load => self.load = true,
            Act::LoadPgd { .. } => self.load_pgd = true,
            Act::Reset { .. } => self.reset = true,
            Act::FreeRoots { .. } => self.free_roots = true,
            Act::SyncRoots => self.sync_roots = true,
            Act::SpUnsync { .. } => self.unsync = true,
            Act::InvalidateGva(_) => self.invalidate_gva = true,
            Act::InvalidatePcid(_) => self.invalidate_pcid = true,
            Act::Serve(_) | Act::Post(_) => self.requests = true,
            Act::RemoteFlush { .. } => self.remote_flush = true,
            Act::VcpuLoad(_) => self.vcpu_load = true,
            Act::OldSeen { register: 0, .. } => self.old_cr0 = true,
            Act::OldSeen { .. } => self.old_cr4 = true,
            _ => {}
        }
    }
}

/// What the first pass found. Records are named by their index.
#[derive(Clone, Debug, Default)]
pub struct First {
    pub probes: Probes,
    /// Writes that ended in #GP.
    refused: FxHashSet<usize>,
    /// What writes of CR0 and CR4 replaced, as KVM read it.
    old: FxHashMap<usize, u64>,
    /// INVPCIDs whose operand no line tells.
    blind: FxHashSet<usize>,
    /// Records read.
    pub records: usize,
    under: Vec<Under>,
}

/// The operation under way on one vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Under {
    write: Option<(usize, u8)>,
    invpcid: Option<(usize, bool)>,
}

impl First {
    /// Reads the next records.
    pub fn read(&mut self, records: &[Record]) {
        let mut under = std::mem::take(&mut self.under);
        for (index, record) in (self.records..).zip(records) {
            let Actor::Vcpu(vcpu) = record.actor else {
                if let Body::Act(act) = &record.body {
                    self.probes.see(act);
                }
                continue;
            };
            let id = usize::from(vcpu.0);
            if id >= under.len() {
                under.resize(id + 1, Under::default());
            }
            match &record.body {
                Body::Op(op) => self.op(index, bare(op), &mut under[id]),
                Body::Act(act) => {
                    self.probes.see(act);
                    self.act(act, &mut under[id]);
                }
                Body::Gap(_) => under.fill(Under::default()),
            }
        }
        self.under = under;
        self.records += records.len();
    }

    fn op(&mut self, index: usize, op: &Op, under: &mut Under) {
        *under = Under::default();
        match op {
            Op::Cr0(_) | Op::Lmsw(_) | Op::Clts => under.write = Some((index, 0)),
            Op::Cr4(_) => under.write = Some((index, 4)),
            Op::Cr3(_) | Op::Efer(_) => under.write = Some((index, 3)),
            Op::Invpcid(op) => {
                let asks = matches!(op.kind, InvpcidType::Addr | InvpcidType::Single);
                if asks {
                    self.blind.insert(index);
                }
                under.write = Some((index, 3));
                under.invpcid = asks.then_some((index, op.kind == InvpcidType::Addr));
            }
            _ => {}
        }
    }

    fn act(&mut self, act: &Act, under: &mut Under) {
        match (*act, under.write) {
            (Act::Inject { vector: GP, .. }, Some((index, _))) => {
                self.refused.insert(index);
            }
            (Act::OldSeen { register, old }, Some((index, of))) if register == of => {
                self.old.insert(index, old);
            }
            (Act::EntrySeen | Act::Entry(_) | Act::Exit(_), _) => *under = Under::default(),
            (Act::InvalidateGva(_) | Act::InvalidatePcid(_), _) => {
                let address = matches!(act, Act::InvalidateGva(_));
                if let Some((index, _)) = under.invpcid.filter(|(_, asks)| *asks == address) {
                    self.blind.remove(&index);
                }
            }
            _ => {}
        }
    }

    /// Whether a write ended in #GP.
    pub fn refused(&self, index: usize) -> bool {
        self.refused.contains(&index)
    }

    /// What a write replaced.
    pub fn old(&self, index: usize) -> Option<u64> {
        self.old.get(&index).copied()
    }

    /// Whether the operand of an INVPCID is not told.
    pub fn blind(&self, index: usize) -> bool {
        self.blind.contains(&index)
    }
}

/// The operation itself, whoever carried it out.
pub fn bare(op: &Op) -> &Op {
    match op {
        Op::Emul(inner) => inner,
        other => other,
    }
}
