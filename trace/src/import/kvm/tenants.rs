//! Which VM and vCPU an event belongs to. A VM is known by the kernel's pointer where a probe
//! prints it (`kvm=`), else by the thread group, else by the threads that run its vCPUs: a second
//! thread that runs a vCPU of the same number is another VM's.

use std::collections::BTreeMap;
use std::fmt::Write;

use rustc_hash::FxHashMap;

use super::super::event::Event;
use super::names::Shows;
use crate::addr::VcpuId;

/// VMs and threads that are told apart; what comes beyond belongs to none.
const VMS: usize = 4096;
const THREADS: usize = 1 << 18;

/// A VM.
#[derive(Debug, Default)]
struct Vm {
    /// Its number: thread group, else the first thread that was seen of it.
    label: u32,
    pointer: Option<u64>,
    events: u64,
    /// The thread that runs each vCPU, where one was seen to.
    runners: BTreeMap<u16, Option<u32>>,
}

/// A thread.
#[derive(Clone, Copy, Debug)]
struct Thread {
    vm: usize,
    vcpu: Option<VcpuId>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    /// Everything is one VM.
    one: bool,
    vms: Vec<Vm>,
    threads: FxHashMap<u32, Thread>,
    groups: FxHashMap<u32, usize>,
    pointers: FxHashMap<u64, usize>,
    /// The thread of the last event: most events repeat it.
    last: Option<(u32, Thread)>,
    /// Events of the host that name no VM, while there are several.
    pub homeless: u64,
}

impl Tenants {
    pub fn new(one: bool) -> Self {
        Self { one, ..Self::default() }
    }

    /// VM and vCPU of an event: by what it names, else by its thread.
    pub fn place(
        &mut self,
        event: &Event<'_>,
        shows: Shows,
        id: Option<u64>,
    ) -> (Option<usize>, Option<VcpuId>) {
        let vcpu = id.map(|id| VcpuId(id as u16));
        let pointer = if event.function { event.num(b"kvm").filter(|&p| p != 0) } else { None };
        let created = shows == Shows::VcpuLoad && creates(event);
        if let Some((pid, thread)) = self.last
            && pid == event.pid
            && (vcpu.is_none() || vcpu == thread.vcpu)
            && pointer.is_none_or(|p| self.vms[thread.vm].pointer == Some(p))
            && !self.taken(event, shows, thread)
        {
            self.vms[thread.vm].events += 1;
            if runs(shows)
                && let Some(vcpu) = thread.vcpu
            {
                self.vms[thread.vm].runners.insert(vcpu.0, Some(pid));
            }
            return (Some(thread.vm), thread.vcpu);
        }
        let known = self.threads.get(&event.pid).copied();
        let taken = known.filter(|thread| self.taken(event, shows, *thread));
        let known = known.filter(|_| taken.is_none());
        let vcpu = vcpu.or_else(|| taken.and_then(|thread| thread.vcpu));
        let Some(vm) = self.vm(event, shows, vcpu, pointer, created, known) else {
            return (None, None);
        };
        self.vms[vm].events += 1;
        if let Some(vcpu) = vcpu {
            let runner = self.vms[vm].runners.entry(vcpu.0).or_default();
            if runs(shows) {
                *runner = Some(event.pid);
            }
        }
        let vcpu = vcpu.or_else(|| known.filter(|thread| thread.vm == vm).and_then(|t| t.vcpu));
        // A thread becomes known when it names a vCPU: workers of the host serve several VMs.
        if vcpu.is_some() && (known.is_some() || self.threads.len() < THREADS) {
            let thread = Thread { vm, vcpu };
            self.threads.insert(event.pid, thread);
            self.last = Some((event.pid, thread));
        }
        (Some(vm), vcpu)
    }

