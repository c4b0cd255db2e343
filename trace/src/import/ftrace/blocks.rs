//! Text in blocks of whole lines, so that the lines of one block can be taken apart while those of
//! another are interpreted.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::Arc;

use memchr::{memchr_iter, memrchr};
use self_cell::self_cell;

use super::line::{self, Line};
use crate::import::args::{self, Word};
use crate::import::symbols::Symbols;

/// Bytes that are read for a block.
const BLOCK_BYTES: usize = 256 << 10;
/// A longer line is no event: it is cut, and the rest of it skipped.
const LINE_BYTES: usize = 64 << 10;
/// What an error shows of the first line.
const FIRST_BYTES: usize = 80;

/// A stream of text that is read in blocks.
pub(super) struct Blocks<R> {
    reader: R,
    /// The beginning of a line whose end is not read yet.
    rest: Vec<u8>,
    /// The first line that is not blank, cut.
    pub first: Option<Vec<u8>>,
    /// Why there is no more: an error, or the end.
    pub end: Option<io::Result<()>>,
}

impl<R: BufRead> Blocks<R> {
    pub const fn new(reader: R) -> Self {
        Self { reader, rest: Vec::new(), first: None, end: None }
    }

    /// The next blocks, at most so many; none at the end.
    pub fn several(&mut self, most: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.block()).take(most).collect()
    }

    /// Whole lines. A last line without an end counts, one that an error cut does not.
    fn block(&mut self) -> Option<Vec<u8>> {
        let mut text = std::mem::take(&mut self.rest);
        loop {
            let from = text.len();
            self.read(&mut text);
            if let Some(end) = memrchr(b'\n', &text[from..]) {
                self.rest = text.split_off(from + end + 1);
                break;
            }
            match self.end {
                None => text.truncate(LINE_BYTES),
                Some(Ok(())) => break,
                Some(Err(_)) => return None,
            }
        }
        if self.first.is_none() {
            let mut lines = text.split(|&c| c == b'\n');
            let first = lines.find(|line| !line.trim_ascii().is_empty());
            self.first = first.map(|line| line[..line.len().min(FIRST_BYTES)].to_vec());
        }
        (!text.is_empty()).then_some(text)
    }

    fn read(&mut self, text: &mut Vec<u8>) {
        if self.end.is_some() {
            return;
        }
        match self.reader.by_ref().take(BLOCK_BYTES as u64).read_to_end(text) {
            Ok(BLOCK_BYTES) => {}
            Ok(_) => self.end = Some(Ok(())),
            Err(error) => self.end = Some(Err(error)),
        }
    }
}

/// What the lines of a block lie in.
pub(super) struct Text {
    bytes: Vec<u8>,
    symbols: Arc<Symbols>,
}

/// The lines of a block in order, each with its words.
pub(super) struct Lines<'a> {
    pub lines: Vec<(Line<'a>, Range<usize>)>,
    pub words: Vec<Word>,
}

self_cell!(
    /// A block with its lines taken apart.
    pub(super) struct Block {
        owner: Text,
        #[covariant]
        dependent: Lines,
    }
);

impl Block {
    /// Takes whole lines apart.
    pub fn of(bytes: Vec<u8>, symbols: &Arc<Symbols>) -> Self {
        Self::new(Text { bytes, symbols: Arc::clone(symbols) }, |text| Lines::of(text))
    }
}

impl<'a> Lines<'a> {
    fn of(text: &'a Text) -> Self {
        let bytes = &text.bytes[..];
        // A line of these recordings has some 130 bytes and ten words.
        let mut lines = Vec::with_capacity(bytes.len() / 100 + 1);
        let mut words = Vec::with_capacity(bytes.len() / 16 + 1);
        let mut from = 0;
        let ends = memchr_iter(b'\n', bytes);
        let last = (bytes.last() != Some(&b'\n')).then_some(bytes.len());
        for end in ends.chain(last) {
            let line = line::parse(&bytes[from..end.min(from + LINE_BYTES)], &text.symbols);
            let first = words.len();
            if let Line::Event(event, _) = &line {
                args::find(event.text(), &mut words);
            }
            lines.push((line, first..words.len()));
            from = end + 1;
        }
        Self { lines, words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that fails behind its bytes.
    struct Cut<'a>(&'a [u8]);

    impl Read for Cut<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("cut")),
                bytes => Ok(bytes),
            }
        }
    }

    fn all(blocks: &mut Blocks<impl BufRead>) -> Vec<u8> {
        std::iter::from_fn(|| blocks.block()).flatten().collect()
    }

    #[test]
    fn lines_come_whole_over_the_borders_of_blocks() {
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        let mut blocks = Blocks::new(text.as_bytes());
        let several = blocks.several(3);
        assert_eq!(several.len(), 3);
        assert!(several.iter().all(|block| block.ends_with(b"\n")));
        let rest = all(&mut blocks);
        assert_eq!([several.concat(), rest].concat(), text.as_bytes());
        assert_eq!(blocks.first.as_deref(), Some(&b"line 0"[..]));
        assert!(matches!(blocks.end, Some(Ok(()))));
    }

    #[test]
    fn the_last_line_counts_without_an_end_but_not_if_it_is_cut() {
        assert_eq!(all(&mut Blocks::new(&b"\n a\nb"[..])), b"\n a\nb");
        let mut cut = Blocks::new(io::BufReader::new(Cut(b"a\nb")));
        assert_eq!(all(&mut cut), b"a\n");
        assert!(matches!(cut.end, Some(Err(_))));
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory() {
        let long = io::repeat(b'x').take(10 << 20);
        let text = long.chain(&b"\nshort\n"[..]);
        let mut blocks = Blocks::new(io::BufReader::new(text));
        let first = blocks.block().expect("a block");
        assert!(first.len() <= LINE_BYTES + BLOCK_BYTES, "{}", first.len());
        let text = Text { bytes: first, symbols: Arc::default() };
        assert_eq!(Lines::of(&text).lines.len(), 2, "the long one and the short one");
    }
}
