//! One line of tracefs text, taken apart: `TASK-PID [CPU] FLAGS SECONDS: EVENT: FIELDS`.

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Event(Event<'a>),
    /// `CPU:0 [LOST 12 EVENTS]`, with the number where it is printed.
    Lost(Option<u64>),
    /// A header line, with its text.
    Comment(&'a [u8]),
    Blank,
    Junk,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub pid: u32,
    pub cpu: u16,
    /// Nanoseconds of the recorder's clock.
    pub ns: u64,
    /// The function it sits on, where the line prints one; else the event's name.
    pub name: &'a [u8],
    /// A return: `name` is the function that returns, `caller` where to.
    pub ret: bool,
    /// The name is a function's.
    pub function: bool,
    /// A probe of which only an address is printed (trace-cmd report): the name is the recorder's.
    pub unresolved: bool,
    pub caller: &'a [u8],
    pub args: &'a [u8],
}

/// Takes a line apart.
pub(super) fn parse(line: &[u8]) -> Line<'_> {
    let line = line.trim_ascii();
    match line.first() {
        None => return Line::Blank,
        Some(b'#') => return Line::Comment(line),
        _ => {}
    }
    event(line).map_or_else(|| lost(line), Line::Event)
}

/// `LOST` in capitals within brackets, or `[12 events dropped]`.
fn lost(line: &[u8]) -> Line<'_> {
    let starts = |at: usize, what: &[u8]| line[at..].starts_with(what);
    let Some(at) =
        (0..line.len()).find(|&at| starts(at, b"LOST ") || starts(at, b"events dropped"))
    else {
        return Line::Junk;
    };
    let digits = line[at..].iter().chain(b" ").position(u8::is_ascii_digit);
    match digits.filter(|d| at + d < line.len()) {
        Some(d) => Line::Lost(decimal(digits_at(&line[at + d..]))),
        None => {
            let before = line[..at].trim_ascii_end();
            let from = before.iter().rposition(|c| !c.is_ascii_digit()).map_or(0, |p| p + 1);
            Line::Lost(decimal(&before[from..]))
        }
    }
}

fn digits_at(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len())]
}

fn event(line: &[u8]) -> Option<Event<'_>> {
    let (open, close) = cpu_brackets(line)?;
    let cpu = u16::try_from(decimal(&line[open + 1..close])?).ok()?;
    let pid = pid(&line[..open])?;
    let (ns, rest) = stamp(&line[close + 1..])?;
    let colon = rest.iter().position(|&c| c == b':')?;
    let name = &rest[..colon];
    if name.is_empty() || name.contains(&b' ') {
        return None;
    }
    let args = rest[colon + 1..].trim_ascii_start();
    let (ret, function, unresolved, caller) = (false, false, false, &b""[..]);
    let plain = Event { pid, cpu, ns, name, ret, function, unresolved, caller, args };
    Some(probe(plain).unwrap_or(plain))
}

/// The first `[digits]` behind a blank: task names may hold brackets as well.
fn cpu_brackets(line: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let open = from + line[from..].iter().position(|&c| c == b'[')?;
        let end = open + 1 + digits_at(&line[open + 1..]).len();
        if open > 0 && line[open - 1] == b' ' && end > open + 1 && line.get(end) == Some(&b']') {
            return Some((open, end));
        }
        from = open + 1;
    }
}

/// The digits behind the last `-`, before a thread group in parentheses if one is printed.
fn pid(text: &[u8]) -> Option<u32> {
    let mut text = text.trim_ascii_end();
    if text.last() == Some(&b')') {
        text = text[..text.iter().rposition(|&c| c == b'(')?].trim_ascii_end();
    }
    let dash = text.iter().rposition(|&c| c == b'-')?;
    u32::try_from(decimal(&text[dash + 1..])?).ok()
}

/// The word that is a time, behind at most one word of flags, and what follows it.
fn stamp(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = text;
    for _ in 0..2 {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&c| c == b' ')?;
        let (word, tail) = rest.split_at(end);
        if let Some(ns) = word.strip_suffix(b":").and_then(seconds) {
            return Some((ns, tail.trim_ascii_start()));
        }
        rest = tail;
    }
    None
}

/// `SECONDS.FRACTION` with up to nine digits behind the point.
fn seconds(text: &[u8]) -> Option<u64> {
    let point = text.iter().position(|&c| c == b'.')?;
    let fraction = &text[point + 1..];
    if fraction.len() > 9 {
        return None;
    }
    let scale = 10_u64.pow(9 - u32::try_from(fraction.len()).ok()?);
    let whole = decimal(&text[..point])?.checked_mul(1_000_000_000)?;
    whole.checked_add(decimal(fraction)?.checked_mul(scale)?)
}

