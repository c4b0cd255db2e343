//! Prints what recordings hold: `cargo run --example census FILE...`.

use std::collections::BTreeMap;
use std::path::Path;

use tlbscope_trace::{Body, open};

fn main() {
    for path in std::env::args().skip(1) {
        let recording = match open(Path::new(&path)) {
            Ok(recording) => recording,
            Err(error) => {
                println!("{error}");
                continue;
            }
        };
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for record in &recording.records {
            let text = match &record.body {
                Body::Op(op) => format!("op {op:?}"),
                Body::Act(act) => format!("act {act:?}"),
                Body::Gap(_) => "gap".to_owned(),
            };
            let end = text[4..].find(['(', ' ', '{']).map_or(text.len(), |at| at + 4);
            *counts.entry(text[..end].to_owned()).or_default() += 1;
        }
        println!("== {path}\n{:#?}\n{counts:#?}", recording.meta);
        println!("{:#?}", recording.census);
    }
}
