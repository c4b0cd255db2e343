//! What can be typed.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{
    ArgMatches, Args as Arguments, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use tlbscope_analyze::reproduce::Reach;

use crate::formats;

const EXAMPLES: &str = "\
Examples:
  tlbscope scenarios testdata/scenarios
  tlbscope simulate trace.txt --policy kvm-5.17
  tlbscope compare trace.txt --policy kvm-5.17,kvm-patch-v2,kvm-5.19
  tlbscope policy show kvm-patch-v2

Exit codes: 0 clean; 1 a harmful missed flush, an exposure or a failed expectation; 2 wrong usage \
or configuration; 3 the input was damaged and the result covers only a part of it; \
130 interrupted (Ctrl-C): no half file is left.";

/// Which TLB flushes does a hypervisor miss, and which does it waste?
#[derive(Debug, Parser)]
#[command(name = "tlbscope", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

impl Args {
    /// The description of everything that can be typed.
    pub fn describe() -> clap::Command {
        formats::offer(Self::command())
    }

    /// What was typed; wrong usage ends the program.
    pub fn read() -> Self {
        let matches = Self::describe().get_matches();
        let read = Self::from_arg_matches(&matches)
            .and_then(|args| Ok((args, format(&matches)?)))
            .map_err(|error| error.format(&mut Self::describe()));
        match read {
            Ok((mut args, format)) => {
                args.global.format = format;
                args
            }
            Err(error) => error.exit(),
        }
    }
}

/// The form that was asked for, before or behind the command, if the command offers it.
fn format(matches: &ArgMatches) -> Result<Format, clap::Error> {
    let typed =
        |matches: &ArgMatches| matches.try_get_one::<Format>("format").ok().flatten().copied();
    let (mut here, mut words, mut asked) = (matches, Vec::new(), typed(matches));
    while let Some((word, below)) = here.subcommand() {
        words.push(word);
        here = below;
        asked = typed(here).or(asked);
    }
    let format = asked.unwrap_or_default();
    let offered = formats::offered(&words);
    if offered.contains(&format) {
        return Ok(format);
    }
    let names: Vec<String> = offered.iter().copied().map(formats::name).collect();
    let message = format!(
        "`{}` has no --format {}: it has {}",
        words.join(" "),
        formats::name(format),
        names.join(", ")
    );
    Err(clap::Error::raw(ErrorKind::InvalidValue, message))
}

