//! `policy new --from P`: a policy file to start from.

use std::path::Path;

use anyhow::{Result, bail};
use tlbscope_sim::policy;

use crate::Verdict;
use crate::output;

/// Writes a policy that extends another, with that one's rules and mechanics as comments.
pub fn run(from: &str, name: Option<&str>, output: Option<&Path>) -> Result<Verdict> {
    let parent = policy::load(from)?;
    let stem = output.and_then(Path::file_stem).and_then(|stem| stem.to_str());
    let name = name.or(stem).unwrap_or("my-patch");
    if policy::builtins().iter().any(|(builtin, _)| *builtin == name) {
        bail!("`{name}` is the name of a built-in; choose another with --name");
    }
    let mut text = format!(
        "name = {}\n\
         about = \"What the patch changes, in one sentence.\"\n\
         extends = {}\n\n\
         # Everything below is what it inherits. Rules of one register replace the inherited list\n\
         # as a whole: uncomment all rules of a register to change one. A mechanic may stand alone,\n\
         # under [mechanics].\n",
        quoted(name),
        quoted(from)
    );
    let inherited = parent.to_toml();
    let rules = inherited.split_once("\n\n").map_or("", |(_, rules)| rules);
    for line in rules.lines() {
        text += if line.is_empty() { "\n" } else { "# " };
        text += line;
        if !line.is_empty() {
            text.push('\n');
        }
    }
    match output {
        Some(path) => output::write_file(path, |out| Ok(out.write_all(text.as_bytes())?))?,
        None => output::print(&text)?,
    }
    Ok(Verdict::Clean)
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
