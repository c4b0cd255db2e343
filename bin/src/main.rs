//! tlbscope: which TLB flushes does a hypervisor miss, and which does it waste?
fn main() {}
