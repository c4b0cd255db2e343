//! The values that mechanics may take.

use crate::policy::knob::{Knob, KnobError, Value, nearest_hint, values};

/// The most that `prev-roots` may say: KVM_MMU_NUM_PREV_ROOTS.
pub const PREV_ROOTS_MAX: u8 = 3;

values! {
    /// What a guest flush (KVM_REQ_TLB_FLUSH_GUEST) does in shadow mode (facts 0.3.4).
    GuestFlushShadow {
        /// Only the hardware is flushed: unsync shadow pages stay stale (5.10).
        HwOnly = "hw-only",
        /// The MMU is unloaded (5.15).
        Unload = "unload",
        /// Unsync pages are synced, unsync cached roots freed (5.17 on).
        #[default]
        Sync = "sync",
    }
}

values! {
    /// What kvm_mmu_reset_context does to the roots (facts 9.4).
    ResetKind {
        /// UNLOAD, then INIT: every kernel that was released.
        #[default]
        Unload = "unload",
        /// INIT, then KVM_REQ_MMU_UPDATE_ROOT: the root cache is consulted at entry.
        UpdateRoot = "update-root",
    }
}

values! {
    /// Which roots kvm_invalidate_pcid looks at (facts 2.3).
    InvalidatePcid {
        /// The current root only.
        Current = "current",
        /// Also frees each cached root with that PCID, while CR4.PCIDE = 1.
        #[default]
        CurrentAndCached = "current+cached",
    }
}

values! {
    /// Which roots kvm_invalidate_pcid looks at while CR4.PCIDE = 0 (facts 2.3).
    WithoutPcide {
        /// The current root only: with PCIDE = 0 every MOV CR3 flushes anyway (5.17 on).
        #[default]
        Current = "current",
        /// Cached roots are scanned too, and all of them match PCID 0 (5.15).
        Cached = "cached",
    }
}

values! {
    /// When kvm_invalidate_pcid syncs the current root (facts 2.3, 4.2).
    SyncWhen {
        /// By KVM_REQ_MMU_SYNC at the next entry attempt (5.15 on).
        #[default]
        Request = "request",
        /// On the spot (5.10).
        Now = "now",
    }
}

values! {
    /// In which roots INVLPG syncs the address (facts 4.1).
    InvlpgRoots {
        /// The current root: global translations of other roots stay stale.
        Current = "current",
        /// The current and every cached root.
        #[default]
        All = "all",
    }
}

values! {
    /// What an intercepted INVLPG flushes in hardware (facts 4.1).
    InvlpgKind {
        /// The address: the `gva` hook.
        #[default]
        Gva = "gva",
        /// Everything: KVM_REQ_TLB_FLUSH.
        All = "all",
        /// Nothing: the shadow pages alone. A defect of hypervisors that forgot their tags.
        None = "none",
    }
}

values! {
    /// The layout of the page role (facts 7.2, 15.2).
    RoleVersion {
        /// 5.10: TDP roots depend on EFER.NX and CR0.WP; no LA57.
        V510 = "v510",
        /// 5.15 and 5.17: the same, NX and WP counted only while CR0.PG = 1.
        V517 = "v517",
        /// 5.19 to 6.18: cpu_role and root_role apart; TDP roots depend on no guest CR bit.
        V519 = "v519",
        /// 7.2 on: cr4_smep in place of smep_and_not_wp.
        #[default]
        V72 = "v72",
    }
}

values! {
    /// EFER.NX in the role of shadow pages (facts 7.2).
    RoleShadowNx {
        /// What `role` says: from 5.19 on it counts as set, for KVM's own walks need it. A page whose
        /// entries have XD set is then shared with a guest that has cleared NXE.
        #[default]
        ByVersion = "by-version",
        /// The guest's: pages made with NXE and without are kept apart.
        Guest = "guest",
    }
}

values! {
    /// A supervisor's write to a read-only user page with CR0.WP = 0 in shadow mode (facts 7.2).
    WpClearUserWrite {
        /// The entry becomes a writable one of the supervisor: KVM counts on SMAP having refused the
        /// write, which it does not with EFLAGS.AC = 1.
        #[default]
        SupervisorPage = "supervisor-page",
        /// The same without SMAP; with it the write is emulated and no entry made.
        EmulateUnderSmap = "emulate-under-smap",
    }
}

