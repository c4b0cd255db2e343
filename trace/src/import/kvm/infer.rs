//! What machine a recording shows, with the evidence for each answer.

use super::super::event::Event;
use super::Importer;
use super::exits::Exit;
use super::kernel::{Set, Signs};
use super::names::Shows;
use super::page::access_letters;
use super::vcpu::First;
use crate::recording::Meta;
use crate::regs::{Cr4, Efer, MmuKind, Regs, Vendor};

/// What was seen on the way.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues {
    /// A header of ftrace.
    pub header: bool,
    /// A header of `trace-cmd report`.
    pub report: bool,
    /// The kernel's release, where the form tells it.
    pub release: Option<String>,
    /// The header has the column `preempt-depth` but not `migrate-disable`, which came with 5.12.
    preempt_depth: bool,
    migrate_disable: bool,
    intel: Option<&'static str>,
    amd: Option<&'static str>,
    tdp: Option<&'static str>,
    shadow: Option<&'static str>,
    signs: Signs,
    /// Bits of CR4 and EFER in values that KVM accepted.
    cr4: u64,
    efer: u64,
}

impl Clues {
    pub fn comment(&mut self, text: &[u8]) {
        self.header |= text.starts_with(b"# tracer:");
        self.report |= text.starts_with(b"cpus=");
        let has = |word: &[u8]| text.windows(word.len()).any(|w| w == word);
        // The header names the columns one a line, migrate-disable behind preempt-depth.
        self.migrate_disable |= has(b"migrate-disable");
        self.preempt_depth |= has(b"preempt-depth");
    }

    /// Whether the kernel is older than 5.12: its request bit 1 is MMU_RELOAD.
    pub fn before_5_12(&self) -> bool {
        self.preempt_depth && !self.migrate_disable
            || self.release.as_deref().is_some_and(|release| release.starts_with("5.10."))
    }

    /// Whether AMD's hardware was seen.
    pub const fn is_amd(&self) -> bool {
        self.amd.is_some()
    }

    /// Whether a first VPID of 0 may still turn up and say that no hook did anything.
    pub const fn may_be_without_vpid(&self) -> bool {
        self.intel.is_some() && self.tdp.is_none()
    }

    pub fn event(&mut self, event: &Event<'_>, shows: Shows) {
        if event.function && !event.assumed {
            if event.name.starts_with(b"vmx_") {
                self.intel = Some("functions of kvm_intel are probed");
            } else if event.name.starts_with(b"svm_") {
                self.amd = Some("functions of kvm_amd are probed");
            }
        }
        match shows {
            Shows::TraceExit => self.exit(event),
            Shows::PostSetCr if event.name == b"kvm_post_set_cr4" => {
                self.cr4 |= event.num(b"new").unwrap_or(0);
            }
            Shows::VendorCr4 => self.cr4 |= event.num(b"val").unwrap_or(0),
            Shows::VendorEfer => {
                let value = event.num(b"efer").or_else(|| event.num(b"new"));
                self.efer |= value.unwrap_or(0);
            }
            Shows::Evidence if event.name == b"kvm_tdp_mmu_spte_changed" => {
                self.tdp = Some("entries of the TDP MMU change");
            }
            _ => {}
        }
        self.version(event, shows);
    }

    /// Signs of a kernel version. A function that is there proves a version, one that is not seen
    /// proves nothing: it may be inlined, or nobody probed it.
    fn version(&mut self, event: &Event<'_>, shows: Shows) {
        let (set, why) = match shows {
            Shows::NewPgd if event.has(b"skip_tlb_flush") => {
                (Set::V5_10, "kvm_mmu_new_pgd has the argument skip_tlb_flush")
            }
            Shows::FreeRoots => match event.num(b"mask") {
                Some(0xf) => (Set::SINCE_6_4, "kvm_mmu_free_roots with mask 0xf for all"),
                Some(0xffff_ffff | u64::MAX) => {
                    (Set::UP_TO_6_3, "kvm_mmu_free_roots with mask ~0 for all")
                }
                _ => return,
            },
            Shows::TracePageFault
                if event.has(b"vcpu_id") || event.text().starts_with(b"vcpu ") =>
            {
                (Set::SINCE_6_0, "kvm_page_fault names the vCPU")
            }
            Shows::TracePageFault => (Set::UP_TO_5_19, "kvm_page_fault does not name the vCPU"),
            Shows::TraceExit if requests(event) => (Set::SINCE_6_14, "kvm_exit prints `requests`"),
            Shows::TraceExit => (Set::UP_TO_6_12, "kvm_exit prints no `requests`"),
            Shows::SpGet if access_letters(event.text()) == Some(4) => {
                (Set::SINCE_7_2, "shadow pages have four letters of access")
            }
            Shows::SpGet if access_letters(event.text()) == Some(3) => {
                (Set::UP_TO_6_18, "shadow pages have three letters of access")
            }
            _ if event.assumed => return,
            _ => match event.name {
                b"kvm_mmu_invalidate_gva" => (Set::UP_TO_6_3, "kvm_mmu_invalidate_gva exists"),
                b"kvm_flush_remote_tlbs_with_address" => {
                    (Set::UP_TO_6_3, "kvm_flush_remote_tlbs_with_address exists")
                }
                b"kvm_mmu_invalidate_addr" => (Set::SINCE_6_4, "kvm_mmu_invalidate_addr exists"),
                b"kvm_mmu_free_obsolete_roots" | b"__kvm_mmu_free_obsolete_roots" => {
                    (Set::SINCE_5_18, "kvm_mmu_free_obsolete_roots exists")
                }
                b"kvm_reload_remote_mmus" => (Set::UP_TO_5_17, "kvm_reload_remote_mmus exists"),
                b"kvm_mmu_sync_prev_roots" => (Set::SINCE_5_17, "kvm_mmu_sync_prev_roots exists"),
                b"kvm_mmu_track_write" => (Set::SINCE_6_6, "kvm_mmu_track_write exists"),
                b"kvm_mmu_pte_write" => (Set::UP_TO_6_4, "kvm_mmu_pte_write exists"),
                b"kvm_set_spte_hva" => (Set::UP_TO_6_4, "kvm_set_spte_hva exists"),
                _ => return,
            },
        };
        self.signs.add(set, why);
    }

