//! Windows: from each vCPU's exit to its next entry, the operation in it carried out by the model
//! and compared.

use tlbscope_sim::engine::Machine;
use tlbscope_sim::engine::drive::LoadHint;
use tlbscope_trace::Recording;
use tlbscope_trace::act::{Act, At, HookBy, Request};
use tlbscope_trace::addr::{Gva, PcpuId, Time, VcpuId};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{Actor, HostOp, Op};
use tlbscope_trace::recording::{Body, Record};
use tlbscope_trace::regs::MmuKind;

use super::align::{
    created, flushed_since, kind_of, op_of, op_text, pending_alone, unseen_entry, visible,
    without_empty_slots, zaps,
};
use super::feed::{Feed, Step};
use super::roots::{Pages, Printed};
use super::token::{Alphabet, Side, Token};
use super::{Counter, Disagreement, Fidelity, Summary};

/// Windows after the start in the middle of a recording, or after lost events, in which a difference
/// may come of what is not known, unless every root was printed before.
const UNSURE: u8 = 8;
/// Attempts of one entry, besides those that something from outside asks for, before the model is taken
/// to be stuck.
const ATTEMPTS: usize = 32;

/// Something that another thread does to a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// A remote flush.
    Flush,
    /// Every root of the VM is zapped.
    Zap,
    /// A request to every vCPU.
    Request(Request),
    /// Pages are zapped that are roots of this vCPU, by slot, and their free is requested.
    Pages(u8),
    /// A request that comes of guest memory.
    Memory(Request),
}

/// One line of a window.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// The vCPU's own.
    Record(&'a Record),
    /// Somebody else's.
    Outside(Outside),
}

/// One vCPU.
#[derive(Debug, Default)]
struct Lane<'a> {
    items: Vec<Item<'a>>,
    entered: bool,
    /// The vCPU has entered at least once.
    ran: bool,
    /// Lines are missing from the window under way.
    torn: bool,
    /// Windows in which the model may not know what the recording does not show.
    unsure: u8,
    /// Roots were printed after the entry.
    unchecked: bool,
    printed: Printed,
    /// The operation whose entry may still be followed by a print of its roots.
    open: Option<Open>,
}

/// A compared window.
#[derive(Debug)]
struct Open {
    counted: bool,
    kind: String,
    disagreement: Option<Disagreement>,
    context: Disagreement,
}

/// The model's acts.
struct Watch {
    side: Side,
    posted: u32,
    flushes: u64,
    entered: bool,
    /// A TDP root was made, on whatever page.
    made: bool,
}

impl Observer for Watch {
    fn act<W: World>(&mut self, _: &At, act: &Act, _: &W) {
        match act {
            Act::Post(request) => self.posted |= 1 << *request as u8,
            Act::Hook { by: HookBy::Request, .. } => self.flushes += 1,
            Act::Entry(_) => self.entered = true,
            Act::RootNew(_) => self.made = true,
            _ => {}
        }
        self.side.modelled(act);
    }
}

/// A comparison under way.
pub struct Run<'a> {
    recording: &'a Recording,
    machine: Machine,
    alphabet: Alphabet,
    shadow: bool,
    lanes: Vec<Lane<'a>>,
    pages: Pages,
    keep: usize,
    /// The control: whatever the model does, it tells nothing.
    mute: bool,
    result: Fidelity,
}

impl<'a> Run<'a> {
    pub fn new(
        recording: &'a Recording,
        mut machine: Machine,
        policy: &str,
        trace: &str,
        keep: usize,
    ) -> Self {
        machine.drive();
        let vcpus = usize::from(recording.meta.vcpus.max(1));
        let summary = Summary { trace: trace.into(), policy: policy.into(), ..Summary::default() };
        Self {
            recording,
            machine,
            alphabet: Alphabet::of(recording.acts().map(|(_, act)| act)),
            shadow: recording.meta.mmu == Some(MmuKind::Shadow),
            lanes: (0..vcpus).map(|_| Lane::default()).collect(),
            pages: Pages::default(),
            keep,
            mute: false,
            result: Fidelity { summary, ..Fidelity::default() },
        }
    }

