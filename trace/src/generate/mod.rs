//! Seeded traces of any length: what a kind of guest does to its translations, made up event by
//! event. The same profile, seed and number of vCPUs give the same events on every machine, and a
//! shorter trace is the beginning of a longer one.
//!
//! Every guest here is correct (but see [`Profile::Adversarial`]): it follows each change of a
//! mapping by the invalidation that its processor's manual asks of it, so that a miss is the
//! hypervisor's. A page is mapped when it is first touched, as by demand paging. Recordings show the
//! register writes of a guest and not its accesses, so the mix of writes is fitted where there is a
//! recording, and the number of accesses between two of them is an assumption, named in the
//! profile's [`Profile::about`].
//!
//! State is bounded by vCPUs and profile, not by length: spaces, their pages and their tables are
//! used again.

mod guest;
mod profiles;
mod random;

use crate::addr::{Time, VcpuId};
use crate::native::Header;
use crate::op::{Actor, Event, HostOp, Op};
use crate::recording::Meta;
use crate::regs::{MmuKind, Vendor};

use guest::Guest;
use random::Random;

/// Nanoseconds from one event to the next. Only the order means anything.
const STEP_NS: u64 = 10;

/// A kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// System calls under kernel page-table isolation.
    PtiSyscalls,
    /// Processes that take turns, without isolation.
    ContextSwitch,
    /// Processes that are copied on write, and end.
    ForkExit,
    /// Mappings that come and go, shared by all vCPUs.
    MmapChurn,
    /// From INIT to a kernel's final CR4, over and over.
    Boot,
    /// Global flushes by CR4.PGE.
    PgeToggle,
    /// vCPUs that move between physical CPUs.
    Migration,
    /// A host that collects dirty pages.
    DirtyLog,
    /// Register writes and page-table edits at random.
    Adversarial,
}

impl Profile {
    /// Every profile with its name and what it is.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::PtiSyscalls, "pti-syscalls"),
        (Self::ContextSwitch, "context-switch"),
        (Self::ForkExit, "fork-exit"),
        (Self::MmapChurn, "mmap-churn"),
        (Self::Boot, "boot"),
        (Self::PgeToggle, "pge-toggle"),
        (Self::Migration, "migration"),
        (Self::DirtyLog, "dirty-log"),
        (Self::Adversarial, "adversarial"),
    ];

    /// The profile of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(profile, _)| *profile)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// What it does, in which mix, and why.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::PtiSyscalls => {
                "System calls of a Linux guest with page-table isolation and PCID. Fitted to a \
                 recording of such a guest (kernel 6.1 under kvm_intel, shadow paging): of 15565 \
                 CR3 writes with a PCID 94% change the half (kernel or user PCID), 5% the process \
                 (27% of these flush); 0.137 user pages change a CR3 write (INVLPG, then INVPCID 0 \
                 for the user PCID), and there is an INVPCID 2 each 650. Assumed: 8 to 40 accesses \
                 between two CR3 writes, from a working set of 256 pages of which 32 take half."
            }
            Self::ContextSwitch => {
                "Processes that take turns on a vCPU without page-table isolation, 6 PCIDs, global \
                 kernel pages. Fitted to a recording of a Linux guest booted with nopti: of 930 CR3 \
                 writes 84% change the process and 61% are NOFLUSH; 2.3 user pages change a CR3 \
                 write (INVLPG), and there is an INVPCID 2 each 46. Assumed: 60 to 300 accesses \
                 between two CR3 writes."
            }
            Self::ForkExit => {
                "Fork, copy on write, exit. The parent's pages lose their write right, followed by \
                 a flushing CR3 write as Linux does for more than 33 pages; the child starts with a \
                 flushing write of a PCID that is used again, faults on a third of its pages and \
                 gets copies (map, INVLPG), and its pages are unmapped when it ends. No recording \
                 is fitted: a fork shows as flushing CR3 writes only."
            }
            Self::MmapChurn => {
                "One address space on all vCPUs. 1 to 64 pages are unmapped, every vCPU \
                 invalidates them (INVLPG each up to 33, a flushing CR3 write beyond: Linux's \
                 tlb_single_page_flush_ceiling), then other frames take their place. Half of the \
                 accesses go to pages that were just remapped. No recording is fitted."
            }
            Self::Boot => {
                "INIT, then the register writes of a Linux guest's boot in the order and with the \
                 values of the recorded boot (CR4 0x20, paging on, 0xa0, 0xb0, 0x200b0, 0x1300b0, \
                 0x3300b0, 0x3308b0, 0x3308f0, 0x370ef0), 16 accesses between two of them and 306 \
                 INVLPGs of fixed mappings as recorded; over and over."
            }
            Self::PgeToggle => {
                "Global flushes as Linux does them without INVPCID: a global kernel page gets another frame, \
                 then CR4.PGE goes off and on. One flush for each 32 to 96 accesses, half of \
                 them to global pages. No recording is fitted: with INVPCID, Linux does not do it."
            }
            Self::Migration => {
                "vCPUs that the host moves between physical CPUs, one more than there are vCPUs, \
                 each 100 to 500 accesses; a page changes (INVLPG) between most moves, so that what \
                 stayed behind on a physical CPU is stale. No recording is fitted: the recordings \
                 have no move between physical CPUs in quantity."
            }
            Self::DirtyLog => {
                "A host that fetches and clears the dirty log of all guest memory in use each 2000 to 6000 \
                 accesses, of which a third are writes, as live migration does. No recording is \
                 fitted: none has dirty logging."
            }
            Self::Adversarial => {
                "Writes of CR0.WP, CR3, CR4 and EFER.NXE, page-table edits with and without an \
                 invalidation, INVLPG and INVPCID of all types, prefetches and accesses, at \
                 random. Made to separate policies: it finds the known defects of the policies \
                 that have any, so misses are no surprise here, and the accesses without an \
                 invalidation show stale translations that are the guest's own fault (no finding)."
            }
        }
    }

    /// Shadow paging or TDP, where it is not said: what the profile is made to show.
    #[must_use]
    pub const fn mmu(self) -> MmuKind {
        match self {
            Self::Migration | Self::DirtyLog => MmuKind::Tdp,
            _ => MmuKind::Shadow,
        }
    }

    const fn number(self) -> u64 {
        self as u64
    }
}

