//! The one stream that all forms of a recording become: named events with fields. A form's reader
//! makes them, [`super::kvm`] says what they mean.

use super::args::{self, Word};
use super::format::Raw;
use super::number::{number, text_arg};

/// An event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    /// The thread.
    pub pid: u32,
    /// Its thread group, where the form tells it.
    pub tgid: Option<u32>,
    pub cpu: u16,
    /// Nanoseconds of the recorder's clock.
    pub ns: u64,
    /// Line of the source; 0 where it has none.
    pub line: u32,
    /// The function it sits on, where that is known; else the event's name.
    pub name: &'a [u8],
    /// A return: `name` is the function that returns, `caller` where to.
    pub ret: bool,
    /// The name is a function's.
    pub function: bool,
    /// The function is what the event's name suggests, nothing better is known.
    pub assumed: bool,
    /// The probe sits within a function: it does not show that the function was called.
    pub inside: bool,
    pub caller: &'a [u8],
    pub fields: Fields<'a>,
}

/// What an event carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fields<'a> {
    /// As the kernel or a tool printed it.
    Text(&'a [u8]),
    /// The same, with its words found.
    Words(&'a [u8], &'a [Word]),
    /// As it lies in a ring buffer, by its format.
    Raw(Raw<'a>),
}

impl<'a> Event<'a> {
    /// The number in the field of this name: ` key=` of a text.
    pub fn num(&self, key: &[u8]) -> Option<u64> {
        match &self.fields {
            Fields::Text(text) => number(text_arg(text, key)?),
            Fields::Words(text, words) => number(args::get(words, text, key)?),
            Fields::Raw(raw) => raw.num(key),
        }
    }

    /// Whether there is a field of this name.
    pub fn has(&self, key: &[u8]) -> bool {
        match &self.fields {
            Fields::Text(text) => text_arg(text, key).is_some(),
            Fields::Words(text, words) => args::get(words, text, key).is_some(),
            Fields::Raw(raw) => raw.format.field(key).is_some(),
        }
    }

    /// The function that the field of this name points into.
    pub fn symbol(&self, key: &[u8]) -> Option<&'a [u8]> {
        match &self.fields {
            Fields::Text(text) => text_arg(text, key),
            Fields::Words(text, words) => args::get(words, text, key),
            Fields::Raw(raw) => raw.symbol(key),
        }
    }

    /// The text as printed; nothing for raw fields.
    pub const fn text(&self) -> &'a [u8] {
        match self.fields {
            Fields::Text(text) | Fields::Words(text, _) => text,
            Fields::Raw(_) => b"",
        }
    }
}
