//! `policy explain P OP`: what a policy does at one operation, from the write to the next entry.

use std::fmt::Write;

use anyhow::{Result, anyhow, bail};
use serde_json::json;
use tlbscope_analyze::diff::{self, Matched, Steps};
use tlbscope_sim::arch::required::{self, Strength};
use tlbscope_sim::policy;
use tlbscope_trace::op::Op;
use tlbscope_trace::text;

use super::catalog::one;
use super::policy_diff::machine;
use crate::Verdict;
use crate::args::Global;
use crate::render::hanging;

/// `policy explain`.
pub fn run(name: &str, operations: &[String], global: &Global) -> Result<Verdict> {
    let policy = policy::load(name)?;
    let ops = operations.iter().map(|operation| parse(operation)).collect::<Result<Vec<_>>>()?;
    let (mut text, mut details) = (String::new(), Vec::new());
    for (operation, op) in operations.iter().zip(&ops) {
        let all = diff::steps(&policy, op);
        if all.is_empty() {
            bail!(
                "`{operation}` is possible in none of the states that are tried (4-level, with and \
                 without PCIDs, PAE, 32-bit)"
            );
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text += &describe(&policy.name, operation, &all);
        details.push(json!({ "operation": operation, "machines": all }));
    }
    // One is told as an object, as it always was.
    let (key, detail) = match details.pop() {
        Some(only) if details.is_empty() => ("explanation", only),
        last => {
            details.extend(last);
            ("explanations", json!(details))
        }
    };
    one("policy-explain", &[], ("policy", &policy.name), (key, detail), &text, global)
}

/// An operation of the guest as scenarios write it, without the vCPU.
fn parse(operation: &str) -> Result<Op> {
    let line = format!("v0 {operation}");
    let lines = text::parse(&line).map_err(|error| {
        // The column is one of the line that was made of the operation.
        let column = (error.column as usize).saturating_sub("v0 ".len()).max(1);
        let near =
            error.suggestion.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
        let mark = format!("{:1$}^", "", column - 1);
        anyhow!(
            "`{operation}` is no operation: {}{near}\n  {operation}\n  {mark}\n  examples: 'cr4 \
             +SMEP', 'cr3 0x20000', 'invpcid all'",
            error.message
        )
    })?;
    let mut ops = lines.into_iter().map(|line| line.op);
    let (Some(op), None) = (ops.next(), ops.next()) else { bail!("one operation is wanted") };
    if !is_explained(&op) {
        bail!(
            "`{operation}`: what is explained is cr0, clts, lmsw, cr3, cr4, efer, taskswitch, \
             sregs, invlpg, invpcid, init, reset, what KVM emulates of them (emul), and of nested \
             guests l2enter, l2exit and l1"
        );
    }
    Ok(op)
}

/// Whether the operation is the guest's and may owe a flush.
fn is_explained(op: &Op) -> bool {
    match op {
        Op::Emul(inner) => is_explained(inner),
        Op::Cr0(_)
        | Op::Clts
        | Op::Lmsw(_)
        | Op::Cr3(_)
        | Op::Cr4(_)
        | Op::Efer(_)
        | Op::TaskSwitch(_)
        | Op::Sregs(_)
        | Op::Invlpg(_)
        | Op::Invpcid(_)
        | Op::Init
        | Op::Reset
        | Op::L2Enter(_)
        | Op::L2Exit(_)
        | Op::L1(_) => true,
        _ => false,
    }
}

fn describe(name: &str, operation: &str, all: &[Steps]) -> String {
    let mut out = format!("{operation} under {name}\n");
    let mut told: Vec<&Matched> = Vec::new();
    for steps in all {
        let states: Vec<&str> = steps.states.iter().map(|state| state.name()).collect();
        let _ = write!(out, "\n{}, {}\n", machine(steps.vendor, steps.mmu), states.join(", "));
        if let Some(fault) = steps.fault {
            let _ = writeln!(out, "  #GP: {fault}");
            continue;
        }
        let _ = writeln!(out, "{}", hanging("  owed:", &owed(steps)));
        if !steps.rules.is_empty() {
            let ids: Vec<&str> = steps.rules.iter().map(|rule| rule.id.as_str()).collect();
            let _ = writeln!(out, "{}", hanging("  rules that match:", &ids.join(", ")));
        }
        for (n, step) in steps.steps.iter().enumerate() {
            let _ = writeln!(out, "{}", hanging(&format!("  {:2}.", n + 1), step));
        }
        let _ = writeln!(out, "  comes to: {}", steps.verdict.name());
        for rule in &steps.rules {
            if !told.contains(&rule) {
                told.push(rule);
            }
        }
    }
    for (n, rule) in told.iter().enumerate() {
        if n == 0 {
            let _ = writeln!(out, "\nThe rules of {name}");
        }
        let _ = writeln!(out, "{}", hanging(&format!("  {}:", rule.id), &rule.about));
        if !rule.source.is_empty() {
            let _ = writeln!(out, "{}", hanging("    see", &rule.source));
        }
    }
    out
}

fn owed(steps: &Steps) -> String {
    if steps.owed.is_empty() {
        return "nothing".to_owned();
    }
    let words = |(id, strength): &(&'static str, Strength)| {
        let advised = if *strength == Strength::Advised { ", advised" } else { "" };
        let sentence = required::rule(id).map_or("", |rule| rule.sentence);
        format!("{sentence} ({id}{advised})")
    };
    steps.owed.iter().map(words).collect::<Vec<_>>().join(" ")
}
