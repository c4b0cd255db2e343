//! What the reference chapters must not leave out.

use std::path::Path;
use std::process::Command;

use tlbscope_sim::policy;

use crate::{pages, read};

/// The words of `words` that no inline code of the page names.
fn unnamed<'a>(page: &str, words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let text = read(Path::new(page));
    let code: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let named = |word: &str| code.iter().any(|code| code.split_whitespace().any(|w| w == word));
    words.into_iter().filter(|word| !named(word)).collect()
}

#[test]
fn every_mechanic_is_described() {
    let newest = policy::load("kvm-7.3").unwrap();
    let keys = newest.mechanics.entries();
    let keys = keys.iter().map(|(key, _)| *key).filter(|key| *key != "remote-flush");
    assert_eq!(unnamed("docs/src/formats/policy.md", keys), Vec::<&str>::new());
    let remote = newest.mechanics.remote_flush.entries();
    let keys = remote.iter().map(|(key, _)| *key);
    assert_eq!(unnamed("docs/src/formats/policy.md", keys), Vec::<&str>::new());
}

#[test]
fn every_command_stands_somewhere() {
    let output = Command::new(env!("CARGO_BIN_EXE_tlbscope")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let list = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands: Vec<&str> = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 10, "{help}");
    let texts: Vec<String> = pages().iter().map(|page| read(page)).collect();
    for name in commands {
        let shown = format!("tlbscope {name}");
        let code = format!("`{name}`");
        let named = |text: &String| text.contains(&shown) || text.contains(&code);
        assert!(texts.iter().any(named), "`{name}` stands nowhere");
    }
}