/// Options of every command.
#[derive(Clone, Debug, Arguments)]
pub struct Global {
    /// How to print the result: each command has a `--format` of its own ([`crate::formats`]).
    #[arg(skip)]
    pub format: Format,
    /// Threads to use; 0 = one per processor. The output does not depend on it
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Print less
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Colours in messages and tables
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people (default)
    #[default]
    Text,
    /// For programs: one object
    Json,
    /// JSON Lines: one object for each summary, finding and row
    Jsonl,
    /// One table: findings, of `compare` the numbers
    Csv,
    /// For a pull request
    Markdown,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// For CI; a case fails for each kind of harmful miss or exposure
    Junit,
    /// A page that needs nothing from the network
    Html,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a trace under one policy: findings, counts and costs
    #[command(after_help = "Examples:\n  tlbscope simulate trace.txt --policy kvm-5.17\n  \
                            tlbscope simulate trace.txt --policy never --explain 1\n  \
                            tlbscope simulate trace.txt --suppress known.toml --format sarif > \
                            tlbscope.sarif\n  tlbscope simulate trace.txt --policy never --report \
                            never.html\n\nThe first finding of each kind is told in full, -v tells \
                            all. --vcpu, --from and --to cut the trace before it is judged; \
                            --show-vcpu, --show-from and --show-to judge all of it and show a \
                            part.")]
    Simulate(Simulate),
    /// The same guest work under several policies, side by side
    #[command(
        after_help = "Examples:\n  tlbscope compare trace.txt --policy kvm-5.17,kvm-5.19\n  \
                            tlbscope compare a.tlbt b.tlbt --policy kvm-6.12-lts,./mine.toml --by \
                            transition\n  tlbscope compare trace.txt --policy kvm-5.17,kvm-5.19 --report \
                            c.html\n\nA `*` marks what differs from the first policy; `<` is the \
                            best of a row, `>` the worst; `!` a policy that misses a flush or leaves \
                            something exposed: its costs are not ranked."
    )]
    Compare(Compare),
    /// Does the model do what the recorded kernel did, operation by operation
    #[command(after_help = "Example:\n  tlbscope fidelity trace.txt.zst --policy kvm-6.1-lts")]
    Fidelity(Fidelity),
    /// Judge what a real host did, from its own recording
    #[command(after_help = "Examples:\n  tlbscope audit trace.txt.zst\n  tlbscope audit \
                            *.trace.dat --suppress known.toml --format junit > audit.xml\n  tlbscope audit trace.txt.zst --report audit.html\n\nA \
                            suppression:\n  [[suppress]]\n  rule = \"mmu-reset\"\n  function = \
                            \"kvm_set_cr4\"\n  reason = \"6.1 resets on every role bit\"")]
    Audit(Audit),
    /// Run scenario files, and folders of them
    #[command(after_help = "Example:\n  tlbscope scenarios testdata/scenarios")]
    Scenarios(Scenarios),
    /// Run architecture cases against the TLB model and the table of requirements
    #[command(after_help = "Example:\n  tlbscope conformance testdata/conformance/*.json")]
    Conformance(Conformance),
    /// Turn any recording into a native trace
    #[command(after_help = "Example:\n  tlbscope import trace.txt.zst -o trace.tlbt")]
    Import(Import),
    /// Make up a trace: a kind of guest, seeded, of any length
    #[command(
        after_help = "Example:\n  tlbscope generate pti-syscalls -o pti.tlbt --events 1000000"
    )]
    Generate(Generate),
    /// Write a trace in another form, its timeline, or one finding as a scenario
    #[command(after_help = "Examples:\n  tlbscope export trace.tlbt -o trace.txt --to text\n  \
                            tlbscope export trace.tlbt -o bug.toml --to scenario --policy \
                            kvm-5.17 --around 1\n  tlbscope export trace.tlbt -o \
                            trace.pftrace --to perfetto --policy kvm-5.17")]
    Export(Export),
    /// Print the script that records on this host, for its kernel
    #[command(after_help = "Example:\n  tlbscope record --seconds 20 > record.sh")]
    Record(Record),
    /// What is inside a trace, and what could not be read
    #[command(after_help = "Example:\n  tlbscope info trace.tlbt")]
    Info(Info),
    /// Policies: list, show, diff, check
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Machines: list, show
    #[command(subcommand)]
    Machine(MachineCommand),
    /// A rule of the manuals: its sentence and its citation
    #[command(after_help = "Example:\n  tlbscope explain cr4-pge")]
    Explain(Explain),
    /// The fixed suite: generated guests, and traces if given, under the released kernels
    #[command(
        after_help = "Examples:\n  tlbscope bench -o base.json\n  tlbscope bench --baseline \
                            base.json --fail-on 'missed_harmful>0' --fail-on 'cycles>+2%'\n\n\
                            A condition is [POLICY or TRACE:]NUMBER>LIMIT; the limit is N, +N (above \
                            the baseline) or +N%. Exit code 1: one of them holds."
    )]
    Bench(Bench),
    /// The JSON schema of what a command prints with `--format json`
    #[command(after_help = "Examples:\n  tlbscope schema\n  tlbscope schema audit")]
    Schema(Schema),
    /// Completions for a shell, or the manual pages
    #[command(after_help = "Examples:\n  tlbscope completions bash > \
                            ~/.local/share/bash-completion/completions/tlbscope\n  tlbscope \
                            completions man -o ~/.local/share/man/man1")]
    Completions(Completions),
}

