//! One vocabulary for what hypervisor and hardware do. A recorded act is an *observation*, a
//! modelled one an *effect*; the judge reads both alike.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::{Asid, Ep4ta, Gpa, Gva, Hpa, PageSize, Pcid, PcpuId, Sp, Time, Vpid};
use crate::nested::NestedOp;
use crate::op::{Access, Actor, Invpcid};

/// Where in a run something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct At {
    /// Index of the event that is being carried out: the *cause* named in findings.
    pub event: u64,
    /// The instant.
    pub time: Time,
    /// The vCPU on whose behalf it happens, or the host.
    pub actor: Actor,
}

/// The flush-relevant requests of KVM (facts/kvm.md 5.1).
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
#[repr(u8)]
pub enum Request {
    /// KVM_REQ_TLB_FLUSH: every context of this vCPU.
    TlbFlush,
    /// KVM_REQ_TLB_FLUSH_CURRENT: the active context.
    TlbFlushCurrent,
    /// KVM_REQ_TLB_FLUSH_GUEST: what the guest could have cached.
    TlbFlushGuest,
    /// KVM_REQ_MMU_SYNC.
    MmuSync,
    /// KVM_REQ_LOAD_MMU_PGD.
    LoadMmuPgd,
    /// KVM_REQ_MMU_RELOAD (up to 5.17).
    MmuReload,
    /// KVM_REQ_MMU_FREE_OBSOLETE_ROOTS (from 5.18).
    MmuFreeObsoleteRoots,
    /// KVM_REQ_HV_TLB_FLUSH in its second life, fifo based.
    HvTlbFlush,
    /// KVM_REQ_MMU_UPDATE_ROOT of the unmerged patch 18 (facts 9.4).
    MmuUpdateRoot,
    /// KVM_REQ_STEAL_UPDATE.
    StealUpdate,
    /// KVM_REQ_APIC_PAGE_RELOAD.
    ApicPageReload,
}

impl Request {
    /// Every request with the name that policies and findings use.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::TlbFlush, "TLB_FLUSH"),
        (Self::TlbFlushCurrent, "TLB_FLUSH_CURRENT"),
        (Self::TlbFlushGuest, "TLB_FLUSH_GUEST"),
        (Self::MmuSync, "MMU_SYNC"),
        (Self::LoadMmuPgd, "LOAD_MMU_PGD"),
        (Self::MmuReload, "MMU_RELOAD"),
        (Self::MmuFreeObsoleteRoots, "MMU_FREE_OBSOLETE_ROOTS"),
        (Self::HvTlbFlush, "HV_TLB_FLUSH"),
        (Self::MmuUpdateRoot, "MMU_UPDATE_ROOT"),
        (Self::StealUpdate, "STEAL_UPDATE"),
        (Self::ApicPageReload, "APIC_PAGE_RELOAD"),
    ];

    /// The name without its `KVM_REQ_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The request of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(r, _)| *r)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The flush hooks of a vendor module (facts/kvm.md 6.2, 6.3).
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
pub enum Hook {
    /// flush_tlb_all.
    All,
    /// flush_tlb_current.
    Current,
    /// flush_tlb_guest.
    Guest,
    /// flush_tlb_gva.
    Gva(Gva),
}

/// Why a hook was called.
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
pub enum HookBy {
    /// A request was served: ticks the counter `tlb_flush`.
    Request,
    /// The end of LOAD, which always flushes; not counted.
    Load,
    /// The vendor's register hook (svm_set_cr4 on PGE).
    Register,
    /// Called directly: INVLPG, a `flush-hook` rule, VMX reset.
    Direct,
}

/// Which entry of the root cache (facts/kvm.md 2.4).
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
pub enum RootSlot {
    /// The active root.
    Current,
    /// `prev_roots[n]`.
    Prev(u8),
}

/// What looking for a root found.
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
pub enum RootLookup {
    /// The active root fits.
    Current,
    /// `prev_roots[n]` fits and became active.
    Prev(u8),
    /// None fits: the active root is invalid until LOAD.
    Miss,
}

