//! Watches a run for the steps of known findings.

use rustc_hash::FxHashMap;
use tlbscope_trace::act::{Accessed, Act, ArchOp, At, Copied, Fill, FillKind, Mark, Tag, Via};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::Actor;
use tlbscope_trace::regs::Regs;

use super::{Chain, Link, StepKind, words};
use crate::finding::Finding;

/// Acts of one answer that are kept.
const ANSWERS: usize = 24;
/// log2 of the page sizes that can hold an address.
const SHIFTS: [u32; 4] = [12, 21, 22, 30];
/// The event index before the first event.
const BOOT: u64 = u64::MAX;

/// A fill of a page that some finding is about.
#[derive(Clone, Debug)]
struct Filled {
    event: u64,
    tag: Tag,
    copy: Copied,
    source: String,
}

/// What is known of one finding.
#[derive(Clone, Debug, Default)]
struct Watched {
    answers: Vec<String>,
    more: usize,
    /// The latest fill of each content.
    fills: Vec<Filled>,
    fill: Option<Filled>,
    root: Option<(u64, String)>,
    outcome: Option<String>,
}

/// Watches a run for the steps of findings.
#[derive(Clone, Debug)]
pub struct Witness<'a> {
    findings: &'a [Finding],
    watched: Vec<Watched>,
    causes: FxHashMap<u64, Vec<usize>>,
    uses: FxHashMap<u64, Vec<usize>>,
    pages: FxHashMap<(u16, u32, u64), Vec<usize>>,
    /// How each vCPU came to its root last.
    roots: Vec<Option<(u64, String)>>,
}

impl<'a> Witness<'a> {
    /// A witness of these findings.
    #[must_use]
    pub fn new(findings: &'a [Finding]) -> Self {
        let mut witness = Self {
            findings,
            watched: vec![Watched::default(); findings.len()],
            causes: FxHashMap::default(),
            uses: FxHashMap::default(),
            pages: FxHashMap::default(),
            roots: Vec::new(),
        };
        for (n, finding) in findings.iter().enumerate() {
            witness.causes.entry(finding.cause).or_default().push(n);
            if let Some(used) = finding.use_ {
                witness.uses.entry(used).or_default().push(n);
            }
            if let Some(address) = finding.address {
                for shift in SHIFTS {
                    let key = (finding.vcpu, shift, address >> shift);
                    witness.pages.entry(key).or_default().push(n);
                }
            }
        }
        witness
    }

    /// The last event that any of the findings is about: nothing later needs to be watched.
    #[must_use]
    pub fn last_event(&self) -> u64 {
        let events = self.findings.iter().flat_map(|f| [Some(f.cause), f.use_]).flatten();
        events.filter(|event| *event != BOOT).max().unwrap_or(0)
    }

    /// The chains, one for each finding, in their order.
    #[must_use]
    pub fn chains(self) -> Vec<Chain> {
        self.findings.iter().zip(self.watched).map(|(finding, seen)| chain(finding, seen)).collect()
    }

    fn root(&mut self, at: &At, what: String) {
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return };
        let vcpu = usize::from(vcpu);
        if self.roots.len() <= vcpu {
            self.roots.resize(vcpu + 1, None);
        }
        self.roots[vcpu] = Some((at.event, what));
    }
}

/// Whether an act of this actor answers the finding's cause for its vCPU.
fn concerns(finding: &Finding, actor: Actor) -> bool {
    match actor {
        Actor::Vcpu(vcpu) => vcpu.0 == finding.vcpu,
        Actor::Host => true,
    }
}

