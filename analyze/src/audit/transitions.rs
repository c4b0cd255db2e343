//! What the host did for each kind of guest operation: one row for each kind, one column for each
//! kind of act, counted from the operation to the next entry of its vCPU.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

use rustc_hash::FxHashMap;
use serde::Serialize;
use tlbscope_trace::act::{Act, Hook, HookBy, Request, RootLookup};
use tlbscope_trace::op::{InvpcidType, Op};
use tlbscope_trace::regs::{CR3_NOFLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer, Regs};

/// The columns, in order.
pub const COLUMNS: [&str; 20] = [
    "reset",
    "init",
    "unload",
    "free-roots",
    "invalidate-pcid",
    "invalidate-gva",
    "new-pgd",
    "new-pgd-miss",
    "load-pdptrs",
    "request-all",
    "request-current",
    "request-guest",
    "sync-roots",
    "sync-prev-roots",
    "load",
    "load-flush",
    "flush-all",
    "flush-current",
    "flush-guest",
    "flush-gva",
];

/// The columns of one act.
fn columns(act: &Act) -> [Option<usize>; 2] {
    let one = match *act {
        Act::Reset { .. } => 0,
        Act::Init => 1,
        Act::Unload => 2,
        Act::FreeRoots { mask: 0 } => return [None; 2],
        Act::FreeRoots { .. } => 3,
        Act::InvalidatePcid(_) => 4,
        Act::InvalidateGva(_) => 5,
        Act::NewPgd(Some(RootLookup::Miss)) => return [Some(6), Some(7)],
        Act::NewPgd(_) => 6,
        Act::LoadPdptrs { .. } => 8,
        Act::Serve(Request::TlbFlush) => 9,
        Act::Serve(Request::TlbFlushCurrent) => 10,
        Act::Serve(Request::TlbFlushGuest) => 11,
        Act::SyncRoots => 12,
        Act::SyncPrevRoots => 13,
        Act::Load => 14,
        Act::Hook { by: HookBy::Load, .. } => 15,
        // svm_set_cr4 calls flush_current, of which a recording shows the tail alone (facts/kvm.md 1.5).
        Act::Hook { by: HookBy::Register, .. } => 17,
        Act::Hook { hook: Hook::All, .. } => 16,
        Act::Hook { hook: Hook::Current, .. } => 17,
        Act::Hook { hook: Hook::Guest, .. } => 18,
        Act::Hook { hook: Hook::Gva(_), .. } => 19,
        _ => return [None; 2],
    };
    [Some(one), None]
}

/// What the host did for the operations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// How many operations of the kind were followed by an entry.
    pub operations: u64,
    /// Acts, in the order of [`COLUMNS`].
    pub acts: [u64; COLUMNS.len()],
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Transitions {
    rows: BTreeMap<String, Row>,
    /// Rows by the kind of their operations, before they have a name.
    places: FxHashMap<Kinds, usize>,
    named: Vec<(String, Row)>,
}

/// What makes two operations the same kind, cheap to compare: most repeat one that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kinds {
    op: Discriminant<Op>,
    set: u64,
    cleared: u64,
    flags: u8,
}

impl Kinds {
    /// The kind of an operation that found the registers `before` and left `after`.
    pub fn of(op: &Op, before: &Regs, after: &Regs, refused: bool) -> Self {
        let (old, new, flags) = match op {
            Op::Cr0(_) | Op::Clts | Op::Lmsw(_) => (before.cr0, after.cr0, 0),
            Op::Cr4(_) => (before.cr4, after.cr4, 0),
            Op::Efer(_) => (before.efer, after.efer, 0),
            Op::Cr3(value) => (0, 0, cr3_flags(*value, before)),
            Op::Invpcid(op) => (
                0,
                0,
                match op.kind {
                    InvpcidType::Addr => 0,
                    InvpcidType::Single => 1,
                    InvpcidType::All => 2,
                    InvpcidType::AllNonglobal => 3,
                    InvpcidType::Reserved(_) => 4,
                },
            ),
            _ => (0, 0, 0),
        };
        let more = u8::from(refused) << 6 | u8::from(before.paging()) << 7;
        Self { op: discriminant(op), set: new & !old, cleared: old & !new, flags: flags | more }
    }
}

