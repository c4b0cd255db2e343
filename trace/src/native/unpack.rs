//! The columns of a block to records (layout: [`super`]).

use super::codes::{self, KINDS, Last};
use super::wire::{Cursor, Short, unzigzag};
use crate::act::{Act, Hook, HookBy};
use crate::addr::{Gpa, Gva, PAGE_BYTES, PageSize, Time, VcpuId};
use crate::codec;
use crate::op::{Access, Actor, Invpcid, InvpcidType, Op, Perms};
use crate::recording::{Body, Record};

/// Who takes the records of a block.
pub(super) trait Sink {
    /// An operation.
    fn op(&mut self, time: Time, actor: Actor, line: u32, op: Op);
    /// Anything else.
    fn other(&mut self, time: Time, actor: Actor, line: u32, body: Body);
    /// Makes room.
    fn reserve(&mut self, records: usize);
}

impl Sink for Vec<Record> {
    fn op(&mut self, time: Time, actor: Actor, line: u32, op: Op) {
        self.push(Record { time, actor, line, body: Body::Op(op) });
    }

    fn other(&mut self, time: Time, actor: Actor, line: u32, body: Body) {
        self.push(Record { time, actor, line, body });
    }

    fn reserve(&mut self, records: usize) {
        Self::reserve(self, records);
    }
}

/// The streams of a block.
struct Streams<'a> {
    kinds: &'a [u8],
    marks: &'a [u8],
    heads: Cursor<'a>,
    pages: Cursor<'a>,
    wide: Cursor<'a>,
    offsets: Cursor<'a>,
    listed: Cursor<'a>,
    rest: Cursor<'a>,
}

/// Time, actor and line of the record at hand, and how they go on.
struct Head {
    time: u64,
    actor: Actor,
    line: u32,
    step: u64,
    stride: u32,
    unit: u64,
}

/// Reads a block of `records` records. A damaged one gives [`Short`]; the sink may have taken some
/// of its records by then.
pub(super) fn unpack<S: Sink>(content: &[u8], records: usize, sink: &mut S) -> Result<(), Short> {
    let mut cursor = Cursor(content);
    let mut head = Head {
        time: cursor.varint()?,
        actor: actor(cursor.varint()?)?,
        line: u32::try_from(cursor.varint()?).map_err(|_| Short)?,
        step: 0,
        stride: 0,
        unit: cursor.varint()?,
    };
    let (width, entries) = (cursor.varint()?, cursor.varint()?);
    let mut lengths = [0_usize; 9];
    for length in &mut lengths {
        *length = usize::try_from(cursor.varint()?).map_err(|_| Short)?;
    }
    let mut streams = [&[][..]; 9];
    for (stream, length) in streams.iter_mut().zip(lengths) {
        *stream = cursor.take(length)?;
    }
    let [dictionary, kinds, marks, heads, pages, wide, offsets, listed, rest] = streams;
    if !cursor.0.is_empty() || kinds.len() != records || marks.len() != records.div_ceil(64) * 8 {
        return Err(Short);
    }
    let dictionary = read_dictionary(dictionary, entries, records)?;
    let streams = Streams {
        kinds,
        marks,
        heads: Cursor(heads),
        pages: Cursor(pages),
        wide: Cursor(wide),
        offsets: Cursor(offsets),
        listed: Cursor(listed),
        rest: Cursor(rest),
    };
    sink.reserve(records);
    match width {
        1 => streams.run::<1, S>(&mut head, &dictionary, sink),
        2 => streams.run::<2, S>(&mut head, &dictionary, sink),
        4 => streams.run::<4, S>(&mut head, &dictionary, sink),
        _ => Err(Short),
    }
}

fn read_dictionary(bytes: &[u8], entries: u64, records: usize) -> Result<Vec<Body>, Short> {
    if entries > records as u64 {
        return Err(Short);
    }
    let mut cursor = Cursor(bytes);
    let mut bodies = Vec::with_capacity(entries as usize);
    for _ in 0..entries {
        let length = usize::try_from(cursor.varint()?).map_err(|_| Short)?;
        let entry = cursor.take(length)?;
        if nested(entry) {
            return Err(Short);
        }
        bodies.push(codec::decode(entry).map_err(|_| Short)?);
    }
    if cursor.0.is_empty() { Ok(bodies) } else { Err(Short) }
}

