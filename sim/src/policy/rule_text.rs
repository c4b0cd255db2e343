//! Rules as TOML: read from a rule list, and written back.

use tlbscope_trace::act::Request;
use tlbscope_trace::regs::Vendor;

use super::draft::{Key, at_key, boolean, list, string, table};
use super::knob::{KnobError, Value, nearest_hint, read_bits, write_bits};
use super::rule::{Action, HookName, Register, Rule, When, bits};

/// Actions that are one word.
const PLAIN: [(&str, Action); 10] = [
    ("mmu-reset", Action::MmuReset),
    ("mmu-init", Action::MmuInit),
    ("mmu-unload", Action::MmuUnload),
    ("mmu-reload", Action::MmuReload),
    ("free-obsolete-roots", Action::FreeObsoleteRoots),
    ("invalidate-pcid", Action::InvalidatePcid),
    ("new-pgd", Action::NewPgd),
    ("load-pdptrs", Action::LoadPdptrs),
    ("sync-now", Action::SyncNow),
    ("zap-all", Action::ZapAll),
];

/// Requests by their KVM names without KVM_REQ_.
const REQUESTS: [(&str, Request); 10] = [
    ("TLB_FLUSH", Request::TlbFlush),
    ("TLB_FLUSH_CURRENT", Request::TlbFlushCurrent),
    ("TLB_FLUSH_GUEST", Request::TlbFlushGuest),
    ("MMU_SYNC", Request::MmuSync),
    ("LOAD_MMU_PGD", Request::LoadMmuPgd),
    ("MMU_RELOAD", Request::MmuReload),
    ("MMU_FREE_OBSOLETE_ROOTS", Request::MmuFreeObsoleteRoots),
    ("HV_TLB_FLUSH", Request::HvTlbFlush),
    ("MMU_UPDATE_ROOT", Request::MmuUpdateRoot),
    ("STEAL_UPDATE", Request::StealUpdate),
];

/// Hooks.
const HOOKS: [(&str, HookName); 4] = [
    ("all", HookName::All),
    ("current", HookName::Current),
    ("guest", HookName::Guest),
    ("gva", HookName::Gva),
];

/// INVPCID types, in the order of their numbers.
const TYPES: [&str; 4] = ["addr", "single", "all", "all-nonglobal"];

/// Keys of a rule.
const RULE_KEYS: [&str; 6] = ["id", "about", "source", "else", "when", "do"];

/// The entry of that name, or a sentence that offers the nearest.
fn find<T: Copy>(table: &[(&str, T)], word: &str, what: &str) -> Result<T, String> {
    match table.iter().find(|(name, _)| *name == word) {
        Some((_, found)) => Ok(*found),
        None => {
            let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            Err(format!("unknown {what} \"{word}\"{}", nearest_hint(word, &names)))
        }
    }
}

