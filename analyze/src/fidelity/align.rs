//! How two lists are laid side by side, and by what names their operations go.

use tlbscope_trace::act::{Act, HookBy, Request};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::op::{Actor, HostOp, Op};
use tlbscope_trace::recording::{Body, Record};
use tlbscope_trace::text;

use super::feed::Step;
use super::token::{Alphabet, Side, Token};
use super::window::Item;

/// A recorded free names slots by their CR3, also where no root is in them (facts 2.3), and not
/// every recording shows which were. A slot that the model holds no root in at the end was freed
/// by it too, or held none.
pub(super) fn without_empty_slots(
    tokens: &[Token],
    lines: &[u32],
    modelled: &[Token],
    valid: &[bool; 4],
) -> (Vec<Token>, Vec<u32>) {
    let empty = (1..4).filter(|n| !valid[*n]).fold(0, |mask, n| mask | 1 << n);
    let mut kept = (Vec::new(), Vec::new());
    let mut by_pcid = false;
    for (token, line) in tokens.iter().zip(lines) {
        let token = match (*token, modelled.get(kept.0.len())) {
            (Token::Free(asked), Some(Token::Free(freed)))
                if by_pcid && asked & !empty == 0 && asked & freed == *freed =>
            {
                Token::Free(*freed)
            }
            (Token::Free(asked), other)
                if by_pcid && asked & !empty == 0 && !matches!(other, Some(Token::Free(_))) =>
            {
                by_pcid = false;
                continue;
            }
            (token, _) => token,
        };
        by_pcid = matches!(token, Token::InvalidatePcid(_));
        kept.0.push(token);
        kept.1.push(*line);
    }
    kept
}

/// Where, in a window, a fault of the guest's own follows the work of an entry.
pub(super) fn unseen_entry(items: &[Item<'_>]) -> Option<usize> {
    let (mut entering, mut own) = (false, false);
    for (at, item) in items.iter().enumerate() {
        let Item::Record(record) = item else { continue };
        match &record.body {
            Body::Op(Op::Invlpg(_) | Op::Invpcid(_) | Op::Emul(_)) => own = true,
            Body::Act(Act::InvalidateGva(_)) if entering && !own => return Some(at),
            Body::Act(Act::LoadPgd { .. } | Act::Hook { by: HookBy::Request, .. }) => {
                entering = true;
            }
            _ => {}
        }
    }
    None
}

/// Whether the model has flushed everything at or behind this place of its list.
pub(super) fn flushed_since(side: &Side, alphabet: Alphabet, at: usize) -> bool {
    let visible = side.tokens.iter().filter(|token| alphabet.has(**token));
    visible.skip(at).any(|token| *token == Token::FlushAll)
}

/// Tokens that the recording could show.
pub(super) fn visible(side: &Side, alphabet: Alphabet) -> usize {
    side.tokens.iter().filter(|token| alphabet.has(**token)).count()
}

/// Requests that were pending in the recording alone.
pub(super) fn pending_alone(requests: u32) -> Option<String> {
    let alone = Request::ALL.iter().filter(|(request, _)| requests >> *request as u8 & 1 != 0);
    let names: Vec<&str> = alone.map(|(_, name)| *name).collect();
    (!names.is_empty()).then(|| format!("{} is pending in the recording alone", names.join(", ")))
}

/// Whether a vCPU's first window has its power-up reset: it was created in the recording.
pub(super) fn created(items: &[Item<'_>]) -> bool {
    items.iter().any(|item| match item {
        Item::Record(record) => matches!(record.body, Body::Op(Op::Reset)),
        Item::Outside(_) => false,
    })
}

pub(super) fn zaps(op: &HostOp) -> bool {
    matches!(op, HostOp::ZapAll)
}

pub(super) fn op_of(step: &Step) -> Option<&Op> {
    match step {
        Step::Op(op, _) => Some(op),
        Step::Load(_) | Step::Reg(..) | Step::Fault(..) | Step::PcidBits(_) => None,
    }
}

pub(super) fn kind_of(op: &Op) -> &'static str {
    match op {
        Op::Cr0(_) | Op::Clts | Op::Lmsw(_) => "cr0",
        Op::Cr3(_) => "cr3",
        Op::Cr4(_) => "cr4",
        Op::Efer(_) => "efer",
        Op::Invlpg(_) => "invlpg",
        Op::Invpcid(_) => "invpcid",
        Op::Init | Op::Reset => "init",
        Op::TaskSwitch(_) => "taskswitch",
        Op::Cpuid => "cpuid",
        Op::Sregs(_) => "sregs",
        Op::Smi | Op::Rsm => "smm",
        Op::MsrApicBase(_) => "apic-base",
        Op::PageFault { .. } => "page-fault",
        Op::Emul(inner) => kind_of(inner),
        _ => "other",
    }
}

pub(super) fn op_text(op: &Op, vcpu: VcpuId, entry: &Record) -> String {
    let actor = Actor::Vcpu(vcpu);
    text::write_event(&tlbscope_trace::op::Event { time: entry.time, actor, op: op.clone() })
}
