//! The architecture cases pass, and they are sharp: whatever is taken from the table of requirements
//! or from the TLB, one of them fails.

use std::fs;
use std::path::Path;

use tlbscope_analyze::conformance::{By, CaseFile, Subject, Verdict};
use tlbscope_sim::arch::required::processor::{Demand, Tags, What, Where};
use tlbscope_sim::arch::required::{Rule, Scope, Strength, rules};
use tlbscope_sim::tlb::instruction::{Drop, Effect};
use tlbscope_trace::act::{GuestInv, Inv};
use tlbscope_trace::addr::{Asid, Gpa, Gva, Pcid, Vpid};

fn files() -> Vec<CaseFile> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/conformance");
    ["arch-cases.json", "more-cases.json"]
        .iter()
        .map(|name| {
            let text = fs::read_to_string(folder.join(name)).expect("a readable file");
            CaseFile::parse(name, &text).expect("a case file")
        })
        .collect()
}

/// Names of the cases that this subject fails, by whom.
fn failures(files: &[CaseFile], subject: Subject<'_>) -> Vec<(String, By)> {
    let reports = files.iter().flat_map(|file| file.run_on(subject));
    reports.flat_map(|r| r.failures.into_iter().map(move |f| (r.id.clone(), f.by))).collect()
}

fn caught(files: &[CaseFile], subject: Subject<'_>, by: By) -> bool {
    failures(files, subject).iter().any(|(_, who)| *who == by)
}

#[test]
fn every_case_passes_and_only_contradictory_ones_are_skipped() {
    let files = files();
    assert_eq!(failures(&files, Subject::default()), []);
    let skipped = files.iter().flat_map(CaseFile::run).filter(|r| r.verdict == Verdict::Skipped);
    let skipped: Vec<String> = skipped.map(|r| r.id).collect();
    assert_eq!(skipped, ["I-INIT-01", "A-INIT-01", "A-INIT-90"]);
}

/// The rows that some case calls upon: those of instructions. `table_rows.rs` has the rest.
fn rows(files: &[CaseFile]) -> Vec<&'static Rule> {
    let named = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let note = |d: Demand| {
        named.borrow_mut().insert(d.rule.id);
        Some(d)
    };
    failures(files, Subject { mutation: &note, ..Subject::default() });
    let named = named.into_inner();
    assert!(named.len() >= 46, "{named:?}");
    rules().filter(|rule| named.contains(rule.id)).collect()
}

fn table_caught(files: &[CaseFile], rule: &Rule, to: &dyn Fn(Demand) -> Option<Demand>) -> bool {
    let mutation = |d: Demand| if d.rule.id == rule.id { to(d) } else { Some(d) };
    caught(files, Subject { mutation: &mutation, ..Subject::default() }, By::Table)
}

#[test]
fn a_row_taken_from_the_table_fails_a_case() {
    let files = files();
    let (mut score, mut missed) = (0, Vec::new());
    for rule in rows(&files) {
        let found = match rule.strength {
            Strength::Must => table_caught(&files, rule, &|_| None),
            // A point that is left open must not be demanded.
            Strength::Advised => {
                table_caught(&files, rule, &|d| Some(Demand { strength: Strength::Must, ..d }))
            }
        };
        if found { score += 1 } else { missed.push(rule.id) }
    }
    println!("rows dropped or made binding: {score} caught, not caught: {missed:?}");
    assert_eq!(missed, <[&str; 0]>::default());
}

const ELSEWHERE: u64 = 1 << 40;

