//! The micro scenario of one transition under one policy.
//!
//! Two address spaces A and B map a plain and a global page each, B one more of its own; all are
//! read, A is current and B's root cached. The global page is the same in both, as global pages
//! must be. Then the guest edits the leaves without a flush: what the TLB holds is stale, and in
//! shadow mode the shadow tables turn unsync. Then comes the write; then every copy is tried: in A,
//! in B (NOFLUSH where there are PCIDs), in A again. A guest that has just turned PCIDs on has A and
//! B in PCID 0: a NOFLUSH switch keeps A's translations, so only B's own page is its to use there.

use tlbscope_sim::arch::required::{self, Owed, Scope, Strength};
use tlbscope_sim::engine::Machine;
use tlbscope_sim::machine::config::MachineConfig;
use tlbscope_sim::policy::Policy;
use tlbscope_trace::act::{ArchOp, At, Class, Tag};
use tlbscope_trace::addr::{Gpa, Gva, PageSize, Time, VcpuId};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{Access, AccessKind, Actor, Event, L1Op, Op, Perms, RegWrite, Sregs};
use tlbscope_trace::regs::{CR3_NOFLUSH, Cr0, Cr4, MmuKind, Regs, Vendor};

use super::transition::{Change, Register, State};
use super::{Outcome, Verdict};
use crate::finding::{Findings, Kind};
use crate::oracle::Oracle;
use crate::tally::{Counts, Key, Tally};

const V0: Actor = Actor::Vcpu(VcpuId(0));
/// Roots of the two address spaces.
const A: u64 = 0x1_0000;
const B: u64 = 0x2_0000;
/// A plain and a global page. Above the 32 MiB whose 32-bit directory entries a change to PAE
/// would take for PDPTEs, within guest memory for the time without paging.
const PLAIN: u64 = 0x2000_7000;
const GLOBAL: u64 = 0x2000_8000;
/// CR0 of a warmed machine.
const CR0_SET: u64 = Cr0::PE.union(Cr0::PG).union(Cr0::WP).bits();
/// A page that A does not map.
const OWN: u64 = 0x2000_9000;

/// The events of a transition.
pub(super) struct Script {
    events: Vec<Op>,
    /// Which of them is the write.
    write: usize,
}

fn read(gva: u64) -> Op {
    Op::Access(Access { gva: Gva(gva), kind: AccessKind::Read, user: false, ac: false })
}

fn map(gva: u64, gpa: u64, root: Option<u64>) -> Op {
    let global = gva == GLOBAL;
    let perms = Perms { read: true, write: true, exec: true, user: false, global };
    let root = root.map(Gpa);
    Op::Map { gva: Gva(gva), gpa: Gpa(gpa), size: PageSize::Size4K, perms, root }
}

impl Script {
    /// The script of a change in a state; `None` if the state contradicts the change's direction.
    /// `edit`: whether the guest edits its tables before the write.
    pub(super) fn new(state: State, change: Change, edit: bool) -> Option<Self> {
        let mut cr4 = state.cr4().bits();
        let mut cr0_set = CR0_SET;
        match change.register {
            Register::Cr0 => cr0_set = cr0_set & !change.set | change.clear,
            Register::Cr4 => cr4 = cr4 & !change.set | change.clear,
        }
        Self::around(state, cr0_set, cr4, change.op(), edit)
    }

    /// The script of any operation of the guest in a state.
    pub(super) fn of(state: State, op: &Op) -> Option<Self> {
        let change = |register, write: &RegWrite| Change {
            register,
            set: write.set,
            clear: write.clear & !write.set,
        };
        match op {
            Op::Cr0(write) if write.clear != !0 => {
                Self::new(state, change(Register::Cr0, write), true)
            }
            Op::Cr4(write) if write.clear != !0 => {
                Self::new(state, change(Register::Cr4, write), true)
            }
            _ => Self::around(state, CR0_SET, state.cr4().bits(), op.clone(), true),
        }
    }

