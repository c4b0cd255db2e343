//! What a recording lacks, and what cannot be judged for it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_trace::recording::Recording;
use tlbscope_trace::regs::{MmuKind, Vendor};

use super::Reason;
use super::first::First;

/// Something that a recording does not show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lack {
    /// What is not there: a probe, or a class of operations.
    pub what: &'static str,
    /// What it would take to have it.
    pub record: &'static str,
    /// What cannot be judged for it.
    pub unjudged: &'static str,
}

const fn lack(what: &'static str, record: &'static str, unjudged: &'static str) -> Lack {
    Lack { what, record, unjudged }
}

/// What the recording lacks. A probe that never fired looks like one that was not set: the text says
/// "no line of", not "no probe".
pub fn lacks(recording: &Recording, first: &First, vendor: Vendor, mmu: MmuKind) -> Vec<Lack> {
    let probes = &first.probes;
    let shadow = mmu == MmuKind::Shadow;
    let intel = vendor == Vendor::Intel;
    let mut lacks = Vec::new();
    let mut unless = |there: bool, lack: Lack| {
        if !there {
            lacks.push(lack);
        }
    };
    unless(
        probes.flushes(),
        lack(
            "any flush",
            "kprobes on vmx_flush_tlb_{all,current,guest,gva} or svm_flush_tlb_{all,current,asid,gva}",
            "whether any operation was followed by its flush: nothing is judged",
        ),
    );
    if probes.flushes() {
        unless(
            !shadow || probes.flush_gva,
            lack(
                "a line of flush_tlb_gva",
                "a kprobe on vmx_flush_tlb_gva or svm_flush_tlb_gva",
                "INVLPG",
            ),
        );
        unless(
            probes.load_flush || !probes.load,
            lack(
                "the flush at the end of kvm_mmu_load",
                "kprobes on kvm_mmu_load with its return, and on the flush_current hook",
                "which flush_current is LOAD's own",
            ),
        );
        unless(
            probes.requests,
            lack(
                "requests",
                "`req=` (vcpu->requests) in the kprobes",
                "which request asked for a flush",
            ),
        );
        unless(
            probes.remote_flush,
            lack(
                "a line of kvm_flush_remote_tlbs",
                "a kprobe on kvm_flush_remote_tlbs",
                "whether a flush_all that nothing else asks for keeps the host's own books",
            ),
        );
    }
    unless(
        probes.reset || !probes.flushes(),
        lack(
            "a line of kvm_mmu_reset_context",
            "a kprobe on kvm_mmu_reset_context",
            "whether resets were needed",
        ),
    );
    unless(
        !shadow || probes.sync_roots,
        lack(
            "a line of kvm_mmu_sync_roots",
            "kprobes on kvm_mmu_sync_roots and kvm_mmu_sync_prev_roots",
            "whether the shadow roots in use were in sync",
        ),
    );
    unless(
        !shadow || probes.unsync,
        lack(
            "a page that turns unsync",
            "the tracepoints kvmmmu:kvm_mmu_unsync_page, kvm_mmu_sync_page, kvm_mmu_prepare_zap_page",
            "whether the shadow roots in use were in sync, and noflush-residence",
        ),
    );
    unless(
        probes.vcpu_load,
        lack(
            "a line of kvm_arch_vcpu_load",
            "a kprobe on kvm_arch_vcpu_load",
            "moves between physical CPUs: all is taken to happen on one",
        ),
    );
    unless(
        probes.old_cr4,
        lack(
            "what a write of CR4 replaced",
            "kprobes on kvm_post_set_cr0 and kvm_post_set_cr4 with old and new",
            "writes of bits that the guest owns",
        ),
    );
    unless(
        recording.census.understood.contains_key("kvm_entry")
            || recording.census.understood.is_empty(),
        lack(
            "entries",
            "the tracepoint kvm:kvm_entry",
            "nothing: the next exit of a vCPU proves an entry before it",
        ),
    );
    unless(
        !intel || recording.meta.vpid.is_some(),
        lack(
            "whether VPIDs are in use",
            "`vpid=` in a kprobe on vmx_vcpu_run",
            "nothing, if they are, as is taken for granted",
        ),
    );
    unless(
        shadow,
        lack(
            "the guest's MOV CR3, INVLPG and INVPCID",
            "nothing helps: they do not exit under TDP, the processor carries them out",
            "CR3 writes, INVLPG, INVPCID and which PCID is current: all PCIDs count as live",
        ),
    );
    unless(
        shadow || !intel,
        lack(
            "the guest's writes of CR0 and CR4 bits that it owns (CR4.PGE, CR0.WP among them)",
            "nothing helps: they do not exit with EPT, the processor carries them out",
            "toggles of such bits alone",
        ),
    );
    lacks
}

/// Reasons for which operations leave no line at all.
pub fn silent(first: &First, vendor: Vendor, mmu: MmuKind, unjudged: &mut BTreeMap<Reason, u64>) {
    if mmu == MmuKind::Tdp {
        for reason in ["cr3-not-intercepted", "invlpg-not-intercepted", "invpcid-not-intercepted"] {
            unjudged.entry(reason).or_default();
        }
        if vendor == Vendor::Intel {
            unjudged.entry("guest-owned-bits").or_default();
        }
    }
    if !first.probes.flushes() {
        unjudged.entry("no-flush-probes").or_default();
    }
}
