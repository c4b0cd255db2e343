//! Acts in the words of KVM and of the manuals, for chains of cause.

use tlbscope_trace::act::{Act, FreeWhy, Hook, HookBy, Inv, RootLookup, RootSlot, Source};

/// An act that bears on what is cached; `None` for others.
#[must_use]
pub fn act(act: &Act) -> Option<String> {
    Some(match act {
        Act::Post(request) => format!("request {}", request.name()),
        Act::Serve(request) => format!("serves {}", request.name()),
        Act::Reset { role_changed: Some(false) } => "MMU reset, same role".to_owned(),
        Act::Reset { .. } => "MMU reset".to_owned(),
        Act::Unload => "MMU unload".to_owned(),
        Act::FreeRoot { slot, why, .. } => {
            format!("frees {} ({})", self::slot(*slot), reason(*why))
        }
        Act::NewPgd(found) => format!("looks for the root: {}", lookup(*found)),
        Act::Load => "loads a root".to_owned(),
        Act::SyncRoots => "syncs the root".to_owned(),
        Act::SyncPrevRoots => "frees unsync cached roots".to_owned(),
        Act::FreeObsoleteRoots => "frees obsolete roots".to_owned(),
        Act::InvalidatePcid(pcid) => format!("invalidates PCID {}", pcid.0),
        Act::InvalidateGva(gva) => format!("invalidates {:#x}", gva.0),
        Act::LoadPdptrs { changed } => match changed {
            Some(true) => "reads the PDPTEs: changed".to_owned(),
            _ => "reads the PDPTEs".to_owned(),
        },
        Act::Hook { hook, by, effective } => hook_words(*hook, *by, *effective),
        Act::Inv(inv) => self::inv(inv),
        Act::NewAsid(asid) => format!("takes ASID {}", asid.0),
        Act::RemoteFlush { .. } => "flushes all vCPUs".to_owned(),
        Act::ZapAll => "zaps every root".to_owned(),
        Act::SpUnsync { sp } => format!("shadow page {} turns unsync", sp.0),
        Act::SpSync { sp, .. } => format!("shadow page {} is synced", sp.0),
        Act::SpFree { sp } => format!("frees shadow page {}", sp.0),
        Act::SpRead { sp } => format!("reads shadow page {} without a lock", sp.0),
        Act::Broadcast => "is reached by an INVLPGB of the host".to_owned(),
        Act::HeldPage { gpa, hpa } => {
            format!("uses the page {:#x} that backed {:#x}", hpa.0, gpa.0)
        }
        Act::EntryAborted { failed: true } => "the entry fails".to_owned(),
        _ => return None,
    })
}

fn hook_words(hook: Hook, by: HookBy, effective: bool) -> String {
    let name = match hook {
        Hook::All => "flush_tlb_all".to_owned(),
        Hook::Current => "flush_tlb_current".to_owned(),
        Hook::Guest => "flush_tlb_guest".to_owned(),
        Hook::Gva(gva) => format!("flush_tlb_gva {:#x}", gva.0),
    };
    let by = match by {
        HookBy::Load => " at the end of LOAD",
        HookBy::Register => " by the vendor's register hook",
        HookBy::Request | HookBy::Direct => "",
    };
    let nothing = if effective { "" } else { ", which does nothing" };
    format!("{name}{by}{nothing}")
}

/// An invalidation by the hardware.
fn inv(inv: &Inv) -> String {
    match inv {
        Inv::VpidAddress { vpid, gva } => {
            format!("INVVPID address {:#x} of VPID {}", gva.0, vpid.0)
        }
        Inv::VpidSingle(vpid) => format!("INVVPID of VPID {}", vpid.0),
        Inv::VpidAll => "INVVPID of all contexts".to_owned(),
        Inv::VpidNonglobal(vpid) => format!("INVVPID of VPID {}, globals kept", vpid.0),
        Inv::EptSingle(root) => format!("INVEPT of {:#x}", root.0),
        Inv::EptGlobal => "INVEPT global".to_owned(),
        Inv::VpidZeroTransition => "the transition flushes VPID 0".to_owned(),
        Inv::TlbControlAll => "VMRUN flushes every ASID".to_owned(),
        Inv::TlbControlAsid(asid) => format!("VMRUN flushes ASID {}", asid.0),
        Inv::TlbControlNonglobal(asid) => format!("VMRUN flushes ASID {}, globals kept", asid.0),
        Inv::Invlpga { asid, gva } => format!("INVLPGA {:#x} in ASID {}", gva.0, asid.0),
        Inv::Guest(_) => "the processor invalidates by itself".to_owned(),
        Inv::Exact => "exactly what is owed is dropped".to_owned(),
    }
}

/// A slot of the root cache.
fn slot(slot: RootSlot) -> String {
    match slot {
        RootSlot::Current => "the current root".to_owned(),
        RootSlot::Prev(n) => format!("prev_roots[{n}]"),
    }
}

/// What a lookup of a root found.
#[must_use]
pub fn lookup(found: Option<RootLookup>) -> String {
    match found {
        Some(RootLookup::Current) => "the current one fits".to_owned(),
        Some(RootLookup::Prev(n)) => format!("prev_roots[{n}] fits, without a sync or flush"),
        Some(RootLookup::Miss) => "none fits".to_owned(),
        None => "not recorded".to_owned(),
    }
}

const fn reason(why: FreeWhy) -> &'static str {
    match why {
        FreeWhy::Reset => "reset",
        FreeWhy::Unload => "unload",
        FreeWhy::Evict => "makes room",
        FreeWhy::InvalidatePcid => "its PCID is invalidated",
        FreeWhy::SyncPrev => "unsync",
        FreeWhy::Pdptrs => "other PDPTEs",
        FreeWhy::Obsolete => "obsolete",
        FreeWhy::NotCacheable => "cannot be cached",
        FreeWhy::NestedInvvpid => "INVVPID of L1",
        FreeWhy::NestedInvept => "INVEPT of L1",
        FreeWhy::Destroy => "the vCPU goes",
    }
}

/// What a copy was read from.
#[must_use]
pub fn source(source: &Source) -> String {
    match source {
        Source::Guest => "the guest's tables".to_owned(),
        Source::Shadow { sp, index } => format!("shadow page {}, entry {index}", sp.0),
        Source::Host => "the host's table".to_owned(),
    }
}
