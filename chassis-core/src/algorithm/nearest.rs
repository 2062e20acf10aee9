//! The known word that a misspelt one most likely meant, for *did you mean*.

/// The word of `known` that `found` most likely meant; the first of several that are equally near.
///
/// Upper and lower case, `-` and `_` are the same. Each letter that is inserted, deleted, replaced, or swapped with its
/// neighbour is one error (Damerau-Levenshtein); one error is allowed for each three letters.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace('-', "_");
    let (found, length) = (plain(found), |s: &str| s.chars().count());
    let best = known.into_iter().filter_map(|word| {
        let most = (length(word).max(length(&found)) / 3).max(1).min(length(word).checked_sub(1)?);
        // Most words of a long list differ by their length alone, which costs much less to see.
        if length(word).abs_diff(length(&found)) > most {
            return None;
        }
        let errors = strsim::damerau_levenshtein(&found, &plain(word));
        (errors <= most).then_some((errors, word))
    });
    best.min_by_key(|(errors, _)| *errors).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[track_caller]
    fn check(found: &str, expected: Option<&str>) {
        assert_eq!(nearest(found, ["attempts", "when", "p2c", "inbound", "outbound"]), expected, "{found}");
    }

    #[test]
    fn typing_errors_are_recognised() {
        check("atempts", Some("attempts"));
        check("Attempts", Some("attempts"));
        check("wehn", Some("when"));
        check("p2", Some("p2c"));
        check("outbund", Some("outbound"));
        check("öutbound", Some("outbound"));
    }

    #[test]
    fn other_words_are_not_taken_for_typing_errors() {
        check("retries", None);
        check("x", None);
        check("", None);
    }
}
