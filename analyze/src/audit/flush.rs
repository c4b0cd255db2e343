//! What a flush hook of the recorded host made the hardware do (facts/kvm.md 6.2 and 6.3).

use tlbscope_trace::act::{Hook, HookBy, Inv};
use tlbscope_trace::addr::{Asid, Ep4ta, Vpid};
use tlbscope_trace::regs::{MmuKind, Vendor};

/// What a hook comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing is invalidated.
    Nothing,
    /// At once.
    Now(Inv),
    /// By the next successful VMRUN: TLB_CONTROL, or a new ASID.
    AtEntry,
}

/// The circumstances of a hook.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// Whose hardware.
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    pub mmu: MmuKind,
    /// Intel: VPIDs are in use.
    pub vpid_used: bool,
    /// The vCPU's VPID or ASID.
    pub tag: u32,
    /// The EPT root.
    pub ep4ta: Ep4ta,
    /// Whether the active root is valid.
    pub root: bool,
}

/// What this hook, called for this reason, makes the hardware do.
pub fn effect(hook: Hook, by: HookBy, around: &Around) -> Effect {
    match around.vendor {
        Vendor::Intel => vmx(hook, by, around),
        Vendor::Amd => match hook {
            Hook::Gva(gva) => Effect::Now(Inv::Invlpga { asid: Asid(around.tag), gva }),
            _ => Effect::AtEntry,
        },
    }
}

fn vmx(hook: Hook, by: HookBy, around: &Around) -> Effect {
    let vpid = Vpid(around.tag as u16);
    let tdp = around.mmu == MmuKind::Tdp;
    let inv = match hook {
        // flush_current does nothing without a root; LOAD's comes when there is one.
        Hook::Current if !around.root && by != HookBy::Load => return Effect::Nothing,
        Hook::All if tdp => Inv::EptGlobal,
        Hook::Current if tdp => Inv::EptSingle(around.ep4ta),
        _ if !around.vpid_used => return Effect::Nothing,
        Hook::All => Inv::VpidAll,
        Hook::Current | Hook::Guest => Inv::VpidSingle(vpid),
        Hook::Gva(gva) => Inv::VpidAddress { vpid, gva },
    };
    Effect::Now(inv)
}
