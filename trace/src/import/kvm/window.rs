//! The last records, which later events may still complete.

use std::collections::VecDeque;
use std::io;

use crate::act::{Act, Hook};
use crate::recording::{Body, Record};

/// So many records wait before somebody looks which of them are finished.
const LOOK: usize = 4096;
/// No more than this wait, whatever may still come: memory is bounded.
const MOST: usize = 1 << 16;

/// Records in order, numbered from 0 over the whole recording.
#[derive(Debug, Default)]
pub(super) struct Window {
    records: VecDeque<Record>,
    /// Number of the first one that is still here.
    first: u64,
    /// Length at which to look again.
    look_at: usize,
}

impl Window {
    pub fn push(&mut self, record: Record) {
        self.records.push_back(record);
    }

    /// Number of the last record.
    pub fn last(&self) -> u64 {
        (self.first + self.records.len() as u64).saturating_sub(1)
    }

    /// Number of the next record.
    pub fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    pub fn get_mut(&mut self, number: u64) -> Option<&mut Record> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.records.get_mut(at)
    }

    /// Puts a record before the one of this number, whose number moves. Answers whether it is here.
    pub fn insert(&mut self, number: u64, record: Record) -> bool {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        match at.filter(|at| *at <= self.records.len()) {
            Some(at) => self.records.insert(at, record),
            None => return false,
        }
        true
    }

    /// Whether it is time for [`Self::release`].
    pub fn is_full(&self) -> bool {
        self.records.len() >= self.look_at.max(LOOK)
    }

    /// Hands on what lies before `keep` (everything, if `None`), and what is too much.
    pub fn release(
        &mut self,
        keep: Option<u64>,
        mut take: impl FnMut(Record) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let held =
                keep.is_some_and(|keep| self.first >= keep) && self.records.len() <= MOST / 2;
            if held {
                break;
            }
            let Some(record) = self.records.pop_front() else { break };
            self.first += 1;
            take(record)?;
        }
        self.look_at = (self.records.len() + LOOK).min(MOST);
        Ok(())
    }

    /// With VPID 0 no hook executes anything: every entry and exit flushes.
    pub fn without_vpid(&mut self) {
        for record in &mut self.records {
            if let Body::Act(Act::Hook { hook, effective, .. }) = &mut record.body
                && matches!(hook, Hook::All | Hook::Current | Hook::Guest | Hook::Gva(_))
            {
                *effective = false;
            }
        }
    }
}
