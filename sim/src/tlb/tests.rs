use super::*;
use tlbscope_trace::act::{GuestInv, Inv};
use tlbscope_trace::addr::{Asid, Ep4ta, PcpuId, Vpid};

fn tag(class: Class, id: u32, ep4ta: u64, pcid: u16) -> Tag {
    Tag { pcpu: PcpuId(0), class, id, ep4ta: Ep4ta(ep4ta), pcid: Pcid(pcid) }
}

fn page(global: bool, pcid: u16) -> Entry {
    Entry { global, pcid: Pcid(pcid), ..Entry::default() }
}

const A: Gva = Gva(0x7000);
const B: Gva = Gva(0x8000);
const G: Gva = Gva(0x9000);

/// Two PCIDs of one id hold A and B each, PCID 1 made the global G, each has a PDE cached.
fn filled(class: Class, id: u32) -> Tlb {
    let mut t = Tlb::new(Geometry::Unbounded);
    for pcid in [1, 2] {
        let tag = tag(class, id, 0, pcid);
        t.insert(&tag, A, page(false, pcid));
        t.insert(&tag, B, page(false, pcid));
        for gva in [A, Gva(0x4000_0000)] {
            t.psc_insert(&tag, Mode::Level4, gva, PscEntry { level: 2, ..PscEntry::default() });
        }
    }
    t.insert(&tag(class, id, 0, 1), G, page(true, 1));
    t
}

/// Left after: A, B, PSC(A), PSC(other) of PCID 1, the same of PCID 2, the global.
fn left(class: Class, id: u32, inv: Inv) -> String {
    let mut t = filled(class, id);
    let before = t.live();
    let mut sum = 0;
    t.invalidate(inv, &tag(class, id, 0, 1), 9, &mut |_, _, n| sum += u64::from(n));
    assert_eq!(before - t.live(), sum, "what is dropped is reported");
    let mut out = String::new();
    for pcid in [1, 2] {
        let tag = tag(class, id, 0, pcid);
        out.push(if t.lookup(&tag, A).is_some() { 'A' } else { '-' });
        out.push(if t.lookup(&tag, B).is_some() { 'B' } else { '-' });
        for gva in [A, Gva(0x4000_0000)] {
            let hit = t.psc_lookup(&tag, Mode::Level4, gva, 2..=4).is_some();
            out.push(if hit { 'p' } else { '-' });
        }
        out.push(' ');
    }
    out.push(if t.lookup(&tag(class, id, 0, 2), G).is_some() { 'G' } else { '-' });
    out
}

#[test]
fn guest_instructions_have_the_scopes_of_b1() {
    let pcid = Pcid(1);
    let rows = [
        (GuestInv::All, "---- ---- -"),
        (GuestInv::Nonglobal, "---- ---- G"),
        (GuestInv::Pcid(pcid), "---- ABpp -"),
        (GuestInv::Pcid(Pcid(2)), "ABpp ---- G"),
        (GuestInv::PcidNonglobal(pcid), "---- ABpp G"),
        (GuestInv::Address { pcid, gva: A }, "-B-- ABpp G"),
        (GuestInv::Address { pcid: Pcid(2), gva: G }, "ABpp AB-- -"),
        (GuestInv::AddressPath { pcid, gva: A }, "-B-p ABpp G"),
        (GuestInv::AddressPath { pcid, gva: G }, "AB-p ABpp -"),
        (GuestInv::AddressNonglobal { pcid, gva: A }, "-B-p ABpp G"),
        (GuestInv::AddressNonglobal { pcid, gva: G }, "AB-p ABpp G"),
        (GuestInv::Fault { pcid, gva: A }, "-B-p ABpp G"),
        (GuestInv::Fault { pcid, gva: G }, "AB-p ABpp -"),
        (GuestInv::Fault { pcid: Pcid(2), gva: G }, "ABpp AB-p G"),
    ];
    for class in [Class::Linear, Class::Combined, Class::Asid] {
        for (inv, expected) in rows {
            assert_eq!(left(class, 3, Inv::Guest(inv)), expected, "{class:?} {inv:?}");
        }
    }
}

#[test]
fn invvpid_has_the_scopes_of_d2() {
    let v = Vpid(3);
    let rows = [
        (Inv::VpidAddress { vpid: v, gva: A }, "-B-p -B-p G"),
        (Inv::VpidAddress { vpid: v, gva: G }, "AB-p AB-p -"),
        (Inv::VpidSingle(v), "---- ---- -"),
        (Inv::VpidSingle(Vpid(4)), "ABpp ABpp G"),
        (Inv::VpidAll, "---- ---- -"),
        (Inv::VpidNonglobal(v), "---- ---- G"),
        (Inv::VpidZeroTransition, "ABpp ABpp G"),
        (Inv::TlbControlAll, "ABpp ABpp G"),
    ];
    for (inv, expected) in rows {
        assert_eq!(left(Class::Linear, 3, inv), expected, "{inv:?}");
        assert_eq!(left(Class::Combined, 3, inv), expected, "{inv:?}");
    }
    assert_eq!(left(Class::Linear, 0, Inv::VpidAll), "ABpp ABpp G");
    assert_eq!(left(Class::Linear, 0, Inv::VpidZeroTransition), "---- ---- -");
}

