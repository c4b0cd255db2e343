//! One line of text, taken apart: `TASK-PID [CPU] FLAGS SECONDS: EVENT: FIELDS` of tracefs and
//! `trace-cmd report`, `TASK PID [CPU] SECONDS: SYSTEM:EVENT: FIELDS` of `perf script`.

use memchr::{memchr, memchr_iter, memrchr};

use super::super::event::{Event, Fields};
use super::super::number::{decimal, digits_at, hex};
use super::super::symbols::{Symbols, on_entry, plain, split_offset};

/// Which program printed a line, as far as the line shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Printer {
    /// `TASK-PID`.
    Ftrace,
    /// `TASK PID`.
    Perf,
}

/// What a line is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Line<'a> {
    Event(Event<'a>, Printer),
    /// `CPU:0 [LOST 12 EVENTS]`, with the number where it is printed.
    Lost(Option<u64>),
    /// A header line, with its text.
    Comment(&'a [u8]),
    Blank,
    Junk,
}

/// Takes a line apart.
pub(super) fn parse<'a>(line: &'a [u8], symbols: &'a Symbols) -> Line<'a> {
    let line = line.trim_ascii();
    match line.first() {
        None => return Line::Blank,
        Some(b'#') => return Line::Comment(line),
        _ => {}
    }
    if line.starts_with(b"CPU:") && line.ends_with(b"]") {
        return lost(line);
    }
    match event(line, symbols) {
        Some((event, printer)) => Line::Event(event, printer),
        // trace-cmd report begins so, and may tell of CPUs without events.
        None if line.starts_with(b"cpus=") => Line::Comment(line),
        None if line.starts_with(b"CPU ") && line.ends_with(b" is empty") => Line::Comment(line),
        None => lost(line),
    }
}

/// `[LOST 12 EVENTS]`, `[12 events dropped]`, `[EVENTS DROPPED]`, `PERF_RECORD_LOST lost 12`.
fn lost(line: &[u8]) -> Line<'_> {
    const MARKS: [&[u8]; 3] = [b"LOST ", b"events dropped", b"EVENTS DROPPED"];
    let found = (0..line.len()).find(|&at| MARKS.iter().any(|mark| line[at..].starts_with(mark)));
    let Some(at) = found else { return Line::Junk };
    match line[at..].iter().position(u8::is_ascii_digit) {
        Some(d) => Line::Lost(decimal(digits_at(&line[at + d..]))),
        None => {
            let before = line[..at].trim_ascii_end();
            let from = before.iter().rposition(|c| !c.is_ascii_digit()).map_or(0, |p| p + 1);
            Line::Lost(decimal(&before[from..]))
        }
    }
}

fn event<'a>(line: &'a [u8], symbols: &'a Symbols) -> Option<(Event<'a>, Printer)> {
    let (open, close) = cpu_brackets(line)?;
    let cpu = u16::try_from(decimal(&line[open + 1..close])?).ok()?;
    let (pid, tgid, printer) = task(&line[..open])?;
    let (ns, rest) = stamp(&line[close + 1..])?;
    let (name, text) = name(rest, printer)?;
    let event = Event {
        pid,
        tgid,
        cpu,
        ns,
        line: 0,
        name,
        ret: false,
        function: false,
        assumed: false,
        inside: false,
        caller: b"",
        fields: Fields::Text(text),
    };
    Some((probe(event, text, symbols).unwrap_or(event), printer))
}

/// The first `[digits]` behind a blank: task names may hold brackets as well.
fn cpu_brackets(line: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let open = from + memchr(b'[', &line[from..])?;
        let end = open + 1 + digits_at(&line[open + 1..]).len();
        if open > 0 && line[open - 1] == b' ' && end > open + 1 && line.get(end) == Some(&b']') {
            return Some((open, end));
        }
        from = open + 1;
    }
}

/// Thread and thread group: `task-7`, `task-7 (  5)`, `task 7`, `task 5/7`.
fn task(text: &[u8]) -> Option<(u32, Option<u32>, Printer)> {
    let small = |text: &[u8]| decimal(text).and_then(|number| u32::try_from(number).ok());
    let mut text = text.trim_ascii_end();
    let mut tgid = None;
    if text.last() == Some(&b')') {
        let open = memrchr(b'(', text)?;
        tgid = small(text[open + 1..text.len() - 1].trim_ascii());
        text = text[..open].trim_ascii_end();
    }
    let word = memrchr(b' ', text).map_or(text, |blank| &text[blank + 1..]);
    if let Some(pid) = small(word) {
        return Some((pid, tgid, Printer::Perf));
    }
    if let Some(slash) = memchr(b'/', word)
        && let (Some(group), Some(pid)) = (small(&word[..slash]), small(&word[slash + 1..]))
    {
        return Some((pid, Some(group), Printer::Perf));
    }
    let dash = memrchr(b'-', text)?;
    Some((small(&text[dash + 1..])?, tgid, Printer::Ftrace))
}