values! {
    /// vcpu->mode of somebody who reads shadow pages without a lock (facts 5.3).
    LocklessWalk {
        /// READING_SHADOW_PAGE_TABLES: a remote flush waits for the end of the walk, so that no page is
        /// freed under it.
        #[default]
        Reading = "reading",
        /// OUTSIDE_GUEST_MODE: nobody waits. A defect.
        Outside = "outside",
    }
}

values! {
    /// When KVM_VCPU_PREEMPTED is published (facts 4.4).
    PvPreemptWhen {
        /// Whenever the vCPU is put, also as it goes to sleep (5.17).
        EveryPut = "every-put",
        /// Only if its task was preempted (5.19 on, and 5.10.y and 5.15.y).
        #[default]
        Preempted = "preempted",
    }
}

values! {
    /// How long a TDP MMU root lives (facts 7.3).
    TdpRootLifetime {
        /// The last user frees and zaps the tree, in its own context (5.10 to 5.17).
        LastUser = "last-user",
        /// The last user hands the tree to a worker (5.18 to 6.3).
        LastUserAsync = "last-user-async",
        /// The VM holds a reference: UNLOAD never destroys the tree (6.4 on, and 6.1.y).
        #[default]
        Vm = "vm",
    }
}

values! {
    /// What VMX does when a VMCS is loaded on another pCPU (facts 5.10).
    MigrateVmx {
        /// KVM_REQ_TLB_FLUSH.
        #[default]
        All = "all",
        /// Nothing: a defect.
        None = "none",
    }
}

values! {
    /// What SVM does when a vCPU runs on another pCPU (facts 5.10).
    MigrateSvm {
        /// ASID generation 0 when the vCPU is loaded (5.10).
        PerVcpu = "per-vcpu",
        /// Each VMCB remembers its pCPU and is reset by itself (5.15 to 6.18).
        PerVmcb = "per-vmcb",
        /// A change resets both VMCBs (6.12.y, 7.3).
        #[default]
        BothVmcbs = "both-vmcbs",
        /// Nothing: a defect.
        None = "none",
    }
}

values! {
    /// When TLB_CONTROL is cleared after VMRUN (facts 6.3).
    TlbControlClear {
        /// After every VMRUN, a failed one too.
        Always = "always",
        /// Only if VMRUN succeeded (6.12.y, 7.3).
        #[default]
        OnSuccess = "on-success",
    }
}

values! {
    /// What a write that toggles CR0.WP alone does while the new CR0.PG = 0. `ignore` stands above
    /// the `cr0` rules: none of them is looked at (facts 1.3).
    WpNonpaging {
        /// The rules decide (up to 6.3 and 6.1.y).
        Reset = "reset",
        /// Nothing (6.4 on).
        #[default]
        Ignore = "ignore",
    }
}

values! {
    /// Whether INVLPG of a shadow address ends in a remote flush (facts 4.1, 15).
    InvlpgRemoteFlush {
        /// Always, if the leaf's page is unsync: the SPTE is zapped (up to 6.3).
        Always = "always",
        /// Only if the SPTE changed (6.4 on).
        #[default]
        Changed = "changed",
    }
}

values! {
    /// When mmu_set_spte raises a remote flush because a fault installs an entry of the same page over
    /// one (mmu_spte_update; facts 15.7, commit 081976992f43).
    SetSpteRemoteFlush {
        /// Never: where the entry was writable, other CPUs go on writing.
        Never = "never",
        /// The entry was writable and no longer is (6.14 on).
        #[default]
        LostWrite = "lost-write",
        /// That, or a read refreshed an entry that KVM may make writable again, and left it without W or
        /// without its dirty bit (up to 6.12).
        Refreshed = "refreshed",
    }
}