    /// Makes the model predict nothing: what agrees then agrees with anything.
    pub fn muted(mut self) -> Self {
        self.mute = true;
        self
    }

    pub fn run(mut self) -> Fidelity {
        for record in &self.recording.records {
            match (record.actor, &record.body) {
                (_, Body::Gap(_)) => {
                    for lane in &mut self.lanes {
                        lane.torn = true;
                        lane.printed = Printed::default();
                    }
                }
                (Actor::Vcpu(vcpu), body) if usize::from(vcpu.0) < self.lanes.len() => {
                    self.own(vcpu, record, body);
                }
                (Actor::Vcpu(_), _) => {}
                (Actor::Host, Body::Act(Act::RemoteFlush { .. })) => {
                    self.outside(None, Outside::Flush);
                }
                (Actor::Host, Body::Act(Act::RequestAll(request))) => {
                    self.outside(None, Outside::Request(*request));
                }
                (Actor::Host, Body::Op(Op::Host(op))) if zaps(op) => {
                    self.machine.forget_roots();
                    self.outside(None, Outside::Zap);
                }
                (Actor::Host, _) => {}
            }
        }
        for v in 0..self.lanes.len() {
            self.close(v);
        }
        self.result
    }

    /// Something that concerns every vCPU but `but`.
    fn outside(&mut self, but: Option<VcpuId>, what: Outside) {
        for (v, lane) in self.lanes.iter_mut().enumerate() {
            if but != Some(VcpuId(v as u16)) {
                lane.items.push(Item::Outside(what));
            }
        }
    }

    fn own(&mut self, vcpu: VcpuId, record: &'a Record, body: &Body) {
        let v = usize::from(vcpu.0);
        match body {
            Body::Act(Act::Exit(_)) => {
                self.close(v);
                self.lanes[v].entered = false;
            }
            Body::Act(act @ Act::RootSeen { .. }) if self.lanes[v].entered => {
                self.lanes[v].printed.take(act);
                self.lanes[v].unchecked = true;
            }
            Body::Act(Act::EntrySeen) => {
                self.close(v);
                self.window(vcpu, record);
            }
            Body::Act(Act::RemoteFlush { .. }) => {
                self.lanes[v].items.push(Item::Record(record));
                self.outside(Some(vcpu), Outside::Flush);
            }
            Body::Act(Act::RequestAll(request)) => {
                self.lanes[v].items.push(Item::Record(record));
                self.outside(Some(vcpu), Outside::Request(*request));
            }
            _ => self.lanes[v].items.push(Item::Record(record)),
        }
    }

    /// One window ends with an entry.
    fn window(&mut self, vcpu: VcpuId, entry: &'a Record) {
        let v = usize::from(vcpu.0);
        let lane = &mut self.lanes[v];
        let mut items = std::mem::take(&mut lane.items);
        // Entries may be left out of the recording: a fault after what comes last before an entry.
        if let Some(at) = self.shadow.then(|| unseen_entry(&items)).flatten() {
            let rest = items.split_off(at);
            lane.items = items;
            self.window(vcpu, entry);
            self.close(v);
            self.lanes[v].items.extend(rest);
            return self.window(vcpu, entry);
        }
        let lane = &mut self.lanes[v];
        let (first, mut torn) = (!std::mem::replace(&mut lane.ran, true), lane.torn);
        lane.torn = false;
        lane.entered = true;
        let event = (u64::from(entry.line), entry.time);
        if first && !created(&items) {
            torn = true;
            self.machine.resumed(vcpu, self.home(vcpu), event);
        }
        if torn {
            self.lanes[v].unsure = UNSURE;
        }
        let valid = self.machine.roots(vcpu)[0].is_some();
        let mut feed = Feed::new(&items, valid, self.alphabet, self.shadow);
        if first {
            feed.complete(&self.recording.initial_regs(vcpu));
            // A new vCPU is loaded before it can enter, whether or not that was probed.
            let loads = |step: &Step| matches!(step, Step::Load(_));
            if !torn && !feed.steps.iter().any(loads) {
                feed.steps.push(Step::Load(self.home(vcpu).unwrap_or_default()));
            }
        }
        let drifted = self.drifted(vcpu, &feed);
        for act in &feed.roots {
            self.lanes[v].printed.take(act);
        }
        let posted = self.machine.pending(vcpu);
        let side = Side::new(valid);
        let mut watch = Watch { side, posted, flushes: 0, entered: false, made: false };
        watch.side.mute = self.mute;
        let deferred = self.model(vcpu, &feed, event, first, &mut watch);
        let mut again: Vec<Item<'a>> = deferred.into_iter().map(Item::Outside).collect();
        again.append(&mut self.lanes[v].items);
        self.lanes[v].items = again;
        self.count_inputs(&feed);
        self.rebind(vcpu, &feed, watch.made);
        self.compare(vcpu, &items, &feed, watch, entry, torn);
        if let (Some(why), Some(open)) = (drifted, &mut self.lanes[v].open) {
            open.disagreement.get_or_insert(Disagreement { why, ..open.context.clone() });
        }
        if !feed.roots.is_empty() {
            self.check_roots(vcpu);
        }
        let unsure = &mut self.lanes[v].unsure;
        *unsure = unsure.saturating_sub(1);
    }

