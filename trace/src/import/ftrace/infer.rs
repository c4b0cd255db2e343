//! What machine a recording shows, with the evidence for each answer.

use super::line::{Event, arg, text_arg};
use super::names::Shows;
use super::vcpu::First;
use super::{Importer, exits};
use crate::act::{Act, Hook};
use crate::recording::{Body, Meta, Recording};
use crate::regs::{Cr4, Efer, MmuKind, Regs, Vendor};

/// What was seen on the way.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues {
    /// A header of ftrace.
    pub header: bool,
    /// The header has the column `preempt-depth` but not `migrate-disable`, which came with 5.12.
    pub before_5_12: bool,
    intel: Option<&'static str>,
    amd: Option<&'static str>,
    tdp: Option<&'static str>,
    shadow: Option<&'static str>,
    /// Argument of kvm_mmu_new_pgd that 5.17 has no more.
    skip_flush: bool,
    /// kvm_mmu_invalidate_addr, kvm_flush_remote_tlbs_range or a free mask of 0xf: 6.4 and later.
    since_6_4: Option<&'static str>,
    /// kvm_mmu_invalidate_gva or a free mask of all ones: before 6.4.
    before_6_4: Option<&'static str>,
    /// Bits of CR4 and EFER in values that KVM accepted.
    cr4: u64,
    efer: u64,
    /// Probes that were taken for the function that their name suggests.
    pub assumed: u64,
    /// kvm_exit prints `requests`.
    exit_requests: bool,
}

impl Clues {
    pub fn comment(&mut self, text: &[u8]) {
        self.header |= text.starts_with(b"# tracer:");
        let has = |word: &[u8]| text.windows(word.len()).any(|w| w == word);
        // The header names the columns one a line, migrate-disable behind preempt-depth.
        if has(b"migrate-disable") {
            self.before_5_12 = false;
        } else if has(b"preempt-depth") {
            self.before_5_12 = true;
        }
    }

    pub fn event(&mut self, event: &Event<'_>, shows: Shows) {
        if event.function {
            if event.name.starts_with(b"vmx_") {
                self.intel = Some("functions of kvm_intel are probed");
            } else if event.name.starts_with(b"svm_") {
                self.amd = Some("functions of kvm_amd are probed");
            }
        }
        match shows {
            Shows::TraceExit => self.exit(event),
            Shows::PostSetCr if event.name == b"kvm_post_set_cr4" => {
                self.cr4 |= arg(event.args, b"new=").unwrap_or(0);
            }
            Shows::VendorCr4 => self.cr4 |= arg(event.args, b"val=").unwrap_or(0),
            Shows::VendorEfer => {
                let value = arg(event.args, b"efer=").or_else(|| arg(event.args, b"new="));
                self.efer |= value.unwrap_or(0);
            }
            Shows::NewPgd if text_arg(event.args, b"skip_tlb_flush=").is_some() => {
                self.skip_flush = true;
            }
            Shows::FreeRoots => match text_arg(event.args, b"mask=") {
                Some(b"0xf") => self.since_6_4 = Some("kvm_mmu_free_roots with mask 0xf for all"),
                Some(b"0xffffffff" | b"0xffffffffffffffff") => {
                    self.before_6_4 = Some("kvm_mmu_free_roots with mask ~0 for all");
                }
                _ => {}
            },
            Shows::InvalidateGva if event.name == b"kvm_mmu_invalidate_addr" => {
                self.since_6_4 = Some("kvm_mmu_invalidate_addr exists");
            }
            Shows::InvalidateGva => self.before_6_4 = Some("kvm_mmu_invalidate_gva exists"),
            Shows::Evidence if event.name == b"kvm_tdp_mmu_spte_changed" => {
                self.tdp = Some("entries of the TDP MMU change");
            }
            _ => {}
        }
    }