/// `(function+0x0/0x30 [module]) args` of a kprobe, `(caller+0x8/0x30 [module] <- function) args`
/// of a kretprobe.
fn probe(event: Event<'_>) -> Option<Event<'_>> {
    let inner = event.args.strip_prefix(b"(")?;
    let close = inner.iter().position(|&c| c == b')')?;
    let args = inner[close + 1..].trim_ascii_start();
    let inner = &inner[..close];
    let Some(arrow) = inner.windows(4).position(|w| w == b" <- ") else {
        // Without symbols only an address is printed: the event's name has to do.
        let Some(name) = symbol(inner) else {
            let unresolved = inner.iter().all(u8::is_ascii_hexdigit);
            return unresolved.then_some(Event { unresolved, args, ..event });
        };
        return Some(Event { name, function: true, args, ..event });
    };
    let Some(name) = symbol(&inner[arrow + 4..]) else {
        return Some(Event { ret: true, unresolved: true, args, ..event });
    };
    let caller = symbol(&inner[..arrow]).unwrap_or(b"");
    Some(Event { name, ret: true, function: true, caller, args, ..event })
}

/// The function's name alone; `None` for a bare address.
pub(super) fn symbol(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|&c| c == b'+' || c == b' ').unwrap_or(text.len());
    let name = &text[..end];
    let address = name.starts_with(b"0x") || name.iter().all(u8::is_ascii_hexdigit);
    (!name.is_empty() && !address).then_some(name)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, c| {
        let digit = c.is_ascii_digit().then(|| u64::from(c - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The text behind ` key=`, up to the next blank. `key` includes the `=`.
pub(super) fn text_arg<'a>(args: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    args.split(|&c| c == b' ').find_map(|word| word.strip_prefix(key))
}

/// The number behind ` key=`: decimal, `0x` hex, or a negative decimal as its two's complement.
pub(super) fn arg(args: &[u8], key: &[u8]) -> Option<u64> {
    number(text_arg(args, key)?)
}

/// A number as the kernel prints it, up to the first character that does not belong to it.
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
        value = value.checked_mul(16)?.checked_add(u64::from(digit))?;
        any = true;
    }
    any.then_some(value)
}

/// The word behind ` key ` (tracepoints print names and values side by side).
pub(super) fn word_after<'a>(args: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut words = args.split(|&c| c == b' ').filter(|word| !word.is_empty());
    words.find(|word| *word == key)?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::{Event, Line, arg, number, parse};

    #[test]
    fn kprobe_tracepoint_kretprobe_and_odd_task_names() {
        let line = b"   a b-[3]-127     [002] d..1.    51.973328: kvm_cr: cr_write 4 = 0x20";
        let event = Event {
            pid: 127,
            cpu: 2,
            ns: 51_973_328_000,
            name: b"kvm_cr",
            ret: false,
            function: false,
            unresolved: false,
            caller: b"",
            args: b"cr_write 4 = 0x20",
        };
        assert_eq!(parse(line), Line::Event(event));
        let line = b"vmm-1 [000] ..... 1.000001: x: (kvm_set_cr4+0x0/0x1a0 [kvm]) id=0 val=0x20";
        let Line::Event(event) = parse(line) else { panic!() };
        assert_eq!((event.name, arg(event.args, b"val=")), (&b"kvm_set_cr4"[..], Some(0x20)));
        let line =
            b"vmm-1 (  1) [000] 1.000001: x: (handle_cr+0x6 [kvm_intel] <- kvm_set_cr4) ret=1";
        let Line::Event(event) = parse(line) else { panic!() };
        assert!(event.ret);
        assert_eq!((event.name, event.caller), (&b"kvm_set_cr4"[..], &b"handle_cr"[..]));
    }

    #[test]
    fn lost_events_and_junk() {
        assert_eq!(parse(b"CPU:0 [LOST 12 EVENTS]"), Line::Lost(Some(12)));
        assert_eq!(parse(b"CPU 1 [7 events dropped]"), Line::Lost(Some(7)));
        assert_eq!(parse(b"CPU:0 [LOST EVENTS]"), Line::Lost(None));
        assert_eq!(parse(b"\x00\xff [ ["), Line::Junk);
        assert_eq!(number(b"-1"), Some(u64::MAX));
        assert_eq!(number(b"0xffffffffffffffff0"), None);
    }
}
