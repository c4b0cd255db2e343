//! Event formats as tracefs gives them (`events/*/*/format`): where each field lies.

use super::number::digits_at;
use super::symbols::Symbols;

/// Fields of an event that are kept; a format with more is not believed.
const FIELDS: usize = 256;

/// A field.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: Vec<u8>,
    offset: usize,
    size: usize,
    signed: bool,
    /// The event prints it as a symbol (`%pS`).
    symbol: bool,
}

/// The format of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Format {
    pub name: Vec<u8>,
    pub id: u64,
    fields: Vec<Field>,
}

impl Format {
    /// Reads `name:`, `ID:`, the `field:` lines and what `print fmt:` says of symbols.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut format = Self::default();
        let mut id = None;
        for line in text.split(|&c| c == b'\n') {
            let line = line.trim_ascii();
            if let Some(name) = line.strip_prefix(b"name:") {
                format.name = name.trim_ascii().to_vec();
            } else if let Some(number) = line.strip_prefix(b"ID:") {
                id = decimal(number.trim_ascii());
            } else if line.starts_with(b"field:") && format.fields.len() < FIELDS {
                format.fields.extend(field(line));
            } else if let Some(print) = line.strip_prefix(b"print fmt:") {
                for field in &mut format.fields {
                    let shape = [field.name.as_slice(), b"=%p"].concat();
                    let at = print.windows(shape.len()).position(|w| w == shape);
                    let letter = at.and_then(|at| print.get(at + shape.len()));
                    field.symbol = matches!(letter, Some(b'S' | b's' | b'F' | b'f' | b'B'));
                }
            }
        }
        format.id = id?;
        (!format.name.is_empty()).then_some(format)
    }

    /// The field's place in the list, if there is one of this name.
    pub fn field(&self, name: &[u8]) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// Offset and size of a field.
    pub fn place(&self, name: &[u8]) -> Option<(usize, usize)> {
        let field = &self.fields[self.field(name)?];
        Some((field.offset, field.size))
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    super::number::decimal(digits_at(text))
}

/// `field:unsigned long val;\toffset:16;\tsize:8;\tsigned:0;`
fn field(line: &[u8]) -> Option<Field> {
    let (mut declared, mut offset, mut size, mut signed) = (None, None, None, false);
    for part in line.split(|&c| c == b';') {
        let part = part.trim_ascii();
        if let Some(text) = part.strip_prefix(b"field:") {
            declared = Some(text.trim_ascii());
        } else if let Some(text) = part.strip_prefix(b"offset:") {
            offset = usize::try_from(decimal(text)?).ok();
        } else if let Some(text) = part.strip_prefix(b"size:") {
            size = usize::try_from(decimal(text)?).ok();
        } else if let Some(text) = part.strip_prefix(b"signed:") {
            signed = text.starts_with(b"1");
        }
    }
    let declared = declared?;
    let end = declared.iter().position(|&c| c == b'[').unwrap_or(declared.len());
    let declared = declared[..end].trim_ascii_end();
    let from = declared.iter().rposition(|&c| c == b' ' || c == b'*').map_or(0, |at| at + 1);
    let name = declared[from..].to_vec();
    Some(Field { name, offset: offset?, size: size?, signed, symbol: false })
}

/// The bytes of an event with its format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub format: &'a Format,
    pub bytes: &'a [u8],
    pub symbols: &'a Symbols,
}

impl<'a> Raw<'a> {
    /// The number in a field of one to eight bytes, sign-extended where the format says so.
    pub fn num(&self, name: &[u8]) -> Option<u64> {
        let field = &self.format.fields[self.format.field(name)?];
        if field.size > 8 {
            return None;
        }
        let bytes = self.bytes.get(field.offset..field.offset.checked_add(field.size)?)?;
        let value = little(bytes);
        let bits = 64 - 8 * field.size as u32;
        if field.signed && bits < 64 {
            return Some(((value << bits) as i64 >> bits) as u64);
        }
        Some(value)
    }

    /// The symbol that a field points into, if the event prints it as one.
    pub fn symbol(&self, name: &[u8]) -> Option<&'a [u8]> {
        let at = self.format.field(name)?;
        if !self.format.fields[at].symbol {
            return None;
        }
        self.symbols.at(self.num(name)?).map(|(name, _)| name)
    }
}

/// Little-endian bytes, at most eight of them, as a number.
pub(super) fn little(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_with_sign_and_symbol() {
        let text = b"name: x\nID: 7\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\
            \tsigned:0;\n\tfield:s32 ret;\toffset:4;\tsize:4;\tsigned:1;\n\tfield:u64 caller;\
            \toffset:8;\tsize:8;\tsigned:0;\n\tfield:char a[4];\toffset:16;\tsize:4;\tsigned:0;\n\n\
            print fmt: \"(%lx) ret=%d caller=%pS\", REC->__probe_ip, REC->ret, (void *)REC->caller\n";
        let format = Format::parse(text).expect("a format");
        assert_eq!((format.name.as_slice(), format.id), (&b"x"[..], 7));
        assert_eq!(format.place(b"a"), Some((16, 4)));
        let symbols = Symbols::from_kallsyms(b"ffff000000001000 t kvm_mmu_load\t[kvm]\n");
        let mut bytes = vec![7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        bytes.extend(0xffff_0000_0000_1010_u64.to_le_bytes());
        let raw = Raw { format: &format, bytes: &bytes, symbols: &symbols };
        assert_eq!(raw.num(b"ret"), Some(u64::MAX));
        assert_eq!(raw.symbol(b"caller"), Some(&b"kvm_mmu_load"[..]));
        assert_eq!(raw.num(b"a"), None, "beyond the bytes");
        assert_eq!(Format::parse(b"name: y\n"), None, "no number");
    }
}
