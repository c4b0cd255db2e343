//! What each probed function and tracepoint is to the importer. A probe is known by the function
//! it sits on: its name is the recorder's choice.

use rustc_hash::FxHashMap;

use super::super::event::Event;

/// What a line shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    SetCr0,
    SetCr3,
    SetCr4,
    PostSetCr,
    VendorCr0,
    VendorCr4,
    VendorEfer,
    SetSregs,
    SetCpuid,
    VcpuReset,
    VcpuLoad,
    ResetContext,
    InitMmu,
    Unload,
    FreeRoots,
    FreeObsolete,
    FreeObsoleteHalf,
    NewPgd,
    Load,
    LoadPgd,
    SyncRoots,
    SyncPrevRoots,
    Invlpg,
    HandleInvpcid,
    InvpcidGva,
    InvalidatePcid,
    InvalidateGva,
    LoadPdptrs,
    FlushAll,
    FlushCurrent,
    FlushGuest,
    FlushGva,
    FlushAsid,
    ServiceFlushes,
    RemoteFlush,
    RequestAll,
    ReloadAll,
    ZapAllFast,
    UnmapGfns,
    Run,
    TraceCr,
    TraceExit,
    TraceEntry,
    TraceMsr,
    TracePageFault,
    TraceInject,
    TraceUserspaceExit,
    TraceEmulate,
    SpGet,
    SpUnsync,
    SpSync,
    SpZap,
    /// Read for its `req=` and for what it proves, else nothing.
    Evidence,
    /// Left out by design.
    Ignored(&'static str),
}

const MARKER: &str = "a marker that software wrote: what the guest was about to do";
const DEVICE: &str = "device, interrupt or timer work: no translation depends on it";
const WALK: &str = "a software walk of the guest's tables: detail of a page fault";
const SPTE: &str = "an entry of a shadow or TDP page: detail below the recording's acts";
const TWIN: &str = "the same is told by another event of the recording";

