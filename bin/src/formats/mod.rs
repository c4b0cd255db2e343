//! The forms of output: which command offers which, and the forms that commands share.
//!
//! Text is each command's own, JSON its whole answer ([`crate::output::envelope`]). The others are
//! made of a [`document::Document`] (what was found in traces) or of [`cases::Suites`] (what passed
//! and what failed). Each is one document on standard output, a valid one where nothing was found;
//! diagnostics go to standard error.

pub mod cases;
mod csv;
pub mod document;
mod jsonl;
mod junit;
mod markdown;
mod sarif;
pub mod text;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, Command, ValueEnum};

use crate::args::Format;
use document::Document;

use Format::{Csv, Html, Json, Jsonl, Junit, Markdown, Sarif, Text};

/// Who offers what, by the words of the command. Who is not listed has text and JSON.
const TABLE: [(&[&str], &[Format]); 8] = [
    (&["simulate"], FINDINGS),
    (&["compare"], FINDINGS),
    (&["audit"], FINDINGS),
    (&["fidelity"], &[Text, Json, Markdown]),
    (&["scenarios"], &[Text, Json, Markdown, Junit]),
    (&["conformance"], &[Text, Json, Markdown, Junit]),
    (&["bench"], &[Text, Json, Markdown, Junit]),
    (&["policy", "diff"], &[Text, Json, Markdown, Html]),
];

/// Where there are findings.
const FINDINGS: &[Format] = &[Text, Json, Jsonl, Csv, Markdown, Sarif, Junit];

/// What a command offers.
pub fn offered(command: &[&str]) -> &'static [Format] {
    let found = TABLE.iter().find(|(words, _)| *words == command);
    found.map_or(&[Text, Json], |(_, formats)| formats)
}

/// The name of a form as it is typed.
pub fn name(format: Format) -> String {
    format.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Adds `--format` to every command, with the forms that it offers.
pub fn offer(root: Command) -> Command {
    let all = root.clone();
    let mut root = root.arg(
        argument(FINDINGS)
            .help("How to print the result: text, json, or more where the command lists it")
            .hide_possible_values(true),
    );
    for command in all.get_subcommands() {
        let name = command.get_name().to_owned();
        let words = [name.clone()];
        root = root.mut_subcommand(name, |command| offer_below(command, &words));
    }
    root
}

fn offer_below(mut command: Command, words: &[String]) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    if names.is_empty() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        return command.arg(argument(offered(&words)));
    }
    for name in names {
        let below = [words, std::slice::from_ref(&name)].concat();
        command = command.mut_subcommand(name, |command| offer_below(command, &below));
    }
    command
}

fn argument(formats: &[Format]) -> Arg {
    let values = formats.iter().filter_map(ValueEnum::to_possible_value);
    let parser = PossibleValuesParser::new(values)
        .try_map(|text| Format::from_str(&text, false).map_err(std::io::Error::other));
    Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .help("How to print the result")
        .value_parser(parser)
}

/// A document in one of the forms that are made of it.
pub fn write(format: Format, document: &Document<'_>) -> Result<String> {
    match format {
        Jsonl => jsonl::write(document),
        Csv => csv::write(document),
        Markdown => Ok(markdown::write(document)),
        Sarif => sarif::write(document),
        Junit => junit::write(document),
        // Each command's own.
        Text | Json | Html => Ok(String::new()),
    }
}

/// Text inside a cell or a line of Markdown: nothing in it is markup.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A block of code in Markdown that its content cannot end.
pub fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{fence}text\n{text}{end}{fence}\n")
}
