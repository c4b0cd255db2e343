//! The `[machine]` table of a scenario (DESIGN section 6). Every key has a default; unknown keys,
//! values and features are refused with the nearest known name.

use std::fmt;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

use crate::policy::nearest::nearest;

/// CR3 of a new vCPU: an empty root.
pub const START_CR3: u64 = 0x1000;

/// The state that vCPUs start in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Mode {
    /// Real mode, paging off.
    #[serde(rename = "real")]
    Real,
    /// 32-bit paging with CR4.PSE.
    #[serde(rename = "32-bit")]
    Bits32,
    /// PAE paging.
    #[serde(rename = "pae")]
    Pae,
    /// 4-level paging.
    #[default]
    #[serde(rename = "4-level")]
    Level4,
    /// 5-level paging.
    #[serde(rename = "5-level")]
    Level5,
}

/// Declares a set of named flags that is read from a list of strings.
macro_rules! flag_set {
    ($(#[$doc:meta])* $name:ident, $what:literal {
        $($(#[$fdoc:meta])* $flag:ident = $bit:literal, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u16);

        impl $name {
            $($(#[$fdoc])* pub const $flag: Self = Self(1 << $bit);)*
            /// All of them.
            pub const ALL: Self = Self($(1 << $bit)|*);
            /// The names, as written in a scenario.
            pub const NAMES: &[(&str, Self)] = &[$(($text, Self::$flag)),*];

            /// Whether all of `other` are in the set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The set with `other` added.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The set with `other` taken away.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The names in the set, in the order of declaration.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMES.iter().filter(move |(_, f)| self.contains(*f)).map(|(name, _)| *name)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Names;
                impl<'de> Visitor<'de> for Names {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a list of ", $what, " names"))
                    }

                    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$name, A::Error> {
                        let mut set = $name(0);
                        while let Some(word) = seq.next_element::<String>()? {
                            set = set.with(find(&word, $what, $name::NAMES)?);
                        }
                        Ok(set)
                    }
                }
                deserializer.deserialize_seq(Names)
            }
        }
    };
}

/// The flag of that name, or an error that offers the nearest one.
fn find<T: Copy, E: Error>(word: &str, what: &str, names: &[(&str, T)]) -> Result<T, E> {
    if let Some((_, flag)) = names.iter().find(|(name, _)| *name == word) {
        return Ok(*flag);
    }
    Err(E::custom(match nearest(word, names.iter().map(|(name, _)| *name)) {
        Some(name) => format!("unknown {what} \"{word}\"; did you mean \"{name}\"?"),
        None => {
            let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
            format!("unknown {what} \"{word}\"; known are {}", known.join(", "))
        }
    }))
}

flag_set! {
    /// What CPUID enumerates to the guest.
    Features, "feature" {
        /// Process-context identifiers.
        PCID = 0, "pcid";
        /// INVPCID.
        INVPCID = 1, "invpcid";
        /// Global pages.
        PGE = 2, "pge";
        /// Supervisor-mode execution prevention.
        SMEP = 3, "smep";
        /// Supervisor-mode access prevention.
        SMAP = 4, "smap";
        /// No-execute.
        NX = 5, "nx";
        /// 5-level paging.
        LA57 = 6, "la57";
        /// Protection keys for user pages.
        PKU = 7, "pku";
        /// 1 GiB pages.
        GBPAGES = 8, "gbpages";
    }
}

flag_set! {
    /// The INVVPID types of the processor.
    InvvpidTypes, "INVVPID type" {
        /// Type 0.
        ADDRESS = 0, "address";
        /// Type 1.
        SINGLE = 1, "single";
        /// Type 2.
        ALL_CONTEXTS = 2, "all";
        /// Type 3.
        SINGLE_NONGLOBAL = 3, "single-nonglobal";
    }
}

flag_set! {
    /// The INVEPT types of the processor.
    InveptTypes, "INVEPT type" {
        /// Type 1.
        SINGLE = 0, "single";
        /// Type 2.
        GLOBAL = 1, "global";
    }
}

flag_set! {
    /// Errata of the processor: defects of real parts, off unless named.
    Errata, "erratum" {
        /// INIT leaves global TLB entries if paging and CR4.PGE were on (Core 2, AZ28): the flush
        /// that belongs to the vCPU's reset is INVVPID without globals.
        CORE2_AZ28 = 0, "core2-az28";
        /// INVLPG leaves the global translation while CR4.PCIDE = 1 (Alder Lake, Raptor Lake; Linux
        /// ce0b15d11ad8).
        INVLPG_PCID_GLOBAL = 1, "hw-invlpg-pcid-global";
        /// INVLPG drops nothing while CR4.PGE = 1, only a load of CR3 does (Quark X1000; Linux
        /// ee1b5b165c0a).
        QUARK_PGE = 2, "quark-pge";
        /// The flush that the first VMRUN of a VMCB is asked for does not happen (AMD SEV,
        /// CVE-2021-26342).
        AMD_SEV_VMCB_FLUSH = 3, "amd-sev-vmcb-flush";
        /// Another name of `core2-az28`.
        INIT_KEEPS_GLOBALS = 0, "init-keeps-globals";
        /// Another name of `hw-invlpg-pcid-global`.
        INVLPG_KEEPS_GLOBALS = 1, "invlpg-keeps-globals";
    }
}

/// A size in bytes: a number, or a string with `k`, `m`, `g` or `t`.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Size;
    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as \"1g\", \"512m\" or a number of bytes")
        }

        fn visit_i64<E: Error>(self, v: i64) -> Result<u64, E> {
            u64::try_from(v).map_err(|_| E::invalid_value(Unexpected::Signed(v), &self))
        }

        fn visit_u64<E: Error>(self, v: u64) -> Result<u64, E> {
            Ok(v)
        }

        fn visit_str<E: Error>(self, v: &str) -> Result<u64, E> {
            parse_size(v).ok_or_else(|| E::invalid_value(Unexpected::Str(v), &self))
        }
    }
    let bytes = deserializer.deserialize_any(Size)?;
    if bytes == 0 || bytes % 4096 != 0 || bytes > 1 << 52 {
        return Err(D::Error::custom("memory must be a multiple of 4k, not 0, at most 4096t"));
    }
    Ok(bytes)
}