    /// Where a vCPU that ran before the recording began was last loaded: where it is loaded first,
    /// unless that is told to be another pCPU than before.
    fn home(&self, vcpu: VcpuId) -> Option<PcpuId> {
        let mut pcpu = None;
        for record in &self.recording.records {
            match &record.body {
                Body::Op(Op::Host(op)) => {
                    if matches!(**op, HostOp::Migrate { vcpu: v, .. } if v == vcpu) {
                        return None;
                    }
                }
                Body::Act(Act::VcpuLoad(at)) if record.actor == Actor::Vcpu(vcpu) => {
                    pcpu = Some(*at);
                    break;
                }
                _ => {}
            }
        }
        pcpu
    }

    /// Whether the roots that kvm_mmu_new_pgd found differ from the model's. The model goes on from
    /// the recording's then.
    fn drifted(&mut self, vcpu: VcpuId, feed: &Feed) -> Option<String> {
        if feed.before.is_empty() {
            return None;
        }
        let mut before = Printed::default();
        for act in &feed.before {
            before.take(act);
        }
        let model = self.machine.roots(vcpu);
        let direct = !self.shadow || !self.machine.regs(vcpu).paging();
        let why = before.differs(&model, direct, &mut self.pages)?;
        self.machine.take_over(vcpu, before.to_take_over(&model));
        before.bind(&self.machine.roots(vcpu), &mut self.pages);
        let known = self.lanes[usize::from(vcpu.0)].unsure == 0;
        known.then(|| format!("before it, {why}"))
    }

    /// A LOAD that makes its page, or does not say, may put any page where another was. Of a TDP root the
    /// model knows by itself whether one of the role is there.
    fn rebind(&mut self, vcpu: VcpuId, feed: &Feed, made: bool) {
        let any = |load: &LoadHint| match load.new {
            None => self.shadow || made,
            Some(new) => new,
        };
        if feed.loads.iter().any(any)
            && let Some(root) = self.machine.roots(vcpu)[0]
        {
            self.pages.remove(&root.hpa);
        }
    }

