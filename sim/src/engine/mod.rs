//! The engine: carries events out on a machine and reports to an observer.
//!
//! One machine is a value: cloned, compared, hashed. An event runs to its end, re-entry included,
//! before the next begins; interleavings inside an operation are placed by hand (`out`, `in`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tlbscope_trace::act::{Act, ArchOp, At, Outcome};
use tlbscope_trace::addr::{Gpa, Hpa, PAGE_BYTES, PcpuId, Time, VcpuId, Vpid};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{Actor, Event};
use tlbscope_trace::regs::{Cr0, Efer, MmuKind, Regs, Vendor};

use crate::arch::access::Permitted;
use crate::arch::fault::{Gp, Limits};
use crate::kvm::shadow::ShadowPages;
use crate::kvm::tdp::Trees;
use crate::kvm::vcpu::{Vcpu, Vmcb};
use crate::machine::MachineError;
use crate::machine::config::MachineConfig;
use crate::paging::memory::GuestMemory;
use crate::policy::mechanics::RemoteRange;
use crate::policy::{Control, Policy};
use crate::tlb::Tlb;

mod access;
mod backlog;
mod clock;
pub mod drive;
mod hit;
mod host;
mod hostops;
mod nested;
mod presence;
mod refill;
mod resume;
mod run;
mod schedule;
mod scheduling;
mod state;
mod structures;
mod tables;

pub use schedule::{Choice, Chooser, Interleaved, Point};

use host::HostMemory;
use presence::Presence;
use schedule::Schedule;

/// Event index of what happens before the first event: every vCPU's first root and entry.
pub const BOOT: u64 = u64::MAX;

/// What one event came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Step {
    /// The result of an access.
    pub outcome: Option<Outcome>,
    /// Why the operation faulted with #GP and had no effect.
    #[serde(with = "tlbscope_trace::state::word_or_none")]
    pub fault: Option<tlbscope_trace::state::Name>,
    /// The operation waits (for the end of a notifier, or for its vCPU to run): its result comes
    /// later, from [`Machine::take_late`].
    pub waits: bool,
}

/// An event that this machine cannot carry out; it names the operation, so that nothing is ever
/// skipped in silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The operation, as the text form names it.
    pub op: &'static str,
    /// Why, in words that complete "cannot carry out `op`: ...".
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot carry out `{}`: {}", self.op, self.why)
    }
}

impl std::error::Error for Refused {}

/// Why a machine cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(#[from] MachineError);

/// A physical CPU.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Pcpu {
    /// Its caches.
    pub tlb: Tlb,
    /// AMD: the pool its ASIDs come from (facts/kvm.md 6.3).
    pub asids: AsidPool,
}

/// The ASID allocator of one pCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct AsidPool {
    pub generation: u64,
    pub next: u32,
    pub max: u32,
}

/// The machine under one policy.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Machine {
    #[serde(skip)]
    pub(crate) config: MachineConfig,
    #[serde(skip, default = "state::no_policy")]
    pub(crate) policy: Arc<Policy>,
    pub(crate) memory: GuestMemory,
    pub(crate) host: HostMemory,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) pcpus: Vec<Pcpu>,
    pub(crate) shadow: ShadowPages,
    pub(crate) trees: Trees,
    /// Frames whose mapping went, for `remote-flush.range`: first and how many.
    pub(crate) lost: Vec<(u64, u64)>,
    /// Frames of which some CPU may hold a writable copy that no SPTE tells of: an ideal policy flushes
    /// when the host counts on their being gone, and not before.
    pub(crate) untold: BTreeSet<u64>,
    pub(crate) at: At,
    booted: bool,
    /// The event under way looked for its translation and found none.
    #[serde(skip)]
    missed: bool,
    /// What the registers of the vCPU that hit last permit.
    #[serde(skip)]
    permitted: Permitted,
    /// Fills that can be repeated without a walk.
    refills: refill::Refills,
    /// The last event left everything [undisturbed](Self::undisturbed).
    quiet: bool,
    /// The EPTPs that L1 used, in the order of first use: the EPTP list of VMFUNC.
    pub(crate) eptps: Vec<u64>,
    /// The operation under way is carried out by the hypervisor's emulator (`emul`).
    pub(crate) emulated: bool,
    /// Driven by hand: what stands for memory.
    pub(crate) hints: Option<drive::Hints>,
    /// Which vCPU runs where, and which wait to enter.
    pub(crate) presence: Presence,
    /// mmu_notifier invalidations under way, and the sequence that page faults compare.
    pub(crate) notifier: crate::kvm::notifier::Notifier,
    /// Shadow pages below this number are of the generation that the last zap-all made obsolete.
    pub(crate) zap_below: tlbscope_trace::addr::Sp,
    /// The worker that zaps roots has something to do, since this event.
    pub(crate) root_work: Option<u64>,
    /// Operations that wait, and results that came late.
    pub(crate) backlog: backlog::Backlog,
    /// The events still to come and who chooses among them, where orders are explored.
    #[serde(skip)]
    pub(crate) schedule: Option<Box<Schedule>>,
    /// The events still to come, where kicks take time.
    #[serde(skip)]
    clock: Option<Box<clock::Clock>>,
}