/// Bytes of a size: decimal or `0x` hex digits with `_` allowed, then `k`, `m`, `g`, `t` or
/// nothing. `None` if it is no size or does not fit.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |hex| (hex, 16));
    if digits.starts_with(['_', '+', '-']) {
        return None;
    }
    let number = u64::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    number.checked_mul(1 << shift)
}

/// The most vCPUs, and pCPUs, of a machine: KVM_MAX_VCPUS of most builds.
pub const CPUS_MAX: u16 = 1024;

/// A number of CPUs.
fn cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    match u16::deserialize(deserializer)? {
        n @ 1..=CPUS_MAX => Ok(n),
        n => Err(D::Error::custom(format!("{n} is not between 1 and {CPUS_MAX}"))),
    }
}

/// The number of VPIDs: 16 bits, without 0 (SDM vol. 3, 28.1).
fn vpids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        n @ 0..=65535 => Ok(n),
        n => Err(D::Error::custom(format!("vpids {n} is more than 65535"))),
    }
}

/// The number of ASIDs: the host's and at least one more.
fn asids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        n if n < 2 => Err(D::Error::custom(format!("asids {n} is less than 2"))),
        n => Ok(n),
    }
}

/// The physical-address width: the manual's limit is 52 bits (SDM vol. 3, 4.1.4).
fn width<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        n @ 32..=52 => Ok(n),
        n => Err(D::Error::custom(format!("maxphyaddr {n} is not between 32 and 52"))),
    }
}

