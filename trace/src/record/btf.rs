//! Where a member of a kernel structure lies, by the type information that the running kernel carries
//! (BTF, Documentation/bpf/btf.rst): offsets differ between kernels, and a probe argument needs them.
//!
//! A module's information continues the kernel's: its numbers of types and its strings begin where
//! those of the base end.

use std::fs;
use std::path::Path;

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Members behind members: no structure of KVM is nested deeper.
const DEPTH: u32 = 16;
/// More than any kernel has; what claims more is damaged.
const TYPES: usize = 1 << 24;

/// A type: what kind, and where its details lie.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    info: u32,
    /// Bytes, or the type that it refers to.
    size_or_type: u32,
    /// Place of what follows the three words.
    rest: usize,
}

impl Type {
    const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    const fn members(self) -> usize {
        (self.info & 0xffff) as usize
    }
}

const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// One file of type information.
#[derive(Debug)]
struct Part {
    bytes: Vec<u8>,
    types: Vec<Type>,
    strings: (usize, usize),
    first_type: u32,
    first_string: u32,
}

/// The kernel's type information and KVM's.
#[derive(Debug)]
pub(super) struct Btf(Vec<Part>);

impl Btf {
    /// That of the host whose file system starts at `root`; `None` if it has none that covers KVM.
    pub fn of_host(root: &Path) -> Option<Self> {
        let read = |name: &str| fs::read(root.join("sys/kernel/btf").join(name)).ok();
        let base = Part::parse(read("vmlinux")?, None)?;
        let mut parts = vec![base];
        // Built in, it is in the kernel's own.
        if let Some(bytes) = read("kvm") {
            let kvm = Part::parse(bytes, parts.last())?;
            parts.push(kvm);
        }
        let btf = Self(parts);
        btf.find("kvm_vcpu").is_some().then_some(btf)
    }

    /// The offsets along a path such as `arch.mmu->prev_roots[1].hpa`: one for each pointer that is
    /// followed, and the last. `None` if this kernel has no such member.
    pub fn offsets(&self, structure: &str, path: &str) -> Option<Vec<u32>> {
        let mut at = self.find(structure)?;
        let mut offsets = Vec::new();
        for (n, part) in path.split("->").enumerate() {
            if n > 0 {
                at = self.pointee(at)?;
            }
            let mut offset = 0_u32;
            for name in part.split('.') {
                let (name, index) = match name.split_once('[') {
                    Some((name, rest)) => (name, Some(rest.strip_suffix(']')?.parse().ok()?)),
                    None => (name, None),
                };
                let (below, of) = self.member(at, name, DEPTH)?;
                offset = offset.checked_add(below)?;
                at = self.plain(of)?;
                if let Some(index) = index {
                    let (element, stride) = self.element(at)?;
                    offset = offset.checked_add(stride.checked_mul(index)?)?;
                    at = self.plain(element)?;
                }
            }
            offsets.push(offset);
        }
        Some(offsets)
    }

    fn part(&self, number: u32) -> Option<(&Part, Type)> {
        let part = self.0.iter().rev().find(|part| number >= part.first_type)?;
        let at = (number - part.first_type) as usize;
        Some((part, *part.types.get(at)?))
    }

    fn name(&self, at: u32) -> &[u8] {
        let part = self.0.iter().rev().find(|part| at >= part.first_string);
        part.map_or(&[], |part| part.string(at - part.first_string))
    }

    /// The number of the structure of this name.
    fn find(&self, name: &str) -> Option<u32> {
        self.0.iter().rev().find_map(|part| {
            let is = |one: &Type| one.kind() == STRUCT && self.name(one.name) == name.as_bytes();
            let at = part.types.iter().position(is)?;
            Some(part.first_type + at as u32)
        })
    }

    /// Without typedefs and qualifiers.
    fn plain(&self, mut number: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let (_, one) = self.part(number)?;
            match one.kind() {
                // TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG.
                8..=11 | 18 => number = one.size_or_type,
                _ => return Some(number),
            }
        }
        None
    }

    /// What a pointer points at.
    fn pointee(&self, number: u32) -> Option<u32> {
        const PTR: u32 = 2;
        let (_, one) = self.part(number)?;
        (one.kind() == PTR).then(|| self.plain(one.size_or_type)).flatten()
    }

    /// Type of an array's elements, and the bytes of one.
    fn element(&self, number: u32) -> Option<(u32, u32)> {
        let (part, one) = self.part(number)?;
        if one.kind() != ARRAY {
            return None;
        }
        let element = part.word(one.rest)?;
        let (_, of) = self.part(self.plain(element)?)?;
        Some((element, of.size_or_type))
    }

    /// Offset and type of a member, also one of an anonymous structure or union within.
    fn member(&self, number: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let (part, one) = self.part(number)?;
        if !matches!(one.kind(), STRUCT | UNION) {
            return None;
        }
        let bitfields = one.info >> 31 != 0;
        for n in 0..one.members() {
            let at = one.rest + n * 12;
            let (its, of) = (part.word(at)?, part.word(at + 4)?);
            let bits = part.word(at + 8)?;
            let offset = if bitfields { bits & 0xff_ffff } else { bits } / 8;
            let its = self.name(its);
            if its == name.as_bytes() {
                return Some((offset, of));
            }
            if its.is_empty()
                && depth > 0
                && let Some((below, of)) = self.member(self.plain(of)?, name, depth - 1)
            {
                return Some((offset.checked_add(below)?, of));
            }
        }
        None
    }
}