/// Arguments of `bench`.
#[derive(Debug, Arguments)]
pub struct Bench {
    /// Traces to run beside the generated guests
    pub traces: Vec<PathBuf>,
    /// Policies, separated by commas; default: those of the suite
    #[arg(long, value_delimiter = ',', value_name = "P,P,...")]
    pub policy: Vec<String>,
    /// A processor's name or a file; default: hardware that never evicts
    #[arg(long, value_name = "NAME|FILE")]
    pub machine: Option<String>,
    /// An earlier result to compare with
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Fail if this holds; may be given several times
    #[arg(long, value_name = "EXPR")]
    pub fail_on: Vec<String>,
    /// Write the result, as JSON, to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `schema`.
#[derive(Debug, Arguments)]
pub struct Schema {
    /// A command, or the `schema` that a document names; default: list them
    pub name: Option<String>,
}

/// Arguments of `completions`.
#[derive(Debug, Arguments)]
pub struct Completions {
    /// For whom
    #[arg(value_enum)]
    pub of: CompletionsOf,
    /// Where to write: a file, for `man` a folder; default: standard output
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

/// What `completions` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionsOf {
    /// GNU Bash.
    Bash,
    /// Elvish.
    Elvish,
    /// Fish.
    Fish,
    /// PowerShell.
    Powershell,
    /// Z shell.
    Zsh,
    /// A manual page for each command.
    Man,
}

/// The machine of a replay.
#[derive(Clone, Debug, Arguments)]
pub struct Machine {
    /// A processor's name or a file; default: hardware that never evicts
    #[arg(long, value_name = "NAME|FILE")]
    pub machine: Option<String>,
    /// Findings kept of each kind; all are counted
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub max_findings: usize,
}

/// Which findings are shown, and which are accepted.
#[derive(Clone, Debug, Default, Arguments)]
#[command(next_help_heading = "Findings")]
pub struct Showing {
    /// Findings that are accepted: a TOML file of `[[suppress]]`, each with `rule` or `function`
    /// (cr4, mmu-reset, kvm_set_cr4), perhaps `policy` and `verdict`, and the `reason`; repeatable
    #[arg(long, value_name = "FILE")]
    pub suppress: Vec<PathBuf>,
    /// Show findings of these vCPUs only; all are judged and counted
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    pub show_vcpu: Vec<u16>,
    /// Show findings whose cause or use is not before (1500ns, 3us, 2ms, 1s since the start)
    #[arg(long, value_name = "TIME")]
    pub show_from: Option<String>,
    /// Show findings whose cause or use is not after
    #[arg(long, value_name = "TIME")]
    pub show_to: Option<String>,
}

/// How a recording is read, and which part of it.
#[derive(Clone, Debug, Default, Arguments)]
#[command(next_help_heading = "Reading recordings")]
pub struct Reading {
    /// The recorded host's /proc/kallsyms: what function a probe's address is
    #[arg(long, value_name = "FILE")]
    pub kallsyms: Option<PathBuf>,
    /// The probes' definitions (kprobe_events): what function a probe's name is
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// The VM, where a recording shows several: a number of the list that is printed, or `all`
    #[arg(long, value_name = "N|all")]
    pub vm: Option<String>,
    /// Only what these vCPUs did: the rest is left out before anything is judged
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    pub vcpu: Vec<u16>,
    /// Nothing that happened before: 1500ns, 3us, 2ms, 1s since the start, or @13.527994 of the recorder's clock
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Nothing after
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
}

/// Arguments of `simulate`.
#[derive(Debug, Arguments)]
pub struct Simulate {
    /// The trace, `-` for standard input
    pub trace: PathBuf,
    /// A built-in policy or a file; default: the policy of the recorded kernel
    #[arg(long, value_name = "NAME|FILE")]
    pub policy: Option<String>,
    /// Only the finding of this number, at full length
    #[arg(long, value_name = "N")]
    pub explain: Option<usize>,
    /// Write a page with charts, timeline and findings; it needs neither network nor server
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Its checkpoints.
    #[command(flatten)]
    pub checkpoints: Checkpointing,
    /// The machine.
    #[command(flatten)]
    pub machine: Machine,
    /// Which findings are shown.
    #[command(flatten)]
    pub showing: Showing,
    /// How it is read.
    #[command(flatten)]
    pub reading: Reading,
}

/// The checkpoints of a run.
#[derive(Clone, Debug, Arguments)]
#[command(next_help_heading = "Checkpoints")]
pub struct Checkpointing {
    /// Keep the state of the run behind every N events: a run that is stopped can go on there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// Where; default: the file of --resume, else the trace with `.checkpoint` behind its name
    #[arg(long, value_name = "FILE", requires = "checkpoint_every")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from a checkpoint of the same trace, policy and machine; the result is the same
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
}

impl Checkpointing {
    /// Whether there are any.
    pub const fn wanted(&self) -> bool {
        self.checkpoint_every.is_some() || self.resume.is_some()
    }
}

/// Arguments of `fidelity`.
#[derive(Debug, Arguments)]
pub struct Fidelity {
    /// A recording of a real host
    pub recording: PathBuf,
    /// A built-in policy or a policy file (default: the recorded kernel's)
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,
    /// KVM's statistics at the end of the recorded run, beside the counters: lines of a name and a
    /// value, as debugfs has them (`vcpu0 tlb_flush 7` or `tlb_flush 7`)
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Keep at most this many disagreements
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_findings: usize,
    /// How it is read.
    #[command(flatten)]
    pub reading: Reading,
}

/// Arguments of `compare`.
#[derive(Debug, Arguments)]
pub struct Compare {
    /// The traces
    #[arg(required = true)]
    pub traces: Vec<PathBuf>,
    /// Policies, separated by commas; the others are compared with the first
    #[arg(long, required = true, value_delimiter = ',', value_name = "P,P,...")]
    pub policy: Vec<String>,
    /// Take the numbers apart, too
    #[arg(long, value_enum)]
    pub by: Option<By>,
    /// Write a page with charts, timeline and findings; it needs neither network nor server
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub machine: Machine,
    /// Which findings are shown.
    #[command(flatten)]
    pub showing: Showing,
    /// How it is read.
    #[command(flatten)]
    pub reading: Reading,
}

/// By what `compare` takes numbers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// By vCPU.
    Vcpu,
    /// By the register or the kind of operation that caused them.
    Register,
    /// By what a write changed: each set of bits of CR0, CR4 and EFER, each kind of CR3 write.
    Transition,
}

