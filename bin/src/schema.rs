//! The schemas of `--format json`, generated from the types that are written.
//!
//! A document names its schema and the version (`tlbscope/audit/1`). Within a version keys are only
//! added. The files under docs/schema are what `tlbscope schema NAME` prints; a test holds them, and
//! the documents of every command, to it.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};
use tlbscope_analyze::audit::{self, Lack, Story};
use tlbscope_analyze::compare::{Row, Section};
use tlbscope_analyze::explain::Flat;
use tlbscope_analyze::finding::{Finding, Group};
use tlbscope_analyze::suppress::Suppression;
use tlbscope_analyze::{conformance, fidelity, replay, scenario};

use crate::input::Input;

/// Makes a schema.
type Make = fn() -> Schema;

/// The schemas, by the name of their command.
pub const ALL: [(&str, Make); 8] = [
    ("simulate", of::<Simulate>),
    ("compare", of::<Compare>),
    ("audit", of::<Audit>),
    ("fidelity", of::<Fidelity>),
    ("scenarios", of::<Scenarios>),
    ("conformance", of::<Conformance>),
    ("bench", of::<Bench>),
    ("suppressions", of::<Suppressed>),
];

/// The schema of a command, as text.
pub fn text(command: &str) -> Option<String> {
    let (_, make) = ALL.iter().find(|(name, _)| *name == command)?;
    let mut schema = make();
    schema.insert("$id".to_owned(), json!(crate::output::schema(command)));
    if command != "suppressions"
        && let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut)
    {
        properties.insert("schema".to_owned(), json!({ "const": crate::output::schema(command) }));
    }
    serde_json::to_string_pretty(&schema).ok().map(|text| text + "\n")
}

fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

/// The program.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "its schema is what is wanted of it")]
struct Tool {
    name: String,
    version: String,
}

/// Declares what a command writes: the keys that all have, and its own.
macro_rules! documents {
    ($($(#[$doc:meta])* $name:ident { summary: $summary:ty, $($(#[$of:meta])* $key:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(JsonSchema)]
            #[serde(deny_unknown_fields)]
            #[allow(dead_code, reason = "its schema is what is wanted of it")]
            struct $name {
                /// Name and version of this schema.
                schema: String,
                /// What wrote it.
                tool: Tool,
                /// What was read.
                inputs: Vec<Input>,
                /// The numbers.
                summary: $summary,
                $($(#[$of])* $key: $type,)*
            }
        )*
    };
}

documents! {
    /// What `tlbscope simulate --format json` prints.
    Simulate {
        summary: Vec<replay::Summary>,
        /// The findings that are kept and shown.
        findings: Vec<Told>,
        /// Exact numbers of every kind of finding.
        groups: Vec<Counted>,
        /// Every counter that is not 0.
        counts: BTreeMap<String, u64>,
    }
    /// What `tlbscope compare --format json` prints.
    Compare {
        summary: Vec<replay::Summary>,
        /// One for each trace.
        comparisons: Vec<Compared>,
    }
    /// What `tlbscope audit --format json` prints.
    Audit {
        summary: Vec<audit::Summary>,
        /// One for each recording.
        recordings: Vec<Recording>,
    }
    /// What `tlbscope fidelity --format json` prints.
    Fidelity {
        summary: fidelity::Summary,
        by_operation: BTreeMap<String, fidelity::Agreement>,
        by_action: BTreeMap<String, fidelity::Agreement>,
        counters: BTreeMap<String, fidelity::Counter>,
        disagreements: Vec<fidelity::Disagreement>,
    }
    /// What `tlbscope scenarios --format json` prints.
    Scenarios {
        summary: Passed,
        cases: Vec<ScenarioCase>,
    }
    /// What `tlbscope conformance --format json` prints.
    Conformance {
        summary: Passed,
        groups: Vec<conformance::Group>,
        cases: Vec<conformance::CaseReport>,
    }
    /// What `tlbscope bench --format json` prints.
    Bench {
        summary: Vec<replay::Summary>,
        /// What differs from the baseline, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        changes: Option<Vec<Change>>,
        /// Conditions that hold.
        failed: Vec<Failed>,
    }
}

/// Declares objects inside documents.
macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $key:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(JsonSchema)]
            #[allow(dead_code, reason = "its schema is what is wanted of it")]
            struct $name {
                $($(#[$of])* $key: $type,)*
            }
        )*
    };
}

objects! {
    /// A finding of a replay.
    Told {
        #[serde(flatten)]
        finding: Finding,
        /// The chain of cause.
        chain: Flat,
        /// What the other vendor's manual says.
        #[serde(skip_serializing_if = "Option::is_none")]
        other_vendor: Option<String>,
        /// The suppression that accepts it.
        #[serde(skip_serializing_if = "Option::is_none")]
        suppressed: Option<Suppression>,
    }
    /// How many findings have something in common.
    Counted {
        group: Group,
        count: u64,
        /// The suppression that accepts them.
        #[serde(skip_serializing_if = "Option::is_none")]
        suppressed: Option<Suppression>,
    }
    /// The comparison of one trace.
    Compared {
        trace: String,
        rows: Vec<Row>,
        /// The same taken apart by `--by`.
        #[serde(skip_serializing_if = "Option::is_none")]
        sections: Option<Vec<Section>>,
    }
    /// The audit of one recording.
    Recording {
        trace: String,
        /// From what vendor, MMU and kernel were concluded.
        evidence: Vec<String>,
        /// What is not recorded, and what cannot be judged for it.
        lacks: Vec<Lack>,
        findings: Vec<Audited>,
        groups: Vec<Counted>,
        /// What the host did for each kind of operation.
        #[serde(skip_serializing_if = "Option::is_none")]
        transitions: Option<Vec<Transition>>,
    }
    /// A finding of an audit.
    Audited {
        finding: Finding,
        story: Story,
        #[serde(skip_serializing_if = "Option::is_none")]
        other_vendor: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        suppressed: Option<Suppression>,
    }
    /// What the host did for the operations of one kind.
    Transition {
        operation: String,
        count: u64,
        /// Acts by name, those that are not 0.
        acts: BTreeMap<String, u64>,
    }
    /// How many cases passed.
    Passed {
        passed: u64,
        failed: u64,
        skipped: u64,
    }
    /// A number that is not that of the baseline.
    Change {
        trace: String,
        policy: String,
        metric: String,
        before: u64,
        after: u64,
    }
    /// A condition that holds, and for which run.
    Failed {
        condition: String,
        trace: String,
        policy: String,
    }
    /// A file of `--suppress`, as TOML has it.
    Suppressed {
        suppress: Vec<Accepted>,
    }
    /// Findings that are accepted.
    Accepted {
        /// The rule, or what was too much.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
        /// The operation or mechanism: a word of findings, or a function of KVM.
        #[serde(skip_serializing_if = "Option::is_none")]
        function: Option<String>,
        /// The policy, or the recorded kernel's.
        #[serde(skip_serializing_if = "Option::is_none")]
        policy: Option<String>,
        /// The verdict or its class.
        #[serde(skip_serializing_if = "Option::is_none")]
        verdict: Option<String>,
        /// Why they are accepted.
        reason: String,
    }
}

/// One expectation, or one that was run in several orders.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "its schema is what is wanted of it")]
enum ScenarioCase {
    One(scenario::CaseReport),
    Orders(scenario::OrdersReport),
}
