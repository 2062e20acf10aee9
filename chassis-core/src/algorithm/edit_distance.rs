//! The edit distance of two words.

/// The number of letters to insert, delete or replace to turn one word into the other (Levenshtein); for *did
/// you mean*.
pub(crate) fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn distances() {
        for (one, other, expected) in [
            ("", "", 0),
            ("stock", "stock", 0),
            ("stok", "stock", 1),
            ("stcok", "stock", 2),
            ("", "abc", 3),
            ("ä", "a", 1),
        ] {
            assert_eq!(
                (edit_distance(one, other), edit_distance(other, one)),
                (expected, expected),
                "{one} {other}"
            );
        }
    }
}
