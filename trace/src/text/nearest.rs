//! The nearest known name to a mistyped one.

/// The name of `known` with the fewest single-letter edits to `word`, if they are few: half of the
/// word's letters, at least one, at most three. Ties go to the first.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
    let limit = (word.len() / 2).clamp(1, 3);
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        let distance = edits(&word, name);
        if distance <= limit && best.is_none_or(|(d, _)| distance < d) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name.to_owned())
}

/// Levenshtein's distance, case aside.
fn edits(word: &[char], name: &str) -> usize {
    let name: Vec<char> = name.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for (i, a) in word.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in name.iter().enumerate() {
            let replace = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[name.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_the_nearest_and_gives_up_when_far() {
        assert_eq!(nearest("invplg", ["invlpg", "invpcid"]).as_deref(), Some("invlpg"));
        assert_eq!(nearest("smepp", ["SMEP", "SMAP"]).as_deref(), Some("SMEP"));
        assert_eq!(nearest("frobnicate", ["read", "write"]), None);
    }
}