/// Reads a rule list.
pub(super) fn read_rules(register: Register, value: &Value<'_>) -> Result<Vec<Rule>, KnobError> {
    let mut rules: Vec<Rule> = Vec::new();
    for item in list(value)? {
        let number = rules.len() + 1;
        let rule = read_rule(register, item, number)?;
        if rules.iter().any(|earlier| earlier.id == rule.id) {
            let message = format!("two {} rules have the id \"{}\"", register.key(), rule.id);
            return Err(KnobError::new(item, message));
        }
        if rule.or_else && number == 1 {
            return Err(KnobError::new(item, "the first rule of a list cannot have else = true"));
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn read_rule(register: Register, value: &Value<'_>, number: usize) -> Result<Rule, KnobError> {
    let mut rule = Rule {
        id: format!("{}-{number}", register.key()),
        about: String::new(),
        source: String::new(),
        or_else: false,
        when: When::All(Box::default()),
        actions: Vec::new(),
    };
    let mut says_do = false;
    for (key, item) in table(value)? {
        match key.get_ref().as_ref() {
            "id" => rule.id = string(item)?.to_owned(),
            "about" => rule.about = string(item)?.to_owned(),
            "source" => rule.source = string(item)?.to_owned(),
            "else" => rule.or_else = boolean(item)?,
            "when" => rule.when = read_when(register, item)?,
            "do" => {
                says_do = true;
                for action in list(item)? {
                    rule.actions.push(read_action(action)?);
                }
            }
            word => {
                let hint = nearest_hint(word, &RULE_KEYS);
                return Err(at_key(key, format!("unknown key \"{word}\" in a rule{hint}")));
            }
        }
    }
    if says_do {
        Ok(rule)
    } else {
        Err(KnobError::new(value, format!("the rule \"{}\" has no do = [...]", rule.id)))
    }
}

fn read_action(value: &Value<'_>) -> Result<Action, KnobError> {
    let text = string(value)?;
    let at = |message| KnobError::new(value, message);
    match text.split_once(' ') {
        Some(("request", name)) => {
            let name = name.strip_prefix("KVM_REQ_").unwrap_or(name);
            find(&REQUESTS, name, "request").map(Action::Request).map_err(at)
        }
        Some(("flush-hook", name)) => {
            let name = name.to_ascii_lowercase();
            find(&HOOKS, &name, "flush hook").map(Action::FlushHook).map_err(at)
        }
        _ => {
            if let Ok(action) = find(&PLAIN, text, "action") {
                return Ok(action);
            }
            let mut known: Vec<&str> = PLAIN.iter().map(|(name, _)| *name).collect();
            known.extend(["request NAME", "flush-hook NAME"]);
            let first = text.split(' ').next().unwrap_or_default();
            let hint = match first {
                "request" | "flush-hook" => format!("; {first} needs a name"),
                _ => nearest_hint(text, &known),
            };
            Err(at(format!("unknown action \"{text}\"{hint}")))
        }
    }
}

/// Whether a condition makes sense for rules of a register.
fn applies(key: &str, register: Register) -> bool {
    use Register::{Cr0, Cr3, Cr4, Efer, Init, Invlpg, Invpcid};
    match key {
        "changed" | "set" | "cleared" | "only" | "was" | "now" => {
            matches!(register, Cr0 | Cr4 | Efer | Init)
        }
        "same" | "noflush" | "pae" => register == Cr3,
        "pcide" => matches!(register, Cr3 | Invlpg | Invpcid),
        "noncoherent-dma" => register == Cr0,
        "init" => register == Init,
        "type" => register == Invpcid,
        _ => true,
    }
}

/// Keys of a condition.
const WHEN_KEYS: [&str; 18] = [
    "changed",
    "set",
    "cleared",
    "only",
    "was",
    "now",
    "tdp",
    "vendor",
    "any",
    "all",
    "not",
    "same",
    "noflush",
    "pcide",
    "pae",
    "noncoherent-dma",
    "init",
    "type",
];

/// The bits of a register; those of CR0 for INIT.
fn bits_of(register: Register) -> &'static [(&'static str, u64)] {
    match register {
        Register::Cr4 => bits::CR4,
        Register::Efer => bits::EFER,
        _ => bits::CR0,
    }
}

fn read_when(register: Register, value: &Value<'_>) -> Result<When, KnobError> {
    let mut parts = Vec::new();
    for (key, item) in table(value)? {
        parts.push(read_condition(register, key, item)?);
    }
    Ok(match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            When::All(parts.into())
        }
        None => When::All(Box::default()),
    })
}

fn read_condition(register: Register, key: &Key<'_>, value: &Value<'_>) -> Result<When, KnobError> {
    let word = key.get_ref().as_ref();
    if !WHEN_KEYS.contains(&word) {
        let hint = nearest_hint(word, &WHEN_KEYS);
        return Err(at_key(key, format!("unknown condition \"{word}\"{hint}")));
    }
    if !applies(word, register) {
        let message = format!("\"{word}\" is no condition of {} rules", register.key());
        return Err(at_key(key, message));
    }
    let mask = || read_bits(value, bits_of(register));
    Ok(match word {
        "changed" => When::Changed(mask()?),
        "set" => When::Set(mask()?),
        "cleared" => When::Cleared(mask()?),
        "only" => When::Only(mask()?),
        "was" => When::Was(mask()?),
        "now" => When::Now(mask()?),
        "tdp" => When::Tdp(boolean(value)?),
        "same" => When::Same(boolean(value)?),
        "noflush" => When::Noflush(boolean(value)?),
        "pcide" => When::Pcide(boolean(value)?),
        "pae" => When::Pae(boolean(value)?),
        "noncoherent-dma" => When::NoncoherentDma(boolean(value)?),
        "init" => When::Init(boolean(value)?),
        "vendor" => When::Vendor(read_vendor(value)?),
        "type" => When::Type(read_types(value)?),
        "any" => When::Any(read_list(register, value)?),
        "all" => When::All(read_list(register, value)?),
        _ => When::Not(Box::new(read_when(register, value)?)),
    })
}

