//! The native file, `.tlbt`.
//!
//! All numbers are little-endian. A *varint* has 7 bits a byte, the low ones first; *zigzag* maps
//! 0, -1, 1, -2 to 0, 1, 2, 3; a *page* is an address without its low 12 bits.
//!
//! ```text
//! file     magic "TLBT" | version u32 = 2 | section*
//! section  mark "SECT" | kind u8 | packing u8 | 0 u16 | stored u32 | raw u32 | records u32 |
//!          operations u32 | first record u64 | first operation u64 |
//!          crc32 u32 of the stored bytes | crc32 u32 of the 44 bytes before it | stored bytes
//! ```
//! Sections: the *header* (kind 1), then *blocks* of at most 16384 records (2) that decode without
//! their neighbours, then the *index* (3) and the *end* (4). Header, index and end are bincode 2
//! values ([`Header`], [`Index`], and the position of the index as 8 bytes). A block may be packed
//! with zstd (packing 1): `stored` bytes then unpack to `raw`. A section is at most 16 MiB, packed
//! or not. Each says how many records and operations come before it, so that a hole is measured by
//! what follows it, and a file without an end (a cut one) by its last whole block.
//!
//! ```text
//! block    time varint | actor varint | line varint | unit varint | width varint |
//!          entries varint | length varint of each stream | the nine streams
//! streams  dictionary | kinds | marks | heads | pages | wide | offsets | listed | rest
//! ```
//! * `kinds` has a byte for each record: its code (below).
//! * `marks` has a bit for each record, the low bit of a byte first, in whole groups of 8 bytes: its
//!   actor, or its distance in time or lines from the record before, is not what the one before had.
//!   Then `heads` has a byte for it: bit 0 an actor follows (varint: 0 the host, n + 1 vCPU n); bits
//!   2:1 the line, 0 the same distance, 1 the next line, 2 the same line, 3 a distance follows
//!   (zigzag varint); bits 7:3 the time, up to 29 that many units later, 30 the same distance, 31 a
//!   distance in units follows (zigzag varint). What is said to follow comes in that order. `time`,
//!   `actor` and `line` are those of the first record, `unit` is the greatest number of nanoseconds
//!   that divides all distances.
//! * Code 0 to 23 is an access: (0 read, 1 write, 2 exec) * 8 + user * 4 + ac * 2 + moved. `pages` has
//!   `width` (1, 2 or 4) bytes for it: the zigzag distance of its page from that of the last linear
//!   address of the same half, where a user access belongs to half 1 and another to half 0. All bits set
//!   mean that the distance is in `wide` (varint). If *moved*, `offsets` has the offset in the page
//!   as 2 bytes; else it is that of the access before.
//! * Codes 24 to 33 have their operands in `rest`, an address last: prefetch; invlpg; invpcid (type
//!   u8, PCID varint); map (leaf, GPA address); unmap (leaf); protect (leaf); store (GPA address, value varint,
//!   no linear address); page fault act (error code varint); invalidate-gva act; gva hook act (by * 2 +
//!   effective). A *leaf* is a byte, bits 4:0 the rights r w x u g, 6:5 the size 4k 2m 4m 1g, 7 a root
//!   follows (address). An address is a varint, the zigzag distance of its page * 4 + half * 2 + (an
//!   offset follows, varint); half 0 is the upper half of the linear addresses. GPAs have a last page
//!   of their own and half 0, roots another. All last pages and offsets are 0 at the start of a block.
//! * Code 63 is the body of the dictionary whose number is in `listed` (varint), code 64 + n body n.
//!   `dictionary` has `entries` bodies, each a length (varint) and a bincode 2 value; the most
//!   used come first.
//!
//! A bincode 2 value (varint, little-endian): numbers of 16 bits and more are 1 byte up to 250, else 251,
//! 252 or 253 and 2, 4 or 8 bytes; `u8` and `bool` are one byte; `Option` is 0, or 1 and the value;
//! a list is its length and its values, text a list of bytes, a map a list of pairs; a structure is its fields in
//! the order of their declaration; an enum is the number of its variant and the variant's fields. The variants are
//! numbered from 0 in the order of their declaration:
//!
//! ```text
//! Body          0 Op, 1 Act, 2 Gap
//! Op            0 Cr0, 1 Clts, 2 Lmsw, 3 Cr3, 4 Cr4, 5 Efer, 6 Map, 7 Unmap, 8 Protect, 9 Table, 10 Link, 11 Store,
//!               12 Access, 13 Prefetch, 14 Invlpg, 15 Invpcid, 16 Invlpga, 17 Invlpgb, 18 Tlbsync, 19 Init,
//!               20 Reset, 21 Smi, 22 Rsm, 23 TaskSwitch, 24 MsrMtrr, 25 MsrPat, 26 Pkru, 27 Cpuid, 28 Code,
//!               29 MsrApicBase, 30 Sregs, 31 Emul, 32 PvFlush, 33 HvFlush, 34 L2Enter, 35 L2Exit, 36 L1, 37 Out,
//!               38 In, 39 InFail, 40 Exit, 41 Release, 42 Host, 43 HostBegin, 44 HostEnd, 45 PageFault,
//!               46 Hlt, 47 InvlpgbLarge, 48 WalkBegin, 49 WalkEnd
//! HostOp        0 Map, 1 Unmap, 2 Protect, 3 Ro, 4 Age, 5 DirtyLog, 6 Split, 7 Collapse, 8 ZapAll, 9 Memslot,
//!               10 Migrate, 11 Preempt, 12 Run, 13 VcpuCreate, 14 VcpuDestroy, 15 MsrEfer, 16 Clean, 17 Invlpgb
//! L1Op          0 Invept, 1 Invvpid, 2 Vmfunc, 3 Vmxon, 4 Vmxoff
//! Actor         0 Vcpu, 1 Host              AccessKind    0 Read, 1 Write, 2 Exec
//! InvpcidType   0 Addr, 1 Single, 2 All, 3 AllNonglobal, 4 Reserved
//! MemslotChange 0 Add, 1 Move, 2 Delete     PageSize      0 4k, 1 2m, 2 4m, 3 1g
//! Vendor        0 Intel, 1 Amd              MmuKind       0 Shadow, 1 Tdp
//! Act           0 Post, 1 Serve, 2 Reset, 3 Init, 4 RoleChange, 5 Unload, 6 FreeRoot, 7 FreeRoots, 8 NewPgd,
//!               9 Load, 10 LoadPgd, 11 SyncRoots, 12 SyncPrevRoots, 13 FreeObsoleteRoots, 14 InvalidatePcid,
//!               15 InvalidateGva, 16 LoadPdptrs, 17 Hook, 18 Inv, 19 NewAsid, 20 RemoteFlush, 21 Ipi, 22 ZapAll,
//!               23 SpNew, 24 SpFound, 25 SpLink, 26 SpUnlink, 27 SpteSet, 28 SpteClear, 29 SpUnsync, 30 SpSync,
//!               31 SpZap, 32 PageFault, 33 Inject, 34 Entry, 35 EntrySeen, 36 EntryAborted, 37 Exit,
//!               38 VcpuLoad, 39 VmcsLoad, 40 Refill, 41 SpuriousFault, 42 RootSeen, 43 RequestAll, 44 OldSeen,
//!               45 RegSeen, 46 RootNew, 47 SpFree, 48 SpRead, 49 Broadcast, 50 HeldPage
//! Request       0 TlbFlush, 1 TlbFlushCurrent, 2 TlbFlushGuest, 3 MmuSync, 4 LoadMmuPgd, 5 MmuReload,
//!               6 MmuFreeObsoleteRoots, 7 HvTlbFlush, 8 MmuUpdateRoot, 9 StealUpdate, 10 ApicPageReload
//! Hook          0 All, 1 Current, 2 Guest, 3 Gva    HookBy  0 Request, 1 Load, 2 Register, 3 Direct
//! RootSlot      0 Current, 1 Prev           RootLookup    0 Current, 1 Prev, 2 Miss
//! Inv           0 VpidAddress, 1 VpidSingle, 2 VpidAll, 3 VpidNonglobal, 4 EptSingle, 5 EptGlobal,
//!               6 VpidZeroTransition, 7 TlbControlAll, 8 TlbControlAsid, 9 TlbControlNonglobal, 10 Invlpga,
//!               11 Guest, 12 Exact
//! GuestInv      0 All, 1 Nonglobal, 2 Pcid, 3 PcidNonglobal, 4 Address, 5 AddressNonglobal, 6 Fault, 7 AddressPath
//! Class         0 Linear, 1 Combined, 2 GuestPhysical, 3 Asid
//! FreeWhy       0 Reset, 1 Unload, 2 Evict, 3 InvalidatePcid, 4 SyncPrev, 5 Pdptrs, 6 Obsolete, 7 NotCacheable,
//!               8 NestedInvvpid, 9 NestedInvept, 10 Destroy
//! ```
//!
//! A variant that is new goes to the end of its enum; anything else needs another version. A test holds these numbers,
//! and reads a file that has every variant and was written when version 2 was new.
//!
//! A damaged or cut file is read around the damage: a section whose checksums do not fit is skipped
//! by looking for the next mark with a whole section behind it. What is missing is said in
//! [`crate::Meta::losses`], and a [`Body::Gap`] stands in its place.
//!
//! Version 1 (bincode records, before this layout was final) is refused by name.