const TABLE: &[(&str, Shows)] = &[
    ("kvm_set_cr0", Shows::SetCr0),
    ("kvm_set_cr3", Shows::SetCr3),
    ("kvm_set_cr4", Shows::SetCr4),
    ("kvm_post_set_cr0", Shows::PostSetCr),
    ("kvm_post_set_cr4", Shows::PostSetCr),
    ("vmx_set_cr0", Shows::VendorCr0),
    ("svm_set_cr0", Shows::VendorCr0),
    ("vmx_set_cr4", Shows::VendorCr4),
    ("svm_set_cr4", Shows::VendorCr4),
    ("vmx_set_efer", Shows::VendorEfer),
    ("svm_set_efer", Shows::VendorEfer),
    ("kvm_arch_vcpu_ioctl_set_sregs", Shows::SetSregs),
    ("kvm_vcpu_reset", Shows::VcpuReset),
    ("kvm_arch_vcpu_load", Shows::VcpuLoad),
    ("kvm_mmu_reset_context", Shows::ResetContext),
    ("kvm_init_mmu", Shows::InitMmu),
    ("kvm_mmu_unload", Shows::Unload),
    ("kvm_mmu_free_roots", Shows::FreeRoots),
    ("kvm_mmu_free_obsolete_roots", Shows::FreeObsolete),
    // Called for root_mmu and again for guest_mmu; probed where its caller is inlined.
    ("__kvm_mmu_free_obsolete_roots", Shows::FreeObsoleteHalf),
    ("kvm_mmu_new_pgd", Shows::NewPgd),
    ("kvm_mmu_load", Shows::Load),
    ("vmx_load_mmu_pgd", Shows::LoadPgd),
    ("svm_load_mmu_pgd", Shows::LoadPgd),
    ("kvm_mmu_sync_roots", Shows::SyncRoots),
    ("kvm_mmu_sync_prev_roots", Shows::SyncPrevRoots),
    ("kvm_mmu_invlpg", Shows::Invlpg),
    ("kvm_handle_invpcid", Shows::HandleInvpcid),
    ("kvm_mmu_invpcid_gva", Shows::InvpcidGva),
    ("kvm_invalidate_pcid", Shows::InvalidatePcid),
    ("kvm_mmu_invalidate_gva", Shows::InvalidateGva),
    ("kvm_mmu_invalidate_addr", Shows::InvalidateGva),
    ("load_pdptrs", Shows::LoadPdptrs),
    ("vmx_flush_tlb_all", Shows::FlushAll),
    ("svm_flush_tlb_all", Shows::FlushAll),
    ("vmx_flush_tlb_current", Shows::FlushCurrent),
    ("svm_flush_tlb_current", Shows::FlushCurrent),
    ("vmx_flush_tlb_guest", Shows::FlushGuest),
    ("svm_flush_tlb_guest", Shows::FlushGuest),
    ("vmx_flush_tlb_gva", Shows::FlushGva),
    ("svm_flush_tlb_gva", Shows::FlushGva),
    // Tail of the other hooks of SVM, and by itself its flush_tlb_guest.
    ("svm_flush_tlb_asid", Shows::FlushAsid),
    // All three hooks up to 5.17.
    ("svm_flush_tlb", Shows::FlushAsid),
    ("kvm_service_local_tlb_flush_requests", Shows::ServiceFlushes),
    ("kvm_vcpu_flush_tlb_guest", Shows::Evidence),
    ("kvm_hv_vcpu_flush_tlb", Shows::Evidence),
    ("kvm_flush_remote_tlbs", Shows::RemoteFlush),
    ("kvm_flush_remote_tlbs_with_address", Shows::RemoteFlush),
    ("kvm_flush_remote_tlbs_range", Shows::Ignored("calls kvm_flush_remote_tlbs itself")),
    ("kvm_mmu_zap_all_fast", Shows::ZapAllFast),
    ("kvm_unmap_gfn_range", Shows::UnmapGfns),
    ("vmx_vcpu_run", Shows::Run),
    ("svm_vcpu_run", Shows::Run),
    // The last call before VMRUN, up to 6.12.
    ("kvm_load_guest_xsave_state", Shows::Run),
    ("kvm_cr", Shows::TraceCr),
    ("kvm_exit", Shows::TraceExit),
    ("kvm_entry", Shows::TraceEntry),
    ("kvm_msr", Shows::TraceMsr),
    ("kvm_page_fault", Shows::TracePageFault),
    ("kvm_inj_exception", Shows::TraceInject),
    ("kvm_userspace_exit", Shows::TraceUserspaceExit),
    ("kvm_emulate_insn", Shows::TraceEmulate),
    ("kvm_cpuid", Shows::Evidence),
    ("kvm_mmu_get_page", Shows::SpGet),
    ("kvm_mmu_unsync_page", Shows::SpUnsync),
    ("kvm_mmu_sync_page", Shows::SpSync),
    ("kvm_mmu_prepare_zap_page", Shows::SpZap),
    ("kvm_skip_emulated_instruction", Shows::Evidence),
    ("kvm_complete_insn_gp", Shows::Evidence),
    ("kvm_mmu_after_set_cpuid", Shows::SetCpuid),
    ("kvm_vcpu_after_set_cpuid", Shows::SetCpuid),
    ("kvm_make_all_cpus_request", Shows::RequestAll),
    ("kvm_make_all_cpus_request_except", Shows::Evidence),
    ("kvm_make_vcpus_request_mask", Shows::Evidence),
    ("kvm_reload_remote_mmus", Shows::ReloadAll),
    ("kvm_tdp_mmu_spte_changed", Shows::Evidence),
    ("mmu_alloc_root", Shows::Evidence),
    // A guest's store to a shadowed table, without its value: what it requests is seen.
    ("kvm_mmu_pte_write", Shows::Evidence),
    ("kvm_mmu_track_write", Shows::Evidence),
    ("mmu_try_to_unsync_pages", Shows::Ignored("an attempt: kvm_mmu_unsync_page tells of success")),
    ("mmu_sync_children", Shows::Ignored("detail of kvm_mmu_sync_roots")),
    ("kvm_unmap_hva_range", Shows::Ignored("a range of host-virtual addresses: no frame in it")),
    ("kvm_set_spte_hva", Shows::Ignored("a host-virtual address: no frame in it")),
    ("kvm_age_hva", Shows::Ignored("a host-virtual address: no frame in it")),
    ("kvm_test_age_hva", Shows::Ignored("a host-virtual address: no frame in it")),
    ("tracing_mark_write", Shows::Ignored(MARKER)),
    ("print", Shows::Ignored(MARKER)),
    ("kvm_fpu", Shows::Ignored(DEVICE)),
    ("kvm_pio", Shows::Ignored(DEVICE)),
    ("kvm_mmio", Shows::Ignored(DEVICE)),
    ("kvm_fast_mmio", Shows::Ignored(DEVICE)),
    ("kvm_apic", Shows::Ignored(DEVICE)),
    ("kvm_apic_ipi", Shows::Ignored(DEVICE)),
    ("kvm_apic_accept_irq", Shows::Ignored(DEVICE)),
    ("kvm_apicv_inhibit_changed", Shows::Ignored(DEVICE)),
    ("kvm_apicv_accept_irq", Shows::Ignored(DEVICE)),
    ("kvm_eoi", Shows::Ignored(DEVICE)),
    ("kvm_pv_eoi", Shows::Ignored(DEVICE)),
    ("kvm_inj_virq", Shows::Ignored(DEVICE)),
    ("kvm_set_irq", Shows::Ignored(DEVICE)),
    ("kvm_msi_set_irq", Shows::Ignored(DEVICE)),
    ("kvm_ioapic_set_irq", Shows::Ignored(DEVICE)),
    ("kvm_pic_set_irq", Shows::Ignored(DEVICE)),
    ("kvm_ack_irq", Shows::Ignored(DEVICE)),
    ("kvm_hypercall", Shows::Ignored(DEVICE)),
    ("kvm_async_pf_ready", Shows::Ignored(DEVICE)),
    ("kvm_async_pf_completed", Shows::Ignored(DEVICE)),
    ("kvm_async_pf_not_present", Shows::Ignored(DEVICE)),
    ("kvm_try_async_get_page", Shows::Ignored(DEVICE)),
    (
        "kvm_pv_tlb_flush",
        Shows::Ignored("whether a paravirtual flush was pending: no list of vCPUs"),
    ),
    ("kvm_halt_poll_ns", Shows::Ignored(DEVICE)),
    ("kvm_vcpu_wakeup", Shows::Ignored(DEVICE)),
    ("kvm_ple_window", Shows::Ignored(DEVICE)),
    ("kvm_ple_window_update", Shows::Ignored(DEVICE)),
    ("kvm_wait_lapic_expire", Shows::Ignored(DEVICE)),
    ("kvm_hv_timer_state", Shows::Ignored(DEVICE)),
    ("kvm_hv_stimer_cleanup", Shows::Ignored(DEVICE)),
    ("kvm_update_master_clock", Shows::Ignored(DEVICE)),
    ("kvm_write_tsc_offset", Shows::Ignored(DEVICE)),
    ("kvm_track_tsc", Shows::Ignored(DEVICE)),
    ("kvm_pvclock_update", Shows::Ignored(DEVICE)),
    ("vcpu_match_mmio", Shows::Ignored(DEVICE)),
    ("kvm_mmu_pagetable_walk", Shows::Ignored(WALK)),
    ("kvm_mmu_paging_element", Shows::Ignored(WALK)),
    ("kvm_mmu_walker_error", Shows::Ignored(WALK)),
    ("kvm_mmu_set_accessed_bit", Shows::Ignored(WALK)),
    ("kvm_mmu_set_dirty_bit", Shows::Ignored(WALK)),
    ("kvm_mmu_set_spte", Shows::Ignored(SPTE)),
    ("kvm_mmu_spte_requested", Shows::Ignored(SPTE)),
    ("kvm_mmu_split_huge_page", Shows::Ignored(SPTE)),
    ("mark_mmio_spte", Shows::Ignored(SPTE)),
    ("handle_mmio_page_fault", Shows::Ignored(SPTE)),
    ("check_mmio_spte", Shows::Ignored(SPTE)),
    ("fast_page_fault", Shows::Ignored(SPTE)),
    ("kvm_mmu_get_cpuid", Shows::Ignored(TWIN)),
];

