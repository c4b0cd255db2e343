//! The names of the counters, as scenarios write them, and the array that holds them.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A counter of `counts` in a scenario.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Key {
            $($(#[$doc])* $name,)*
        }

        impl Key {
            /// Every key, in the order in which it is listed and printed.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in scenarios and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

keys! {
    /// The vCPU counter `tlb_flush`: flushes made to serve a request.
    StatTlbFlush = "stat-tlb-flush",
    /// The vCPU counter `invlpg`.
    StatInvlpg = "stat-invlpg",
    /// The VM counter `remote_tlb_flush`: remote flushes that interrupted someone.
    RemoteFlush = "remote-flush",
    /// The VM counter `remote_tlb_flush_requests`.
    RemoteFlushRequests = "remote-flush-requests",
    /// kvm_mmu_reset_context.
    MmuReset = "mmu-reset",
    /// kvm_init_mmu, inside a reset too.
    MmuInit = "mmu-init",
    /// kvm_mmu_unload.
    MmuUnload = "mmu-unload",
    /// Root references dropped.
    RootFree = "root-free",
    /// Calls of kvm_mmu_load.
    RootLoad = "root-load",
    /// A new root pointer found its root.
    RootHit = "root-hit",
    /// A new root pointer found none.
    RootMiss = "root-miss",
    /// kvm_mmu_sync_roots.
    SyncRoot = "sync-root",
    /// Shadow pages synchronised.
    SyncPage = "sync-page",
    /// Changes of the root's role word.
    RoleChange = "role-change",
    /// KVM_REQ_TLB_FLUSH served.
    RequestAll = "request-all",
    /// KVM_REQ_TLB_FLUSH_CURRENT served.
    RequestCurrent = "request-current",
    /// KVM_REQ_TLB_FLUSH_GUEST served.
    RequestGuest = "request-guest",
    /// KVM_REQ_MMU_SYNC served.
    RequestSync = "request-sync",
    /// KVM_REQ_LOAD_MMU_PGD served.
    RequestPgd = "request-pgd",
    /// KVM_REQ_MMU_RELOAD served.
    RequestReload = "request-reload",
    /// KVM_REQ_MMU_FREE_OBSOLETE_ROOTS served.
    RequestObsolete = "request-obsolete",
    /// KVM_REQ_HV_TLB_FLUSH served.
    RequestHv = "request-hv",
    /// Calls of the hook flush_tlb_all.
    FlushAll = "flush-all",
    /// Calls of flush_tlb_current, LOAD's among them.
    FlushCurrent = "flush-current",
    /// Calls of flush_tlb_guest.
    FlushGuest = "flush-guest",
    /// Calls of flush_tlb_gva.
    FlushGva = "flush-gva",
    /// INVVPID 0.
    InvvpidAddress = "invvpid-address",
    /// INVVPID 1.
    InvvpidSingle = "invvpid-single",
    /// INVVPID 2.
    InvvpidAll = "invvpid-all",
    /// INVVPID 3.
    InvvpidNonglobal = "invvpid-nonglobal",
    /// INVEPT 1.
    InveptSingle = "invept-single",
    /// INVEPT 2.
    InveptGlobal = "invept-global",
    /// VMRUN with TLB_CONTROL 1.
    TlbControl1 = "tlb-control-1",
    /// VMRUN with TLB_CONTROL 3.
    TlbControl3 = "tlb-control-3",
    /// VMRUN with TLB_CONTROL 7.
    TlbControl7 = "tlb-control-7",
    /// New ASIDs.
    NewAsid = "new-asid",
    /// INVLPGA.
    Invlpga = "invlpga",
    /// Interprocessor interrupts.
    Ipi = "ipi",
    /// VM exits.
    Exit = "exit",
    /// Successful VM entries.
    Entry = "entry",
    /// TLB refills.
    Refill = "refill",
    /// Memory references of page walks.
    WalkRef = "walk-ref",
    /// Legal faults through a copy that memory no longer bears out.
    SpuriousFault = "spurious-fault",
}

impl Key {
    /// The key of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|k| k.name() == name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One number per key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counts([u64; Key::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Key::ALL.len()])
    }
}

impl Counts {
    /// Counters with these numbers, in the order of [`Key::ALL`]; `None` if there are not as many.
    pub(crate) fn of(numbers: &[u64]) -> Option<Self> {
        Some(Self(numbers.try_into().ok()?))
    }

    /// The number of one key.
    #[must_use]
    pub const fn get(&self, key: Key) -> u64 {
        self.0[key as usize]
    }

    /// Adds to one key; stays at the maximum instead of wrapping.
    pub const fn add(&mut self, key: Key, n: u64) {
        let slot = &mut self.0[key as usize];
        *slot = slot.saturating_add(n);
    }

    /// Adds every number of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, more) in self.0.iter_mut().zip(&other.0) {
            *mine = mine.saturating_add(*more);
        }
    }

    /// What was counted since `earlier`, of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut more = self.clone();
        for (now, before) in more.0.iter_mut().zip(&earlier.0) {
            *now = now.saturating_sub(*before);
        }
        more
    }

    /// Every key with its number, in the order of [`Key::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Key, u64)> + '_ {
        Key::ALL.iter().copied().zip(self.0.iter().copied())
    }
}

/// An object with the keys that are not zero.
impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, n) in self.iter().filter(|(_, n)| *n != 0) {
            map.serialize_entry(key.name(), &n)?;
        }
        map.end()
    }
}
