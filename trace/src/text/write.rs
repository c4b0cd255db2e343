//! Events as lines. What is written here, [`super::parse`] reads back to the same event.

use std::fmt::{self, Display, Write as _};

use bitflags::Flags;

use crate::addr::VcpuId;
use crate::op::{
    AccessKind, Actor, Event, HostOp, Invlpgb, InvpcidType, L1Op, L2Enter, MemslotChange, Op,
    Perms, RegWrite,
};
use crate::regs::{CR3_NOFLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer};

/// Writes an event as a line without label, with its time.
#[must_use]
pub fn write_event(event: &Event) -> String {
    let who = match event.actor {
        Actor::Vcpu(vcpu) => vcpu.to_string(),
        Actor::Host => "host".to_owned(),
    };
    format!("@{} {who} {}", event.time.0, Written(&event.op))
}

/// Writes an operation without its actor; host operations without their `host`.
#[must_use]
pub fn write_op(op: &Op) -> String {
    Written(op).to_string()
}

struct Written<'a, T>(&'a T);

impl Display for Written<'_, Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Op::Cr0(w) => write!(f, "cr0 {}", reg_write::<Cr0>(*w)),
            Op::Cr4(w) => write!(f, "cr4 {}", reg_write::<Cr4>(*w)),
            Op::Efer(w) => write!(f, "efer {}", reg_write::<Efer>(*w)),
            Op::Cr3(value) => cr3(f, *value),
            Op::Clts => f.write_str("clts"),
            Op::Lmsw(value) => write!(f, "lmsw {value:#x}"),
            Op::TaskSwitch(cr3) => write!(f, "taskswitch {cr3:#x}"),
            Op::MsrMtrr(value) => write!(f, "msr mtrr {value:#x}"),
            Op::MsrPat(value) => write!(f, "msr pat {value:#x}"),
            Op::Pkru(value) => write!(f, "pkru {value:#x}"),
            Op::Cpuid => f.write_str("cpuid"),
            Op::Code { long: true } => f.write_str("code 64"),
            Op::Code { long: false } => f.write_str("code 32"),
            Op::MsrApicBase(value) => write!(f, "msr apicbase {value:#x}"),
            Op::Sregs(sregs) => {
                f.write_str("sregs")?;
                option(f, "cr0", sregs.cr0)?;
                option(f, "cr3", sregs.cr3)?;
                option(f, "cr4", sregs.cr4)?;
                option(f, "efer", sregs.efer)
            }
            Op::Emul(op) => write!(f, "emul {}", Written(&**op)),
            Op::Init => f.write_str("init"),
            Op::Reset => f.write_str("reset"),
            Op::Smi => f.write_str("smi"),
            Op::Rsm => f.write_str("rsm"),
            Op::Hlt => f.write_str("hlt"),
            Op::WalkBegin(gva) => write!(f, "walk begin {gva}"),
            Op::WalkEnd => f.write_str("walk end"),
            Op::Out => f.write_str("out"),
            Op::In => f.write_str("in"),
            Op::InFail => f.write_str("in fail"),
            Op::Exit(reason) => numbered(f, "exit", *reason),
            Op::Host(op) => Written(&**op).fmt(f),
            Op::HostBegin(op) => write!(f, "begin {}", Written(&**op)),
            Op::HostEnd(op) => write!(f, "end {}", Written(&**op)),
            Op::PvFlush(vcpus) => write!(f, "pvflush {}", list(vcpus)),
            Op::HvFlush(flush) => hv_flush(f, flush),
            Op::L2Enter(enter) => l2_enter(f, enter),
            Op::L2Exit(reason) => numbered(f, "l2exit", *reason),
            Op::L1(op) => l1(f, op),
            _ => memory(f, self.0),
        }
    }
}

