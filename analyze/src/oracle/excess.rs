//! What was more than was owed.

use tlbscope_trace::act::Request;
use tlbscope_trace::act::{Act, At, Class as TagClass, FreeWhy, Hook, HookBy, Tag};
use tlbscope_trace::addr::{Sp, VcpuId};
use tlbscope_trace::observe::World;
use tlbscope_trace::regs::{Cr4, MmuKind};

use super::Oracle;
use super::credit::{Verdict, hook_name};
use super::floors::Target;
use crate::finding::{Class, Finding, Kind};

impl Oracle {
    /// Judges an act of the hypervisor that may be too much.
    pub(super) fn excess<W: World>(&mut self, at: &At, id: usize, act: &Act, world: &W) {
        let shadow = world.mmu() == MmuKind::Shadow;
        let vcpu = &mut self.vcpus[id];
        match *act {
            Act::Serve(request) => {
                vcpu.window.guest_flush = request == Request::TlbFlushGuest;
                vcpu.window.bookkeeping |=
                    matches!(request, Request::HvTlbFlush | Request::StealUpdate);
            }
            Act::Hook { by: HookBy::Load, effective: true, .. } => {
                if !vcpu.window.load(shadow) {
                    self.findings.bookkeeping += 1;
                }
                vcpu.window.hook = None;
            }
            Act::Hook { hook: Hook::All, .. } if vcpu.window.moved => {
                vcpu.window.moved = false;
                vcpu.window.hook = None;
                vcpu.hooked = self.now;
                self.findings.bookkeeping += 1;
            }
            Act::Hook { hook, effective: true, .. } => {
                let shares = self.shares_tag(id);
                let vcpu = &mut self.vcpus[id];
                let name = hook_name(hook);
                let books = std::mem::take(&mut vcpu.window.bookkeeping)
                    || shares
                    || hook == Hook::All && self.shadow.withdrawn > vcpu.hooked;
                if hook == Hook::All {
                    vcpu.hooked = self.now;
                }
                // What is left on a pCPU that the vCPU comes back to is wide: not too much.
                vcpu.window.hook = Some(name);
                for open in &mut vcpu.window.open {
                    open.judged = false;
                }
                match vcpu.window.explicit(hook, shadow) {
                    Verdict::Required => {}
                    _ if books => self.findings.bookkeeping += 1,
                    Verdict::Redundant => self.too_much(at, id, Class::Redundant, name),
                    Verdict::Unrequired => self.too_much(at, id, Class::Unrequired, name),
                }
            }
            Act::Broadcast => vcpu.broadcast = at.event + 1,
            Act::Reset { role_changed: Some(false) } if !self.roots_outlawed(id) => {
                self.too_much(at, id, Class::Unrequired, "mmu-reset");
            }
            Act::Unload => self.unload(at, id, shadow),
            Act::FreeRoot { sp, why, .. } => self.free_root(at, id, sp, why, world),
            _ => {}
        }
    }

    /// A remote flush. One that comes again in the same event, with nothing taken away or write-protected in
    /// between and no change of the host's, finds on every vCPU what the first has discharged. That
    /// requests of both may merge, where no vCPU enters in between, spares the vCPU and not the caller, who
    /// interrupts and waits twice. A recording shows too little of the SPTEs for this verdict.
    pub(super) fn remote_flush(&mut self, at: &At) {
        let before = self.remote.replace((at.event, self.now));
        let changed = self.shadow.withdrawn.max(self.host.latest_change());
        let again = before.is_some_and(|(event, time)| event == at.event && changed <= time);
        if self.auditing || !again {
            return;
        }
        for id in (0..self.vcpus.len()).filter(|id| self.vcpus[*id].entered).collect::<Vec<_>>() {
            self.too_much(at, id, Class::Redundant, "remote-flush");
        }
    }

    /// Whether a cached root holds frozen entries that an obligation outlaws.
    fn roots_outlawed(&self, id: usize) -> bool {
        let vcpu = &self.vcpus[id];
        vcpu.roots.iter().any(|(root, pcid, _)| {
            let stamp = self.shadow.root_stamp(*root);
            stamp.is_some_and(|stamp| stamp < vcpu.floors.of_pcid(*pcid))
        })
    }

    fn unload(&mut self, at: &At, id: usize, shadow: bool) {
        let vcpu = &self.vcpus[id];
        let pcide_set = vcpu.pcide_set == at.event + 1;
        if shadow && pcide_set {
            self.findings.bookkeeping += 1;
        } else if pcide_set || shadow && vcpu.window.guest_flush {
            self.too_much(at, id, Class::Unrequired, "mmu-unload");
        }
    }

    fn free_root<W: World>(&mut self, at: &At, id: usize, sp: Option<Sp>, why: FreeWhy, world: &W) {
        let live = sp.is_some_and(|sp| self.shadow.root_stamp(sp).is_none());
        let roots = &mut self.vcpus[id].roots;
        // INVVPID reaches every tag but 0, which is L1's own.
        let of_l1 = roots.iter().any(|(root, _, tag)| Some(*root) == sp && *tag == 0);
        if let Some(sp) = sp {
            roots.retain(|(root, ..)| *root != sp);
        }
        let pcide = world.regs(VcpuId(id as u16)).cr4().contains(Cr4::PCIDE);
        let unrequired = match why {
            FreeWhy::InvalidatePcid => !pcide,
            FreeWhy::SyncPrev => live,
            FreeWhy::NestedInvvpid => of_l1,
            _ => false,
        };
        if unrequired {
            self.too_much(at, id, Class::Unrequired, "root-free");
        }
    }

    /// Copies that an explicit flush dropped beyond what it served.
    pub(super) fn over_broad(&mut self, at: &At, id: usize, tag: &Tag, global: bool, entries: u32) {
        if self.vcpus[id].broadcast == at.event + 1 {
            // The host's kernel flushes for itself: whatever a guest had is outside of what is owed.
            return self.too_much(at, id, Class::OverBroad, "invlpgb");
        }
        let window = &self.vcpus[id].window;
        let Some(hook) = window.hook else { return };
        let target = Target { global, structure: false, pcid: tag.pcid.0, gva: 0, shift: 12 };
        let host = tag.class == TagClass::GuestPhysical;
        if window.over_broad(&target, host, entries).is_some() {
            self.too_much(at, id, Class::OverBroad, hook);
        }
    }

    /// Adds a finding, once for each cause, class and mechanism.
    fn too_much(&mut self, at: &At, id: usize, class: Class, mechanism: &'static str) {
        let vcpu = &mut self.vcpus[id];
        if vcpu.excess_event != at.event {
            vcpu.excess_event = at.event;
            vcpu.reported.clear();
        }
        if vcpu.reported.contains(&(class, mechanism)) {
            return;
        }
        vcpu.reported.push((class, mechanism));
        let op = if vcpu.op.0 == at.event { vcpu.op.1 } else { "other" };
        self.findings.add(Finding {
            cause: at.event,
            vcpu: id as u16,
            kind: Kind::Excessive(class),
            rule: mechanism,
            op,
            mechanism,
            use_: None,
            address: None,
            count: 1,
        });
    }
}