/// The machine of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct MachineConfig {
    /// vCPUs.
    #[serde(deserialize_with = "cpus")]
    pub vcpus: u16,
    /// Physical CPUs; vCPU n starts on pCPU n mod pcpus.
    #[serde(deserialize_with = "cpus")]
    pub pcpus: u16,
    /// The vendor.
    pub vendor: Vendor,
    /// Shadow paging or TDP.
    pub mmu: MmuKind,
    /// The state that vCPUs start in.
    pub mode: Mode,
    /// `unbounded`, or the name or path of a processor (see [`super::costs`]).
    pub tlb: String,
    /// VPIDs are used (Intel).
    pub vpid: bool,
    /// What CPUID enumerates to the guest.
    pub features: Features,
    /// Guest memory in bytes; what lies above is MMIO.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// Physical-address width in bits.
    #[serde(deserialize_with = "width")]
    pub maxphyaddr: u32,
    /// Unrestricted guest (Intel).
    pub unrestricted: bool,
    /// EPT accessed and dirty bits.
    pub ept_ad: bool,
    /// Page-modification logging.
    pub pml: bool,
    /// FLUSHBYASID (AMD).
    pub flushbyasid: bool,
    /// KVM runs on a hypervisor that keeps copies of its nested tables and drops them by hypercall only
    /// (AMD; EnlightenedNptTlb of Hyper-V).
    pub enlightened_npt: bool,
    /// The page at 0xfee00000 is virtualized: VMX's APIC-access page, or AVIC (with TDP, in `memory` of 4g
    /// and more).
    pub apic_page: bool,
    /// Decode assists (AMD). Without them KVM's emulator decodes INVLPG and the CR writes and calls the
    /// same handlers: no flush differs, but an address that is not canonical never reaches the MMU, which
    /// counts it otherwise (facts/kvm.md 4.1, 8.1).
    pub decode_assists: bool,
    /// INVVPID types.
    pub invvpid: InvvpidTypes,
    /// INVEPT types.
    pub invept: InveptTypes,
    /// How many VPIDs there are to give away, 0 excluded.
    #[serde(deserialize_with = "vpids")]
    pub vpids: u32,
    /// How many ASIDs the processor has, 0 (the host's) included.
    #[serde(deserialize_with = "asids")]
    pub asids: u32,
    /// The TDP MMU is on (a policy may still do without: `mechanics.tdp-mmu`).
    pub tdp_mmu: bool,
    /// Steal time, and with it the paravirtual flush.
    pub steal_time: bool,
    /// Hyper-V enlightenments.
    pub hyperv: bool,
    /// Non-coherent DMA.
    pub noncoherent_dma: bool,
    /// A written guest page table may turn unsync.
    pub unsync: bool,
    /// How long a kick takes to be delivered, in nanoseconds: what other vCPUs and the host have due
    /// before then, by an explicit time, comes first (facts on the architecture, E.5).
    pub ipi_latency: u64,
    /// Errata.
    pub errata: Errata,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpus: 1,
            pcpus: 1,
            vendor: Vendor::Intel,
            mmu: MmuKind::Shadow,
            mode: Mode::Level4,
            tlb: "unbounded".to_owned(),
            vpid: true,
            features: Features::ALL,
            memory: 1 << 30,
            maxphyaddr: 46,
            unrestricted: true,
            ept_ad: true,
            pml: false,
            flushbyasid: true,
            enlightened_npt: false,
            apic_page: false,
            decode_assists: true,
            invvpid: InvvpidTypes::ALL,
            invept: InveptTypes::ALL,
            vpids: 65535,
            asids: 32768,
            tdp_mmu: true,
            steal_time: false,
            hyperv: false,
            noncoherent_dma: false,
            unsync: true,
            ipi_latency: 0,
            errata: Errata(0),
        }
    }
}

impl MachineConfig {
    /// The processor that `tlb` names, with its geometry and costs.
    ///
    /// # Errors
    /// The name is unknown, or what is wrong with the file.
    pub fn processor(&self) -> Result<super::Processor, super::MachineError> {
        super::load(&self.tlb)
    }

