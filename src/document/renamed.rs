//! Keys of the document that have new names. The old ones are read for one major version.

/// Each has its former path (`*` stands for a key that people choose, `[*]` for each item of a list), the new name of its last
/// key, and the version of chassis that brought the new name. None yet: before the first release keys are renamed without
/// notice.
pub(super) const RENAMED: &[(&str, &str, &str)] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of a version that may break: the first number above 0.
    fn breaking(version: &str) -> Vec<u64> {
        let numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        let mut part = Vec::new();
        for number in numbers {
            part.push(number);
            if number > 0 {
                break;
            }
        }
        part
    }

    /// Whether a name that was replaced in `since` is no longer to be read in `now`: the version after the next that may
    /// break has passed.
    fn is_over(since: &str, now: &str) -> bool {
        let (since, now) = (breaking(since), breaking(now));
        since.len() != now.len() || now.last() > since.last().map(|last| last + 1).as_ref()
    }

    #[test]
    fn old_names_are_read_for_one_major_version() {
        assert!(!is_over("1.2.0", "1.9.0") && !is_over("1.2.0", "2.0.0") && is_over("1.2.0", "3.0.0"));
        assert!(!is_over("0.3.1", "0.4.0") && is_over("0.3.1", "0.5.0"));
        for (path, new, since) in RENAMED {
            assert!(
                !is_over(since, env!("CARGO_PKG_VERSION")),
                "{path} is called {new} since {since}: remove it"
            );
        }
    }
}
