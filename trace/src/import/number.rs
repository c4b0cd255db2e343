//! Numbers and words in printed events.

/// The text behind ` key=`, up to the next blank.
pub(super) fn text_arg<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let words = text.split(|&c| c == b' ');
    let mut found = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix(b"="));
    found.next()
}

/// A number as the kernel prints it, up to the first character that does not belong to it:
/// decimal, `0x` hex, or a negative decimal as its two's complement.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if let Some(hex) = text.strip_prefix(b"0x") {
        return self::hex(hex);
    }
    match text.strip_prefix(b"-") {
        Some(rest) => decimal(digits_at(rest)).map(u64::wrapping_neg),
        None => decimal(digits_at(text)),
    }
}

/// Hex digits without `0x`, up to the first other character.
pub(super) fn hex(text: &[u8]) -> Option<u64> {
    let digits = text.iter().map_while(|&c| char::from(c).to_digit(16));
    let mut any = false;
    let mut value = 0_u64;
    for digit in digits {
        // Another digit would not fit.
        if value >> 60 != 0 {
            return None;
        }
        value = value << 4 | u64::from(digit);
        any = true;
    }
    any.then_some(value)
}

/// Hex digits with or without `0x`: tracepoints print some numbers so and some so.
pub(super) fn bare_hex(text: &[u8]) -> Option<u64> {
    hex(text.strip_prefix(b"0x").unwrap_or(text))
}

/// Decimal digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, c| {
        let digit = c.is_ascii_digit().then(|| u64::from(c - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The decimal digits that a text begins with.
pub(super) fn digits_at(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len())]
}

/// The words of a text.
pub(super) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&c| c == b' ').filter(|word| !word.is_empty())
}

/// The word behind ` key ` (tracepoints print names and values side by side).
pub(super) fn word_after<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut words = words(text);
    words.find(|word| *word == key)?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers() {
        assert_eq!(number(b"-1"), Some(u64::MAX));
        assert_eq!(number(b"0xffffffffffffffff0"), None);
        assert_eq!(number(b"0x2a,"), Some(42));
    }
}
