//! No text makes the loader panic, and what it accepts it can write and read again.

use proptest::prelude::*;

use super::super::{Library, builtins, parse};

/// Accepted or refused: if accepted, a round through TOML keeps it; if refused, the place is in
/// the text.
fn check(text: &str) -> Result<(), TestCaseError> {
    match parse(text, "fuzz.toml", &Library::new()) {
        Ok(policy) => {
            let again = parse(&policy.to_toml(), "again.toml", &Library::new());
            prop_assert_eq!(again.map_err(|e| e.to_string()), Ok(policy));
        }
        Err(error) => {
            if let Some((line, column)) = error.place {
                prop_assert!(line >= 1 && line <= text.lines().count() + 1, "{}", error);
                prop_assert!(column >= 1 && column <= text.chars().count() + 1, "{}", error);
            }
            prop_assert!(!error.message.contains('\n'), "{}", error);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        check(&text)?;
    }

    /// A built-in with a piece cut out and another put in.
    #[test]
    fn damaged_built_ins(
        which in 0..builtins().len(),
        at in 0usize..1000,
        cut in 0usize..20,
        piece in prop_oneof![
            Just(String::new()),
            Just("[[cr4]]\ndo = []\n".to_owned()),
            Just("\"".to_owned()),
            Just("not = { any = [] }, ".to_owned()),
            "[a-z\\-= \"\\[\\]{}]{0,12}",
        ],
    ) {
        let text = builtins()[which].1;
        let start = text.floor_char_boundary(text.len() * at / 1000);
        let end = text.floor_char_boundary((start + cut).min(text.len())).max(start);
        check(&format!("{}{piece}{}", &text[..start], &text[end..]))?;
    }
}