    fn exit(&mut self, event: &Event<'_>) {
        let reason = super::line::word_after(event.args, b"reason").unwrap_or(b"");
        match (exits::vmx(reason), exits::svm(reason)) {
            (Some(number), _) => {
                self.intel = self.intel.or(Some("exit reasons are Intel's"));
                match number {
                    48 | 49 => self.tdp = Some("EPT violations or misconfigurations exit"),
                    14 | 58 => self.shadow = Some("INVLPG or INVPCID exits"),
                    _ => {}
                }
            }
            (_, Some(number)) => {
                self.amd = self.amd.or(Some("exit reasons are AMD's"));
                match number {
                    0x400 => self.tdp = Some("nested page faults exit"),
                    0x13 | 0x4e => self.shadow = Some("page faults or CR3 writes exit"),
                    _ => {}
                }
            }
            _ => {}
        }
        self.exit_requests |= event.args.windows(12).any(|w| w == b" requests 0x");
    }
}

/// Ends an import.
pub(super) fn finish(importer: Importer, name: &str) -> Recording {
    let mut meta = Meta {
        source: name.to_owned(),
        form: "ftrace".to_owned(),
        vcpus: u16::try_from(importer.vcpus.len()).unwrap_or(u16::MAX),
        losses: importer.losses.clone(),
        ..Meta::default()
    };
    vendor_and_mmu(&importer, &mut meta);
    vpid(&importer, &mut meta);
    kernel(&importer, &mut meta);
    registers(&importer, &mut meta);
    if importer.clues.assumed > 0 {
        let count = importer.clues.assumed;
        meta.evidence.push(format!(
            "assumption: {count} lines print an address only and are taken for what their names say"
        ));
    }
    features(&importer, &mut meta);
    threads(&importer, &mut meta);
    let mut census = importer.names.census();
    if importer.junk > 0 {
        census.unknown.insert("(lines that are no events)".to_owned(), importer.junk);
    }
    let mut records = importer.records;
    if meta.vpid == Some(false) && meta.mmu == Some(MmuKind::Shadow) {
        without_vpid(&mut records);
    }
    Recording { meta, census, records }
}

fn vendor_and_mmu(importer: &Importer, meta: &mut Meta) {
    let clues = &importer.clues;
    let note = |what: &str, why: &str| format!("{what}: {why}");
    match (clues.intel, clues.amd) {
        (Some(why), None) => {
            meta.vendor = Some(Vendor::Intel);
            meta.evidence.push(note("vendor intel", why));
        }
        (None, Some(why)) => {
            meta.vendor = Some(Vendor::Amd);
            meta.evidence.push(note("vendor amd", why));
        }
        (Some(_), Some(_)) => {
            meta.evidence.push(note("vendor not decided", "there are signs of both"));
        }
        (None, None) => meta.evidence.push(note("vendor not decided", "nothing shows it")),
    }
    // Exits for nested or EPT faults happen under TDP alone; INVLPG also exits with EPT when a
    // debugger asks, so TDP's signs go first.
    match (clues.tdp, clues.shadow) {
        (Some(why), _) => {
            meta.mmu = Some(MmuKind::Tdp);
            meta.evidence.push(note("mmu tdp", why));
        }
        (None, Some(why)) => {
            meta.mmu = Some(MmuKind::Shadow);
            meta.evidence.push(note("mmu shadow", why));
        }
        (None, None) if importer.names.seen("kvm_page_fault") > 0 => {
            meta.mmu = Some(MmuKind::Shadow);
            let why = "page faults reach KVM and none is an EPT violation or nested page fault";
            meta.evidence.push(note("mmu shadow", why));
        }
        (None, None) => meta.evidence.push(note("mmu not decided", "nothing shows it")),
    }
}

fn vpid(importer: &Importer, meta: &mut Meta) {
    let seen: Vec<u64> = importer.vcpus.iter().filter_map(|vcpu| vcpu.vpid).collect();
    if meta.vendor == Some(Vendor::Amd) {
        return;
    }
    match seen.first() {
        Some(_) => {
            let used = seen.iter().any(|&vpid| vpid != 0);
            meta.vpid = Some(used);
            let how = if used { "vpid in use" } else { "vpid not in use" };
            meta.evidence.push(format!("{how}: the entry function prints it"));
        }
        None => meta.evidence.push("vpid not decided: no probe prints it".to_owned()),
    }
}