#[test]
fn svm_has_the_scopes_of_c1_and_c4() {
    let a = Asid(3);
    let rows = [
        (Inv::TlbControlAll, "---- ---- -"),
        (Inv::TlbControlAsid(a), "---- ---- -"),
        (Inv::TlbControlAsid(Asid(4)), "ABpp ABpp G"),
        (Inv::TlbControlNonglobal(a), "---- ---- G"),
        (Inv::Invlpga { asid: a, gva: A }, "-B-- -B-- G"),
        (Inv::Invlpga { asid: a, gva: G }, "AB-- AB-- -"),
        (Inv::VpidAll, "ABpp ABpp G"),
        (Inv::EptGlobal, "ABpp ABpp G"),
    ];
    for (inv, expected) in rows {
        assert_eq!(left(Class::Asid, 3, inv), expected, "{inv:?}");
    }
}

#[test]
fn invept_spares_linear_and_other_roots_and_guest_instructions_spare_guest_physical() {
    let [one, two] = [0x1000, 0x2000].map(|e| tag(Class::Combined, 3, e, 1));
    let [gp1, gp2] = [0x1000, 0x2000].map(|e| tag(Class::GuestPhysical, 0, e, 0));
    let linear = tag(Class::Linear, 3, 0, 1);
    let run = |inv| {
        let mut t = Tlb::new(Geometry::Unbounded);
        for tag in [&one, &two, &linear] {
            t.insert(tag, A, page(false, 1));
        }
        t.insert_gpa(&gp1, Gpa(0x7000), page(false, 0));
        t.insert_gpa(&gp2, Gpa(0x7000), page(false, 0));
        t.invalidate(inv, &one, 1, &mut |_, _, _| {});
        let gva = [&one, &two, &linear].map(|tag| t.lookup(tag, A).is_some());
        let gpa = [&gp1, &gp2].map(|tag| t.lookup_gpa(tag, Gpa(0x7000)).is_some());
        (gva, gpa)
    };
    assert_eq!(run(Inv::EptSingle(Ep4ta(0x1000))), ([false, true, true], [false, true]));
    assert_eq!(run(Inv::EptGlobal), ([false, false, true], [false, false]));
    assert_eq!(run(Inv::Guest(GuestInv::All)), ([false; 3], [true, true]));
    assert_eq!(run(Inv::VpidSingle(Vpid(3))), ([false; 3], [true, true]));
    assert_eq!(run(Inv::Exact), ([true; 3], [true, true]));
}

#[test]
fn invlpg_drops_every_fragment_of_a_large_page() {
    let mut t = Tlb::new(Geometry::Unbounded);
    let tag = tag(Class::Linear, 1, 0, 0);
    let part = Entry { guest_size: PageSize::Size2M, ..Entry::default() };
    for gva in [0x20_0000, 0x20_1000, 0x3f_f000, 0x40_0000] {
        t.insert(&tag, Gva(gva), part);
    }
    let inv = Inv::Guest(GuestInv::Address { pcid: Pcid(0), gva: Gva(0x30_0000) });
    t.invalidate(inv, &tag, 1, &mut |_, _, n| assert_eq!(n, 3));
    assert_eq!(t.live(), 1);
    assert!(t.lookup(&tag, Gva(0x40_0000)).is_some());
}

#[test]
fn ghosts_name_the_flush_that_killed_them() {
    let mut t = filled(Class::Linear, 1);
    let tag = tag(Class::Linear, 1, 0, 1);
    let flush = Inv::Guest(GuestInv::PcidNonglobal(Pcid(1)));
    t.invalidate(flush, &tag, 41, &mut |_, _, _| {});
    assert_eq!(t.insert(&tag, A, page(false, 1)), Some(41));
    let one = Inv::Guest(GuestInv::Address { pcid: Pcid(1), gva: A });
    t.invalidate(one, &tag, 42, &mut |_, _, _| {});
    assert_eq!(t.insert(&tag, A, page(false, 1)), Some(42));
    assert_eq!(t.insert(&tag, B, page(false, 1)), Some(41));
    assert_eq!(t.insert(&tag, Gva(0xa000), page(false, 1)), None);
}

#[test]
fn sets_evict_the_least_recently_used() {
    let mut t = Tlb::new(Geometry::Sets { entries: 4, ways: 2 });
    let tag = tag(Class::Linear, 1, 0, 0);
    // Pages 0, 2 and 4 share set 0.
    t.insert(&tag, Gva(0), Entry::default());
    t.insert(&tag, Gva(0x2000), Entry::default());
    assert!(t.lookup(&tag, Gva(0)).is_some());
    t.insert(&tag, Gva(0x4000), Entry::default());
    assert!(t.lookup(&tag, Gva(0x2000)).is_none());
    assert!(t.lookup(&tag, Gva(0)).is_some());
    assert_eq!(t.live(), 2);
}

#[test]
fn structure_caches_have_sizes_of_their_own() {
    let two = Some(Geometry::Sets { entries: 2, ways: 2 });
    let caches = [two, Some(Geometry::Unbounded), None, None];
    let mut t = Tlb::with_structures(Geometry::Unbounded, caches);
    let tag = tag(Class::Linear, 1, 0, 0);
    let region = |n: u64| Gva(n << 21);
    for n in 0..3 {
        for level in 2..=4 {
            let entry = PscEntry { level, ..PscEntry::default() };
            t.psc_insert(&tag, Mode::Level4, region(n), entry);
        }
    }
    let found = |t: &mut Tlb, n| {
        t.psc_lookup(&tag, Mode::Level4, region(n), 2..=4).map(|entry| entry.level)
    };
    // The PDE of region 0 made room; its PDPTE is in another cache. There is none for PML4Es.
    assert_eq!([0, 1, 2].map(|n| found(&mut t, n)), [Some(3), Some(2), Some(2)]);
    assert_eq!(t.psc_lookup(&tag, Mode::Level4, region(0), 4..=4), None);
    t.drop_structures(&tag, region(1));
    assert_eq!([0, 1, 2].map(|n| found(&mut t, n)), [None, None, Some(2)]);
}
