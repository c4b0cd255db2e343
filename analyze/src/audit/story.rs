//! A finding as a story: the operation that owed the invalidation, what the host did for it, and the
//! entry at which it was still owed; each with the line it rests on.

use schemars::JsonSchema;
use serde::Serialize;
use tlbscope_trace::act::Act;
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, Event};
use tlbscope_trace::recording::{Body, Recording};
use tlbscope_trace::text;

use super::Found;
use crate::finding::Kind;

/// Acts of a window that are told.
const WINDOW: usize = 24;

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
    /// The story of a finding.
    #[must_use]
    pub fn of(recording: &Recording, found: &Found) -> Self {
        let cause = usize::try_from(found.finding.cause).unwrap_or(usize::MAX);
        let (mut acts, mut more) = (Vec::new(), 0);
        let actor = Actor::Vcpu(VcpuId(found.finding.vcpu));
        let window = recording.records.iter().enumerate().skip(cause.saturating_add(1));
        for (index, record) in window.take(4096).filter(|(_, r)| r.actor == actor) {
            match &record.body {
                Body::Act(Act::EntrySeen | Act::Entry(_)) => break,
                Body::Act(act) if told(act) => {
                    if acts.len() < WINDOW {
                        acts.push(line(recording, index))
                    } else {
                        more += 1
                    }
                }
                _ => {}
            }
        }
        Self {
            cause: line(recording, cause),
            acts,
            more,
            seen: line(recording, found.seen),
            verdict: verdict(found),
        }
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

fn line(recording: &Recording, index: usize) -> Line {
    let Some(record) = recording.records.get(index) else {
        return Line { line: 0, time: 0, what: "before the first record".to_owned() };
    };
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
