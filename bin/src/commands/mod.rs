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

/// Carries out what was typed.
pub fn run(args: &Args) -> Result<Verdict> {
    let global = &args.global;
    ThreadPoolBuilder::new()
        .num_threads(global.threads)
        .build_global()
        .context("cannot start the threads")?;
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
