//! The probes, with the names a function had in other versions, the wanted one first.

use super::Vendor;

/// One place to probe.
pub(super) struct Probe {
    /// Names to try in this order.
    pub functions: &'static [&'static str],
    /// Read from registers: the calling convention is the same on every kernel.
    pub arguments: &'static [&'static str],
    /// Read through BTF: offsets differ per kernel.
    pub fields: &'static [&'static str],
    /// Whose, if not both.
    pub vendor: Option<Vendor>,
}

/// Tracepoints of KVM that the importer reads.
pub(super) const TRACEPOINTS: &[&str] = &[
    "kvm/kvm_cr",
    "kvm/kvm_exit",
    "kvm/kvm_entry",
    "kvm/kvm_page_fault",
    "kvm/kvm_msr",
    "kvm/kvm_inj_exception",
    "kvm/kvm_emulate_insn",
    "kvm/kvm_userspace_exit",
    "kvm/kvm_unmap_hva_range",
    "kvm/kvm_pv_tlb_flush",
    "kvm/kvm_hypercall",
    "kvm/kvm_cpuid",
    "kvmmmu/kvm_mmu_get_page",
    "kvmmmu/kvm_mmu_sync_page",
    "kvmmmu/kvm_mmu_unsync_page",
    "kvmmmu/kvm_mmu_prepare_zap_page",
    "kvmmmu/kvm_mmu_zap_all_fast",
];

/// Functions of KVM that the importer reads.
pub(super) const PROBES: &[Probe] = &[
    Probe {
        functions: &["kvm_set_cr0"],
        arguments: &["new=%si:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64", "old=vcpu->arch.cr0:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_set_cr3"],
        arguments: &["new=%si:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64", "old=vcpu->arch.cr3:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_set_cr4"],
        arguments: &["new=%si:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64", "old=vcpu->arch.cr4:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_post_set_cr0"],
        arguments: &["old=%si:x64", "new=%dx:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_post_set_cr4"],
        arguments: &["old=%si:x64", "new=%dx:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["svm_set_efer"],
        arguments: &["new=%si:x64", "caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64", "old=vcpu->arch.efer:x64"],
        vendor: Some(Vendor::Amd),
    },
    Probe {
        functions: &["svm_flush_tlb_all"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Amd),
    },
    Probe {
        functions: &["svm_flush_tlb_current"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Amd),
    },
    Probe {
        functions: &["svm_flush_tlb_gva"],
        arguments: &["gva=%si:x64", "caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Amd),
    },
    Probe {
        functions: &["vmx_set_efer"],
        arguments: &["new=%si:x64", "caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64", "old=vcpu->arch.efer:x64"],
        vendor: Some(Vendor::Intel),
    },
    Probe {
        functions: &["vmx_flush_tlb_all"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Intel),
    },
    Probe {
        functions: &["vmx_flush_tlb_current"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Intel),
    },
    Probe {
        functions: &["vmx_flush_tlb_gva"],
        arguments: &["gva=%si:x64", "caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Intel),
    },
    Probe {
        functions: &["vmx_flush_tlb_guest"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Intel),
    },
    Probe {
        functions: &["svm_flush_tlb_asid", "svm_flush_tlb_guest"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: Some(Vendor::Amd),
    },
    Probe {
        functions: &["kvm_mmu_reset_context"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_init_mmu"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_unload"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_sync_roots"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_sync_prev_roots"],
        arguments: &["caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_free_roots"],
        arguments: &["mask=%dx:x64", "caller=+0($stack):symbol"],
        fields: &["root=mmu->root.hpa:x64", "pgd=mmu->root.pgd:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_free_obsolete_roots", "__kvm_mmu_free_obsolete_roots"],
        arguments: &[],
        fields: &[],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_new_pgd"],
        arguments: &["new=%si:x64"],
        fields: &[
            "vcpu=vcpu->vcpu_id:u32",
            "req=vcpu->requests:x64",
            "pgd=vcpu->arch.mmu->root.pgd:x64",
            "root=vcpu->arch.mmu->root.hpa:x64",
        ],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_load"],
        arguments: &[],
        fields: &[
            "vcpu=vcpu->vcpu_id:u32",
            "req=vcpu->requests:x64",
            "pgd=vcpu->arch.mmu->root.pgd:x64",
            "root=vcpu->arch.mmu->root.hpa:x64",
            "cr3=vcpu->arch.cr3:x64",
        ],
        vendor: None,
    },
    Probe {
        functions: &["kvm_service_local_tlb_flush_requests"],
        arguments: &[],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_invlpg"],
        arguments: &["gva=%si:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_invalidate_addr", "kvm_mmu_invalidate_gva"],
        arguments: &["gva=%dx:x64", "caller=+0($stack):symbol"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_mmu_invpcid_gva"],
        arguments: &["gva=%si:x64", "pcid=%dx:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_handle_invpcid"],
        arguments: &["type=%si:x64", "gva=%dx:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_invalidate_pcid"],
        arguments: &["pcid=%si:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_flush_remote_tlbs"],
        arguments: &["kvm=%di:x64", "caller=+0($stack):symbol"],
        fields: &[],
        vendor: None,
    },
    Probe {
        functions: &["kvm_flush_remote_tlbs_range", "kvm_flush_remote_tlbs_with_address"],
        arguments: &["kvm=%di:x64", "gfn=%si:x64", "pages=%dx:x64", "caller=+0($stack):symbol"],
        fields: &[],
        vendor: None,
    },
    Probe {
        functions: &["kvm_make_all_cpus_request"],
        arguments: &["kvm=%di:x64", "reqno=%si:x32", "caller=+0($stack):symbol"],
        fields: &[],
        vendor: None,
    },
    Probe {
        functions: &["kvm_arch_vcpu_load"],
        arguments: &["newcpu=%si:s32"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64", "oldcpu=vcpu->cpu:s32"],
        vendor: None,
    },
    Probe {
        functions: &["kvm_vcpu_reset"],
        arguments: &["init=%si:u8"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["load_pdptrs"],
        arguments: &["cr3=%si:x64"],
        fields: &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"],
        vendor: None,
    },
    Probe {
        functions: &["vmx_vcpu_run"],
        arguments: &[],
        fields: &[
            "vcpu=vcpu->vcpu_id:u32",
            "req=vcpu->requests:x64",
            "cr0=vcpu->arch.cr0:x64",
            "cr3=vcpu->arch.cr3:x64",
            "cr4=vcpu->arch.cr4:x64",
            "efer=vcpu->arch.efer:x64",
            "pgd=vcpu->arch.mmu->root.pgd:x64",
            "root=vcpu->arch.mmu->root.hpa:x64",
        ],
        vendor: Some(Vendor::Intel),
    },
    Probe {
        functions: &["svm_vcpu_run", "kvm_load_guest_xsave_state"],
        arguments: &[],
        fields: &[
            "vcpu=vcpu->vcpu_id:u32",
            "req=vcpu->requests:x64",
            "cr0=vcpu->arch.cr0:x64",
            "cr3=vcpu->arch.cr3:x64",
            "cr4=vcpu->arch.cr4:x64",
            "efer=vcpu->arch.efer:x64",
            "pgd=vcpu->arch.mmu->root.pgd:x64",
            "root=vcpu->arch.mmu->root.hpa:x64",
        ],
        vendor: Some(Vendor::Amd),
    },
];
