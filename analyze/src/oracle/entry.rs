//! What happens at an invalidation and at an entry: what containers may hold from there on, and
//! which obligations are past their deadline with something reachable that may violate them.

use tlbscope_sim::arch::required::{NOFLUSH_RESIDENCE, Scope};
use tlbscope_trace::act::{At, Context, Inv};
use tlbscope_trace::addr::{Sp, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::regs::{Cr4, MmuKind};

use super::credit::{By, Open};
use super::floors::{Floors, Obligation, Target, address, covers};
use super::hardware::{Fillable, Group, GroupKey, Held, one_page};
use super::{Oracle, Vcpu};
use crate::finding::{Finding, Findings, Kind};

/// Obligations of one page that wait for their PCID to be current.
const DEFERRED: usize = 256;

/// Whether a container may hold a copy that the obligation outlaws.
fn holds(o: &Obligation, key: &GroupKey, (pcid, global): (u16, bool), held: &Held) -> bool {
    let gva = address(&o.scope);
    let t = Target { global, structure: false, pcid, gva: gva.unwrap_or(0), shift: 12 };
    if !covers(&o.scope, &t) {
        return false;
    }
    match gva {
        Some(_) => held.since < o.time && o.done != Some((key.pcpu, key.id)),
        None => held.stamp < o.time,
    }
}

impl Vcpu {
    /// A root becomes the active one. More than the latest few no hypervisor keeps.
    fn uses(&mut self, root: Sp, pcid: u16, tag: u16) {
        const ROOTS: usize = 16;
        if self.roots.last() == Some(&(root, pcid, tag)) {
            return;
        }
        match self.roots.iter().position(|slot| *slot == (root, pcid, tag)) {
            Some(place) => self.roots[place..].rotate_left(1),
            None => {
                if self.roots.len() == ROOTS {
                    self.roots.remove(0);
                }
                self.roots.push((root, pcid, tag));
            }
        }
    }
}

impl Oracle {
    /// The hardware invalidates.
    pub(super) fn invalidate<W: World>(&mut self, id: usize, inv: &Inv, world: &W) {
        let vcpu = &mut self.vcpus[id];
        let context = vcpu.context;
        if matches!(inv, Inv::Guest(_) | Inv::VpidZeroTransition) {
            vcpu.window.hook = None;
        }
        self.physical.invalidate(vcpu.pcpu, inv);
        match one_page(inv, &context) {
            Some((tag, gva)) => vcpu.floors.served(gva, (vcpu.pcpu, tag)),
            None => self.hardware.invalidate(vcpu.pcpu, &context, inv),
        }
        match inv {
            Inv::Guest(_) => {
                let event = vcpu.op.0;
                let log = &vcpu.floors.log;
                vcpu.window.open.retain(|open| {
                    log.iter().rev().take(8).all(|o| o.time != open.time || o.event != event)
                });
                // Outside the guest nothing refills the container: the next entry says from what.
                if vcpu.in_guest {
                    self.reside(id, world);
                }
            }
            Inv::Exact => {
                let frames = |open: &&mut Open| matches!(open.scope, Scope::Frames { .. });
                for open in vcpu.window.open.iter_mut().filter(frames) {
                    open.by = By::Explicit;
                    open.done = true;
                }
                self.host.serve(vcpu.pcpu);
            }
            _ => vcpu.window.carried_out(),
        }
    }

    /// The current containers can be filled from here on.
    fn reside<W: World>(&mut self, id: usize, world: &W) {
        let vcpu = &self.vcpus[id];
        if !vcpu.entered {
            return;
        }
        let tag = vcpu.context.tag;
        let key = GroupKey::of(&tag);
        let root = vcpu.context.shadow_root.and_then(|root| self.shadow.root_stamp(root));
        let stamp = root.unwrap_or(self.now);
        let globals = world.regs(VcpuId(id as u16)).cr4().contains(Cr4::PGE);
        self.hardware.fillable(self.now, Fillable { key, pcid: tag.pcid.0, globals, stamp });
    }

    /// Guest instructions run from here on.
    pub(super) fn entry<W: World>(&mut self, at: &At, id: usize, context: &Context, world: &W) {
        let vcpu = &mut self.vcpus[id];
        let same = vcpu.entered && vcpu.context == *context;
        vcpu.context = *context;
        vcpu.entered = true;
        vcpu.in_guest = true;
        vcpu.pcpu = context.tag.pcpu.0;
        if let Some(root) = context.shadow_root {
            let tag = vcpu.floors.tag();
            vcpu.uses(root, context.tag.pcid.0, tag);
        }
        let owner = (id as u16, vcpu.floors.tag());
        let vcpu_op = vcpu.op;
        let shadow = context.shadow_root.is_some();
        // The operation after which the vCPU entered, if it did anything yet.
        let event = if vcpu_op.1.is_empty() { at.event } else { vcpu_op.0 };
        self.hardware.own(&context.tag, owner, shadow, self.now, event);
        self.expose_births(id, &context.tag);
        self.reside(id, world);
        if self.auditing {
            self.advise(id);
        }
        let unchanged = same && self.shadow.changed < self.vcpus[id].floors.judged;
        self.expose(id, world, unchanged);
        self.expose_host(id);
        self.close(id);
    }

    /// Reports NOFLUSH returns through a root that is older than the return.
    fn advise(&mut self, id: usize) {
        let Self { vcpus, shadow, findings, .. } = self;
        let Vcpu { floors, context, .. } = &mut vcpus[id];
        let judged = floors.judged;
        let start = floors.log.partition_point(|o| o.time < judged);
        for o in floors.log.range_mut(start..) {
            let returns = o.rule.id == NOFLUSH_RESIDENCE.id && !o.exposed;
            let stamp = context.shadow_root.and_then(|root| shadow.root_stamp(root));
            if returns && stamp.is_some_and(|stamp| stamp < o.time) {
                o.exposed = true;
                findings.add(Finding { kind: Kind::Advised, ..exposure(o, id) });
            }
        }
    }

    /// Reports binding obligations of this vCPU that something reachable may violate.
    fn expose<W: World>(&mut self, id: usize, world: &W, unchanged: bool) {
        let Self { vcpus, hardware, shadow, findings, now, .. } = self;
        let Vcpu { floors, context, .. } = &mut vcpus[id];
        let floors: &mut Floors = floors;
        let judged = floors.judged;
        if unchanged && floors.latest < judged {
            return;
        }
        let key = GroupKey::of(&context.tag);
        let Some(group) = hardware.group_mut(&key) else { return };
        let shadowed = world.mmu() == MmuKind::Shadow;
        let current = context.tag.pcid.0;
        let reach = |tag: &(u16, bool)| !shadowed || tag.1 || tag.0 == current;
        for (tag, held) in group.iter_mut().filter(|(tag, _)| reach(tag)) {
            let t = Target { global: tag.1, structure: false, pcid: tag.0, gva: 0, shift: 12 };
            let seen = held.stamp.max(held.judged);
            held.judged = *now;
            if floors.wide(&t) <= seen {
                continue;
            }
            let start = floors.log.partition_point(|o| o.time <= seen);
            for o in floors.log.range_mut(start..) {
                if address(&o.scope).is_none() && covers(&o.scope, &t) {
                    report(o, id, findings);
                }
            }
        }
        let Floors { log, deferred, .. } = floors;
        deferred.retain(|time| {
            let place = log.partition_point(|o| o.time < *time);
            let at_time = |o: &&mut Obligation| o.time == *time && address(&o.scope).is_some();
            let Some(o) = log.range_mut(place..).take(4).find(at_time) else { return false };
            let held = group.iter().any(|(tag, held)| reach(tag) && holds(o, &key, *tag, held));
            if held {
                report(o, id, findings);
            }
            !held && group.iter().any(|(tag, held)| holds(o, &key, *tag, held))
        });
        let start = log.partition_point(|o| o.time < judged);
        for o in log.range_mut(start..) {
            let Some(gva) = address(&o.scope) else { continue };
            let below = || {
                let stamp = shadow.frozen_entry(context.shadow_root?, gva)?;
                (stamp < o.time && o.scope_in(current)).then_some(())
            };
            let held = group.iter().any(|(tag, held)| reach(tag) && holds(o, &key, *tag, held));
            if held || below().is_some() {
                report(o, id, findings);
            } else if o.must && group.iter().any(|(tag, held)| holds(o, &key, *tag, held)) {
                if deferred.len() == DEFERRED {
                    deferred.remove(0);
                }
                deferred.push(o.time);
            }
        }
        floors.judged = *now;
    }

    /// Reports host obligations past their deadline that something reachable may violate.
    pub(super) fn expose_host(&mut self, id: usize) {
        let Self { vcpus, hardware, host, findings, .. } = self;
        let vcpu = &mut vcpus[id];
        let key = GroupKey::of(&vcpu.context.tag);
        let physical = key.guest_physical();
        let groups = [hardware.group(&key), hardware.group(&physical)];
        let since = groups.into_iter().flatten().flat_map(Group::values).map(|held| held.since);
        let Some(since) = since.min() else { return };
        if since > host.latest_due || vcpu.host_judged == (host.latest_dead, key) {
            return;
        }
        vcpu.host_judged = (host.latest_dead, key);
        let due = host.due(since, id as u16, key.pcpu);
        for n in due {
            let change = &mut host.changes[n];
            change.exposed.push(id as u16);
            findings.add(exposure(&change.obligation, id));
        }
    }

    /// The window ends: what was served, or can be violated nowhere, is no longer owed.
    fn close(&mut self, id: usize) {
        let Self { vcpus, hardware, host, .. } = self;
        let vcpu = &mut vcpus[id];
        let floors = &vcpu.floors;
        let mut open = std::mem::take(&mut vcpu.window.open);
        open.retain(|open| {
            if open.by != By::Nobody {
                return false;
            }
            if matches!(open.scope, Scope::Frames { .. }) {
                let of = host.changes.iter().find(|c| c.obligation.time == open.time);
                return of.is_some_and(|c| c.dead == 0 || c.exposed.contains(&(id as u16)));
            }
            let Some(o) = floors.find(open.time, &open.scope) else { return false };
            o.exposed || still_held(o, hardware, id as u16)
        });
        open.iter_mut().for_each(|open| open.judged = false);
        vcpu.window = super::Window { open, ..super::Window::default() };
    }

    /// The run is over: what is outlawed and still cached, and was never used, is latent.
    pub fn finish<W: World>(&mut self, world: &W) {
        let _ = world;
        let Self { vcpus, hardware, findings, .. } = self;
        for (id, vcpu) in vcpus.iter().enumerate() {
            for o in vcpu.floors.all() {
                if o.missed.is_some() || !o.must || address(&o.scope).is_some() {
                    continue;
                }
                let cached = hardware.owned((id as u16, o.tag)).any(|(key, group)| {
                    group
                        .iter()
                        .any(|(tag, held)| held.filled < o.time && holds(o, key, *tag, held))
                });
                if cached {
                    findings.add(Finding { kind: Kind::Latent, ..exposure(o, id) });
                }
            }
        }
    }
}

/// Whether some container of the vCPU, reachable or not, may still violate an obligation.
fn still_held(o: &Obligation, hardware: &super::Hardware, id: u16) -> bool {
    hardware
        .owned((id, o.tag))
        .any(|(key, group)| group.iter().any(|(tag, held)| holds(o, key, *tag, held)))
}

/// Reports that a binding obligation may be violated, once.
fn report(o: &mut Obligation, id: usize, findings: &mut Findings) {
    if !o.exposed && o.must {
        o.exposed = true;
        findings.add(exposure(o, id));
    }
}

fn exposure(o: &Obligation, id: usize) -> Finding {
    Finding {
        cause: o.event,
        vcpu: id as u16,
        kind: Kind::Exposed,
        rule: o.rule.id,
        op: o.op,
        mechanism: "entry",
        use_: None,
        address: address(&o.scope),
        count: 1,
    }
}

impl Obligation {
    /// Whether the scope reaches non-global copies of this PCID.
    fn scope_in(&self, pcid: u16) -> bool {
        let gva = address(&self.scope).unwrap_or(0);
        covers(&self.scope, &Target { global: false, structure: false, pcid, gva, shift: 12 })
    }
}
