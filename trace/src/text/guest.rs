//! What stands after `vN`: the operations of a guest.

use super::cursor::{Cursor, Word};
use super::{Outcome, TextError, host};
use crate::addr::{Asid, Gpa, Gva, PageSize, Pcid};
use crate::op::{Access, AccessKind, Invlpgb, Invpcid, InvpcidType, Op, Sregs};
use crate::regs::{CR3_NOFLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer};

/// Every operation of a guest, for suggestions.
const NAMES: [&str; 43] = [
    "cr0",
    "clts",
    "lmsw",
    "cr3",
    "cr4",
    "efer",
    "map",
    "unmap",
    "protect",
    "table",
    "link",
    "store",
    "read",
    "write",
    "exec",
    "prefetch",
    "fault",
    "invlpg",
    "invpcid",
    "invlpga",
    "invlpgb",
    "tlbsync",
    "init",
    "reset",
    "smi",
    "rsm",
    "taskswitch",
    "msr",
    "pkru",
    "cpuid",
    "sregs",
    "emul",
    "pvflush",
    "hvflush",
    "l2enter",
    "l2exit",
    "l1",
    "hlt",
    "walk",
    "out",
    "in",
    "exit",
    "release",
];

/// The operation and, for an access, its expected outcomes.
pub(super) fn guest(
    words: &mut Cursor<'_>,
    emulated: bool,
) -> Result<(Op, Vec<Outcome>), TextError> {
    let word = words.need("an operation")?;
    if word.text == "emul" {
        if emulated {
            return Err(words.error(word, "`emul` within `emul`".into()));
        }
        let (op, outcomes) = guest(words, true)?;
        return Ok((Op::Emul(Box::new(op)), outcomes));
    }
    if let "read" | "write" | "exec" = word.text {
        return access(words, word);
    }
    if word.text == "walk" {
        return lockless_walk(words);
    }
    let found = match registers(words, word)? {
        None => memory(words, word)?,
        some => some,
    };
    let found = match found {
        None => rest(words, word)?,
        some => some,
    };
    match found {
        Some(op) => Ok((op, Vec::new())),
        None => Err(words.unknown(word, "operation", word.text, &NAMES)),
    }
}

/// Operations on registers.
fn registers(words: &mut Cursor<'_>, word: Word<'_>) -> Result<Option<Op>, TextError> {
    Ok(Some(match word.text {
        "cr0" => Op::Cr0(words.reg_write::<Cr0>("CR0")?),
        "cr4" => Op::Cr4(words.reg_write::<Cr4>("CR4")?),
        "efer" => Op::Efer(words.reg_write::<Efer>("EFER")?),
        "cr3" => cr3(words)?,
        "clts" => Op::Clts,
        "lmsw" => Op::Lmsw(words.small("the operand of LMSW")?),
        "taskswitch" => Op::TaskSwitch(words.number("the CR3 of the new task")?),
        "pkru" => Op::Pkru(words.small("the value of PKRU")?),
        "cpuid" => Op::Cpuid,
        "code" => match words.number("64 or 32")? {
            64 => Op::Code { long: true },
            _ => Op::Code { long: false },
        },
        "msr" => {
            let msr = words.need("the MSR (`mtrr`, `pat`, `efer` or `apicbase`)")?;
            match msr.text {
                "mtrr" => Op::MsrMtrr(words.number("the value")?),
                "pat" => Op::MsrPat(words.number("the value")?),
                "apicbase" => Op::MsrApicBase(words.number("the value")?),
                "efer" => Op::Efer(words.reg_write::<Efer>("EFER")?),
                name => {
                    return Err(words.unknown(
                        msr,
                        "MSR",
                        name,
                        &["mtrr", "pat", "efer", "apicbase"],
                    ));
                }
            }
        }
        "sregs" => sregs(words)?,
        _ => return Ok(None),
    }))
}

/// `cr3 ADDR [pcid=N] [noflush]`: the raw operand.
fn cr3(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let at = words.peek();
    let mut value = words.number("the address for CR3")?;
    words.options(&["pcid", "noflush"], |words, word, key, text| {
        if key == "noflush" {
            words.flag(word, text)?;
            value |= CR3_NOFLUSH;
            return Ok(());
        }
        let pcid: u64 = words.value(word, key, text)?;
        if pcid > CR3_PCID_MASK {
            return Err(words.error(word, format!("pcid {pcid:#x} has more than 12 bits")));
        }
        if value & CR3_PCID_MASK != 0 {
            let message = "the address has low bits set and `pcid=` names others".into();
            return Err(words.error(at.unwrap_or(word), message));
        }
        value |= pcid;
        Ok(())
    })?;
    Ok(Op::Cr3(value))
}

