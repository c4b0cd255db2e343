//! A finding as a story: the operation that owed the invalidation, what the host did for it, and the
//! entry at which it was still owed; each with the line it rests on.

use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_trace::act::Act;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, Event};
use tlbscope_trace::recording::{Body, Record};
use tlbscope_trace::text;

use super::Found;
use crate::finding::Kind;

/// Acts of a window that are told.
const WINDOW: usize = 24;
/// Records behind the operation within which they are looked for.
const REACH: usize = 4097;

/// One line of a recording, in a story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Line {
    /// The line of the source; 0 where it has none.
    pub line: u32,
    /// Nanoseconds since the recording's first event.
    pub time: u64,
    /// What it tells.
    pub what: String,
}

/// The chain of cause of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Story {
    /// The operation.
    pub cause: Line,
    /// What the host did between the operation and the next entry of its vCPU.
    pub acts: Vec<Line>,
    /// More acts than are told.
    pub more: usize,
    /// The entry at which it was found, or the act that was too much.
    pub seen: Line,
    /// What follows.
    pub verdict: String,
}

impl Story {
    fn new(found: &Found) -> Self {
        let unknown = Line { line: 0, time: 0, what: "before the first record".to_owned() };
        Self {
            cause: unknown.clone(),
            acts: Vec::new(),
            more: 0,
            seen: unknown,
            verdict: verdict(found),
        }
    }

    /// An act of the window. False: the window ends before it.
    fn tell(&mut self, record: &Record) -> bool {
        match &record.body {
            Body::Act(Act::EntrySeen | Act::Entry(_)) => return false,
            Body::Act(act) if told(act) && self.acts.len() < WINDOW => {
                self.acts.push(line(record));
            }
            Body::Act(act) => self.more += usize::from(told(act)),
            _ => {}
        }
        true
    }
}

/// Tells the stories of findings while the records go by.
pub struct Teller {
    stories: Vec<Story>,
    /// Whose acts each tells.
    actors: Vec<Actor>,
    /// The records at which one begins or ends, and which, latest first.
    places: Vec<(usize, Place, usize)>,
    /// The windows that are open: its vCPU, how many records it may still go on, its story.
    open: Vec<(Actor, usize, usize)>,
    records: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Cause,
    Seen,
}

impl Teller {
    pub fn new(found: &[Found]) -> Self {
        let places = found.iter().enumerate().flat_map(|(n, found)| {
            let cause = usize::try_from(found.finding.cause).unwrap_or(usize::MAX);
            [(cause, Place::Cause, n), (found.seen, Place::Seen, n)]
        });
        let mut places: Vec<_> = places.collect();
        places.sort_unstable_by(|a, b| b.cmp(a));
        let stories = found.iter().map(Story::new).collect();
        let actor = |found: &Found| Actor::Vcpu(VcpuId(found.finding.vcpu));
        let actors = found.iter().map(actor).collect();
        Self { stories, actors, places, open: Vec::new(), records: 0 }
    }

    /// Reads the next records.
    pub fn read(&mut self, records: &[Record]) {
        for record in records {
            let Self { stories, open, .. } = self;
            open.retain_mut(|(actor, left, story)| {
                *left -= 1;
                *left > 0 && (record.actor != *actor || stories[*story].tell(record))
            });
            while let Some(&(at, place, n)) = self.places.last()
                && at == self.records
            {
                self.places.pop();
                match place {
                    Place::Cause => {
                        self.stories[n].cause = line(record);
                        self.open.push((self.actors[n], REACH, n));
                    }
                    Place::Seen => self.stories[n].seen = line(record),
                }
            }
            self.records += 1;
        }
    }

    pub fn finish(self) -> Vec<Story> {
        self.stories
    }
}

/// Whether an act bears on a flush.
const fn told(act: &Act) -> bool {
    !matches!(
        act,
        Act::OldSeen { .. }
            | Act::RegSeen { .. }
            | Act::RootSeen { .. }
            | Act::VcpuLoad(_)
            | Act::SpNew { .. }
            | Act::SpFound { .. }
            | Act::Exit(_)
    )
}

