//! The words of one line and the values that they spell.

use bitflags::Flags;

use super::TextError;
use super::nearest::nearest;
use crate::addr::{Gpa, Gva, PcpuId, Time, VcpuId};
use crate::op::{Perms, RegWrite};

/// A word of a line, with its column (from 1, in characters).
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    pub text: &'a str,
    pub column: u32,
}

/// Reads the words of a line from left to right.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    line: u32,
    words: Vec<Word<'a>>,
    next: usize,
    end: u32,
}

impl<'a> Cursor<'a> {
    /// Splits a line, without its comment, at white space.
    pub fn new(line: u32, source: &'a str) -> Self {
        let text = source.split('#').next().unwrap_or("");
        let mut words = Vec::new();
        let mut start: Option<(usize, u32)> = None;
        let mut column = 1;
        for (at, c) in text.char_indices() {
            match (c.is_whitespace(), start) {
                (true, Some((from, first))) => {
                    words.push(Word { text: &text[from..at], column: first });
                    start = None;
                }
                (false, None) => start = Some((at, column)),
                _ => {}
            }
            column += 1;
        }
        if let Some((from, first)) = start {
            words.push(Word { text: &text[from..], column: first });
        }
        Self { line, words, next: 0, end: column }
    }

    pub fn peek(&self) -> Option<Word<'a>> {
        self.words.get(self.next).copied()
    }

    pub fn take(&mut self) -> Option<Word<'a>> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }

    /// Takes the next word if it is this one.
    pub fn take_if(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|word| word.text == text);
        self.next += usize::from(found);
        found
    }

    /// The next word, or an error that says what is missing.
    pub fn need(&mut self, what: &str) -> Result<Word<'a>, TextError> {
        self.take().ok_or_else(|| TextError {
            line: self.line,
            column: self.end,
            message: format!("{what} is missing"),
            suggestion: None,
        })
    }

    pub fn error(&self, at: Word<'_>, message: String) -> TextError {
        TextError { line: self.line, column: at.column, message: cut(message), suggestion: None }
    }

    /// An error about a name, with the nearest of those that would do.
    pub fn unknown(&self, at: Word<'_>, what: &str, name: &str, known: &[&str]) -> TextError {
        TextError {
            line: self.line,
            column: at.column,
            message: cut(format!("unknown {what} `{name}`")),
            suggestion: nearest(name, known.iter().copied()),
        }
    }

    /// Nothing may be left.
    pub fn finish(&self) -> Result<(), TextError> {
        match self.peek() {
            Some(word) => Err(self.error(word, format!("`{}` is one word too many", word.text))),
            None => Ok(()),
        }
    }

    pub fn parse_number(&self, word: Word<'_>, text: &str, what: &str) -> Result<u64, TextError> {
        number(text).ok_or_else(|| {
            self.error(word, format!("{what}: `{text}` is not a number of at most 64 bits"))
        })
    }

    pub fn number(&mut self, what: &str) -> Result<u64, TextError> {
        let word = self.need(what)?;
        self.parse_number(word, word.text, what)
    }

    /// A number that is left out or is the next word.
    pub fn optional_number(&mut self, what: &str) -> Result<Option<u64>, TextError> {
        self.peek().map(|_| self.number(what)).transpose()
    }

    pub fn parse_small<T: TryFrom<u64>>(
        &self,
        word: Word<'_>,
        text: &str,
        what: &str,
    ) -> Result<T, TextError> {
        let value = self.parse_number(word, text, what)?;
        T::try_from(value).map_err(|_| self.error(word, format!("{what}: {value} is too large")))
    }

    pub fn small<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, TextError> {
        let word = self.need(what)?;
        self.parse_small(word, word.text, what)
    }

    pub fn gva(&mut self) -> Result<Gva, TextError> {
        self.number("a linear address").map(Gva)
    }

    pub fn gpa(&mut self) -> Result<Gpa, TextError> {
        self.number("a guest-physical address").map(Gpa)
    }

    pub fn vcpu(&mut self) -> Result<VcpuId, TextError> {
        let word = self.need("a vCPU")?;
        vcpu(word.text)
            .ok_or_else(|| self.error(word, format!("`{}` is not a vCPU such as `v0`", word.text)))
    }

    /// A vCPU list such as `v0,v2`.
    pub fn vcpus(&mut self) -> Result<Vec<VcpuId>, TextError> {
        let word = self.need("a list of vCPUs such as `v0,v2`")?;
        word.text
            .split(',')
            .map(|name| {
                vcpu(name).ok_or_else(|| self.error(word, format!("`{name}` is not a vCPU")))
            })
            .collect()
    }

    pub fn parse_pcpu(&self, word: Word<'_>) -> Result<PcpuId, TextError> {
        word.text
            .strip_prefix('p')
            .and_then(number)
            .and_then(|n| u16::try_from(n).ok())
            .map(PcpuId)
            .ok_or_else(|| self.error(word, format!("`{}` is not a CPU such as `p0`", word.text)))
    }

    /// Letters of `rwxug`, or `-` for none.
    pub fn perms(&mut self) -> Result<Perms, TextError> {
        let word = self.need("PERMS (letters of `rwxug`)")?;
        let mut perms = Perms::default();
        if word.text == "-" {
            return Ok(perms);
        }
        for letter in word.text.chars() {
            let flag = match letter {
                'r' => &mut perms.read,
                'w' => &mut perms.write,
                'x' => &mut perms.exec,
                'u' => &mut perms.user,
                'g' => &mut perms.global,
                _ => {
                    let message = format!("unknown permission `{letter}` in `{}`", word.text);
                    return Err(self.error(word, format!("{message}: the letters are `rwxug`")));
                }
            };
            *flag = true;
        }
        Ok(perms)
    }

    /// A register write: a number, or `+BIT` and `-BIT` joined.
    pub fn reg_write<F: Flags<Bits = u64>>(&mut self, reg: &str) -> Result<RegWrite, TextError> {
        let word = self.need(&format!("the value of {reg}, or `+BIT` and `-BIT`"))?;
        if !word.text.starts_with(['+', '-']) {
            let value = self.parse_number(word, word.text, reg)?;
            return Ok(RegWrite::value(value));
        }
        let mut write = RegWrite { clear: 0, set: 0 };
        let mut rest = word.text;
        while let Some(sign) = rest.chars().next() {
            let body = &rest[1..];
            let end = body.find(['+', '-']).unwrap_or(body.len());
            let mask = self.bit::<F>(word, reg, &body[..end])?;
            if (write.set | write.clear) & mask != 0 {
                let message = format!("`{}` is named twice", &body[..end]);
                return Err(self.error(word, message));
            }
            if sign == '+' {
                write.set |= mask
            } else {
                write.clear |= mask
            }
            rest = &body[end..];
        }
        Ok(write)
    }

    /// The mask of a bit's name; `0x...` is a mask itself, for bits without a name.
    fn bit<F: Flags<Bits = u64>>(
        &self,
        word: Word<'_>,
        reg: &str,
        name: &str,
    ) -> Result<u64, TextError> {
        if name.starts_with("0x") {
            return self.parse_number(word, name, reg);
        }
        F::FLAGS
            .iter()
            .find(|flag| flag.name().eq_ignore_ascii_case(name))
            .map(|flag| flag.value().bits())
            .ok_or_else(|| {
                let names: Vec<&str> = F::FLAGS.iter().map(|flag| flag.name()).collect();
                self.unknown(word, &format!("bit of {reg}"), name, &names)
            })
    }

    /// The remaining words as `key=value` or bare flags, each handed to `set`, which answers
    /// whether it knew the key. A key given twice is an error.
    pub fn options(
        &mut self,
        known: &[&str],
        mut set: impl FnMut(&Self, Word<'a>, &str, Option<&'a str>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        let mut seen: Vec<&str> = Vec::new();
        while let Some(word) = self.take() {
            let (key, value) = match word.text.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word.text, None),
            };
            if !known.contains(&key) {
                return Err(self.unknown(word, "key", key, known));
            }
            if seen.contains(&key) {
                return Err(self.error(word, format!("`{key}` is given twice")));
            }
            seen.push(key);
            set(self, word, key, value)?;
        }
        Ok(())
    }

    /// The number behind `key=`.
    pub fn value<T: TryFrom<u64>>(
        &self,
        word: Word<'_>,
        key: &str,
        value: Option<&str>,
    ) -> Result<T, TextError> {
        match value {
            Some(text) => self.parse_small(word, text, key),
            None => Err(self.error(word, format!("`{key}` needs a value: `{key}=N`"))),
        }
    }

    /// A flag takes no value.
    pub fn flag(&self, word: Word<'_>, value: Option<&str>) -> Result<bool, TextError> {
        match value {
            None => Ok(true),
            Some(_) => Err(self.error(word, format!("`{}`: this takes no value", word.text))),
        }
    }

    /// `[SIZE]`: bytes, `4k` if left out.
    pub fn size_or_page(&mut self) -> Result<u64, TextError> {
        let Some(word) = self.take() else { return Ok(crate::addr::PAGE_BYTES) };
        self.parse_size(word)
    }

    /// A size in bytes: a number, with `k`, `m` or `g` behind it for powers of 1024.
    pub fn parse_size(&self, word: Word<'_>) -> Result<u64, TextError> {
        size(word.text)
            .or_else(|| number(word.text))
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| self.error(word, format!("`{}` is not a size such as `2m`", word.text)))
    }
}