    fn vm(
        &mut self,
        event: &Event<'_>,
        shows: Shows,
        vcpu: Option<VcpuId>,
        pointer: Option<u64>,
        created: bool,
        known: Option<Thread>,
    ) -> Option<usize> {
        if self.one {
            if self.vms.is_empty() {
                self.add(event.pid, None);
            }
            return Some(0);
        }
        let group = event.tgid.filter(|&group| group != 0);
        let by_group = group.and_then(|group| self.groups.get(&group).copied());
        let mut vm = known.map(|thread| thread.vm).or(by_group);
        if let Some(pointer) = pointer {
            if let Some(&of) = self.pointers.get(&pointer) {
                return Some(of);
            }
            match vm {
                Some(vm) if self.vms[vm].pointer.is_none() => {
                    self.vms[vm].pointer = Some(pointer);
                    self.pointers.insert(pointer, vm);
                    return Some(vm);
                }
                // This thread's VM is another one.
                Some(_) => return self.add(group.unwrap_or(event.pid), Some(pointer)),
                None => {}
            }
        }
        let Some(VcpuId(vcpu)) = vcpu.filter(|_| vm.is_none()) else { return vm };
        let made = |vm: usize| self.vms[vm].runners.contains_key(&vcpu);
        if group.is_none() {
            // Threads of a program have near numbers: an assumption where no group is recorded.
            let near = |&at: &usize| self.vms[at].label.abs_diff(event.pid);
            vm = (0..self.vms.len()).min_by_key(near);
            let taken = vm.is_some_and(|vm| {
                let runner = self.vms[vm].runners.get(&vcpu).copied().flatten();
                created && made(vm) || runs(shows) && runner.is_some()
            });
            if taken {
                vm = None;
            }
        }
        match vm {
            Some(vm) => Some(vm),
            None => {
                let vm = self.add(group.unwrap_or(event.pid), None)?;
                if let Some(group) = group {
                    self.groups.insert(group, vm);
                }
                Some(vm)
            }
        }
    }

    /// Whether the thread's vCPU turns out to be run by another thread: nothing but its number told
    /// that it was of this VM, while the two were created at one time.
    fn taken(&self, event: &Event<'_>, shows: Shows, thread: Thread) -> bool {
        if self.one || !runs(shows) || event.tgid.is_some_and(|group| group != 0) {
            return false;
        }
        let vm = &self.vms[thread.vm];
        let runner = thread.vcpu.and_then(|vcpu| vm.runners.get(&vcpu.0).copied().flatten());
        vm.pointer.is_none() && runner.is_some_and(|runner| runner != event.pid)
    }

    fn add(&mut self, label: u32, pointer: Option<u64>) -> Option<usize> {
        if self.vms.len() >= VMS {
            return None;
        }
        // Two VMs of one thread group: the second is called by its pointer, or counted on.
        let mut label = label;
        while self.vms.iter().any(|vm| vm.label == label) {
            label = label.wrapping_add(1_000_000);
        }
        let vm = self.vms.len();
        self.vms.push(Vm { label, pointer, ..Vm::default() });
        if let Some(pointer) = pointer {
            self.pointers.insert(pointer, vm);
        }
        Some(vm)
    }

    /// Whether there is more than one VM.
    pub const fn several(&self) -> bool {
        self.vms.len() > 1
    }

    /// Whether a VM is called by this number.
    pub fn is(&self, vm: usize, number: u64) -> bool {
        let vm = &self.vms[vm];
        u64::from(vm.label) == number || vm.pointer == Some(number)
    }

    /// Whether any VM is called by this number.
    pub fn any_is(&self, number: u64) -> bool {
        (0..self.vms.len()).any(|vm| self.is(vm, number))
    }

    /// A line for each VM.
    pub fn list(&self) -> String {
        let mut out = String::new();
        if self.vms.is_empty() {
            out.push_str(" none");
        }
        for vm in &self.vms {
            let vcpus: Vec<String> = vm.runners.keys().map(ToString::to_string).collect();
            let _ = write!(out, "\n  --vm {}", vm.label);
            if let Some(pointer) = vm.pointer {
                let _ = write!(out, " (or {pointer:#x})");
            }
            let _ = write!(out, ": vCPUs {}, {} events", vcpus.join(" "), vm.events);
        }
        out
    }
}

/// Whether an event is of the thread that runs a vCPU.
const fn runs(shows: Shows) -> bool {
    matches!(shows, Shows::TraceExit | Shows::TraceEntry | Shows::Run)
}

/// Whether a kvm_arch_vcpu_load is the first of its vCPU, which never ran on a CPU (-1).
fn creates(event: &Event<'_>) -> bool {
    let last = event.num(b"oldcpu").or_else(|| event.num(b"last"));
    last.is_some_and(|last| last as u32 == u32::MAX)
}
