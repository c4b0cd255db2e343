//! What the events of a recorded KVM host mean: guest operations become ops, what KVM did becomes
//! acts, every event is counted. The same for all forms.
//!
//! Request bits are seen only where a probed function prints `req=`: a bit that is newly set there
//! is told as posted, one that is gone as served, just before that function's own act.

mod acts;
mod exits;
mod infer;
mod kernel;
mod names;
mod ops;
mod page;
mod tenants;
mod vcpu;
mod window;

use rustc_hash::FxHashMap;

use super::event::Event;
use super::{ImportError, Imported, Options, Sink, VmChoice};
use crate::act::{Act, Request};
use crate::addr::{Sp, Time, VcpuId};
use crate::op::{Actor, HostOp, Op};
use crate::recording::{Body, Record};
use infer::Clues;
pub(super) use names::well_known;
use names::{Names, Shows};
use page::PageKey;
use tenants::Tenants;
use vcpu::Vcpu;
use window::Window;

/// vCPUs beyond this (KVM_MAX_VCPUS is 4096 at most) are not believed.
const VCPUS: u64 = 4096;
/// Shadow pages that are told apart; beyond this one is new each time it is seen.
const PAGES: usize = 1 << 20;
/// Losses that are told one by one.
const LOSSES: usize = 100;

/// Everything that is known while events go by.
pub(super) struct Importer<'o> {
    name: String,
    options: &'o Options,
    line: u32,
    events: u64,
    /// Lines that are no events and no header.
    junk: u64,
    base: Option<u64>,
    /// Time of the last event, as recorded.
    last: u64,
    now: Time,
    /// Nobody asked for what comes now.
    skipping: bool,
    names: Names,
    clues: Clues,
    window: Window,
    vcpus: Vec<Vcpu>,
    tenants: Tenants,
    pages: FxHashMap<PageKey, Sp>,
    pages_made: u32,
    /// A thread that freed roots before an event named its vCPU.
    orphan: Option<u32>,
    /// The thread within kvm_mmu_zap_all_fast.
    zapping: Option<u32>,
    losses: Vec<String>,
    losses_untold: u64,
    gaps: u64,
}

impl<'o> Importer<'o> {
    pub fn new(name: &str, options: &'o Options) -> Self {
        Self {
            name: name.to_owned(),
            options,
            line: 0,
            events: 0,
            junk: 0,
            base: None,
            last: 0,
            now: Time(0),
            skipping: false,
            names: Names::new(),
            clues: Clues::default(),
            window: Window::default(),
            vcpus: Vec::new(),
            tenants: Tenants::new(options.vm == VmChoice::All),
            pages: FxHashMap::default(),
            pages_made: 0,
            orphan: None,
            zapping: None,
            losses: Vec::new(),
            losses_untold: 0,
            gaps: 0,
        }
    }

    /// A header line.
    pub fn comment(&mut self, text: &[u8]) {
        self.clues.comment(text);
    }

    /// A line that is no event.
    pub const fn junk(&mut self) {
        self.junk += 1;
    }

    /// Whether a header of a text form was seen.
    pub const fn header(&self) -> bool {
        self.clues.header || self.clues.report
    }

    /// Whether `trace-cmd report` printed it.
    pub const fn report(&self) -> bool {
        self.clues.report
    }

    /// What the form itself says of the kernel, such as `6.1.0-56-amd64`.
    pub fn kernel_release(&mut self, release: &str) {
        self.clues.release = Some(release.to_owned());
    }

    /// Something was lost, or cannot be read.
    pub fn lose(&mut self, what: String) {
        if self.losses.len() < LOSSES {
            self.losses.push(what);
        } else {
            self.losses_untold += 1;
        }
    }

    /// Events are missing: whatever was half seen is forgotten. A form without lines (0) tells the
    /// time.
    pub fn lost(&mut self, count: Option<u64>, line: u32, ns: Option<u64>) {
        let many = count.map_or("an unknown number of".to_owned(), |count| count.to_string());
        self.lose(match ns {
            None => format!("line {line}: {many} events were lost"),
            Some(ns) => {
                let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
                format!("at {seconds}.{rest:09}: {many} events were lost")
            }
        });
        self.gaps += 1;
        self.line = line;
        for vcpu in &mut self.vcpus {
            vcpu.forget();
        }
        if !self.skipping {
            self.push(Actor::Host, Body::Gap(count));
        }
    }

    /// The next event.
    pub fn event(&mut self, event: &Event<'_>, sink: &mut dyn Sink) -> Result<(), ImportError> {
        self.events += 1;
        self.line = event.line;
        let base = *self.base.get_or_insert(event.ns);
        if event.ns < self.last {
            let (name, line) = (self.name.clone(), event.line);
            return Err(ImportError::Backwards { name, line, from: self.last, to: event.ns });
        }
        self.last = event.ns;
        self.now = Time(event.ns.saturating_sub(base));
        self.skipping = self.options.when(self.now, self.base).is_ne();
        self.meaning(event);
        if self.window.is_full() {
            self.hand_on(false, sink)?;
        }
        Ok(())
    }