/// Decimal, or `0x` hex, with `_` between digits.
pub(super) fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let mut value: u64 = 0;
    let mut any = false;
    for c in digits.chars() {
        if c == '_' && any {
            continue;
        }
        value = value.checked_mul(u64::from(radix))?.checked_add(u64::from(c.to_digit(radix)?))?;
        any = true;
    }
    any.then_some(value)
}

/// A number with one of the suffixes `k`, `m`, `g`, or a decimal one with `b`.
pub(super) fn size(text: &str) -> Option<u64> {
    let mut chars = text.chars();
    let shift = match chars.next_back()? {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        // In hex it would be a digit.
        'b' if !text.starts_with("0x") => 0,
        _ => return None,
    };
    number(chars.as_str())?.checked_mul(1 << shift)
}

/// `vN`.
pub(super) fn vcpu(text: &str) -> Option<VcpuId> {
    u16::try_from(number(text.strip_prefix('v')?)?).ok().map(VcpuId)
}

/// `1500`, `1500ns`, `2us`, `3ms`, `1s`.
pub(super) fn time(text: &str) -> Option<Time> {
    // "ns", "us" and "ms" end in "s" as well: the longer suffixes go first.
    let units = [("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];
    let (digits, unit) = units
        .iter()
        .find_map(|&(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .unwrap_or((text, 1));
    number(digits)?.checked_mul(unit).map(Time)
}

/// A message that quotes a line without end does not end either: it is cut.
fn cut(mut message: String) -> String {
    const CHARS: usize = 200;
    if let Some((at, _)) = message.char_indices().nth(CHARS) {
        message.truncate(at);
        message.push_str("...");
    }
    message
}