/// The recorded kernel, as far as probes tell versions apart. Backports may look like any of them.
fn kernel(importer: &Importer, meta: &mut Meta) {
    let clues = &importer.clues;
    let (policy, why) = if clues.skip_flush || clues.before_5_12 {
        let why = if clues.skip_flush {
            "kvm_mmu_new_pgd has the argument skip_tlb_flush"
        } else {
            "ftrace's header has no column migrate-disable (before 5.12)"
        };
        ("kvm-5.10", why)
    } else if clues.exit_requests {
        ("kvm-7.3", "kvm_exit prints `requests`, as the 7.3 recordings do; 6.18 acts alike")
    } else if let Some(why) = clues.since_6_4 {
        ("kvm-6.12-lts", why)
    } else if let Some(why) = clues.before_6_4 {
        ("kvm-6.1-lts", why)
    } else {
        meta.evidence.push("kernel not decided: no probe tells the version".to_owned());
        return;
    };
    meta.kernel = Some(policy.to_owned());
    meta.evidence.push(format!("kernel {policy}: {why}"));
}

/// What each vCPU's registers were before the first operation that wrote them.
fn registers(importer: &Importer, meta: &mut Meta) {
    for (number, vcpu) in importer.vcpus.iter().enumerate() {
        let value = |reg: usize| match vcpu.first[reg] {
            First::Value(value) => value,
            _ => 0,
        };
        let [cr0, cr3, cr4, efer] = [0, 1, 2, 3].map(value);
        meta.initial_regs.push(Regs { cr0, cr3, cr4, efer, ..Regs::default() });
        let names = ["CR0", "CR3", "CR4", "EFER"];
        let unseen: Vec<&str> = (0..4)
            .filter(|&reg| !matches!(vcpu.first[reg], First::Value(_)))
            .map(|reg| names[reg])
            .collect();
        if !unseen.is_empty() {
            let names = unseen.join(", ");
            meta.evidence.push(format!("v{number}: first value of {names} not seen, taken as 0"));
        }
    }
}

/// Features that accepted register values or operations prove, by their names in scenarios.
fn features(importer: &Importer, meta: &mut Meta) {
    let (cr4, efer) = (importer.clues.cr4, importer.clues.efer);
    let bits = [
        ("la57", Cr4::LA57),
        ("pcid", Cr4::PCIDE),
        ("pge", Cr4::PGE),
        ("pku", Cr4::PKE),
        ("smap", Cr4::SMAP),
        ("smep", Cr4::SMEP),
    ];
    let mut found: Vec<&str> =
        bits.iter().filter(|(_, bit)| cr4 & bit.bits() != 0).map(|(name, _)| *name).collect();
    if efer & Efer::NXE.bits() != 0 {
        found.push("nx");
    }
    if importer.names.seen("kvm_handle_invpcid") > 0 {
        found.push("invpcid");
    }
    found.sort_unstable();
    if !found.is_empty() {
        let names = found.join(", ");
        meta.evidence.push(format!("features at least {names}: the guest uses them"));
    }
    meta.features = found.into_iter().map(str::to_owned).collect();
}

fn threads(importer: &Importer, meta: &mut Meta) {
    for (number, vcpu) in importer.vcpus.iter().enumerate() {
        if let (Some(last), Some(other)) = (vcpu.thread, vcpu.other_thread) {
            meta.evidence.push(format!(
                "v{number} ran on more than one thread ({other}, {last}): perhaps several VMs"
            ));
        }
    }
}

/// With VPID 0 no hook executes anything: every entry and exit flushes.
fn without_vpid(records: &mut [crate::Record]) {
    for record in records {
        if let Body::Act(Act::Hook { hook, effective, .. }) = &mut record.body
            && matches!(hook, Hook::All | Hook::Current | Hook::Guest | Hook::Gva(_))
        {
            *effective = false;
        }
    }
}