    /// Carries the window out. What came too late for this entry is handed back.
    fn model(
        &mut self,
        vcpu: VcpuId,
        feed: &Feed,
        event: (u64, Time),
        first: bool,
        watch: &mut Watch,
    ) -> Vec<Outside> {
        let hints = self.machine.hints();
        hints.syncs = feed.syncs.iter().copied().collect();
        hints.sync_current = feed.sync_current.iter().copied().collect();
        hints.unsync_roots = feed.unsync.iter().copied().collect();
        hints.loads = feed.loads.iter().copied().collect();
        hints.address = feed.address;
        hints.pdptes = feed.pdptes.iter().copied().collect();
        hints.obsolete = feed.obsolete.iter().copied().collect();
        // The emulator's walk for the instruction comes before what it does.
        for (_, what, _) in &feed.outside {
            if let Outside::Memory(request @ Request::LoadMmuPgd) = what {
                self.machine.posted_by_memory(vcpu, *request, watch);
            }
        }
        for step in &feed.steps {
            self.step(vcpu, step, event, first, watch);
        }
        // What followed an address that no root holds was of something else.
        if std::mem::take(&mut self.machine.hints().address) > 0 {
            self.machine.posted(vcpu, Request::TlbFlush, watch);
        }
        let mut outside = feed.outside.iter().peekable();
        let end = feed.side.tokens.len();
        let mut all = false;
        for _ in 0..ATTEMPTS + feed.outside.len() {
            while let Some((at, what, own)) = outside.peek() {
                let done = visible(&watch.side, self.alphabet);
                // A flush by another thread after this vCPU's last act came too late for it.
                if *at > done || !own && *at >= end {
                    break;
                }
                match what {
                    // The pass before has served it.
                    Outside::Flush if flushed_since(&watch.side, self.alphabet, *at) => {}
                    Outside::Flush => self.machine.posted(vcpu, Request::TlbFlush, watch),
                    Outside::Zap => {
                        all = true;
                        self.machine.roots_zapped(vcpu, watch);
                    }
                    Outside::Request(request) => self.machine.posted(vcpu, *request, watch),
                    Outside::Memory(Request::LoadMmuPgd) => {}
                    Outside::Memory(request) => {
                        self.machine.posted_by_memory(vcpu, *request, watch);
                    }
                    Outside::Pages(slots) => {
                        if !all {
                            self.machine.pages_zapped(vcpu, *slots);
                        }
                        self.machine.posted(vcpu, Request::MmuFreeObsoleteRoots, watch);
                    }
                }
                outside.next();
            }
            if !self.machine.wants_attempt(vcpu) {
                break;
            }
            self.machine.attempt(vcpu, event, watch);
        }
        self.machine.entered(vcpu, event, watch);
        outside.map(|(_, what, _)| *what).collect()
    }

    fn step(
        &mut self,
        vcpu: VcpuId,
        step: &Step,
        event: (u64, Time),
        first: bool,
        watch: &mut Watch,
    ) {
        match step {
            Step::Op(op, old) => {
                let unsure = self.lanes[usize::from(vcpu.0)].unsure > 0;
                match old {
                    Some((register, old)) if unsure => {
                        self.machine.register_seen(vcpu, *register, *old, event);
                    }
                    Some((register, old)) => {
                        self.machine.owned_bits_seen(vcpu, *register, *old);
                    }
                    None => {}
                }
                if first && **op == Op::Reset {
                    self.machine.power_on(vcpu);
                }
                watch.side.resetting = matches!(**op, Op::Init | Op::Reset);
                // What the machine does not know shows as a disagreement.
                let _ = self.machine.perform(vcpu, op, event, watch);
                watch.side.resetting = false;
                if first && **op == Op::Reset {
                    self.machine.created(vcpu, watch);
                }
            }
            Step::Load(pcpu) => {
                let _ = self.machine.loaded(vcpu, *pcpu, event, watch);
            }
            Step::Reg(register, value) => {
                self.machine.register_seen(vcpu, *register, *value, event);
            }
            Step::PcidBits(clear) => self.machine.pcid_bits_seen(vcpu, *clear),
            Step::Fault(gva, error) => {
                self.machine.inject_page_fault(vcpu, (*gva, *error), event, watch);
            }
        }
    }

    fn count_inputs(&mut self, feed: &Feed) {
        let some = |list: &[u8]| list.iter().filter(|n| **n > 0).count() as u64;
        let zaps = feed.outside.iter().filter(|(_, what, _)| !matches!(what, Outside::Memory(_)));
        let own = zaps.count() as u64;
        let write_protected = feed.loads.iter().filter(|load| load.flushes > 0).count() as u64;
        for (name, count) in [
            ("sync-changed", some(&feed.syncs) + u64::from(feed.address > 0)),
            ("unsync", some(&feed.unsync) + feed.loads.iter().filter(|l| l.unsync).count() as u64),
            ("zap", own),
            ("guest-fault", feed.guest_faults),
            ("pdptes-changed", feed.pdptes.iter().filter(|changed| **changed).count() as u64),
            ("page-new-or-existing", feed.pages + write_protected),
        ] {
            if count > 0 {
                *self.result.summary.inputs_taken.entry(name).or_default() += count;
            }
        }
    }

