//! Records to the columns of a block (layout: [`super`]).

use rustc_hash::FxHashMap;

use super::codes::{self, Last};
use super::wire::{put, zigzag};
use crate::act::{Act, Hook};
use crate::addr::{Gpa, PAGE_BYTES};
use crate::codec::{self, CodecError};
use crate::op::{Access, Actor, InvpcidType, Op, Perms};
use crate::recording::{Body, Record};

/// Packs blocks one after another, with the same buffers.
#[derive(Debug, Default)]
pub(super) struct Packer {
    kinds: Vec<u8>,
    marks: Vec<u8>,
    heads: Vec<u8>,
    /// Differences of pages, zigzag, one for each access.
    pages: Vec<u64>,
    offsets: Vec<u8>,
    rest: Vec<u8>,
    dictionary: Dictionary,
    last: Last,
}

/// Bodies without an address, each once.
#[derive(Debug, Default)]
struct Dictionary {
    numbers: FxHashMap<Box<[u8]>, u32>,
    /// How often each is used.
    uses: Vec<u32>,
    /// The entry of each record that has one, with the place of its code in `kinds`.
    places: Vec<(u32, u32)>,
    scratch: Vec<u8>,
}

impl Dictionary {
    fn clear(&mut self) {
        self.numbers.clear();
        self.uses.clear();
        self.places.clear();
    }

    fn add(&mut self, body: &Body, place: usize) -> Result<(), CodecError> {
        self.scratch.clear();
        codec::encode(body, &mut self.scratch)?;
        let number = match self.numbers.get(self.scratch.as_slice()) {
            Some(number) => *number,
            None => {
                let number = self.uses.len() as u32;
                self.numbers.insert(self.scratch.as_slice().into(), number);
                self.uses.push(0);
                number
            }
        };
        self.uses[number as usize] += 1;
        self.places.push((place as u32, number));
        Ok(())
    }

