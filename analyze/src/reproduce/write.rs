//! The scenario file of a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use tlbscope_sim::arch::required;
use tlbscope_sim::machine::config::{MachineConfig, Mode};
use tlbscope_sim::policy;
use tlbscope_trace::act::Outcome;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::regs::{MmuKind, Vendor};
use tlbscope_trace::text;
use toml::{Table, Value};

use super::Subject;
use super::judge::{Case, Run, Wanted};
use super::own_policy;
use crate::finding::{Class, Finding, Kind};
use crate::replay::Setup;

/// The policy that a right hypervisor is held to beside the finding's own.
const RIGHT: &str = "hw-min";

/// The file; `None` where the case cannot be run.
pub(super) fn scenario(
    case: &Case,
    wanted: &Wanted<'_>,
    setup: &Setup,
    subject: &Subject<'_>,
    looked_at: usize,
) -> Option<String> {
    let vcpu = VcpuId(wanted.finding.vcpu);
    let run = case.run(wanted.policy, vcpu)?;
    let right = policy::load(RIGHT).ok().and_then(|right| case.run(&right, vcpu));
    let key = Key::of(wanted.finding.kind);
    let told: Vec<&Finding> = run.findings.kept().iter().filter(|f| key.takes(f.kind)).collect();
    let labels = labels(case, wanted.finding, &told);
    let (name, own) = own_policy::table(wanted.policy)?;
    let mut out = head(wanted.finding, setup, subject, &name, looked_at);
    out += &events(case, wanted.finding, &labels, right.as_ref());
    out += &machine(&case.machine);
    if let Some(table) = own {
        let policies = Table::from_iter([(name.clone(), Value::Table(table))]);
        let document = Table::from_iter([("policy".to_owned(), Value::Table(policies))]);
        let _ = write!(out, "\n{}", toml::to_string(&document).ok()?);
    }
    let _ = write!(out, "\n[expect.{}]\n{}", bare(&name), key.expectation(&told, &labels)?);
    // What a right hypervisor shows, where that is nothing.
    let clean = |right: &Run| !right.findings.kept().iter().any(|f| key.takes(f.kind));
    if name != RIGHT && right.as_ref().is_some_and(clean) {
        let _ = write!(out, "\n[expect.{RIGHT}]\n{} = []\n", key.name());
    }
    Some(out)
}

/// The keys above the list.
fn head(
    finding: &Finding,
    setup: &Setup,
    subject: &Subject<'_>,
    policy: &str,
    looked_at: usize,
) -> String {
    let verdict = Key::of(finding.kind).name();
    let rule = required::rule(finding.rule);
    let sentence = rule.map_or("", |rule| rule.sentence);
    let citation = rule.map_or("", |rule| rule.citation);
    let event = finding.cause;
    let line = subject.cited.get(&event).map_or(0, |(_, line)| *line);
    let place = if line == 0 { String::new() } else { format!(", line {line}") };
    let about = format!(
        "{verdict} under {policy}: {} on v{} [{}]. {sentence}",
        finding.op, finding.vcpu, finding.rule
    );
    let source = format!(
        "Cut from {}, finding {} under {policy} (event {event}{place}), out of {looked_at} \
         operations. {citation}",
        setup.trace, subject.number
    );
    let name = format!("{verdict}-{}-event-{event}", finding.rule);
    format!(
        "name = {}\nabout = {}\nsource = {}\n",
        quoted(&name),
        quoted(about.trim_end()),
        quoted(source.trim_end())
    )
}

/// The names of the events that the expectation speaks of, by their place in the list.
fn labels(case: &Case, finding: &Finding, told: &[&Finding]) -> BTreeMap<u64, String> {
    let mut labels = BTreeMap::new();
    let events: BTreeSet<u64> =
        told.iter().flat_map(|f| [Some(f.cause), f.use_]).flatten().collect();
    for at in events {
        let item = usize::try_from(at).ok().and_then(|at| case.items.get(at));
        let Some(item) = item else { continue };
        let label = match item.origin {
            Some((n, _)) if n == finding.cause => "cause".to_owned(),
            Some((n, _)) if Some(n) == finding.use_ => "use".to_owned(),
            Some((n, _)) => format!("event-{n}"),
            None => format!("start-{at}"),
        };
        labels.insert(at, label);
    }
    labels
}

