//! Random machines, policies and event lists, and a run of them that both oracles watch.

mod events;
pub mod nested;
mod policies;
mod watch;

use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tlbscope_sim::machine::config::{MachineConfig, Mode};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::{MmuKind, Vendor};
use tlbscope_trace::text::write_event;

pub use events::PAGES;
pub use policies::{Pick, policy};
pub use watch::{Run, alone, alone_list, run, run_list};

/// Events of one list at most; half of it on average.
const LIST: usize = 60;

/// A machine, a policy and what is done on it.
#[derive(Clone)]
pub struct Case {
    pub machine: MachineConfig,
    pub policy: Pick,
    pub events: Vec<Event>,
}

/// A whole scenario file, which holds as soon as what the shrunken case shows is mended.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.machine;
        writeln!(f, "name = \"random\"\nabout = \"A shrunken case.\"\nsource = \"random lists\"")?;
        writeln!(f, "\nevents = '''")?;
        for event in &self.events {
            writeln!(f, "{}", write_event(event))?;
        }
        writeln!(f, "'''\n[machine]\nvcpus = {}\npcpus = {}", m.vcpus, m.pcpus)?;
        let vendor = if m.vendor == Vendor::Amd { "amd" } else { "intel" };
        let mmu = if m.mmu == MmuKind::Tdp { "tdp" } else { "shadow" };
        writeln!(f, "vendor = \"{vendor}\"\nmmu = \"{mmu}\"\nmode = \"{}\"", mode_name(m.mode))?;
        writeln!(f, "steal-time = {}\nhyperv = {}", m.steal_time, m.hyperv)?;
        writeln!(f, "tlb = \"{}\"\nvpid = {}", m.tlb, m.vpid)?;
        write!(f, "{}", self.policy)?;
        write!(f, "\n[expect.{}]\nmissed = []\nexposed = []", self.policy.name())
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

/// The modes that lists start in.
pub const MODES: [Mode; 4] = [Mode::Level4, Mode::Level5, Mode::Pae, Mode::Bits32];

fn machine() -> impl Strategy<Value = MachineConfig> {
    let vendor = prop::sample::select(vec![Vendor::Intel, Vendor::Amd]);
    let mmu = prop::sample::select(vec![MmuKind::Tdp, MmuKind::Shadow]);
    let mode = prop::sample::select(MODES.to_vec());
    let named = prop::bool::weighted(0.25);
    (vendor, mmu, mode, 1u16..3, 1u16..3, named, prop::bool::weighted(0.85)).prop_map(
        |(vendor, mmu, mode, vcpus, pcpus, named, vpid)| {
            let processor = if vendor == Vendor::Amd { "zen2" } else { "skylake-sp" };
            let tlb = if named { processor } else { "unbounded" }.to_owned();
            let (steal_time, hyperv) = (vcpus > 1, vcpus % 2 == 0);
            let config =
                MachineConfig { vendor, mmu, mode, vcpus, pcpus, tlb, vpid, ..Default::default() };
            MachineConfig { steal_time, hyperv, ..config }
        },
    )
}

/// Cases under the policies that `picks` gives.
pub fn cases(picks: impl Strategy<Value = Pick>) -> impl Strategy<Value = Case> {
    (machine(), picks).prop_flat_map(|(machine, policy)| {
        events::list(&machine, LIST).prop_map(move |events| Case {
            machine: machine.clone(),
            policy: policy.clone(),
            events,
        })
    })
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Holds a property on as many random lists as make about `TLBSCOPE_RANDOM_EVENTS` events (by
/// default 6000), from the seed `TLBSCOPE_RANDOM_SEED`.
pub fn check(cases: &impl Strategy<Value = Case>, holds: impl Fn(&Case) -> Result<(), String>) {
    check_lists(number("TLBSCOPE_RANDOM_EVENTS", 6_000) / (LIST as u64 / 2), cases, holds);
}

/// The same, on so many lists: for a property that costs much at each event.
pub fn check_lists(
    lists: u64,
    cases: &impl Strategy<Value = Case>,
    holds: impl Fn(&Case) -> Result<(), String>,
) {
    let seed = number("TLBSCOPE_RANDOM_SEED", 1);
    let config = Config {
        cases: u32::try_from(lists).unwrap_or(u32::MAX).max(1),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    match runner.run(cases, |case| holds(&case).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => {
            panic!("TLBSCOPE_RANDOM_SEED={seed}: {why}\nshrunk to:\n{case:?}")
        }
        Err(TestError::Abort(why)) => panic!("TLBSCOPE_RANDOM_SEED={seed}: gave up: {why}"),
    }
}
