//! The `key=value` words of a printed event, found once for all that is asked of them.

use memchr::memchr2_iter;

/// A word with a `=` in it: where it begins, where its first `=` is and where it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    code: u64,
    from: u32,
    equals: u32,
    to: u32,
}

/// Puts the words of a text behind others, in order. A text is a line of 64 KiB at most.
pub(super) fn find(text: &[u8], words: &mut Vec<Word>) {
    let (mut from, mut equals) = (0, None);
    let mut add = |from: usize, equals: Option<usize>, to: usize| {
        if let Some(equals) = equals {
            let code = code(&text[from..equals]);
            words.push(Word { code, from: from as u32, equals: equals as u32, to: to as u32 });
        }
    };
    for at in memchr2_iter(b' ', b'=', text) {
        if text[at] == b'=' {
            equals = equals.or(Some(at));
        } else {
            add(from, equals.take(), at);
            from = at + 1;
        }
    }
    add(from, equals, text.len());
}

/// The value of a key among the words of a text.
pub(super) fn get<'a>(words: &[Word], text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let code = code(key);
    let mut words = words.iter().filter(|word| word.code == code);
    let same = |word: &&Word| {
        key.len() < 8 || text.get(word.from as usize..word.equals as usize) == Some(key)
    };
    let word = words.find(same)?;
    text.get(word.equals as usize + 1..word.to as usize)
}

/// The first seven bytes of a key and its length: tells keys of up to seven bytes apart.
fn code(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes[..7].iter_mut().zip(key) {
        *to = *from;
    }
    bytes[7] = key.len().min(255) as u8;
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_key() {
        let text = b"(f+0x0) id=3 exit_reason=0x1c exit_reasoX=1 cr3=0x1000  cr3=2 a=b=c empty= =x";
        let mut words = Vec::new();
        find(b"old=1", &mut words);
        let first = words.len();
        find(text, &mut words);
        let get = |key: &[u8]| get(&words[first..], text, key).map(String::from_utf8_lossy);
        assert_eq!(get(b"id").as_deref(), Some("3"));
        assert_eq!(get(b"cr3").as_deref(), Some("0x1000"), "the first of two");
        assert_eq!(get(b"cr").as_deref(), None, "not the beginning of a key");
        assert_eq!(get(b"exit_reason").as_deref(), Some("0x1c"));
        assert_eq!(get(b"exit_reasoX").as_deref(), Some("1"), "alike in seven bytes and length");
        assert_eq!(get(b"a").as_deref(), Some("b=c"));
        assert_eq!(get(b"empty").as_deref(), Some(""));
        assert_eq!(get(b"old").as_deref(), None, "of the text before");
    }
}