fn sregs(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let mut sregs = Sregs::default();
    words.options(&["cr0", "cr3", "cr4", "efer"], |words, word, key, value| {
        let value = Some(words.value(word, key, value)?);
        match key {
            "cr0" => sregs.cr0 = value,
            "cr3" => sregs.cr3 = value,
            "cr4" => sregs.cr4 = value,
            _ => sregs.efer = value,
        }
        Ok(())
    })?;
    Ok(Op::Sregs(Box::new(sregs)))
}

/// Stores to page tables and to memory.
fn memory(words: &mut Cursor<'_>, word: Word<'_>) -> Result<Option<Op>, TextError> {
    Ok(Some(match word.text {
        "map" => {
            let (gva, gpa) = (words.gva()?, words.gpa()?);
            let size = page_size(words);
            Op::Map { gva, gpa, size, perms: words.perms()?, root: root(words)? }
        }
        "unmap" => Op::Unmap { gva: words.gva()?, root: root(words)? },
        "protect" => Op::Protect { gva: words.gva()?, perms: words.perms()?, root: root(words)? },
        "table" => Op::Table { gpa: words.gpa()?, level: level(words)? },
        "link" => Op::Link {
            gva: words.gva()?,
            level: level(words)?,
            table: words.gpa()?,
            perms: words.perms()?,
            root: root(words)?,
        },
        "store" => Op::Store { gpa: words.gpa()?, value: words.number("the value to store")? },
        "prefetch" => Op::Prefetch(words.gva()?),
        "fault" => Op::PageFault { gva: words.gva()?, error: words.small("the error code")? },
        "release" => Op::Release { gpa: words.gpa()?, size: words.size_or_page()? },
        _ => return Ok(None),
    }))
}

/// `[4k|2m|4m|1g]`, `4k` if left out.
fn page_size(words: &mut Cursor<'_>) -> PageSize {
    let sizes = [
        ("4k", PageSize::Size4K),
        ("2m", PageSize::Size2M),
        ("4m", PageSize::Size4M),
        ("1g", PageSize::Size1G),
    ];
    let found = sizes.iter().find(|(name, _)| words.take_if(name));
    found.map_or(PageSize::Size4K, |(_, size)| *size)
}

/// A level of a page table, 1 (PT) to 5.
fn level(words: &mut Cursor<'_>) -> Result<u8, TextError> {
    let word = words.need("a level (1 = PT)")?;
    let level: u8 = words.parse_small(word, word.text, "level")?;
    if !(1..=5).contains(&level) {
        return Err(words.error(word, format!("there is no level {level}: 1 (PT) to 5")));
    }
    Ok(level)
}

/// `[root=ADDR]`.
fn root(words: &mut Cursor<'_>) -> Result<Option<Gpa>, TextError> {
    let mut root = None;
    words.options(&["root"], |words, word, key, value| {
        root = Some(Gpa(words.value(word, key, value)?));
        Ok(())
    })?;
    Ok(root)
}

/// Everything else.
fn rest(words: &mut Cursor<'_>, word: Word<'_>) -> Result<Option<Op>, TextError> {
    Ok(Some(match word.text {
        "invlpg" => Op::Invlpg(words.gva()?),
        "invpcid" => invpcid(words)?,
        "invlpga" => Op::Invlpga { gva: words.gva()?, asid: Asid(words.small("an ASID")?) },
        "invlpgb" => invlpgb(words)?,
        "tlbsync" => Op::Tlbsync,
        "init" => Op::Init,
        "reset" => Op::Reset,
        "smi" => Op::Smi,
        "rsm" => Op::Rsm,
        "pvflush" => Op::PvFlush(Box::new(words.vcpus()?)),
        "hvflush" => host::hvflush(words)?,
        "l2enter" => host::l2enter(words)?,
        "l2exit" => Op::L2Exit(words.optional_number("the reason")?),
        "l1" => host::l1(words)?,
        "hlt" => Op::Hlt,
        "out" => Op::Out,
        "in" if words.take_if("fail") => Op::InFail,
        "in" => Op::In,
        "exit" => Op::Exit(words.optional_number("the reason")?),
        _ => return Ok(None),
    }))
}