/// Whether an entry is an `emul` of an `emul`: no program writes one, and decoding a long chain of
/// them would exhaust the stack.
fn nested(entry: &[u8]) -> bool {
    type Variants = (u32, u32, u32);
    let mut emul = Vec::new();
    let twice = Op::Emul(Box::new(Op::Emul(Box::new(Op::Clts))));
    // Body, emul, emul: the variant numbers as the codec writes them.
    codec::encode(&Body::Op(twice), &mut emul).is_ok()
        && match (codec::front::<Variants>(&emul), codec::front::<Variants>(entry)) {
            (Ok(emul), Ok(entry)) => emul == entry,
            _ => false,
        }
}

impl Streams<'_> {
    fn run<const W: usize, S: Sink>(
        mut self,
        head: &mut Head,
        dictionary: &[Body],
        sink: &mut S,
    ) -> Result<(), Short> {
        let mut last = Last::default();
        let (kinds, marks) = (self.kinds, self.marks);
        for (kinds, marks) in kinds.chunks(64).zip(marks.as_chunks::<8>().0) {
            let mut marks = u64::from_le_bytes(*marks);
            for code in kinds {
                if marks & 1 != 0 {
                    self.head(head)?;
                }
                marks >>= 1;
                head.time = head.time.wrapping_add(head.step);
                head.line = head.line.wrapping_add(head.stride);
                if *code < codes::ACCESS_END {
                    let op = Op::Access(self.access::<W>(*code, &mut last)?);
                    sink.op(Time(head.time), head.actor, head.line, op);
                } else {
                    self.body(*code, head, &mut last, dictionary, sink)?;
                }
            }
            if marks != 0 {
                return Err(Short);
            }
        }
        let left = [self.heads, self.pages, self.wide, self.offsets, self.listed, self.rest];
        if left.iter().all(|stream| stream.0.is_empty()) { Ok(()) } else { Err(Short) }
    }

    fn head(&mut self, head: &mut Head) -> Result<(), Short> {
        let byte = self.heads.byte()?;
        if byte & 1 != 0 {
            head.actor = actor(self.heads.varint()?)?;
        }
        match byte >> 1 & 3 {
            codes::LINE_SAME => {}
            codes::LINE_NEXT => head.stride = 1,
            codes::LINE_STAYS => head.stride = 0,
            _ => head.stride = unzigzag(self.heads.varint()?) as u32,
        }
        match byte >> 3 {
            codes::TIME_SAME => {}
            codes::TIME_FOLLOWS => {
                let steps = unzigzag(self.heads.varint()?);
                head.step = (steps as u64).wrapping_mul(head.unit);
            }
            steps => head.step = u64::from(steps).wrapping_mul(head.unit),
        }
        Ok(())
    }

    #[inline]
    fn access<const W: usize>(&mut self, code: u8, last: &mut Last) -> Result<Access, Short> {
        let shape = code >> 1;
        let user = shape & 2 != 0;
        let mut word = [0; 8];
        word[..W].copy_from_slice(&self.pages.array::<W>()?);
        let mut delta = u64::from_le_bytes(word);
        if delta == u64::MAX >> (64 - 8 * W) {
            delta = self.wide.varint()?;
        }
        if code & 1 != 0 {
            last.offset = u16::from_le_bytes(self.offsets.array()?);
        }
        let page = &mut last.page[usize::from(user)];
        *page = page.wrapping_add(unzigzag(delta) as u64);
        let gva = Gva((*page).wrapping_mul(PAGE_BYTES) | u64::from(last.offset));
        Ok(Access { gva, kind: KINDS[usize::from(shape >> 2) % 3], user, ac: shape & 1 != 0 })
    }

    fn body<S: Sink>(
        &mut self,
        code: u8,
        head: &Head,
        last: &mut Last,
        dictionary: &[Body],
        sink: &mut S,
    ) -> Result<(), Short> {
        let (time, actor, line) = (Time(head.time), head.actor, head.line);
        let number = match code {
            codes::DIRECT.. => usize::from(code - codes::DIRECT),
            codes::LISTED => usize::try_from(self.listed.varint()?).map_err(|_| Short)?,
            codes::PAGE_FAULT..=codes::HOOK_GVA => {
                let act = self.act(code, last)?;
                sink.other(time, actor, line, Body::Act(act));
                return Ok(());
            }
            _ => {
                let op = self.op(code, last)?;
                sink.op(time, actor, line, op);
                return Ok(());
            }
        };
        match dictionary.get(number).ok_or(Short)? {
            Body::Op(op) => sink.op(time, actor, line, op.clone()),
            body => sink.other(time, actor, line, body.clone()),
        }
        Ok(())
    }

    fn op(&mut self, code: u8, last: &mut Last) -> Result<Op, Short> {
        Ok(match code {
            codes::PREFETCH => Op::Prefetch(self.linear(last)?),
            codes::INVLPG => Op::Invlpg(self.linear(last)?),
            codes::INVPCID => {
                let kind = match self.rest.byte()? {
                    0 => InvpcidType::Addr,
                    1 => InvpcidType::Single,
                    2 => InvpcidType::All,
                    3 => InvpcidType::AllNonglobal,
                    _ => return Err(Short),
                };
                let pcid = self.rest.varint()?;
                Op::Invpcid(Invpcid { kind, pcid, gva: self.linear(last)? })
            }
            codes::MAP => {
                let (size, perms, root) = self.leaf(last)?;
                let gpa = self.physical(last)?;
                Op::Map { gva: self.linear(last)?, gpa, size, perms, root }
            }
            codes::UNMAP => {
                let (_, _, root) = self.leaf(last)?;
                Op::Unmap { gva: self.linear(last)?, root }
            }
            codes::PROTECT => {
                let (_, perms, root) = self.leaf(last)?;
                Op::Protect { gva: self.linear(last)?, perms, root }
            }
            codes::STORE => {
                let gpa = self.physical(last)?;
                Op::Store { gpa, value: self.rest.varint()? }
            }
            _ => return Err(Short),
        })
    }

    fn act(&mut self, code: u8, last: &mut Last) -> Result<Act, Short> {
        Ok(match code {
            codes::PAGE_FAULT => {
                let error = self.rest.varint()?;
                Act::PageFault { address: self.linear(last)?.0, error }
            }
            codes::INVALIDATE_GVA => Act::InvalidateGva(self.linear(last)?),
            _ => {
                let byte = self.rest.byte()?;
                let by = [HookBy::Request, HookBy::Load, HookBy::Register, HookBy::Direct];
                let by = *by.get(usize::from(byte >> 1)).ok_or(Short)?;
                let hook = Hook::Gva(self.linear(last)?);
                Act::Hook { hook, by, effective: byte & 1 != 0 }
            }
        })
    }

    fn leaf(&mut self, last: &mut Last) -> Result<(PageSize, Perms, Option<Gpa>), Short> {
        let byte = self.rest.byte()?;
        let bit = |n: u8| byte >> n & 1 != 0;
        let perms =
            Perms { read: bit(0), write: bit(1), exec: bit(2), user: bit(3), global: bit(4) };
        let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size4M, PageSize::Size1G];
        let root = if bit(7) {
            let word = self.rest.varint()?;
            Some(Gpa(self.address(word, &mut last.root)?))
        } else {
            None
        };
        Ok((sizes[usize::from(byte >> 5 & 3)], perms, root))
    }

    fn physical(&mut self, last: &mut Last) -> Result<Gpa, Short> {
        let word = self.rest.varint()?;
        Ok(Gpa(self.address(word, &mut last.frame)?))
    }

    fn linear(&mut self, last: &mut Last) -> Result<Gva, Short> {
        let word = self.rest.varint()?;
        let half = usize::from(word >> 1 & 1 != 0);
        Ok(Gva(self.address(word, &mut last.page[half])?))
    }

    fn address(&mut self, word: u64, page: &mut u64) -> Result<u64, Short> {
        *page = page.wrapping_add(unzigzag(word >> 2) as u64);
        let offset = if word & 1 != 0 { self.rest.varint()? } else { 0 };
        Ok(page.wrapping_mul(PAGE_BYTES) | (offset % PAGE_BYTES))
    }
}

fn actor(number: u64) -> Result<Actor, Short> {
    match number.checked_sub(1) {
        None => Ok(Actor::Host),
        Some(vcpu) => u16::try_from(vcpu).map(|n| Actor::Vcpu(VcpuId(n))).map_err(|_| Short),
    }
}
