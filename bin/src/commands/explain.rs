//! `explain ID`: a rule of the manuals or of a policy, in one sentence with its citation.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tlbscope_sim::arch::required;
use tlbscope_sim::arch::required::elsewhere::elsewhere;
use tlbscope_sim::policy::rule::Register;
use tlbscope_sim::policy::{self, nearest};
use tlbscope_trace::regs::Vendor;

use super::catalog::one;
use crate::Verdict;
use crate::args::{Explain, Global};

/// `explain ID`.
pub fn explain(command: &Explain, global: &Global) -> Result<Verdict> {
    let id = command.id.as_str();
    let (text, detail) = match required::rule(id) {
        Some(rule) => of_the_manuals(rule),
        None => of_policies(id)?,
    };
    one("explain", &[], ("id", id), ("rule", detail), &text, global)
}

fn of_the_manuals(rule: &required::Rule) -> (String, Value) {
    let vendor = rule.vendor.map_or("both vendors".to_owned(), |v| format!("{v:?}"));
    let strength = format!("{:?}", rule.strength).to_lowercase();
    let read = if rule.verified { "" } else { " (the manual's text was not read)" };
    let (id, sentence, citation) = (rule.id, rule.sentence, rule.citation);
    let whose = match rule.vendor {
        None => "both vendors",
        Some(Vendor::Intel) => "Intel",
        Some(Vendor::Amd) => "AMD",
    };
    let mut text = format!("{id}: {sentence}\n  {citation}{read}\n  {whose}, {strength}\n");
    let machines = [Vendor::Intel, Vendor::Amd];
    let machines = machines.into_iter().filter(|machine| rule.vendor.is_none_or(|v| v == *machine));
    let others: Vec<&str> = machines.filter_map(|machine| elsewhere(id, machine)).collect();
    for other in &others {
        text += &format!("  {other}\n");
    }
    let detail = json!({
        "sentence": sentence,
        "citation": citation,
        "strength": strength,
        "vendor": vendor,
        "verified": rule.verified,
        "other_vendor": others,
    });
    (text, detail)
}

/// The rules of this name, each with the policies that have it.
fn of_policies(id: &str) -> Result<(String, Value)> {
    let mut found: Vec<(String, String, Vec<&str>)> = Vec::new();
    let mut names: Vec<String> = required::rules().map(|rule| rule.id.to_owned()).collect();
    for (name, _) in policy::builtins() {
        let policy = policy::load(name)?;
        for rule in Register::ALL.iter().flat_map(|register| policy.rules(*register)) {
            names.push(rule.id.clone());
            if rule.id != id {
                continue;
            }
            let same =
                |f: &&mut (String, String, Vec<&str>)| f.0 == rule.about && f.1 == rule.source;
            match found.iter_mut().find(same) {
                Some(entry) => entry.2.push(name),
                None => found.push((rule.about.clone(), rule.source.clone(), vec![name])),
            }
        }
    }
    if found.is_empty() {
        match nearest::nearest(id, names.iter().map(String::as_str)) {
            Some(near) => bail!("no rule is called `{id}`; did you mean `{near}`?"),
            None => bail!("no rule is called `{id}`"),
        }
    }
    let mut text = format!("{id}: a rule of policies\n");
    for (about, source, policies) in &found {
        text += &format!("  {about}\n    {source}\n    in {}\n", policies.join(", "));
    }
    let list: Vec<Value> = found
        .iter()
        .map(|(about, source, policies)| {
            json!({ "sentence": about, "citation": source, "policies": policies })
        })
        .collect();
    Ok((text, json!(list)))
}
