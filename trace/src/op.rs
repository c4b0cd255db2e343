//! What guest and host do: the operations of a trace, as scenarios write them and recordings show
//! them. What a hypervisor decided is never an operation; see [`crate::act`].

use serde::{Deserialize, Serialize};

use crate::addr::{Asid, Gpa, Gva, Hpa, PageSize, Pcid, PcpuId, Time, VcpuId};

/// Who does it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
pub enum Actor {
    /// The guest on this vCPU (or its userspace, for `sregs`).
    Vcpu(VcpuId),
    /// A host thread.
    Host,
}

/// One operation with its instant and actor.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Event {
    /// When; events without a time in their source are numbered in order, 1 ns apart.
    pub time: Time,
    /// Who.
    pub actor: Actor,
    /// What.
    pub op: Op,
}

/// A register write as a pair of masks: `new = old & !clear | set`. A write of a whole value has
/// `clear = !0`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
pub struct RegWrite {
    /// Bits taken away first.
    pub clear: u64,
    /// Bits then set.
    pub set: u64,
}

impl RegWrite {
    /// A write of a whole value.
    #[must_use]
    pub const fn value(value: u64) -> Self {
        Self { clear: !0, set: value }
    }

    /// The value written when the register holds `old`.
    #[must_use]
    pub const fn apply(self, old: u64) -> u64 {
        old & !self.clear | self.set
    }
}

/// Permissions of a mapping, as scenario letters: `r` present, `w` R/W, `x` not XD, `u` U/S, `g` G.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
pub struct Perms {
    /// `r`: the entry is present.
    pub read: bool,
    /// `w`: R/W.
    pub write: bool,
    /// `x`: XD is clear. Ignored where the mode has no XD.
    pub exec: bool,
    /// `u`: U/S.
    pub user: bool,
    /// `g`: G.
    pub global: bool,
}

/// What an access does.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Exec,
}

/// One access by linear address.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Access {
    /// The address.
    pub gva: Gva,
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// From CPL 3.
    pub user: bool,
    /// EFLAGS.AC = 1: SMAP does not apply.
    pub ac: bool,
}

/// The type operand of INVPCID.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "kebab-case")]
pub enum InvpcidType {
    /// 0: one address in one PCID, not global.
    Addr,
    /// 1: one PCID, not global.
    Single,
    /// 2: everything.
    All,
    /// 3: everything but global translations.
    AllNonglobal,
    /// A type that does not exist: #GP.
    Reserved(u64),
}

/// Operands of INVPCID.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Invpcid {
    /// The type.
    pub kind: InvpcidType,
    /// PCID of the descriptor, 64 bits of it: bits above 11 make it #GP.
    pub pcid: u64,
    /// Address of the descriptor.
    pub gva: Gva,
}

/// Operands of INVLPGB (facts C.3). A component that is `None` matches anything.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Invlpgb {
    /// First address.
    pub va: Option<Gva>,
    /// PCID.
    pub pcid: Option<Pcid>,
    /// ASID.
    pub asid: Option<Asid>,
    /// Global translations too.
    pub global: bool,
    /// Pages beyond the first.
    pub count: u16,
}

/// Registers that userspace rewrites with KVM_SET_SREGS.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Sregs {
    /// CR0.
    pub cr0: Option<u64>,
    /// CR3.
    pub cr3: Option<u64>,
    /// CR4.
    pub cr4: Option<u64>,
    /// EFER.
    pub efer: Option<u64>,
}

/// Operands of a Hyper-V flush hypercall.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct HvFlush {
    /// Whose TLBs.
    pub vcpus: Vec<VcpuId>,
    /// `(address, additional pages)`; empty: the whole address space.
    pub list: Vec<(Gva, u16)>,
}

