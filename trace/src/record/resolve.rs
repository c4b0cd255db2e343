//! From a probe of the table to one on this kernel: which function, and where its arguments are.

use std::fmt::Write as _;

use super::btf::Btf;
use super::probes::{PARAMETERS, Probe};

/// How members of structures are read.
pub(super) enum Fields<'a> {
    /// At offsets that the kernel's type information tells.
    Offsets(&'a Btf),
    /// By their names, which the kernel looks up (6.4 and later). It knows no arrays.
    Names,
    /// Not at all.
    None,
}

/// Where a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// As the table writes it: a register, or the return address.
    Register(&'static str),
    /// Behind a register, following pointers: `+64(+672(%di))` is `[672, 64]`.
    Behind(&'static str, Vec<u32>),
    /// A parameter's member, by name.
    Named(String),
}

/// A value that a probe records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Argument {
    pub name: &'static str,
    pub place: Place,
    /// As kprobes write it: `x64`, `u32`, `symbol`.
    pub kind: &'static str,
}

/// A probe on this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub function: &'static str,
    pub arguments: Vec<Argument>,
    pub returns: bool,
}

impl Placed {
    pub fn new(
        probe: &Probe,
        function: &'static str,
        fields: &Fields<'_>,
        lost: &mut Vec<String>,
    ) -> Self {
        let plain = probe.arguments.iter().filter_map(|text| {
            let (name, place, kind) = split(text)?;
            Some(Argument { name, place: Place::Register(place), kind })
        });
        let mut arguments: Vec<Argument> = plain.collect();
        for text in probe.fields.iter().flat_map(|list| list.iter()) {
            let Some((name, path, kind)) = split(text) else { continue };
            match place(path, fields) {
                Some(place) => arguments.push(Argument { name, place, kind }),
                None if matches!(fields, Fields::Offsets(_)) => {
                    lost.push(format!("{function}: this kernel has no {path}"));
                }
                None => {}
            }
        }
        Self { function, arguments, returns: probe.returns }
    }

    /// The definition of a kprobe with all it can record.
    pub fn definition(&self) -> String {
        self.kprobe(|_| true)
    }

    /// The same with nothing but registers: what the kernel refuses must not cost the probe.
    pub fn registers(&self) -> String {
        self.kprobe(|argument| matches!(argument.place, Place::Register(_)))
    }

    fn kprobe(&self, wanted: impl Fn(&Argument) -> bool) -> String {
        let mut line = format!("p:kvmtlb/{0} {0}", self.function);
        for argument in self.arguments.iter().filter(|argument| wanted(argument)) {
            let Argument { name, place, kind } = argument;
            let _ = write!(line, " {name}={}:{kind}", place.text());
        }
        line
    }

    /// The definition of the probe on the return.
    pub fn on_return(&self) -> Option<String> {
        self.returns.then(|| format!("r:kvmtlb/{0}_ret {0} ret=$retval:s32", self.function))
    }
}

impl Place {
    fn text(&self) -> String {
        match self {
            Self::Register(text) => (*text).to_owned(),
            Self::Named(path) => path.clone(),
            Self::Behind(register, offsets) => {
                offsets.iter().fold((*register).to_owned(), |at, offset| format!("+{offset}({at})"))
            }
        }
    }
}

/// `name=PLACE:TYPE`.
fn split(text: &'static str) -> Option<(&'static str, &'static str, &'static str)> {
    let (name, rest) = text.split_once('=')?;
    let (place, kind) = rest.rsplit_once(':')?;
    Some((name, place, kind))
}

/// `PARAMETER->PATH|PATH` on this kernel.
fn place(text: &str, fields: &Fields<'_>) -> Option<Place> {
    let (parameter, paths) = text.split_once("->")?;
    let (_, register, structure) = PARAMETERS.iter().find(|(name, ..)| *name == parameter)?;
    let mut paths = paths.split('|');
    match fields {
        Fields::Offsets(btf) => paths
            .find_map(|path| btf.offsets(structure, path))
            .map(|offsets| Place::Behind(register, offsets)),
        // Kernels that look names up have the first spelling.
        Fields::Names => {
            let path = paths.next().filter(|path| !path.contains('['))?;
            Some(Place::Named(format!("{parameter}->{path}")))
        }
        Fields::None => None,
    }
}