/// The word that is a time, behind at most one word of flags, and what follows it.
fn stamp(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = text;
    for _ in 0..2 {
        rest = rest.trim_ascii_start();
        let end = memchr(b' ', rest)?;
        let (word, tail) = rest.split_at(end);
        if let Some(ns) = word.strip_suffix(b":").and_then(seconds) {
            return Some((ns, tail.trim_ascii_start()));
        }
        rest = tail;
    }
    None
}

/// `SECONDS.FRACTION` with up to nine digits behind the point.
pub(in crate::import) fn seconds(text: &[u8]) -> Option<u64> {
    let point = memchr(b'.', text)?;
    let fraction = &text[point + 1..];
    if fraction.len() > 9 {
        return None;
    }
    let scale = 10_u64.pow(9 - u32::try_from(fraction.len()).ok()?);
    let whole = decimal(&text[..point])?.checked_mul(1_000_000_000)?;
    whole.checked_add(decimal(fraction)?.checked_mul(scale)?)
}

/// The event's name and what follows it. `perf script` puts the period, if asked, and the system
/// before the name; a system without an event is none.
fn name(text: &[u8], printer: Printer) -> Option<(&[u8], &[u8])> {
    let mut text = text;
    if printer == Printer::Perf {
        let digits = digits_at(text).len();
        if digits > 0 && text.get(digits) == Some(&b' ') {
            text = text[digits..].trim_ascii_start();
        }
    }
    let end = memchr(b' ', text).unwrap_or(text.len());
    let word = text[..end].strip_suffix(b":");
    let Some(word) = word else {
        // `kvm_cr:x`: no blank behind the name.
        let colon = memchr(b':', &text[..end])?;
        return (colon > 0).then(|| (&text[..colon], text[colon + 1..].trim_ascii_start()));
    };
    let name = match printer {
        Printer::Perf => word.rsplit(|&c| c == b':').next().unwrap_or(word),
        Printer::Ftrace => word,
    };
    (!name.is_empty()).then(|| (name, text[end..].trim_ascii_start()))
}

/// `(function+0x0/0x30 [module]) args` of a kprobe, `(caller+0x8/0x30 [module] <- function) args`
/// of a kretprobe; `(address) args` and `(address <- caller's address) args` of tools that know no
/// symbols.
fn probe<'a>(mut event: Event<'a>, text: &'a [u8], symbols: &'a Symbols) -> Option<Event<'a>> {
    let inner = text.strip_prefix(b"(")?;
    let close = memchr(b')', inner)?;
    let args = inner[close + 1..].trim_ascii_start();
    let inner = &inner[..close];
    event.fields = Fields::Text(args);
    let Some(arrow) = arrow(inner) else {
        let Some(symbol) = symbol(inner) else {
            return Some(symbols.resolve(event, address(inner)?, 0));
        };
        return Some(on(event, symbol));
    };
    event.ret = true;
    let (left, right) = (&inner[..arrow], &inner[arrow + 4..]);
    // The kernel prints where it returns to first, the tools print the probed function first.
    if let (Some(function), Some(back)) = (address(left), address(right)) {
        return Some(symbols.resolve(event, function, back));
    }
    event.caller = symbol(left).map_or(b"", |symbol| plain(split_offset(symbol).0));
    Some(on(event, symbol(right)?))
}

/// Where ` <- ` stands.
fn arrow(text: &[u8]) -> Option<usize> {
    let mut before = memchr_iter(b'<', text).filter_map(|at| at.checked_sub(1));
    before.find(|&at| text[at..].starts_with(b" <- "))
}

/// The event of a probe on a symbol, which may have an offset.
fn on<'a>(mut event: Event<'a>, symbol: &'a [u8]) -> Event<'a> {
    let (name, offset) = split_offset(symbol);
    event.function = on_entry(offset);
    event.inside = !event.function;
    event.name = if event.inside { symbol } else { plain(name) };
    event
}

/// `function+0x0` without size and module; `None` for a bare address.
fn symbol(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|&c| c == b'/' || c == b' ').unwrap_or(text.len());
    let symbol = &text[..end];
    (!symbol.is_empty() && address(symbol).is_none()).then_some(symbol)
}

