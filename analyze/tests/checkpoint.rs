//! A run that is stopped, kept and taken up again is the run that was not stopped.

// The lists only: whether both judges agree on them is asked elsewhere.
#[allow(dead_code, unused_imports)]
mod chance;

use std::fs;
use std::path::{Path, PathBuf};

use chance::{Case, Pick, cases, check_lists, policy};
use tlbscope_analyze::replay::{
    By, CheckpointError, Checkpoints, IdentityPart, Replay, Run, Setup, Wanted, checkpointed, open,
};
use tlbscope_sim::machine;
use tlbscope_sim::policy::{self, Policy};
use tlbscope_trace::generate::{Generator, Options, Profile};
use tlbscope_trace::native::{Packing, Writer};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::{MmuKind, Vendor};
use tlbscope_trace::{Body, Record};

/// Findings kept of each group.
const KEPT: usize = 3;

/// As much as can be: the numbers taken apart as well.
fn wanted() -> Wanted {
    Wanted { by: Some(By::Transition), ..KEPT.into() }
}

fn start(case: &Case) -> Run {
    let machine = case.machine.clone();
    let processor = machine::load(&machine.tlb).unwrap();
    let setup = Setup { trace: "random".to_owned(), machine, processor, regs: Vec::new() };
    Run::new(&setup, &policy(&case.policy), &wanted()).unwrap()
}

fn state(run: &Run) -> Vec<u8> {
    let mut state = Vec::new();
    run.save(&mut state).unwrap();
    state
}