values! {
    /// What CR0.PG 1 -> 0 in 64-bit code does (facts 15).
    PgClearIn64Bit {
        /// It is carried out (up to 5.15); the guest dies.
        Accept = "accept",
        /// #GP, without action.
        #[default]
        Gp = "gp",
    }
}

values! {
    /// The VPID of the guest and gva hooks while in L2 (facts 6.2).
    GuestFlushVpid {
        /// Always vpid01 (5.10).
        Vpid01 = "vpid01",
        /// vpid02 whenever in L2 (5.15 to 6.4).
        Active = "active",
        /// vpid02 only if vmcs12 enables VPID (6.12 on, and 6.1.y).
        #[default]
        ActiveIfEnabled = "active-if-enabled",
    }
}

values! {
    /// What a nested VMX transition flushes (facts 3.5).
    NestedTransition {
        /// Nothing.
        Nothing = "nothing",
        /// KVM_REQ_TLB_FLUSH, if KVM uses VPIDs (5.10).
        All = "all",
        /// KVM_REQ_TLB_FLUSH_GUEST (5.15 on).
        #[default]
        Guest = "guest",
        /// The flush_current hook on the spot, before the root of the context that is entered is
        /// loaded (up to 4.19; corrected by 1438921c6dc1).
        CurrentNow = "current-now",
    }
}

values! {
    /// Which contexts of a vCPU the VMX hook flush_tlb_all reaches (facts 6.2).
    FlushAllContexts {
        /// Every one: INVEPT global, or both VPIDs (5.8 on).
        #[default]
        Every = "every",
        /// The EPTP or VPID that is active (4.20 to 5.7).
        Active = "active",
        /// L1's only.
        L1 = "l1",
    }
}

values! {
    /// Which roots of guest_mmu an INVEPT of L1 drops (facts 2.5, 4.6).
    NestedInvept {
        /// Those of the EPTP that it names, or all.
        #[default]
        AsAsked = "as-asked",
        /// Those of the EPTP that was loaded last, whichever it names: a defect.
        Loaded = "loaded",
        /// None: the next nested entry was trusted to flush (up to 5.7).
        Nothing = "nothing",
    }
}

values! {
    /// What VMFUNC 0 (EPTP switching) of L2 does (facts 2.5).
    NestedVmfunc {
        /// UNLOAD (5.10).
        Unload = "unload",
        /// new_pgd, and KVM_REQ_TLB_FLUSH_GUEST if L2 has no VPID (5.17 on).
        #[default]
        NewPgd = "new-pgd",
    }
}

values! {
    /// What ASID L2 runs under (facts 6.3).
    SvmNestedAsid {
        /// L1's: vmcb01 and vmcb02 have generations of their own, and one ASID.
        #[default]
        Shared = "shared",
        /// A new one at each switch: the generation is lost with the VMCB (5.11; 193015adf40d).
        New = "new",
        /// One of its own (Xen).
        PerVmcb = "per-vmcb",
    }
}

values! {
    /// What a nested SVM transition flushes (facts 3.5).
    SvmNestedTransition {
        /// KVM_REQ_MMU_SYNC and KVM_REQ_TLB_FLUSH_CURRENT, always.
        #[default]
        SyncAndCurrent = "sync+current",
        /// The same, and the ASID of the other VMCB at its next VMRUN (Xen up to 4.1).
        Both = "both",
        /// Nothing.
        Nothing = "nothing",
    }
}

values! {
    /// At which nested VMX transitions [`NestedTransition`] applies (facts 3.5).
    NestedTransitionWhen {
        /// Only if vmcs12 gives L2 no VPID.
        #[default]
        Untagged = "untagged",
        /// At each.
        Always = "always",
    }
}

values! {
    /// Which pending requests are served before L1 and L2 change places (facts 3.5).
    NestedDrain {
        /// None: they hit the context that is entered.
        None = "none",
        /// KVM_REQ_TLB_FLUSH_CURRENT (5.10).
        Current = "current",
        /// KVM_REQ_TLB_FLUSH_CURRENT and _GUEST (5.15 on).
        #[default]
        CurrentAndGuest = "current+guest",
    }
}