impl World for Machine {
    fn vendor(&self) -> Vendor {
        self.config.vendor
    }

    fn mmu(&self) -> MmuKind {
        self.config.mmu
    }

    fn maxphyaddr(&self) -> u32 {
        self.config.maxphyaddr
    }

    fn gbpages(&self) -> bool {
        self.config.features.contains(crate::machine::config::Features::GBPAGES)
    }

    fn regs(&self, vcpu: VcpuId) -> &Regs {
        &self.vcpus[vcpu.0 as usize].regs
    }

    fn read(&self, gpa: Gpa) -> u64 {
        self.memory.read(gpa)
    }

    fn frame(&self, gpa: Gpa) -> [u64; 512] {
        self.memory.frame(gpa)
    }

    fn backing(&self, gpa: Gpa) -> Option<Hpa> {
        let slot = gpa.0 < self.config.memory && self.host.has_slot(gpa.0 / PAGE_BYTES);
        slot.then(|| self.host.backing(gpa.0 / PAGE_BYTES)).flatten()
    }

    fn memory_bytes(&self) -> u64 {
        self.config.memory
    }

    fn l2(&self, vcpu: VcpuId) -> Option<tlbscope_trace::nested::L2> {
        self.vcpus[vcpu.0 as usize].nested.l2
    }
}

impl Machine {
    /// A machine in the state of `config`, run by `policy`.
    ///
    /// # Errors
    /// The processor named by `tlb` does not exist.
    pub fn new(config: &MachineConfig, policy: &Policy) -> Result<Self, EngineError> {
        let regs = config.initial_regs();
        let vcpus = (0..config.vcpus).map(|n| Self::vcpu(config, policy, n, regs)).collect();
        let max = config.asids.saturating_sub(1).max(1);
        let pcpu = Pcpu {
            tlb: Tlb::with_structures(config.tlb_geometry()?, config.structure_caches()?),
            asids: AsidPool { generation: 1, next: max + 1, max },
        };
        let actor = Actor::Host;
        let mut machine = Self {
            config: config.clone(),
            policy: Arc::new(policy.clone()),
            memory: GuestMemory::new(config.memory),
            host: HostMemory::default(),
            vcpus,
            pcpus: vec![pcpu; config.pcpus as usize],
            shadow: ShadowPages::default(),
            trees: Trees::default(),
            lost: Vec::new(),
            untold: BTreeSet::new(),
            at: At { event: BOOT, time: Time(0), actor },
            booted: false,
            missed: false,
            permitted: Permitted::default(),
            refills: refill::Refills::default(),
            quiet: false,
            eptps: Vec::new(),
            emulated: false,
            hints: None,
            presence: Presence::new(config.vcpus, config.pcpus),
            notifier: Default::default(),
            zap_below: Default::default(),
            root_work: None,
            backlog: Default::default(),
            schedule: None,
            clock: None,
        };
        if policy.mechanics.remote_flush.range != RemoteRange::None {
            machine.shadow.track_lost();
        }
        for v in 0..machine.vcpus.len() {
            machine.vcpus[v].mmu.role = machine.root_role(v);
        }
        Ok(machine)
    }