    fn meaning(&mut self, event: &Event<'_>) {
        let Some(shows) = self.names.look_up(event) else { return };
        self.clues.event(event, shows);
        if matches!(shows, Shows::Ignored(_)) {
            return;
        }
        let id = named(event);
        let (vm, vcpu) = self.tenants.place(event, shows, id);
        if self.skipping || !self.chosen(vm) {
            return;
        }
        if let Some(vcpu) = vcpu
            && self.vcpus.len() <= usize::from(vcpu.0)
        {
            self.vcpus.resize_with(usize::from(vcpu.0) + 1, Vcpu::default);
        }
        if event.ret {
            if let Some(vcpu) = vcpu {
                self.returned(vcpu, shows, event);
            }
            return;
        }
        if let Some(vcpu) = vcpu {
            self.requests(vcpu, event);
        }
        match vcpu {
            _ if self.host_event(shows, event) => {}
            Some(vcpu) if !self.operation(vcpu, shows, event) => {
                self.act_event(vcpu, shows, event);
            }
            Some(_) => {}
            // A thread that runs no vCPU: memory management, another thread of the VMM.
            None => self.host_act(shows, event),
        }
    }

    /// What a thread does that no vCPU is known for.
    fn host_act(&mut self, shows: Shows, event: &Event<'_>) {
        match shows {
            Shows::RemoteFlush => {
                self.push(Actor::Host, Body::Act(Act::RemoteFlush { ipi: None }));
            }
            Shows::RequestAll => self.request_all(Actor::Host, event),
            Shows::ReloadAll => {
                self.push(Actor::Host, Body::Act(Act::RequestAll(Request::MmuReload)));
            }
            Shows::FreeRoots => self.orphan = Some(event.pid),
            _ => {}
        }
    }

    /// Whether this is the VM that is read. What belongs to no VM belongs to the only one.
    fn chosen(&mut self, vm: Option<usize>) -> bool {
        match (self.options.vm, vm) {
            (VmChoice::All, _) => true,
            (VmChoice::Only, Some(vm)) => vm == 0,
            (VmChoice::Number(number), Some(vm)) => self.tenants.is(vm, number),
            (_, None) if self.tenants.several() => {
                self.tenants.homeless += 1;
                false
            }
            (_, None) => true,
        }
    }

    fn state(&mut self, vcpu: VcpuId) -> &mut Vcpu {
        &mut self.vcpus[usize::from(vcpu.0)]
    }

    fn push(&mut self, actor: Actor, body: Body) {
        self.window.push(Record { time: self.now, actor, line: self.line, body });
    }

    fn act(&mut self, vcpu: VcpuId, act: Act) {
        self.push(Actor::Vcpu(vcpu), Body::Act(act));
    }

    /// Adds an operation and answers its number, for what later events tell of it.
    fn op(&mut self, vcpu: VcpuId, op: Op) -> u64 {
        self.push(Actor::Vcpu(vcpu), Body::Op(op));
        self.window.last()
    }

    fn host(&mut self, op: HostOp) {
        self.push(Actor::Host, Body::Op(Op::Host(Box::new(op))));
    }

    /// The operation of a number that [`Self::op`] gave.
    fn op_at(&mut self, number: u64) -> Option<&mut Op> {
        match self.window.get_mut(number).map(|record| &mut record.body) {
            Some(Body::Op(op)) => Some(op),
            _ => None,
        }
    }

    /// Hands on what no later event can change.
    fn hand_on(&mut self, all: bool, sink: &mut dyn Sink) -> Result<(), ImportError> {
        let open = self.vcpus.iter().filter_map(Vcpu::oldest_open).min();
        // A first VPID of 0 tells that no hook before it executed anything.
        let undecided =
            self.clues.may_be_without_vpid() && self.vcpus.iter().all(|v| v.vpid.is_none());
        let keep = if all {
            None
        } else if undecided {
            Some(0)
        } else {
            open
        };
        let options = self.options;
        self.window
            .release(keep, |record| match options.wants(record.actor) {
                true => sink.record(record),
                false => Ok(()),
            })
            .map_err(|error| ImportError::Sink { name: self.name.clone(), error })
    }

    /// Ends an import.
    pub fn finish(mut self, form: &str, sink: &mut dyn Sink) -> Result<Imported, ImportError> {
        let name = self.name.clone();
        match self.options.vm {
            VmChoice::Only if self.tenants.several() => {
                return Err(ImportError::Vms { name, list: self.tenants.list() });
            }
            VmChoice::Number(vm) if !self.tenants.any_is(vm) => {
                return Err(ImportError::NoVm { name, vm, list: self.tenants.list() });
            }
            _ => {}
        }
        let census = self.census();
        if census.understood.is_empty() && census.ignored.is_empty() && self.gaps == 0 {
            let mut names: Vec<&str> = census.unknown.keys().map(String::as_str).collect();
            names.truncate(8);
            let what = match (self.events, names.is_empty()) {
                (0, _) => "it holds no events at all".to_owned(),
                (_, true) => "its events are of other systems".to_owned(),
                (_, false) => format!("its events are {}", names.join(", ")),
            };
            return Err(ImportError::Nothing { name, what });
        }
        if self.losses_untold > 0 {
            self.losses.push(format!("and {} more losses", self.losses_untold));
        }
        let meta = infer::meta(&self, form);
        if meta.vpid == Some(false) && meta.mmu == Some(crate::regs::MmuKind::Shadow) {
            self.window.without_vpid();
        }
        self.hand_on(true, sink)?;
        Ok(Imported { meta, census })
    }

    fn census(&self) -> crate::Census {
        let mut census = self.names.census();
        if self.junk > 0 {
            census.unknown.insert("(lines that are no events)".to_owned(), self.junk);
        }
        census
    }
}

/// The vCPU that an event names.
fn named(event: &Event<'_>) -> Option<u64> {
    let own = if event.function {
        event.num(b"vcpu").or_else(|| event.num(b"id"))
    } else {
        event
            .num(b"vcpu_id")
            .or_else(|| super::number::number(event.text().strip_prefix(b"vcpu ")?))
    };
    own.filter(|&id| id < VCPUS)
}
