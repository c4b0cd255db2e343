//! A case in the terms of the model: a processor, what it caches, and what happens to it. What the
//! model cannot express is said by name.

use std::num::{NonZeroU16, NonZeroU32};

use tlbscope_sim::arch::fault::Limits;
use tlbscope_sim::arch::processor::{Place, Processor, ep4ta};
use tlbscope_sim::policy::nearest::nearest;
use tlbscope_trace::act::{Class, Tag};
use tlbscope_trace::addr::{Ep4ta, PageSize, Pcid, PcpuId};
use tlbscope_trace::regs::{Cr4, Efer, Regs, Vendor};

use super::file::{Expected, Kind, Level, Map, Number, RawCase, RawEntry, RawState};
use super::operation::{self, Operation};

/// Why a case cannot be run.
pub(super) type Missing = String;

/// Entries and operations of one case: time grows with their product.
const LENGTH_MAX: usize = 1024;

/// What kind of copy an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// A translation of this size, of a page of the second size.
    Translation(PageSize, PageSize),
    /// A paging-structure entry of this level, log2 of the bytes that it covers.
    Structure(u8, u32),
    /// A guest-physical mapping.
    Physical(PageSize),
}

/// What a case caches beforehand.
#[derive(Clone, Debug)]
pub(super) struct Cached {
    pub id: String,
    pub copy: Copy,
    pub tag: Tag,
    /// Linear, or guest-physical for [`Copy::Physical`].
    pub address: u64,
    pub global: bool,
    pub rights: Flags,
    pub expected: Option<Expected>,
}

/// Cached permissions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flags {
    pub write: bool,
    pub user: bool,
    pub xd: bool,
    pub dirty: bool,
}

/// A case that the model can run.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub pcpu: PcpuId,
    pub processor: Processor,
    pub cached: Vec<Cached>,
    pub operations: Vec<Operation>,
}

impl Case {
    pub fn new(raw: &RawCase) -> Result<Self, Missing> {
        if raw.entries.len() > LENGTH_MAX || raw.ops.len() > LENGTH_MAX {
            return Err(format!("a case of more than {LENGTH_MAX} entries or operations"));
        }
        let pcpu = cpu(raw.state.cpu)?;
        let processor = processor(raw.vendor, &raw.state)?;
        let entry = |entry: &RawEntry| {
            let expected = raw.expect.get(&entry.id).copied();
            cached(raw.vendor, pcpu, entry, expected)
                .map_err(|missing| format!("entry `{}`: {missing}", entry.id))
        };
        let cached = raw.entries.iter().map(entry).collect::<Result<_, _>>()?;
        let operations = raw.ops.iter().enumerate().map(|(n, op)| {
            operation::parse(op).map_err(|missing| format!("operation {}: {missing}", n + 1))
        });
        let operations = operations.collect::<Result<_, _>>()?;
        Ok(Self { pcpu, processor, cached, operations })
    }
}

pub(super) fn cpu(number: Number) -> Result<PcpuId, Missing> {
    let wide = |_| format!("a processor numbered {}: 65535 is the last", number.0);
    u16::try_from(number.0).map(PcpuId).map_err(wide)
}

const STATE_KEYS: [&str; 17] = [
    "mode",
    "context",
    "cpu",
    "vpid",
    "asid",
    "cr0",
    "cr3",
    "cr4",
    "efer",
    "maxphyaddr",
    "cpl",
    "intercepted",
    "eptp",
    "vpid_enabled",
    "np_enable",
    "flush_by_asid",
    "pdpte_reserved_set",
];

/// "`word` (did you mean `x`?)".
pub(super) fn unknown<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    match nearest(word, names) {
        Some(near) => format!("`{word}` (did you mean `{near}`?)"),
        None => format!("`{word}`"),
    }
}

