//! Where policies are found by name: built-ins, policies that a scenario defines for itself, and
//! files; and how `extends` is followed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use toml::de::DeTable;

use super::Policy;
use super::builtin::BUILTINS;
use super::draft::Draft;
use super::error::PolicyError;
use super::nearest::nearest;

/// Bytes that a policy file may have.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Policies that may extend one another in one chain.
const CHAIN_MAX: usize = 64;

/// Policies by name. An empty library knows the built-ins and reads files.
#[derive(Clone, Debug, Default)]
pub struct Library {
    inline: BTreeMap<String, Draft>,
}

/// What a name stands for; two names of the same thing are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Inline(String),
    Builtin(usize),
    File(PathBuf),
    /// The document given to [`Library::parse`].
    Text,
}

impl Library {
    /// The built-ins alone.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the policy of a table, as `[policy.NAME]` of a scenario: same keys as a policy file.
    /// `text` is the document that the table is a part of.
    ///
    /// # Errors
    /// What is wrong with the table, or that the name is a built-in's.
    pub fn add_table(
        &mut self,
        name: &str,
        table: &DeTable<'_>,
        text: &str,
        origin: &str,
    ) -> Result<(), PolicyError> {
        if BUILTINS.iter().any(|(builtin, _)| *builtin == name) {
            let message = format!("\"{name}\" is the name of a built-in policy");
            return Err(PolicyError::whole(origin, message));
        }
        let draft = Draft::from_table(table, text, origin)?;
        self.inline.insert(name.to_owned(), draft);
        Ok(())
    }

    /// Every name it knows, in the order of the list of built-ins, then by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        BUILTINS.iter().map(|(name, _)| *name).chain(self.inline.keys().map(String::as_str))
    }

    /// The policy of that name or path.
    ///
    /// # Errors
    /// The name is unknown, a file cannot be read, or what is wrong with its text.
    pub fn load(&self, name_or_path: &str) -> Result<Policy, PolicyError> {
        let source = self
            .source(name_or_path, None)
            .ok_or_else(|| PolicyError::whole("", self.unknown(name_or_path)))?;
        let draft = self.draft(&source, name_or_path)?;
        self.resolve(source, draft, name_or_path)
    }

    /// The policy of a text.
    ///
    /// # Errors
    /// What is wrong with the text, or with what it extends.
    pub fn parse(&self, text: &str, origin: &str) -> Result<Policy, PolicyError> {
        let draft = Draft::parse(text, origin)?;
        self.resolve(Source::Text, draft, &stem(origin))
    }

    /// The sentence that answers an unknown name: with the nearest known one, or, for a name cut
    /// at a dot by TOML, that it must be quoted.
    #[must_use]
    pub fn unknown(&self, name: &str) -> String {
        let dotted = format!("{name}.");
        if let Some(whole) = self.names().find(|known| known.starts_with(&dotted)) {
            return format!(
                "unknown policy \"{name}\"; a name with a dot must be quoted: \"{whole}\""
            );
        }
        match nearest(name, self.names()) {
            Some(near) => format!("unknown policy \"{name}\"; did you mean \"{near}\"?"),
            None => format!("unknown policy \"{name}\": neither a built-in nor a file"),
        }
    }

    /// What a name stands for. A path is relative to the file that names it.
    fn source(&self, name: &str, from: Option<&Path>) -> Option<Source> {
        if self.inline.contains_key(name) {
            return Some(Source::Inline(name.to_owned()));
        }
        if let Some(index) = BUILTINS.iter().position(|(builtin, _)| *builtin == name) {
            return Some(Source::Builtin(index));
        }
        let path = from.and_then(Path::parent).map_or_else(|| name.into(), |dir| dir.join(name));
        let looks_like_path = name.contains('/') || name.ends_with(".toml");
        if looks_like_path || path.is_file() {
            // One file under two spellings must be one node, or a cycle would not be seen.
            return Some(Source::File(path.canonicalize().unwrap_or(path)));
        }
        None
    }

    fn draft(&self, source: &Source, name: &str) -> Result<Draft, PolicyError> {
        match source {
            Source::Builtin(index) => {
                let (name, text) = BUILTINS[*index];
                Draft::parse(text, name)
            }
            Source::File(path) => Draft::parse(&read(path, name)?, name),
            Source::Inline(key) => Ok(self.inline[key].clone()),
            Source::Text => Err(PolicyError::whole(name, "a text has no name to extend it by")),
        }
    }

    /// Follows `extends` from `draft` and lays the chain over an empty policy.
    fn resolve(&self, source: Source, draft: Draft, name: &str) -> Result<Policy, PolicyError> {
        let mut graph: DiGraph<(), ()> = DiGraph::new();
        let mut nodes: BTreeMap<Source, NodeIndex> = BTreeMap::new();
        let mut node = graph.add_node(());
        nodes.insert(source.clone(), node);
        let mut chain = vec![(draft, name.to_owned(), source)];
        while let Some((draft, _, source)) = chain.last() {
            let Some(extends) = draft.extends.clone() else { break };
            let here = |message| PolicyError {
                origin: draft.origin.clone(),
                place: Some(extends.place),
                message,
            };
            let from = match source {
                Source::File(path) => Some(path.as_path()),
                Source::Text | Source::Inline(_) => Some(Path::new(&draft.origin)),
                Source::Builtin(_) => None,
            };
            let base = self
                .source(&extends.name, from)
                .ok_or_else(|| here(self.unknown(&extends.name)))?;
            let known = nodes.get(&base).copied();
            let base_node = known.unwrap_or_else(|| graph.add_node(()));
            graph.add_edge(node, base_node, ());
            if toposort(&graph, None).is_err() {
                let names: Vec<&str> = chain.iter().map(|(_, name, _)| name.as_str()).collect();
                let message =
                    format!("extends goes in a circle: {} -> {}", names.join(" -> "), extends.name);
                return Err(here(message));
            }
            if chain.len() >= CHAIN_MAX {
                return Err(here(format!("more than {CHAIN_MAX} policies extend one another")));
            }
            nodes.insert(base.clone(), base_node);
            node = base_node;
            let next = self.draft(&base, &extends.name)?;
            chain.push((next, extends.name, base));
        }
        Ok(chain
            .into_iter()
            .rev()
            .fold(Policy::empty(), |base, (draft, name, _)| draft.over(base, &stem(&name))))
    }
}

/// The name of a policy that gives none: its file's, without directory and `.toml`.
fn stem(origin: &str) -> String {
    let name = origin.rsplit('/').next().unwrap_or(origin);
    name.strip_suffix(".toml").unwrap_or(name).to_owned()
}

fn read(path: &Path, name: &str) -> Result<String, PolicyError> {
    let failed = |e: std::io::Error| PolicyError::whole(name, format!("cannot be read: {e}"));
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(PolicyError::whole(name, format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}
