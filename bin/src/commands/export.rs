//! `export`: the operations of a trace in another form.

use anyhow::Result;
use serde_json::json;
use tlbscope_trace::op::{Actor, Event};
use tlbscope_trace::text;

use super::simulate::{verdict, warn_of_losses};
use crate::Verdict;
use crate::args::{Export, Form, Global};
use crate::{input, output};

/// Runs the command.
pub fn run(command: &Export, global: &Global) -> Result<Verdict> {
    match command.to {
        Form::Scenario => return super::export_scenario::run(command, global),
        Form::Perfetto => return super::export_perfetto::run(command, global),
        Form::Text | Form::Jsonl => {}
    }
    let (recording, _) = input::open(&command.input, &command.reading.reading())?;
    warn_of_losses(&recording);
    output::write_file(&command.output, |out| {
        for (record, op) in recording.ops() {
            let event = Event { time: record.time, actor: record.actor, op: op.clone() };
            match command.to {
                Form::Text | Form::Scenario | Form::Perfetto => {
                    writeln!(out, "{}", text::write_event(&event))?
                }
                Form::Jsonl => {
                    let actor = match record.actor {
                        Actor::Vcpu(v) => v.to_string(),
                        Actor::Host => "host".to_owned(),
                    };
                    let op = text::write_op(op);
                    let line = json!({ "time": record.time, "actor": actor, "op": op });
                    writeln!(out, "{line}")?;
                }
            }
        }
        Ok(())
    })?;
    Ok(verdict(&[recording], false))
}