/// Arguments of `audit`.
#[derive(Debug, Arguments)]
pub struct Audit {
    /// The recordings
    #[arg(required = true, value_name = "RECORDING")]
    pub recordings: Vec<PathBuf>,
    /// Findings kept of each kind; all are counted
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub max_findings: usize,
    /// Leave out the table of what the host did for each kind of operation
    #[arg(long)]
    pub no_transitions: bool,
    /// Tell of excessive flushes and resets where they are, not only their numbers
    #[arg(long)]
    pub excessive: bool,
    /// Which findings are shown.
    #[command(flatten)]
    pub showing: Showing,
    /// Write a page with charts, timeline and findings; it needs neither network nor server
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// How it is read.
    #[command(flatten)]
    pub reading: Reading,
}

/// Arguments of `scenarios`.
#[derive(Debug, Arguments)]
pub struct Scenarios {
    /// Files and folders
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Tell what the machine does at each event, under the policy of each expectation
    #[arg(long, conflicts_with = "interleave")]
    pub steps: bool,
    /// Run other orders of the events of host and hypervisor too: `all` of them (up to 10000 for
    /// each expectation, those closest to the file first), or N drawn by the seed
    #[arg(long, value_name = "all|N", value_parser = interleave)]
    pub interleave: Option<Interleave>,
    /// Seed of `--interleave N`
    #[arg(long, default_value_t = 1, value_name = "S", requires = "interleave")]
    pub seed: u64,
}

/// How many orders `scenarios --interleave` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interleave {
    /// All, up to a bound.
    All,
    /// So many.
    Sampled(u64),
}