    /// The machine with other registers at the start: `regs` by vCPU number, `None` for the state
    /// of the machine's mode. Before the first event nothing is cached, so nothing is owed for it.
    #[must_use]
    pub fn with_regs(mut self, regs: &[Option<Regs>]) -> Self {
        for (v, regs) in regs.iter().enumerate().take(self.vcpus.len()) {
            if let Some(regs) = regs {
                self.vcpus[v].regs = *regs;
                self.vcpus[v].kvm_pdpte = regs.pdpte;
                self.vcpus[v].vmcs_pdpte = regs.pdpte;
                self.vcpus[v].mmu.role = self.root_role(v);
            }
        }
        self
    }

    pub(crate) fn vcpu(config: &MachineConfig, _policy: &Policy, n: u16, regs: Regs) -> Vcpu {
        let has_vpid = config.vpid && config.vendor == Vendor::Intel && u32::from(n) < config.vpids;
        Vcpu {
            regs,
            kvm_pdpte: regs.pdpte,
            vmcs_pdpte: regs.pdpte,
            requests: Default::default(),
            mmu: Default::default(),
            pcpu: PcpuId(n % config.pcpus),
            vpid: Vpid(if has_vpid { n + 1 } else { 0 }),
            vmcs_pcpu: Some(PcpuId(n % config.pcpus)),
            vmcb: Vmcb::default(),
            in_guest: false,
            mode: Default::default(),
            held: false,
            // A guest that has an APIC-access page begins in xAPIC mode.
            xapic: config.apic_page && config.vendor == Vendor::Intel,
            apic_page: None,
            ran: false,
            descheduled: false,
            destroyed: false,
            steal: Default::default(),
            hv: Default::default(),
            waits_for: None,
            ipi_flush: false,
            pause: Default::default(),
            smm: false,
            smram: Default::default(),
            nested: Default::default(),
            context: Default::default(),
        }
    }

    /// The policy's registers and limits, as the fault rules need them.
    pub(crate) fn limits(&self) -> Limits {
        use crate::policy::mechanics::PgClearIn64Bit;
        Limits {
            maxphyaddr: self.config.maxphyaddr as u8,
            vendor: self.config.vendor,
            cr4_allowed: self.config.cr4_allowed(),
            efer_allowed: self.config.efer_allowed(),
            pg_clear_in_64_bit: self.policy.mechanics.pg_clear_in_64_bit == PgClearIn64Bit::Accept,
        }
    }

    /// The control policy that does everything but flush, sync and drop roots for invalidation.
    pub(crate) fn never(&self) -> bool {
        self.policy.control == Control::Never
    }

    pub(crate) fn at_vcpu(&self, v: usize) -> At {
        At { actor: Actor::Vcpu(VcpuId(v as u16)), ..self.at }
    }

    /// Reports an act of the actor whose event this is.
    pub(crate) fn act<O: Observer>(&self, o: &mut O, act: Act) {
        o.act(&self.at, &act, self);
    }

    /// Reports an operation of the host.
    pub(crate) fn arch<O: Observer>(&self, o: &mut O, v: Option<usize>, op: &ArchOp, native: bool) {
        let at = v.map_or(self.at, |v| self.at_vcpu(v));
        let before = self.vcpus[v.unwrap_or(0)].regs;
        o.arch(&at, op, &before, native, self);
    }

    /// Carries one event out. `index` is its number in the trace, the cause named in findings.
    ///
    /// # Errors
    /// [`Refused`] if the event names a vCPU that does not exist or an operation that the machine
    /// cannot carry out; nothing has changed then.
    pub fn run<O: Observer>(
        &mut self,
        event: &Event,
        index: u64,
        o: &mut O,
    ) -> Result<Step, Refused> {
        let quiet = std::mem::replace(&mut self.quiet, false);
        if quiet && let Some(step) = self.hit(event, index, o) {
            self.quiet = true;
            return Ok(step);
        }
        let step = match self.running(event).filter(|_| quiet) {
            Some(v) => {
                self.at = At { event: index, time: event.time, actor: event.actor };
                let step = self.operate(v, &event.op, o);
                if matches!(step, Ok(Step { waits: true, .. })) {
                    self.backlog.push(v, index, event.clone());
                }
                step
            }
            None => {
                if !quiet {
                    self.boot(o);
                    self.clock_reaches(index);
                }
                self.carry_out(event, index, o)
            }
        };
        self.missed = false;
        let undisturbed = self.undisturbed();
        self.refills.over(quiet && undisturbed);
        let step = step?;
        self.quiet = undisturbed;
        if !self.quiet {
            self.settle(o);
            self.drain(o);
            self.worker_runs(index);
            self.quiet = self.undisturbed();
        }
        Ok(step)
    }

