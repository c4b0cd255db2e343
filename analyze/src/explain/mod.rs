//! Why a finding came about: its chain of cause, from the operation that required a flush, over
//! what the policy did instead, to the fill that the stale translation came from, the root it
//! survived under, and the use.
//!
//! The judge keeps no history. A chain is found by running the same work again with a [`Witness`]
//! that watches for the findings' events: the run is deterministic, so it is the same run.

mod witness;
pub mod words;

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

pub use witness::Witness;

/// What a step of a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// The operation that owed the invalidation, or that had the excessive act done.
    Operation,
    /// What hypervisor and hardware did about it, up to the next entry.
    Answer,
    /// The fill that made the copy.
    Fill,
    /// The root under which the copy was in reach.
    Root,
    /// The access that used it.
    Use,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Step {
    /// What it is.
    pub kind: StepKind,
    /// In which event it happened; `None`: before the first one.
    pub event: Option<u64>,
    /// In words.
    pub what: String,
}

/// How one step leads to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// The operation was answered so.
    AnsweredBy,
    /// The answer left the copy of this fill.
    Left,
    /// The copy stayed in reach under this root.
    ReachedBy,
    /// It was used.
    UsedBy,
}

/// The chain of cause of one finding.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    graph: DiGraph<Step, Link>,
}

impl Chain {
    fn step(&mut self, kind: StepKind, event: Option<u64>, what: String) -> NodeIndex {
        self.graph.add_node(Step { kind, event, what })
    }

    fn link(&mut self, from: NodeIndex, link: Link, to: NodeIndex) {
        self.graph.add_edge(from, to, link);
    }

    /// The steps, from the operation to the use, with the depth to indent each by.
    #[must_use]
    pub fn story(&self) -> Vec<(usize, &Step)> {
        let depth = |node: NodeIndex| {
            let mut depth = 0;
            let mut at = node;
            while let Some(edge) = self.graph.edges_directed(at, petgraph::Incoming).next() {
                at = edge.source();
                depth += 1;
            }
            depth
        };
        self.graph.node_indices().map(|node| (depth(node), &self.graph[node])).collect()
    }
}

/// A chain as it is written.
#[derive(Serialize, JsonSchema)]
pub struct Flat {
    /// What happened, in order.
    steps: Vec<Step>,
    /// How one led to another.
    links: Vec<Edge>,
}

/// A link between two steps, by their places in the list.
#[derive(Serialize, JsonSchema)]
pub struct Edge {
    from: usize,
    to: usize,
    link: Link,
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let steps = self.graph.node_weights().cloned().collect();
        let edges = self.graph.edge_references();
        let links = edges
            .map(|e| Edge { from: e.source().index(), to: e.target().index(), link: *e.weight() })
            .collect();
        Flat { steps, links }.serialize(serializer)
    }
}