values! {
    /// How an INVVPID of L1 is carried out on vpid02 (facts 4.6).
    NestedInvvpid {
        /// An address stays an address.
        #[default]
        AsAsked = "as-asked",
        /// Every type invalidates the whole of vpid02.
        Single = "single",
    }
}

values! {
    /// What becomes of L1's TLB_CONTROL (facts 4.6).
    NestedTlbControl {
        /// Ignored: each nested transition flushes anyway.
        #[default]
        Ignore = "ignore",
        /// Copied into the VMCB that runs L2.
        Raw = "raw",
        /// Decoded, and served by the requests that it stands for.
        Decoded = "decoded",
    }
}

values! {
    /// What an INVVPID of L1 does if vmcs02 was last on another pCPU (facts 4.6).
    NestedInvvpidElsewhere {
        /// It invalidates on this pCPU only: stale if the vCPU goes back (up to 7.2).
        Local = "local",
        /// The next nested entry flushes (6.12.y, 7.3: 6d00e67326d8).
        #[default]
        FlushNextEntry = "flush-next-entry",
    }
}

values! {
    /// Which shadow roots an INVVPID of L1 frees without EPT (facts 2.5).
    NestedInvvpidRoots {
        /// None: what L1 changed stays in L2's shadow pages (up to 5.7).
        None = "none",
        /// All, L1's own among them (5.8 to 5.13).
        All = "all",
        /// Those of L2 (from 5.14 on: 25b62c6274ed).
        #[default]
        GuestMode = "guest-mode",
    }
}

values! {
    /// What a newly allocated vpid02 starts with.
    Vpid02Alloc {
        /// It is flushed before its first use.
        #[default]
        FlushFirst = "flush-first",
        /// Whatever an earlier owner left.
        KeepLast = "keep-last",
    }
}

values! {
    /// What a change of the VPID in vmcs12 does (facts 3.5).
    Vpid12Change {
        /// INVVPID of vpid02; unsync shadow pages stay (up to 5.15).
        HwOnly = "hw-only",
        /// KVM_REQ_TLB_FLUSH_GUEST (5.16 on).
        #[default]
        Guest = "guest",
    }
}

values! {
    /// What an SVM flush hook invalidates (facts 6.3).
    SvmFlush {
        /// The VMCB's ASID: TLB_CONTROL 3, or a new ASID without FLUSHBYASID.
        #[default]
        Asid = "asid",
        /// Every ASID: TLB_CONTROL 1.
        All = "all",
    }
}

values! {
    /// The TLB_CONTROL of the vCPU that takes the first ASID of a new generation (facts 6.3).
    SvmAsidWrap {
        /// 1: the numbers that others will take come clean.
        #[default]
        All = "all",
        /// 3: its own number only, a defect of Xen (64b1da5a2fcf).
        Asid = "asid",
    }
}

values! {
    /// What becomes of a guest's INVLPGB under NPT (facts C.3; APM vol. 2, appendix B).
    InvlpgbKind {
        /// It runs on the processor and reaches the ASID of the vCPU that executes it.
        #[default]
        Native = "native",
        /// It exits, and every vCPU is asked for a flush of the guest's translations. No KVM does so;
        /// the ideals and `flush-all` do.
        Intercept = "intercept",
    }
}

values! {
    /// When the input page of a flush hypercall is taken for an address of L2 (facts 4.5).
    HvInput {
        /// Whenever L2 runs: without nested tables the hypercall fails (6.4 up to 7.0).
        GuestMode = "guest-mode",
        /// Only if L2 has nested tables.
        #[default]
        Nested = "nested",
    }
}

values! {
    /// What becomes of an address that is not canonical and is to be flushed (facts 4.1, 4.5).
    Noncanonical {
        /// Nothing: no translation of it can exist.
        #[default]
        Skip = "skip",
        /// The flush hook is called; INVVPID fails for such an address.
        Pass = "pass",
    }
}

values! {
    /// What a nested entry makes of bit 63 of the CR3 that is loaded (facts A.4 on MOV CR3).
    NestedCr3Bit63 {
        /// It is dropped: the bit means "no flush" to MOV CR3 only.
        #[default]
        Drop = "drop",
        /// "No flush": what the transition owes is left out, a defect of Xen (up to 4.13).
        NoFlush = "noflush",
    }
}

