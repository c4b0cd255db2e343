//! One module per command.

mod audit;
mod bench;
mod catalog;
mod compare;
mod completions;
mod conformance;
mod explain;
mod export;
mod export_perfetto;
mod export_scenario;
mod fidelity;
mod generate;
mod import;
mod info;
mod policy_check;
mod policy_diff;
mod policy_diff_page;
mod policy_explain;
mod policy_new;
mod record;
mod scenarios;
mod schema;
mod simulate;

use anyhow::{Context, Result};
use rayon::ThreadPoolBuilder;

use crate::Verdict;
use crate::args::{Args, Command};

/// Bytes of stack of a thread: what the first thread of a process has on most systems.
const STACK_BYTES: usize = 8 << 20;

/// Carries out what was typed, on a thread of the pool: work that is given to the pool from outside
/// wakes one thread and puts another to sleep each time, which for one batch of events is a third of
/// what it costs to replay it.
pub fn run(args: &Args) -> Result<Verdict> {
    let pool = ThreadPoolBuilder::new().num_threads(args.global.threads).stack_size(STACK_BYTES);
    pool.build_global().context("cannot start the threads")?;
    rayon::scope(|_| carry_out(args))
}

fn carry_out(args: &Args) -> Result<Verdict> {
    let global = &args.global;
    match &args.command {
        Command::Simulate(command) => simulate::run(command, global),
        Command::Compare(command) => compare::run(command, global),
        Command::Fidelity(command) => fidelity::run(command, global),
        Command::Audit(command) => audit::run(command, global),
        Command::Scenarios(command) => scenarios::run(command, global),
        Command::Conformance(command) => conformance::run(command, global),
        Command::Import(command) => import::run(command, global),
        Command::Generate(command) => generate::run(command, global),
        Command::Export(command) => export::run(command, global),
        Command::Record(command) => record::run(command),
        Command::Info(command) => info::run(command, global),
        Command::Policy(command) => catalog::policy(command, global),
        Command::Machine(command) => catalog::machine(command, global),
        Command::Explain(command) => explain::explain(command, global),
        Command::Bench(command) => bench::run(command, global),
        Command::Schema(command) => schema::run(command),
        Command::Completions(command) => completions::run(command),
    }
}
