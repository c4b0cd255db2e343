//! Effects in words: what [`crate::explain::words`] leaves out, and register writes by the bits that
//! they change.

use bitflags::Flags;
use tlbscope_trace::act::{Act, ArchOp};
use tlbscope_trace::nested::NestedOp;
use tlbscope_trace::op::Op;
use tlbscope_trace::regs::{CR3_PCID_MASK, Cr0, Cr4, Efer};
use tlbscope_trace::text;

use crate::explain::words;
use crate::finding::{Finding, Kind};

/// An act.
pub fn act(act: &Act) -> String {
    words::act(act).unwrap_or_else(|| match act {
        Act::LoadPgd { root } => format!("installs root {:#x}", root.0),
        Act::RoleChange => "the root's role changes".to_owned(),
        Act::FreeRoots { mask } => free_roots(*mask),
        Act::RequestAll(request) => format!("request {request} to all vCPUs"),
        other => format!("{other:?}"),
    })
}

/// kvm_mmu_free_roots by its mask: bit 0 the active root, bits 1 to 3 prev_roots.
fn free_roots(mask: u8) -> String {
    let slots = (0..4).filter(|n| mask >> n & 1 != 0);
    let names: Vec<String> =
        slots
            .map(|n| {
                if n == 0 {
                    "the current root".to_owned()
                } else {
                    format!("prev_roots[{}]", n - 1)
                }
            })
            .collect();
    if names.is_empty() {
        "frees no root".to_owned()
    } else {
        format!("frees {}", names.join(", "))
    }
}

/// A finding where it is seen.
pub fn verdict(finding: &Finding) -> String {
    let Finding { op, mechanism, .. } = finding;
    match finding.kind {
        Kind::Exposed => format!("exposed: {op} is not answered"),
        Kind::Excessive(_) => format!("{mechanism} for {op}"),
        _ => format!("{mechanism} after {op}"),
    }
}

/// An architectural operation.
pub fn arch(op: &ArchOp, native: bool) -> String {
    let mut what = match op {
        ArchOp::Cr0 { old, new } => format!("CR0 {}", changed::<Cr0>(*old, *new)),
        ArchOp::Cr4 { old, new } => format!("CR4 {}", changed::<Cr4>(*old, *new)),
        ArchOp::Efer { old, new } => format!("EFER {}", changed::<Efer>(*old, *new)),
        ArchOp::Cr3 { old, new, noflush, task_switch } => {
            let mut what = format!("CR3 {new:#x}");
            if old & CR3_PCID_MASK != new & CR3_PCID_MASK {
                what += &format!(", PCID {} to {}", old & CR3_PCID_MASK, new & CR3_PCID_MASK);
            } else if old == new {
                what += ", the same";
            }
            what += if *noflush { ", no flush" } else { "" };
            what += if *task_switch { ", task switch" } else { "" };
            what
        }
        ArchOp::Invlpg(gva) => format!("INVLPG {:#x}", gva.0),
        ArchOp::Invpcid(op) => text::write_op(&Op::Invpcid(*op)),
        ArchOp::Nested(op) => nested(op),
        ArchOp::HostDead { gpa, size } => {
            format!("the host takes the mappings of {size:#x} bytes at {:#x} for gone", gpa.0)
        }
        ArchOp::RemoteFlush { page: None } => "another vCPU asked for a flush".to_owned(),
        ArchOp::RemoteFlush { page: Some(gva) } => {
            format!("another vCPU asked for a flush of {:#x}", gva.0)
        }
        other => format!("{other:?}"),
    };
    if native {
        what += ", without an exit";
    }
    what
}

fn nested(op: &NestedOp) -> String {
    format!("nested: {op:?}")
}

/// The bits of a register that a write changes: `+SMEP -PGE`, and the value.
fn changed<F: Flags<Bits = u64>>(old: u64, new: u64) -> String {
    let mut out = String::new();
    for (sign, bits) in [('+', new & !old), ('-', old & !new)] {
        let flags = F::from_bits_retain(bits);
        for (name, _) in flags.iter_names() {
            out.push(sign);
            out += name;
            out.push(' ');
        }
        let unnamed = bits & !F::all().bits();
        if unnamed != 0 {
            out += &format!("{sign}{unnamed:#x} ");
        }
    }
    if old == new {
        out += "unchanged ";
    }
    out + &format!("({new:#x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_told_by_the_bits_that_it_changes() {
        // CR4: PGE is bit 7, SMEP bit 20; bit 63 has no name.
        let what = arch(&ArchOp::Cr4 { old: 0xa0, new: 1 << 63 | 0x10_0020 }, false);
        assert_eq!(what, "CR4 +SMEP +0x8000000000000000 -PGE (0x8000000000100020)");
        let same = arch(&ArchOp::Cr0 { old: 0x11, new: 0x11 }, true);
        assert_eq!(same, "CR0 unchanged (0x11), without an exit");
        let cr3 = ArchOp::Cr3 { old: 0x1001, new: 0x2002, noflush: true, task_switch: false };
        assert_eq!(arch(&cr3, false), "CR3 0x2002, PCID 1 to 2, no flush");
    }

    #[test]
    fn freed_roots_are_told_by_their_slots() {
        assert_eq!(act(&Act::FreeRoots { mask: 0b101 }), "frees the current root, prev_roots[1]");
        assert_eq!(act(&Act::FreeRoots { mask: 0 }), "frees no root");
    }
}
