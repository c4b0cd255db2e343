//! What of a recording is guest work: the set-up of its vCPUs is left out, what the guest wrote
//! without an exit stands before the write that shows it, and a write that the recorded kernel refused
//! is an exit and nothing more.

use tlbscope_trace::Recording;
use tlbscope_trace::op::Op;
use tlbscope_trace::recording::{Body, Record};

use super::creation::Creation;
use super::{native, refused};

/// The recording as a replay takes it, under any policy.
pub(super) fn guest_work(mut recording: Recording) -> Recording {
    let creation = Creation::of(&recording);
    recording.meta = creation.left(&recording.meta);
    let (native, refused) = (native::writes(&recording), refused::writes(&recording));
    let mut records = Vec::with_capacity(recording.records.len() + native.len());
    for (index, mut record) in std::mem::take(&mut recording.records).into_iter().enumerate() {
        if creation.has(&record, index) {
            continue;
        }
        if let Ok(at) = native.binary_search_by_key(&index, |(before, _)| *before) {
            records.push(Record { body: Body::Op(native[at].1.clone()), ..record.clone() });
        }
        if refused.contains(&index) {
            record.body = Body::Op(Op::Exit(None));
        }
        records.push(record);
    }
    recording.records = records;
    recording
}
