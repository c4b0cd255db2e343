//! ftrace's text: `/sys/kernel/tracing/trace` of a host that ran KVM with kprobes on its MMU
//! functions. Guest operations become ops, what KVM did becomes acts, every line is counted.
//!
//! Request bits are seen only where a probed function prints `req=`: a bit that is newly set there
//! is told as posted, one that is gone as served, just before that function's own act.

mod acts;
mod exits;
mod infer;
mod line;
mod names;
mod ops;
mod vcpu;

use std::io::{BufRead, Read};

use rustc_hash::FxHashMap;

use super::ImportError;
use crate::act::{Act, Request};
use crate::addr::{Sp, Time, VcpuId};
use crate::op::{Actor, HostOp, Op};
use crate::recording::{Body, Record, Recording};
use infer::Clues;
use line::{Event, Line, arg};
use names::{Names, Shows};
use vcpu::Vcpu;

/// A longer line is no line of ftrace: it is cut, and the rest counts as junk.
const LINE_BYTES: u64 = 64 << 10;
/// vCPUs beyond this (KVM_MAX_VCPUS is 4096 at most) are not believed.
const VCPUS: u64 = 4096;

/// Reads a recording. `name` is for messages.
///
/// # Errors
/// Reading fails, time runs backwards, or nothing in it is an event of ftrace.
pub fn import(mut reader: impl BufRead, name: &str) -> Result<Recording, ImportError> {
    let mut importer = Importer::new();
    let mut buffer = Vec::with_capacity(1024);
    let mut first: Option<Vec<u8>> = None;
    loop {
        buffer.clear();
        match reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if importer.events == 0 => {
                return Err(ImportError::Io { name: name.to_owned(), error });
            }
            // A cut or damaged packed file: what came out of it is worth having.
            Err(error) => {
                let line = importer.number;
                importer.losses.push(format!("reading stopped behind line {line}: {error}"));
                break;
            }
        }
        importer.line(&buffer);
        if let Some((from, to)) = importer.backwards {
            let (name, line) = (name.to_owned(), importer.number);
            return Err(ImportError::Backwards { name, line, from, to });
        }
        if first.is_none() && !buffer.trim_ascii().is_empty() {
            first = Some(buffer[..buffer.len().min(80)].to_vec());
        }
    }
    if importer.events == 0 && !importer.clues.header {
        let first = String::from_utf8_lossy(&first.unwrap_or_default()).trim_end().to_owned();
        return Err(ImportError::NotFtrace { name: name.to_owned(), first });
    }
    Ok(infer::finish(importer, name))
}

/// Whether a line looks like one of ftrace's text: an event or the header.
#[must_use]
pub fn looks_like(text: &[u8]) -> bool {
    match line::parse(text) {
        Line::Event(_) => true,
        Line::Lost(_) => text.trim_ascii_start().starts_with(b"CPU:"),
        Line::Comment(comment) => comment.starts_with(b"# tracer:"),
        _ => false,
    }
}

/// Everything that is known while lines go by.
#[derive(Debug)]
struct Importer {
    number: u32,
    events: u64,
    /// Lines that are no events and no header.
    junk: u64,
    base: Option<u64>,
    /// Time of the last event, as recorded.
    last: u64,
    /// The step with which time ran backwards, as recorded.
    backwards: Option<(u64, u64)>,
    now: Time,
    names: Names,
    clues: Clues,
    records: Vec<Record>,
    vcpus: Vec<Vcpu>,
    threads: FxHashMap<u32, VcpuId>,
    /// The thread of the last line with its vCPU: most lines repeat it.
    last_thread: Option<(u32, VcpuId)>,
    pages: FxHashMap<Vec<u8>, Sp>,
    pages_made: u32,
    /// A thread that freed roots before a line named its vCPU.
    orphan: Option<u32>,
    losses: Vec<String>,
}

impl Importer {
    fn new() -> Self {
        Self {
            number: 0,
            events: 0,
            junk: 0,
            base: None,
            last: 0,
            backwards: None,
            now: Time(0),
            names: Names::new(),
            clues: Clues::default(),
            records: Vec::new(),
            vcpus: Vec::new(),
            threads: FxHashMap::default(),
            last_thread: None,
            pages: FxHashMap::default(),
            pages_made: 0,
            orphan: None,
            losses: Vec::new(),
        }
    }