mod codes;
mod pack;
mod reader;
mod section;
mod spool;
#[cfg(test)]
mod tests;
mod unpack;
mod wire;
mod writer;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use thiserror::Error;

use crate::codec::CodecError;
use crate::op::Actor;
use crate::recording::{Body, Record, Recording};

pub use reader::{Batch, Reader};
pub use section::{Entry, Header, Index};
pub use spool::Spool;
pub use writer::{Packing, Writer};

/// The first bytes of a native file.
pub const MAGIC: [u8; 4] = *b"TLBT";
/// The version that is written and read.
pub const VERSION: u32 = 2;
/// Records of a block that is written: decoded, two of them lie in a second-level cache of 1 MiB, so
/// that one is read there while the next is decoded.
pub const BLOCK_RECORDS: usize = 1 << 12;
/// Records of a block that is read, at most.
const BLOCK_RECORDS_MAX: usize = 1 << 14;
/// Most records that are read into memory as a whole: the reader stops there and says so.
const RECORDS_MAX: usize = 1 << 26;

/// Why a native file cannot be written or read.
#[derive(Debug, Error)]
pub enum NativeError {
    /// The operating system says no.
    #[error("{name}: {error}")]
    Io {
        /// The file.
        name: String,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// It begins with something else.
    #[error("{0}: not a native trace (it does not begin with `TLBT`)")]
    Magic(String),
    /// Written before the form was final.
    #[error(
        "{0}: version 1 of the native form, from before its layout was final; import the \
         recording again"
    )]
    Old(String),
    /// Written by another version of this program.
    #[error("{name}: version {version} of the native form; this program reads version {VERSION}")]
    Version {
        /// The file.
        name: String,
        /// Its version.
        version: u32,
    },
    /// A value is too large to be written.
    #[error("{name}: {error}")]
    Codec {
        /// The file.
        name: String,
        /// Why.
        #[source]
        error: CodecError,
    },
    /// A trace that is said to be in order is not.
    #[error(
        "{name}: operation {record} is earlier than the one before it, in a trace that says it is in order"
    )]
    Order {
        /// The file.
        name: String,
        /// Its number, from 0.
        record: u64,
    },
    /// Nothing whole is left of it.
    #[error("{0}: cut or damaged: no section of the file is whole; import the recording again")]
    Hopeless(String),
}