fn interleave(text: &str) -> Result<Interleave, String> {
    match text {
        "all" => Ok(Interleave::All),
        number => match number.parse() {
            Ok(n) if n > 0 => Ok(Interleave::Sampled(n)),
            _ => Err("`all`, or how many orders to draw".to_owned()),
        },
    }
}

/// Arguments of `conformance`.
#[derive(Debug, Arguments)]
pub struct Conformance {
    /// Files of cases, `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Arguments of `import`.
#[derive(Debug, Arguments)]
pub struct Import {
    /// What to read, `-` for standard input
    pub input: PathBuf,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// How it is read.
    #[command(flatten)]
    pub reading: Reading,
    /// Pack each block with zstd at this level
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=22))]
    pub zstd: Option<i32>,
}

/// Arguments of `generate`.
#[derive(Debug, Arguments)]
pub struct Generate {
    /// The kind of guest, a name from `--list`
    #[arg(required_unless_present = "list")]
    pub profile: Option<String>,
    /// Where to write, `-` for standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "list")]
    pub output: Option<PathBuf>,
    /// Say what the profiles do, in which mix and why
    #[arg(long)]
    pub list: bool,
    /// Events, at most 10^10
    #[arg(long, default_value_t = 1_000_000, value_name = "N",
          value_parser = clap::value_parser!(u64).range(0..=10_000_000_000))]
    pub events: u64,
    /// The same seed gives the same events
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
    /// vCPUs
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=512))]
    pub vcpus: u16,
    /// Whose hardware
    #[arg(long, value_enum, default_value_t = Vendor::Intel)]
    pub vendor: Vendor,
    /// Shadow paging or TDP; default: what the profile is made to show
    #[arg(long, value_enum)]
    pub mmu: Option<Mmu>,
    /// Pack each block with zstd at this level
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=22))]
    pub zstd: Option<i32>,
}

/// Whose hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vendor {
    /// VMX.
    Intel,
    /// SVM.
    Amd,
}

/// How the hypervisor translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mmu {
    /// Shadow page tables.
    Shadow,
    /// EPT or NPT.
    Tdp,
}

/// Arguments of `export`.
#[derive(Debug, Arguments)]
pub struct Export {
    /// What to read, `-` for standard input
    pub input: PathBuf,
    /// Where to write, `-` for standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The form
    #[arg(long, value_enum)]
    pub to: Form,
    /// `scenario`: the finding, by its number as `simulate` prints it
    #[arg(long, value_name = "FINDING", required_if_eq("to", "scenario"))]
    pub around: Option<usize>,
    /// `scenario`: how far before the finding to look for what it takes: operations, or 3ms
    #[arg(long, value_name = "N|TIME", default_value = "10000", requires = "around")]
    pub before: Reach,
    /// `scenario`: how far after it
    #[arg(long, value_name = "N|TIME", default_value = "10000", requires = "around")]
    pub after: Reach,
    /// `scenario`: keep every operation in reach, also those that the finding does not take
    #[arg(long, requires = "around")]
    pub whole: bool,
    /// `scenario`, `perfetto`: a built-in policy or a file; default: the recorded kernel's policy
    #[arg(long, value_name = "NAME|FILE")]
    pub policy: Option<String>,
    /// The machine.
    #[command(flatten)]
    pub machine: Machine,
    /// How it is read.
    #[command(flatten)]
    pub reading: ExportReading,
}

/// The forms of `export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// The event lines of scenarios.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// One finding as a scenario file.
    Scenario,
    /// The timeline of a run, for ui.perfetto.dev and `trace_processor`.
    Perfetto,
}