/// Looks names up and counts them.
#[derive(Debug)]
pub(super) struct Names {
    index: FxHashMap<&'static [u8], usize>,
    counts: Vec<u64>,
    returns: Vec<u64>,
    assumed: Vec<u64>,
    unknown: FxHashMap<Vec<u8>, u64>,
}

impl Names {
    pub fn new() -> Self {
        let index = TABLE.iter().enumerate().map(|(at, (name, _))| (name.as_bytes(), at)).collect();
        let zeros = vec![0; TABLE.len()];
        Self {
            index,
            counts: zeros.clone(),
            returns: zeros.clone(),
            assumed: zeros,
            unknown: FxHashMap::default(),
        }
    }

    /// What this event shows; counts it.
    pub fn look_up(&mut self, event: &Event<'_>) -> Option<Shows> {
        let found = if event.inside { None } else { self.index.get(event.name) };
        let Some(&at) = found else {
            self.stranger(event.name);
            return None;
        };
        if event.assumed {
            self.assumed[at] += 1;
        }
        let counts = if event.ret { &mut self.returns } else { &mut self.counts };
        counts[at] += 1;
        Some(TABLE[at].1)
    }

    /// A hostile file may hold endless names: beyond this many they share one.
    fn stranger(&mut self, name: &[u8]) {
        let full = self.unknown.len() >= 4096;
        if let Some(count) = self.unknown.get_mut(name) {
            *count += 1;
        } else if full {
            *self.unknown.entry(b"(other names)".to_vec()).or_default() += 1;
        } else {
            self.unknown.insert(name[..name.len().min(200)].to_vec(), 1);
        }
    }

