//! The state of a machine, to be kept and taken up again. The whole machine is written but what its
//! owner has anyway, its configuration and policy; and what it was told of events to come, in
//! explorations of orders and of time: these are not kept.

use std::sync::Arc;

use super::Machine;
use crate::policy::Policy;

/// What stands for the policy until the machine has its own again.
pub(super) fn no_policy() -> Arc<Policy> {
    Arc::new(Policy::empty())
}

impl Machine {
    /// This machine in the state of `other`, which was read again and has neither configuration nor
    /// policy. `None` if it is the state of a machine of another size.
    #[must_use]
    pub fn in_state_of(self, other: Self) -> Option<Self> {
        let same = self.vcpus.len() == other.vcpus.len() && self.pcpus.len() == other.pcpus.len();
        let Self { config, policy, .. } = self;
        same.then_some(Self { config, policy, ..other })
    }
}
