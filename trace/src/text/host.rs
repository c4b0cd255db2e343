//! Host operations, and what L1 and the nested guest do.

use super::TextError;
use super::cursor::{Cursor, Word, number, size};
use crate::addr::{Asid, Gpa, Gva, Hpa, PAGE_BYTES};
use crate::op::{HostOp, HvFlush, L1Op, L2Enter, MemslotChange, Op};

/// Every word that may follow `host`.
const NAMES: [&str; 18] = [
    "map",
    "unmap",
    "protect",
    "ro",
    "age",
    "dirty-log",
    "split",
    "collapse",
    "zap-all",
    "memslot",
    "migrate",
    "preempt",
    "run",
    "vcpu",
    "msr",
    "release",
    "clean",
    "invlpgb",
];
/// What `host begin` can split.
const SPLIT: [&str; 3] = ["unmap", "zap-all", "dirty-log"];

/// The operations that `host begin` opened and no `host end` has closed yet.
pub(super) type Begun = Vec<(&'static str, HostOp)>;

/// What stands after `host`.
pub(super) fn host(words: &mut Cursor<'_>, begun: &mut Begun) -> Result<Op, TextError> {
    if words.take_if("begin") {
        let (_, name) = split_name(words)?;
        let op = host_op(words, name)?;
        begun.push((name, op));
        return Ok(Op::HostBegin(Box::new(op)));
    }
    if words.take_if("end") {
        return end(words, begun);
    }
    let word = words.need("a host operation")?;
    if word.text == "release" {
        return Ok(Op::Release { gpa: words.gpa()?, size: words.size_or_page()? });
    }
    match NAMES.iter().find(|name| **name == word.text) {
        Some(name) => Ok(Op::Host(Box::new(host_op(words, name)?))),
        None => {
            let known = [&NAMES[..], &["begin", "end"]].concat();
            Err(words.unknown(word, "host operation", word.text, &known))
        }
    }
}

/// `host end OP`, with the arguments of the last open `host begin OP` unless it names its own.
fn end(words: &mut Cursor<'_>, begun: &mut Begun) -> Result<Op, TextError> {
    let (word, name) = split_name(words)?;
    let open = begun.iter().rposition(|(n, _)| *n == name).map(|at| begun.remove(at).1);
    let op = match (words.peek(), open) {
        (None, Some(op)) => op,
        (None, None) if name != "zap-all" => {
            return Err(words.error(word, format!("no `host begin {name}` is open")));
        }
        _ => host_op(words, name)?,
    };
    Ok(Op::HostEnd(Box::new(op)))
}

fn split_name<'a>(words: &mut Cursor<'a>) -> Result<(Word<'a>, &'static str), TextError> {
    let word = words.need("the operation (`unmap`, `zap-all` or `dirty-log`)")?;
    match SPLIT.iter().find(|name| **name == word.text) {
        Some(name) => Ok((word, name)),
        None => Err(words.unknown(word, "operation that can be split", word.text, &SPLIT)),
    }
}

fn host_op(words: &mut Cursor<'_>, name: &str) -> Result<HostOp, TextError> {
    Ok(match name {
        "map" => host_map(words)?,
        "zap-all" => {
            // The table gives it a range like its neighbours; KVM zaps the whole VM all the same.
            if words.peek().is_some() {
                range(words)?;
            }
            HostOp::ZapAll
        }
        "memslot" => memslot(words)?,
        "migrate" => {
            let vcpu = words.vcpu()?;
            let word = words.need("a CPU such as `p1`")?;
            HostOp::Migrate { vcpu, pcpu: words.parse_pcpu(word)? }
        }
        "preempt" => HostOp::Preempt { vcpu: words.vcpu()? },
        "run" => HostOp::Run {
            vcpu: words.vcpu()?,
            pcpu: words.take().map(|word| words.parse_pcpu(word)).transpose()?,
        },
        "vcpu" => vcpu(words)?,
        "msr" => {
            let vcpu = words.vcpu()?;
            let word = words.need("the MSR (`efer`)")?;
            if word.text != "efer" {
                return Err(words.unknown(word, "MSR", word.text, &["efer"]));
            }
            HostOp::MsrEfer { vcpu, value: words.number("the value of EFER")? }
        }
        "invlpgb" => invlpgb(words)?,
        _ => ranged(name, words)?,
    })
}

fn range(words: &mut Cursor<'_>) -> Result<(Gpa, u64), TextError> {
    Ok((words.gpa()?, words.size_or_page()?))
}

/// The operations whose only arguments are GPA and SIZE.
fn ranged(name: &str, words: &mut Cursor<'_>) -> Result<HostOp, TextError> {
    let (gpa, size) = range(words)?;
    Ok(match name {
        "unmap" => HostOp::Unmap { gpa, size },
        "protect" => HostOp::Protect { gpa, size },
        "ro" => HostOp::Ro { gpa, size },
        "age" => HostOp::Age { gpa, size },
        "dirty-log" => HostOp::DirtyLog { gpa, size },
        "split" => HostOp::Split { gpa, size },
        "clean" => HostOp::Clean { gpa, size },
        _ => HostOp::Collapse { gpa, size },
    })
}

