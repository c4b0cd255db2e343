//! The program as its users meet it: exit codes, and messages that name the place and the mend.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with one file in it.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        Self { folder }
    }

    /// Runs the program in the folder.
    fn run(&self, args: &[&str]) -> Answer {
        run_in(self.folder.path(), args)
    }
}

struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Answer {
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not in: {}", self.err);
        }
    }

    #[track_caller]
    fn succeeds(&self) {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        assert_eq!(self.err, "");
    }

    /// The numbers of a row of a table.
    fn row(&self, name: &str) -> Vec<u64> {
        let row = self.out.lines().find_map(|line| line.trim().strip_prefix(name));
        let words = row.unwrap_or_default().split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    }
}

fn run_in(folder: &Path, args: &[&str]) -> Answer {
    let program = env!("CARGO_BIN_EXE_tlbscope");
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let Output { status, stdout, stderr } = output;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A scenario with this list and what follows it.
fn scenario(events: &str, rest: &str) -> Answer {
    let head = "name = 'n'\nabout = 'a'\nsource = 's'\n";
    let text = format!("{head}events = '''\n{events}\n'''\n{rest}\n");
    Case::new("s.toml", text).run(&["scenarios", "s.toml"])
}

fn compare(trace: impl AsRef<[u8]>) -> Answer {
    Case::new("t.txt", trace).run(&["compare", "t.txt", "--policy", "kvm-5.17"])
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

const NEVER: &str = "[expect.never]\nmissed = []";

#[test]
fn unknown_words_in_a_scenario() {
    // The list begins in line 5 of the file.
    scenario("v0 cr4 +SMEPP", NEVER).fails(2, &["s.toml:5:8: ", "`SMEPP`", "mean `SMEP`?"]);
    scenario("v0 cr9 1", NEVER).fails(2, &["s.toml:5:4: ", "operation `cr9`", "mean `cr"]);
    scenario("v1 cr4 +SMEP", NEVER).fails(2, &["s.toml:5:", "v1 does not exist", "`vcpus`"]);
    let label = "[expect.never]\nexcessive = ['onn']";
    scenario("on: v0 cr4 +SMEP", label).fails(2, &["s.toml:8:14: ", "`onn`", "mean `on`?"]);
    let key = "[machine]\nvcpu = 2\n[expect.never]";
    scenario("v0 clts", key).fails(2, &["s.toml:8:1: ", "`vcpu`"]);
    let policy = "[expect.nevr]\nmissed = []";
    scenario("v0 clts", policy).fails(2, &["s.toml:7:9: ", "`nevr`", "mean `never`?"]);
}

#[test]
fn a_dotted_policy_without_quotes() {
    let rest = "[expect.kvm-5.17]\nmissed = []";
    scenario("v0 clts", rest).fails(2, &["s.toml:7:9: ", "quotes", "[expect.\"kvm-5.17\"]"]);
}

#[test]
fn keys_that_are_missing_or_misplaced() {
    let nameless =
        Case::new("s.toml", "about = 'a'\nsource = 's'\nevents = 'v0 clts'\n[expect.never]");
    nameless
        .run(&["scenarios", "s.toml"])
        .fails(2, &["s.toml:1:1: `name` is missing", "write `name"]);
    let inside =
        "name = 'n'\nabout = 'a'\nsource = 's'\n[machine]\nevents = 'v0 clts'\n[expect.never]";
    let inside = Case::new("s.toml", inside);
    let words = ["s.toml:5:1: ", "inside the table `[machine]`", "above the first `[table]`"];
    inside.run(&["scenarios", "s.toml"]).fails(2, &words);
}

#[test]
fn a_cr3_outside_memory_reaches_no_table() {
    // 1 GiB of memory; what lies beyond it holds no present entry.
    let events = "v0 cr3 0x80000000\nv0 read 0x7000 = fault";
    let expect = "[expect.\"kvm-5.17\"]\nmissed = []\n[expect.never]\nmissed = []";
    let answer = scenario(events, expect);
    answer.succeeds();
    assert!(answer.out.contains("2 passed, 0 failed"), "{}", answer.out);
}

#[test]
fn a_refused_cr4_write_changes_nothing() {
    // CR4.PAE cannot be cleared in long mode; bit 31 is reserved.
    let answer = compare("v0 cr4 -PAE\nv0 cr4 0x80000020\n");
    answer.fails(0, &["t.txt:1: faults with #GP", "PAE", "t.txt:2: faults with #GP", "reserved"]);
    assert_eq!(answer.row("resets"), Vec::<u64>::new(), "{}", answer.out);
    assert_eq!(answer.row("excessive"), [0]);
    assert_eq!(answer.row("missed"), [0]);
}

#[test]
fn time_that_runs_backwards() {
    let words = ["t.txt:3: ", "backwards, from 20 ns to 10 ns", "sort"];
    compare("# two writes\n@20 v0 cr4 +SMEP\n@10 v0 cr4 -SMEP\n").fails(2, &words);
    let line = |time| format!("  kvm-7 [000] ..... {time}: kvm_entry: vcpu 0, rip 0xfff0\n");
    let recording = line("12.000002") + &line("12.000001");
    compare(recording).fails(2, &["t.txt:2: ", "from 12000002000 ns to 12000001000 ns"]);
    // The same instant is no step back.
    compare("@20 v0 cr4 +SMEP\n@20 v0 cr4 -SMEP\n").succeeds();
}

#[test]
fn mistakes_in_an_event_list() {
    compare("v0 clts\nv0 cr4 +SMEPP\n").fails(2, &["t.txt:2:8: ", "`SMEPP`", "mean `SMEP`?"]);
    compare("v0 crr4 +SMEP\n").fails(2, &["t.txt:1:4: ", "`crr4`", "mean `cr4`?"]);
}

#[test]
fn a_last_line_without_an_end() {
    let (with, without) = (compare("v0 cr4 +SMEP\n"), compare("v0 cr4 +SMEP"));
    without.succeeds();
    assert_eq!(with.out, without.out);
    assert_eq!(without.row("resets"), [1], "a CR4.SMEP write resets the MMU before the patch");
}

#[test]
fn what_is_no_trace() {
    compare("").fails(2, &["t.txt: is empty"]);
    compare(b"v0 clts\n\0\x01\x02").fails(2, &["t.txt: binary content from byte 8 on", "give "]);
    compare(b"v0 clts\n\xff\xfe").fails(2, &["t.txt: binary content from byte 8 on"]);
    let case = Case::new("t.txt", "v0 clts\n");
    for command in [&["info", "x"][..], &["compare", "x", "--policy", "never"]] {
        case.run(command).fails(2, &["cannot read x", "No such file"]);
    }
    fs::create_dir(case.folder.path().join("d")).unwrap();
    case.run(&["info", "d"]).fails(2, &["d: is a directory, a file is wanted"]);
    case.run(&["scenarios", "d"]).fails(2, &["d: no scenario file (*.toml)"]);
    case.run(&["scenarios", "x.toml"]).fails(2, &["cannot read x.toml", "No such file"]);
}

#[test]
fn what_is_no_scenario() {
    let run = |content: &[u8]| Case::new("s.toml", content).run(&["scenarios", "s.toml"]);
    run(b"").fails(2, &["s.toml: is empty"]);
    run(b"name = \xff").fails(2, &["s.toml: binary content from byte 7 on", "TOML"]);
    run(b"name = 'n'\nevents = ").fails(2, &["s.toml:2:"]);
}

#[test]
fn wrong_names_on_the_command_line() {
    let case = Case::new("t.txt", "v0 clts\n");
    let policy = case.run(&["compare", "t.txt", "--policy", "kvm-patchv2"]);
    policy.fails(2, &["kvm-patchv2", "did you mean \"kvm-patch-v2\"?"]);
    let machine = case.run(&["compare", "t.txt", "--policy", "never", "--machine", "zen9"]);
    machine.fails(2, &["zen9", "did you mean \"zen"]);
    case.run(&["explain", "cr4-pg"]).fails(2, &["`cr4-pg`", "did you mean `cr4-pge`?"]);
    case.run(&["simulate", "t.txt"]).fails(2, &["--policy"]);
    case.run(&["compare", "t.txt"]).fails(2, &["--policy"]);
}

#[test]
fn a_cut_native_trace() {
    let case = Case::new("t.txt", "v0 cr4 +SMEP\nv0 cr4 -SMEP\n");
    case.run(&["import", "t.txt", "-o", "t.tlbt"]).succeeds();
    let whole = fs::read(case.folder.path().join("t.tlbt")).unwrap();
    for keep in 8..whole.len() {
        fs::write(case.folder.path().join("c.tlbt"), &whole[..keep]).unwrap();
        case.run(&["info", "c.tlbt"]).fails(3, &[]);
    }
    // Two thirds: the records may be lost, and the answer says so.
    fs::write(case.folder.path().join("c.tlbt"), &whole[..whole.len() - 3]).unwrap();
    let compared = case.run(&["compare", "c.tlbt", "--policy", "kvm-5.17"]);
    compared.fails(3, &["warning: ", "damaged or cut off"]);
    assert_eq!(compared.row("resets"), [2], "both records are whole");
}

#[test]
fn the_exit_code_of_a_missed_flush() {
    // The write of CR4.PGE is the flush that makes the new mapping visible.
    let trace = "v0 cr3 0x10000\nv0 map 0x7000 0x5000 rwxg\nv0 read 0x7000\n\
                 v0 map 0x7000 0x6000 rwxg\nv0 cr4 -PGE\nv0 read 0x7000\n";
    let case = Case::new("t.txt", trace);
    let missed = case.run(&["simulate", "t.txt", "--policy", "never"]);
    missed.fails(1, &[]);
    assert!(missed.out.contains("t.txt:5: "), "{}", missed.out);
    case.run(&["simulate", "t.txt", "--policy", "kvm-5.17"]).succeeds();
    // A comparison is no verdict.
    case.run(&["compare", "t.txt", "--policy", "never,kvm-5.17"]).succeeds();
    let wrong = scenario("v0 clts", "[expect.never]\ncounts = { exit = 99 }");
    wrong.fails(1, &[]);
    assert!(wrong.out.contains("expected 99"), "{}", wrong.out);
}

#[test]
fn a_recording_survives_import_and_export() {
    let case = Case::new("unused", "");
    let recording = root().join("testdata/recordings/vmx-b-pcid-ept0.trace.txt.xz");
    let recording = recording.to_str().unwrap();
    case.run(&["import", recording, "-o", "r.tlbt"]).succeeds();
    case.run(&["export", "r.tlbt", "-o", "r.txt", "--to", "text"]).succeeds();
    let policies = ["--policy", "kvm-5.17,kvm-patch-v2,kvm-5.19,never"];
    // Without the places of findings, which name the file.
    let run = |trace: &str| case.run(&["compare", "-q", trace, policies[0], policies[1]]);
    let (recorded, native, text) = (run(recording), run("r.tlbt"), run("r.txt"));
    recorded.succeeds();
    native.succeeds();
    text.succeeds();
    // Event text does not say in which state the vCPUs were, so that two writes are refused.
    let told = case.run(&["compare", "r.txt", policies[0], policies[1]]);
    told.fails(0, &["r.txt:15: faults with #GP"]);
    let rows = |answer: &Answer| answer.out.lines().skip(1).map(squeezed).collect::<Vec<_>>();
    assert_eq!(rows(&recorded), rows(&native));
    assert!(text.out.contains("flush-guest"), "{}", text.out);
}

/// A line with one space where it has many: the first column is as wide as the trace's name.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn other_orders_are_run_on_request_and_say_what_they_chose() {
    let head = "name = 'n'\nabout = 'a'\nsource = 's'\n";
    let events = "v0 map 0x7000 0x5000 rw
        v1 read 0x7000
        host preempt v1
        v0 map 0x7000 0x6000 rw
        flush: v0 pvflush v1
        host run v1
        host preempt v1
        host run v1
        use: v1 read 0x7000";
    let rest = "[machine]\nvcpus = 2\npcpus = 2\nmmu = 'tdp'\nsteal-time = true
        [policy.old]\nextends = 'kvm-5.17'\nmechanics = { pv-preempt-store = 'overwrite' }
        [expect.old]\nmissed = []\n[expect.'kvm-5.17']\nmissed = []\n";
    let case = Case::new("s.toml", format!("{head}events = '''\n{events}\n'''\n{rest}"));
    case.run(&["scenarios", "s.toml"]).succeeds();
    let found = case.run(&["scenarios", "s.toml", "--interleave", "all"]);
    assert_eq!(found.code, Some(1), "{}{}", found.out, found.err);
    assert!(found.out.contains("missed: use `use` of cause `flush`"), "{}", found.out);
    assert!(found.out.contains("falls into `host run v1`"), "{}", found.out);
    assert!(found.out.contains("1 passed, 1 failed"), "{}", found.out);
    case.run(&["scenarios", "s.toml", "--interleave", "some"]).fails(2, &["how many orders"]);
    case.run(&["scenarios", "s.toml", "--seed", "1"]).fails(2, &["--interleave"]);
}

#[test]
fn what_is_done_at_each_event_is_told_on_request() {
    // INVLPG that flushes nothing: the line of `inv` owes, that of `use` uses what is stale.
    let text = "name = 'n'\nabout = 'a'\nsource = 's'\nevents = '''
v0 map 0x7000 0x5000 rw
v0 read 0x7000
v0 map 0x7000 0x6000 rw
inv: v0 invlpg 0x7000
use: v0 read 0x7000
'''
[machine]\nmmu = 'shadow'
[policy.none]\nextends = 'kvm-5.17'\nmechanics = { invlpg = 'none' }
[expect.none]\nmissed = []\n";
    let case = Case::new("s.toml", text);
    let told = case.run(&["scenarios", "--steps", "s.toml"]);
    told.succeeds();
    let (before, after) = told.out.split_once("9  use: v0 read 0x7000").expect("the use, by line");
    assert!(before.contains("8  inv: v0 invlpg 0x7000\n         v0 exits to KVM"), "{before}");
    assert!(!before.contains("missed"), "{before}");
    assert!(after.contains("v0 gets 0x5000 from the TLB"), "{after}");
    assert!(after.contains("* missed, harmful: invlpg, owed since line 8"), "{after}");
    case.run(&["scenarios", "--steps", "s.toml", "--interleave", "all"])
        .fails(2, &["--interleave"]);
}

fn recording(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/recordings");
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_cut_recording_is_damage_and_what_was_read_is_kept() {
    let whole = recording("svm-tiny-npt0.trace.txt.zst");
    let case = Case::new("cut.zst", &whole[..whole.len() / 2]);
    case.run(&["import", "cut.zst", "-o", "out.tlbt"]).fails(3, &["cut.zst", "reading stopped"]);
    assert_eq!(case.run(&["info", "out.tlbt"]).code, Some(3));
    let whole = recording("vmx-b-pcid-ept0.trace.txt.xz");
    let case = Case::new("cut.xz", &whole[..whole.len() / 2]);
    case.run(&["info", "cut.xz"]).fails(3, &["cut.xz", "cut or damaged"]);
    let whole = recording("svm-tiny-npt0-head.trace.dat");
    let case = Case::new("cut.dat", &whole[..whole.len() / 2]);
    case.run(&["info", "cut.dat"]).fails(3, &["cut.dat"]);
}

#[test]
fn a_trace_without_kvm_is_told() {
    let case = Case::new("empty.txt", "# tracer: nop\n#\n");
    case.run(&["simulate", "empty.txt"]).fails(2, &["empty.txt", "nothing of KVM"]);
    let case = Case::new("events.txt", "# only a comment\n");
    case.run(&["info", "events.txt"]).fails(2, &["events.txt", "no events"]);
}

#[test]
fn time_does_not_run_backwards_in_a_scenario() {
    let scenario = "events = '''\n@20 v0 invlpg 0x1000\n@10 v0 invlpg 0x1000\n'''\n";
    let case = Case::new("back.toml", scenario);
    case.run(&["scenarios", "back.toml"]).fails(2, &["back.toml:3", "backwards"]);
}

#[test]
fn operations_that_are_hardly_meant_so_are_told() {
    // LA57 cannot change in long mode; 2 GiB lie outside the guest's 1 GiB.
    let case = Case::new("w.txt", "v0 cr4 +LA57\nv0 cr3 0x80000000\nv0 read 0x7000\n");
    let answer = case.run(&["simulate", "w.txt", "--policy", "kvm-5.17"]);
    answer.fails(0, &["w.txt:1: faults with #GP", "LA57", "w.txt:2: CR3", "0x80000000"]);
    let quiet = case.run(&["simulate", "w.txt", "--policy", "kvm-5.17", "-q"]);
    quiet.succeeds();
}

#[test]
fn one_operation_step_by_step() {
    let case = Case::new("x", "");
    let answer = case.run(&["policy", "explain", "kvm-5.19", "cr4 +SMEP"]);
    answer.succeeds();
    for words in ["intel ept, 4-level", "MMU reset", "TLB_FLUSH_CURRENT", "cr4-smep-set", "INVEPT"]
    {
        assert!(answer.out.contains(words), "{words}: {}", answer.out);
    }
    case.run(&["policy", "explain", "kvm-5.19", "cr4 +SMP"]).fails(2, &["unknown bit", "SMEP"]);
    case.run(&["policy", "explain", "kvm-5.19", "read 0x7000"]).fails(2, &["invpcid"]);
}

#[test]
fn a_policy_to_start_from_is_a_policy() {
    let case = Case::new("x", "");
    case.run(&["policy", "new", "--from", "kvm-6.12-lts", "-o", "mine.toml"]).succeeds();
    case.run(&["policy", "check", "mine.toml"]).succeeds();
    let text = fs::read_to_string(case.folder.path().join("mine.toml")).unwrap();
    assert!(text.contains("extends = \"kvm-6.12-lts\"") && text.contains("name = \"mine\""));
    let taken = case.run(&["policy", "new", "--from", "kvm-5.17", "--name", "kvm-5.19"]);
    taken.fails(2, &["built-in"]);
}

#[test]
fn completions_and_manual_pages() {
    let case = Case::new("x", "");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(case.run(&["completions", shell]).out.contains("simulate"), "{shell}");
    }
    case.run(&["completions", "man", "-o", "man"]).succeeds();
    let page = fs::read_to_string(case.folder.path().join("man/tlbscope-policy-diff.1")).unwrap();
    assert!(page.contains(".TH"));
}