values! {
    /// Which processors a remote flush interrupts (facts 5.2).
    RemoteIpi {
        /// Those whose vCPU is in guest mode.
        #[default]
        InGuest = "in-guest",
        /// Each on which a vCPU ever ran since the last flush: Xen's dirty masks (up to 4.9).
        EverRan = "ever-ran",
    }
}

values! {
    /// How a Hyper-V flush hypercall reaches its targets (facts 4.5).
    HvFlush {
        /// KVM_REQ_TLB_FLUSH: every context (up to 5.7).
        Full = "full",
        /// KVM_REQ_TLB_FLUSH_GUEST, the list ignored (5.8 to 6.1).
        Request = "request",
        /// KVM_REQ_HV_TLB_FLUSH with a fifo of 16 entries (6.4 on).
        #[default]
        Fifo = "fifo",
    }
}

values! {
    /// How the host takes the steal-time byte (facts 4.4).
    PvFlush {
        /// One atomic exchange.
        #[default]
        Atomic = "atomic",
        /// Read, then cleared: a bit set between is lost (up to 5.5, CVE-2019-3016).
        ReadThenClear = "read-then-clear",
    }
}

values! {
    /// How the host publishes KVM_VCPU_PREEMPTED (facts 4.4).
    PvPreemptStore {
        /// A FLUSH bit that is set already stays.
        #[default]
        Merge = "merge",
        /// It is overwritten (up to 5.5, CVE-2019-3016).
        Overwrite = "overwrite",
    }
}

values! {
    /// What KVM_SET_SREGS with a changed register does (facts 3.4).
    Sregs {
        /// RESET (up to 6.4).
        Reset = "reset",
        /// RESET and KVM_REQ_TLB_FLUSH_GUEST.
        #[default]
        ResetAndGuest = "reset+guest",
    }
}

values! {
    /// What happens when an unsync page that was found again is linked (facts 2.6).
    LinkUnsync {
        /// It is synced first.
        #[default]
        Sync = "sync",
        /// It is linked as it is: a defect.
        AsIs = "as-is",
    }
}

values! {
    /// Which requests a zap of all roots posts to every vCPU (facts 7.5).
    ZapAllRequest {
        /// KVM_REQ_MMU_RELOAD: every root goes (up to 5.17).
        Reload = "reload",
        /// KVM_REQ_MMU_FREE_OBSOLETE_ROOTS (5.18 on).
        #[default]
        Obsolete = "obsolete",
    }
}

values! {
    /// The role with which a cached root is looked up (facts 2.4, 15.9).
    PrevRootRole {
        /// The whole role word.
        #[default]
        Full = "full",
        /// Without smep_and_not_wp and smap_and_not_wp: with CR0.WP = 0 and SMEP or SMAP a cached
        /// root is never used again (5.10).
        WithoutAndNotWp = "without-and-not-wp",
    }
}

values! {
    /// What invalidations can hit.
    Scope {
        /// What real instructions can.
        #[default]
        Hardware = "hardware",
        /// Exactly what is owed: an ideal machine.
        Exact = "exact",
    }
}

values! {
    /// Which pages a remote flush of a range hits.
    RemoteRange {
        /// An ideal flush of exactly these pages on every vCPU.
        Exact = "exact",
        /// Only the first page of the range: a defect.
        FirstPage = "first-page",
        /// As many pages, from behind the last one that is owed: a defect.
        Shifted = "shifted",
        /// No ranges: each remote flush is KVM_REQ_TLB_FLUSH to every vCPU (facts 5.8).
        #[default]
        None = "none",
    }
}

/// What load_pdptrs does besides reading the PDPTEs (facts 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadPdptrs {
    /// Frees the current root if, in shadow mode, a PDPTE changed (5.17 on).
    pub free_root: bool,
    /// Requests LOAD_MMU_PGD (5.15 on).
    pub request_pgd: bool,
}

/// Bits left out of the page role: defects that share shadow pages between modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RoleBits(pub u32);

