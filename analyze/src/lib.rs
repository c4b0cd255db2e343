//! The judge: missed, exposed and excessive TLB flushes.
//!
//! [`oracle`] is the fast judge, [`naive`] the slow one that keeps every copy explicitly, and
//! [`finding`] what both report. [`tally`] counts without judging. [`replay`] runs a trace under
//! policies, [`compare`] sets the runs side by side, and [`scenario`] holds runs to what a file
//! expects of them. [`audit`] judges what a real host did,
//! from its own recording. What somebody looked at and accepts is a [`suppress`]ion. [`diff`] compares
//! two policies without a trace, and [`conformance`] holds hardware model and table of requirements to
//! architecture cases. [`reproduce`] makes a scenario of one finding, [`timeline`] gathers what a
//! report shows of a run, and [`perfetto`] writes a timeline for another viewer.

pub mod audit;
pub mod bench;
pub mod compare;
pub mod conformance;
pub mod diff;
pub mod explain;
pub mod fidelity;
pub mod finding;
pub mod naive;
pub mod oracle;
pub mod perfetto;
pub mod replay;
pub mod reproduce;
pub mod scenario;
mod state;
pub mod suppress;
pub mod tally;
pub mod timeline;