fn read_list(register: Register, value: &Value<'_>) -> Result<Box<[When]>, KnobError> {
    list(value)?.iter().map(|item| read_when(register, item)).collect()
}

fn read_vendor(value: &Value<'_>) -> Result<Vendor, KnobError> {
    let vendors = [("intel", Vendor::Intel), ("amd", Vendor::Amd)];
    find(&vendors, string(value)?, "vendor").map_err(|m| KnobError::new(value, m))
}

/// One INVPCID type or a list of them.
fn read_types(value: &Value<'_>) -> Result<u8, KnobError> {
    let one = |item: &Value<'_>| {
        let numbered = [0, 1, 2, 3].map(|n: usize| (TYPES[n], 1u8 << n));
        find(&numbered, string(item)?, "INVPCID type").map_err(|m| KnobError::new(item, m))
    };
    if value.get_ref().is_str() {
        return one(value);
    }
    list(value)?.iter().try_fold(0, |mask, item| Ok(mask | one(item)?))
}

/// The name in a table of names of a value that every table holds.
fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, v)| v == value).map_or("?", |(name, _)| name)
}

impl Action {
    /// As written in a policy.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Request(r) => format!("request {}", name_of(&REQUESTS, r)),
            Self::FlushHook(h) => format!("flush-hook {}", name_of(&HOOKS, h)),
            plain => name_of(&PLAIN, plain).to_owned(),
        }
    }
}

impl When {
    /// As written in a policy: an inline table.
    #[must_use]
    pub fn text(&self, register: Register) -> String {
        format!("{{ {} }}", self.pairs(register))
    }

    /// The pairs of the table. The parts of an `all` keep their own tables, since two may have
    /// the same key.
    fn pairs(&self, register: Register) -> String {
        let mask = |m: u64| write_bits(m, bits_of(register));
        let each = |list: &[Self]| {
            let texts: Vec<String> = list.iter().map(|w| w.text(register)).collect();
            texts.join(", ")
        };
        match self {
            Self::Changed(m) => format!("changed = {}", mask(*m)),
            Self::Set(m) => format!("set = {}", mask(*m)),
            Self::Cleared(m) => format!("cleared = {}", mask(*m)),
            Self::Only(m) => format!("only = {}", mask(*m)),
            Self::Was(m) => format!("was = {}", mask(*m)),
            Self::Now(m) => format!("now = {}", mask(*m)),
            Self::Tdp(v) => format!("tdp = {v}"),
            Self::Same(v) => format!("same = {v}"),
            Self::Noflush(v) => format!("noflush = {v}"),
            Self::Pcide(v) => format!("pcide = {v}"),
            Self::Pae(v) => format!("pae = {v}"),
            Self::NoncoherentDma(v) => format!("noncoherent-dma = {v}"),
            Self::Init(v) => format!("init = {v}"),
            Self::Vendor(Vendor::Intel) => "vendor = \"intel\"".to_owned(),
            Self::Vendor(Vendor::Amd) => "vendor = \"amd\"".to_owned(),
            Self::Type(m) => {
                let types: Vec<String> = (0..4)
                    .filter(|n| m >> n & 1 != 0)
                    .map(|n| format!("\"{}\"", TYPES[n]))
                    .collect();
                format!("type = [{}]", types.join(", "))
            }
            Self::Any(list) => format!("any = [{}]", each(list)),
            Self::All(list) => format!("all = [{}]", each(list)),
            Self::Not(w) => format!("not = {}", w.text(register)),
        }
    }
}