/// What of a CR3 write makes its kind.
fn cr3_flags(value: u64, before: &Regs) -> u8 {
    let now = value & !CR3_NOFLUSH;
    let changed = now ^ before.cr3;
    u8::from(before.cr4().contains(Cr4::PCIDE))
        | u8::from(changed == 0) << 1
        | u8::from(changed & !CR3_PCID_MASK == 0) << 2
        | u8::from(changed & CR3_PCID_MASK == 0) << 3
        | u8::from(value & CR3_NOFLUSH != 0) << 4
}

/// The acts since the operation under way on one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Under {
    kind: Option<usize>,
    acts: [u64; COLUMNS.len()],
}

impl Under {
    /// An operation begins. One that came before in the same window is complete.
    /// `name` is asked for the first time that its kind is seen.
    pub fn begin(&mut self, kind: Kinds, table: &mut Transitions, name: impl FnOnce() -> String) {
        self.end(table);
        let named = &mut table.named;
        let place = *table.places.entry(kind).or_insert_with(|| {
            named.push((name(), Row::default()));
            named.len() - 1
        });
        self.kind = Some(place);
    }

    /// Something is done for it.
    pub fn act(&mut self, act: &Act) {
        if self.kind.is_some() {
            for column in columns(act).into_iter().flatten() {
                self.acts[column] += 1;
            }
        }
    }

    /// The vCPU enters.
    pub fn end(&mut self, table: &mut Transitions) {
        let Some(place) = self.kind.take() else { return };
        let Some((_, row)) = table.named.get_mut(place) else { return };
        row.operations += 1;
        row.acts.iter_mut().zip(self.acts).for_each(|(sum, n)| *sum += n);
        self.acts = [0; COLUMNS.len()];
    }

    /// The rest is lost.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Transitions {
    /// Sorts the rows by name; kinds of one name become one row.
    pub(super) fn finish(&mut self) {
        self.places.clear();
        for (name, row) in self.named.drain(..).filter(|(_, row)| row.operations > 0) {
            let sum = self.rows.entry(name).or_default();
            sum.operations += row.operations;
            sum.acts.iter_mut().zip(row.acts).for_each(|(sum, n)| *sum += n);
        }
    }

    /// The rows by name.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.rows.iter().map(|(name, row)| (name.as_str(), row))
    }

    /// A row by name.
    #[must_use]
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.get(name)
    }
}

impl Row {
    /// A count by the name of its column.
    #[must_use]
    pub fn count(&self, column: &str) -> Option<u64> {
        COLUMNS.iter().position(|name| *name == column).map(|place| self.acts[place])
    }
}

/// The name of the kind of an operation that found the registers `before` and left `after`.
pub fn name(op: &Op, before: &Regs, after: &Regs, refused: bool) -> String {
    let mode = |regs: &Regs| if regs.paging() { "paging" } else { "no paging" };
    let mut name = match op {
        Op::Cr0(_) | Op::Clts | Op::Lmsw(_) => {
            let names = changed(before.cr0, after.cr0, &CR0);
            format!("CR0 {names}, {}", mode(before))
        }
        Op::Cr4(_) => {
            let names = changed(before.cr4, after.cr4, &CR4);
            format!("CR4 {names}, {}", mode(before))
        }
        Op::Efer(_) => {
            let names = changed(before.efer, after.efer, &EFER);
            format!("EFER {names}, {}", mode(before))
        }
        Op::Cr3(value) => cr3(*value, before),
        Op::TaskSwitch(_) => "task switch".to_owned(),
        Op::Invlpg(_) => "INVLPG".to_owned(),
        Op::Invpcid(op) => format!(
            "INVPCID {}",
            match op.kind {
                InvpcidType::Addr => "0 (address)",
                InvpcidType::Single => "1 (single)",
                InvpcidType::All => "2 (all)",
                InvpcidType::AllNonglobal => "3 (all but globals)",
                InvpcidType::Reserved(_) => "of no known type",
            }
        ),
        Op::Init => "INIT".to_owned(),
        Op::Reset => "RESET".to_owned(),
        Op::Sregs(_) => "userspace sets registers".to_owned(),
        Op::MsrMtrr(_) => "MTRR".to_owned(),
        Op::MsrPat(_) => "PAT".to_owned(),
        _ => "other".to_owned(),
    };
    if refused {
        name.push_str(", #GP");
    }
    name
}