/// The operations on memory and translations.
fn memory(f: &mut fmt::Formatter<'_>, op: &Op) -> fmt::Result {
    match op {
        Op::Map { gva, gpa, size, perms, root } => {
            write!(f, "map {gva} {gpa} {size} {}", Written(perms))?;
            option(f, "root", root.map(|gpa| gpa.0))
        }
        Op::Unmap { gva, root } => {
            write!(f, "unmap {gva}")?;
            option(f, "root", root.map(|gpa| gpa.0))
        }
        Op::Protect { gva, perms, root } => {
            write!(f, "protect {gva} {}", Written(perms))?;
            option(f, "root", root.map(|gpa| gpa.0))
        }
        Op::Table { gpa, level } => write!(f, "table {gpa} {level}"),
        Op::Link { gva, level, table, perms, root } => {
            write!(f, "link {gva} {level} {table} {}", Written(perms))?;
            option(f, "root", root.map(|gpa| gpa.0))
        }
        Op::Store { gpa, value } => write!(f, "store {gpa} {value:#x}"),
        Op::Access(access) => {
            let kind = match access.kind {
                AccessKind::Read => "read",
                AccessKind::Write => "write",
                AccessKind::Exec => "exec",
            };
            write!(f, "{kind} {}", access.gva)?;
            f.write_str(if access.user { " user" } else { "" })?;
            f.write_str(if access.ac { " ac" } else { "" })
        }
        Op::Prefetch(gva) => write!(f, "prefetch {gva}"),
        Op::PageFault { gva, error } => write!(f, "fault {gva} {error:#x}"),
        Op::Invlpg(gva) => write!(f, "invlpg {gva}"),
        Op::Invpcid(op) => {
            match op.kind {
                InvpcidType::Addr => f.write_str("invpcid addr"),
                InvpcidType::Single => f.write_str("invpcid single"),
                InvpcidType::All => f.write_str("invpcid all"),
                InvpcidType::AllNonglobal => f.write_str("invpcid all-nonglobal"),
                InvpcidType::Reserved(kind) => write!(f, "invpcid {kind:#x}"),
            }?;
            write!(f, " pcid={:#x} gva={}", op.pcid, op.gva)
        }
        Op::Invlpga { gva, asid } => write!(f, "invlpga {gva} {asid}"),
        Op::Invlpgb(op) => invlpgb(f, op),
        Op::InvlpgbLarge(op) => {
            invlpgb(f, op)?;
            f.write_str(" stride=2m")
        }
        Op::Release { gpa, size } => write!(f, "release {gpa} {}", bytes(*size)),
        _ => f.write_str("tlbsync"),
    }
}

impl Display for Written<'_, HostOp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            HostOp::Map { gpa, size, hpa } => {
                write!(f, "map {gpa} {}", bytes(*size))?;
                hpa.map_or(Ok(()), |hpa| write!(f, " {hpa}"))
            }
            HostOp::Unmap { gpa, size } => write!(f, "unmap {gpa} {}", bytes(*size)),
            HostOp::Protect { gpa, size } => write!(f, "protect {gpa} {}", bytes(*size)),
            HostOp::Ro { gpa, size } => write!(f, "ro {gpa} {}", bytes(*size)),
            HostOp::Age { gpa, size } => write!(f, "age {gpa} {}", bytes(*size)),
            HostOp::DirtyLog { gpa, size } => write!(f, "dirty-log {gpa} {}", bytes(*size)),
            HostOp::Split { gpa, size } => write!(f, "split {gpa} {}", bytes(*size)),
            HostOp::Collapse { gpa, size } => write!(f, "collapse {gpa} {}", bytes(*size)),
            HostOp::ZapAll => f.write_str("zap-all"),
            HostOp::Memslot { change, gpa, size } => {
                let change = match change {
                    MemslotChange::Add => "add",
                    MemslotChange::Move => "move",
                    MemslotChange::Delete => "delete",
                };
                write!(f, "memslot {change} {gpa} {}", bytes(*size))
            }
            HostOp::Migrate { vcpu, pcpu } => write!(f, "migrate {vcpu} {pcpu}"),
            HostOp::Preempt { vcpu } => write!(f, "preempt {vcpu}"),
            HostOp::Run { vcpu, pcpu } => {
                write!(f, "run {vcpu}")?;
                pcpu.map_or(Ok(()), |pcpu| write!(f, " {pcpu}"))
            }
            HostOp::VcpuCreate { vcpu } => write!(f, "vcpu create {vcpu}"),
            HostOp::VcpuDestroy { vcpu } => write!(f, "vcpu destroy {vcpu}"),
            HostOp::MsrEfer { vcpu, value } => write!(f, "msr {vcpu} efer {value:#x}"),
            HostOp::Clean { gpa, size } => write!(f, "clean {gpa} {}", bytes(*size)),
            HostOp::Invlpgb { va, asid } => {
                f.write_str("invlpgb")?;
                if let Some(va) = va {
                    write!(f, " va={va}")?;
                }
                match asid {
                    Some(asid) => write!(f, " asid={}", asid.0),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Display for Written<'_, Perms> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Perms { read, write, exec, user, global } = *self.0;
        if *self.0 == Perms::default() {
            return f.write_char('-');
        }
        for (set, letter) in [(read, 'r'), (write, 'w'), (exec, 'x'), (user, 'u'), (global, 'g')] {
            if set {
                f.write_char(letter)?;
            }
        }
        Ok(())
    }
}