    fn line(&mut self, text: &[u8]) {
        self.number = self.number.saturating_add(1);
        match line::parse(text) {
            Line::Event(event) => self.event(&event),
            Line::Comment(comment) => self.clues.comment(comment),
            Line::Lost(count) => self.lost(count),
            Line::Blank => {}
            Line::Junk => self.junk += 1,
        }
    }

    /// Events are missing: whatever was half seen is forgotten.
    fn lost(&mut self, count: Option<u64>) {
        let many = count.map_or("an unknown number of".to_owned(), |count| count.to_string());
        if self.losses.len() < 100 {
            self.losses.push(format!("line {}: {many} events were lost", self.number));
        }
        for vcpu in &mut self.vcpus {
            vcpu.forget();
        }
        self.push(Actor::Host, Body::Gap(count));
    }

    fn event(&mut self, event: &Event<'_>) {
        self.events += 1;
        let event = &self.resolve(event);
        let base = *self.base.get_or_insert(event.ns);
        if event.ns < self.last {
            self.backwards = Some((self.last, event.ns));
            return;
        }
        self.last = event.ns;
        self.now = Time(event.ns.saturating_sub(base));
        let Some(shows) = self.names.look_up(event.name, event.ret) else { return };
        self.clues.event(event, shows);
        if matches!(shows, Shows::Ignored(_)) {
            return;
        }
        let vcpu = self.vcpu(event);
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
            // A thread that runs no vCPU: memory management, another thread of the VMM.
            None if shows == Shows::RemoteFlush => {
                self.push(Actor::Host, Body::Act(Act::RemoteFlush { ipi: None }));
            }
            None if shows == Shows::FreeRoots => self.orphan = Some(event.pid),
            None if shows == Shows::RequestAll => self.request_all(Actor::Host, event),
            None if shows == Shows::ReloadAll => {
                self.push(Actor::Host, Body::Act(Act::RequestAll(Request::MmuReload)));
            }
            _ => {}
        }
    }

    /// A probe of which only an address is printed is taken for what its name suggests.
    fn resolve<'a>(&mut self, event: &Event<'a>) -> Event<'a> {
        match event.unresolved.then(|| names::well_known(event.name)).flatten() {
            Some(name) => {
                self.clues.assumed += 1;
                Event { name, function: true, ..*event }
            }
            None => *event,
        }
    }

    /// Whose event it is: by its argument, else by its thread.
    fn vcpu(&mut self, event: &Event<'_>) -> Option<VcpuId> {
        let named = arg(event.args, b"vcpu=")
            .or_else(|| arg(event.args, b"id="))
            .or_else(|| event.args.strip_prefix(b"vcpu ").and_then(line::number));
        let Some(id) = named.filter(|&id| id < VCPUS) else {
            return match self.last_thread {
                Some((pid, vcpu)) if pid == event.pid => Some(vcpu),
                _ => self.threads.get(&event.pid).copied(),
            };
        };
        let vcpu = VcpuId(id as u16);
        if self.last_thread != Some((event.pid, vcpu)) {
            self.threads.insert(event.pid, vcpu);
            self.last_thread = Some((event.pid, vcpu));
        }
        if self.vcpus.len() <= usize::from(vcpu.0) {
            self.vcpus.resize_with(usize::from(vcpu.0) + 1, Vcpu::default);
        }
        Some(vcpu)
    }

    fn state(&mut self, vcpu: VcpuId) -> &mut Vcpu {
        &mut self.vcpus[usize::from(vcpu.0)]
    }

    fn push(&mut self, actor: Actor, body: Body) {
        self.records.push(Record { time: self.now, actor, line: self.number, body });
    }

    fn act(&mut self, vcpu: VcpuId, act: Act) {
        self.push(Actor::Vcpu(vcpu), Body::Act(act));
    }

    /// Adds an operation and answers its index, for what later lines tell of it.
    fn op(&mut self, vcpu: VcpuId, op: Op) -> usize {
        self.push(Actor::Vcpu(vcpu), Body::Op(op));
        self.records.len() - 1
    }

    fn host(&mut self, op: HostOp) {
        self.push(Actor::Host, Body::Op(Op::Host(Box::new(op))));
    }

    /// The operation at an index that [`Self::op`] gave.
    fn op_at(&mut self, index: usize) -> Option<&mut Op> {
        match self.records.get_mut(index).map(|record| &mut record.body) {
            Some(Body::Op(op)) => Some(op),
            _ => None,
        }
    }
}