fn chain(finding: &Finding, seen: Watched) -> Chain {
    let mut chain = Chain::default();
    let event = |event: u64| (event != BOOT).then_some(event);
    let what = format!("{} [{}]", finding.op, finding.rule);
    let cause = chain.step(StepKind::Operation, event(finding.cause), what);
    let mut answer = seen.answers.join("; ");
    if seen.more > 0 {
        answer += &format!("; and {} more", seen.more);
    }
    if answer.is_empty() {
        answer = "nothing that drops a translation".to_owned();
    }
    let mut last = chain.step(StepKind::Answer, event(finding.cause), answer);
    chain.link(cause, Link::AnsweredBy, last);
    if let Some(fill) = &seen.fill {
        let frame = fill.copy.gpa.0;
        let rights: String = [(fill.copy.write, 'w'), (fill.copy.user, 'u'), (!fill.copy.xd, 'x')]
            .iter()
            .map(|(on, letter)| if *on { *letter } else { '-' })
            .collect();
        let what = format!("frame {frame:#x} {rights}, read from {}", fill.source);
        let step = chain.step(StepKind::Fill, event(fill.event), what);
        chain.link(last, Link::Left, step);
        last = step;
    }
    if let Some((at, what)) = seen.root {
        let step = chain.step(StepKind::Root, event(at), what);
        chain.link(last, Link::ReachedBy, step);
        last = step;
    }
    if let Some(used) = finding.use_ {
        let address = finding.address.unwrap_or(0);
        let outcome = seen.outcome.unwrap_or_default();
        let what = format!("{address:#x} through {}{outcome}", finding.mechanism);
        let step = chain.step(StepKind::Use, event(used), what);
        chain.link(last, Link::UsedBy, step);
    }
    chain
}

impl Observer for Witness<'_> {
    fn arch<W: World>(&mut self, at: &At, op: &ArchOp, _: &Regs, native: bool, _: &W) {
        if native
            && let ArchOp::Cr3 { .. } = op
            && !self.findings.is_empty()
        {
            self.root(at, "the guest's own MOV CR3, without an exit".to_owned());
        }
    }

    fn act<W: World>(&mut self, at: &At, act: &Act, _: &W) {
        match act {
            Act::NewPgd(found) => {
                let what = format!("root lookup: {}", words::lookup(*found));
                self.root(at, what);
            }
            Act::LoadPgd { root } => {
                let known = match at.actor {
                    Actor::Vcpu(v) => self.roots.get(usize::from(v.0)).cloned().flatten(),
                    Actor::Host => None,
                };
                // The installation of what a lookup found says less than the lookup.
                if known
                    .is_none_or(|(event, what)| event != at.event || what.ends_with("none fits"))
                {
                    self.root(at, format!("LOAD installs root {:#x}", root.0));
                }
            }
            _ => {}
        }
        let Some(of) = self.causes.get(&at.event) else { return };
        for n in of {
            if !concerns(&self.findings[*n], at.actor) {
                continue;
            }
            let Some(what) = words::act(act) else { continue };
            let watched = &mut self.watched[*n];
            if watched.answers.len() < ANSWERS {
                watched.answers.push(what);
            } else {
                watched.more += 1;
            }
        }
    }

    fn fill<W: World>(&mut self, at: &At, fill: &Fill, _: &W) -> Mark {
        let Actor::Vcpu(VcpuId(vcpu)) = at.actor else { return Mark::default() };
        if fill.kind != FillKind::Translation {
            return Mark::default();
        }
        let shift = fill.size.shift();
        let Some(of) = self.pages.get(&(vcpu, shift, fill.address >> shift)) else {
            return Mark::default();
        };
        let filled = Filled {
            event: at.event,
            tag: fill.tag,
            copy: fill.copy,
            source: words::source(&fill.source),
        };
        for n in of {
            let fills = &mut self.watched[*n].fills;
            fills.retain(|f| (f.tag, f.copy) != (filled.tag, filled.copy));
            fills.push(filled.clone());
        }
        Mark::default()
    }

    fn access<W: World>(&mut self, at: &At, access: &Accessed, _: &W) {
        let Some(of) = self.uses.get(&at.event) else { return };
        let Via::Copy { tag, copy, .. } = access.via else { return };
        for n in of {
            let finding = &self.findings[*n];
            if !concerns(finding, at.actor) || finding.address != Some(access.access.gva.0) {
                continue;
            }
            let watched = &mut self.watched[*n];
            let same = |f: &&Filled| f.tag == tag && f.copy.gpa == copy.gpa;
            watched.fill = watched.fills.iter().rev().find(same).cloned();
            watched.root = self.roots.get(usize::from(finding.vcpu)).cloned().flatten();
            let outcome = match access.outcome {
                tlbscope_trace::act::Outcome::Gpa(gpa) => format!(", reached {:#x}", gpa.0),
                tlbscope_trace::act::Outcome::Fault(code) => format!(", faulted with {code:#x}"),
            };
            watched.outcome.get_or_insert(outcome);
        }
    }
}