/// A whole value as a number, a change as `+BIT-BIT`, bits without a name as a mask. A change of
/// nothing is `+0x0`.
fn reg_write<F: Flags<Bits = u64>>(write: RegWrite) -> String {
    if write.clear == !0 {
        return format!("{:#x}", write.set);
    }
    let mut text = String::new();
    for (sign, mask) in [('+', write.set), ('-', write.clear & !write.set)] {
        let mut rest = mask;
        for flag in F::FLAGS {
            let bit = flag.value().bits();
            if rest & bit != 0 {
                text.push(sign);
                text.push_str(flag.name());
                rest &= !bit;
            }
        }
        if rest != 0 {
            text.push_str(&format!("{sign}{rest:#x}"));
        }
    }
    if text.is_empty() { "+0x0".to_owned() } else { text }
}

fn cr3(f: &mut fmt::Formatter<'_>, value: u64) -> fmt::Result {
    write!(f, "cr3 {:#x}", value & !(CR3_NOFLUSH | CR3_PCID_MASK))?;
    if value & CR3_PCID_MASK != 0 {
        write!(f, " pcid={:#x}", value & CR3_PCID_MASK)?;
    }
    f.write_str(if value & CR3_NOFLUSH != 0 { " noflush" } else { "" })
}

fn option(f: &mut fmt::Formatter<'_>, key: &str, value: Option<u64>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {key}={value:#x}"))
}

fn numbered(f: &mut fmt::Formatter<'_>, name: &str, value: Option<u64>) -> fmt::Result {
    f.write_str(name)?;
    value.map_or(Ok(()), |value| write!(f, " {value}"))
}

fn list(vcpus: &[VcpuId]) -> String {
    let names: Vec<String> = vcpus.iter().map(ToString::to_string).collect();
    names.join(",")
}

fn hv_flush(f: &mut fmt::Formatter<'_>, flush: &crate::op::HvFlush) -> fmt::Result {
    write!(f, "hvflush {}", list(&flush.vcpus))?;
    for (i, (gva, more)) in flush.list.iter().enumerate() {
        write!(f, "{}{gva}+{more}", if i == 0 { " list=" } else { "," })?;
    }
    Ok(())
}

fn invlpgb(f: &mut fmt::Formatter<'_>, op: &Invlpgb) -> fmt::Result {
    f.write_str("invlpgb")?;
    option(f, "va", op.va.map(|gva| gva.0))?;
    option(f, "pcid", op.pcid.map(|pcid| u64::from(pcid.0)))?;
    option(f, "asid", op.asid.map(|asid| u64::from(asid.0)))?;
    f.write_str(if op.global { " global" } else { "" })?;
    option(f, "count", (op.count != 0).then_some(u64::from(op.count)))
}

fn l2_enter(f: &mut fmt::Formatter<'_>, enter: &L2Enter) -> fmt::Result {
    f.write_str("l2enter")?;
    option(f, "vpid", enter.vpid.map(u64::from))?;
    option(f, "eptp", enter.eptp)?;
    option(f, "ncr3", enter.ncr3)?;
    option(f, "cr3", enter.cr3)?;
    option(f, "cr4", enter.cr4)?;
    option(f, "tlb-control", enter.tlb_control.map(u64::from))?;
    f.write_str(if enter.fail { " fail" } else { "" })
}

fn l1(f: &mut fmt::Formatter<'_>, op: &L1Op) -> fmt::Result {
    match op {
        L1Op::Invept { kind, eptp } => {
            write!(f, "l1 invept {kind}")?;
            eptp.map_or(Ok(()), |eptp| write!(f, " {eptp:#x}"))
        }
        L1Op::Invvpid { kind, vpid, gva } => {
            write!(f, "l1 invvpid {kind} {vpid}")?;
            gva.map_or(Ok(()), |gva| write!(f, " {gva}"))
        }
        L1Op::Vmfunc(index) => write!(f, "l1 vmfunc {index}"),
        L1Op::Vmxon => f.write_str("l1 vmxon"),
        L1Op::Vmxoff => f.write_str("l1 vmxoff"),
    }
}

/// The shortest spelling of a size.
fn bytes(size: u64) -> String {
    for (shift, letter) in [(30, 'g'), (20, 'm'), (10, 'k')] {
        if size != 0 && size.trailing_zeros() >= shift {
            return format!("{}{letter}", size >> shift);
        }
    }
    format!("{size}b")
}
