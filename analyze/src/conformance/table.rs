//! A case against the table of requirements: which of its entries some demand covers. The reading
//! of scopes is this module's own; oracles and TLB have theirs.

use tlbscope_sim::arch::processor::{Broadcast, Instruction, Processor, Refusal, Step};
use tlbscope_sim::arch::required::processor::{Demand, Tags, What, Where, of_broadcast, of_step};
use tlbscope_sim::arch::required::{Rule, Scope, Strength};
use tlbscope_trace::act::Class;
use tlbscope_trace::addr::PcpuId;

use super::case::{Cached, Case, Copy};
use super::run::{Watcher, run};

/// A change of the table's data: another demand in the place of one, or none.
pub type Mutation<'a> = &'a dyn Fn(Demand) -> Option<Demand>;

/// The table as it is.
#[must_use]
pub fn unchanged(demand: Demand) -> Option<Demand> {
    Some(demand)
}

/// What the table demands for a case.
pub(super) struct Outcome {
    pub refusal: Option<Refusal>,
    /// For each entry the binding rule that wants it gone.
    pub demanded: Vec<Option<&'static Rule>>,
}

/// Collects demands.
struct Table<'a> {
    demands: Vec<(PcpuId, Demand)>,
    /// INVLPGBs without their TLBSYNC.
    under_way: Vec<(PcpuId, Broadcast)>,
    mutation: Mutation<'a>,
}

impl Table<'_> {
    fn demand(&mut self, pcpu: PcpuId, demand: Demand) {
        self.demands.extend((self.mutation)(demand).map(|demand| (pcpu, demand)));
    }
}

impl Watcher for Table<'_> {
    fn step(&mut self, pcpu: PcpuId, cpu: &Processor, did: &Instruction, step: &Step) {
        for demand in of_step(cpu, did, step) {
            self.demand(pcpu, demand);
        }
        if !matches!(step, Step::Done(_)) {
            return;
        }
        match did {
            Instruction::Invlpgb(b) => self.under_way.push((pcpu, cpu.broadcast(*b))),
            Instruction::Tlbsync => {
                let all = std::mem::take(&mut self.under_way);
                let (mine, others) = all.into_iter().partition(|(from, _)| *from == pcpu);
                self.under_way = others;
                let mine: Vec<_> = mine;
                for demand in mine.into_iter().flat_map(|(_, b)| of_broadcast(b)) {
                    self.demand(pcpu, demand);
                }
            }
            _ => {}
        }
    }
}

/// What the table demands for a case.
pub(super) fn outcome(case: &Case, mutation: Mutation<'_>) -> Outcome {
    let mut table = Table { demands: Vec::new(), under_way: Vec::new(), mutation };
    let refusal = run(case, &mut table);
    let demanded = |cached: &Cached| {
        let covering = table.demands.iter().find(|(pcpu, demand)| {
            demand.strength == Strength::Must && covers(*pcpu, demand, cached)
        });
        covering.map(|(_, demand)| demand.rule)
    };
    let demanded = case.cached.iter().map(demanded).collect();
    Outcome { refusal, demanded }
}

fn covers(pcpu: PcpuId, demand: &Demand, cached: &Cached) -> bool {
    let there = demand.on == Where::Every || pcpu == cached.tag.pcpu;
    there && tagged(demand.tags, cached) && wanted(&demand.what, cached)
}

fn tagged(tags: Tags, cached: &Cached) -> bool {
    let tag = &cached.tag;
    let linear = matches!(tag.class, Class::Linear | Class::Combined);
    let nested = matches!(tag.class, Class::Combined | Class::GuestPhysical);
    let asid = tag.class == Class::Asid;
    match tags {
        Tags::Vpid(vpid) => linear && tag.id == u32::from(vpid.0),
        Tags::GuestVpids => linear && tag.id != 0,
        Tags::Ept(root) => nested && tag.ep4ta == root,
        Tags::EveryEpt => nested,
        Tags::Combined(vpid, root) => {
            tag.class == Class::Combined && tag.id == u32::from(vpid.0) && tag.ep4ta == root
        }
        Tags::GuestPhysical(root) => tag.class == Class::GuestPhysical && tag.ep4ta == root,
        Tags::Asid(id) => asid && tag.id == id.0,
        Tags::EveryAsid => asid,
        Tags::All => true,
    }
}

/// An entry as scopes see it.
struct Seen<'a> {
    cached: &'a Cached,
    structure: bool,
    /// log2 of the region: of the whole page for a fragment.
    shift: u32,
}

impl Seen<'_> {
    fn at(&self, address: u64) -> bool {
        address >> self.shift == self.cached.address >> self.shift
    }

    fn made_under(&self, pcid: u16) -> bool {
        self.cached.tag.pcid.0 == pcid
    }

    fn global(&self) -> bool {
        self.cached.global && !self.structure
    }
}

fn wanted(what: &What, cached: &Cached) -> bool {
    let (structure, shift) = match cached.copy {
        Copy::Translation(_, whole) => (false, whole.shift()),
        Copy::Structure(_, shift) => (true, shift),
        Copy::Physical(size) => (false, size.shift()),
    };
    let seen = Seen { cached, structure, shift };
    match *what {
        What::Scope(scope) => in_scope(scope, &seen),
        What::Address { gva, path } => seen.at(gva.0) || structure && !path,
        What::NonGlobalTranslations => !structure && !cached.global,
        What::Physical(gpa) => seen.at(gpa.0),
        What::Broadcast(b) => {
            let pcid = b.pcid.is_none_or(|p| seen.made_under(p.0));
            pcid && (b.global || !seen.global()) && in_range(&b, &seen)
        }
        What::BroadcastOthers(b) => {
            seen.global() && b.pcid.is_some_and(|p| !seen.made_under(p.0)) && in_range(&b, &seen)
        }
    }
}

/// Whether one of the pages of an INVLPGB lies in the entry's.
fn in_range(b: &Broadcast, seen: &Seen<'_>) -> bool {
    let Some(va) = b.va else { return true };
    let first = seen.cached.address >> seen.shift << seen.shift;
    let last = first | ((1 << seen.shift) - 1);
    let stride = b.stride.bytes();
    let steps = first.saturating_sub(va.0).div_ceil(stride);
    steps <= u64::from(b.extra) && va.0.checked_add(steps * stride).is_some_and(|at| at <= last)
}

fn in_scope(scope: Scope, seen: &Seen<'_>) -> bool {
    match scope {
        Scope::Everything | Scope::EveryAsid => true,
        Scope::NonGlobal => !seen.global(),
        Scope::Pcid(pcid) => seen.made_under(pcid.0),
        Scope::PcidNonGlobal(pcid) => seen.made_under(pcid.0) && !seen.global(),
        Scope::OtherGlobals(pcid) => seen.global() && !seen.made_under(pcid.0),
        Scope::Address { pcid, gva, path } if seen.structure => {
            seen.made_under(pcid.0) && (!path || seen.at(gva.0))
        }
        Scope::Address { pcid, gva, .. } => {
            (seen.global() || seen.made_under(pcid.0)) && seen.at(gva.0)
        }
        Scope::AddressNonGlobal { pcid, gva } => {
            seen.made_under(pcid.0) && !seen.global() && seen.at(gva.0)
        }
        Scope::EveryPcidAddress(gva) => seen.at(gva.0),
        Scope::Fault { pcid, gva } => seen.made_under(pcid.0) && seen.at(gva.0),
        Scope::AddressOtherGlobals { pcid, gva } => {
            seen.global() && !seen.made_under(pcid.0) && seen.at(gva.0)
        }
        Scope::Frames { .. } => false,
    }
}
