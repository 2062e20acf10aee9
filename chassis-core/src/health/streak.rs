//! Decides by the results in a row whether a check passes: a plain value.
use super::{CheckConfig, CheckStatus};

/// The status of a check, and the results that speak against it.
#[derive(Clone, Debug, Default)]
pub(super) struct Streak {
    status: CheckStatus,
    /// The number of results in a row that differ from the status.
    contrary: u32,
}

// === impl Streak ===

impl Streak {
    /// Records a result. The first success is enough at the beginning; later changes take as many in a row as the
    /// settings say. Returns whether the status has changed. The reason of a failure is always the newest.
    pub(super) fn record(&mut self, result: Result<(), String>, config: &CheckConfig) -> bool {
        let (is_contrary, needed) = match (&self.status, &result) {
            (CheckStatus::Starting, Ok(())) => (true, 1),
            (CheckStatus::Failing(_), Ok(())) => (true, config.successes.get()),
            (CheckStatus::Starting | CheckStatus::Passing, Err(_)) => (true, config.failures.get()),
            (CheckStatus::Passing, Ok(())) | (CheckStatus::Failing(_), Err(_)) => (false, 0),
        };
        if !is_contrary {
            self.contrary = 0;
            if let Err(why) = result {
                self.status = CheckStatus::Failing(why);
            }
            return false;
        }
        self.contrary = self.contrary.saturating_add(1);
        if self.contrary < needed {
            return false;
        }
        self.contrary = 0;
        self.status = match result {
            Ok(()) => CheckStatus::Passing,
            Err(why) => CheckStatus::Failing(why),
        };
        true
    }

    pub(super) fn status(&self) -> &CheckStatus {
        &self.status
    }

    /// The number of results in a row that differ from the status.
    pub(super) fn contrary(&self) -> u32 {
        self.contrary
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    /// Feeds `results` (S success, F failure) to a check that fails after three and passes after two in a row, and
    /// compares its status after each (? starting, p passing, f failing).
    #[track_caller]
    fn check(results: &str, expected: &str) {
        let config = CheckConfig {
            failures: NonZeroU32::new(3).unwrap(),
            successes: NonZeroU32::new(2).unwrap(),
            ..CheckConfig::default()
        };
        let mut streak = Streak::default();
        let mut letter = |result: char| {
            let before = streak.status().clone();
            let result = if result == 'S' { Ok(()) } else { Err("no route".to_owned()) };
            let has_changed = streak.record(result, &config);
            assert_eq!(has_changed, before != *streak.status());
            match streak.status() {
                CheckStatus::Starting => '?',
                CheckStatus::Passing => 'p',
                CheckStatus::Failing(_) => 'f',
            }
        };
        assert_eq!(results.chars().map(&mut letter).collect::<String>(), expected);
    }

    #[test]
    fn the_first_success_is_enough() {
        check("SS", "pp");
        check("FFS", "??p");
    }

    #[test]
    fn it_fails_after_three_in_a_row() {
        check("SFFSFFF", "ppppppf");
        check("FFF", "??f");
    }

    #[test]
    fn it_passes_again_after_two_in_a_row() {
        check("FFFSFSS", "??ffffp");
    }
}
