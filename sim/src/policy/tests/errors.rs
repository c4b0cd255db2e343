//! What is refused, where, and with which hint.

use std::fs;

use toml::de::DeTable;

use super::super::rule::{Change, Register};
use super::super::{Library, load, parse};
use super::actions;

/// The message for a text.
fn refused(text: &str) -> String {
    match parse(text, "my.toml", &Library::new()) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn unknown_words_are_refused_with_their_place_and_the_nearest_name() {
    let rows = [
        ("nmae = \"x\"", "my.toml:1:1: unknown key \"nmae\"; did you mean \"name\"?"),
        (
            "name = \"x\"\n[[cr4]]\nwhen = { changed = [\"PSE\", \"SMPE\"] }\ndo = []",
            "my.toml:3:28: unknown bit \"SMPE\"; did you mean \"SMEP\"?",
        ),
        (
            "[[cr4]]\ndo = [\"mmu-rest\"]",
            "my.toml:2:7: unknown action \"mmu-rest\"; did you mean \"mmu-reset\"?",
        ),
        (
            "[[cr4]]\ndo = [\"request TLB_FLUSH_GEUST\"]",
            "my.toml:2:7: unknown request \"TLB_FLUSH_GEUST\"; did you mean \"TLB_FLUSH_GUEST\"?",
        ),
        (
            "[[cr4]]\ndo = [\"flush-hook gav\"]",
            "my.toml:2:7: unknown flush hook \"gav\"; did you mean \"gva\"?",
        ),
        (
            "[[cr4]]\ndo = [\"request\"]",
            "my.toml:2:7: unknown action \"request\"; request needs a name",
        ),
        (
            "[[cr0]]\nwhen = { chnaged = [\"PG\"] }\ndo = []",
            "my.toml:2:10: unknown condition \"chnaged\"; did you mean \"changed\"?",
        ),
        (
            "[[cr4]]\nwhen = { noflush = true }\ndo = []",
            "my.toml:2:10: \"noflush\" is no condition of cr4 rules",
        ),
        (
            "[[cr4]]\nwehn = {}\ndo = []",
            "my.toml:2:1: unknown key \"wehn\" in a rule; did you mean \"when\"?",
        ),
        ("[[cr4]]\nid = \"a\"", "my.toml:1:1: the rule \"a\" has no do = [...]"),
        (
            "[[cr4]]\nid = \"a\"\ndo = []\n[[cr4]]\nid = \"a\"\ndo = []",
            "my.toml:4:1: two cr4 rules have the id \"a\"",
        ),
        (
            "[[cr4]]\nelse = true\ndo = []",
            "my.toml:1:1: the first rule of a list cannot have else = true",
        ),
        (
            "[mechanics]\nlaod-flush = true",
            "my.toml:2:1: unknown mechanic \"laod-flush\"; did you mean \"load-flush\"?",
        ),
        (
            "[mechanics]\nreset = \"unlaod\"",
            "my.toml:2:9: unknown value \"unlaod\"; did you mean \"unload\"?",
        ),
        ("[mechanics]\nload-flush = \"yes\"", "my.toml:2:14: expected true or false, found string"),
        (
            "[mechanics]\nprev-roots = 256",
            "my.toml:2:14: expected a whole number from 0 to 255, found integer",
        ),
        ("[mechanics]\nprev-roots = 4", "my.toml:2:14: KVM's root cache has at most 3 entries"),
        (
            "[mechanics.remote-flush]\nzpa = true",
            "my.toml:2:1: unknown mechanic \"remote-flush.zpa\"; did you mean \"zap\"?",
        ),
        (
            "load-flush = true",
            "my.toml:1:1: \"load-flush\" is a mechanic: write it below [mechanics]",
        ),
        (
            "[[invpcid]]\nwhen = { type = [\"adr\"] }\ndo = []",
            "my.toml:2:18: unknown INVPCID type \"adr\"; did you mean \"addr\"?",
        ),
        (
            "extends = \"kvm-5.71\"",
            "my.toml:1:11: unknown policy \"kvm-5.71\"; did you mean \"kvm-5.17\"?",
        ),
        (
            "extends = \"kvm-5\"",
            "my.toml:1:11: unknown policy \"kvm-5\"; a name with a dot must be quoted: \
             \"kvm-5.10\"",
        ),
        // Columns count characters, not bytes.
        (
            "[[cr4]]\nwhen = { any = [{ vendor = \"ämd\" }] }\ndo = []",
            "my.toml:2:28: unknown vendor \"ämd\"; did you mean \"amd\"?",
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(refused(text), expected);
    }
}

#[test]
fn broken_toml_has_a_place_too() {
    let error = refused("name = \"x\"\nabout = = 1");
    assert!(error.starts_with("my.toml:2:"), "{error}");
    refused("name = \"x\"\nname = \"y\"");
    refused(&"[".repeat(100_000));
}

#[test]
fn an_unknown_name_has_no_place() {
    let error = load("kvm-6.5").unwrap_err();
    assert_eq!(error.to_string(), "unknown policy \"kvm-6.5\"; did you mean \"kvm-6.4\"?");
    let error = load("no/such/file.toml").unwrap_err().to_string();
    assert!(error.starts_with("no/such/file.toml: cannot be read"), "{error}");
}

#[test]
fn policies_of_a_scenario_extend_one_another_but_not_in_a_circle() {
    let text = "[a]\nextends = \"b\"\n[b]\nextends = \"kvm-5.17\"\ncr4 = []\n\
                [x]\nextends = \"y\"\n[y]\nextends = \"x\"\n[z]\nextends = \"z\"\n";
    let document = DeTable::parse(text).unwrap();
    let mut library = Library::new();
    for (name, value) in document.get_ref() {
        let table = value.get_ref().as_table().unwrap();
        library.add_table(name.get_ref(), table, text, "s.toml").unwrap();
    }
    let a = library.load("a").unwrap();
    assert_eq!(a.name, "a");
    assert!(a.rules(Register::Cr4).is_empty(), "a list replaces the inherited one as a whole");
    assert_eq!(a.rules(Register::Cr0), load("kvm-5.17").unwrap().rules(Register::Cr0));
    let circle = library.load("x").unwrap_err().to_string();
    assert_eq!(circle, "s.toml:9:11: extends goes in a circle: x -> y -> x");
    let circle = library.load("z").unwrap_err().to_string();
    assert_eq!(circle, "s.toml:11:11: extends goes in a circle: z -> z");
    let empty = DeTable::parse("").unwrap();
    assert!(library.add_table("kvm-5.17", empty.get_ref(), "", "s.toml").is_err());
}

#[test]
fn a_file_extends_a_file_beside_it() {
    let dir = std::env::temp_dir().join(format!("tlbscope-policy-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("base.toml"), "extends = \"kvm-5.17\"\n[[cr4]]\ndo = [\"zap-all\"]")
        .unwrap();
    fs::write(dir.join("mine.toml"), "extends = \"base.toml\"\n[mechanics]\nprev-roots = 1")
        .unwrap();
    fs::write(dir.join("self.toml"), "extends = \"./self.toml\"").unwrap();
    let mine = load(dir.join("mine.toml").to_str().unwrap());
    let circle = load(dir.join("self.toml").to_str().unwrap());
    fs::remove_dir_all(&dir).unwrap();
    let mine = mine.unwrap();
    assert_eq!((mine.name.as_str(), mine.mechanics.prev_roots), ("mine", 1));
    assert_eq!(actions(&mine, Register::Cr4, &Change::default()), "zap-all");
    assert!(circle.unwrap_err().to_string().contains("in a circle"));
}

#[test]
fn conditions_mean_what_they_say() {
    let text = "[[cr0]]\nwhen = { was = [\"PG\", \"PE\"], not = { now = [\"PG\"] } }\n\
                do = [\"mmu-unload\"]\n[[cr0]]\nwhen = { only = [\"TS\"] }\ndo = [\"mmu-init\"]\n\
                [[cr0]]\nelse = true\nwhen = { all = [{ set = [\"CD\"] }, { vendor = \"amd\" }] }\n\
                do = [\"zap-all\"]\n[[cr0]]\nelse = true\ndo = [\"free-obsolete-roots\"]";
    let policy = parse(text, "t.toml", &Library::new()).unwrap();
    let (pe, ts, cd, pg) = (1, 8, 1 << 30, 1 << 31);
    let get = |old, new, vendor| {
        actions(&policy, Register::Cr0, &Change { old, new, vendor, ..Change::default() })
    };
    use tlbscope_trace::regs::Vendor::{Amd, Intel};
    assert_eq!(get(pg | pe, pe, Intel), "mmu-unload; free-obsolete-roots");
    assert_eq!(get(pg, 0, Intel), "free-obsolete-roots", "was means all of the bits");
    assert_eq!(get(pe, pe | ts, Intel), "mmu-init");
    assert_eq!(get(pe, pe, Amd), "mmu-init", "only holds if nothing changed");
    assert_eq!(get(pe, pe | cd, Amd), "zap-all");
    assert_eq!(get(pe, pe | cd, Intel), "free-obsolete-roots");
}