/// Operands of an L1 to L2 entry.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct L2Enter {
    /// vmcs12's VPID, if it enables one.
    pub vpid: Option<u16>,
    /// vmcs12's EPTP, if it enables EPT.
    pub eptp: Option<u64>,
    /// vmcb12's nested CR3, if it enables nested paging.
    pub ncr3: Option<u64>,
    /// L2's CR3.
    pub cr3: Option<u64>,
    /// L2's CR4.
    pub cr4: Option<u64>,
    /// vmcb12's TLB_CONTROL.
    pub tlb_control: Option<u8>,
    /// The entry fails its late checks.
    pub fail: bool,
}

/// What L1 does to its own nested state.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum L1Op {
    /// INVEPT of a type, with an EPTP for single-context.
    Invept {
        /// 1 single-context, 2 global.
        kind: u64,
        /// The operand.
        eptp: Option<u64>,
    },
    /// INVVPID of a type.
    Invvpid {
        /// 0 address, 1 single, 2 all, 3 single but globals.
        kind: u64,
        /// The VPID.
        vpid: u16,
        /// The address of type 0.
        gva: Option<Gva>,
    },
    /// VMFUNC 0 with this index into the EPTP list.
    Vmfunc(u64),
    /// VMXON.
    Vmxon,
    /// VMXOFF.
    Vmxoff,
}

/// A change of a memory slot.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum MemslotChange {
    /// Added.
    Add,
    /// Moved.
    Move,
    /// Deleted.
    Delete,
}

