//! Records as JSON Lines, for other programs: one object a line, keys always in this order.
//!
//! `{"time":1500,"actor":"v0","line":7,"op":"cr4 +SMEP"}` for an operation (in the event text of
//! scenarios), `"act":"Load"` for an act, `"gap":12` for lost events (`null`: how many is not
//! known).

use std::io::{self, Write};

use serde::Serialize;

use crate::op::Actor;
use crate::recording::{Body, Record};
use crate::text::write_op;

/// One line.
#[derive(Serialize)]
struct Row<'a> {
    time: u64,
    actor: &'a str,
    line: u32,
    #[serde(flatten)]
    body: What,
}

/// What is in it, under a key of its own.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Op(String),
    Act(String),
    Gap(Option<u64>),
}

/// Writes records as JSON Lines.
///
/// # Errors
/// The stream fails.
pub fn write<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    out: &mut impl Write,
) -> io::Result<()> {
    for record in records {
        let actor = match record.actor {
            Actor::Vcpu(vcpu) => vcpu.to_string(),
            Actor::Host => "host".to_owned(),
        };
        let body = match &record.body {
            Body::Op(op) => What::Op(write_op(op)),
            // The act's fields as Rust prints them: numbers in decimal, names as in `act`.
            Body::Act(act) => What::Act(format!("{act:?}")),
            Body::Gap(count) => What::Gap(*count),
        };
        let row = Row { time: record.time.0, actor: &actor, line: record.line, body };
        serde_json::to_writer(&mut *out, &row)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
