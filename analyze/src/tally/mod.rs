//! Counts of what hypervisor and hardware did: in total, per vCPU, and for chosen operations up to
//! the next entry of their vCPU.
//!
//! A [`Tally`] watches a run and judges nothing. The counters are a flat array per vCPU, so that an
//! act costs one or two additions.

mod key;
mod window;

use tlbscope_trace::act::{Act, At, Hook, HookBy, Inv, Request, RootLookup};
use tlbscope_trace::addr::VcpuId;
use tlbscope_trace::observe::{Marks, Observer, World};
use tlbscope_trace::op::Actor;

pub use key::{Counts, Key};
use window::Window;

/// The event number of what a machine does before its first event.
const BEFORE: u64 = u64::MAX;

/// Counts acts per vCPU, and inside windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// One per vCPU, then one for the host.
    #[serde(with = "crate::state::counts_list")]
    actors: Vec<Counts>,
    /// Whether each vCPU executes guest instructions, as far as its acts show.
    in_guest: Vec<bool>,
    /// Ordered by event; a window before `first_open` has ended.
    windows: Vec<Window>,
    first_open: usize,
}

impl Tally {
    /// Counts for a machine with this many vCPUs and no windows.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self::with_windows(vcpus, &[])
    }

    /// Counts as well what each of these events causes: `(event, actor)`, in any order.
    #[must_use]
    pub fn with_windows(vcpus: usize, events: &[(u64, Actor)]) -> Self {
        let mut windows: Vec<Window> =
            events.iter().map(|&(event, actor)| Window::new(event, actor)).collect();
        windows.sort_by_key(Window::event);
        windows.dedup_by_key(|w| w.event());
        Self {
            actors: vec![Counts::default(); vcpus + 1],
            // A vCPU is in the guest until it exits: what its very first entry takes is nobody's
            // operation.
            in_guest: vec![true; vcpus],
            windows,
            first_open: 0,
        }
    }

    /// Everything counted, over all vCPUs and the host.
    #[must_use]
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        for counts in &self.actors {
            total.merge(counts);
        }
        total
    }

    /// What was counted on behalf of one actor; `None` for a vCPU that does not exist.
    #[must_use]
    pub fn of(&self, actor: Actor) -> Option<&Counts> {
        match actor {
            Actor::Vcpu(v) if usize::from(v.0) + 1 < self.actors.len() => {
                self.actors.get(usize::from(v.0))
            }
            Actor::Vcpu(_) => None,
            Actor::Host => self.actors.last(),
        }
    }

    /// What this event caused up to the end of the next successful entry of its vCPU (of every
    /// vCPU, for a host operation); `None` if no window was asked for.
    #[must_use]
    pub fn window(&self, event: u64) -> Option<&Counts> {
        let found = self.windows.binary_search_by_key(&event, Window::event).ok()?;
        Some(self.windows[found].counts())
    }

    /// Adds to the actor and to the windows that see this act.
    fn add(&mut self, at: &At, key: Key, n: u64) {
        let slot = match at.actor {
            Actor::Vcpu(v) => usize::from(v.0).min(self.actors.len() - 1),
            Actor::Host => self.actors.len() - 1,
        };
        self.actors[slot].add(key, n);
        if at.event == BEFORE {
            return;
        }
        for window in &mut self.windows[self.first_open..] {
            if window.event() > at.event {
                break;
            }
            window.add(at, key, n);
        }
    }

    /// Lets the windows up to this event see an act before it is counted.
    fn before(&mut self, at: &At, act: &Act) {
        if let (Actor::Vcpu(v), Act::Exit(_)) = (at.actor, act) {
            self.set_in_guest(usize::from(v.0), false);
        }
        for window in &mut self.windows[self.first_open..] {
            if window.event() > at.event {
                break;
            }
            window.before(at, act, &self.in_guest);
        }
    }

    /// Lets the windows see an act after it was counted, and retires those that have ended.
    fn after(&mut self, at: &At, act: &Act) {
        let entered = matches!(act, Act::Entry(_) | Act::EntrySeen);
        if let (Actor::Vcpu(v), true) = (at.actor, entered) {
            self.set_in_guest(usize::from(v.0), true);
            for window in &mut self.windows[self.first_open..] {
                if window.event() > at.event {
                    break;
                }
                window.entered(v);
            }
        }
        while self.windows.get(self.first_open).is_some_and(|w| w.ended(at.event)) {
            self.first_open += 1;
        }
    }

    fn set_in_guest(&mut self, vcpu: usize, value: bool) {
        if let Some(slot) = self.in_guest.get_mut(vcpu) {
            *slot = value;
        }
    }
}

impl Observer for Tally {
    fn act<W: World>(&mut self, at: &At, act: &Act, _world: &W) {
        self.count(at, act);
    }

