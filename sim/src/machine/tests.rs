//! Tests of the processors.

use tlbscope_trace::addr::PageSize;

use super::costs::{Costs, Total};
use super::geometry::Use;
use super::{builtins, load, parse};

#[test]
fn every_built_in_loads_and_says_where_its_numbers_are_from() {
    for (name, _) in builtins() {
        let processor = load(name).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(processor.name, *name);
        assert_eq!(processor.geometry.is_none(), *name == "unbounded");
        for array in processor.geometry.iter().flat_map(|g| &g.tlb) {
            assert!(!array.source.is_empty(), "{name}");
        }
        for act in Costs::NAMES {
            let cost = processor.cost.get(act).unwrap();
            assert_eq!(cost.cycles == 0, cost.source.is_empty(), "{name}: {act}");
        }
        assert!(processor.cost.exit.cycles > 0 && processor.cost.refill.cycles > 0, "{name}");
    }
}

/// Reach of the second level in 4 KiB pages (Skylake-SP 6 MiB, Sapphire Rapids 8, Zen 4 12).
#[test]
fn second_level_reach() {
    for (name, mib) in [("skylake-sp", 6), ("sapphire-rapids", 8), ("zen4", 12)] {
        let geometry = load(name).unwrap().geometry.unwrap();
        let entries: u32 = geometry
            .tlb
            .iter()
            .filter(|a| a.level == 2 && a.sizes.contains(&PageSize::Size4K))
            .filter(|a| a.serves != Use::Instruction)
            .map(|a| a.entries)
            .sum();
        assert_eq!(entries * 4, mib * 1024, "{name}");
    }
}

#[test]
fn one_level_stands_for_all() {
    let expected = [
        ("skylake-sp", (1536, 12)),
        ("ice-lake-sp", (2048, 16)),
        ("sapphire-rapids", (2048, 16)),
        ("zen2", (2048, 16)),
        ("zen3", (2048, 16)),
        ("zen4", (3072, 24)),
    ];
    for (name, last_level) in expected {
        assert_eq!(load(name).unwrap().geometry.unwrap().last_level(), last_level, "{name}");
    }
    // Different sets: the largest alone.
    let array = |entries, ways| {
        format!(
            "[[geometry.tlb]]\nlevel = 2\nuse = \"any\"\nsizes = [\"4k\"]\nsource = \"a\"\n\
             entries = {entries}\nways = {ways}\n"
        )
    };
    let text = format!(
        "name = \"x\"\nabout = \"y\"\nmhz = 1\n[geometry]\nwalkers = 1\n{}{}",
        array(64, 4),
        array(128, 4)
    );
    assert_eq!(parse(&text, "x").unwrap().geometry.unwrap().last_level(), (128, 4));
}

#[test]
fn totals() {
    let text = "name = \"x\"\nabout = \"y\"\nmhz = 1\n[cost]\n\
                exit = { cycles = 100, source = \"a\" }\n\
                ipi = { cycles = 7, source = \"b\", unverified = true }\n";
    let cost = parse(text, "x").unwrap().cost;
    let counts = [("exit", 3), ("ipi", 10), ("request-all", 9), ("entry", 5)];
    let total = cost.total(counts);
    assert_eq!(total, Total { cycles: 370, unverified: 70 });
    assert_eq!(total.unverified_per_mille(), 189);
    assert_eq!(Total::default().unverified_per_mille(), 0);
    let all = cost.total([("ipi", u64::MAX)]);
    assert_eq!((all.cycles, all.unverified_per_mille()), (u64::MAX, 1000));
}

#[test]
fn errors_have_a_place() {
    let head = "name = \"x\"\nabout = \"y\"\nmhz = 1\n";
    let message = |text: &str| parse(&format!("{head}{text}"), "m.toml").unwrap_err().to_string();
    let error = message("[cost]\nexti = { cycles = 1, source = \"a\" }");
    assert!(error.starts_with("m.toml:5:1: unknown field `exti`"), "{error}");
    let none = "[geometry]\nwalkers = 1\ntlb = []";
    assert_eq!(message(none), "m.toml: no tlb array takes 4k data pages");
    let array = "[geometry]\nwalkers = 1\n[[geometry.tlb]]\nlevel = 1\nuse = \"any\"\n\
                 sizes = [\"4k\"]\nsource = \"a\"\n";
    for (numbers, expected) in [
        ("entries = 0\nways = 1", "m.toml: tlb array 1: entries must be a multiple"),
        ("entries = 8\nways = 0", "m.toml: tlb array 1: entries must be a multiple"),
        ("entries = 12\nways = 4", "m.toml: tlb array 1: entries / ways is not a power of two"),
    ] {
        let error = message(&format!("{array}{numbers}"));
        assert!(error.starts_with(expected), "{error}");
    }
    let error = load("zen5").unwrap_err().to_string();
    assert_eq!(error, "unknown machine \"zen5\"; did you mean \"zen2\"?");
    assert!(load("no/such.toml").unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn structure_caches_are_those_of_the_processor() {
    use crate::machine::config::MachineConfig;
    use crate::tlb::Geometry::{Sets, Unbounded};
    let of = |tlb: &str| {
        let config = MachineConfig { tlb: tlb.to_owned(), ..MachineConfig::default() };
        config.structure_caches().unwrap()
    };
    let full = |entries| Some(Sets { entries, ways: entries });
    assert_eq!(of("unbounded"), [Some(Unbounded); 4]);
    assert_eq!(of("skylake-sp"), [full(32), full(4), full(2), None]);
}