/// Demands that ask for less.
fn narrower(d: Demand) -> Vec<Demand> {
    let with = |what| Demand { what, ..d };
    let scope = |scope| with(What::Scope(scope));
    let mut all = match d.what {
        What::Scope(Scope::Everything | Scope::EveryAsid) => vec![scope(Scope::NonGlobal)],
        What::Scope(Scope::NonGlobal) => vec![scope(Scope::PcidNonGlobal(Pcid(0)))],
        What::Scope(Scope::Pcid(p)) => vec![scope(Scope::PcidNonGlobal(p))],
        What::Scope(Scope::PcidNonGlobal(pcid)) => {
            vec![scope(Scope::AddressNonGlobal { pcid, gva: Gva(0x7f00_0000_1000) })]
        }
        What::Scope(Scope::Address { pcid, gva, path }) => {
            let less = scope(Scope::AddressNonGlobal { pcid, gva });
            let upper = scope(Scope::Address { pcid, gva, path: true });
            if path { vec![less] } else { vec![less, upper] }
        }
        What::Scope(Scope::AddressNonGlobal { pcid, gva }) => {
            vec![scope(Scope::AddressNonGlobal { pcid, gva: Gva(gva.0 ^ ELSEWHERE) })]
        }
        What::Scope(Scope::Fault { pcid, gva }) => {
            vec![scope(Scope::AddressNonGlobal { pcid, gva })]
        }
        What::Address { gva, .. } => vec![scope(Scope::AddressNonGlobal { pcid: Pcid(0), gva })],
        What::NonGlobalTranslations => vec![scope(Scope::PcidNonGlobal(Pcid(2)))],
        What::Physical(gpa) => vec![with(What::Physical(Gpa(gpa.0 ^ ELSEWHERE)))],
        What::Broadcast(b) => {
            let mut less = b;
            (less.extra, less.global) = (0, false);
            vec![with(What::Broadcast(less))]
        }
        _ => vec![],
    };
    let tags = match d.tags {
        Tags::GuestVpids => Some(Tags::Vpid(Vpid(1))),
        Tags::EveryEpt => Some(Tags::Ept(tlbscope_trace::addr::Ep4ta(0x1000_0000))),
        Tags::EveryAsid => Some(Tags::Asid(Asid(5))),
        Tags::All => Some(Tags::Vpid(Vpid(0))),
        _ => None,
    };
    all.extend(tags.map(|tags| Demand { tags, ..d }));
    if d.on == Where::Every {
        all.push(Demand { on: Where::Own, ..d });
    }
    all
}

/// Demands that ask for more than the manuals do.
fn wider(d: Demand) -> Vec<Demand> {
    let scope = |scope| Demand { what: What::Scope(scope), ..d };
    let mut all = match d.what {
        What::Scope(Scope::Everything | Scope::EveryAsid) => vec![],
        What::Scope(Scope::PcidNonGlobal(pcid)) => {
            vec![scope(Scope::Pcid(pcid)), scope(Scope::NonGlobal)]
        }
        What::Scope(Scope::AddressNonGlobal { pcid, gva }) => {
            vec![
                scope(Scope::Fault { pcid, gva }),
                scope(Scope::Address { pcid, gva, path: false }),
                scope(Scope::PcidNonGlobal(pcid)),
            ]
        }
        What::Scope(Scope::Fault { pcid, gva }) => {
            let page = scope(Scope::Address { pcid, gva, path: true });
            vec![page, scope(Scope::Address { pcid, gva, path: false })]
        }
        _ => vec![scope(Scope::Everything)],
    };
    let tags = match d.tags {
        // Nothing is wider than an order to every ASID or to the whole processor.
        Tags::EveryAsid | Tags::All => None,
        _ => Some(Tags::All),
    };
    all.extend(tags.map(|tags| Demand { tags, ..d }));
    all
}

/// For every rule, replaces its demand by the nth of `others`; what no case catches.
fn not_caught(files: &[CaseFile], others: fn(Demand) -> Vec<Demand>) -> (usize, Vec<String>) {
    let (mut score, mut missed) = (0, Vec::new());
    for rule in rows(files).into_iter().filter(|rule| rule.strength == Strength::Must) {
        for n in 0..4 {
            let exists = std::cell::Cell::new(false);
            let found = table_caught(files, rule, &|d| {
                let other = others(d).get(n).copied();
                exists.set(exists.get() || other.is_some());
                Some(other.unwrap_or(d))
            });
            match (exists.get(), found) {
                (true, true) => score += 1,
                (true, false) => missed.push(format!("{} {n}", rule.id)),
                (false, _) => {}
            }
        }
    }
    (score, missed)
}

#[test]
fn a_row_that_is_narrowed_fails_a_case() {
    let (score, missed) = not_caught(&files(), narrower);
    println!("rows narrowed: {score} caught, not caught: {missed:?}");
    assert_eq!(missed, <[&str; 0]>::default());
}

#[test]
fn a_row_that_demands_too_much_fails_a_case() {
    let (score, missed) = not_caught(&files(), wider);
    println!("rows widened: {score} caught, not caught: {missed:?}");
    assert_eq!(missed, <[&str; 0]>::default());
}

