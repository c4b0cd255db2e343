//! The vocabulary of tlbscope and the files it reads and writes.
//!
//! [`addr`] and [`regs`] are the words, [`op`] is what guest and host do, [`act`] what hypervisor
//! and hardware do in answer, and [`observe`] the border across which a machine reports both to a
//! judge. Nothing here knows a policy or a cache.
//!
//! [`text`] is the event list of scenarios, [`source`] opens anything that can be read,
//! [`import`] turns other programs' recordings into a [`Recording`].

pub mod act;
pub mod addr;
pub mod observe;
pub mod op;
pub mod recording;
pub mod regs;
pub mod text;

pub use recording::{Body, Census, Meta, Record, Recording};
