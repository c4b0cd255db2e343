//! The counts and windows of hand-written act sequences.

use tlbscope_trace::act::{Act, At, Context, Hook, HookBy, Inv, Request};
use tlbscope_trace::addr::{Gpa, Hpa, Time, VcpuId, Vpid};
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::Actor;
use tlbscope_trace::regs::{MmuKind, Regs, Vendor};

use super::{Key, Tally};

/// A world in which nothing can be seen: a tally looks at none of it.
struct Blank(Regs);

impl World for Blank {
    fn vendor(&self) -> Vendor {
        Vendor::Intel
    }
    fn mmu(&self) -> MmuKind {
        MmuKind::Shadow
    }
    fn maxphyaddr(&self) -> u32 {
        46
    }
    fn gbpages(&self) -> bool {
        false
    }
    fn regs(&self, _: VcpuId) -> &Regs {
        &self.0
    }
    fn read(&self, _: Gpa) -> u64 {
        0
    }
    fn backing(&self, _: Gpa) -> Option<Hpa> {
        None
    }
    fn memory_bytes(&self) -> u64 {
        0
    }
}

const V0: Actor = Actor::Vcpu(VcpuId(0));
const V1: Actor = Actor::Vcpu(VcpuId(1));

fn feed(tally: &mut Tally, acts: &[(u64, Actor, Act)]) {
    let world = Blank(Regs::default());
    for &(event, actor, act) in acts {
        tally.act(&At { event, time: Time(event), actor }, &act, &world);
    }
}

fn hook(hook: Hook, by: HookBy, effective: bool) -> Act {
    Act::Hook { hook, by, effective }
}

fn entry() -> Act {
    Act::Entry(Context::default())
}

fn refill() -> Act {
    Act::Refill { refs: 4, ghost: None }
}

fn windowed(tally: &Tally, event: u64, key: Key) -> u64 {
    tally.window(event).expect("a window was asked for").get(key)
}

#[test]
fn every_key_has_the_name_that_scenarios_use() {
    let names: Vec<&str> = Key::ALL.iter().map(|k| k.name()).collect();
    assert_eq!(
        names.join(" "),
        "stat-tlb-flush stat-invlpg remote-flush remote-flush-requests mmu-reset mmu-init \
         mmu-unload root-free root-load root-hit root-miss sync-root sync-page role-change \
         request-all request-current request-guest request-sync request-pgd request-reload \
         request-obsolete request-hv flush-all flush-current flush-guest flush-gva \
         invvpid-address invvpid-single invvpid-all invvpid-nonglobal invept-single \
         invept-global tlb-control-1 tlb-control-3 tlb-control-7 new-asid invlpga ipi exit \
         entry refill walk-ref spurious-fault"
    );
    assert_eq!(Key::from_name("flush-gva"), Some(Key::FlushGva));
    assert_eq!(Key::from_name("flush-gvas"), None);
}

/// kvm.md 1.6 G4, column P2: a request seen with an invalid root ticks the counter and invalidates
/// nothing; LOAD flushes and ticks nothing.
#[test]
fn the_counter_ticks_for_requests_and_the_hook_for_both() {
    let mut tally = Tally::with_windows(1, &[(3, V0)]);
    feed(
        &mut tally,
        &[
            (3, V0, Act::Exit(None)),
            (3, V0, Act::Reset { role_changed: Some(true) }),
            (3, V0, Act::Unload),
            (3, V0, Act::Init),
            (3, V0, Act::Post(Request::TlbFlushCurrent)),
            (3, V0, Act::Serve(Request::TlbFlushCurrent)),
            (3, V0, hook(Hook::Current, HookBy::Request, false)),
            (3, V0, Act::Load),
            (3, V0, hook(Hook::Current, HookBy::Load, true)),
            (3, V0, Act::Inv(Inv::EptSingle(Default::default()))),
            (3, V0, entry()),
        ],
    );
    let expected = [
        (Key::StatTlbFlush, 1),
        (Key::FlushCurrent, 2),
        (Key::RequestCurrent, 1),
        (Key::MmuReset, 1),
        (Key::MmuInit, 1),
        (Key::MmuUnload, 1),
        (Key::RootLoad, 1),
        (Key::InveptSingle, 1),
        (Key::Exit, 1),
        (Key::Entry, 1),
        (Key::InvvpidSingle, 0),
    ];
    for (key, n) in expected {
        assert_eq!(tally.total().get(key), n, "{key}");
        assert_eq!(windowed(&tally, 3, key), n, "{key} in the window");
    }
}

