//! Machines: what a scenario says of one, and what processors cost.
