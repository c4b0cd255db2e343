//! `policy check` and `policy explain` as their users meet them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tlbscope")).args(args).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn an_error_points_into_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let policy = "name = \"x\"\nextends = \"kvm-5.17\"\n\n[[cr4]]\nid = \"a\"\n\
                  when = { chnged = [\"SMEP\"] }\ndo = [\"mmu-reset\"]\n";
    fs::write(folder.path().join("bad.toml"), policy).unwrap();
    let out = run(folder.path(), &["policy", "check", "bad.toml"]);
    assert_eq!(out.status.code(), Some(2));
    let err = text(&out.stderr);
    assert!(err.contains("bad.toml:6:10: unknown condition \"chnged\""), "{err}");
    assert!(err.contains("did you mean \"changed\"?"), "{err}");
    let shown = "\n  5 | id = \"a\"\n  6 | when = { chnged = [\"SMEP\"] }\n    |          ^^^^^^\n";
    assert!(err.contains(shown), "{err}");
}

#[test]
fn an_error_in_a_hostile_file_is_shown_as_text() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(5000);
    for policy in [
        "name = \"\u{1b}[2J\"\nextedns = \"\u{e9}\u{1b}]0;t\u{7}\"\n".to_owned(),
        format!("{long} = 1\n"),
        "name = \"x\"\n[mechanics]\n\t\u{e9}\u{e9} = 3".to_owned(),
        "name = ".to_owned(),
    ] {
        fs::write(folder.path().join("bad.toml"), policy).unwrap();
        let out = run(folder.path(), &["policy", "check", "bad.toml"]);
        assert_eq!(out.status.code(), Some(2));
        let err = text(&out.stderr);
        let (_, excerpt) = err.split_once("\n  ").expect("a line is shown");
        assert!(!excerpt.contains('\u{1b}') && excerpt.contains('^'), "{err:?}");
        assert!(excerpt.lines().all(|line| line.chars().count() < 140), "{err:?}");
    }
}

#[test]
fn several_operations_are_explained_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["policy", "explain", "kvm-6.12-lts", "cr4 +SMEP", "emul cr4 +SMEP", "l2exit"];
    let out = run(folder.path(), &args);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let told = text(&out.stdout);
    for part in ["cr4 +SMEP under kvm-6.12-lts", "emul cr4 +SMEP under", "l2exit under"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(told.contains("intel ept") && told.contains("amd shadow"), "{told}");
}

#[test]
fn a_slip_in_an_operation_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let out = run(folder.path(), &["policy", "explain", "kvm-6.12-lts", "cr4 +SMEEP"]);
    assert_eq!(out.status.code(), Some(2));
    let err = text(&out.stderr);
    assert!(err.contains("unknown bit of CR4 `SMEEP`; did you mean `SMEP`?"), "{err}");
    assert!(err.contains("\n  cr4 +SMEEP\n      ^\n"), "{err}");
}

#[test]
fn a_diff_as_a_page_stands_alone_and_escapes_what_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let name = "<script>alert('1')<\\u002fscript>&";
    let policy = format!("name = \"{name}\"\nextends = \"kvm-5.17\"\ncr4 = []\n");
    fs::write(folder.path().join("<b>&'.toml"), policy).unwrap();
    let args = ["policy", "diff", "kvm-5.17", "./<b>&'.toml", "--format", "html"];
    let out = run(folder.path(), &args);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let page = text(&out.stdout);
    assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
    assert!(!page.contains("<b>") && !page.contains("<script"), "names are text");
    assert!(page.contains("./&lt;b&gt;&amp;&#39;.toml"), "{page}");
    for from_elsewhere in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
    }
    // 5.17 requests a flush when PGE changes; without its rule nothing is done, and it is missed.
    let row = page.lines().find(|line| line.contains("<td>cr4 -PGE</td>")).expect("a row");
    assert!(row.contains("cr4-pge") && row.contains("class=\"bad\">MISSED"), "{row}");
    assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    assert_eq!(page.matches("<tr>").count(), page.matches("</tr>").count());
}