/// A bare address.
fn address(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"0x").unwrap_or(text);
    digits.iter().all(u8::is_ascii_hexdigit).then(|| hex(digits)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<'a>(line: &'a str, symbols: &'a Symbols) -> (Event<'a>, Printer) {
        match parse(line.as_bytes(), symbols) {
            Line::Event(event, printer) => (event, printer),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn kprobe_tracepoint_kretprobe_and_odd_task_names() {
        let none = Symbols::default();
        let line = "   a b-[3]-127     [002] d..1.    51.973328: kvm_cr: cr_write 4 = 0x20";
        let (event, printer) = parsed(line, &none);
        assert_eq!((event.pid, event.tgid, event.cpu), (127, None, 2));
        assert_eq!((event.ns, event.name), (51_973_328_000, &b"kvm_cr"[..]));
        assert_eq!((event.text(), printer), (&b"cr_write 4 = 0x20"[..], Printer::Ftrace));
        assert!(!event.ret && !event.function);
        let line = "vmm-1 [000] ..... 1.000001: x: (kvm_set_cr4+0x0/0x1a0 [kvm]) id=0 val=0x20";
        let (event, _) = parsed(line, &none);
        assert_eq!((event.name, event.num(b"val")), (&b"kvm_set_cr4"[..], Some(0x20)));
        let line =
            "vmm-1 (  9) [000] 1.000001: x: (handle_cr+0x6 [kvm_intel] <- kvm_set_cr4) ret=1";
        let (event, _) = parsed(line, &none);
        assert!(event.ret);
        assert_eq!((event.name, event.caller), (&b"kvm_set_cr4"[..], &b"handle_cr"[..]));
        assert_eq!(event.tgid, Some(9));
    }

    #[test]
    fn a_probe_within_a_function_is_no_call_of_it() {
        let none = Symbols::default();
        let line = "v-1 [000] 1.000001: x: (kvm_mmu_load+0x586/0x890 [kvm]) id=0";
        let (event, _) = parsed(line, &none);
        assert!(event.inside && !event.function);
        let line = "v-1 [000] 1.000001: x: (kvm_mmu_load+0x4/0x890 [kvm]) id=0";
        let (event, _) = parsed(line, &none);
        assert!(event.function && event.name == b"kvm_mmu_load");
    }

    #[test]
    fn addresses_of_report_and_perf_script() {
        let symbols = Symbols::from_kallsyms(
            b"ffffffffc05eb660 t kvm_set_cr0\t[kvm]\nffffffffc06dff00 t em_clts\t[kvm]\n",
        );
        let line = "t-119 [000] 13.574159: any: (ffffffffc05eb660 <- ffffffffc06dff76) ret=0";
        let (event, _) = parsed(line, &symbols);
        assert_eq!((event.name, event.caller), (&b"kvm_set_cr0"[..], &b"em_clts"[..]));
        assert!(event.ret && !event.assumed);
        let none = Symbols::default();
        let line =
            "CPU 0/KVM  5/123 [001]    12.942307:   kvmtlb:set_cr0: (ffffffffc0416dd0) vcpu=0";
        let (event, printer) = parsed(line, &none);
        assert_eq!((event.pid, event.tgid, printer), (123, Some(5), Printer::Perf));
        assert_eq!(event.name, b"kvm_set_cr0");
        assert!(event.assumed);
        let line = "tinyvmm   120 [001]    12.942307:    1   kvm:kvm_exit: vcpu 1 reason io";
        let (event, _) = parsed(line, &none);
        assert_eq!((event.pid, event.name), (120, &b"kvm_exit"[..]));
        assert_eq!(event.text(), b"vcpu 1 reason io");
    }

    #[test]
    fn lost_events_and_junk() {
        let none = Symbols::default();
        let lost = |line: &'static [u8]| match parse(line, &none) {
            Line::Lost(count) => count,
            other => panic!("{other:?}"),
        };
        assert_eq!(lost(b"CPU:0 [LOST 12 EVENTS]"), Some(12));
        assert_eq!(lost(b"CPU:2 [9 EVENTS DROPPED]"), Some(9));
        assert_eq!(lost(b"CPU 1 [7 events dropped]"), Some(7));
        assert_eq!(lost(b"CPU:0 [LOST EVENTS]"), None);
        assert_eq!(lost(b" swapper 0 [000]   1.000000: PERF_RECORD_LOST lost 42"), Some(42));
        assert!(matches!(parse(b"\x00\xff [ [", &none), Line::Junk));
    }
}
