//! The probes, with the names a function had in other versions, the wanted one first.

use super::Vendor;

/// One place to probe.
pub(super) struct Probe {
    /// Names to try in this order.
    pub functions: &'static [&'static str],
    /// Read from registers: the calling convention is the same on every kernel.
    pub arguments: &'static [&'static str],
    /// Members of structures, in lists: offsets differ between kernels. Each is `name=PARAMETER->PATH:TYPE`,
    /// with the other spellings of the path behind `|`.
    pub fields: &'static [&'static [&'static str]],
    /// The return is recorded too, with its value.
    pub returns: bool,
    /// Whose, if not both.
    pub vendor: Option<Vendor>,
}

impl Probe {
    /// A function of a vCPU: number and requests.
    const fn of(functions: &'static [&'static str]) -> Self {
        Self { functions, arguments: &[], fields: &[VCPU], returns: false, vendor: None }
    }

    const fn arguments(self, arguments: &'static [&'static str]) -> Self {
        Self { arguments, ..self }
    }

    const fn fields(self, fields: &'static [&'static [&'static str]]) -> Self {
        Self { fields, ..self }
    }

    const fn returns(self) -> Self {
        Self { returns: true, ..self }
    }

    const fn vendor(self, vendor: Vendor) -> Self {
        Self { vendor: Some(vendor), ..self }
    }
}

/// The first parameters of the probed functions: where they are passed, and of what structure.
pub(super) const PARAMETERS: &[(&str, &str, &str)] =
    &[("vcpu", "%di", "kvm_vcpu"), ("mmu", "%si", "kvm_mmu"), ("range", "%si", "kvm_gfn_range")];

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

const CALLER: &[&str] = &["caller=+0($stack):symbol"];
const VCPU: &[&str] = &["vcpu=vcpu->vcpu_id:u32", "req=vcpu->requests:x64"];
const REGS: &[&str] = &[
    "cr0=vcpu->arch.cr0:x64",
    "cr3=vcpu->arch.cr3:x64",
    "cr4=vcpu->arch.cr4:x64",
    "efer=vcpu->arch.efer:x64",
];
/// The active root and the cached ones, of the vCPU's MMU. Up to 5.16 the former are members of their own.
const ROOTS: &[&str] = &[
    "pgd=vcpu->arch.mmu->root.pgd|arch.mmu->root_pgd:x64",
    "root=vcpu->arch.mmu->root.hpa|arch.mmu->root_hpa:x64",
    "p0=vcpu->arch.mmu->prev_roots[0].pgd:x64",
    "h0=vcpu->arch.mmu->prev_roots[0].hpa:x64",
    "p1=vcpu->arch.mmu->prev_roots[1].pgd:x64",
    "h1=vcpu->arch.mmu->prev_roots[1].hpa:x64",
    "p2=vcpu->arch.mmu->prev_roots[2].pgd:x64",
    "h2=vcpu->arch.mmu->prev_roots[2].hpa:x64",
];
/// The same of an MMU that is a parameter.
const MMU_ROOTS: &[&str] = &[
    "pgd=mmu->root.pgd|root_pgd:x64",
    "root=mmu->root.hpa|root_hpa:x64",
    "p0=mmu->prev_roots[0].pgd:x64",
    "h0=mmu->prev_roots[0].hpa:x64",
    "p1=mmu->prev_roots[1].pgd:x64",
    "h1=mmu->prev_roots[1].hpa:x64",
    "p2=mmu->prev_roots[2].pgd:x64",
    "h2=mmu->prev_roots[2].hpa:x64",
];