fn cr3(value: u64, before: &Regs) -> String {
    let pcide = before.cr4().contains(Cr4::PCIDE);
    let value_now = value & !CR3_NOFLUSH;
    let table = |cr3: u64| cr3 & !CR3_PCID_MASK;
    let root = match (table(value_now) == table(before.cr3), value_now == before.cr3) {
        (_, true) => "same value",
        (true, false) if pcide => "same root",
        (true, false) => "same root, other low bits",
        _ => "other root",
    };
    let pcid = match (pcide, value & CR3_PCID_MASK == before.cr3 & CR3_PCID_MASK) {
        (false, _) => "",
        (true, true) => ", same PCID",
        (true, false) => ", other PCID",
    };
    let noflush = if pcide && value & CR3_NOFLUSH != 0 { ", NOFLUSH" } else { "" };
    format!("CR3 {root}{pcid}{noflush}")
}

type Named = (&'static str, u64);

const CR0: [Named; 11] = [
    ("PE", Cr0::PE.bits()),
    ("MP", Cr0::MP.bits()),
    ("EM", Cr0::EM.bits()),
    ("TS", Cr0::TS.bits()),
    ("ET", Cr0::ET.bits()),
    ("NE", Cr0::NE.bits()),
    ("WP", Cr0::WP.bits()),
    ("AM", Cr0::AM.bits()),
    ("NW", Cr0::NW.bits()),
    ("CD", Cr0::CD.bits()),
    ("PG", Cr0::PG.bits()),
];

const CR4: [Named; 23] = [
    ("VME", Cr4::VME.bits()),
    ("PVI", Cr4::PVI.bits()),
    ("TSD", Cr4::TSD.bits()),
    ("DE", Cr4::DE.bits()),
    ("PSE", Cr4::PSE.bits()),
    ("PAE", Cr4::PAE.bits()),
    ("MCE", Cr4::MCE.bits()),
    ("PGE", Cr4::PGE.bits()),
    ("PCE", Cr4::PCE.bits()),
    ("OSFXSR", Cr4::OSFXSR.bits()),
    ("OSXMMEXCPT", Cr4::OSXMMEXCPT.bits()),
    ("UMIP", Cr4::UMIP.bits()),
    ("LA57", Cr4::LA57.bits()),
    ("VMXE", Cr4::VMXE.bits()),
    ("SMXE", Cr4::SMXE.bits()),
    ("FSGSBASE", Cr4::FSGSBASE.bits()),
    ("PCIDE", Cr4::PCIDE.bits()),
    ("OSXSAVE", Cr4::OSXSAVE.bits()),
    ("SMEP", Cr4::SMEP.bits()),
    ("SMAP", Cr4::SMAP.bits()),
    ("PKE", Cr4::PKE.bits()),
    ("CET", Cr4::CET.bits()),
    ("PKS", Cr4::PKS.bits()),
];

/// LMA follows from other registers and is left out.
const EFER: [Named; 7] = [
    ("SCE", Efer::SCE.bits()),
    ("LME", Efer::LME.bits()),
    ("NXE", Efer::NXE.bits()),
    ("SVME", Efer::SVME.bits()),
    ("LMSLE", Efer::LMSLE.bits()),
    ("FFXSR", Efer::FFXSR.bits()),
    ("TCE", Efer::TCE.bits()),
];

/// `+PGE -SMEP`: what was set and what was cleared; a bit that has no name by its number.
fn changed(before: u64, after: u64, names: &[Named]) -> String {
    let known = names.iter().fold(Efer::LMA.bits(), |all, (_, bit)| all | bit);
    let sign = |bit: u64| if after & bit != 0 { '+' } else { '-' };
    let differs = |bit: &u64| (before ^ after) & bit != 0;
    let named = names.iter().filter(|(_, bit)| differs(bit));
    let mut all: Vec<String> = named.map(|(name, bit)| format!("{}{name}", sign(*bit))).collect();
    let others = (0..64).filter(|n| known >> n & 1 == 0 && differs(&(1 << n)));
    all.extend(others.map(|n| format!("{}bit{n}", sign(1 << n))));
    if all.is_empty() { "no change".to_owned() } else { all.join(" ") }
}
