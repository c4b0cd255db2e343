//! Names of exit reasons as the kernel prints them, with their numbers (SDM vol. 3, appendix C;
//! APM vol. 2, appendix C).

use super::super::event::Event;
use super::super::number::{bare_hex, number, word_after};

const VMX: &[(&[u8], u16)] = &[
    (b"EXCEPTION_NMI", 0),
    (b"EXTERNAL_INTERRUPT", 1),
    (b"TRIPLE_FAULT", 2),
    (b"INTERRUPT_WINDOW", 7),
    (b"NMI_WINDOW", 8),
    (b"TASK_SWITCH", 9),
    (b"CPUID", 10),
    (b"HLT", 12),
    (b"INVD", 13),
    (b"INVLPG", 14),
    (b"RDPMC", 15),
    (b"VMCALL", 18),
    (b"CR_ACCESS", 28),
    (b"DR_ACCESS", 29),
    (b"IO_INSTRUCTION", 30),
    (b"MSR_READ", 31),
    (b"MSR_WRITE", 32),
    (b"INVALID_STATE", 33),
    (b"PAUSE_INSTRUCTION", 40),
    (b"APIC_ACCESS", 44),
    (b"EOI_INDUCED", 45),
    (b"EPT_VIOLATION", 48),
    (b"EPT_MISCONFIG", 49),
    (b"PREEMPTION_TIMER", 52),
    (b"WBINVD", 54),
    (b"XSETBV", 55),
    (b"APIC_WRITE", 56),
    (b"INVPCID", 58),
    (b"PML_FULL", 62),
];

const SVM: &[(&[u8], u16)] = &[
    (b"read_cr0", 0x00),
    (b"read_cr3", 0x03),
    (b"read_cr4", 0x04),
    (b"read_cr8", 0x08),
    (b"write_cr0", 0x10),
    (b"write_cr3", 0x13),
    (b"write_cr4", 0x14),
    (b"write_cr8", 0x18),
    (b"read_dr0", 0x20),
    (b"write_dr0", 0x30),
    (b"DB", 0x41),
    (b"BP", 0x43),
    (b"UD", 0x46),
    (b"GP", 0x4d),
    (b"PF", 0x4e),
    (b"AC", 0x51),
    (b"MC", 0x52),
    (b"interrupt", 0x60),
    (b"nmi", 0x61),
    (b"smi", 0x62),
    (b"init", 0x63),
    (b"vintr", 0x64),
    (b"cr0_sel_write", 0x65),
    (b"cpuid", 0x72),
    (b"rsm", 0x73),
    (b"iret", 0x74),
    (b"invd", 0x76),
    (b"pause", 0x77),
    (b"hlt", 0x78),
    (b"invlpg", 0x79),
    (b"invlpga", 0x7a),
    (b"io", 0x7b),
    (b"msr", 0x7c),
    (b"task_switch", 0x7d),
    (b"shutdown", 0x7f),
    (b"vmrun", 0x80),
    (b"vmmcall", 0x81),
    (b"wbinvd", 0x89),
    (b"xsetbv", 0x8d),
    (b"invpcid", 0xa2),
    (b"npf", 0x400),
];

/// Names that trace-cmd's own formatter gives to AMD's reasons (behind `EXIT_`), where they differ
/// from the kernel's in more than case.
const TOOL: &[(&[u8], u16)] = &[
    (b"INTR", 0x60),
    (b"NMI", 0x61),
    (b"SMI", 0x62),
    (b"INIT", 0x63),
    (b"IOIO", 0x7b),
    (b"ERR", 0xffff),
];

/// A kvm_exit: the vendor's reason and the first word of information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Vmx(u16, Option<u64>),
    Svm(u16, Option<u64>),
    Unknown,
}

impl Exit {
    /// Reads the raw fields or the text. A reason without a name (`UNKNOWN (162)`) is AMD's if `amd`.
    pub fn of(event: &Event<'_>, amd: bool) -> Self {
        if let Some(reason) = event.num(b"exit_reason") {
            let info1 = event.num(b"info1");
            // The low 16 bits are the basic reason (SDM vol. 3, 25.9.1).
            return match event.num(b"isa") {
                Some(1) => Self::Vmx((reason & 0xffff) as u16, info1),
                Some(2) => u16::try_from(reason).map_or(Self::Unknown, |r| Self::Svm(r, info1)),
                _ => Self::Unknown,
            };
        }
        let text = event.text();
        let reason = word_after(text, b"reason").unwrap_or(b"");
        let info1 = word_after(text, b"info1").and_then(number);
        let info1 = info1.or_else(|| word_after(text, b"info").and_then(bare_hex));
        if reason == b"UNKNOWN" {
            let shown = word_after(text, b"UNKNOWN").and_then(|word| word.strip_prefix(b"("));
            let shown = shown.and_then(number).and_then(|reason| u16::try_from(reason).ok());
            return match shown {
                Some(reason) if amd => Self::Svm(reason, info1),
                Some(reason) => Self::Vmx(reason, info1),
                None => Self::Unknown,
            };
        }
        if let Some(reason) = vmx(reason) {
            return Self::Vmx(reason, info1);
        }
        svm(reason).or_else(|| tool(reason)).map_or(Self::Unknown, |r| Self::Svm(r, info1))
    }

    /// The vendor's number.
    pub const fn number(self) -> Option<u16> {
        match self {
            Self::Vmx(reason, _) | Self::Svm(reason, _) => Some(reason),
            Self::Unknown => None,
        }
    }

    /// The exit qualification, EXITINFO1.
    pub const fn info1(self) -> Option<u64> {
        match self {
            Self::Vmx(_, info1) | Self::Svm(_, info1) => info1,
            Self::Unknown => None,
        }
    }

    /// WRMSR.
    pub const fn is_wrmsr(self) -> bool {
        matches!(self, Self::Vmx(32, _) | Self::Svm(0x7c, Some(1)))
    }
}

/// Intel's reason of this name.
fn vmx(name: &[u8]) -> Option<u16> {
    VMX.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// AMD's reason of this name.
fn svm(name: &[u8]) -> Option<u16> {
    SVM.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// AMD's reason of the name that trace-cmd gives it: `EXIT_WRITE_CR3`, `EXIT_EXCP_PF`.
fn tool(name: &[u8]) -> Option<u16> {
    let name = name.strip_prefix(b"EXIT_")?;
    if let Some((_, number)) = TOOL.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    if let Some(exception) = name.strip_prefix(b"EXCP_") {
        return svm(exception);
    }
    svm(&name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::{svm, tool, vmx};

    #[test]
    fn the_tools_names_are_the_kernels() {
        assert_eq!(tool(b"EXIT_EXCP_PF"), svm(b"PF"));
        assert_eq!(tool(b"EXIT_CR0_SEL_WRITE"), Some(0x65));
        assert_eq!(tool(b"EXIT_NPF"), Some(0x400));
        assert_eq!(tool(b"EXIT_IOIO"), Some(0x7b));
        assert_eq!(vmx(b"INVPCID"), Some(58));
        assert_eq!(tool(b"EXIT_NOTHING"), None);
    }
}