    /// Warms the machine with these bits of CR0 and this CR4, has the guest do `op`, and tries
    /// every copy.
    fn around(state: State, cr0_set: u64, cr4: u64, op: Op, edit: bool) -> Option<Self> {
        let decided = Cr4::PAE | Cr4::PCIDE;
        let base = state.cr4();
        // The state says of PAE and PCIDE what they are before the write.
        if (cr4 ^ base.bits()) & decided.bits() != 0 {
            return None;
        }
        let off = cr0_set & Cr0::PG.bits() == 0;
        let pcids = base.contains(Cr4::PCIDE);
        if off && pcids {
            return None;
        }
        let wp = Cr0::WP.bits();
        let (a, b) = if pcids { (A | 1, B | 2) } else { (A, B) };
        let back = |root: u64, pcids: bool| Op::Cr3(if pcids { root | CR3_NOFLUSH } else { root });
        let mut events = vec![
            Op::Cr4(RegWrite::value(cr4)),
            Op::Cr0(RegWrite { clear: wp, set: cr0_set & wp }),
            Op::Cr3(a),
            map(PLAIN, 0x5000, None),
            map(GLOBAL, 0x6000, None),
            read(PLAIN),
            read(GLOBAL),
            Op::Cr3(b),
            map(PLAIN, 0x7000, None),
            map(GLOBAL, 0x6000, None),
            map(OWN, 0x8000, None),
            read(PLAIN),
            read(OWN),
            // Without it B's own entries would never be walked, nor their accessed bits set.
            Op::Invlpg(Gva(GLOBAL)),
            read(GLOBAL),
            back(a, pcids),
            read(PLAIN),
            Op::Invlpg(Gva(GLOBAL)),
            read(GLOBAL),
        ];
        if off {
            // Leaving long mode takes a guest to compatibility mode, which the machine does not
            // know; userspace's write of CR0 stands for it.
            events.push(match state {
                State::Level4 | State::Level4Pcid => {
                    let cr0 = Some(cr0_set | Cr0::ET.bits());
                    Op::Sregs(Box::new(Sregs { cr0, ..Sregs::default() }))
                }
                State::Pae | State::Bits32 => Op::Cr0(RegWrite { clear: Cr0::PG.bits(), set: 0 }),
            });
            events.extend([read(PLAIN), read(GLOBAL)]);
        } else if edit {
            events.extend([
                map(PLAIN, 0x9000, Some(A)),
                map(GLOBAL, 0xa000, Some(A)),
                map(PLAIN, 0xb000, Some(B)),
                map(GLOBAL, 0xa000, Some(B)),
                map(OWN, 0xc000, Some(B)),
            ]);
        }
        // What L2 does, and its exit, need an L2.
        if of_l2(&op) {
            events.push(Op::L2Enter(Box::default()));
        }
        let write = events.len();
        let cr4 = if let Op::Cr4(write) = &op { write.apply(cr4) } else { cr4 };
        let enters_l2 = matches!(op, Op::L2Enter(_));
        events.push(op);
        if enters_l2 {
            // The copies are L1's: they are tried once it is back.
            events.push(Op::L2Exit(None));
        }
        events.extend([read(PLAIN), read(GLOBAL)]);
        let pcids_now = cr4 & Cr4::PCIDE.bits() != 0;
        events.push(back(b, pcids_now));
        if pcids || !pcids_now {
            events.extend([read(PLAIN), read(GLOBAL)]);
        }
        events.extend([read(OWN), back(a, pcids_now), read(PLAIN), read(GLOBAL)]);
        Some(Self { events, write })
    }

    /// Runs it with someone watching, up to and with the write. `None`: the state before cannot be
    /// reached. Else the registers before and after the write, and why it faulted.
    pub(super) fn watch<O: Observer>(
        &self,
        config: &MachineConfig,
        policy: &Policy,
        watching: &mut O,
    ) -> Option<(Regs, Regs, Option<&'static str>)> {
        let mut machine = Machine::new(config, policy).ok()?;
        for (index, op) in self.events.iter().enumerate().take(self.write + 1) {
            let here = index as u64;
            let event = Event { time: Time(here + 1), actor: V0, op: op.clone() };
            let before = *machine.regs(VcpuId(0));
            let step = machine.run(&event, here, watching).ok()?;
            if index == self.write {
                return Some((before, *machine.regs(VcpuId(0)), step.fault));
            }
            if step.fault.is_some() {
                return None;
            }
        }
        None
    }

    /// The event of the write.
    pub(super) const fn write(&self) -> u64 {
        self.write as u64
    }

    /// Runs it. `None`: the state before the write cannot be reached.
    pub(super) fn run(&self, config: &MachineConfig, policy: &Policy) -> Option<Outcome> {
        let write = self.write as u64;
        let judges = (Oracle::new(1), Tally::with_windows(1, &[(write, V0)]));
        let mut watching = (judges, Breadth { write, owed: Vec::new(), dropped: Vec::new() });
        let mut machine = Machine::new(config, policy).ok()?;
        let mut fault = None;
        for (index, op) in self.events.iter().enumerate() {
            let here = index as u64;
            let event = Event { time: Time(here + 1), actor: V0, op: op.clone() };
            let step = machine.run(&event, here, &mut watching).ok()?;
            if index == self.write {
                fault = step.fault;
            } else if index < self.write && step.fault.is_some() {
                return None;
            }
            if fault.is_some() {
                break;
            }
        }
        let ((mut oracle, tally), breadth) = watching;
        oracle.finish(&machine);
        let none = Counts::default();
        let counts = tally.window(write).unwrap_or(&none);
        let acts: Vec<(Key, u64)> =
            ACTS.iter().map(|key| (*key, counts.get(*key))).filter(|(_, n)| *n != 0).collect();
        let acted = acts.iter().any(|(key, _)| *key != Key::Exit);
        let verdict = if fault.is_some() {
            Verdict::Fault
        } else {
            verdict(oracle.findings(), write, acted, &breadth)
        };
        let owed = breadth.owed.iter().map(|owed| owed.rule.id).collect();
        Some(Outcome { acts, owed, verdict, unedited: None })
    }
}