/// The list of events.
fn events(
    case: &Case,
    finding: &Finding,
    labels: &BTreeMap<u64, String>,
    right: Option<&Run>,
) -> String {
    let width = labels.values().map(String::len).max().unwrap_or(0) + 1;
    let mut out = String::from("\nevents = '''\n");
    let mut started = false;
    for (at, item) in case.items.iter().enumerate() {
        match item.origin {
            None if at == 0 => out += "# The state at the start.\n",
            Some(_) if !std::mem::replace(&mut started, true) && at > 0 => {
                out += "# What happens.\n";
            }
            _ => {}
        }
        let label = labels.get(&(at as u64)).map_or(String::new(), |label| format!("{label}:"));
        let actor = match item.event.actor {
            Actor::Vcpu(v) => v.to_string(),
            Actor::Host => "host".to_owned(),
        };
        let mut line = format!("  {label:width$} {actor} {}", text::write_op(&item.event.op));
        // What the use comes to on a right machine.
        if item.origin.is_some_and(|(n, _)| Some(n) == finding.use_)
            && matches!(item.event.op, Op::Access(_))
            && let Some(outcome) = right.and_then(|run| run.steps.get(at)).and_then(|s| s.outcome)
        {
            line += &match outcome {
                Outcome::Gpa(gpa) => format!(" = {gpa}"),
                Outcome::Fault(code) => format!(" = fault:{code:#x}"),
            };
        }
        if let Some((n, source)) = item.origin {
            let place = if source == 0 { String::new() } else { format!(", line {source}") };
            line = format!("{line:48}  # event {n}{place}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out + "'''\n"
}

/// The table of what is not as by default.
fn machine(config: &MachineConfig) -> String {
    let MachineConfig {
        vcpus,
        pcpus,
        vendor,
        mmu,
        mode,
        tlb,
        vpid,
        features,
        memory,
        maxphyaddr,
        unrestricted,
        ept_ad,
        pml,
        flushbyasid,
        enlightened_npt,
        apic_page,
        decode_assists,
        invvpid,
        invept,
        vpids,
        asids,
        tdp_mmu,
        steal_time,
        hyperv,
        noncoherent_dma,
        unsync,
        ipi_latency,
        errata,
    } = config;
    let default = MachineConfig::default();
    let names = |names: Vec<&'static str>| Value::from(names).to_string();
    let mut rows = vec![
        ("vcpus", vcpus.to_string(), *vcpus == default.vcpus),
        ("pcpus", pcpus.to_string(), *pcpus == default.pcpus),
        // Said also where it is the default: who reads it wants to know.
        ("vendor", quoted(vendor_name(*vendor)), false),
        ("mmu", quoted(mmu_name(*mmu)), false),
        ("mode", quoted(mode_name(*mode)), false),
        ("tlb", quoted(tlb), *tlb == default.tlb),
        ("features", names(features.names().collect()), *features == default.features),
        ("memory", memory.to_string(), *memory == default.memory),
        ("maxphyaddr", maxphyaddr.to_string(), *maxphyaddr == default.maxphyaddr),
        ("invvpid", names(invvpid.names().collect()), *invvpid == default.invvpid),
        ("invept", names(invept.names().collect()), *invept == default.invept),
        ("vpids", vpids.to_string(), *vpids == default.vpids),
        ("asids", asids.to_string(), *asids == default.asids),
        ("ipi-latency", ipi_latency.to_string(), *ipi_latency == default.ipi_latency),
        ("errata", names(errata.names().collect()), *errata == default.errata),
    ];
    let flags = [
        ("vpid", *vpid, default.vpid),
        ("unrestricted", *unrestricted, default.unrestricted),
        ("ept-ad", *ept_ad, default.ept_ad),
        ("pml", *pml, default.pml),
        ("flushbyasid", *flushbyasid, default.flushbyasid),
        ("enlightened-npt", *enlightened_npt, default.enlightened_npt),
        ("apic-page", *apic_page, default.apic_page),
        ("decode-assists", *decode_assists, default.decode_assists),
        ("tdp-mmu", *tdp_mmu, default.tdp_mmu),
        ("steal-time", *steal_time, default.steal_time),
        ("hyperv", *hyperv, default.hyperv),
        ("noncoherent-dma", *noncoherent_dma, default.noncoherent_dma),
        ("unsync", *unsync, default.unsync),
    ];
    rows.extend(flags.map(|(key, value, default)| (key, value.to_string(), value == default)));
    let said = rows.iter().filter(|(_, _, default)| !default);
    let lines: String = said.map(|(key, value, _)| format!("{key} = {value}\n")).collect();
    format!("\n[machine]\n{lines}")
}

const fn vendor_name(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Intel => "intel",
        Vendor::Amd => "amd",
    }
}

const fn mmu_name(mmu: MmuKind) -> &'static str {
    match mmu {
        MmuKind::Shadow => "shadow",
        MmuKind::Tdp => "tdp",
    }
}

const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Real => "real",
        Mode::Bits32 => "32-bit",
        Mode::Pae => "pae",
        Mode::Level4 => "4-level",
        Mode::Level5 => "5-level",
    }
}

/// A key of an expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Missed,
    Exposed,
    Latent,
    Advised,
    Excessive,
}

impl Key {
    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Missed { .. } => Self::Missed,
            Kind::Exposed => Self::Exposed,
            Kind::Latent => Self::Latent,
            Kind::Advised => Self::Advised,
            Kind::Excessive(_) => Self::Excessive,
        }
    }

    /// Whether a finding of this kind stands under this key. Bookkeeping is no finding.
    fn takes(self, kind: Kind) -> bool {
        Self::of(kind) == self && kind != Kind::Excessive(Class::Bookkeeping)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::Exposed => "exposed",
            Self::Latent => "latent",
            Self::Advised => "advised",
            Self::Excessive => "excessive",
        }
    }

    /// Everything of this kind that the list shows.
    fn expectation(self, told: &[&Finding], labels: &BTreeMap<u64, String>) -> Option<String> {
        let label = |event: u64| labels.get(&event).map(|label| quoted(label));
        let one = |f: &&Finding| match self {
            Self::Missed => Some(format!(
                "{{ use = {}, cause = {} }}",
                label(f.use_.unwrap_or(u64::MAX))?,
                label(f.cause)?
            )),
            _ => label(f.cause),
        };
        let all: BTreeSet<String> = told.iter().map(one).collect::<Option<_>>()?;
        let all: Vec<String> = all.into_iter().collect();
        let list = match &all[..] {
            [one] => format!("[{one}]"),
            many => format!("[\n    {},\n]", many.join(",\n    ")),
        };
        Some(format!("{} = {list}\n", self.name()))
    }
}

/// A key of TOML: without quotes where it needs none.
fn bare(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { quoted(text) }
}

/// A string of TOML on one line: what a trace calls itself may hold anything.
fn quoted(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Value::from(plain).to_string()
}
