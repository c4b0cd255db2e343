//! The codes of a block's `kinds` column, and the state that writer and reader keep in step.

use crate::op::AccessKind;

/// Accesses: `(kind * 4 + user * 2 + ac) * 2 + offset`, where `offset` says that the offset in the
/// page differs from that of the access before.
pub(super) const ACCESS_END: u8 = 24;
pub(super) const PREFETCH: u8 = 24;
pub(super) const INVLPG: u8 = 25;
pub(super) const INVPCID: u8 = 26;
pub(super) const MAP: u8 = 27;
pub(super) const UNMAP: u8 = 28;
pub(super) const PROTECT: u8 = 29;
pub(super) const STORE: u8 = 30;
pub(super) const PAGE_FAULT: u8 = 31;
pub(super) const INVALIDATE_GVA: u8 = 32;
pub(super) const HOOK_GVA: u8 = 33;
/// An entry of the dictionary whose number follows in the `rest` stream.
pub(super) const LISTED: u8 = 63;
/// From here on, the code is an entry of the dictionary itself.
pub(super) const DIRECT: u8 = 64;
/// Entries that have a code of their own.
pub(super) const DIRECT_COUNT: usize = 256 - DIRECT as usize;

/// A head byte's time code: the distance is the one before's.
pub(super) const TIME_SAME: u8 = 30;
/// A head byte's time code: the distance follows.
pub(super) const TIME_FOLLOWS: u8 = 31;
/// A head byte's line code: the distance is the one before's.
pub(super) const LINE_SAME: u8 = 0;
/// A head byte's line code: the next line.
pub(super) const LINE_NEXT: u8 = 1;
/// A head byte's line code: the same line.
pub(super) const LINE_STAYS: u8 = 2;
/// A head byte's line code: the distance follows.
pub(super) const LINE_FOLLOWS: u8 = 3;

/// The access kinds by number.
pub(super) const KINDS: [AccessKind; 3] = [AccessKind::Read, AccessKind::Write, AccessKind::Exec];

/// What the next record is told against. Writer and reader start each block from the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    /// Pages of the last linear address: supervisor, user.
    pub page: [u64; 2],
    /// Offset in the page of the last access.
    pub offset: u16,
    /// Page of the last guest-physical address.
    pub frame: u64,
    /// Page of the last root.
    pub root: u64,
}