/// Every field of a run, of whatever is in it, in an order that no hash map decides.
fn fields(run: &Run) -> Vec<String> {
    let mut lines: Vec<String> = format!("{run:#?}").lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// One run goes through; the other is written and read again before every event. A field that is
/// not written shows in what is printed of the two, or in what they do from there on.
fn survives(case: &Case) -> Result<(), String> {
    let (mut through, mut stopped) = (start(case), start(case));
    for (number, event) in case.events.iter().enumerate() {
        let kept = state(&stopped);
        if kept != state(&through) {
            return Err(format!("before event {number} the two states differ"));
        }
        stopped = start(case).resume(&kept, &wanted()).unwrap().expect("the same machine");
        if number % 4 == 3 && fields(&stopped) != fields(&through) {
            return Err(format!("before event {number} a field was not kept"));
        }
        let one = through.feed(number as u64, std::slice::from_ref(event), &[]);
        let two = stopped.feed(number as u64, std::slice::from_ref(event), &[]);
        if one != two {
            return Err(format!("event {number}: {one:?}, {two:?}"));
        }
    }
    same(&through.finish(), &stopped.finish())
}

fn same(one: &Replay, two: &Replay) -> Result<(), String> {
    let parts = |r: &Replay| {
        let Replay { summary, findings, tally, left_out, oddities, parts } = r;
        format!("{summary:#?} {findings:#?} {tally:#?} {left_out} {oddities:?} {parts:?}")
    };
    if parts(one) == parts(two) { Ok(()) } else { Err(format!("{one:?}\n{two:?}")) }
}

/// Random lists of each kind: the whole state is written and read at each of their events.
const LISTS: u64 = 100;

#[test]
fn a_state_holds_every_field() {
    check_lists(LISTS, &cases(Pick::any()), survives);
}

#[test]
fn a_state_holds_every_field_of_l2() {
    check_lists(LISTS, &chance::nested::cases(Pick::any()), survives);
}

/// A generated trace in a file.
struct Made {
    folder: tempfile::TempDir,
    trace: PathBuf,
    options: Options,
}

impl Made {
    fn new(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let trace = folder.path().join("t.tlbt");
        let mut out = fs::File::create(&trace).unwrap();
        let header = options.header();
        let mut writer = Writer::new("t.tlbt", &mut out, &header, Packing::Plain).unwrap();
        for Event { time, actor, op } in Generator::new(&options) {
            writer.push(Record { time, actor, line: 0, body: Body::Op(op) }).unwrap();
        }
        writer.finish().unwrap();
        Self { folder, trace, options }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("t.checkpoint")
    }

    fn run(
        &self,
        policy: &Policy,
        every: Option<u64>,
        resume: Option<&Path>,
    ) -> Result<Replay, CheckpointError> {
        self.run_with(policy, None, KEPT, Checkpoints { every, resume, ..Checkpoints::default() })
    }

    fn run_with(
        &self,
        policy: &Policy,
        processor: Option<&str>,
        max: usize,
        mut checkpoints: Checkpoints<'_>,
    ) -> Result<Replay, CheckpointError> {
        let mut feed = open(&self.trace, &tlbscope_trace::Options::default()).unwrap();
        let setup = Setup::new(feed.meta(), feed.pcpus(), "t.tlbt", processor).unwrap();
        if checkpoints.identity.is_empty() {
            checkpoints.identity =
                vec![IdentityPart::new("trace", "t", &fs::read(&self.trace).unwrap())];
        }
        let file = self.file();
        let checkpoints = Checkpoints { file: Some(&file), ..checkpoints };
        checkpointed(&mut feed, &setup, policy, &max.into(), &checkpoints, |_| {})
    }
}

#[test]
fn every_profile_goes_on_where_it_was() {
    // Blocks hold 16384 operations: checkpoints in the first block, at its end, and behind it.
    const EVENTS: u64 = 20_000;
    let on = |vendor, mmu| {
        move |profile| Options { vendor, mmu, vcpus: 2, ..Options::new(profile, EVENTS) }
    };
    for (n, (profile, name)) in Profile::ALL.into_iter().enumerate() {
        let vendor = if n % 2 == 0 { Vendor::Intel } else { Vendor::Amd };
        for mmu in [MmuKind::Shadow, MmuKind::Tdp] {
            let made = Made::new(on(vendor, mmu)(profile));
            let of = if n % 3 == 0 { "never" } else { "kvm-5.17" };
            let policy = policy::load(of).unwrap();
            let through = made.run(&policy, None, None).unwrap();
            for every in [16_384, 7001, 19_999] {
                let written = made.run(&policy, Some(every), None).unwrap();
                same(&through, &written).unwrap_or_else(|why| panic!("{name}, {every}: {why}"));
                let resumed = made.run(&policy, None, Some(&made.file())).unwrap();
                same(&through, &resumed).unwrap_or_else(|why| panic!("{name}, {every}: {why}"));
            }
        }
    }
}

#[test]
fn a_run_that_is_resumed_goes_on_writing() {
    let made = Made::new(Options::new(Profile::ForkExit, 5000));
    let policy = policy::load("kvm-5.19").unwrap();
    let through = made.run(&policy, None, None).unwrap();
    let file = made.file();
    // Kept behind 4000 events, then taken up there and kept behind 4500.
    same(&through, &made.run(&policy, Some(2000), None).unwrap()).unwrap();
    same(&through, &made.run(&policy, Some(900), Some(&file)).unwrap()).unwrap();
    let twice = fs::read(&file).unwrap();
    same(&through, &made.run(&policy, Some(4500), None).unwrap()).unwrap();
    assert!(twice == fs::read(&file).unwrap(), "a state does not tell how often it was taken up");
    same(&through, &made.run(&policy, None, Some(&file)).unwrap()).unwrap();
}

fn refused(result: Result<Replay, CheckpointError>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn another_run_is_refused_by_name() {
    let made = Made::new(Options::new(Profile::PgeToggle, 2000));
    let (old, new) = (policy::load("kvm-5.17").unwrap(), policy::load("kvm-5.19").unwrap());
    made.run(&old, Some(500), None).unwrap();
    let file = made.file();
    let resume = || Checkpoints { resume: Some(&file), ..Checkpoints::default() };
    let why = refused(made.run(&new, None, Some(&file)));
    assert!(why.contains("made with another policy: kvm-5.17; this is kvm-5.19"), "{why}");
    // A policy that changed under its name.
    let mut changed = old.clone();
    changed.mechanics.load_flush = !changed.mechanics.load_flush;
    let why = refused(made.run(&changed, None, Some(&file)));
    assert!(why.contains("made with another policy: kvm-5.17"), "{why}");
    let why = refused(made.run_with(&old, Some("zen4"), KEPT, resume()));
    assert!(why.contains("made with another machine: unbounded; this is zen4"), "{why}");
    let why = refused(made.run_with(&old, None, KEPT + 1, resume()));
    assert!(why.contains("made with another --max-findings: 3; this is 4"), "{why}");
    let other = Made::new(Options { seed: 2, ..made.options });
    let why = refused(other.run(&old, None, Some(&file)));
    assert!(why.contains("made with another trace"), "{why}");
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let made = Made::new(Options::new(Profile::Boot, 600));
    let policy = policy::load("kvm-6.18").unwrap();
    made.run(&policy, Some(500), None).unwrap();
    let whole = fs::read(made.file()).unwrap();
    let with = |bytes: &[u8]| {
        fs::write(made.file(), bytes).unwrap();
        refused(made.run(&policy, None, Some(&made.file())))
    };
    for place in [8, 11, 12, 40, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x10;
        let why = with(&damaged);
        assert!(why.contains("cut or damaged"), "{place}: {why}");
    }
    for length in [4, 7, 8, 12, 19, 100, whole.len() / 2, whole.len() - 1] {
        let why = with(&whole[..length]);
        assert!(why.contains("cut or damaged"), "{length}: {why}");
    }
    for no in [&b""[..], b"TLB", b"TLBT....", b"# a text"] {
        let why = with(no);
        assert!(why.contains("not a checkpoint"), "{why}");
    }
    let mut later = whole.clone();
    later[4] = 9;
    let why = with(&later);
    assert!(why.contains("version 9 of the checkpoints; this program reads version 1"), "{why}");
    fs::remove_file(made.file()).unwrap();
    let why = refused(made.run(&policy, None, Some(&made.file())));
    assert!(why.contains("t.checkpoint: No such file"), "{why}");
}