    /// Orders the entries by use, most first (then by first appearance), and returns the new
    /// number of each.
    fn ranks(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.uses.len() as u32).collect();
        order.sort_by_key(|n| (std::cmp::Reverse(self.uses[*n as usize]), *n));
        let mut ranks = vec![0; order.len()];
        for (rank, number) in order.iter().enumerate() {
            ranks[*number as usize] = rank as u32;
        }
        ranks
    }

    /// The entries by rank, each with its length before it.
    fn write(&self, ranks: &[u32], out: &mut Vec<u8>) {
        let mut entries: Vec<&[u8]> = vec![&[]; ranks.len()];
        for (bytes, number) in &self.numbers {
            entries[ranks[*number as usize] as usize] = bytes;
        }
        for bytes in entries {
            put(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    }
}

impl Packer {
    /// Appends the content of a block with these records to `out`.
    pub fn pack(&mut self, records: &[Record], out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.clear();
        let (base, unit) = self.heads(records);
        for record in records {
            self.body(&record.body)?;
        }
        // Numbers of listed entries go into a stream of their own: they are known only now.
        let ranks = self.dictionary.ranks();
        let mut listed = Vec::new();
        for (place, number) in &self.dictionary.places {
            let rank = ranks[*number as usize];
            self.kinds[*place as usize] = if (rank as usize) < codes::DIRECT_COUNT {
                codes::DIRECT + rank as u8
            } else {
                put(&mut listed, u64::from(rank));
                codes::LISTED
            };
        }
        let mut dictionary = Vec::new();
        self.dictionary.write(&ranks, &mut dictionary);
        let (width, pages, wide) = narrow(&self.pages);

        put(out, base.time.0);
        put(out, actor_number(base.actor));
        put(out, u64::from(base.line));
        put(out, unit);
        put(out, width as u64);
        put(out, ranks.len() as u64);
        let streams = [
            &dictionary,
            &self.kinds,
            &self.marks,
            &self.heads,
            &pages,
            &wide,
            &self.offsets,
            &listed,
            &self.rest,
        ];
        for stream in streams {
            put(out, stream.len() as u64);
        }
        for stream in streams {
            out.extend_from_slice(stream);
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.kinds.clear();
        self.marks.clear();
        self.heads.clear();
        self.pages.clear();
        self.offsets.clear();
        self.rest.clear();
        self.dictionary.clear();
        self.last = Last::default();
    }

    /// Time, actor and line of every record. Returns the first record and the unit of time.
    fn heads(&mut self, records: &[Record]) -> (Record, u64) {
        let blank = Record {
            time: crate::addr::Time(0),
            actor: Actor::Host,
            line: 0,
            body: Body::Gap(None),
        };
        let base = records
            .first()
            .map_or_else(|| blank.clone(), |first| Record { body: Body::Gap(None), ..*first });
        let pairs = || std::iter::once(&base).chain(records).zip(records);
        let unit =
            pairs().fold(0, |unit, (a, b)| gcd(unit, difference(a, b).unsigned_abs())).max(1);
        self.marks.resize(records.len().div_ceil(64) * 8, 0);
        let (mut step, mut stride) = (0_i64, 0_i64);
        for (at, (a, b)) in pairs().enumerate() {
            let delta = difference(a, b);
            let lines = i64::from(b.line.wrapping_sub(a.line) as i32);
            if a.actor == b.actor && delta == step && lines == stride {
                continue;
            }
            self.marks[at / 8] |= 1 << (at % 8);
            self.head(a.actor != b.actor, b.actor, (delta, step, unit), (lines, stride));
            (step, stride) = (delta, lines);
        }
        (base, unit)
    }

    fn head(&mut self, other: bool, actor: Actor, time: (i64, i64, u64), line: (i64, i64)) {
        let (delta, step, unit) = time;
        let scaled = delta.unsigned_abs() / unit;
        let time_code = if delta >= 0 && scaled < u64::from(codes::TIME_SAME) {
            scaled as u8
        } else if delta == step {
            codes::TIME_SAME
        } else {
            codes::TIME_FOLLOWS
        };
        let line_code = match line {
            (lines, stride) if lines == stride => codes::LINE_SAME,
            (1, _) => codes::LINE_NEXT,
            (0, _) => codes::LINE_STAYS,
            _ => codes::LINE_FOLLOWS,
        };
        self.heads.push(u8::from(other) | line_code << 1 | time_code << 3);
        if other {
            put(&mut self.heads, actor_number(actor));
        }
        if line_code == codes::LINE_FOLLOWS {
            put(&mut self.heads, zigzag(line.0));
        }
        if time_code == codes::TIME_FOLLOWS {
            let signed = (scaled as i64).wrapping_mul(delta.signum());
            put(&mut self.heads, zigzag(signed));
        }
    }

    fn body(&mut self, body: &Body) -> Result<(), CodecError> {
        let code = match body {
            Body::Op(Op::Access(access)) => return self.access(access),
            Body::Op(op) => self.op(op),
            Body::Act(act) => self.act(act),
            Body::Gap(_) => None,
        };
        if code.is_none() {
            self.dictionary.add(body, self.kinds.len())?;
        }
        self.kinds.push(code.unwrap_or(codes::LISTED));
        Ok(())
    }

    fn access(&mut self, access: &Access) -> Result<(), CodecError> {
        let (page, offset) = (access.gva.0 / PAGE_BYTES, (access.gva.0 % PAGE_BYTES) as u16);
        let last = &mut self.last.page[usize::from(access.user)];
        self.pages.push(zigzag(page.wrapping_sub(*last) as i64));
        *last = page;
        let moved = offset != self.last.offset;
        if moved {
            self.offsets.extend_from_slice(&offset.to_le_bytes());
            self.last.offset = offset;
        }
        let kind = access.kind as u8 * 4 + u8::from(access.user) * 2 + u8::from(access.ac);
        self.kinds.push(kind * 2 + u8::from(moved));
        Ok(())
    }

    /// The code of an operation that has one of its own; its operands go to `rest`.
    fn op(&mut self, op: &Op) -> Option<u8> {
        Some(match op {
            Op::Prefetch(gva) => self.linear(codes::PREFETCH, gva.0),
            Op::Invlpg(gva) => self.linear(codes::INVLPG, gva.0),
            Op::Invpcid(operands) => {
                let kind = match operands.kind {
                    InvpcidType::Addr => 0,
                    InvpcidType::Single => 1,
                    InvpcidType::All => 2,
                    InvpcidType::AllNonglobal => 3,
                    InvpcidType::Reserved(_) => return None,
                };
                self.rest.push(kind);
                put(&mut self.rest, operands.pcid);
                self.linear(codes::INVPCID, operands.gva.0)
            }
            Op::Map { gva, gpa, size, perms, root } => {
                self.leaf(*size as u8, *perms, *root);
                self.physical(*gpa);
                self.linear(codes::MAP, gva.0)
            }
            Op::Unmap { gva, root } => {
                self.leaf(0, Perms::default(), *root);
                self.linear(codes::UNMAP, gva.0)
            }
            Op::Protect { gva, perms, root } => {
                self.leaf(0, *perms, *root);
                self.linear(codes::PROTECT, gva.0)
            }
            Op::Store { gpa, value } => {
                self.physical(*gpa);
                put(&mut self.rest, *value);
                codes::STORE
            }
            _ => return None,
        })
    }

    fn act(&mut self, act: &Act) -> Option<u8> {
        Some(match act {
            Act::PageFault { address, error } => {
                put(&mut self.rest, *error);
                self.linear(codes::PAGE_FAULT, *address)
            }
            Act::InvalidateGva(gva) => self.linear(codes::INVALIDATE_GVA, gva.0),
            Act::Hook { hook: Hook::Gva(gva), by, effective } => {
                self.rest.push((*by as u8) << 1 | u8::from(*effective));
                self.linear(codes::HOOK_GVA, gva.0)
            }
            _ => return None,
        })
    }

    /// Size, rights and root of an operation on a leaf.
    fn leaf(&mut self, size: u8, p: Perms, root: Option<Gpa>) {
        let bits = [p.read, p.write, p.exec, p.user, p.global];
        let perms = bits.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit));
        self.rest.push(perms | size << 5 | u8::from(root.is_some()) << 7);
        if let Some(root) = root {
            put_address(&mut self.rest, root.0, &mut self.last.root, 0);
        }
    }

    fn physical(&mut self, gpa: Gpa) {
        put_address(&mut self.rest, gpa.0, &mut self.last.frame, 0);
    }

    fn linear(&mut self, code: u8, address: u64) -> u8 {
        let half = u64::from(address >> 63 == 0);
        put_address(&mut self.rest, address, &mut self.last.page[half as usize], half);
        code
    }
}