    fn refill(&mut self, at: &At, refs: u8) {
        self.count(at, &Act::Refill { refs, ghost: None });
    }

    /// Accesses are not counted.
    #[inline]
    fn indifferent<W: World>(&self, _: VcpuId, _: &W) -> Option<Marks> {
        Some(Marks::ALL)
    }
}

impl Tally {
    fn count(&mut self, at: &At, act: &Act) {
        // The vCPUs enter for the first time before any event: nobody's operation causes that.
        let windowed = self.first_open < self.windows.len() && at.event != BEFORE;
        if windowed {
            self.before(at, act);
        }
        match *act {
            Act::Serve(request) => {
                if let Some(key) = request_key(request) {
                    self.add(at, key, 1);
                }
            }
            Act::Hook { hook, by, .. } => {
                if by == HookBy::Request {
                    self.add(at, Key::StatTlbFlush, 1);
                }
                self.add(at, hook_key(hook), 1);
            }
            Act::Inv(inv) => {
                if let Some(key) = inv_key(inv) {
                    self.add(at, key, 1);
                }
            }
            Act::RemoteFlush { ipi } => {
                self.add(at, Key::RemoteFlushRequests, 1);
                if ipi == Some(true) {
                    self.add(at, Key::RemoteFlush, 1);
                }
            }
            Act::Refill { refs, .. } => {
                self.add(at, Key::Refill, 1);
                self.add(at, Key::WalkRef, u64::from(refs));
            }
            Act::FreeRoots { mask } => {
                self.add(at, Key::RootFree, u64::from((mask & 0xf).count_ones()));
            }
            _ => {
                if let Some(key) = plain_key(act) {
                    self.add(at, key, 1);
                }
            }
        }
        if windowed {
            self.after(at, act);
        }
    }
}

/// The key of an act that is worth one of one key.
fn plain_key(act: &Act) -> Option<Key> {
    Some(match act {
        Act::InvalidateGva(_) => Key::StatInvlpg,
        Act::Reset { .. } => Key::MmuReset,
        Act::Init => Key::MmuInit,
        Act::Unload => Key::MmuUnload,
        Act::FreeRoot { .. } => Key::RootFree,
        Act::Load => Key::RootLoad,
        Act::NewPgd(Some(RootLookup::Current | RootLookup::Prev(_))) => Key::RootHit,
        Act::NewPgd(Some(RootLookup::Miss)) => Key::RootMiss,
        Act::SyncRoots => Key::SyncRoot,
        Act::SpSync { .. } => Key::SyncPage,
        Act::RoleChange => Key::RoleChange,
        Act::NewAsid(_) => Key::NewAsid,
        Act::Ipi(_) => Key::Ipi,
        Act::Exit(_) => Key::Exit,
        Act::Entry(_) | Act::EntrySeen => Key::Entry,
        Act::SpuriousFault => Key::SpuriousFault,
        _ => return None,
    })
}

fn request_key(request: Request) -> Option<Key> {
    Some(match request {
        Request::TlbFlush => Key::RequestAll,
        Request::TlbFlushCurrent => Key::RequestCurrent,
        Request::TlbFlushGuest => Key::RequestGuest,
        Request::MmuSync => Key::RequestSync,
        Request::LoadMmuPgd => Key::RequestPgd,
        Request::MmuReload => Key::RequestReload,
        Request::MmuFreeObsoleteRoots => Key::RequestObsolete,
        Request::HvTlbFlush => Key::RequestHv,
        Request::MmuUpdateRoot | Request::StealUpdate | Request::ApicPageReload => return None,
    })
}

fn hook_key(hook: Hook) -> Key {
    match hook {
        Hook::All => Key::FlushAll,
        Hook::Current => Key::FlushCurrent,
        Hook::Guest => Key::FlushGuest,
        Hook::Gva(_) => Key::FlushGva,
    }
}

fn inv_key(inv: Inv) -> Option<Key> {
    Some(match inv {
        Inv::VpidAddress { .. } => Key::InvvpidAddress,
        Inv::VpidSingle(_) => Key::InvvpidSingle,
        Inv::VpidAll => Key::InvvpidAll,
        Inv::VpidNonglobal(_) => Key::InvvpidNonglobal,
        Inv::EptSingle(_) => Key::InveptSingle,
        Inv::EptGlobal => Key::InveptGlobal,
        Inv::TlbControlAll => Key::TlbControl1,
        Inv::TlbControlAsid(_) => Key::TlbControl3,
        Inv::TlbControlNonglobal(_) => Key::TlbControl7,
        Inv::Invlpga { .. } => Key::Invlpga,
        Inv::VpidZeroTransition | Inv::Guest(_) | Inv::Exact => return None,
    })
}

#[cfg(test)]
mod tests;