/// An invalidation that the hardware carries out.
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
pub enum Inv {
    /// INVVPID 0.
    VpidAddress {
        /// Whose.
        vpid: Vpid,
        /// Which page.
        gva: Gva,
    },
    /// INVVPID 1.
    VpidSingle(Vpid),
    /// INVVPID 2.
    VpidAll,
    /// INVVPID 3.
    VpidNonglobal(Vpid),
    /// INVEPT 1.
    EptSingle(Ep4ta),
    /// INVEPT 2.
    EptGlobal,
    /// A VM entry or exit with VPIDs disabled: everything of VPID 0.
    VpidZeroTransition,
    /// TLB_CONTROL 1, acted on by a successful VMRUN: every ASID.
    TlbControlAll,
    /// TLB_CONTROL 3.
    TlbControlAsid(Asid),
    /// TLB_CONTROL 7.
    TlbControlNonglobal(Asid),
    /// INVLPGA.
    Invlpga {
        /// Whose.
        asid: Asid,
        /// Which page.
        gva: Gva,
    },
    /// What a guest instruction that did not exit invalidates by itself: its own operation is the
    /// event being carried out.
    Guest(GuestInv),
    /// An ideal flush of exactly what is owed (`scope = "exact"`).
    Exact,
}

/// The scope of an invalidation by a guest instruction, within the current VPID or ASID.
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
pub enum GuestInv {
    /// Everything, global translations too.
    All,
    /// Everything but global translations.
    Nonglobal,
    /// One PCID and the global translations made under it.
    Pcid(Pcid),
    /// One PCID without global translations.
    PcidNonglobal(Pcid),
    /// INVLPG: a page of this PCID and of global translations.
    Address {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// INVPCID 0: a page of this PCID, not global.
    AddressNonglobal {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// A page fault: the page under this PCID and the path to it.
    Fault {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
    /// INVLPG with EFER.TCE (AMD): as `Address`, but of the paging-structure entries only the path.
    AddressPath {
        /// Whose.
        pcid: Pcid,
        /// Which page.
        gva: Gva,
    },
}

/// Which cache of the hardware, by what it maps (facts D.1).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
pub enum Class {
    /// Guest-virtual to host-physical through one table (Intel without EPT).
    #[default]
    Linear,
    /// Guest-virtual to host-physical through two (Intel with EPT).
    Combined,
    /// Guest-physical to host-physical (Intel with EPT).
    GuestPhysical,
    /// AMD: whatever carries an ASID.
    Asid,
}

/// The tag under which a translation is cached.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bincode::Encode,
    bincode::Decode,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Tag {
    /// On which physical CPU.
    pub pcpu: PcpuId,
    /// What kind of mapping.
    pub class: Class,
    /// VPID (Intel; 0 for guest-physical mappings) or ASID (AMD).
    pub id: u32,
    /// EP4TA with EPT, else 0. AMD has no such tag: nested mappings carry the ASID.
    pub ep4ta: Ep4ta,
    /// PCID current at the fill, kept for global translations too.
    pub pcid: Pcid,
}

/// The context a vCPU runs in between a successful entry and the next exit.
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
pub struct Context {
    /// The tag of what it fills now. `tag.class` is [`Class::Linear`] or [`Class::Asid`] in shadow
    /// mode, [`Class::Combined`] or [`Class::Asid`] under TDP.
    pub tag: Tag,
    /// The root the hardware walks: shadow root, EPT root or nested CR3.
    pub root: Hpa,
    /// The shadow page that is the root; `None` under TDP, or when it is a direct root.
    pub shadow_root: Option<Sp>,
}

/// Something that hypervisor or hardware does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Act {
    /// A request bit is set.
    Post(Request),
    /// A request bit is cleared and its handler runs.
    Serve(Request),
    /// kvm_mmu_reset_context. `role_changed`: the root's role word differs after it; `None` where
    /// the recording does not show it.
    Reset {
        /// Whether a new root is needed for the role.
        role_changed: Option<bool>,
    },
    /// kvm_init_mmu.
    Init,
    /// The root's role word changed.
    RoleChange,
    /// kvm_mmu_unload.
    Unload,
    /// A root reference is dropped, on purpose or by eviction.
    FreeRoot {
        /// From where.
        slot: RootSlot,
        /// The page.
        root: Hpa,
        /// Its shadow page, if it has one that the machine knows.
        sp: Option<Sp>,
        /// Why.
        why: FreeWhy,
    },
    /// kvm_mmu_free_roots as recorded: bit 0 the active root, bits 1 to 3 prev_roots.
    FreeRoots {
        /// The mask.
        mask: u8,
    },
    /// kvm_mmu_new_pgd and what it found; `None` where a recording cannot tell.
    NewPgd(Option<RootLookup>),
    /// The start of kvm_mmu_load.
    Load,
    /// The vendor's load_mmu_pgd.
    LoadPgd {
        /// The root that is installed.
        root: Hpa,
    },
    /// kvm_mmu_sync_roots ran over a root that needed it, or was called.
    SyncRoots,
    /// kvm_mmu_sync_prev_roots: unsync cached roots are freed.
    SyncPrevRoots,
    /// kvm_mmu_free_obsolete_roots.
    FreeObsoleteRoots,
    /// kvm_invalidate_pcid.
    InvalidatePcid(Pcid),
    /// The shadow side of INVLPG and INVPCID 0.
    InvalidateGva(Gva),
    /// load_pdptrs. `changed`: some PDPTE differs; `None` where not shown.
    LoadPdptrs {
        /// Whether some PDPTE differs from before.
        changed: Option<bool>,
    },
    /// A flush hook of the vendor is called. Its [`Act::Inv`]s follow, or, on SVM, are carried out
    /// by the next successful VMRUN.
    Hook {
        /// Which.
        hook: Hook,
        /// Why.
        by: HookBy,
        /// Whether anything will be invalidated by it: false with an invalid root on VMX, VPID 0,
        /// or a TLB_CONTROL that was set already.
        effective: bool,
    },
    /// The hardware invalidates.
    Inv(Inv),
    /// A VMCB gets a new ASID.
    NewAsid(Asid),
    /// kvm_flush_remote_tlbs. `ipi`: some vCPU had to be interrupted.
    RemoteFlush {
        /// Whether an IPI was needed.
        ipi: Option<bool>,
    },
    /// An IPI to a physical CPU.
    Ipi(PcpuId),
    /// kvm_mmu_zap_all_fast.
    ZapAll,
    /// A shadow page is made.
    SpNew {
        /// It.
        sp: Sp,
        /// The guest table it shadows.
        gfn: u64,
        /// 1 = PT.
        level: u8,
        /// The raw role word.
        role: u32,
    },
    /// An existing shadow page is found again.
    SpFound {
        /// It.
        sp: Sp,
    },
    /// An entry of a shadow page points at another one.
    SpLink {
        /// The upper one.
        parent: Sp,
        /// Which entry.
        index: u16,
        /// The lower one.
        child: Sp,
    },
    /// Such a link is removed.
    SpUnlink {
        /// The upper one.
        parent: Sp,
        /// Which entry.
        index: u16,
        /// The lower one.
        child: Sp,
    },
    /// A leaf SPTE is made from the guest's present entry.
    SpteSet {
        /// In which page.
        sp: Sp,
        /// Which entry.
        index: u16,
    },
    /// A leaf SPTE is cleared.
    SpteClear {
        /// In which page.
        sp: Sp,
        /// Which entry.
        index: u16,
    },
    /// A shadow page loses its write protection: its entries freeze.
    SpUnsync {
        /// It.
        sp: Sp,
    },
    /// A shadow page is re-read and write-protected again: its entries are live.
    SpSync {
        /// It.
        sp: Sp,
        /// Whether some SPTE changed.
        changed: bool,
    },
    /// A shadow page dies.
    SpZap {
        /// It.
        sp: Sp,
    },
    /// kvm_page_fault: a shadow #PF, EPT violation or NPF reaches the hypervisor.
    PageFault {
        /// GVA in shadow mode, GPA under TDP.
        address: u64,
        /// The error code as printed.
        error: u64,
    },
    /// The hypervisor injects an exception.
    Inject {
        /// The vector.
        vector: u8,
        /// The error code.
        error: Option<u32>,
    },
    /// A VM entry succeeded: guest instructions run from here on.
    Entry(Context),
    /// An entry succeeded, seen in a recording that does not show the context.
    EntrySeen,
    /// An entry attempt ended without guest instructions. `failed`: the hardware refused it.
    EntryAborted {
        /// VMLAUNCH or VMRUN failed.
        failed: bool,
    },
    /// A VM exit, with the vendor's number of its reason where recorded.
    Exit(Option<u16>),
    /// The vCPU runs on this physical CPU from here on.
    VcpuLoad(PcpuId),
    /// Another VMCS of the vCPU is loaded that was active elsewhere last, or nowhere yet.
    VmcsLoad,
    /// A TLB entry or page-table walk was refilled. `ghost`: an invalidation had dropped the same
    /// translation before.
    Refill {
        /// Memory references of the walk.
        refs: u8,
        /// Event whose flush dropped the same translation, if one did.
        ghost: Option<u64>,
    },
    /// A fault through a copy that memory no longer bears out: legal once, retried.
    SpuriousFault,
    /// Recordings only: a root as the entry function printed it. The active one is told at every
    /// such print, a cached one where it differs from what was told before.
    RootSeen {
        /// Which.
        slot: RootSlot,
        /// The guest CR3 that it is for, where printed.
        pgd: Option<u64>,
        /// The page; `None`: the slot is invalid.
        root: Option<Hpa>,
    },
    /// Recordings only: kvm_make_all_cpus_request for another request than TLB_FLUSH.
    RequestAll(Request),
    /// Recordings only: the value of CR0 or CR4 that the write under way replaces. Where the guest
    /// owns bits, its own writes are seen here alone.
    OldSeen {
        /// 0 or 4.
        register: u8,
        /// The value.
        old: u64,
    },
    /// Recordings only: a register as it is first printed behind lost events.
    RegSeen {
        /// 0, 3, 4, or 8 for EFER.
        register: u8,
        /// The value.
        value: u64,
    },
    /// A page becomes the root of a new EPT or NPT, whatever it was before.
    RootNew(Hpa),
    /// The memory of a zapped shadow page is free for anything; told while somebody reads shadow pages
    /// without a lock.
    SpFree {
        /// It.
        sp: Sp,
    },
    /// A reader without a lock uses what stands in this page now, as the table it arrived at.
    SpRead {
        /// The page as it was when the reader arrived.
        sp: Sp,
    },
    /// An INVLPGB of the host's kernel reaches what this vCPU cached: its [`Act::Inv`] follows.
    Broadcast,
    /// The hypervisor, or the processor for it, uses a page by an address that it has kept from an earlier
    /// look at what backs guest memory: an SPTE hands its accessed and dirty state on to the page that
    /// it maps, VMX compares with the VMCS's APIC-access address.
    HeldPage {
        /// The guest's address.
        gpa: Gpa,
        /// The page.
        hpa: Hpa,
    },
}

/// Why a root reference is dropped.
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
pub enum FreeWhy {
    /// Inside a reset.
    Reset,
    /// An unload, whoever asked for it.
    Unload,
    /// The least recently used root makes room.
    Evict,
    /// kvm_invalidate_pcid.
    InvalidatePcid,
    /// An unsync cached root during a guest flush.
    SyncPrev,
    /// load_pdptrs saw other PDPTEs.
    Pdptrs,
    /// The root is obsolete.
    Obsolete,
    /// The root cannot be cached (PAE roots, or the level rule of V510 to V517).
    NotCacheable,
    /// INVVPID of L1, without EPT.
    NestedInvvpid,
    /// INVEPT of L1.
    NestedInvept,
    /// The vCPU is destroyed.
    Destroy,
}

/// An architectural operation as it took effect, whoever carried it out: what the manuals' tables
/// of required invalidations speak of. A faulting operation has no effect and is not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArchOp {
    /// MOV CR0, LMSW, CLTS.
    Cr0 {
        /// Before.
        old: u64,
        /// After.
        new: u64,
    },
    /// MOV CR3 or a task switch that changes it. Values as stored.
    Cr3 {
        /// Before.
        old: u64,
        /// After.
        new: u64,
        /// Bit 63 of the operand with PCIDE = 1.
        noflush: bool,
        /// Carried out by a hardware task switch.
        task_switch: bool,
    },
    /// MOV CR4.
    Cr4 {
        /// Before.
        old: u64,
        /// After.
        new: u64,
    },
    /// WRMSR EFER (not the LMA that follows CR0.PG).
    Efer {
        /// Before.
        old: u64,
        /// After.
        new: u64,
    },
    /// INVLPG of a canonical address.
    Invlpg(Gva),
    /// INVPCID.
    Invpcid(Invpcid),
    /// The guest takes a page fault for this address.
    PageFault(Gva),
    /// INIT.
    Init,
    /// RESET.
    Reset,
    /// SMI entry.
    Smi,
    /// RSM.
    Rsm,
    /// An MTRR changes.
    Mtrr,
    /// IA32_PAT changes.
    Pat,
    /// PKRU changes.
    Pkru,
    /// Userspace rewrote registers.
    Sregs,
    /// L1 and L2 change places, or L1 invalidates what its processor holds of L2.
    Nested(NestedOp),
    /// The host declares that the backing of these pages changes; due at [`ArchOp::HostDead`].
    HostChange {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
        /// Only rights are taken away.
        rights: bool,
    },
    /// The host acts as if no translation through the old backing were left.
    HostDead {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Another vCPU of the guest asked the hypervisor to flush this one (paravirtual or Hyper-V
    /// flush): from here on it must use nothing older.
    RemoteFlush {
        /// One page under the current PCID and as a global translation; `None`: everything.
        page: Option<Gva>,
    },
    /// Software declares frames reused.
    Release {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        size: u64,
    },
}

/// What the judge leaves with a cached copy, given back with each use of it. The machine keeps it
/// and never reads it.
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
pub struct Mark {
    /// Of the guest's entries.
    pub g: u64,
    /// Of the host's mappings.
    pub h: u64,
    /// Of L1's nested tables; 0 outside L2.
    pub n: u64,
}

impl Mark {
    /// No bit set.
    pub const ZERO: Self = Self { g: 0, h: 0, n: 0 };
}

/// What was read to make a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Source {
    /// The guest's own tables (TDP): read now. Guest-physical mappings that were used on the way
    /// have been reported by [`crate::observe::Observer::walk_uses`].
    Guest,
    /// A shadow page's leaf entry. Under TDP: of the tables that shadow L1's nested ones.
    Shadow {
        /// The page of the leaf.
        sp: Sp,
        /// Which entry.
        index: u16,
    },
    /// The host's own table: a guest-physical mapping.
    Host,
}

/// What kind of copy is filled.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum FillKind {
    /// A translation (TLB).
    Translation,
    /// A paging-structure-cache entry reached through an entry of this level (2 = PDE).
    Structure(u8),
}

/// The tables on the way to where a paging-structure-cache entry leads, by level (1 = PT) less
/// one: under TDP the guest-physical address of the table, in shadow mode the number of the shadow
/// page; bit 0 and all above shifted by one, so that 0 is no table (see [`path_entry`]).
pub type Path = [u64; 5];

/// A table as [`Path`] keeps it.
#[must_use]
pub const fn path_entry(table: u64) -> u64 {
    table << 1 | 1
}

/// The table that [`path_entry`] was given.
#[must_use]
pub const fn path_table(entry: u64) -> Option<u64> {
    if entry & 1 == 0 { None } else { Some(entry >> 1) }
}

/// What a walk uses instead of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Instead {
    /// A guest-physical mapping.
    GuestPhysical,
    /// A paging-structure-cache entry.
    Structure {
        /// The address that is translated.
        gva: Gva,
        /// log2 of the bytes that the entry covers.
        shift: u32,
        /// The tables above and at where it leads.
        path: Path,
    },
}