/// What the host does.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum HostOp {
    /// Backs guest memory with this host memory (a fresh page if none is named).
    Map {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
        /// The backing.
        hpa: Option<Hpa>,
    },
    /// Takes the backing away (an mmu_notifier invalidation).
    Unmap {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Takes rights away from the backing.
    Protect {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Makes the backing read-only.
    Ro {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Ages accessed bits.
    Age {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Fetches and clears the dirty log.
    DirtyLog {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Splits huge mappings.
    Split {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Collapses small mappings.
    Collapse {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Zaps every root of the VM.
    ZapAll,
    /// Changes a memory slot.
    Memslot {
        /// How.
        change: MemslotChange,
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Moves a vCPU to another physical CPU.
    Migrate {
        /// Which.
        vcpu: VcpuId,
        /// Where to.
        pcpu: PcpuId,
    },
    /// Schedules a vCPU out.
    Preempt {
        /// Which.
        vcpu: VcpuId,
    },
    /// Schedules a vCPU in.
    Run {
        /// Which.
        vcpu: VcpuId,
        /// Where, if not where it was.
        pcpu: Option<PcpuId>,
    },
    /// Creates a vCPU.
    VcpuCreate {
        /// Which.
        vcpu: VcpuId,
    },
    /// Destroys a vCPU.
    VcpuDestroy {
        /// Which.
        vcpu: VcpuId,
    },
    /// Userspace writes EFER of a vCPU.
    MsrEfer {
        /// Which.
        vcpu: VcpuId,
        /// The value.
        value: u64,
    },
    /// Clears the dirty bits of SPTEs, for no dirty log.
    Clean {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// INVLPGB and TLBSYNC of the host's own kernel, on every physical CPU (AMD).
    Invlpgb {
        /// The address; `None`: any.
        va: Option<Gva>,
        /// The ASID, 0 the host's own; `None`: any, the guests' among them.
        asid: Option<Asid>,
    },
}

/// One operation. Small and cheap to copy for everything frequent; the rare ones are boxed.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Op {
    /// Guest writes CR0.
    Cr0(RegWrite),
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw(u16),
    /// Guest writes CR3: the raw operand, PCID in 11:0 and the no-flush hint in bit 63.
    Cr3(u64),
    /// Guest writes CR4.
    Cr4(RegWrite),
    /// Guest writes EFER.
    Efer(RegWrite),
    /// Stores the entries that map a page; missing tables are allocated.
    Map {
        /// The linear address.
        gva: Gva,
        /// The frame.
        gpa: Gpa,
        /// The size of the page.
        size: PageSize,
        /// The rights of every entry on the path that is made, and of the leaf.
        perms: Perms,
        /// The top-level table; `None`: the current one.
        root: Option<Gpa>,
    },
    /// Clears the leaf entry.
    Unmap {
        /// The linear address.
        gva: Gva,
        /// The top-level table.
        root: Option<Gpa>,
    },
    /// Rewrites the rights of the leaf entry.
    Protect {
        /// The linear address.
        gva: Gva,
        /// The new rights.
        perms: Perms,
        /// The top-level table.
        root: Option<Gpa>,
    },
    /// Declares a page table of this level (1 = PT) at this frame; later `map`s do not allocate it.
    Table {
        /// The frame.
        gpa: Gpa,
        /// The level.
        level: u8,
    },
    /// Points the entry of `level` that translates `gva` at `table`.
    Link {
        /// The linear address.
        gva: Gva,
        /// The level of the entry that is written.
        level: u8,
        /// The table it then points at.
        table: Gpa,
        /// The rights of that entry.
        perms: Perms,
        /// The top-level table.
        root: Option<Gpa>,
    },
    /// A raw store of one entry: 8 bytes, 4 in 32-bit mode.
    Store {
        /// Where.
        gpa: Gpa,
        /// What.
        value: u64,
    },
    /// An access.
    Access(Access),
    /// The hardware fills speculatively if a walk succeeds.
    Prefetch(Gva),
    /// INVLPG.
    Invlpg(Gva),
    /// INVPCID.
    Invpcid(Invpcid),
    /// INVLPGA.
    Invlpga {
        /// The address.
        gva: Gva,
        /// The ASID.
        asid: Asid,
    },
    /// INVLPGB.
    Invlpgb(Box<Invlpgb>),
    /// TLBSYNC.
    Tlbsync,
    /// INIT.
    Init,
    /// RESET (power-up).
    Reset,
    /// SMI: enters SMM.
    Smi,
    /// RSM: leaves SMM.
    Rsm,
    /// A hardware task switch that loads this CR3.
    TaskSwitch(u64),
    /// Writes an MTRR.
    MsrMtrr(u64),
    /// Writes IA32_PAT.
    MsrPat(u64),
    /// Writes PKRU.
    Pkru(u32),
    /// Userspace sets CPUID.
    Cpuid,
    /// Loads CS: 64-bit code, or 32-bit code (compatibility mode in long mode).
    Code {
        /// CS.L.
        long: bool,
    },
    /// Writes IA32_APIC_BASE.
    MsrApicBase(u64),
    /// Userspace rewrites registers.
    Sregs(Box<Sregs>),
    /// The operation is carried out by the hypervisor's emulator.
    Emul(Box<Op>),
    /// Paravirtual remote flush of these vCPUs.
    PvFlush(Box<Vec<VcpuId>>),
    /// Hyper-V remote flush.
    HvFlush(Box<HvFlush>),
    /// L1 enters L2.
    L2Enter(Box<L2Enter>),
    /// L2 exits to L1.
    L2Exit(Option<u64>),
    /// L1 works on its nested state.
    L1(Box<L1Op>),
    /// After its next exit the vCPU stays in the host.
    Out,
    /// Runs the entry loop.
    In,
    /// Runs the entry loop; VMLAUNCH or VMRUN fails.
    InFail,
    /// Any other exit; the reason is the recorder's number, if it gave one.
    Exit(Option<u64>),
    /// Software declares frames reused from here on.
    Release {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// The host does something.
    Host(Box<HostOp>),
    /// The first half of a locked host operation: up to and with the release of mmu_lock.
    HostBegin(Box<HostOp>),
    /// The second half.
    HostEnd(Box<HostOp>),
    /// A page fault of the guest's own, which its tables call for: told by a recording, which does
    /// not show the tables.
    PageFault {
        /// Where.
        gva: Gva,
        /// The error code.
        error: u32,
    },
    /// HLT: the vCPU exits and sleeps until something wakes it.
    Hlt,
    /// INVLPGB with a stride of 2 MiB: [`Invlpgb::count`] counts blocks.
    InvlpgbLarge(Box<Invlpgb>),
    /// The handler of the next exit begins to read the shadow tables for this address without a lock.
    WalkBegin(Gva),
    /// It reads the entry at which it has arrived, and acts on it.
    WalkEnd,
}
