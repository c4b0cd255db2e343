//! Rules: from an operation to actions. A rule's condition is a small tree of masks; testing it is
//! a few instructions and allocates nothing.

use tlbscope_trace::act::Request;
use tlbscope_trace::regs::Vendor;

pub mod bits;

/// A flush hook of the vendor, called directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookName {
    /// flush_tlb_all.
    All,
    /// flush_tlb_current.
    Current,
    /// flush_tlb_guest, with what a guest flush means for shadow pages.
    Guest,
    /// flush_tlb_gva, for the address of the operation.
    Gva,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// kvm_mmu_reset_context (see `mechanics.reset`).
    MmuReset,
    /// kvm_init_mmu: the role is computed again, roots stay.
    MmuInit,
    /// kvm_mmu_unload, at once.
    MmuUnload,
    /// Requests MMU_RELOAD.
    MmuReload,
    /// Requests MMU_FREE_OBSOLETE_ROOTS.
    FreeObsoleteRoots,
    /// Requests this.
    Request(Request),
    /// kvm_invalidate_pcid for the PCID of the operation (facts 2.3).
    InvalidatePcid,
    /// kvm_mmu_new_pgd for the CR3 written (facts 2.4).
    NewPgd,
    /// load_pdptrs (facts 2.2); does nothing outside PAE paging.
    LoadPdptrs,
    /// Syncs the current root at once.
    SyncNow,
    /// Calls a flush hook at once.
    FlushHook(HookName),
    /// Zaps every shadow and TDP page of the VM.
    ZapAll,
}

/// What a rule list belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    /// CR0 writes (MOV, LMSW, CLTS).
    Cr0,
    /// CR3 writes and task switches.
    Cr3,
    /// CR4 writes.
    Cr4,
    /// EFER writes.
    Efer,
    /// INIT and RESET; `old` is CR0 before, `new` after.
    Init,
    /// INVLPG and INVLPGA: what is done besides the invalidation of the address, which is a
    /// mechanic (`invlpg`, `invlpg-roots`).
    Invlpg,
    /// INVPCID. For type 0 (`addr`) what is done besides kvm_mmu_invpcid_gva (facts 4.2).
    Invpcid,
    /// SMM is entered or left (kvm_smm_changed); an SMI asks a second time, after the registers
    /// were cleared (facts 3.3).
    Smm,
    /// KVM_SET_CPUID.
    Cpuid,
}

impl Register {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Cr0,
        Self::Cr3,
        Self::Cr4,
        Self::Efer,
        Self::Init,
        Self::Invlpg,
        Self::Invpcid,
        Self::Smm,
        Self::Cpuid,
    ];

    /// The key of its rule list in a policy.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Cr0 => "cr0",
            Self::Cr3 => "cr3",
            Self::Cr4 => "cr4",
            Self::Efer => "efer",
            Self::Init => "init",
            Self::Invlpg => "invlpg",
            Self::Invpcid => "invpcid",
            Self::Smm => "smm",
            Self::Cpuid => "cpuid",
        }
    }
}

/// The operation that a rule is asked about. What does not apply stays at its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The register before.
    pub old: u64,
    /// The register after.
    pub new: u64,
    /// KVM uses EPT or NPT.
    pub tdp: bool,
    /// The vendor.
    pub vendor: Vendor,
    /// CR3: the value equals the old one.
    pub same: bool,
    /// CR3: bit 63 was set, with CR4.PCIDE = 1.
    pub noflush: bool,
    /// CR4.PCIDE (for CR3, INVPCID, INVLPG).
    pub pcide: bool,
    /// INIT rather than RESET.
    pub init: bool,
    /// The INVPCID type, 0 to 3.
    pub invpcid: Option<u8>,
    /// PAE paging (CR0.PG, CR4.PAE, not EFER.LMA) after the operation.
    pub pae: bool,
    /// The VM has non-coherent DMA, and the CD/NW quirk is off.
    pub noncoherent_dma: bool,
}

/// When a rule applies. The keys of one `when` table are joined as [`When::All`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// `changed`: any of these bits differs.
    Changed(u64),
    /// `set`: any of these went 0 to 1.
    Set(u64),
    /// `cleared`: any of these went 1 to 0.
    Cleared(u64),
    /// `only`: no other bit differs.
    Only(u64),
    /// `was`: all of these were 1.
    Was(u64),
    /// `now`: all of these are 1.
    Now(u64),
    /// `tdp`.
    Tdp(bool),
    /// `vendor`.
    Vendor(Vendor),
    /// `same`.
    Same(bool),
    /// `noflush`.
    Noflush(bool),
    /// `pcide`.
    Pcide(bool),
    /// `pae`.
    Pae(bool),
    /// `noncoherent-dma`.
    NoncoherentDma(bool),
    /// `init`.
    Init(bool),
    /// `type`: any of these INVPCID types, as a mask of 1 << type.
    Type(u8),
    /// `any`.
    Any(Box<[When]>),
    /// `all`; the empty list always holds.
    All(Box<[When]>),
    /// `not`.
    Not(Box<When>),
}

impl When {
    /// Whether the condition holds.
    #[must_use]
    pub fn holds(&self, c: &Change) -> bool {
        match self {
            Self::Changed(m) => (c.old ^ c.new) & m != 0,
            Self::Set(m) => !c.old & c.new & m != 0,
            Self::Cleared(m) => c.old & !c.new & m != 0,
            Self::Only(m) => (c.old ^ c.new) & !m == 0,
            Self::Was(m) => c.old & m == *m,
            Self::Now(m) => c.new & m == *m,
            Self::Tdp(v) => c.tdp == *v,
            Self::Vendor(v) => c.vendor == *v,
            Self::Same(v) => c.same == *v,
            Self::Noflush(v) => c.noflush == *v,
            Self::Pcide(v) => c.pcide == *v,
            Self::Pae(v) => c.pae == *v,
            Self::NoncoherentDma(v) => c.noncoherent_dma == *v,
            Self::Init(v) => c.init == *v,
            Self::Type(m) => c.invpcid.is_some_and(|t| t < 4 && m >> t & 1 != 0),
            Self::Any(list) => list.iter().any(|w| w.holds(c)),
            Self::All(list) => list.iter().all(|w| w.holds(c)),
            Self::Not(w) => !w.holds(c),
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name in findings and `explain`.
    pub id: String,
    /// One sentence.
    pub about: String,
    /// Where it is from.
    pub source: String,
    /// Only if the rule before it did not match. A chain of `else` rules goes on until one of it
    /// has matched.
    pub or_else: bool,
    /// When it applies.
    pub when: When,
    /// What it does, in order.
    pub actions: Vec<Action>,
}

/// The rules of a list that match, in order.
#[derive(Clone, Debug)]
pub struct Matching<'a> {
    pub(super) rules: std::slice::Iter<'a, Rule>,
    pub(super) change: &'a Change,
    /// The chain of rules that the last one belongs to has matched.
    pub(super) taken: bool,
}

impl<'a> Iterator for Matching<'a> {
    type Item = &'a Rule;

    fn next(&mut self) -> Option<&'a Rule> {
        for rule in self.rules.by_ref() {
            if rule.or_else && self.taken {
                continue;
            }
            self.taken = rule.when.holds(self.change);
            if self.taken {
                return Some(rule);
            }
        }
        None
    }
}