/// Whether only L2 can do it.
fn of_l2(op: &Op) -> bool {
    let vmfunc = |op: &L1Op| matches!(op, L1Op::Vmfunc(_));
    matches!(op, Op::L2Exit(_)) || matches!(op, Op::L1(op) if vmfunc(op))
}

/// What is an action: requests, resets, unloads, loads, hooks, invalidations, and the exit itself.
const ACTS: [Key; 31] = [
    Key::Exit,
    Key::RequestAll,
    Key::RequestCurrent,
    Key::RequestGuest,
    Key::RequestSync,
    Key::RequestPgd,
    Key::RequestReload,
    Key::RequestObsolete,
    Key::RequestHv,
    Key::MmuReset,
    Key::MmuInit,
    Key::MmuUnload,
    Key::RootFree,
    Key::RootLoad,
    Key::RootHit,
    Key::RootMiss,
    Key::FlushAll,
    Key::FlushCurrent,
    Key::FlushGuest,
    Key::FlushGva,
    Key::InvvpidAddress,
    Key::InvvpidSingle,
    Key::InvvpidAll,
    Key::InvvpidNonglobal,
    Key::InveptSingle,
    Key::InveptGlobal,
    Key::TlbControl1,
    Key::TlbControl3,
    Key::TlbControl7,
    Key::NewAsid,
    Key::Invlpga,
];

/// Whether the guest's operation owes it, and not the hypervisor's own work on its tables.
pub(super) const fn by_guest(owed: &Owed) -> bool {
    !matches!(owed.scope, Scope::Frames { .. })
}

/// What binding rules owe for the write, and what its window dropped from the hardware, by tag and
/// whether global: every flush counts, LOAD's among them, which the oracle never calls over-broad.
struct Breadth {
    write: u64,
    owed: Vec<Owed>,
    dropped: Vec<(Tag, bool)>,
}

impl Breadth {
    /// Whether something was dropped that no owed scope reaches.
    fn beyond(&self) -> bool {
        self.dropped.iter().any(|(tag, global)| {
            !self.owed.iter().any(|owed| match owed.scope {
                Scope::Everything | Scope::EveryAsid => true,
                Scope::NonGlobal => !global,
                Scope::Pcid(pcid) => *global || tag.pcid == pcid,
                Scope::PcidNonGlobal(pcid) => !global && tag.pcid == pcid,
                _ => false,
            })
        })
    }
}

impl Observer for Breadth {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, before: &Regs, native: bool, world: &W) {
        if at.event == self.write {
            let owed =
                required::of_guest(world.vendor(), op, before, world.regs(VcpuId(0)), native);
            self.owed.extend(owed.filter(|owed| by_guest(owed) && owed.strength == Strength::Must));
        }
    }

    fn dropped(&mut self, at: &At, tag: &Tag, global: bool, entries: u32) {
        // Guest-physical mappings are the hypervisor's own: no write of the guest owes them.
        if at.event == self.write && entries > 0 && tag.class != Class::GuestPhysical {
            self.dropped.push((*tag, global));
        }
    }
}

/// The verdict, from the findings whose cause is the write.
fn verdict(findings: &Findings, write: u64, acted: bool, breadth: &Breadth) -> Verdict {
    let has = |wanted: &dyn Fn(Kind) -> bool| {
        findings.kept().iter().any(|f| f.cause == write && wanted(f.kind))
    };
    if has(&|kind| kind == Kind::Missed { harmful: true }) {
        Verdict::MissedHarmful
    } else if has(&|kind| kind == Kind::Missed { harmful: false }) {
        Verdict::MissedBenign
    } else if has(&|kind| kind == Kind::Exposed) {
        Verdict::Exposed
    } else if has(&|kind| kind == Kind::Latent) {
        Verdict::Latent
    } else if !breadth.owed.is_empty() {
        if breadth.beyond() { Verdict::OverBroad } else { Verdict::Served }
    } else if has(&|kind| matches!(kind, Kind::Excessive(_))) {
        Verdict::Wasted
    } else if has(&|kind| kind == Kind::Advised) {
        Verdict::Advised
    } else if acted {
        Verdict::NotOwed
    } else {
        Verdict::NothingDone
    }
}

/// The machine of a comparison: one vCPU, hardware that never evicts.
pub(super) fn config(vendor: Vendor, mmu: MmuKind, state: State) -> MachineConfig {
    MachineConfig { vendor, mmu, mode: state.mode(), ..MachineConfig::default() }
}
