//! The alphabet in which a recording and the model are compared: the functions of KVM that both
//! can tell of, with the arguments that matter.

use std::fmt;

use tlbscope_trace::act::{Act, FreeWhy, Hook, HookBy};
use tlbscope_trace::addr::{Gva, Pcid};

/// One action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Token {
    /// kvm_mmu_reset_context, its frees of all roots included.
    Reset,
    /// kvm_mmu_unload, or frees of all roots that stand for it.
    Unload,
    /// kvm_init_mmu.
    Init,
    /// kvm_mmu_new_pgd; a [`Token::Free`] of the active root after it tells a miss.
    NewPgd,
    /// kvm_mmu_free_roots of single roots: bit 0 the active one, bits 1 to 3 prev_roots.
    Free(u8),
    /// kvm_invalidate_pcid.
    InvalidatePcid(Pcid),
    /// kvm_mmu_invlpg and its kin.
    InvalidateGva(Gva),
    /// load_pdptrs.
    LoadPdptrs,
    /// kvm_mmu_sync_roots of a valid root.
    SyncRoots,
    /// kvm_mmu_sync_prev_roots.
    SyncPrevRoots,
    /// kvm_mmu_free_obsolete_roots.
    FreeObsolete,
    /// kvm_mmu_load.
    Load,
    /// The vendor's load_mmu_pgd.
    LoadPgd,
    /// flush_tlb_all.
    FlushAll,
    /// flush_tlb_current.
    FlushCurrent,
    /// flush_tlb_guest.
    FlushGuest,
    /// flush_tlb_gva.
    FlushGva(Gva),
    /// The entry.
    Entry,
}

/// The kind of a token: what a recording contains or not, and what agreement is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(u8);

const NAMES: [&str; 18] = [
    "reset",
    "unload",
    "init",
    "new-pgd",
    "free-roots",
    "invalidate-pcid",
    "invalidate-gva",
    "load-pdptrs",
    "sync-roots",
    "sync-prev-roots",
    "free-obsolete",
    "load",
    "load-pgd",
    "flush-all",
    "flush-current",
    "flush-guest",
    "flush-gva",
    "entry",
];

impl Token {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> Kind {
        Kind(match self {
            Self::Reset => 0,
            Self::Unload => 1,
            Self::Init => 2,
            Self::NewPgd => 3,
            Self::Free(_) => 4,
            Self::InvalidatePcid(_) => 5,
            Self::InvalidateGva(_) => 6,
            Self::LoadPdptrs => 7,
            Self::SyncRoots => 8,
            Self::SyncPrevRoots => 9,
            Self::FreeObsolete => 10,
            Self::Load => 11,
            Self::LoadPgd => 12,
            Self::FlushAll => 13,
            Self::FlushCurrent => 14,
            Self::FlushGuest => 15,
            Self::FlushGva(_) => 16,
            Self::Entry => 17,
        })
    }
}

impl Kind {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    const fn bit(self) -> u32 {
        1 << self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind().name();
        match self {
            Self::Free(mask) => {
                let slots = ["current", "prev0", "prev1", "prev2"];
                let named = slots.iter().enumerate().filter(|(n, _)| mask >> n & 1 != 0);
                let named: Vec<&str> = named.map(|(_, name)| *name).collect();
                write!(f, "{name} {}", named.join("+"))
            }
            Self::InvalidatePcid(pcid) => write!(f, "{name} {}", pcid.0),
            Self::InvalidateGva(gva) | Self::FlushGva(gva) => write!(f, "{name} {:#x}", gva.0),
            _ => f.write_str(name),
        }
    }
}

/// The kinds that a recording contains: what was not probed, or was inlined, is not compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alphabet(u32);

impl Alphabet {
    /// Of the acts of a recording.
    pub fn of<'a>(acts: impl Iterator<Item = &'a Act>) -> Self {
        let mut bits = Token::Entry.kind().bit();
        for act in acts {
            let token = match act {
                Act::FreeRoots { .. } => Some(Token::Free(0)),
                // One probe of a vendor's hooks comes with the others: a kind that never happened
                // would be a prediction to be caught.
                Act::Hook { hook: Hook::All | Hook::Current | Hook::Guest, .. } => {
                    bits |= Token::FlushAll.kind().bit()
                        | Token::FlushCurrent.kind().bit()
                        | Token::FlushGuest.kind().bit();
                    None
                }
                other => plain(other),
            };
            if let Some(token) = token {
                bits |= token.kind().bit();
            }
        }
        // Frees of all roots stand for an unload.
        if bits & Token::Free(0).kind().bit() != 0 {
            bits |= Token::Unload.kind().bit();
        }
        Self(bits)
    }

    /// Whether this token is compared.
    #[must_use]
    pub const fn has(self, token: Token) -> bool {
        self.0 & token.kind().bit() != 0
    }
}