fn verdict(found: &Found) -> String {
    let f = &found.finding;
    match f.kind {
        Kind::Exposed if f.op == "remote-flush" => format!(
            "v{} runs guest instructions although the host withdrew entries and asked for a flush",
            f.vcpu
        ),
        Kind::Exposed => format!(
            "v{} runs guest instructions while a translation that `{}` outlawed may be cached",
            f.vcpu, f.op
        ),
        Kind::Advised => format!(
            "v{} returns without a flush to a PCID through a shadow root that turned unsync since \
             that PCID was flushed",
            f.vcpu
        ),
        Kind::Excessive(_) => format!("{}: nothing owed it", f.mechanism),
        _ => String::new(),
    }
}

fn line(record: &Record) -> Line {
    let what = match &record.body {
        Body::Op(op) => {
            let event = Event { time: record.time, actor: record.actor, op: op.clone() };
            text::write_event(&event)
        }
        Body::Act(act) => act_text(act),
        Body::Gap(_) => "lost events".to_owned(),
    };
    Line { line: record.line, time: record.time.0, what }
}

/// An act in the words of the kernel.
fn act_text(act: &Act) -> String {
    use tlbscope_trace::act::{Hook, HookBy};
    match act {
        Act::Post(request) => format!("posts {request}"),
        Act::Serve(request) => format!("serves {request}"),
        Act::Reset { .. } => "kvm_mmu_reset_context".to_owned(),
        Act::Init => "kvm_init_mmu".to_owned(),
        Act::Unload => "kvm_mmu_unload".to_owned(),
        Act::FreeRoots { mask } => format!("frees roots, mask {mask:#x}"),
        Act::NewPgd(_) => "kvm_mmu_new_pgd".to_owned(),
        Act::Load => "kvm_mmu_load".to_owned(),
        Act::LoadPgd { root } => format!("loads the root {root}"),
        Act::SyncRoots => "kvm_mmu_sync_roots".to_owned(),
        Act::SyncPrevRoots => "kvm_mmu_sync_prev_roots".to_owned(),
        Act::FreeObsoleteRoots => "kvm_mmu_free_obsolete_roots".to_owned(),
        Act::InvalidatePcid(pcid) => format!("kvm_invalidate_pcid {pcid}"),
        Act::InvalidateGva(gva) => format!("kvm_mmu_invalidate_gva {gva}"),
        Act::LoadPdptrs { .. } => "load_pdptrs".to_owned(),
        Act::Hook { hook, by, .. } => {
            let name = match hook {
                Hook::All => "flush_tlb_all".to_owned(),
                Hook::Current => "flush_tlb_current".to_owned(),
                Hook::Guest => "flush_tlb_guest".to_owned(),
                Hook::Gva(gva) => format!("flush_tlb_gva {gva}"),
            };
            let by = match by {
                HookBy::Request => "by request",
                HookBy::Load => "by kvm_mmu_load",
                HookBy::Register => "by the vendor's register hook",
                HookBy::Direct => "called directly",
            };
            format!("{name} {by}")
        }
        Act::RemoteFlush { .. } => "kvm_flush_remote_tlbs".to_owned(),
        Act::SpUnsync { sp } => format!("shadow page {sp} turns unsync"),
        Act::SpSync { sp, .. } => format!("shadow page {sp} is synced"),
        Act::SpZap { sp } => format!("shadow page {sp} is zapped"),
        Act::PageFault { address, .. } => format!("page fault at {address:#x}"),
        Act::Inject { vector, .. } => format!("injects exception {vector}"),
        Act::EntrySeen | Act::Entry(_) => "enters the guest".to_owned(),
        Act::Exit(Some(reason)) => format!("exit {reason:#x}"),
        Act::Exit(None) => "exit".to_owned(),
        other => format!("{other:?}"),
    }
}
