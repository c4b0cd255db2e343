//! Carries out the operations of a case, once for each set of entries that can be cached together.

use tlbscope_sim::arch::processor::{Instruction, Processor, Refusal, Step};
use tlbscope_trace::addr::PcpuId;

use super::case::Case;
use super::operation::Operation;

/// Who watches the steps of a case: the hardware, or the table.
pub(super) trait Watcher {
    /// A step of the processor `cpu`, as it was before, took this turn.
    fn step(&mut self, pcpu: PcpuId, cpu: &Processor, did: &Instruction, step: &Step);
}

/// Runs the operations up to the first that is refused.
pub(super) fn run(case: &Case, watcher: &mut impl Watcher) -> Option<Refusal> {
    // Processors that no operation named stand where the case's own one began.
    let mut processors: Vec<(PcpuId, Processor)> = Vec::new();
    let mut here = case.pcpu;
    for operation in &case.operations {
        let (pcpu, instruction) = match operation {
            Operation::Migrate(to) => {
                let context = state(&mut processors, here, case).to_owned();
                *state(&mut processors, *to, case) = context;
                here = *to;
                continue;
            }
            Operation::Step(on, instruction) => (on.unwrap_or(here), instruction),
        };
        let before = *state(&mut processors, pcpu, case);
        let step = match before.execute(instruction) {
            Ok(step) => step,
            Err(refusal) => return Some(refusal),
        };
        watcher.step(pcpu, &before, instruction, &step);
        if let Step::Done(after) = step {
            *state(&mut processors, pcpu, case) = after;
        }
    }
    None
}

fn state<'s>(
    processors: &'s mut Vec<(PcpuId, Processor)>,
    pcpu: PcpuId,
    case: &Case,
) -> &'s mut Processor {
    let at = match processors.iter().position(|(p, _)| *p == pcpu) {
        Some(at) => at,
        None => {
            processors.push((pcpu, case.processor));
            processors.len() - 1
        }
    };
    &mut processors[at].1
}
