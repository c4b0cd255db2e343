//! PLACEHOLDER until the engine is merged: its border, and no machine behind it.

use std::fmt;

use tlbscope_trace::addr::{Gpa, Hpa, VcpuId};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::Event;
use tlbscope_trace::regs::{MmuKind, Regs, Vendor};

use super::{Refused, Step};
use crate::machine::config::MachineConfig;
use crate::policy::Policy;

/// Why no machine can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError(pub String);

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EngineError {}

/// No machine.
#[derive(Clone, Debug)]
pub struct Machine {
    config: MachineConfig,
    regs: Regs,
}

impl World for Machine {
    fn vendor(&self) -> Vendor {
        self.config.vendor
    }
    fn mmu(&self) -> MmuKind {
        self.config.mmu
    }
    fn maxphyaddr(&self) -> u32 {
        self.config.maxphyaddr
    }
    fn gbpages(&self) -> bool {
        false
    }
    fn regs(&self, _: VcpuId) -> &Regs {
        &self.regs
    }
    fn read(&self, _: Gpa) -> u64 {
        0
    }
    fn backing(&self, _: Gpa) -> Option<Hpa> {
        None
    }
    fn memory_bytes(&self) -> u64 {
        self.config.memory
    }
}

impl Machine {
    /// A machine in its start state.
    ///
    /// # Errors
    /// None.
    pub fn new(config: &MachineConfig, _: &Policy) -> Result<Self, EngineError> {
        Ok(Self { config: config.clone(), regs: config.initial_regs() })
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn run<O: Observer>(&mut self, _: &Event, _: u64, _: &mut O) -> Result<Step, Refused> {
        Err(Refused { op: "any", why: "there is no engine yet".to_owned() })
    }

    /// Nothing.
    pub fn finish<O: Observer>(&mut self, _: &mut O) {}

    /// 0.
    #[must_use]
    pub fn digest(&self) -> u64 {
        0
    }
}
