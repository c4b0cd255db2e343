//! What of a recording is guest work: the set-up of its vCPUs is left out, what the guest did
//! without a line of its own stands where the recording tells of it, a vCPU that was out stays out
//! while the host works, and a write that the recorded kernel refused is an exit and nothing more.

use tlbscope_trace::Recording;
use tlbscope_trace::op::{Actor, Op};
use tlbscope_trace::recording::{Body, Record};

use super::creation::Creation;
use super::{held, native, own_faults, refused};

/// An operation that the recording shows by something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inserted {
    /// The index of the record that it goes before.
    pub before: usize,
    /// Whose.
    pub actor: Actor,
    /// What.
    pub op: Op,
}

/// The recording as a replay takes it, under any policy.
pub(super) fn guest_work(mut recording: Recording) -> Recording {
    let creation = Creation::of(&recording);
    recording.meta = creation.left(&recording.meta);
    let refused = refused::writes(&recording);
    let mut inserted = held::windows(&recording);
    inserted.extend(own_faults::faults(&recording));
    inserted.extend(native::writes(&recording));
    // `in` comes first, then what the guest does.
    inserted.sort_by_key(|one| one.before);
    let mut inserted = inserted.into_iter().peekable();
    let mut records = Vec::with_capacity(recording.records.len() + inserted.len());
    for (index, mut record) in std::mem::take(&mut recording.records).into_iter().enumerate() {
        while let Some(one) = inserted.next_if(|one| one.before <= index) {
            if !creation.has(&Record { actor: one.actor, ..record.clone() }, index) {
                records.push(Record { actor: one.actor, body: Body::Op(one.op), ..record.clone() });
            }
        }
        if creation.has(&record, index) {
            continue;
        }
        if refused.contains(&index) {
            record.body = Body::Op(Op::Exit(None));
        }
        records.push(record);
    }
    recording.records = records;
    recording
}