    /// One event, without the entries that follow it.
    fn carry_out<O: Observer>(
        &mut self,
        event: &Event,
        index: u64,
        o: &mut O,
    ) -> Result<Step, Refused> {
        self.at = At { event: index, time: event.time, actor: event.actor };
        if self.kicks_take_time() {
            self.flushes_land(event.time.0, o);
        }
        match event.actor {
            Actor::Vcpu(id) => {
                let v = usize::from(id.0);
                if self.vcpus.get(v).is_none_or(|vcpu| vcpu.destroyed) {
                    let why = format!("{id} does not exist: there are {} vCPUs", self.vcpus.len());
                    return Err(Refused { op: run::name(&event.op), why });
                }
                if self.backlog.holds(v) {
                    self.backlog.push(v, index, event.clone());
                    return Ok(Step { waits: true, ..Step::default() });
                }
                let step = self.run_vcpu(v, &event.op, o)?;
                if step.waits {
                    self.backlog.push(v, index, event.clone());
                }
                Ok(step)
            }
            Actor::Host => self.run_host(&event.op, o),
        }
    }

    /// The worker that zaps roots gets to run when the event after the one that gave it work is over: what
    /// that event finds, the host's zap of a range above all, is a tree that is dead and full. It takes
    /// whatever it has then.
    pub(super) fn worker_runs(&mut self, index: u64) {
        if self.root_work.is_some_and(|since| since != index) {
            self.root_work = None;
            self.trees.work();
        }
    }

    fn boot<O: Observer>(&mut self, o: &mut O) {
        if std::mem::replace(&mut self.booted, true) {
            return;
        }
        for v in 0..self.vcpus.len() {
            self.at = At { event: BOOT, time: Time(0), actor: Actor::Vcpu(VcpuId(v as u16)) };
            self.take_pcpu(v, o);
            self.enter(v, false, o);
        }
    }

    /// Translations that the TLB of this physical CPU holds; 0 for one that does not exist.
    #[must_use]
    pub fn occupancy(&self, pcpu: PcpuId) -> u64 {
        self.pcpus.get(usize::from(pcpu.0)).map_or(0, |pcpu| pcpu.tlb.live())
    }

    /// A stable digest of the final state: equal machines after equal runs have equal digests.
    #[must_use]
    pub fn digest(&self) -> u64 {
        use std::hash::{Hash, Hasher};
        let mut hasher = rustc_hash::FxHasher::default();
        self.vcpus.hash(&mut hasher);
        self.memory.digest().hash(&mut hasher);
        for pcpu in &self.pcpus {
            pcpu.tlb.digest().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The vendor's `#GP` as a step.
    fn step(result: Result<(), Gp>) -> Step {
        Step { fault: result.err().map(|gp| gp.0), ..Step::default() }
    }

    fn clts(&self, v: usize) -> u64 {
        self.vcpus[v].regs.cr0 & !Cr0::TS.bits()
    }

    /// LMSW loads PE, MP, EM and TS, and cannot clear PE.
    fn lmsw(&self, v: usize, value: u16) -> u64 {
        let cr0 = self.vcpus[v].regs.cr0;
        let low = (Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS).bits();
        cr0 & !(low & !Cr0::PE.bits()) | u64::from(value) & low
    }

    fn long_mode_active(cr0: u64, efer: u64) -> u64 {
        let active = cr0 & Cr0::PG.bits() != 0 && efer & Efer::LME.bits() != 0;
        efer & !Efer::LMA.bits() | if active { Efer::LMA.bits() } else { 0 }
    }
}
