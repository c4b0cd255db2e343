//! What acts cost, in whole cycles, each with its source. An act is named as in the `counts` of
//! scenarios, so that a table of counts has a price; acts without a cost are made of others that
//! have one (a reset is an unload and an init) or cost nothing of their own (a request).

use serde::Deserialize;

/// What one act costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Cost {
    /// Cycles.
    pub cycles: u32,
    /// Where the number is from.
    pub source: String,
    /// No measurement of this processor bears it out.
    #[serde(default)]
    pub unverified: bool,
}

/// The price of a table of counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Total {
    /// Cycles of all acts; `u64::MAX` if there are more.
    pub cycles: u64,
    /// How many of them come from unverified costs.
    pub unverified: u64,
}

impl Total {
    /// The unverified share in thousandths, rounded down; 0 if nothing cost anything.
    #[must_use]
    pub fn unverified_per_mille(self) -> u16 {
        let share = u128::from(self.unverified) * 1000 / u128::from(self.cycles.max(1));
        // unverified <= cycles, so the share is at most 1000.
        u16::try_from(share).unwrap_or(1000)
    }
}

/// Declares the table: a field per act that may have a cost.
macro_rules! costs {
    ($($(#[$doc:meta])* $field:ident = $name:literal,)*) => {
        /// What every act costs on one processor.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Costs {
            $($(#[$doc])* #[serde(rename = $name)] pub $field: Cost,)*
        }

        impl Costs {
            /// The acts that may have a cost.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The cost of one act, named as in the `counts` of scenarios.
            #[must_use]
            pub fn get(&self, act: &str) -> Option<&Cost> {
                match act {
                    $($name => Some(&self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

costs! {
    /// A VM exit, up to the handler.
    exit = "exit",
    /// A VM entry.
    entry = "entry",
    /// A TLB refill, without the references of its walk.
    refill = "refill",
    /// One memory reference of a walk.
    walk_ref = "walk-ref",
    /// A spurious fault, without its exit.
    spurious_fault = "spurious-fault",
    /// An inter-processor interrupt, sent and answered.
    ipi = "ipi",
    /// INVVPID 0.
    invvpid_address = "invvpid-address",
    /// INVVPID 1.
    invvpid_single = "invvpid-single",
    /// INVVPID 2.
    invvpid_all = "invvpid-all",
    /// INVVPID 3.
    invvpid_nonglobal = "invvpid-nonglobal",
    /// INVEPT 1.
    invept_single = "invept-single",
    /// INVEPT 2.
    invept_global = "invept-global",
    /// VMRUN with TLB_CONTROL 1, more than without.
    tlb_control_1 = "tlb-control-1",
    /// VMRUN with TLB_CONTROL 3, more than without.
    tlb_control_3 = "tlb-control-3",
    /// VMRUN with TLB_CONTROL 7, more than without.
    tlb_control_7 = "tlb-control-7",
    /// INVLPGA.
    invlpga = "invlpga",
    /// A new ASID.
    new_asid = "new-asid",
    /// kvm_init_mmu.
    mmu_init = "mmu-init",
    /// A root reference dropped.
    root_free = "root-free",
    /// kvm_mmu_load, without its flush and sync.
    root_load = "root-load",
    /// A root switched to out of the cache.
    root_hit = "root-hit",
    /// A sync of a root, without its pages.
    sync_root = "sync-root",
    /// A shadow page synced.
    sync_page = "sync-page",
}

impl Costs {
    /// The price of counts, given as pairs of an act's name and its number. Names without a cost
    /// add nothing.
    pub fn total<'a>(&self, counts: impl IntoIterator<Item = (&'a str, u64)>) -> Total {
        let mut total = Total::default();
        for (act, number) in counts {
            let Some(cost) = self.get(act) else { continue };
            let cycles = number.saturating_mul(cost.cycles.into());
            total.cycles = total.cycles.saturating_add(cycles);
            if cost.unverified {
                total.unverified = total.unverified.saturating_add(cycles);
            }
        }
        total
    }
}
