//! What happens at an invalidation and at an entry: what containers may hold from there on, and
//! which obligations are past their deadline with something reachable that may violate them.

use tlbscope_sim::arch::required::{Scope, Strength};
use tlbscope_trace::act::{Class, Context, Inv};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::World;
use tlbscope_trace::regs::{Cr4, MmuKind};

use super::credit::{By, Open};
use super::floors::{Obligation, Target, address, covers};
use super::hardware::{Group, GroupKey, Held, one_page};
use super::{Oracle, Vcpu};
use crate::finding::{Finding, Kind};

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

impl Oracle {
    /// The hardware invalidates.
    pub(super) fn invalidate<W: World>(&mut self, id: usize, inv: &Inv, world: &W) {
        let vcpu = &mut self.vcpus[id];
        let context = vcpu.context;
        self.hardware.invalidate(vcpu.pcpu, &context, inv);
        if let Some((tag, gva)) = one_page(inv, &context) {
            let done = Some((vcpu.pcpu, tag));
            for o in vcpu.floors.log.iter_mut().rev().take(64) {
                if address(&o.scope).is_some_and(|a| a >> 12 == gva >> 12) {
                    o.done = done;
                }
            }
        }
        match inv {
            Inv::Guest(_) => {
                let event = vcpu.op.0;
                let log = &vcpu.floors.log;
                vcpu.window.open.retain(|open| {
                    log.iter().rev().take(8).all(|o| o.time != open.time || o.event != event)
                });
                self.reside(id, world);
            }
            Inv::Exact => {
                for open in &mut vcpu.window.open {
                    open.by = By::Explicit;
                    open.done = true;
                }
                let done = Some((vcpu.pcpu, context.tag.id));
                vcpu.floors.log.iter_mut().rev().take(64).for_each(|o| o.done = done);
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
        self.hardware.resident(key, tag.pcid.0, false, self.now, stamp);
        if globals {
            self.hardware.resident(key, tag.pcid.0, true, self.now, stamp);
        }
        if tag.class == Class::Combined {
            self.hardware.resident(key.guest_physical(), 0, false, self.now, self.now);
        }
    }

    /// Guest instructions run from here on.
    pub(super) fn entry<W: World>(&mut self, id: usize, context: &Context, world: &W) {
        let vcpu = &mut self.vcpus[id];
        let same = vcpu.entered && vcpu.context == *context;
        vcpu.context = *context;
        vcpu.entered = true;
        vcpu.in_guest = true;
        vcpu.pcpu = context.tag.pcpu.0;
        if let Some(root) = context.shadow_root {
            let slot = (root, context.tag.pcid.0);
            if !vcpu.roots.contains(&slot) {
                vcpu.roots.push(slot);
            }
        }
        self.hardware.own(&context.tag, id as u16, self.now);
        self.reside(id, world);
        let unchanged = same && self.shadow.changed < self.vcpus[id].judged;
        self.expose(id, world, unchanged);
        self.expose_host(id);
        self.close(id);
    }

    /// Reports binding obligations of this vCPU that something reachable may violate.
    fn expose<W: World>(&mut self, id: usize, world: &W, unchanged: bool) {
        let Self { vcpus, hardware, shadow, findings, now, .. } = self;
        let Vcpu { floors, context, judged, .. } = &mut vcpus[id];
        let key = GroupKey::of(&context.tag);
        let Some(group) = hardware.group(&key) else { return };
        let shadowed = world.mmu() == MmuKind::Shadow;
        let reach = |pcid: u16, global: bool| !shadowed || global || pcid == context.tag.pcid.0;
        let oldest = oldest(group, &reach).min(if unchanged { u64::MAX } else { *now });
        let from = if unchanged { *judged } else { oldest.min(*judged) };
        let start = floors.log.partition_point(|o| o.time < from);
        for o in floors.log.range_mut(start..) {
            if o.exposed || o.rule.strength != Strength::Must {
                continue;
            }
            let held =
                group.iter().any(|(tag, held)| reach(tag.0, tag.1) && holds(o, &key, *tag, held));
            let below = || {
                let root = context.shadow_root?;
                let stamp = shadow.frozen_entry(root, address(&o.scope)?)?;
                (stamp < o.time && o.scope_in(context.tag.pcid.0)).then_some(())
            };
            if held || below().is_some() {
                o.exposed = true;
                findings.add(exposure(o, id));
            }
        }
        *judged = *now;
    }

    /// Reports host obligations past their deadline that something reachable may violate.
    pub(super) fn expose_host(&mut self, id: usize) {
        let Self { vcpus, hardware, host, findings, .. } = self;
        let vcpu = &vcpus[id];
        let key = GroupKey::of(&vcpu.context.tag);
        let physical = key.guest_physical();
        let groups = [hardware.group(&key), hardware.group(&physical)];
        let since = groups.into_iter().flatten().flat_map(Group::values).map(|held| held.since);
        let Some(since) = since.min() else { return };
        if since > host.latest_due {
            return;
        }
        let due = host.due(since, id as u16);
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
        let log = &vcpu.floors.log;
        let mut open = std::mem::take(&mut vcpu.window.open);
        open.retain(|open| {
            if open.by != By::Nobody {
                return false;
            }
            if matches!(open.scope, Scope::Frames { .. }) {
                let of = host.changes.iter().find(|c| c.obligation.time == open.time);
                return of.is_some_and(|c| c.dead == 0 || c.exposed.contains(&(id as u16)));
            }
            let place = log.partition_point(|o| o.time < open.time);
            let same = |o: &&Obligation| o.time == open.time && o.scope == open.scope;
            let Some(o) = log.range(place..).take(4).find(same) else { return false };
            o.exposed || still_held(o, open, hardware, id as u16)
        });
        open.iter_mut().for_each(|open| open.judged = false);
        vcpu.window = super::Window { open, ..super::Window::default() };
    }

    /// The run is over: what is outlawed and still cached, and was never used, is latent.
    pub fn finish<W: World>(&mut self, world: &W) {
        let _ = world;
        let Self { vcpus, hardware, findings, .. } = self;
        for (id, vcpu) in vcpus.iter().enumerate() {
            for o in &vcpu.floors.log {
                if o.missed.is_some()
                    || o.rule.strength != Strength::Must
                    || address(&o.scope).is_some()
                {
                    continue;
                }
                let cached = hardware.owned(id as u16).any(|(key, group)| {
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
fn still_held(o: &Obligation, _: &Open, hardware: &super::Hardware, id: u16) -> bool {
    hardware.owned(id).any(|(key, group)| group.iter().any(|(tag, held)| holds(o, key, *tag, held)))
}

/// The oldest stamp that is reachable in a group.
fn oldest(group: &Group, reach: &impl Fn(u16, bool) -> bool) -> u64 {
    let stamps = group.iter().filter(|(tag, _)| reach(tag.0, tag.1)).map(|(_, held)| held);
    stamps.map(|held| held.stamp.min(held.since)).min().unwrap_or(u64::MAX)
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