/// Acts that mean the same in a recording and in the model.
pub fn plain(act: &Act) -> Option<Token> {
    Some(match act {
        Act::Reset { .. } => Token::Reset,
        Act::Unload => Token::Unload,
        Act::Init => Token::Init,
        Act::NewPgd(_) => Token::NewPgd,
        Act::InvalidatePcid(pcid) => Token::InvalidatePcid(*pcid),
        Act::InvalidateGva(gva) => Token::InvalidateGva(*gva),
        Act::LoadPdptrs { .. } => Token::LoadPdptrs,
        Act::SyncRoots => Token::SyncRoots,
        Act::SyncPrevRoots => Token::SyncPrevRoots,
        Act::FreeObsoleteRoots => Token::FreeObsolete,
        Act::Load => Token::Load,
        Act::LoadPgd { .. } => Token::LoadPgd,
        Act::Hook { hook, .. } => match hook {
            Hook::All => Token::FlushAll,
            Hook::Current => Token::FlushCurrent,
            Hook::Guest => Token::FlushGuest,
            Hook::Gva(gva) => Token::FlushGva(*gva),
        },
        _ => return None,
    })
}

/// Builds one side's list: frees of all roots belong to the reset or unload that they are part of,
/// and a sync of an invalid root does nothing.
#[derive(Clone, Debug)]
pub struct Side {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// Whether the active root is valid.
    valid: bool,
    /// The last token is an unload of which only the frees were seen.
    bare: bool,
    /// The model freed an active root that cannot be cached.
    uncached: bool,
    /// The vendor's reset is carried out: it flushes without its hook (facts 3.2).
    pub resetting: bool,
    /// A reset may be shown by its parts alone.
    pub inlined: bool,
    /// Nothing is taken down.
    pub mute: bool,
}

impl Side {
    /// An empty list.
    #[must_use]
    pub const fn new(valid: bool) -> Self {
        Self {
            tokens: Vec::new(),
            valid,
            bare: false,
            uncached: false,
            resetting: false,
            inlined: false,
            mute: false,
        }
    }

    fn push(&mut self, token: Token) {
        if self.mute {
            return;
        }
        self.bare = false;
        match token {
            Token::Reset | Token::Unload => self.valid = false,
            Token::Free(mask) if mask & 1 != 0 => self.valid = false,
            Token::SyncRoots if !self.valid => return,
            Token::Load => self.valid = true,
            // 6.4 on: kvm_mmu_invpcid_gva calls kvm_mmu_invalidate_addr; both are told.
            Token::InvalidateGva(_) if self.tokens.last() == Some(&token) => return,
            _ => {}
        }
        self.tokens.push(token);
    }

    /// A recorded act.
    pub fn recorded(&mut self, act: &Act) {
        match *act {
            Act::FreeRoots { mask: 0 } => {}
            Act::FreeRoots { mask: 0xf } => match self.tokens.last() {
                Some(Token::Reset | Token::Unload) => {}
                _ => {
                    self.push(Token::Unload);
                    self.bare = true;
                }
            },
            // Up to 5.10 kvm_mmu_unload is a function of its own inside a reset.
            Act::Unload if self.tokens.last() == Some(&Token::Reset) => {}
            Act::FreeRoots { mask } => self.push(Token::Free(mask)),
            // A reset that was inlined (KVM_SET_CPUID): both frees, then kvm_init_mmu.
            Act::Init if self.bare && self.inlined => {
                self.tokens.pop();
                self.push(Token::Reset);
                self.push(Token::Init);
            }
            _ => {
                if let Some(token) = plain(act) {
                    self.push(token);
                }
            }
        }
    }

    /// An act of the model.
    pub fn modelled(&mut self, act: &Act) {
        match *act {
            Act::FreeRoot { slot, why, .. } => {
                let bit = match slot {
                    tlbscope_trace::act::RootSlot::Current => 1,
                    tlbscope_trace::act::RootSlot::Prev(n) => 2_u8 << n,
                };
                match why {
                    // Part of the reset or unload before it.
                    FreeWhy::Reset | FreeWhy::Unload | FreeWhy::Destroy => {}
                    // kvm_mmu_new_pgd tells of it after its own entry.
                    FreeWhy::NotCacheable => self.uncached = true,
                    FreeWhy::Evict => {}
                    FreeWhy::InvalidatePcid
                    | FreeWhy::SyncPrev
                    | FreeWhy::Pdptrs
                    | FreeWhy::NestedInvvpid
                    | FreeWhy::NestedInvept
                    | FreeWhy::Obsolete => self.free(bit),
                }
            }
            Act::NewPgd(found) => {
                let miss = found == Some(tlbscope_trace::act::RootLookup::Miss);
                self.push(Token::NewPgd);
                // The evicted root stands in the active slot when it is freed, valid or not.
                if std::mem::take(&mut self.uncached) || miss && self.valid {
                    self.push(Token::Free(1));
                }
            }
            Act::Hook { hook: Hook::Guest, by: HookBy::Direct, .. } if self.resetting => {}
            // svm_set_cr4 calls the common tail of SVM's hooks, as flush_tlb_guest is.
            Act::Hook { by: HookBy::Register, .. } => self.push(Token::FlushGuest),
            _ => {
                if let Some(token) = plain(act) {
                    self.push(token);
                }
            }
        }
    }

    /// One call frees several roots.
    fn free(&mut self, bit: u8) {
        match self.tokens.last_mut() {
            Some(Token::Free(mask)) if *mask & bit == 0 && bit != 1 => *mask |= bit,
            _ => self.push(Token::Free(bit)),
        }
    }
}
