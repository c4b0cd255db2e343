//! The operations of case files (`fields.ops` of the format), as instructions of a processor.

use serde_json::Value;
use tlbscope_sim::arch::processor::{Broadcast, Instruction, Stride};
use tlbscope_trace::addr::{Asid, Gpa, Gva, Pcid, PcpuId, Vpid};

use super::case::{Missing, cpu, unknown};
use super::file::{Number, RawOp};

/// One operation.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// An instruction or event on one processor; `None`: where the guest context is.
    Step(Option<PcpuId>, Instruction),
    /// The guest context goes on elsewhere; cached entries stay where they are.
    Migrate(PcpuId),
}

/// Every operation with its operands, those that may be left out after a `?`.
const OPERATIONS: [(&str, &[&str]); 29] = [
    ("mov_cr0", &["value"]),
    ("mov_cr3", &["value"]),
    ("mov_cr4", &["value"]),
    ("wrmsr_efer", &["value"]),
    ("invlpg", &["va"]),
    ("invpcid", &["type", "pcid?", "va?", "desc_lo?"]),
    ("invlpga", &["va", "asid"]),
    ("invlpgb", &["valid", "va?", "pcid?", "asid?", "include_global?", "count?", "stride?"]),
    ("tlbsync", &[]),
    ("invvpid", &["type", "vpid?", "va?", "desc_lo?"]),
    ("invept", &["type", "eptp?"]),
    ("vmfunc_eptp_switch", &["eptp"]),
    ("vmxon", &[]),
    ("vmxoff", &[]),
    ("vm_entry", &["enable_vpid", "guest_vpid?", "guest_cr3?", "guest_cr4?"]),
    ("vm_exit", &["enable_vpid?", "guest_vpid?", "guest_cr3?", "guest_cr4?"]),
    ("vmrun", &["asid", "tlb_control?"]),
    ("vmexit_svm", &[]),
    ("page_fault", &["va", "error_code?"]),
    ("ept_violation", &["va", "gpa"]),
    ("task_switch", &["new_cr3"]),
    ("init", &[]),
    ("reset", &[]),
    ("smi", &[]),
    ("rsm", &[]),
    ("a20m", &[]),
    ("write_pte", &["va", "bit?", "to?"]),
    ("write_ept_pte", &["gpa", "bit?", "to?", "eptp?"]),
    ("write_npt_pte", &["gpa", "bit?", "to?", "eptp?"]),
];

/// Writes of these say nothing but that the value changes.
const CHANGES: [&str; 3] = ["wrmsr_mtrr", "wrmsr_pat", "wrpkru"];
const MIGRATE: &str = "migrate_vcpu";

/// The operands of one operation.
struct Operands<'a>(&'a RawOp);

impl Operands<'_> {
    fn number(&self, key: &str) -> Result<Option<u64>, Missing> {
        let wrong = |value: &Value| format!("`{key}` of `{}` is {value}", self.0.name);
        match self.0.operands.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(bit)) => Ok(Some(u64::from(*bit))),
            Some(value @ Value::String(text)) => {
                Number::parse(text).map(|n| Some(n.0)).ok_or_else(|| wrong(value))
            }
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(value)),
        }
    }

    fn or_zero(&self, key: &str) -> Result<u64, Missing> {
        Ok(self.number(key)?.unwrap_or_default())
    }

    fn needed(&self, key: &str) -> Result<u64, Missing> {
        self.number(key)?.ok_or_else(|| format!("`{}` needs `{key}`", self.0.name))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Missing> {
        Ok(self.number(key)?.map(|n| n != 0))
    }

    fn narrow<T: TryFrom<u64>>(&self, key: &str, value: u64) -> Result<T, Missing> {
        let wide = |_| format!("`{key}` of `{}` is too large: {value:#x}", self.0.name);
        T::try_from(value).map_err(wide)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.operands.get(key).and_then(Value::as_str)
    }
}

/// Reads an operation.
pub(super) fn parse(raw: &RawOp) -> Result<Operation, Missing> {
    let operands = Operands(raw);
    check(raw)?;
    if raw.name == MIGRATE {
        return Ok(Operation::Migrate(cpu(Number(operands.needed("to_cpu")?))?));
    }
    let on = operands.number("cpu")?.map(|n| cpu(Number(n))).transpose()?;
    Ok(Operation::Step(on, instruction(&raw.name, &operands)?))
}

/// Whether name and operands are known.
fn check(raw: &RawOp) -> Result<(), Missing> {
    let named = OPERATIONS.iter().find(|(name, _)| *name == raw.name).map(|(_, keys)| *keys);
    let known: &[&str] = match named {
        Some(keys) => keys,
        None if raw.name == MIGRATE => &["to_cpu"],
        None if CHANGES.contains(&raw.name.as_str()) => &["value?", "msr?"],
        None => {
            let names = OPERATIONS.iter().map(|(name, _)| *name).chain(CHANGES).chain([MIGRATE]);
            return Err(format!("{} is not modelled", unknown(&raw.name, names)));
        }
    };
    let keys = || known.iter().map(|key| key.trim_end_matches('?')).chain(["cpu", "note"]);
    match raw.operands.keys().find(|key| !keys().any(|known| known == key.as_str())) {
        None => Ok(()),
        Some(key) => Err(format!("`{}` takes no operand {}", raw.name, unknown(key, keys()))),
    }
}

