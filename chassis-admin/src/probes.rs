//! Answers to probes, by the phase of the process and its health checks. A plain value decides.
use std::fmt::Write;

use chassis_core::inspect::CheckView;
use http::StatusCode;
use serde::Serialize;

use crate::{page::Probe, process::Phase};

/// What a probe depends on.
pub(crate) struct Condition {
    pub(crate) phase: Phase,
    pub(crate) is_in_service: bool,
    pub(crate) has_started: bool,
    pub(crate) checks: Vec<CheckView>,
}

/// The answer to a probe.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Answer {
    /// `up`, `degraded` or `down`.
    pub(crate) status: &'static str,
    checks: Vec<Line>,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    name: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Whether it may fail without a change of the answer's status code.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    informative: bool,
}

const PASSING: &str = "passing";

// === impl Condition ===

impl Condition {
    /// The answer to `probe`. Reasons of failures may name other machines, so they are left out without `reasons`.
    pub(crate) fn answer(&self, probe: Probe, reasons: bool) -> Answer {
        let line = |name: &str, is_well: bool, why: &str| Line {
            name: name.to_owned(),
            status: if is_well { PASSING } else { "failing" },
            why: (!is_well).then(|| why.to_owned()),
            informative: false,
        };
        let is_serving = self.phase == Phase::Serving;
        let mut lines = match probe {
            // Nothing else may decide: a restart cures no dependency.
            Probe::Live => Vec::new(),
            Probe::Startup => vec![line("start", self.has_started, "the process is starting")],
            Probe::Ready | Probe::Health => {
                let phase = format!("the process is {}", self.phase.as_str());
                let mut lines = vec![line("serving", is_serving, &phase)];
                let checks_pass =
                    self.checks.iter().all(|check| !check.is_critical || check.status == PASSING);
                // A critical check that fails is listed by itself.
                if checks_pass {
                    let by_hand = "the process was taken out of service";
                    lines.push(line("in_service", self.is_in_service, by_hand));
                }
                lines
            }
        };
        if probe != Probe::Live {
            lines.extend(self.checks.iter().map(|check| Line {
                name: check.name.clone(),
                status: check.status,
                why: check.why.clone().filter(|_| reasons && check.status != PASSING),
                informative: !check.is_critical,
            }));
        }
        let is_well = match probe {
            Probe::Live => true,
            Probe::Startup => self.has_started,
            Probe::Ready | Probe::Health => is_serving && self.is_in_service,
        };
        let is_degraded = probe == Probe::Health && self.checks.iter().any(|check| check.status == "failing");
        let status = match (is_well, is_degraded) {
            (true, false) => "up",
            (true, true) => "degraded",
            (false, _) => "down",
        };
        Answer { status, checks: lines }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn code(&self) -> StatusCode {
        match self.status {
            "down" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        }
    }

    /// The form of Kubernetes' own probes.
    pub(crate) fn text(&self, probe: Probe, is_verbose: bool) -> String {
        let word = if self.status == "up" { "ok" } else { self.status };
        if !is_verbose {
            return format!("{word}\n");
        }
        let mut text = String::new();
        for line in &self.checks {
            let mark = match line.status {
                PASSING => "[+]",
                _ if line.informative => "[~]",
                _ => "[-]",
            };
            let status = if line.status == PASSING { "ok" } else { line.status };
            // Writing to a string never fails.
            let _ = write!(text, "{mark}{} {status}", line.name);
            match &line.why {
                Some(why) => text.push_str(&format!(": {}\n", why.escape_debug())),
                None if line.status == "failing" => text.push_str(": reason withheld\n"),
                None => text.push('\n'),
            }
        }
        let _ = writeln!(text, "{} {word}", probe.name());
        text
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::{
        Runtime,
        health::{CheckConfig, CheckStatus, Health},
    };

    use super::*;

    fn condition(phase: Phase, is_in_service: bool, health: &Health) -> Condition {
        Condition { phase, is_in_service, has_started: phase != Phase::Starting, checks: health.view() }
    }

    /// The statuses of `livez`, `readyz`, `startupz` and `healthz`.
    #[track_caller]
    fn check(condition: &Condition, expected: [&str; 4]) {
        let probes = [Probe::Live, Probe::Ready, Probe::Startup, Probe::Health];
        assert_eq!(probes.map(|probe| condition.answer(probe, false).status), expected);
    }

    #[tokio::test]
    async fn four_probes_and_three_states() {
        let runtime = Runtime::builder("orders").build().unwrap();
        let health = runtime.health();
        check(&condition(Phase::Starting, true, health), ["up", "down", "down", "down"]);
        check(&condition(Phase::Serving, true, health), ["up", "up", "up", "up"]);
        check(&condition(Phase::Serving, false, health), ["up", "down", "up", "down"]);
        check(&condition(Phase::Stopping, true, health), ["up", "down", "up", "down"]);
        let run = || async { Ok(()) };
        let cache = health.check("cache", CheckConfig::informative(), run);
        health.set("cache", CheckStatus::Failing("no route to 10.0.0.9".to_owned()));
        let condition = condition(Phase::Serving, true, health);
        check(&condition, ["up", "up", "up", "degraded"]);
        let text = |reasons| condition.answer(Probe::Ready, reasons).text(Probe::Ready, true);
        let serving = "[+]serving ok\n[+]in_service ok\n";
        assert_eq!(text(false), format!("{serving}[~]cache failing: reason withheld\nreadyz ok\n"));
        assert_eq!(text(true), format!("{serving}[~]cache failing: no route to 10.0.0.9\nreadyz ok\n"));
        assert_eq!(condition.answer(Probe::Health, false).text(Probe::Health, false), "degraded\n");
        drop(cache);
    }
}