/// Functions of KVM that the importer reads.
pub(super) const PROBES: &[Probe] = &[
    Probe::of(&["kvm_set_cr0"])
        .arguments(&["new=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr0:x64"]])
        .returns(),
    Probe::of(&["kvm_set_cr3"])
        .arguments(&["new=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr3:x64"]])
        .returns(),
    Probe::of(&["kvm_set_cr4"])
        .arguments(&["new=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr4:x64"]])
        .returns(),
    Probe::of(&["kvm_post_set_cr0"]).arguments(&["old=%si:x64", "new=%dx:x64"]),
    Probe::of(&["kvm_post_set_cr4"]).arguments(&["old=%si:x64", "new=%dx:x64"]),
    Probe::of(&["svm_set_efer"])
        .arguments(&["new=%si:x64", "caller=+0($stack):symbol"])
        .fields(&[VCPU, &["old=vcpu->arch.efer:x64"]])
        .vendor(Vendor::Amd),
    Probe::of(&["svm_set_cr0"])
        .arguments(&["val=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr0:x64"]])
        .vendor(Vendor::Amd),
    Probe::of(&["svm_set_cr4"])
        .arguments(&["val=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr4:x64"]])
        .vendor(Vendor::Amd),
    Probe::of(&["svm_flush_tlb_all"]).arguments(CALLER).vendor(Vendor::Amd),
    Probe::of(&["svm_flush_tlb_current"])
        .arguments(CALLER)
        .fields(&[VCPU, &["root=vcpu->arch.mmu->root.hpa|arch.mmu->root_hpa:x64"]])
        .vendor(Vendor::Amd),
    Probe::of(&["svm_flush_tlb_gva"])
        .arguments(&["gva=%si:x64", "caller=+0($stack):symbol"])
        .vendor(Vendor::Amd),
    Probe::of(&["svm_flush_tlb_asid", "svm_flush_tlb_guest", "svm_flush_tlb"])
        .arguments(CALLER)
        .vendor(Vendor::Amd),
    Probe::of(&["svm_load_mmu_pgd"]).arguments(&["root_hpa=%si:x64"]).vendor(Vendor::Amd),
    Probe::of(&["vmx_set_efer"])
        .arguments(&["new=%si:x64", "caller=+0($stack):symbol"])
        .fields(&[VCPU, &["old=vcpu->arch.efer:x64"]])
        .vendor(Vendor::Intel),
    Probe::of(&["vmx_set_cr0"])
        .arguments(&["val=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr0:x64"]])
        .vendor(Vendor::Intel),
    Probe::of(&["vmx_set_cr4"])
        .arguments(&["val=%si:x64"])
        .fields(&[VCPU, &["old=vcpu->arch.cr4:x64"]])
        .vendor(Vendor::Intel),
    Probe::of(&["vmx_flush_tlb_all"]).arguments(CALLER).vendor(Vendor::Intel),
    Probe::of(&["vmx_flush_tlb_current"])
        .arguments(CALLER)
        .fields(&[VCPU, &["root=vcpu->arch.mmu->root.hpa|arch.mmu->root_hpa:x64"]])
        .vendor(Vendor::Intel),
    Probe::of(&["vmx_flush_tlb_gva"])
        .arguments(&["gva=%si:x64", "caller=+0($stack):symbol"])
        .vendor(Vendor::Intel),
    Probe::of(&["vmx_flush_tlb_guest"]).arguments(CALLER).vendor(Vendor::Intel),
    Probe::of(&["vmx_load_mmu_pgd"]).arguments(&["root_hpa=%si:x64"]).vendor(Vendor::Intel),
    Probe::of(&["kvm_mmu_reset_context"]).arguments(CALLER),
    Probe::of(&["kvm_init_mmu"]).arguments(CALLER),
    Probe::of(&["kvm_mmu_unload"]).arguments(CALLER),
    Probe::of(&["kvm_mmu_sync_roots"]).arguments(CALLER),
    Probe::of(&["kvm_mmu_sync_prev_roots"]).arguments(CALLER),
    Probe::of(&["kvm_mmu_free_roots"])
        .arguments(&["mask=%dx:x64", "caller=+0($stack):symbol"])
        .fields(&[MMU_ROOTS]),
    Probe::of(&["kvm_mmu_free_obsolete_roots", "__kvm_mmu_free_obsolete_roots"]).fields(&[]),
    Probe::of(&["kvm_mmu_new_pgd"]).arguments(&["new=%si:x64"]).fields(&[VCPU, ROOTS]),
    Probe::of(&["kvm_mmu_load"]).fields(&[VCPU, ROOTS, &["cr3=vcpu->arch.cr3:x64"]]).returns(),
    Probe::of(&["kvm_service_local_tlb_flush_requests"]),
    Probe::of(&["kvm_mmu_invlpg"]).arguments(&["gva=%si:x64"]),
    Probe::of(&["kvm_mmu_invalidate_addr", "kvm_mmu_invalidate_gva"])
        .arguments(&["gva=%dx:x64", "caller=+0($stack):symbol"]),
    Probe::of(&["kvm_mmu_invpcid_gva"]).arguments(&["gva=%si:x64", "pcid=%dx:x64"]),
    Probe::of(&["kvm_handle_invpcid"]).arguments(&["type=%si:x64", "gva=%dx:x64"]),
    Probe::of(&["kvm_invalidate_pcid"]).arguments(&["pcid=%si:x64"]),
    Probe::of(&["kvm_flush_remote_tlbs"])
        .arguments(&["kvm=%di:x64", "caller=+0($stack):symbol"])
        .fields(&[]),
    Probe::of(&["kvm_flush_remote_tlbs_range", "kvm_flush_remote_tlbs_with_address"])
        .arguments(&["kvm=%di:x64", "gfn=%si:x64", "pages=%dx:x64", "caller=+0($stack):symbol"])
        .fields(&[]),
    Probe::of(&["kvm_make_all_cpus_request"])
        .arguments(&["kvm=%di:x64", "reqno=%si:x32", "caller=+0($stack):symbol"])
        .fields(&[]),
    Probe::of(&["kvm_reload_remote_mmus", "kvm_mmu_zap_all_fast"])
        .arguments(&["kvm=%di:x64"])
        .fields(&[]),
    Probe::of(&["kvm_unmap_gfn_range"])
        .arguments(&["kvm=%di:x64"])
        .fields(&[&["start=range->start:x64", "end=range->end:x64"]]),
    Probe::of(&["kvm_arch_vcpu_load"])
        .arguments(&["newcpu=%si:s32"])
        .fields(&[VCPU, &["oldcpu=vcpu->cpu:s32"]]),
    Probe::of(&["kvm_vcpu_reset"]).arguments(&["init=%si:u8"]),
    Probe::of(&["kvm_arch_vcpu_ioctl_set_sregs"]),
    Probe::of(&["kvm_mmu_after_set_cpuid", "kvm_vcpu_after_set_cpuid"]),
    Probe::of(&["load_pdptrs"]).arguments(&["cr3=%si:x64"]),
    Probe::of(&["kvm_skip_emulated_instruction"]),
    Probe::of(&["kvm_complete_insn_gp"]).arguments(&["err=%si:s32"]),
    Probe::of(&["vmx_vcpu_run"]).fields(&[VCPU, REGS, ROOTS]).vendor(Vendor::Intel),
    Probe::of(&["svm_vcpu_run", "kvm_load_guest_xsave_state"])
        .fields(&[VCPU, REGS, ROOTS])
        .vendor(Vendor::Amd),
];