    fn exit(&mut self, event: &Event<'_>) {
        match Exit::of(event, self.is_amd()) {
            Exit::Vmx(number, _) => {
                self.intel = self.intel.or(Some("exit reasons are Intel's"));
                match number {
                    48 | 49 => self.tdp = Some("EPT violations or misconfigurations exit"),
                    14 | 58 => self.shadow = Some("INVLPG or INVPCID exits"),
                    _ => {}
                }
            }
            Exit::Svm(number, _) => {
                self.amd = self.amd.or(Some("exit reasons are AMD's"));
                match number {
                    0x400 => self.tdp = Some("nested page faults exit"),
                    0x13 | 0x4e => self.shadow = Some("page faults or CR3 writes exit"),
                    _ => {}
                }
            }
            Exit::Unknown => {}
        }
    }
}

/// Whether a kvm_exit tells the pending requests.
fn requests(event: &Event<'_>) -> bool {
    event.has(b"requests") || event.text().windows(12).any(|w| w == b" requests 0x")
}

/// What is known at the end of an import.
pub(super) fn meta(importer: &Importer<'_>, form: &str) -> Meta {
    let mut meta = Meta {
        source: importer.name.clone(),
        form: form.to_owned(),
        vcpus: u16::try_from(importer.vcpus.len()).unwrap_or(u16::MAX),
        losses: importer.losses.clone(),
        ..Meta::default()
    };
    vendor_and_mmu(importer, &mut meta);
    vpid(importer, &mut meta);
    kernel(importer, &mut meta);
    registers(importer, &mut meta);
    let (names, count) = importer.names.assumed();
    if count > 0 {
        let names = names.join(", ");
        meta.evidence.push(format!(
            "assumption: {count} events show only an address and are taken for what their names \
             say ({names}); --kallsyms or --probes tells the functions"
        ));
    }
    if importer.tenants.homeless > 0 {
        meta.evidence.push(format!(
            "{} events of the host name no VM, while there are several: left out",
            importer.tenants.homeless
        ));
    }
    features(importer, &mut meta);
    threads(importer, &mut meta);
    meta
}

fn vendor_and_mmu(importer: &Importer<'_>, meta: &mut Meta) {
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

fn vpid(importer: &Importer<'_>, meta: &mut Meta) {
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

/// The recorded kernel.
fn kernel(importer: &Importer<'_>, meta: &mut Meta) {
    let mut signs = importer.clues.signs.clone();
    if importer.clues.before_5_12() {
        signs.add(Set::V5_10, "ftrace's header has no column migrate-disable (before 5.12)");
    } else if importer.clues.migrate_disable {
        signs.add(Set::SINCE_5_12, "ftrace's header has the column migrate-disable");
    }
    let (policy, why) = signs.decide(importer.clues.release.as_deref());
    meta.kernel = policy.map(str::to_owned);
    meta.evidence.push(why);
}

/// What each vCPU's registers were before the first operation that wrote them.
fn registers(importer: &Importer<'_>, meta: &mut Meta) {
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
fn features(importer: &Importer<'_>, meta: &mut Meta) {
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

fn threads(importer: &Importer<'_>, meta: &mut Meta) {
    for (number, vcpu) in importer.vcpus.iter().enumerate() {
        if let (Some(last), Some(other)) = (vcpu.thread, vcpu.other_thread) {
            meta.evidence.push(format!(
                "v{number} ran on more than one thread ({other}, {last}): perhaps several VMs"
            ));
        }
    }
}