/// Writes a recording. The file appears whole or not at all.
///
/// # Errors
/// The operating system says no, or a block is too large.
pub fn write(recording: &Recording, path: &Path) -> Result<(), NativeError> {
    let name = path.display().to_string();
    let io = |error| NativeError::Io { name: name.clone(), error };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let temporary = tempfile::Builder::new()
        .prefix(".tlbt-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(io)?;
    let mut out = io::BufWriter::new(temporary);
    encode(recording, &name, &mut out)?;
    let temporary = out.into_inner().map_err(|error| io(error.into_error()))?;
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

/// Writes a recording to a stream, unpacked. `name` is for messages.
///
/// # Errors
/// The stream fails, or a block is too large.
pub fn encode(recording: &Recording, name: &str, out: &mut impl Write) -> Result<(), NativeError> {
    encode_packed(recording, name, out, Packing::Plain)
}

/// Writes a recording to a stream, its blocks packed as told.
///
/// # Errors
/// As for [`encode`].
pub fn encode_packed(
    recording: &Recording,
    name: &str,
    out: &mut impl Write,
    packing: Packing,
) -> Result<(), NativeError> {
    let header = Header {
        meta: recording.meta.clone(),
        census: recording.census.clone(),
        tool: Header::this_tool(),
        ordered: ordered(&recording.records),
        pcpus: recording.pcpus(),
        records: Some(recording.records.len() as u64),
        operations: Some(recording.ops().count() as u64),
    };
    let mut writer = Writer::new(name, out, &header, packing)?;
    for record in &recording.records {
        writer.push(record.clone())?;
    }
    writer.finish()
}

/// Whether the operations are in the engine's order.
fn ordered(records: &[Record]) -> bool {
    let ops = records.iter().filter(|record| matches!(record.body, Body::Op(_)));
    ops.map(|record| (record.time, record.actor)).is_sorted()
}

/// Reads a native file, as far as it is whole.
///
/// # Errors
/// It cannot be read, is of another form or version, or nothing in it is whole.
pub fn read(path: &Path) -> Result<Recording, NativeError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| NativeError::Io { name: name.clone(), error })?;
    decode(file, &name)
}

/// Reads a native trace from a stream, as far as it is whole. `name` is for messages.
///
/// # Errors
/// As for [`read`].
pub fn decode(stream: impl Read, name: &str) -> Result<Recording, NativeError> {
    Reader::new(stream, name)?.into_recording()
}

/// The place of a hole: after the last record.
fn gap_after(last: Option<(crate::addr::Time, Actor)>, records: u64) -> Record {
    let (time, actor) = last.unwrap_or((crate::addr::Time(0), Actor::Host));
    Record { time, actor, line: 0, body: Body::Gap((records > 0).then_some(records)) }
}