/// `map GPA [SIZE] [HPA]`: a lone number is the HPA, as sizes end in `k`, `m` or `g`; before an
/// HPA a number of bytes will do as well.
fn host_map(words: &mut Cursor<'_>) -> Result<HostOp, TextError> {
    let gpa = words.gpa()?;
    let Some(first) = words.take() else {
        return Ok(HostOp::Map { gpa, size: PAGE_BYTES, hpa: None });
    };
    let second = words.take();
    if second.is_none() && size(first.text).is_none() && number(first.text).is_some() {
        let hpa = words.parse_number(first, first.text, "a host-physical address")?;
        return Ok(HostOp::Map { gpa, size: PAGE_BYTES, hpa: Some(Hpa(hpa)) });
    }
    let size = words.parse_size(first)?;
    let hpa = second
        .map(|word| words.parse_number(word, word.text, "a host-physical address").map(Hpa))
        .transpose()?;
    Ok(HostOp::Map { gpa, size, hpa })
}

/// `invlpgb [va=GVA] [asid=N]`.
fn invlpgb(words: &mut Cursor<'_>) -> Result<HostOp, TextError> {
    let (mut va, mut asid) = (None, None);
    words.options(&["va", "asid"], |words, word, key, value| {
        match key {
            "va" => va = Some(Gva(words.value(word, key, value)?)),
            _ => asid = Some(Asid(words.value(word, key, value)?)),
        }
        Ok(())
    })?;
    Ok(HostOp::Invlpgb { va, asid })
}

fn memslot(words: &mut Cursor<'_>) -> Result<HostOp, TextError> {
    let word = words.need("`add`, `move` or `delete`")?;
    let change = match word.text {
        "add" => MemslotChange::Add,
        "move" => MemslotChange::Move,
        "delete" => MemslotChange::Delete,
        name => {
            return Err(words.unknown(word, "memslot change", name, &["add", "move", "delete"]));
        }
    };
    let (gpa, size) = range(words)?;
    Ok(HostOp::Memslot { change, gpa, size })
}

fn vcpu(words: &mut Cursor<'_>) -> Result<HostOp, TextError> {
    let word = words.need("`create` or `destroy`")?;
    match word.text {
        "create" => Ok(HostOp::VcpuCreate { vcpu: words.vcpu()? }),
        "destroy" => Ok(HostOp::VcpuDestroy { vcpu: words.vcpu()? }),
        name => Err(words.unknown(word, "vCPU operation", name, &["create", "destroy"])),
    }
}

/// `hvflush VCPUS [list=GVA+N,...]`.
pub(super) fn hvflush(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let mut flush = HvFlush { vcpus: words.vcpus()?, list: Vec::new() };
    words.options(&["list"], |words, word, _, value| {
        for item in value.unwrap_or("").split(',') {
            let (gva, more) = item.split_once('+').unwrap_or((item, "0"));
            let gva = Gva(words.parse_number(word, gva, "list")?);
            flush.list.push((gva, words.parse_small(word, more, "list")?));
        }
        Ok(())
    })?;
    Ok(Op::HvFlush(Box::new(flush)))
}

/// `l2enter [vpid=N] [eptp=ADDR|ncr3=ADDR] [cr3=ADDR] [cr4=V] [tlb-control=N] [fail]`.
pub(super) fn l2enter(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let mut enter = L2Enter::default();
    let known = ["vpid", "eptp", "ncr3", "cr3", "cr4", "tlb-control", "fail"];
    words.options(&known, |words, word, key, value| {
        match key {
            "vpid" => enter.vpid = Some(words.value(word, key, value)?),
            "eptp" => enter.eptp = Some(words.value(word, key, value)?),
            "ncr3" => enter.ncr3 = Some(words.value(word, key, value)?),
            "cr3" => enter.cr3 = Some(words.value(word, key, value)?),
            "cr4" => enter.cr4 = Some(words.value(word, key, value)?),
            "tlb-control" => enter.tlb_control = Some(words.value(word, key, value)?),
            _ => enter.fail = words.flag(word, value)?,
        }
        if enter.eptp.is_some() && enter.ncr3.is_some() {
            return Err(words.error(word, "`eptp` is Intel's and `ncr3` AMD's: one of them".into()));
        }
        Ok(())
    })?;
    Ok(Op::L2Enter(Box::new(enter)))
}

/// `l1 ...`.
pub(super) fn l1(words: &mut Cursor<'_>) -> Result<Op, TextError> {
    let word = words.need("an operation of L1")?;
    let op = match word.text {
        "invept" => L1Op::Invept {
            kind: words.number("the type of INVEPT")?,
            eptp: words.optional_number("an EPTP")?,
        },
        "invvpid" => L1Op::Invvpid {
            kind: words.number("the type of INVVPID")?,
            vpid: words.small("a VPID")?,
            gva: words.optional_number("a linear address")?.map(Gva),
        },
        "vmfunc" => L1Op::Vmfunc(words.number("an index of the EPTP list")?),
        "vmxon" => L1Op::Vmxon,
        "vmxoff" => L1Op::Vmxoff,
        name => {
            let known = ["invept", "invvpid", "vmfunc", "vmxon", "vmxoff"];
            return Err(words.unknown(word, "operation of L1", name, &known));
        }
    };
    Ok(Op::L1(Box::new(op)))
}
