//! Keys whose values no message may show: those that look like names of secrets, also misspelt ones.

const WORDS: [&str; 9] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "private_key",
    "api_key",
    "access_key",
    "authorization",
];

/// Whether the key looks like the name of a secret.
pub(crate) fn is_secret(key: &str) -> bool {
    let key: String =
        key.to_lowercase().chars().map(|c| if c == '-' || c == ' ' { '_' } else { c }).collect();
    let close = |part: &str, word: &str| {
        let length = part.chars().count();
        length >= 5 && length.abs_diff(word.len()) <= 1 && strsim::damerau_levenshtein(part, word) <= 1
    };
    WORDS.iter().any(|word| {
        key.contains(word)
            || key.contains(&word.replace('_', ""))
            || close(&key, word)
            || key.split('_').any(|part| close(part, word))
    }) || ["pwd", "cookie", "passphrase"].iter().any(|word| key.contains(word))
}

/// Masks the values of secret keys in `line`; every other character keeps its column.
pub(crate) fn mask_line(line: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    let mut out = chars.clone();
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        while i < chars.len() && (chars[i].is_alphanumeric() || matches!(chars[i], '_' | '-')) {
            i += 1;
        }
        if i == start {
            i += 1;
            continue;
        }
        if !is_secret(&chars[start..i].iter().collect::<String>()) {
            continue;
        }
        let mut at = i;
        while at < chars.len() && matches!(chars[at], '"' | '\'' | ' ') {
            at += 1;
        }
        if at < chars.len() && matches!(chars[at], ':' | '=') {
            // Mask to the end of the line: one line alone does not show where a secret ends.
            for c in out.iter_mut().skip(at + 1).filter(|c| !c.is_whitespace()) {
                *c = '*';
            }
            break;
        }
    }
    out.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_key() {
        for key in
            ["password", "db_password", "apiKey", "client-secret", "pasword", "auth_token", "Authorization"]
        {
            assert!(is_secret(key), "{key}");
        }
        for key in ["key", "name", "timeout", "labels", "broken", "by"] {
            assert!(!is_secret(key), "{key}");
        }
    }

    #[test]
    fn a_quoted_line_keeps_its_columns_and_loses_its_secrets() {
        let line = r#"  etcd: { user: a, pasword: "hunter, 2" }"#;
        let masked = mask_line(line);
        assert_eq!(masked, r#"  etcd: { user: a, pasword: ******** ** *"#);
        assert_eq!(masked.chars().count(), line.chars().count());
    }
}
