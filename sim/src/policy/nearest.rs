//! The nearest known name to a word that is not known.

/// Cost of any edit but a swap.
const EDIT: usize = 2;
/// Cost of a swap of neighbours: the likeliest slip, so that it wins a tie.
const SWAP: usize = 1;

/// Weighted edits (insert, delete, replace, swap) between two words, case ignored.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).map(|j| j * EDIT).collect();
    for i in 1..=a.len() {
        let mut row = vec![i * EDIT; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + EDIT * usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + EDIT).min(row[j - 1] + EDIT);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + SWAP);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The nearest of `names` to `word`, the first one in a tie; `None` if none is near enough to be
/// meant: more than a third of the word, and more than one letter, would have to change.
#[must_use]
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A word of a hostile file may be long; no name is.
    if word.len() > 64 {
        return None;
    }
    let limit = EDIT * (word.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| (distance(word, name), name))
        .filter(|(edits, _)| *edits <= limit)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_name_is_offered() {
        assert_eq!(nearest("SMPE", ["SMXE", "SMEP", "SMAP"]), Some("SMEP"));
        assert_eq!(nearest("smep", ["PGE", "SMEP"]), Some("SMEP"));
        assert_eq!(nearest("kvm-5.18", ["kvm-5.10", "kvm-5.17"]), Some("kvm-5.10"));
        assert_eq!(nearest("frobnicate", ["zap", "sync"]), None);
        assert_eq!(nearest(&"x".repeat(1000), ["zap"]), None);
    }
}