    /// What of the machine does not go together, if anything.
    #[must_use]
    pub fn conflict(&self) -> Option<&'static str> {
        let amd = self.vendor == Vendor::Amd;
        let tdp = self.mmu == MmuKind::Tdp;
        // Copies of nested tables are kept with a processor's TLB here; the hypervisor below has one set
        // for all.
        if self.enlightened_npt && !(amd && tdp && self.pcpus == 1) {
            return Some("enlightened-npt needs vendor = \"amd\", mmu = \"tdp\" and one pCPU");
        }
        if self.apic_page && !(tdp && self.memory > 0xfee0_0000) {
            return Some("apic-page needs mmu = \"tdp\" and memory of 4g");
        }
        // Each vCPU has a backing page of its own at the same address.
        if self.apic_page && amd && self.vcpus > 1 {
            return Some("apic-page of AMD needs one vCPU");
        }
        None
    }

    /// The registers that a vCPU starts with (DESIGN section 6). PCIDE, SMEP, SMAP and PKE are off
    /// until the guest sets them.
    #[must_use]
    pub fn initial_regs(&self) -> Regs {
        let paged = Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET;
        let (cr0, cr4, long) = match self.mode {
            Mode::Real => (Cr0::ET, Cr4::empty(), false),
            Mode::Bits32 => (paged, Cr4::PSE, false),
            Mode::Pae => (paged, Cr4::PSE | Cr4::PAE, false),
            Mode::Level4 => (paged, Cr4::PAE, true),
            Mode::Level5 => (paged, Cr4::PAE | Cr4::LA57, true),
        };
        let pge = long && self.features.contains(Features::PGE);
        let cr4 = if pge { cr4 | Cr4::PGE } else { cr4 };
        let mut efer = if long { Efer::LME | Efer::LMA } else { Efer::empty() };
        if long && self.features.contains(Features::NX) {
            efer |= Efer::NXE;
        }
        Regs {
            cr0: cr0.bits(),
            cr3: START_CR3,
            cr4: cr4.bits(),
            efer: efer.bits(),
            ..Regs::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MachineConfig, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| e.to_string())
    }

    #[test]
    fn an_empty_table_is_the_default() {
        assert_eq!(parse(""), Ok(MachineConfig::default()));
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            vcpus = 2
            pcpus = 3
            vendor = "amd"
            mmu = "tdp"
            mode = "pae"
            tlb = "zen3"
            vpid = false
            features = ["pcid", "nx"]
            memory = "512m"
            maxphyaddr = 40
            unrestricted = false
            ept-ad = false
            pml = true
            flushbyasid = false
            enlightened-npt = true
            apic-page = true
            decode-assists = false
            invvpid = ["single"]
            invept = ["global"]
            vpids = 3
            asids = 4
            tdp-mmu = false
            steal-time = true
            hyperv = true
            noncoherent-dma = true
            unsync = false
            ipi-latency = 1240
            errata = ["init-keeps-globals"]
        "#;
        let config = parse(text).unwrap();
        assert_eq!((config.vcpus, config.pcpus), (2, 3));
        assert_eq!((config.vendor, config.mmu), (Vendor::Amd, MmuKind::Tdp));
        assert_eq!((config.mode, config.tlb.as_str()), (Mode::Pae, "zen3"));
        assert_eq!(config.features, Features(0b10_0001));
        assert_eq!((config.memory, config.maxphyaddr), (0x2000_0000, 40));
        assert_eq!((config.invvpid, config.invept), (InvvpidTypes(2), InveptTypes(2)));
        assert_eq!((config.vpids, config.asids), (3, 4));
        let off = [config.vpid, config.unrestricted, config.ept_ad, config.flushbyasid];
        assert_eq!(off, [false; 4]);
        assert_eq!([config.decode_assists, config.tdp_mmu, config.unsync], [false; 3]);
        let on = [config.pml, config.steal_time, config.hyperv, config.noncoherent_dma];
        assert_eq!(on, [true; 4]);
        assert_eq!([config.enlightened_npt, config.apic_page], [true; 2]);
        assert_eq!(config.errata, Errata::INIT_KEEPS_GLOBALS);
        assert_eq!(config.ipi_latency, 1240);
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_nearest_name() {
        let error = parse("features = [\"pcid\", \"semp\"]").unwrap_err();
        assert!(error.contains("unknown feature \"semp\"; did you mean \"smep\"?"), "{error}");
        assert!(error.contains("line 1"), "{error}");
        let error = parse("vcpus = 1\nvcpu = 1").unwrap_err();
        assert!(error.contains("line 2") && error.contains("unknown field `vcpu`"), "{error}");
        for text in [
            "vcpus = 0",
            "memory = \"0\"",
            "memory = \"1q\"",
            "pcpus = 1025",
            "memory = \"4097t\"",
            "maxphyaddr = 53",
            "vpids = 65536",
            "asids = 1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1g"), Some(0x4000_0000));
        assert_eq!(parse_size("0x10k"), Some(0x4000));
        assert_eq!(parse_size("4_096"), Some(4096));
        for bad in ["", "g", "-1", "1gg", "0x", "99999999999t", "é"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn start_registers_of_each_mode() {
        let regs = |mode: &str| {
            let r = parse(&format!("mode = \"{mode}\"")).unwrap().initial_regs();
            (r.cr0, r.cr3, r.cr4, r.efer)
        };
        assert_eq!(regs("real"), (0x10, 0x1000, 0, 0));
        assert_eq!(regs("32-bit"), (0x8001_0011, 0x1000, 0x10, 0));
        assert_eq!(regs("pae"), (0x8001_0011, 0x1000, 0x30, 0));
        assert_eq!(regs("4-level"), (0x8001_0011, 0x1000, 0xa0, 0xd00));
        assert_eq!(regs("5-level"), (0x8001_0011, 0x1000, 0x10a0, 0xd00));
        let plain = parse("features = []").unwrap().initial_regs();
        assert_eq!((plain.cr4, plain.efer), (0x20, 0x500));
    }
}
