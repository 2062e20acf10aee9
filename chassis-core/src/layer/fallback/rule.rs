//! Compiles `fallback`, which has no state.
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{FallbackConfig, FallbackFn, Fallbacks, Protocols};
use crate::{
    reporter::Reporter,
    rule::{Binding, Concern, Level},
    types::{Code, Ended, FailureSet, FixedAnswer, Side, Verdict, ended, units::Switch},
};

/// The source of a policy's answers.
#[derive(Clone)]
pub(crate) struct Fallback {
    pub(crate) source: Source,
    pub(crate) reporter: Arc<Reporter>,
    /// Whether it was logged that a protocol finds no answer.
    pub(crate) warned: Arc<AtomicBool>,
}

#[derive(Clone)]
pub(crate) enum Source {
    Function(Arc<FallbackFn>),
    Settings(Arc<Fixed>),
}

/// An answer from the settings, and the failures it is for: all where there is no set.
pub(crate) struct Fixed {
    pub(super) answer: FixedAnswer,
    on: Option<FailureSet>,
}

impl Fallback {
    fn new(source: Source, reporter: Arc<Reporter>) -> Self {
        Fallback { source, reporter, warned: Arc::default() }
    }

    pub(super) fn answers(&self, verdict: &Verdict, code: Code) -> bool {
        match &self.source {
            Source::Function(_) => true,
            Source::Settings(fixed) => {
                fixed.on.is_none_or(|on| on.contains(ended(verdict)) || on.contains(Ended::with_code(code)))
            }
        }
    }

    /// Logs once for each version of the settings, because an outage affects thousands of calls.
    pub(super) fn warn_of_no_answer(&self, service: &str, protocol: &str) {
        if !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                target: "chassis", service, protocol,
                "the fallback in the settings has no answer for calls of this protocol: these keep their own error"
            );
        }
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.source {
            Source::Function(_) => "Fallback(function)",
            Source::Settings(_) => "Fallback(settings)",
        })
    }
}

/// Compiles `fallback`.
pub(crate) struct FallbackRule;

// === impl FallbackRule ===

impl Concern for FallbackRule {
    type Written = Switch<FallbackConfig>;
    type Resolved = Option<Fallback>;
    type Rule = Option<Fallback>;

    fn none() -> Self::Rule {
        None
    }

    fn default_of(_: Side) -> Option<Self::Written> {
        Some(Switch::Off)
    }

    fn unwritten(_: &Level<'_>) -> Self::Resolved {
        None
    }

    fn overlay(resolved: &mut Self::Resolved, written: &Self::Written, level: &mut Level<'_>) {
        *resolved = written.on().map(|config| {
            let fixed = Fixed { answer: config.answer(), on: config.on };
            check(&fixed.answer, level);
            Fallback::new(Source::Settings(Arc::new(fixed)), level.reporter())
        });
    }

    /// A function of the builder wins over the settings.
    fn rule(resolved: &Self::Resolved, binding: &mut Binding<'_>) -> Self::Rule {
        match function(binding) {
            Some(function) => Some(Fallback::new(Source::Function(function), binding.reporter())),
            None => resolved.clone(),
        }
    }
}

/// Reports each key that a protocol refuses, once.
fn check(answer: &FixedAnswer, level: &mut Level<'_>) {
    let mut refused = Vec::new();
    let environment = level.environment.clone();
    let protocols = environment.extensions.get().map_or(&[][..], |Protocols(protocols)| protocols);
    for protocol in protocols {
        if let Err(invalid) = protocol.fixed_answer(answer)
            && !refused.contains(&invalid.key)
        {
            refused.push(invalid.key);
            level.problem(&format!(".{}", invalid.key), invalid.message);
        }
    }
}

/// The builder's function for the operation, or for its service.
fn function(binding: &Binding<'_>) -> Option<Arc<FallbackFn>> {
    let Fallbacks(all) = binding.environment.extensions.get()?;
    if binding.side == Side::Server {
        return None;
    }
    let function = |operation| all.get(&(binding.service.to_string(), operation)).cloned();
    function(Some(binding.operation.to_string())).or_else(|| function(None))
}