fn instruction(name: &str, o: &Operands<'_>) -> Result<Instruction, Missing> {
    let gva = |key: &str| o.needed(key).map(Gva);
    Ok(match name {
        "mov_cr0" => Instruction::MovCr0(o.needed("value")?),
        "mov_cr3" => Instruction::MovCr3(o.needed("value")?),
        "mov_cr4" => Instruction::MovCr4(o.needed("value")?),
        "wrmsr_efer" => Instruction::WrmsrEfer(o.needed("value")?),
        "wrmsr_mtrr" => Instruction::WrmsrMtrr,
        "wrmsr_pat" => Instruction::WrmsrPat,
        "wrpkru" => Instruction::Wrpkru,
        "invlpg" => Instruction::Invlpg(gva("va")?),
        "invpcid" => Instruction::Invpcid {
            kind: o.needed("type")?,
            descriptor: o.number("desc_lo")?.map_or_else(|| o.or_zero("pcid"), Ok)?,
            gva: Gva(o.or_zero("va")?),
        },
        "invlpga" => Instruction::Invlpga {
            gva: gva("va")?,
            asid: Asid(o.narrow("asid", o.needed("asid")?)?),
        },
        "invlpgb" => Instruction::Invlpgb(broadcast(o)?),
        "tlbsync" => Instruction::Tlbsync,
        "invvpid" => Instruction::Invvpid {
            kind: o.needed("type")?,
            descriptor: o.number("desc_lo")?.map_or_else(|| o.or_zero("vpid"), Ok)?,
            gva: Gva(o.or_zero("va")?),
        },
        "invept" => Instruction::Invept { kind: o.needed("type")?, eptp: o.or_zero("eptp")? },
        "vmfunc_eptp_switch" => Instruction::VmfuncEptp(o.needed("eptp")?),
        "vmxon" => Instruction::Vmxon,
        "vmxoff" => Instruction::Vmxoff,
        "vm_entry" => vm_entry(o)?,
        "vm_exit" => Instruction::VmExit { vpids: o.flag("enable_vpid")? },
        "vmrun" => Instruction::Vmrun {
            asid: o.narrow("asid", o.needed("asid")?)?,
            control: o.or_zero("tlb_control")?,
        },
        "vmexit_svm" => Instruction::SvmExit,
        "page_fault" => Instruction::PageFault(gva("va")?),
        "ept_violation" => {
            Instruction::EptViolation { gva: gva("va")?, gpa: Gpa(o.needed("gpa")?) }
        }
        "task_switch" => Instruction::TaskSwitch(o.needed("new_cr3")?),
        "init" => Instruction::Init,
        "reset" => Instruction::Reset,
        "smi" => Instruction::Smi,
        "rsm" => Instruction::Rsm,
        "a20m" => Instruction::A20m,
        _ => Instruction::Store,
    })
}

fn vm_entry(o: &Operands<'_>) -> Result<Instruction, Missing> {
    let number =
        o.number("guest_vpid")?.map(|n| o.narrow("guest_vpid", n).map(Vpid)).transpose()?;
    let enabled = o.needed("enable_vpid")? != 0;
    Ok(Instruction::VmEntry {
        vpid: enabled.then_some(number),
        cr3: o.number("guest_cr3")?,
        cr4: o.number("guest_cr4")?,
    })
}

fn broadcast(o: &Operands<'_>) -> Result<Broadcast, Missing> {
    let valid = o.text("valid").ok_or("`invlpgb` needs `valid`, a list of va, pcid and asid")?;
    let words = || valid.split([',', ' ']).filter(|word| !word.is_empty());
    if let Some(word) = words().find(|word| !["va", "pcid", "asid"].contains(word)) {
        return Err(format!(
            "`valid` of `invlpgb` names {}",
            unknown(word, ["va", "pcid", "asid"])
        ));
    }
    let named = |key: &str| words().any(|word| word == key).then(|| o.needed(key)).transpose();
    let stride = match o.text("stride") {
        Some("2M" | "2m") => Stride::Large,
        Some("4K" | "4k") => Stride::Small,
        Some(other) => return Err(format!("`stride` of `invlpgb` is {other}, not 4K or 2M")),
        None if o.number("stride")?.is_some_and(|n| n == 1 || n == Stride::Large.bytes()) => {
            Stride::Large
        }
        None => Stride::Small,
    };
    let pcid = named("pcid")?.map(|n| o.narrow("pcid", n).map(Pcid)).transpose()?;
    let asid = named("asid")?.map(|n| o.narrow("asid", n).map(Asid)).transpose()?;
    Ok(Broadcast {
        va: named("va")?.map(Gva),
        pcid,
        asid,
        global: o.flag("include_global")?.unwrap_or(false),
        extra: o.narrow("count", o.or_zero("count")?)?,
        stride,
    })
}