    fn compare(
        &mut self,
        vcpu: VcpuId,
        items: &[Item<'_>],
        feed: &Feed,
        watch: Watch,
        entry: &Record,
        torn: bool,
    ) {
        let mut modelled: Vec<Token> =
            watch.side.tokens.iter().copied().filter(|token| self.alphabet.has(*token)).collect();
        let valid = self.machine.roots(vcpu).map(|root| root.is_some());
        let (recorded, lines) =
            without_empty_slots(&feed.side.tokens, &feed.lines, &modelled, &valid);
        let mut recorded = recorded;
        let mut lines = lines;
        let busy = !recorded.is_empty() || !modelled.is_empty();
        recorded.push(Token::Entry);
        lines.push(entry.line);
        if watch.entered && !self.mute {
            modelled.push(Token::Entry);
        }
        let recorded = &recorded;
        self.counters(recorded, feed, &watch);
        let ops = feed.steps.iter().filter_map(op_of);
        let ops: Vec<&Op> = ops.filter(|op| !matches!(op, Op::Code { .. })).collect();
        let counted = !torn && (!ops.is_empty() || busy);
        let kind = ops.first().map_or("entry", |op| kind_of(op)).to_owned();
        self.actions(recorded, &modelled, counted);
        let first = items.iter().find_map(|item| match item {
            Item::Record(record) => Some(record.line),
            Item::Outside(_) => None,
        });
        let operation: Vec<String> = ops.iter().map(|op| op_text(op, vcpu, entry)).collect();
        let context = Disagreement {
            vcpu: vcpu.0,
            lines: (first.unwrap_or(entry.line), entry.line),
            time: entry.time.0,
            operation: if ops.is_empty() { kind.clone() } else { operation.join("; ") },
            recorded: lines.iter().zip(recorded).map(|(l, t)| (*l, t.to_string())).collect(),
            modelled: modelled.iter().map(Token::to_string).collect(),
            why: String::new(),
        };
        let why = recorded
            .iter()
            .zip(&modelled)
            .position(|(a, b)| a != b)
            .or((recorded.len() != modelled.len()).then(|| recorded.len().min(modelled.len())))
            .map(|at| match (recorded.get(at), modelled.get(at)) {
                (Some(a), Some(b)) => format!("action {at} is {a}, the model's {b}"),
                (Some(a), None) => format!("the model lacks {a}"),
                (None, Some(b)) => format!("the model alone has {b}"),
                (None, None) => String::new(),
            });
        let why = why.or_else(|| pending_alone(feed.posted & !watch.posted));
        let disagreement = why.map(|why| Disagreement { why, ..context.clone() });
        let differs = disagreement.is_some();
        let lane = &mut self.lanes[usize::from(vcpu.0)];
        let excused = torn || lane.unsure > 0 && differs;
        if excused && (counted || torn && (!ops.is_empty() || busy)) {
            self.result.summary.not_compared += 1;
        }
        let counted = counted && !excused;
        lane.open = Some(Open { counted, kind, disagreement, context });
        if differs || torn {
            self.take_over(vcpu);
        }
    }

    /// Agreement by kind of action: those that stand at the same place in both lists.
    fn actions(&mut self, recorded: &[Token], modelled: &[Token], counted: bool) {
        if !counted {
            return;
        }
        let mut left = modelled;
        for token in recorded {
            let row = self.result.by_action.entry(token.kind().name()).or_default();
            row.total += 1;
            if let Some(at) = left.iter().position(|other| other == token) {
                row.agreed += 1;
                left = &left[at + 1..];
            }
        }
    }

    fn counters(&mut self, recorded: &[Token], feed: &Feed, watch: &Watch) {
        let count = |tokens: &[Token], kind: Token| {
            tokens.iter().filter(|t| t.kind() == kind.kind()).count() as u64
        };
        let modelled = &watch.side.tokens;
        let kinds = [
            ("flush-all", Token::FlushAll),
            ("flush-current", Token::FlushCurrent),
            ("flush-guest", Token::FlushGuest),
            ("load", Token::Load),
            ("reset", Token::Reset),
            ("sync-roots", Token::SyncRoots),
        ];
        for (name, kind) in kinds.into_iter().filter(|(_, kind)| self.alphabet.has(*kind)) {
            let row: &mut Counter = self.result.counters.entry(name).or_default();
            row.recorded += count(recorded, kind);
            row.modelled += count(modelled, kind);
        }
        // stat tlb_flush: every hook by a request; LOAD's is not counted (facts 8.3).
        let loads = count(recorded, Token::Load);
        let hooks = [Token::FlushAll, Token::FlushCurrent, Token::FlushGuest];
        let hooks: u64 = hooks.into_iter().map(|kind| count(recorded, kind)).sum();
        let row = self.result.counters.entry("tlb_flush").or_default();
        row.recorded += hooks.saturating_sub(loads);
        row.modelled += watch.flushes;
        // stat invlpg: INVLPG and INVPCID 0, not the faults that KVM injects.
        let gva = Token::InvalidateGva(Gva(0));
        if self.alphabet.has(gva) {
            let present = |step: &&Step| matches!(step, Step::Fault(_, error) if error & 1 != 0);
            let faults = feed.steps.iter().filter(present).count() as u64;
            let row = self.result.counters.entry("invlpg").or_default();
            row.recorded += count(recorded, gva).saturating_sub(faults);
            row.modelled += count(modelled, gva).saturating_sub(faults);
        }
    }

    /// The roots at the entry, where they are printed.
    fn check_roots(&mut self, vcpu: VcpuId) {
        let v = usize::from(vcpu.0);
        let model = self.machine.roots(vcpu);
        let lane = &mut self.lanes[v];
        let Some(open) = &mut lane.open else { return };
        if open.disagreement.is_some() {
            return;
        }
        let direct = !self.shadow || !self.machine.regs(vcpu).paging();
        let why = lane.printed.differs(&model, direct, &mut self.pages);
        let (differs, unsure) = (why.is_some(), lane.unsure > 0);
        if let Some(why) = why.filter(|_| !unsure) {
            open.counted = true;
            open.disagreement = Some(Disagreement { why, ..open.context.clone() });
        }
        // From a print of every root on, nothing before matters.
        if lane.printed.complete() {
            lane.unsure = 0;
        }
        if differs {
            self.take_over(vcpu);
        }
    }

    /// After a disagreement the model goes on from what the recording shows.
    fn take_over(&mut self, vcpu: VcpuId) {
        let lane = &self.lanes[usize::from(vcpu.0)];
        if lane.printed.any() {
            if lane.unsure > 0
                && self.shadow
                && self.machine.regs(vcpu).paging()
                && let Some(pgd) = lane.printed.active()
            {
                self.machine.cr3_seen(vcpu, pgd);
            }
            let slots = lane.printed.to_take_over(&self.machine.roots(vcpu));
            self.machine.take_over(vcpu, slots);
            lane.printed.bind(&self.machine.roots(vcpu), &mut self.pages);
        }
    }

    /// The operation before is settled.
    fn close(&mut self, v: usize) {
        if std::mem::take(&mut self.lanes[v].unchecked) {
            self.check_roots(VcpuId(v as u16));
        }
        let Some(open) = self.lanes[v].open.take() else { return };
        if !open.counted {
            return;
        }
        let agreed = open.disagreement.is_none();
        self.result.summary.operations += 1;
        self.result.summary.agreed += u64::from(agreed);
        let row = self.result.by_operation.entry(open.kind).or_default();
        row.total += 1;
        row.agreed += u64::from(agreed);
        if let Some(disagreement) = open.disagreement
            && self.result.disagreements.len() < self.keep
        {
            self.result.disagreements.push(disagreement);
        }
    }
}