/// What is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The kind of guest.
    pub profile: Profile,
    /// How many events.
    pub events: u64,
    /// What the random choices start from.
    pub seed: u64,
    /// vCPUs, 1 to [`Options::VCPUS_MAX`].
    pub vcpus: u16,
    /// Whose hardware.
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    pub mmu: MmuKind,
}

impl Options {
    /// Most vCPUs.
    pub const VCPUS_MAX: u16 = 512;

    /// The options of a profile, one vCPU on Intel.
    #[must_use]
    pub const fn new(profile: Profile, events: u64) -> Self {
        Self { profile, events, seed: 1, vcpus: 1, vendor: Vendor::Intel, mmu: profile.mmu() }
    }

    /// The header of the trace.
    #[must_use]
    pub fn header(&self) -> Header {
        let Self { profile, seed, vcpus, .. } = self;
        let regs = (0..*vcpus).map(|v| guest::start(self.profile, v)).collect();
        let meta = Meta {
            source: format!("generate {} --seed {seed} --vcpus {vcpus}", profile.name()),
            form: "generated".to_owned(),
            vendor: Some(self.vendor),
            mmu: Some(self.mmu),
            vpid: Some(self.vendor == Vendor::Intel),
            vcpus: *vcpus,
            initial_regs: regs,
            evidence: vec![profile.about().to_owned()],
            ..Meta::default()
        };
        Header {
            meta,
            tool: Header::this_tool(),
            ordered: true,
            pcpus: vcpus + u16::from(*profile == Profile::Migration),
            records: Some(self.events),
            operations: Some(self.events),
            ..Header::default()
        }
    }
}

/// The events of a generated trace, in order.
#[derive(Clone, Debug)]
pub struct Generator {
    profile: Profile,
    left: u64,
    time: u64,
    random: Random,
    guests: Vec<Guest>,
    /// Whose turn it is.
    turn: usize,
    /// What a step of a profile wrote, and how much of it was handed out.
    written: Vec<(Actor, Op)>,
    given: usize,
}

impl Generator {
    /// The events that these options describe.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let vcpus = options.vcpus.clamp(1, Options::VCPUS_MAX);
        Self {
            profile: options.profile,
            left: options.events,
            time: 0,
            random: Random::new(options.seed ^ options.profile.number() << 56),
            guests: (0..vcpus).map(|v| Guest::new(options.profile, v)).collect(),
            turn: 0,
            written: Vec::new(),
            given: 0,
        }
    }

    /// Writes an operation of a vCPU.
    fn put(&mut self, v: usize, op: Op) {
        self.written.push((Actor::Vcpu(VcpuId(v as u16)), op));
    }

    /// Writes an operation of the host.
    fn host(&mut self, op: HostOp) {
        self.written.push((Actor::Host, Op::Host(Box::new(op))));
    }
}

impl Iterator for Generator {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.left = self.left.checked_sub(1)?;
        while self.given == self.written.len() {
            self.written.clear();
            self.given = 0;
            let v = self.turn;
            self.turn = (v + 1) % self.guests.len();
            self.step(v);
        }
        let (actor, op) = std::mem::replace(&mut self.written[self.given], (Actor::Host, Op::Out));
        self.given += 1;
        let time = Time(self.time);
        self.time += STEP_NS;
        Some(Event { time, actor, op })
    }
}
