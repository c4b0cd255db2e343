//! Parts of recordings: begun in the middle, with lost events, or with another VM's events among them.
//! What is not known is not held against the kernel, nor against the model.

use std::io::{Read as _, Write as _};
use std::path::Path;

use tlbscope_analyze::audit;
use tlbscope_analyze::fidelity::{self, Summary};
use tlbscope_analyze::replay::Work;
use tlbscope_sim::policy;
use tlbscope_trace::import::VmChoice;
use tlbscope_trace::{Options, Recording};

const FILE: &str = "vmx-a-blob-ept0-head.trace.txt.xz";

/// Header and events.
fn lines() -> (Vec<String>, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings").join(FILE);
    let mut text = String::new();
    let mut source = tlbscope_trace::source::open(&path).expect("a checked-in recording");
    source.read_to_string(&mut text).expect("it is text");
    text.lines().map(str::to_owned).partition(|line| line.starts_with('#'))
}

fn open(lines: &[&[String]], vm: VmChoice) -> Recording {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    for line in lines.iter().flat_map(|part| part.iter()) {
        writeln!(file, "{line}").expect("it can be written");
    }
    let options = Options { vm, ..Options::default() };
    tlbscope_trace::open_with(file.path(), &options).expect("still a recording")
}

fn compared(recording: &Recording) -> Summary {
    let work = Work::new(recording, "t", None).expect("vendor and mode are shown");
    let policy = policy::load("kvm-6.1-lts").expect("a built-in");
    fidelity::compare(recording, &work, &policy, 100).expect("a machine").summary
}

fn exposed(recording: &Recording) -> u64 {
    audit::run(recording, "t", 10).expect("vendor and mode are shown").summary.exposed
}

#[test]
fn begun_in_the_middle() {
    let (header, events) = lines();
    for fifth in 1..5 {
        let recording = open(&[&header, &events[events.len() * fifth / 5..]], VmChoice::Only);
        let summary = compared(&recording);
        assert!(summary.operations > 5, "{fifth} fifths are cut: {summary:?}");
        assert!(summary.operations - summary.agreed <= 1, "{fifth} fifths are cut: {summary:?}");
        assert_eq!(exposed(&recording), 0, "{fifth} fifths are cut");
    }
}

#[test]
fn with_lost_events() {
    let (header, mut events) = lines();
    for at in (events.len() / 20..events.len() - 60).step_by(events.len() / 20).rev() {
        let lost = "CPU:0 [LOST 33 EVENTS]".to_owned();
        events.splice(at..at + 33, [lost]);
    }
    let recording = open(&[&header, &events], VmChoice::Only);
    let summary = compared(&recording);
    assert!(summary.operations > 50, "{summary:?}");
    assert!(summary.operations - summary.agreed <= 1, "{summary:?}");
    assert_eq!(exposed(&recording), 0);
}

/// The same guest twice at the same instants, by threads of other numbers.
#[test]
fn two_vms() {
    let (header, events) = lines();
    let alone = open(&[&header, &events], VmChoice::Only);
    let pid = |line: &str| {
        let (before, _) = line.split_once(" [")?;
        before.trim_end().rsplit_once('-')?.1.parse::<u64>().ok()
    };
    let vm = pid(&events[0]).expect("a task");
    let other = |line: &String| match pid(line) {
        Some(pid) => line.replacen(&format!("-{pid} "), &format!("-{} ", pid + 5000), 1),
        None => line.clone(),
    };
    let both: Vec<String> = events.iter().flat_map(|line| [line.clone(), other(line)]).collect();
    for number in [vm, vm + 5000] {
        let one = open(&[&header, &both], VmChoice::Number(number));
        let (got, want) = (compared(&one), compared(&alone));
        assert_eq!(got.operations - got.agreed, want.operations - want.agreed, "VM {number}");
        assert_eq!(exposed(&one), 0, "VM {number}");
    }
}