impl Part {
    fn parse(bytes: Vec<u8>, base: Option<&Self>) -> Option<Self> {
        let word = |at: usize| {
            let four = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
        };
        if bytes.get(..2)? != MAGIC.to_le_bytes() || bytes.len() < HEADER {
            return None;
        }
        let start = word(4)?;
        let (types, types_len) = (start.checked_add(word(8)?)?, word(12)?);
        let (strings, strings_len) = (start.checked_add(word(16)?)?, word(20)?);
        let end = |at: usize, len: usize| at.checked_add(len).filter(|end| *end <= bytes.len());
        let (types_end, strings_end) = (end(types, types_len)?, end(strings, strings_len)?);
        let mut part = Self {
            bytes: Vec::new(),
            types: Vec::new(),
            strings: (strings, strings_end),
            first_type: 1,
            first_string: 0,
        };
        if let Some(base) = base {
            part.first_type = base.first_type + base.types.len() as u32;
            part.first_string = base.first_string + (base.strings.1 - base.strings.0) as u32;
        }
        part.bytes = bytes;
        part.read_types(types, types_end)?;
        Some(part)
    }

    fn read_types(&mut self, mut at: usize, end: usize) -> Option<()> {
        while at < end {
            if self.types.len() >= TYPES {
                return None;
            }
            let (name, info, size_or_type) =
                (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
            let one = Type { name, info, size_or_type, rest: at + 12 };
            let more = match one.kind() {
                // INT, VAR, DECL_TAG.
                1 | 14 | 17 => 4,
                ARRAY => 12,
                // STRUCT, UNION, DATASEC, ENUM64.
                STRUCT | UNION | 15 | 19 => one.members() * 12,
                // ENUM, FUNC_PROTO.
                6 | 13 => one.members() * 8,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            self.types.push(one);
            at = one.rest + more;
        }
        Some(())
    }

    fn word(&self, at: usize) -> Option<u32> {
        let four = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(four.try_into().ok()?))
    }

    fn string(&self, at: u32) -> &[u8] {
        let (start, end) = self.strings;
        let text = self.bytes.get(start..end).and_then(|all| all.get(at as usize..));
        let text = text.unwrap_or(&[]);
        &text[..text.iter().position(|&c| c == 0).unwrap_or(text.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type information by hand: types as words, and strings.
    fn part(types: &[u32], strings: &str) -> Vec<u8> {
        let header = [u32::from(MAGIC) | 1 << 16, 24, 0, types.len() as u32 * 4];
        let places = [types.len() as u32 * 4, strings.len() as u32];
        let words = header.iter().chain(&places).chain(types);
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(strings.as_bytes());
        bytes
    }

    fn kvm() -> (Vec<u8>, Vec<u8>) {
        const INFO: u32 = 24;
        let strings = "\0u64\0hpa\0";
        // 1: an integer of 8 bytes. 2: an anonymous structure with `hpa` at 8, of 16 bytes.
        let base = [1, 1 << INFO, 8, 64, 0, STRUCT << INFO | 1, 16, 5, 1, 64];
        // Strings of the module: kvm_vcpu 9+1 = 10.
        let names = "\0kvm_vcpu\0mmu\0roots\0";
        let (vcpu, mmu, roots) = (10, 19, 23);
        let module = [
            // 3: array of three of type 2.
            [0, ARRAY << INFO, 0, 2, 1, 3].as_slice(),
            // 4: the pointed-at structure: the array at 32, an anonymous member (type 2) at 4.
            &[0, STRUCT << INFO | 2, 80, roots, 3, 32 * 8, 0, 2, 4 * 8],
            // 5: a pointer to it. 6: const of 5.
            &[0, 2 << INFO, 4, 0, 10 << INFO, 5],
            // 7: kvm_vcpu, `mmu` at 40.
            &[vcpu, STRUCT << INFO | 1, 100, mmu, 6, 40 * 8],
        ];
        (part(&base, strings), part(&module.concat(), names))
    }

    #[test]
    fn members_behind_pointers_in_arrays_and_without_a_name() {
        let (base, module) = kvm();
        let base = Part::parse(base, None).unwrap();
        let module = Part::parse(module, Some(&base)).unwrap();
        let btf = Btf(vec![base, module]);
        let offsets = |path| btf.offsets("kvm_vcpu", path);
        assert_eq!(offsets("mmu"), Some(vec![40]));
        assert_eq!(offsets("mmu->roots[2].hpa"), Some(vec![40, 32 + 2 * 16 + 8]));
        assert_eq!(offsets("mmu->hpa"), Some(vec![40, 4 + 8]), "of an anonymous member");
        assert_eq!(offsets("mmu->nothing"), None);
        assert_eq!(offsets("mmu.roots"), None, "a pointer has no members");
        assert_eq!(btf.offsets("kvm", "mmu"), None);
    }

    #[test]
    fn damage_is_no_information() {
        let (base, _) = kvm();
        for cut in 0..base.len() {
            assert!(Part::parse(base[..cut].to_vec(), None).is_none(), "{cut} bytes");
        }
        let mut other = base;
        other[0] ^= 1;
        assert!(Part::parse(other, None).is_none());
    }
}
