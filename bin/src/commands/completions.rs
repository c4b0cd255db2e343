//! `completions`: what the shell and `man` need to know, from the same description of the arguments.

use std::path::Path;

use anyhow::{Context, Result};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Verdict;
use crate::args::{Args, Completions, CompletionsOf};
use crate::output;

/// Runs the command.
pub fn run(command: &Completions) -> Result<Verdict> {
    let shell = match command.of {
        CompletionsOf::Bash => Shell::Bash,
        CompletionsOf::Elvish => Shell::Elvish,
        CompletionsOf::Fish => Shell::Fish,
        CompletionsOf::Powershell => Shell::PowerShell,
        CompletionsOf::Zsh => Shell::Zsh,
        CompletionsOf::Man => return manual(command.output.as_deref()),
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::describe(), "tlbscope", &mut script);
    let path = command.output.as_deref().unwrap_or(Path::new("-"));
    output::write_file(path, |out| Ok(out.write_all(&script)?))?;
    Ok(Verdict::Clean)
}

/// The manual pages: into a folder one for each command, to standard output the first alone.
fn manual(folder: Option<&Path>) -> Result<Verdict> {
    let mut args = Args::describe();
    args.build();
    let Some(folder) = folder else {
        output::write_file(Path::new("-"), |out| Ok(Man::new(args).render(out)?))?;
        return Ok(Verdict::Clean);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_page(&args, "tlbscope", folder)?;
    Ok(Verdict::Clean)
}

fn write_page(command: &clap::Command, name: &str, folder: &Path) -> Result<()> {
    let page = Man::new(command.clone().display_name(name.to_owned())).title(name);
    let path = folder.join(format!("{name}.1"));
    output::write_file(&path, |out| Ok(page.render(out)?))?;
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        write_page(below, &format!("{name}-{}", below.get_name()), folder)?;
    }
    Ok(())
}