impl RoleBits {
    /// EFER.NXE.
    pub const NX: Self = Self(1 << 0);
    /// CR0.WP.
    pub const WP: Self = Self(1 << 1);
    /// CR4.SMEP, alone or with CR0.WP = 0.
    pub const SMEP: Self = Self(1 << 2);
    /// CR4.SMAP with CR0.WP = 0.
    pub const SMAP: Self = Self(1 << 3);
    /// The level of the page and of the root.
    pub const LEVEL: Self = Self(1 << 4);
    /// The size of a guest entry (4 or 8 bytes).
    pub const GPTE_SIZE: Self = Self(1 << 5);
    /// The access rights of the path.
    pub const ACCESS: Self = Self(1 << 6);
    /// Direct or indirect.
    pub const DIRECT: Self = Self(1 << 7);
    /// The quadrant of a 32-bit table.
    pub const QUADRANT: Self = Self(1 << 8);
    /// SMM.
    pub const SMM: Self = Self(1 << 9);
    /// L2.
    pub const GUEST_MODE: Self = Self(1 << 10);
    /// EPT A/D bits disabled.
    pub const AD_DISABLED: Self = Self(1 << 11);
    /// CR4.PSE.
    pub const PSE: Self = Self(1 << 12);
    /// CR4.PKE.
    pub const PKE: Self = Self(1 << 13);
    /// CR4.LA57.
    pub const LA57: Self = Self(1 << 14);

    /// The names of the bits, as written in a policy.
    pub const NAMES: &[(&str, u64)] = &[
        ("nx", Self::NX.0 as u64),
        ("wp", Self::WP.0 as u64),
        ("smep", Self::SMEP.0 as u64),
        ("smap", Self::SMAP.0 as u64),
        ("level", Self::LEVEL.0 as u64),
        ("gpte-size", Self::GPTE_SIZE.0 as u64),
        ("access", Self::ACCESS.0 as u64),
        ("direct", Self::DIRECT.0 as u64),
        ("quadrant", Self::QUADRANT.0 as u64),
        ("smm", Self::SMM.0 as u64),
        ("guest-mode", Self::GUEST_MODE.0 as u64),
        ("ad-disabled", Self::AD_DISABLED.0 as u64),
        ("pse", Self::PSE.0 as u64),
        ("pke", Self::PKE.0 as u64),
        ("la57", Self::LA57.0 as u64),
    ];

    /// Whether all of `other` are left out.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

values! {
    /// The TDP roots in which an unmap of the host takes SPTEs away (facts 5.9).
    UnmapRoots {
        /// Those that vCPUs can find only: while an invalid one is torn down, its SPTEs outlive the page (5.13 to 5.17).
        Valid = "valid",
        /// All of them (5.18 on: d62007edf01f).
        #[default]
        All = "all",
    }
}

values! {
    /// The vCPUs of which an INVEPT of L1 invalidates what stands for the nested tables (facts 4.6).
    NestedInveptReach {
        /// The one that executes it, as on a processor.
        #[default]
        Own = "own",
        /// Every vCPU with the same tables, which a hypervisor shadows once for each vCPU (Xen from 4.10 on: 77690ea09ab2).
        Vm = "vm",
    }
}

values! {
    /// Which flushes tell a hypervisor below KVM that its copies of nested tables are to go.
    EnlightenedNptFlush {
        /// Remote flushes only: FLUSH_CURRENT and FLUSH_ALL flush the ASID, which leaves them (5.17 to 6.2).
        Remote = "remote",
        /// FLUSH_CURRENT and FLUSH_ALL too (6.3 on and 6.1.y: e5c972c1fada).
        #[default]
        Current = "current",
    }
}

values! {
    /// When KVM_REQ_APIC_PAGE_RELOAD is raised for an APIC-access page that the host takes.
    ApicPageReload {
        /// Before it is unmapped: whoever serves it at once takes the old page again (4.1x to 5.7).
        BeforeUnmap = "before-unmap",
        /// After (5.8 on: e649b3f0188f).
        #[default]
        AfterUnmap = "after-unmap",
    }
}
