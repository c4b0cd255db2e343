//! Machines: what a scenario says of one ([`config`]), and the processors that give a simulated
//! machine finite caches and cycle costs ([`costs`], [`geometry`]).

pub mod config;
pub mod costs;
pub mod geometry;
mod limits;

use std::fs::File;
use std::io::Read;

use serde::Deserialize;

use crate::policy::PolicyError;
use crate::policy::nearest::nearest;
use costs::Costs;
use geometry::Geometry;

/// Bytes that a machine file may have.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A processor: a file of `sim/machines`, or a user's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Processor {
    /// Its name.
    pub name: String,
    /// One sentence.
    pub about: String,
    /// The frequency with which nanoseconds of a source were turned into cycles, in MHz.
    pub mhz: u32,
    /// The caches of translations; `None`: unbounded, never evicts.
    pub geometry: Option<Geometry>,
    /// Cycles of each act.
    #[serde(default)]
    pub cost: Costs,
}

/// Why a machine cannot be loaded. Prints as `ORIGIN:LINE:COLUMN: MESSAGE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct MachineError(PolicyError);

/// Lists files of `sim/machines`.
macro_rules! builtins {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../machines/", $name, ".toml")))),*]
    };
}

/// Name and text of each.
const BUILTINS: &[(&str, &str)] = builtins! {
    "unbounded" "skylake-sp" "ice-lake-sp" "sapphire-rapids" "zen2" "zen3" "zen4"
};

/// Name and text of every built-in.
#[must_use]
pub const fn builtins() -> &'static [(&'static str, &'static str)] {
    BUILTINS
}

/// The processor of a built-in's name or a path.
///
/// # Errors
/// The name is unknown, a file cannot be read, or what is wrong with its text.
pub fn load(name_or_path: &str) -> Result<Processor, MachineError> {
    if let Some((name, text)) = BUILTINS.iter().find(|(name, _)| *name == name_or_path) {
        return parse(text, name);
    }
    let looks_like_path = name_or_path.contains('/') || name_or_path.ends_with(".toml");
    if !looks_like_path {
        let names = BUILTINS.iter().map(|(name, _)| *name);
        let message = match nearest(name_or_path, names) {
            Some(near) => format!("unknown machine \"{name_or_path}\"; did you mean \"{near}\"?"),
            None => format!("unknown machine \"{name_or_path}\": neither a built-in nor a path"),
        };
        return Err(MachineError(PolicyError::whole("", message)));
    }
    parse(&read(name_or_path)?, name_or_path)
}

/// The processor of a text; `origin` names it in errors.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str, origin: &str) -> Result<Processor, MachineError> {
    let processor: Processor =
        toml::from_str(text).map_err(|e| MachineError(PolicyError::toml(origin, text, &e)))?;
    if let Some(geometry) = &processor.geometry {
        geometry.check().map_err(|m| MachineError(PolicyError::whole(origin, m)))?;
    }
    Ok(processor)
}

fn read(path: &str) -> Result<String, MachineError> {
    let failed =
        |e: std::io::Error| MachineError(PolicyError::whole(path, format!("cannot be read: {e}")));
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let message = format!("is longer than {FILE_BYTES_MAX} bytes");
        return Err(MachineError(PolicyError::whole(path, message)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