/// A copy that the hardware caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    /// Its tag.
    pub tag: Tag,
    /// TLB or paging-structure cache.
    pub kind: FillKind,
    /// The address: guest-virtual, or guest-physical for guest-physical mappings.
    pub address: u64,
    /// The page (or covered region).
    pub size: PageSize,
    /// Usable under every PCID: PTE.G and CR4.PGE at the fill.
    pub global: bool,
    /// What it was read from.
    pub source: Source,
    /// The copy it makes, for an access of its own: frame, rights, dirty.
    pub copy: Copied,
}

/// The content of a cached translation, as the hardware would use it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Copied {
    /// Guest frame (page-aligned).
    pub gpa: Gpa,
    /// Host frame.
    pub hpa: Hpa,
    /// R/W over the path.
    pub write: bool,
    /// U/S over the path.
    pub user: bool,
    /// XD over the path.
    pub xd: bool,
    /// The leaf's dirty bit: a write needs no walk.
    pub dirty: bool,
    /// The protection key.
    pub key: u8,
}

/// What an access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// It reached this guest-physical address.
    Gpa(Gpa),
    /// It faulted with this #PF error code.
    Fault(u32),
}

/// Through what an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Via {
    /// A cached translation.
    Copy {
        /// The judge's mark on it.
        mark: Mark,
        /// Where it sits.
        tag: Tag,
        /// Whether it is global.
        global: bool,
        /// Its content.
        copy: Copied,
        /// Filled in this very access.
        fresh: bool,
    },
    /// No copy: the walk (by hardware, or by the hypervisor's software walker) found a fault.
    Walk,
}

/// One access as it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Accessed {
    /// What the guest asked for.
    pub access: Access,
    /// Through what.
    pub via: Via,
    /// The result.
    pub outcome: Outcome,
    /// The host frame that was reached; 0 for a fault.
    pub hpa: Hpa,
}
