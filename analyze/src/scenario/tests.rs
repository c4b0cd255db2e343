//! Scenario files, right and wrong. What comes of running them is tested with the engine.

use super::{Kind, Scenario, ScenarioError};
use crate::tally::Key;

/// The example of the design document.
const EXAMPLE: &str = r#"name = "pge-toggle-must-drop-globals"
about = "CR4.PGE 1->0 must drop every translation, global ones too."
source = "Intel SDM vol. 3"

events = '''
          v0 cr3 0x10000
          v0 map 0x7000 0x5000 rwxg
  warm:   v0 read 0x7000
          v0 map 0x7000 0x6000 rwxg
  off:    v0 cr4 -PGE
  use:    v0 read 0x7000 = 0x6000
'''

[machine]
vcpus = 1
vendor = "intel"
mmu = "shadow"

[policy.no-guest-flush]
extends = "kvm-patch-v2"
mechanics = { guest-flush-shadow = "hw-only" }

[expect."kvm-patch-v2"]
missed = []
excessive = []

[expect."kvm-patch-v2".at.off]
counts = { request-guest = 1, mmu-reset = 0, root-free = 0 }

[expect.no-guest-flush]
missed = [{ use = "use", cause = "off" }]

[expect.never]
missed = [{ use = "line:6", cause = "off" }]
"#;

fn parse(text: &str) -> Result<Scenario, ScenarioError> {
    Scenario::parse("x.toml", text)
}

/// The example with its last expectation aimed at a label instead of a numbered line.
fn good() -> String {
    EXAMPLE.replace("line:6", "use")
}

/// The error of the example after a change, as it is printed.
fn error(from: &str, to: &str) -> String {
    let text = good();
    assert!(text.contains(from), "{from}");
    parse(&text.replacen(from, to, 1)).expect_err("it is wrong").to_string()
}

#[test]
fn the_example_is_read() {
    let scenario = parse(&good()).expect("it is right");
    assert_eq!(scenario.lists.len(), 1);
    assert_eq!(scenario.lists[0].lines.len(), 6);
    let names: Vec<&str> = scenario.expects.iter().map(|e| e.policy.as_str()).collect();
    assert_eq!(names, ["kvm-patch-v2", "no-guest-flush", "never"]);
    let patch = &scenario.expects[0];
    assert_eq!(patch.missed, Some([].into()));
    assert_eq!(
        patch.causes[Kind::ALL.iter().position(|k| *k == Kind::Excessive).unwrap()],
        Some([].into())
    );
    assert_eq!(patch.causes[0], None);
    assert_eq!(patch.at[0].event, 4);
    let counts = [(Key::RequestGuest, 1), (Key::MmuReset, 0), (Key::RootFree, 0)];
    assert_eq!(patch.at[0].counts, counts);
    let pair = ("use".to_owned(), "off".to_owned());
    assert_eq!(scenario.expects[1].missed, Some([pair].into()));
}

#[test]
fn a_line_with_a_label_goes_by_it() {
    let error = parse(EXAMPLE).expect_err("line 6 has a label").to_string();
    assert!(error.contains("line 6 of the list has a label; write `use`"), "{error}");
    assert!(error.starts_with("x.toml:34:"), "{error}");
}

#[test]
fn events_in_another_table_are_found() {
    let text = good();
    let (events, rest) = text.split_once("[machine]").expect("there is a machine");
    let (head, events) = events.split_once("events =").expect("there are events");
    let wrong = format!("{head}[machine]\nevents ={events}{rest}");
    let error = parse(&wrong).expect_err("they are inside").to_string();
    assert!(
        error.starts_with("x.toml:6:1: `events` stands inside the table `[machine]`"),
        "{error}"
    );
    assert!(error.contains("move it above the first `[table]`"), "{error}");
}

#[test]
fn a_name_with_a_dot_needs_quotes() {
    let error = error("[expect.no-guest-flush]", "[expect.kvm-5.17]");
    assert!(error.contains("unknown policy `kvm-5`"), "{error}");
    assert!(error.contains("[expect.\"kvm-5.17\"]"), "{error}");
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let cases = [
        ("cause = \"off\"", "cause = \"of\"", "no event has the label `of`; did you mean `off`?"),
        ("request-guest = 1", "request-gest = 1", "did you mean `request-guest`?"),
        ("[expect.never]", "[expect.nevr]", "did you mean `never`?"),
        ("excessive = []", "excesive = []", "did you mean `excessive`?"),
        ("at.off]", "at.of]", "did you mean `off`?"),
        ("about =", "abuot =", "did you mean `about`?"),
        ("vendor =", "vender =", "vender"),
        ("-PGE", "-PGEE", "did you mean `PGE`?"),
        ("guest-flush-shadow =", "guest-flush-shadw =", "guest-flush-shadow"),
    ];
    for (from, to, wanted) in cases {
        let error = error(from, to);
        assert!(error.contains(wanted), "{to}: {error}");
    }
}

#[test]
fn errors_in_events_have_their_line_in_the_file() {
    // `events = '''` is line 5, so the fifth event is line 10.
    let error = error("v0 cr4 -PGE", "v0 cr4 -PGEE");
    assert!(error.starts_with("x.toml:10:"), "{error}");
    let error = self::error("v0 cr3 0x10000", "v1 cr3 0x10000");
    assert!(error.starts_with("x.toml:6:1: v1 does not exist"), "{error}");
    let error = self::error("warm:", "off: ");
    assert!(error.starts_with("x.toml:10:") && error.contains("label `off`"), "{error}");
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    let cases = [
        ("missed = []", "missed = 1", "`missed` must be a list"),
        ("missed = []", "missed = [\"use\"]", "expected a use and a cause"),
        ("missed = []", "missed = [{ use = \"use\" }]", "has a use and a cause"),
        ("root-free = 0", "root-free = -1", "a whole number from 0 on"),
        ("excessive = []", "excessive = \"off\"", "expected a list of labels"),
        ("vcpus = 1", "vcpus = 0", "is not between 1 and"),
        ("name = \"pge", "nam = \"pge", "unknown key `nam`"),
    ];
    for (from, to, wanted) in cases {
        let error = error(from, to);
        assert!(error.contains(wanted), "{to}: {error}");
    }
}

#[test]
fn named_lists_have_expectations_of_their_own() {
    let text = "name = 'n'\nabout = 'a'\nsource = 's'\n[events]\nbuggy = '''\nx: v0 exit\n'''\n\
                fixed = '''\ny: v0 exit\n'''\n[expect.never.buggy]\nlatent = ['x']\n\
                [expect.never.fixed]\nlatent = []\n";
    let scenario = parse(text).expect("it is right");
    let lists: Vec<usize> = scenario.expects.iter().map(|e| e.list).collect();
    assert_eq!(lists, [0, 1]);
    let error = parse(&text.replace("never.fixed", "never.fixd")).expect_err("no such list");
    assert!(error.to_string().contains("did you mean `fixed`?"), "{error}");
    let error = parse(&text.replace("latent = ['x']", "latent = ['y']")).expect_err("other list");
    assert!(error.to_string().contains("no event has the label `y`"), "{error}");
}

#[test]
fn what_is_no_scenario_is_refused() {
    for text in
        ["", "name = 1", "\u{0}", "events = 3", "[expect]\n", "a = [[[[[[[[", "[policy]\nx=1"]
    {
        assert!(parse(text).is_err(), "{text:?}");
    }
}
