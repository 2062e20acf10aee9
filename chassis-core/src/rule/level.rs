//! One level of the settings, for a concern that compiles its rules.
use std::{collections::BTreeMap, sync::Arc};

use http::Extensions;

use super::{Environment, Problem};
use crate::{
    clock::Instant,
    reporter::Reporter,
    types::{
        Side,
        matching::{Match, MatchRef, Matcher},
    },
};

/// One key at one level of the settings: all services, one service, or one operation.
pub(crate) struct Level<'a> {
    pub(crate) side: Side,
    /// The service of the settings; on the server this service.
    pub(crate) service: &'a Arc<str>,
    pub(crate) environment: &'a Arc<Environment>,
    place: Place<'a>,
    key: &'static str,
    shared: Shared<'a>,
    findings: &'a mut Findings,
}

/// The parts of the settings that all levels may refer to.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    /// Matches by name.
    pub(crate) matches: &'a BTreeMap<String, Match>,
    /// Values for single concerns: each finds its own by type. They override those of the environment.
    pub(crate) extensions: &'a Extensions,
}

/// The position of a level in the document.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// `inbound`, `outbound.defaults`, `outbound.services.stock`.
    pub(crate) path: &'a str,
    /// The operation of the level; `None` for a whole service.
    pub(crate) operation: Option<&'a str>,
}

/// The problems of a version, and the actions for the case that there are none.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    accepted: Vec<Box<dyn FnOnce(Instant)>>,
}

// === impl Level ===

impl<'a> Level<'a> {
    /// The level at `place`, compiled for calls of `service` on `side`; without a key yet.
    pub(crate) fn new(
        side: Side,
        service: &'a Arc<str>,
        place: Place<'a>,
        environment: &'a Arc<Environment>,
        shared: Shared<'a>,
        findings: &'a mut Findings,
    ) -> Self {
        Level { side, service, environment, place, key: "", shared, findings }
    }

    /// Selects `key`.
    pub(crate) fn at(&mut self, key: &'static str) -> &mut Self {
        self.key = key;
        self
    }

    /// Whether it is the level of one operation.
    pub(crate) fn is_operation(&self) -> bool {
        self.place.operation.is_some()
    }

    /// Reports `message` about the value `below` the key: `.scope`, `[0].name`, or an empty text for the key
    /// itself.
    pub(crate) fn problem(&mut self, below: &str, message: impl Into<String>) {
        self.report(Problem::new(self.path(below), message));
    }

    /// Reports `message`; `allowed` are the allowed values.
    pub(crate) fn problem_among(&mut self, below: &str, message: impl Into<String>, allowed: Vec<String>) {
        self.report(Problem { allowed, ..Problem::new(self.path(below), message) });
    }

    /// Reports `message` about a key below the selected one; `allowed` are the allowed keys.
    pub(crate) fn problem_with_key(&mut self, key: &str, message: impl Into<String>, allowed: Vec<String>) {
        let problem = Problem::new(self.path(&format!(".{key}")), message);
        self.report(Problem { found: Some(key.to_owned()), allowed, ..problem });
    }

    /// The matcher `below` the key; without one, a matcher that matches every call.
    pub(crate) fn matcher(&mut self, below: &str, matching: Option<&MatchRef>) -> Matcher {
        let Some(matching) = matching else { return Matcher::any() };
        Matcher::compile(matching, self.shared.matches).unwrap_or_else(|problem| {
            let dot = if problem.path.is_empty() || problem.path.starts_with('[') { "" } else { "." };
            let path = format!("{}{dot}{}", self.path(below), problem.path);
            self.report(Problem { allowed: problem.allowed, ..Problem::new(path, problem.message) });
            Matcher::any()
        })
    }

    /// The values of type `T` for a concern: that of the program, then that of the settings, if they exist.
    pub(crate) fn extensions<T: Send + Sync + 'static>(&self) -> impl Iterator<Item = &'a T> + use<'a, T> {
        [&self.environment.extensions, self.shared.extensions].into_iter().filter_map(Extensions::get)
    }

    /// The state of this name of the service, or of the operation whose level this is.
    pub(crate) fn state<T: Send + Sync + 'static>(&self, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let (side, service) = (self.side, self.service);
        let key = match self.place.operation {
            None => format!("{side}/{service}/{name}"),
            Some(operation) => format!("{side}/{service}/{operation}/{name}"),
        };
        self.environment.states.cell(&key, make)
    }

    /// Runs `act` once the whole version is accepted: refused settings change no state.
    pub(crate) fn on_accepted(&mut self, act: impl FnOnce(Instant) + 'static) {
        self.findings.accepted.push(Box::new(act));
    }

    /// A new reporter: metrics, events, and at most one event a second.
    pub(crate) fn reporter(&self) -> Arc<Reporter> {
        self.environment.reporter()
    }

    fn path(&self, below: &str) -> String {
        let Level { place: Place { path, operation }, key, .. } = self;
        match (operation, path.is_empty()) {
            (Some(operation), _) => format!("{path}.operations.{operation}.{key}{below}"),
            (None, false) => format!("{path}.{key}{below}"),
            (None, true) => format!("{key}{below}"),
        }
    }

    fn report(&mut self, problem: Problem) {
        self.findings.problems.push(problem);
    }
}

// === impl Place ===

impl<'a> Place<'a> {
    /// The level of a whole service, or of all services.
    pub(crate) fn new(path: &'a str) -> Self {
        Place { path, operation: None }
    }

    /// The level of `operation` below it.
    pub(crate) fn of(self, operation: &'a str) -> Self {
        Place { operation: Some(operation), ..self }
    }
}

// === impl Findings ===

impl Findings {
    /// Runs the actions of an accepted version.
    pub(crate) fn accept(self, now: Instant) {
        self.accepted.into_iter().for_each(|act| act(now));
    }
}
