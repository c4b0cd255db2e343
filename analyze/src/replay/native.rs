//! Writes that no recording shows: where KVM lets the guest own a bit of CR0 or CR4, a write of it
//! alone does not exit. The next write that does exit tells what it replaced, so what the guest
//! wrote in between is known, though not when, nor how often: it is replayed once, just before.

use tlbscope_trace::Recording;
use tlbscope_trace::act::Act;
use tlbscope_trace::op::{Actor, Op, RegWrite};
use tlbscope_trace::recording::Body;
use tlbscope_trace::regs::{Cr0, Cr4};

use super::recorded::Inserted;

/// Bits that some kernel lets the guest own (facts 2): any other difference is no native write.
const CR0: u64 = Cr0::TS.union(Cr0::WP).bits();
const CR4: u64 = Cr4::PVI
    .union(Cr4::TSD)
    .union(Cr4::DE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT)
    .union(Cr4::FSGSBASE)
    .bits();
/// #GP.
const GP: u8 = 13;

/// What one vCPU's CR0 and CR4 are known to hold.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// CR0, CR4.
    values: [Option<u64>; 2],
    /// The write under way: its record, its register, what it writes.
    write: Option<(usize, usize, RegWrite)>,
    /// What the write under way replaced, to which a #GP brings the register back.
    replaced: Option<u64>,
}

/// Native writes, each with the index of the record that it goes before, in that order.
pub(super) fn writes(recording: &Recording) -> Vec<Inserted> {
    let mut known = vec![Known::default(); usize::from(recording.meta.vcpus)];
    let mut found = Vec::new();
    for (index, record) in recording.records.iter().enumerate() {
        // What was lost may have changed any register of any vCPU.
        if matches!(record.body, Body::Gap(_)) {
            known.fill(Known::default());
            continue;
        }
        let Actor::Vcpu(vcpu) = record.actor else { continue };
        let Some(known) = known.get_mut(usize::from(vcpu.0)) else { continue };
        match &record.body {
            Body::Op(op) => known.op(index, op),
            Body::Act(act) => {
                let write = known.act(act);
                let at = |(before, op)| Inserted { before, actor: record.actor, op };
                found.extend(write.map(at));
            }
            Body::Gap(_) => {}
        }
    }
    // A write's old value is read in its course: vCPUs may overtake each other.
    found.sort_by_key(|write| write.before);
    found
}

impl Known {
    fn op(&mut self, index: usize, op: &Op) {
        let op = if let Op::Emul(inner) = op { inner } else { op };
        (self.write, self.replaced) = (None, None);
        match op {
            Op::Cr0(write) => self.write = Some((index, 0, *write)),
            Op::Cr4(write) => self.write = Some((index, 1, *write)),
            Op::Clts => {
                let write = RegWrite { clear: Cr0::TS.bits(), set: 0 };
                self.write = Some((index, 0, write));
            }
            // These load CR0 and CR4 or some bits of them.
            Op::Lmsw(_)
            | Op::Init
            | Op::Reset
            | Op::Sregs(_)
            | Op::Smi
            | Op::Rsm
            | Op::TaskSwitch(_) => self.values = [None; 2],
            _ => {}
        }
        // Until the old value is seen, nothing says whether KVM took the write.
        if let Some((_, of, write)) = self.write {
            self.replaced = self.values[of];
            self.values[of] = self.values[of].map(|old| write.apply(old));
        }
    }

    fn act(&mut self, act: &Act) -> Option<(usize, Op)> {
        let (index, of, write) = self.write?;
        match *act {
            Act::OldSeen { register, old } if usize::from(register) == of * 4 => {
                let before = self.replaced.replace(old);
                self.values[of] = Some(write.apply(old));
                let owned = if of == 0 { CR0 } else { CR4 };
                let changed = (before? ^ old) & owned;
                let native = RegWrite { clear: changed, set: old & changed };
                let op = if of == 0 { Op::Cr0(native) } else { Op::Cr4(native) };
                (changed != 0).then_some((index, op))
            }
            Act::Inject { vector: GP, .. } => {
                self.values[of] = self.replaced;
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tlbscope_trace::addr::{Time, VcpuId};
    use tlbscope_trace::recording::{Meta, Record};

    use super::*;

    const PAE: u64 = 0x20;
    const PGE: u64 = 0x80;

    fn recording(bodies: Vec<Body>) -> Recording {
        let record = |body| Record { time: Time(0), actor: Actor::Vcpu(VcpuId(0)), line: 1, body };
        let meta = Meta { vcpus: 1, ..Meta::default() };
        let records = bodies.into_iter().map(record).collect();
        Recording { meta, records, ..Recording::default() }
    }

    fn found(bodies: Vec<Body>) -> Vec<(usize, Op)> {
        writes(&recording(bodies)).into_iter().map(|write| (write.before, write.op)).collect()
    }

    fn write(value: u64) -> Body {
        Body::Op(Op::Cr4(RegWrite::value(value)))
    }

    fn old(old: u64) -> Body {
        Body::Act(Act::OldSeen { register: 4, old })
    }

    #[test]
    fn an_old_value_that_no_write_left_was_written_natively() {
        let seen = [write(PAE), old(0), write(PAE | 0x10), old(PAE | PGE)];
        let set = Op::Cr4(RegWrite { clear: PGE, set: PGE });
        assert_eq!(found(seen.into()), [(2, set)]);
        let as_left = [write(PAE), old(0), write(PAE | 0x10), old(PAE)];
        assert_eq!(found(as_left.into()), []);
    }

    #[test]
    fn a_refused_write_leaves_what_was_there() {
        let gp = Body::Act(Act::Inject { vector: GP, error: Some(0) });
        let refused = [write(PAE), old(0), write(PAE | PGE), gp, write(0), old(PAE)];
        assert_eq!(found(refused.into()), []);
    }

    #[test]
    fn what_the_guest_cannot_own_or_nobody_knows_is_no_native_write() {
        let smep = [write(PAE), old(0), write(0), old(PAE | 1 << 20)];
        assert_eq!(found(smep.into()), [], "SMEP always exits");
        let reset = [write(PAE), old(0), Body::Op(Op::Reset), write(0), old(PGE)];
        assert_eq!(found(reset.into()), [], "nothing is known after a reset");
    }
}