/// `invpcid addr|single|all|all-nonglobal [pcid=N] [gva=ADDR]`; a number is a raw type.
fn invpcid(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let word = words.need("the type of INVPCID")?;
    let kind = match word.text {
        "addr" | "0" => InvpcidType::Addr,
        "single" | "1" => InvpcidType::Single,
        "all" | "2" => InvpcidType::All,
        "all-nonglobal" | "3" => InvpcidType::AllNonglobal,
        text if text.starts_with(|c: char| c.is_ascii_digit()) => {
            match words.parse_number(word, text, "the type of INVPCID")? {
                0 => InvpcidType::Addr,
                1 => InvpcidType::Single,
                2 => InvpcidType::All,
                3 => InvpcidType::AllNonglobal,
                other => InvpcidType::Reserved(other),
            }
        }
        name => {
            let known = ["addr", "single", "all", "all-nonglobal"];
            return Err(words.unknown(word, "type of INVPCID", name, &known));
        }
    };
    let mut op = Invpcid { kind, pcid: 0, gva: Gva(0) };
    words.options(&["pcid", "gva"], |words, word, key, value| {
        match key {
            "pcid" => op.pcid = words.value(word, key, value)?,
            _ => op.gva = Gva(words.value(word, key, value)?),
        }
        Ok(())
    })?;
    Ok(Op::Invpcid(op))
}

/// `walk begin GVA`, `walk end [= OUTCOME]`.
fn lockless_walk(words: &mut Cursor<'_>) -> Result<(Op, Vec<Outcome>), TextError> {
    let half = words.need("`begin` or `end`")?;
    match half.text {
        "begin" => Ok((Op::WalkBegin(words.gva()?), Vec::new())),
        "end" => {
            let expected = match words.take() {
                Some(word) if word.text.starts_with('=') => outcomes(words, word)?,
                Some(word) => return Err(words.unknown(word, "word", word.text, &["="])),
                None => Vec::new(),
            };
            Ok((Op::WalkEnd, expected))
        }
        name => Err(words.unknown(half, "half of a walk", name, &["begin", "end"])),
    }
}

/// `invlpgb [va=] [pcid=] [asid=] [global] [count=] [stride=4k|2m]`.
fn invlpgb(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let mut op = Invlpgb { va: None, pcid: None, asid: None, global: false, count: 0 };
    let mut large = false;
    let keys = ["va", "pcid", "asid", "global", "count", "stride"];
    words.options(&keys, |words, word, key, value| {
        match key {
            "stride" => match value {
                Some("4k") => large = false,
                Some("2m") => large = true,
                other => {
                    let other = other.unwrap_or_default();
                    return Err(words.unknown(word, "stride", other, &["4k", "2m"]));
                }
            },
            "va" => op.va = Some(Gva(words.value(word, key, value)?)),
            "pcid" => op.pcid = Some(Pcid(words.value(word, key, value)?)),
            "asid" => op.asid = Some(Asid(words.value(word, key, value)?)),
            "count" => op.count = words.value(word, key, value)?,
            _ => op.global = words.flag(word, value)?,
        }
        Ok(())
    })?;
    let op = Box::new(op);
    Ok(if large { Op::InvlpgbLarge(op) } else { Op::Invlpgb(op) })
}

/// `read|write|exec GVA [user] [ac] [= OUTCOME]`.
fn access(words: &mut Cursor<'_>, word: Word<'_>) -> Result<(Op, Vec<Outcome>), TextError> {
    let kind = match word.text {
        "read" => AccessKind::Read,
        "write" => AccessKind::Write,
        _ => AccessKind::Exec,
    };
    let mut access = Access { gva: words.gva()?, kind, user: false, ac: false };
    let mut outcomes = Vec::new();
    while let Some(word) = words.take() {
        match word.text {
            "user" if !access.user => access.user = true,
            "ac" if !access.ac => access.ac = true,
            text if text.starts_with('=') => {
                outcomes = self::outcomes(words, word)?;
                break;
            }
            name => return Err(words.unknown(word, "word", name, &["user", "ac", "="])),
        }
    }
    Ok((Op::Access(access), outcomes))
}

/// `= OUTCOME | OUTCOME ...`, with or without spaces.
fn outcomes(words: &mut Cursor<'_>, equals: Word<'_>) -> Result<Vec<Outcome>, TextError> {
    let mut spelled = equals.text[1..].to_owned();
    while let Some(word) = words.take() {
        // Two outcomes side by side are an error, not one long one: keep the space.
        if !spelled.is_empty() {
            spelled.push(' ');
        }
        spelled.push_str(word.text);
    }
    spelled.split('|').map(|text| outcome(words, equals, text.trim())).collect()
}

fn outcome(words: &Cursor<'_>, at: Word<'_>, text: &str) -> Result<Outcome, TextError> {
    if text == "fault" {
        return Ok(Outcome::Fault(None));
    }
    if let Some(code) = text.strip_prefix("fault:") {
        return Ok(Outcome::Fault(Some(words.parse_small(at, code, "fault")?)));
    }
    match super::cursor::number(text) {
        Some(gpa) => Ok(Outcome::Gpa(Gpa(gpa))),
        None => {
            let message = format!("`{text}` is no outcome: an address, `fault` or `fault:CODE`");
            Err(words.error(at, message))
        }
    }
}
