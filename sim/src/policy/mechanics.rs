//! Mechanics: how kernels differ below the rules. One knob per field; the TOML key is the field
//! with `-` for `_`. The default of each is the value of mainline 7.3 (DESIGN section 5).

mod value;

pub use value::*;

use super::knob::{Knob, KnobError, Value};
use super::rule::bits;

/// Declares a table of knobs: the struct, its patch (what one file says) and its TOML.
macro_rules! knobs {
    ($(#[$doc:meta])* $name:ident, $patch:ident {
        $($(#[$field_doc:meta])* $field:ident ($key:literal): $ty:ty = $default:expr, $names:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }

        /// What one file says of the table of the same name.
        #[derive(Clone, Debug, Default)]
        pub(super) struct $patch { $($field: Option<$ty>,)* }

        impl $patch {
            /// The keys, for suggestions.
            pub(super) const KEYS: &[&str] = &[$($key),*];

            /// Takes one key; `None` if there is no such key.
            pub(super) fn set(&mut self, key: &str, value: &Value<'_>)
                -> Option<Result<(), KnobError>>
            {
                match key {
                    $($key => Some(
                        <$ty as Knob>::read(value, $names).map(|v| self.$field = Some(v)),
                    ),)*
                    _ => None,
                }
            }

            /// Lays the patch over `base`.
            pub(super) fn apply(self, base: &mut $name) {
                $(if let Some(v) = self.$field { base.$field = v; })*
            }
        }

        impl $name {
            /// Every key with its value as TOML, in the order of declaration.
            #[must_use]
            pub fn entries(&self) -> Vec<(&'static str, String)> {
                vec![$(($key, Knob::write(&self.$field, $names))),*]
            }
        }
    };
}

knobs! {
    /// What is followed by a remote flush, and how (facts 5.8).
    RemoteFlush, RemoteFlushPatch {
        /// Zapping SPTEs or shadow pages.
        zap("zap"): bool = true, &[];
        /// Write-protecting SPTEs.
        write_protect("write-protect"): bool = true, &[];
        /// Pointing an SPTE at another frame.
        pfn_change("pfn-change"): bool = true, &[];
        /// A shadow sync that took rights away.
        sync("sync"): bool = true, &[];
        /// The flush comes before mmu_lock is released (where the caller must).
        before_unlock("before-unlock"): bool = true, &[];
        /// Filling an SPTE that was empty: never needed.
        populate("populate"): bool = false, &[];
        /// How often each remote flush is done: more than 1 is redundant.
        repeat("repeat"): u8 = 1, &[];
        /// The vCPU that calls for it takes part. Without, the next VM entry was trusted to flush.
        own("own"): bool = true, &[];
        /// Zapping what only a root maps that no vCPU can find again (up to 6.8).
        invalid_roots("invalid-roots"): bool = false, &[];
        /// Zapping everything of a VM of which no vCPU is left (up to 5.17).
        teardown("teardown"): bool = false, &[];
        /// Whom it interrupts.
        ipi("ipi"): RemoteIpi = RemoteIpi::InGuest, &[];
        /// Which pages it hits.
        range("range"): RemoteRange = RemoteRange::None, &[];
    }
}

knobs! {
    /// Mechanics: how kernels differ below the rules.
    Mechanics, MechanicsPatch {
        /// What a guest flush does in shadow mode.
        guest_flush_shadow("guest-flush-shadow"): GuestFlushShadow = GuestFlushShadow::Sync, &[];
        /// LOAD ends in flush_current, uncounted (facts 5.5).
        load_flush("load-flush"): bool = true, &[];
        /// What RESET does to the roots.
        reset("reset"): ResetKind = ResetKind::Unload, &[];
        /// Cached roots per MMU (facts 2.4).
        prev_roots("prev-roots"): u8 = 3, &[];
        /// Levels that root and guest must have for a root to be cached; 0 = any, and a lookup
        /// without a current root is possible (5.18 on).
        prev_root_min_level("prev-root-min-level"): u8 = 0, &[];
        /// The role of a lookup.
        prev_root_role("prev-root-role"): PrevRootRole = PrevRootRole::Full, &[];
        /// A hit in the root cache requests SYNC and CURRENT unless the write was NOFLUSH: the
        /// flush of MOV CR3 was part of the switch (5.10; facts 2.1 step 5).
        new_pgd_hit_flush("new-pgd-hit-flush"): bool = false, &[];
        /// The roots of kvm_invalidate_pcid.
        invalidate_pcid("invalidate-pcid"): InvalidatePcid = InvalidatePcid::CurrentAndCached, &[];
        /// The same while CR4.PCIDE = 0.
        invalidate_pcid_without_pcide("invalidate-pcid-without-pcide"): WithoutPcide
            = WithoutPcide::Current, &[];
        /// When it syncs.
        invalidate_pcid_sync("invalidate-pcid-sync"): SyncWhen = SyncWhen::Request, &[];
        /// The roots of INVLPG.
        invlpg_roots("invlpg-roots"): InvlpgRoots = InvlpgRoots::All, &[];
        /// What INVLPG flushes.
        invlpg("invlpg"): InvlpgKind = InvlpgKind::Gva, &[];
        /// The effects of load_pdptrs.
        load_pdptrs("load-pdptrs"): LoadPdptrs
            = LoadPdptrs { free_root: true, request_pgd: true }, &[];
        /// CR4 bits whose change reloads the PDPTEs (PAE paging).
        pdptr_cr4("pdptr-cr4"): u64 = 0x10_00b0, bits::CR4;
        /// CR0 bits whose change reloads the PDPTEs (PAE paging).
        pdptr_cr0("pdptr-cr0"): u64 = 0xe000_0000, bits::CR0;
        /// The layout of the page role.
        role("role"): RoleVersion = RoleVersion::V72, &[];
        /// Bits left out of it.
        role_omit("role-omit"): RoleBits = RoleBits(0), RoleBits::NAMES;
        /// EFER.NX in the role of shadow pages.
        role_shadow_nx("role-shadow-nx"): RoleShadowNx = RoleShadowNx::ByVersion, &[];
        /// A supervisor's write to a read-only user page with CR0.WP = 0 in shadow mode.
        wp_clear_user_write("wp-clear-user-write"): WpClearUserWrite
            = WpClearUserWrite::SupervisorPage, &[];
        /// The TDP MMU is used if the machine has it on; off in 5.10 by default (facts 7.1).
        tdp_mmu("tdp-mmu"): bool = true, &[];
        /// The life of its roots.
        tdp_root_lifetime("tdp-root-lifetime"): TdpRootLifetime = TdpRootLifetime::Vm, &[];
        /// Which request a zap of all roots posts.
        zap_all_request("zap-all-request"): ZapAllRequest = ZapAllRequest::Obsolete, &[];
        /// Finding a page with unsync children again requests SYNC (5.10; facts 15.3).
        refind_requests_sync("refind-requests-sync"): bool = false, &[];
        /// A fault or an emulated store that changes an SPTE requests FLUSH_CURRENT of its own vCPU
        /// where no other needs to know (5.10; facts 5.7).
        own_spte_flush("own-spte-flush"): bool = false, &[];
        /// VMX and a change of pCPU.
        migrate_vmx("migrate-vmx"): MigrateVmx = MigrateVmx::All, &[];
        /// SVM and a change of pCPU.
        migrate_svm("migrate-svm"): MigrateSvm = MigrateSvm::BothVmcbs, &[];
        /// When TLB_CONTROL is cleared.
        svm_tlb_control_clear("svm-tlb-control-clear"): TlbControlClear
            = TlbControlClear::OnSuccess, &[];
        /// svm_set_cr4 with NPT calls flush_current at once if PGE differs (up to 6.12).
        svm_pge_hook("svm-pge-hook"): bool = false, &[];
        /// The vendor's vCPU reset flushes by itself: VMX INVVPID of vpid01, SVM ASID generation
        /// 0 (facts 3.2).
        vendor_reset_flush("vendor-reset-flush"): bool = true, &[];
        /// CR0.WP alone without paging.
        wp_nonpaging("wp-nonpaging"): WpNonpaging = WpNonpaging::Ignore, &[];
        /// INVLPG's remote flush.
        invlpg_remote_flush("invlpg-remote-flush"): InvlpgRemoteFlush
            = InvlpgRemoteFlush::Changed, &[];
        /// The remote flush of a fault that installs an entry of the same page over one.
        set_spte_remote_flush("set-spte-remote-flush"): SetSpteRemoteFlush
            = SetSpteRemoteFlush::LostWrite, &[];
        /// A page fault on a frame whose invalidation is under way is taken again (facts 5.9). Without, it
        /// maps the page that is about to go.
        fault_retry("fault-retry"): bool = true, &[];
        /// KVM drops an address, in its shadow pages and in the TLB, before it injects a fault of the guest's
        /// own at it (5.8 on; ee1fa209f5e5).
        fault_invalidates("fault-invalidates"): bool = true, &[];
        /// Ageing is followed by a remote flush if something was young: clear_flush_young. Without,
        /// clear_young, which idle-page tracking and the multi-generational LRU call (facts 5.9).
        age_flush("age-flush"): bool = false, &[];
        /// Clearing the dirty bits of SPTEs outside a dirty log is followed by a remote flush (up to 6.12;
        /// 856cf4a60cff).
        clear_dirty_flush("clear-dirty-flush"): bool = false, &[];
        /// The TDP roots in which an unmap of the host takes SPTEs away.
        unmap_roots("unmap-roots"): UnmapRoots = UnmapRoots::All, &[];
        /// CR0.PG 1 -> 0 in 64-bit code.
        pg_clear_in_64_bit("pg-clear-in-64-bit"): PgClearIn64Bit = PgClearIn64Bit::Gp, &[];
        /// The VPID of the guest hook.
        guest_flush_vpid("guest-flush-vpid"): GuestFlushVpid
            = GuestFlushVpid::ActiveIfEnabled, &[];
        /// The flush of a nested VMX transition.
        nested_transition("nested-transition"): NestedTransition = NestedTransition::Guest, &[];
        /// When it applies.
        nested_transition_when("nested-transition-when"): NestedTransitionWhen
            = NestedTransitionWhen::Untagged, &[];
        /// Contexts of flush_tlb_all.
        flush_all_contexts("flush-all-contexts"): FlushAllContexts = FlushAllContexts::Every, &[];
        /// INVEPT of L1.
        nested_invept("nested-invept"): NestedInvept = NestedInvept::AsAsked, &[];
        /// The vCPUs that INVEPT of L1 reaches.
        nested_invept_reach("nested-invept-reach"): NestedInveptReach = NestedInveptReach::Own, &[];
        /// VMFUNC of L2.
        nested_vmfunc("nested-vmfunc"): NestedVmfunc = NestedVmfunc::NewPgd, &[];
        /// The ASID of L2.
        svm_nested_asid("svm-nested-asid"): SvmNestedAsid = SvmNestedAsid::Shared, &[];
        /// The flush of a nested SVM transition.
        svm_nested_transition("svm-nested-transition"): SvmNestedTransition
            = SvmNestedTransition::SyncAndCurrent, &[];
        /// Requests served before the switch of context.
        nested_drain("nested-drain"): NestedDrain = NestedDrain::CurrentAndGuest, &[];
        /// A failed nested entry serves them too.
        nested_fail_drain("nested-fail-drain"): bool = true, &[];
        /// INVVPID of L1.
        nested_invvpid("nested-invvpid"): NestedInvvpid = NestedInvvpid::AsAsked, &[];
        /// INVVPID of L1 after a change of pCPU.
        nested_invvpid_elsewhere("nested-invvpid-elsewhere"): NestedInvvpidElsewhere
            = NestedInvvpidElsewhere::FlushNextEntry, &[];
        /// INVVPID of L1 and shadow roots.
        nested_invvpid_roots("nested-invvpid-roots"): NestedInvvpidRoots
            = NestedInvvpidRoots::GuestMode, &[];
        /// TLB_CONTROL of L1.
        nested_tlb_control("nested-tlb-control"): NestedTlbControl = NestedTlbControl::Ignore, &[];
        /// A new vpid02.
        vpid02_alloc("vpid02-alloc"): Vpid02Alloc = Vpid02Alloc::FlushFirst, &[];
        /// Another VPID in vmcs12.
        vpid12_change("vpid12-change"): Vpid12Change = Vpid12Change::Guest, &[];
        /// KVM_REQ_APIC_PAGE_RELOAD flushes the current context by a direct call (up to 6.1;
        /// facts 15.6).
        apic_page_flush("apic-page-flush"): bool = false, &[];
        /// Flushes of nested tables of which the hypervisor below has copies (`enlightened-npt` of the machine).
        enlightened_npt_flush("enlightened-npt-flush"): EnlightenedNptFlush
            = EnlightenedNptFlush::Current, &[];
        /// AVIC that is switched on requests FLUSH_CURRENT.
        avic_flush("avic-flush"): bool = true, &[];
        /// When the APIC-access page is looked up again after its page was taken.
        apic_page_reload("apic-page-reload"): ApicPageReload = ApicPageReload::AfterUnmap, &[];
        /// What an SVM flush is.
        svm_flush("svm-flush"): SvmFlush = SvmFlush::Asid, &[];
        /// A wrap of the ASIDs.
        svm_asid_wrap("svm-asid-wrap"): SvmAsidWrap = SvmAsidWrap::All, &[];
        /// Hyper-V flushes.
        hv_flush("hv-flush"): HvFlush = HvFlush::Fifo, &[];
        /// The input page of these.
        hv_input("hv-input"): HvInput = HvInput::Nested, &[];
        /// Addresses of these that are not canonical.
        hv_noncanonical("hv-noncanonical"): Noncanonical = Noncanonical::Skip, &[];
        /// An address of INVLPG that is not canonical.
        invlpg_noncanonical("invlpg-noncanonical"): Noncanonical = Noncanonical::Skip, &[];
        /// CR3 of a nested entry.
        nested_cr3_bit63("nested-cr3-bit63"): NestedCr3Bit63 = NestedCr3Bit63::Drop, &[];
        /// INVLPGB of a guest under NPT.
        invlpgb("invlpgb"): InvlpgbKind = InvlpgbKind::Native, &[];
        /// The host's side of a paravirtual flush.
        pv_flush("pv-flush"): PvFlush = PvFlush::Atomic, &[];
        /// The publication of KVM_VCPU_PREEMPTED.
        pv_preempt_store("pv-preempt-store"): PvPreemptStore = PvPreemptStore::Merge, &[];
        /// When that is published.
        pv_preempt_when("pv-preempt-when"): PvPreemptWhen = PvPreemptWhen::Preempted, &[];
        /// The guest's side of a paravirtual flush: its sender waits until every vCPU that it interrupted
        /// has flushed. Without, it goes on at once: a defect.
        pv_flush_wait("pv-flush-wait"): bool = true, &[];
        /// A request that has KVM_REQUEST_NO_WAKEUP leaves a vCPU asleep that executed HLT (facts 5.1,
        /// 5.2). Without, each request wakes it.
        no_wakeup("no-wakeup"): bool = true, &[];
        /// vcpu->mode of somebody who reads shadow pages without a lock.
        lockless_walk("lockless-walk"): LocklessWalk = LocklessWalk::Reading, &[];
        /// KVM_SET_SREGS.
        sregs("sregs"): Sregs = Sregs::ResetAndGuest, &[];
        /// Linking an unsync page.
        link_unsync("link-unsync"): LinkUnsync = LinkUnsync::Sync, &[];
        /// CR0 bits that the guest may own (facts 1.1); the engine narrows them (facts 1.2).
        own_cr0("own-cr0"): u64 = 0x1_0008, bits::CR0;
        /// CR4 bits that the guest may own.
        own_cr4("own-cr4"): u64 = 0x1_078e, bits::CR4;
        /// What invalidations can hit.
        scope("scope"): Scope = Scope::Hardware, &[];
        /// Remote flushes.
        remote_flush("remote-flush"): RemoteFlush = RemoteFlush::default(), &[];
    }
}
