//! The comparison as text.

use std::fmt::Write;

use super::{Disagreement, Fidelity};

/// A line of a table: a name, how many, how many agree.
pub type Row = (String, u64, u64);

/// Inputs that are said in words, for one may doubt that they have to be taken.
const ARGUED: [(&str, &str); 2] = [
    (
        "guest-fault",
        "a fault that the guest's own tables call for is what the guest did, as an instruction is;\n\
         \x20     what KVM does about it is predicted",
    ),
    (
        "pdptes-changed",
        "that load_pdptrs read other PDPTEs than before is told by the root that it freed;\n\
         \x20     no recording shows the entries, which the guest writes without an exit",
    ),
];

/// The report for people.
#[must_use]
pub fn text(fidelity: &Fidelity, verbose: bool) -> String {
    let s = &fidelity.summary;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} under {}: {} of {} operations agree",
        s.trace, s.policy, s.agreed, s.operations
    );
    if s.not_compared > 0 {
        let _ = writeln!(
            out,
            "  {} more are not compared: the recording begins, or lost events, a little before",
            s.not_compared
        );
    }
    let inputs: Vec<String> =
        s.inputs_taken.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let none = inputs.is_empty();
    let inputs = if none { "none".to_owned() } else { inputs.join(", ") };
    let _ = writeln!(out, "  inputs taken from the recording: {inputs}");
    for (name, why) in ARGUED {
        if let Some(count) = s.inputs_taken.get(name) {
            let _ = writeln!(out, "    {name} {count}: {why}");
        }
    }
    let _ = writeln!(out, "  by operation:");
    for (name, row) in &fidelity.by_operation {
        let _ = writeln!(out, "    {name:<16} {:>8} of {:>8}", row.agreed, row.total);
    }
    let _ = writeln!(out, "  by action:");
    for (name, row) in &fidelity.by_action {
        let _ = writeln!(out, "    {name:<16} {:>8} of {:>8}", row.agreed, row.total);
    }
    let given = fidelity.counters.values().any(|row| row.statistics.is_some());
    let head = if given { "recorded, modelled, KVM's own" } else { "recorded and modelled" };
    let _ = writeln!(out, "  counters, {head}:");
    for (name, row) in &fidelity.counters {
        let equal = row.recorded == row.modelled
            && row.statistics.is_none_or(|statistics| statistics == row.modelled);
        let mark = if equal { "" } else { " *" };
        let kvm = row.statistics.map_or(String::new(), |n| format!(" {n:>8}"));
        let _ = writeln!(out, "    {name:<16} {:>8} {:>8}{kvm}{mark}", row.recorded, row.modelled);
    }
    if fidelity.counters.get("tlb_flush").is_some_and(|row| row.recorded != row.modelled) {
        out.push_str(
            "    * no event shows tlb_flush itself: recorded are the hooks that no LOAD called, among\n\
             \x20     them direct calls that the kernel does not count\n",
        );
    }
    let shown = if verbose { usize::MAX } else { 10 };
    for one in fidelity.disagreements.iter().take(shown) {
        out.push_str(&disagreement(one));
    }
    out
}

/// One disagreement, both lists side by side.
fn disagreement(one: &Disagreement) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "\ndisagreement: {}: {}", one.operation, one.why);
    let (from, to) = one.lines;
    let _ = writeln!(out, "  --> lines {from} to {to}, v{}, {} ns", one.vcpu, one.time);
    let rows = one.recorded.len().max(one.modelled.len());
    for n in 0..rows {
        let (line, left) = match one.recorded.get(n) {
            Some((line, text)) => (line.to_string(), text.as_str()),
            None => (String::new(), ""),
        };
        let right = one.modelled.get(n).map_or("", String::as_str);
        let mark = if left == right { ' ' } else { '*' };
        let _ = writeln!(out, "  {mark} {line:>8} {left:<32} {right}");
    }
    out
}