#[test]
fn a_rule_taken_from_the_hardware_fails_a_case() {
    let files = files();
    let mut missed = Vec::new();
    for effect in Effect::ALL {
        let erratum = |e, drop| (e != effect).then_some(drop);
        if !caught(&files, Subject { erratum: &erratum, ..Subject::default() }, By::Hardware) {
            missed.push(effect);
        }
    }
    let score = Effect::ALL.len() - missed.len();
    println!("rules of the hardware dropped: {score} caught, not caught: {missed:?}");
    assert_eq!(missed, []);
}

/// What a defective processor drops instead.
fn less(drop: Drop) -> Vec<Drop> {
    let guest = |inv| Drop::Inv(Inv::Guest(inv));
    match drop {
        Drop::Inv(Inv::Guest(inv)) => match inv {
            GuestInv::All => vec![guest(GuestInv::Nonglobal)],
            GuestInv::Nonglobal => vec![guest(GuestInv::PcidNonglobal(Pcid(0)))],
            GuestInv::Pcid(p) => vec![guest(GuestInv::PcidNonglobal(p))],
            GuestInv::PcidNonglobal(pcid) => {
                vec![guest(GuestInv::AddressNonglobal { pcid, gva: Gva(0x7f00_0000_1000) })]
            }
            GuestInv::Address { pcid, gva } => {
                vec![
                    guest(GuestInv::AddressNonglobal { pcid, gva }),
                    guest(GuestInv::AddressPath { pcid, gva }),
                ]
            }
            GuestInv::AddressPath { pcid, gva } => {
                vec![guest(GuestInv::AddressNonglobal { pcid, gva })]
            }
            GuestInv::AddressNonglobal { pcid, gva } => {
                let gva = Gva(gva.0 ^ ELSEWHERE);
                vec![guest(GuestInv::AddressNonglobal { pcid, gva })]
            }
            GuestInv::Fault { pcid, gva } => {
                vec![guest(GuestInv::AddressNonglobal { pcid, gva })]
            }
        },
        Drop::Inv(Inv::VpidSingle(v)) => vec![Drop::Inv(Inv::VpidNonglobal(v))],
        Drop::Inv(Inv::VpidAll) => vec![Drop::Inv(Inv::VpidSingle(Vpid(1)))],
        Drop::Inv(Inv::VpidZeroTransition) => vec![Drop::Inv(Inv::VpidNonglobal(Vpid(0)))],
        Drop::Inv(Inv::EptGlobal) => {
            vec![Drop::Inv(Inv::EptSingle(tlbscope_trace::addr::Ep4ta(0x1000_0000)))]
        }
        Drop::Inv(Inv::TlbControlAll) | Drop::EveryAsid => {
            vec![Drop::Inv(Inv::TlbControlAsid(Asid(5)))]
        }
        Drop::Inv(Inv::TlbControlAsid(a)) => vec![Drop::Inv(Inv::TlbControlNonglobal(a))],
        Drop::Processor => vec![Drop::EveryAsid, Drop::Inv(Inv::EptGlobal)],
        Drop::Broadcast(mut b) => {
            (b.extra, b.global) = (0, false);
            vec![Drop::Broadcast(b)]
        }
        Drop::Physical { root, gpa } => {
            vec![Drop::Physical { root, gpa: Gpa(gpa.0 ^ ELSEWHERE) }]
        }
        _ => vec![],
    }
}

#[test]
fn a_rule_of_the_hardware_that_is_narrowed_fails_a_case() {
    let files = files();
    let (mut score, mut missed) = (0, Vec::new());
    for effect in Effect::ALL {
        for n in 0..2 {
            let exists = std::cell::Cell::new(false);
            let erratum = |e, drop| match less(drop).get(n) {
                Some(other) if e == effect => {
                    exists.set(true);
                    Some(*other)
                }
                _ => Some(drop),
            };
            let subject = Subject { erratum: &erratum, ..Subject::default() };
            let found = caught(&files, subject, By::Hardware);
            match (exists.get(), found) {
                (true, true) => score += 1,
                (true, false) => missed.push((effect, n)),
                (false, _) => {}
            }
        }
    }
    println!("rules of the hardware narrowed: {score} caught, not caught: {missed:?}");
    assert_eq!(missed, []);
}