#[test]
fn an_operation_without_an_exit_causes_nothing() {
    let mut tally = Tally::with_windows(1, &[(1, V0)]);
    feed(&mut tally, &[(1, V0, refill()), (2, V0, Act::Exit(None)), (2, V0, entry())]);
    assert_eq!(windowed(&tally, 1, Key::Refill), 0);
    assert_eq!(windowed(&tally, 1, Key::Exit), 0);
    assert_eq!(tally.total().get(Key::Refill), 1);
    assert_eq!(tally.total().get(Key::WalkRef), 4);
}

#[test]
fn a_refill_that_is_told_in_short_counts_as_much() {
    let at = |event, time| At { event, time: Time(time), actor: V0 };
    let mut tally = Tally::with_windows(1, &[(1, V0)]);
    feed(&mut tally, &[(1, V0, Act::Exit(None))]);
    tally.refill(&at(1, 1), 4);
    assert_eq!(windowed(&tally, 1, Key::Refill), 1);
    feed(&mut tally, &[(1, V0, entry())]);
    tally.refill(&at(2, 2), 3);
    assert_eq!(windowed(&tally, 1, Key::Refill), 1);
    assert_eq!(tally.total().get(Key::Refill), 2);
    assert_eq!(tally.total().get(Key::WalkRef), 7);
}

#[test]
fn a_window_ends_with_the_entry_and_what_the_hardware_does_in_it() {
    let mut tally = Tally::with_windows(1, &[(1, V0)]);
    feed(
        &mut tally,
        &[
            (1, V0, Act::Exit(None)),
            (1, V0, entry()),
            (1, V0, Act::Inv(Inv::TlbControlAsid(Default::default()))),
            (1, V0, refill()),
            (1, V0, Act::Inv(Inv::TlbControlAsid(Default::default()))),
        ],
    );
    assert_eq!(windowed(&tally, 1, Key::TlbControl3), 1);
    assert_eq!(windowed(&tally, 1, Key::Refill), 0);
    assert_eq!(tally.total().get(Key::TlbControl3), 2);
}

#[test]
fn a_failed_entry_does_not_end_a_window() {
    let mut tally = Tally::with_windows(1, &[(1, V0)]);
    feed(
        &mut tally,
        &[
            (1, V0, Act::Exit(None)),
            (1, V0, Act::EntryAborted { failed: true }),
            (2, V0, Act::Serve(Request::TlbFlushGuest)),
            (2, V0, entry()),
            (3, V0, Act::Exit(None)),
        ],
    );
    assert_eq!(windowed(&tally, 1, Key::RequestGuest), 1);
    assert_eq!(windowed(&tally, 1, Key::Exit), 1);
}

/// kvm.md 5.8 R1 and R2: one target in the guest is interrupted, one outside flushes when it
/// enters; what they do later is not the host's.
#[test]
fn a_host_operation_is_followed_on_every_vcpu() {
    let mut tally = Tally::with_windows(2, &[(5, Actor::Host)]);
    feed(
        &mut tally,
        &[
            (4, V1, Act::Exit(None)),
            (5, Actor::Host, Act::RemoteFlush { ipi: Some(true) }),
            (5, V0, Act::Exit(None)),
            (5, V0, Act::Serve(Request::TlbFlush)),
            (5, V0, entry()),
            (6, V0, Act::Exit(None)),
            (6, V0, entry()),
            (7, V1, Act::Serve(Request::TlbFlush)),
            (7, V1, Act::Inv(Inv::VpidSingle(Vpid(2)))),
            (7, V1, entry()),
            (8, V1, Act::Exit(None)),
        ],
    );
    assert_eq!(windowed(&tally, 5, Key::RequestAll), 2);
    assert_eq!(windowed(&tally, 5, Key::Exit), 1);
    assert_eq!(windowed(&tally, 5, Key::Entry), 2);
    assert_eq!(windowed(&tally, 5, Key::InvvpidSingle), 1);
    assert_eq!(windowed(&tally, 5, Key::RemoteFlush), 1);
    assert_eq!(tally.of(V1).map(|c| c.get(Key::Exit)), Some(2));
}

#[test]
fn a_remote_flush_that_interrupts_nobody_is_only_a_request() {
    let mut tally = Tally::new(1);
    feed(&mut tally, &[(1, Actor::Host, Act::RemoteFlush { ipi: Some(false) })]);
    assert_eq!(tally.total().get(Key::RemoteFlush), 0);
    assert_eq!(tally.total().get(Key::RemoteFlushRequests), 1);
}