fn processor(vendor: Vendor, state: &RawState) -> Result<Processor, Missing> {
    if let Some(key) = state.unknown.keys().find(|key| *key != "note") {
        return Err(format!("the state {} is not modelled", unknown(key, STATE_KEYS)));
    }
    let maxphyaddr = state.maxphyaddr.map_or(46, |n| n.0);
    let wide = |_| format!("a physical-address width of {maxphyaddr} bits");
    let maxphyaddr = u8::try_from(maxphyaddr).map_err(wide)?;
    let regs = Regs {
        cr0: state.cr0.0,
        cr3: state.cr3.0,
        cr4: state.cr4.0,
        efer: state.efer.0,
        ..Regs::default()
    };
    let vpid = u16::try_from(state.vpid.unwrap_or_default().0)
        .map_err(|_| "a VPID of more than 16 bits".to_owned())?;
    let guest_eptp = state.eptp.map(|n| ep4ta(n.0));
    Ok(Processor {
        limits: limits(vendor, maxphyaddr),
        regs,
        place: place(state, vpid, guest_eptp)?,
        guest_vpid: NonZeroU16::new(vpid).unwrap_or(NonZeroU16::MIN),
        guest_eptp,
        cpl: u8::try_from(state.cpl.0).map_err(|_| "a CPL above 3".to_owned())?,
        compatibility: compatibility(state)?,
        bad_pdptes: state.pdpte_reserved_set,
        intercepted: state.intercepted,
        flush_by_asid: state.flush_by_asid.unwrap_or(true),
    })
}

fn limits(vendor: Vendor, maxphyaddr: u8) -> Limits {
    // Bits that no flag here names but that some processor has: KL (19), UINTR (25).
    let cr4_allowed = Cr4::all().bits() | 1 << 19 | 1 << 25;
    let long = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    let efer_allowed = match vendor {
        Vendor::Intel => long,
        Vendor::Amd => Efer::all(),
    };
    let efer_allowed = efer_allowed.bits();
    Limits { maxphyaddr, vendor, cr4_allowed, efer_allowed, pg_clear_in_64_bit: false }
}

/// Whether CS.L = 0. The registers say the rest of the mode.
fn compatibility(state: &RawState) -> Result<bool, Missing> {
    const MODES: [&str; 7] = [
        "off",
        "32bit",
        "pae",
        "ia32e_4level",
        "ia32e_4level_compat_cs",
        "ia32e_5level",
        "ia32e_5level_compat_cs",
    ];
    let mode = state.mode.as_deref().unwrap_or("ia32e_4level");
    if !MODES.contains(&mode) {
        return Err(format!("the mode {} is not modelled", unknown(mode, MODES)));
    }
    Ok(!mode.starts_with("ia32e") || mode.ends_with("_compat_cs"))
}

fn place(state: &RawState, vpid: u16, eptp: Option<Ep4ta>) -> Result<Place, Missing> {
    const CONTEXTS: [&str; 8] = [
        "native",
        "vmx_root",
        "vmx_nonroot_ept",
        "vmx_nonroot",
        "svm_host",
        "svm_guest_np",
        "svm_guest",
        "smm",
    ];
    let context = state.context.as_deref().unwrap_or("native");
    Ok(match context {
        "native" | "vmx_root" | "svm_host" | "smm" => Place::Host,
        "vmx_nonroot_ept" | "vmx_nonroot" => {
            let enabled = state.vpid_enabled.unwrap_or(vpid != 0);
            let vpid = NonZeroU16::new(vpid).filter(|_| enabled);
            if enabled && vpid.is_none() {
                return Err("a guest with \"enable VPID\" and VPID 0000H cannot run".to_owned());
            }
            Place::VmxGuest { vpid, eptp: eptp.filter(|_| context == "vmx_nonroot_ept") }
        }
        "svm_guest_np" | "svm_guest" => {
            let asid = u32::try_from(state.asid.unwrap_or_default().0).ok();
            let asid = asid.and_then(NonZeroU32::new);
            Place::SvmGuest { asid: asid.ok_or("an SVM guest needs an ASID other than 0")? }
        }
        other => return Err(format!("the context {} is not modelled", unknown(other, CONTEXTS))),
    })
}