    /// Functions that were taken for what a probe's name suggests, and their number of events.
    pub fn assumed(&self) -> (Vec<&'static str>, u64) {
        let of = TABLE.iter().zip(&self.assumed).filter(|(_, count)| **count > 0);
        (of.map(|((name, _), _)| *name).collect(), self.assumed.iter().sum())
    }

    /// How often this function or tracepoint was seen (its returns apart).
    pub fn seen(&self, name: &str) -> u64 {
        self.index.get(name.as_bytes()).map_or(0, |&at| self.counts[at])
    }

    /// The census of all that was counted.
    pub fn census(&self) -> crate::Census {
        let mut census = crate::Census::default();
        for (at, (name, shows)) in TABLE.iter().enumerate() {
            if self.returns[at] > 0 {
                census.understood.insert(format!("{name} (return)"), self.returns[at]);
            }
            let count = self.counts[at];
            match shows {
                _ if count == 0 => {}
                Shows::Ignored(why) => {
                    census.ignored.insert((*name).to_owned(), (count, (*why).to_owned()));
                }
                _ => {
                    census.understood.insert((*name).to_owned(), count);
                }
            }
        }
        for (name, count) in &self.unknown {
            let name = String::from_utf8_lossy(name).into_owned();
            *census.unknown.entry(name).or_default() += count;
        }
        census
    }
}

/// Names that recorders give to probes, with the function each is taken for where the file prints
/// only an address. An assumption, and told as one.
const WELL_KNOWN: &[(&str, &str)] = &[
    ("set_cr0", "kvm_set_cr0"),
    ("set_cr3", "kvm_set_cr3"),
    ("set_cr4", "kvm_set_cr4"),
    ("post_set_cr0", "kvm_post_set_cr0"),
    ("post_set_cr4", "kvm_post_set_cr4"),
    ("set_efer", "svm_set_efer"),
    ("mmu_reset", "kvm_mmu_reset_context"),
    ("init_mmu", "kvm_init_mmu"),
    ("mmu_unload", "kvm_mmu_unload"),
    ("free_roots", "kvm_mmu_free_roots"),
    ("free_obsolete", "__kvm_mmu_free_obsolete_roots"),
    ("new_pgd", "kvm_mmu_new_pgd"),
    ("mmu_load", "kvm_mmu_load"),
    ("alloc_root", "mmu_alloc_root"),
    ("sync_roots", "kvm_mmu_sync_roots"),
    ("sync_prev_roots", "kvm_mmu_sync_prev_roots"),
    ("flush_all", "svm_flush_tlb_all"),
    ("flush_current", "svm_flush_tlb_current"),
    ("flush_asid", "svm_flush_tlb_asid"),
    ("flush_gva", "svm_flush_tlb_gva"),
    ("svc_flush", "kvm_service_local_tlb_flush_requests"),
    ("kvm_vcpu_flush_local", "kvm_service_local_tlb_flush_requests"),
    ("invlpg", "kvm_mmu_invlpg"),
    ("inval_gva", "kvm_mmu_invalidate_gva"),
    ("invpcid_gva", "kvm_mmu_invpcid_gva"),
    ("invpcid", "kvm_handle_invpcid"),
    ("inval_pcid", "kvm_invalidate_pcid"),
    ("remote_flush", "kvm_flush_remote_tlbs"),
    ("remote_flush_gfn", "kvm_flush_remote_tlbs_with_address"),
    ("all_req", "kvm_make_all_cpus_request"),
    ("all_req_except", "kvm_make_all_cpus_request_except"),
    ("vcpus_req", "kvm_make_vcpus_request_mask"),
    ("vcpu_load", "kvm_arch_vcpu_load"),
    ("vcpu_reset", "kvm_vcpu_reset"),
    ("set_sregs", "kvm_arch_vcpu_ioctl_set_sregs"),
    ("pte_write", "kvm_mmu_pte_write"),
    ("unsync", "mmu_try_to_unsync_pages"),
    ("vmrun", "kvm_load_guest_xsave_state"),
    ("kvm_skip_insn", "kvm_skip_emulated_instruction"),
];

/// The function that a probe of this name is taken for; `_ret` marks returns.
pub(in crate::import) fn well_known(name: &[u8]) -> Option<&'static [u8]> {
    let name = name.strip_suffix(b"_ret").unwrap_or(name);
    let found = WELL_KNOWN.iter().find(|(known, _)| known.as_bytes() == name);
    let function = found.map(|(_, function)| *function);
    // A probe may also bear its function's own name.
    let own = || TABLE.iter().find(|(own, _)| own.as_bytes() == name).map(|(own, _)| *own);
    function.or_else(own).map(str::as_bytes)
}