/// How `export` reads a recording: as elsewhere, but `--to` is the form.
#[derive(Clone, Debug, Default, Arguments)]
#[command(next_help_heading = "Reading recordings")]
pub struct ExportReading {
    /// The recorded host's /proc/kallsyms: what function a probe's address is
    #[arg(long, value_name = "FILE")]
    pub kallsyms: Option<PathBuf>,
    /// The probes' definitions (kprobe_events): what function a probe's name is
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// The VM, where a recording shows several: a number of the list that is printed, or `all`
    #[arg(long, value_name = "N|all")]
    pub vm: Option<String>,
    /// These vCPUs only
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    pub vcpu: Vec<u16>,
    /// Nothing before: 1500ns, 3us, 2ms, 1s since the start, or @13.527994 of the recorder's clock
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Nothing after
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl ExportReading {
    /// As other commands take it.
    pub fn reading(&self) -> Reading {
        let Self { kallsyms, probes, vm, vcpu, from, until } = self.clone();
        Reading { kallsyms, probes, vm, vcpu, from, to: until }
    }
}

/// Arguments of `info`.
#[derive(Debug, Arguments)]
pub struct Info {
    /// The trace, `-` for standard input
    pub trace: PathBuf,
    /// How it is read.
    #[command(flatten)]
    pub reading: Reading,
}

/// Subcommands of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// The built-in policies
    List,
    /// A policy with everything that it inherits
    Show {
        /// A built-in's name or a file
        policy: String,
    },
    /// Where two policies act differently at CR0 and CR4 writes, and what comes of it
    #[command(after_help = "Examples:\n  tlbscope policy diff kvm-5.17 kvm-patch-v2\n  \
                            tlbscope policy diff kvm-5.17 ./my-patch.toml --format html > \
                            review.html")]
    Diff {
        /// A built-in's name or a file
        a: String,
        /// Another
        b: String,
    },
    /// What a policy does at an operation, step by step, from the write to the next entry
    #[command(after_help = "Examples:\n  tlbscope policy explain kvm-6.12-lts 'cr4 +SMEP'\n  \
                            tlbscope policy explain kvm-5.17 'cr3 0x20000' 'l2enter vpid=1' \
                            'l2exit'")]
    Explain {
        /// A built-in's name or a file
        policy: String,
        /// The operations, as scenarios write them, each explained by itself
        #[arg(required = true, value_name = "OPERATION")]
        operations: Vec<String>,
    },
    /// A policy file to start from: it inherits everything, and shows what it could change
    #[command(after_help = "Example:\n  tlbscope policy new --from kvm-6.12-lts -o my-patch.toml")]
    New {
        /// The policy that it extends
        #[arg(long, value_name = "NAME|FILE")]
        from: String,
        /// Its name; default: that of the file, or `my-patch`
        #[arg(long)]
        name: Option<String>,
        /// Where to write; default: standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a policy file; what is wrong is shown at its line and column
    #[command(after_help = "Example:\n  tlbscope policy check my-patch.toml")]
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Subcommands of `machine`.
#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// The named processors
    List,
    /// Geometry and costs of a processor
    Show {
        /// Its name
        machine: String,
    },
}

/// Arguments of `record`.
#[derive(Debug, Arguments)]
pub struct Record {
    /// How long to record; Ctrl-C ends it earlier
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u64,
    /// The program that records
    #[arg(long, value_enum, default_value_t = RecordFlavour::Tracefs)]
    pub flavour: RecordFlavour,
    /// Record now, into this file, instead of printing the script
    #[arg(long, value_name = "FILE")]
    pub run: Option<PathBuf>,
    /// Whose processor, where no vendor module is loaded
    #[arg(long, value_enum)]
    pub vendor: Option<HostVendor>,
    /// Where the host's file system starts
    #[arg(long, hide = true, default_value = "/")]
    pub root: PathBuf,
}

/// A program that records, as it is typed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum RecordFlavour {
    /// A shell and the files of tracefs: text, in microseconds; nothing needs to be installed
    Tracefs,
    /// trace-cmd: a trace.dat, in nanoseconds, with formats and symbols; what is read best
    TraceCmd,
    /// perf: a perf.data, in nanoseconds, with its probes and symbols in files beside it
    Perf,
    /// A bpftrace program that writes text as tracefs would
    Bpftrace,
}

/// A vendor as it is typed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum HostVendor {
    /// VMX
    Intel,
    /// SVM
    Amd,
}

/// Arguments of `explain`.
#[derive(Debug, Arguments)]
pub struct Explain {
    /// The identifier of a rule, as findings print it
    pub id: String,
}