fn cached(
    vendor: Vendor,
    own: PcpuId,
    raw: &RawEntry,
    expected: Option<Expected>,
) -> Result<Cached, Missing> {
    let (class, id) = match (vendor, raw.map) {
        (Vendor::Intel, Map::Linear) => (Class::Linear, raw.vpid),
        (Vendor::Intel, Map::Combined) => (Class::Combined, raw.vpid),
        (Vendor::Intel, Map::GuestPhysical) => (Class::GuestPhysical, None),
        (Vendor::Amd, Map::Linear | Map::AsidTagged) => (Class::Asid, raw.asid),
        (Vendor::Intel, Map::AsidTagged) => return Err("Intel tags nothing with an ASID".into()),
        (Vendor::Amd, _) => return Err("AMD has no mappings tagged with an EP4TA".into()),
    };
    let wide = || "a VPID or ASID of more than 32 bits".to_owned();
    let id = u32::try_from(id.unwrap_or_default().0).map_err(|_| wide())?;
    let pcid = raw.pcid.unwrap_or_default().0;
    if pcid > 0xfff {
        return Err(format!("PCID {pcid:#x} has more than 12 bits"));
    }
    let ep4ta = raw.ep4ta.map_or(Ep4ta(0), |n| Ep4ta(n.0));
    let pcpu = raw.cpu.map_or(Ok(own), cpu)?;
    let tag = Tag { pcpu, class, id, ep4ta, pcid: Pcid(pcid as u16) };
    let copy = copy(raw)?;
    if matches!(copy, Copy::Physical(_)) != (class == Class::GuestPhysical) {
        return Err("kind `gpa` and map `guest_physical` go together".into());
    }
    let address = match copy {
        Copy::Physical(_) => raw.gpa.ok_or("a guest-physical mapping needs `gpa`")?,
        _ => raw.va.ok_or("needs `va`")?,
    };
    let has = |flag| raw.flags.split(',').any(|word| word.trim() == flag);
    let rights = Flags { write: has("RW"), user: has("US"), xd: has("XD"), dirty: has("D") };
    let (id, address, global) = (raw.id.clone(), address.0, raw.global);
    Ok(Cached { id, copy, tag, address, global, rights, expected })
}

fn copy(raw: &RawEntry) -> Result<Copy, Missing> {
    let size = raw.size.as_deref();
    match (raw.kind, raw.level) {
        (Kind::Tlb, None) => {
            let size = page_size(size.unwrap_or("4K"))?;
            let whole = raw.fractured_from.as_deref().map_or(Ok(size), page_size)?;
            if whole < size {
                return Err("`fractured_from` is smaller than `size`".into());
            }
            Ok(Copy::Translation(size, whole))
        }
        (Kind::Gpa, None) => Ok(Copy::Physical(page_size(size.unwrap_or("4K"))?)),
        (Kind::Psc, Some(level)) => structure(level, size),
        (Kind::Psc, None) => Err("a paging-structure entry needs `level`".into()),
        (_, Some(_)) => Err("only a paging-structure entry has a `level`".into()),
    }
}

/// A PDE covers 2 MiB, or 4 MiB in 32-bit paging.
fn structure(level: Level, size: Option<&str>) -> Result<Copy, Missing> {
    let (level, default) = match level {
        Level::Pde => (2, "2M"),
        Level::Pdpte => (3, "1G"),
        Level::Pml4e => (4, "512G"),
        Level::Pml5e => (5, "256T"),
    };
    let shift = match (level, size.unwrap_or(default)) {
        (2, "2M") => 21,
        (2, "4M") => 22,
        (3, "1G") => 30,
        (4, "512G") => 39,
        (5, "256T") => 48,
        (_, size) => return Err(format!("a paging-structure entry of level {level} over {size}")),
    };
    Ok(Copy::Structure(level, shift))
}

fn page_size(size: &str) -> Result<PageSize, Missing> {
    match size {
        "4K" | "4k" => Ok(PageSize::Size4K),
        "2M" | "2m" => Ok(PageSize::Size2M),
        "4M" | "4m" => Ok(PageSize::Size4M),
        "1G" | "1g" => Ok(PageSize::Size1G),
        other => Err(format!("a page of {other}: 4K, 2M, 4M and 1G exist")),
    }
}
