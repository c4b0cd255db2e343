//! Names of exit reasons as the kernel prints them, with their numbers (SDM vol. 3, appendix C;
//! APM vol. 2, appendix C).

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

/// Intel's reason of this name.
pub(super) fn vmx(name: &[u8]) -> Option<u16> {
    VMX.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// AMD's reason of this name.
pub(super) fn svm(name: &[u8]) -> Option<u16> {
    SVM.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}