/// The page against the last one, and the offset if there is one.
fn put_address(out: &mut Vec<u8>, address: u64, last: &mut u64, half: u64) {
    let (page, offset) = (address / PAGE_BYTES, address % PAGE_BYTES);
    put(out, zigzag(page.wrapping_sub(*last) as i64) << 2 | half << 1 | u64::from(offset != 0));
    if offset != 0 {
        put(out, offset);
    }
    *last = page;
}

/// The host is 0, vCPU n is n + 1.
fn actor_number(actor: Actor) -> u64 {
    match actor {
        Actor::Host => 0,
        Actor::Vcpu(vcpu) => u64::from(vcpu.0) + 1,
    }
}

fn difference(a: &Record, b: &Record) -> i64 {
    b.time.0.wrapping_sub(a.time.0) as i64
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The width of the page column that takes the fewest bytes, the column, and what does not fit.
fn narrow(pages: &[u64]) -> (usize, Vec<u8>, Vec<u8>) {
    let cost = |width: usize| {
        let escape = u64::MAX >> (64 - 8 * width);
        let fits = |page: &&u64| **page >= escape;
        let wide: usize = pages.iter().filter(fits).map(|p| varint_bytes(*p)).sum();
        pages.len() * width + wide
    };
    let width = [1, 2, 4].into_iter().min_by_key(|width| cost(*width)).unwrap_or(1);
    let escape = u64::MAX >> (64 - 8 * width);
    let (mut column, mut wide) = (Vec::with_capacity(pages.len() * width), Vec::new());
    for page in pages {
        column.extend_from_slice(&(*page).min(escape).to_le_bytes()[..width]);
        if *page >= escape {
            put(&mut wide, *page);
        }
    }
    (width, column, wide)
}

const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - value.leading_zeros() as usize;
    if bits == 0 { 1 } else { bits.div_ceil(7) }
}
