//! Compiles `message_limits`.
//!
//! State: how many calls each direction's bounds cut off. Its key is the service, or the operation that has
//! bounds of its own. The measures of one call are part of the call, which keeps the bounds that it began with.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::Serialize;

use super::{Bound, Bounds, MessageLimitsConfig, MessageLimitsPatch};
use crate::{
    clock::Instant,
    event::Event,
    reporter::Reporter,
    rule::{Binding, Concern, Level, Look, Of, Visible},
    types::{Details, Error, Reason, Side, units::Switch},
};

/// The bounds of one policy, and the count of calls that exceeded them.
pub(crate) struct MessageLimits {
    /// The settings in force.
    pub config: MessageLimitsConfig,
    cuts: Arc<Cuts>,
    side: Side,
    service: Arc<str>,
    reporter: Arc<Reporter>,
}

/// The direction of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the caller to the handler.
    Request,
    /// From the handler to the caller.
    Answer,
}

/// How many requests, and how many answers, were cut off.
#[derive(Default)]
struct Cuts([AtomicU64; 2]);

/// Bounds on messages, in `inspect`; `None` means off.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MessageLimitsView {
    /// The service called, or this one.
    pub service: String,
    /// The operation, if the bounds are the operation's own.
    pub operation: String,
    /// The most bytes of an answer.
    pub answer_bytes: Option<String>,
    /// The most messages of a request.
    pub request_messages: Option<u32>,
    /// The rate of the messages of a request.
    pub request_rate: Option<String>,
    /// The most messages of an answer.
    pub answer_messages: Option<u32>,
    /// The rate of the messages of an answer.
    pub answer_rate: Option<String>,
    /// Requests that exceeded a bound.
    pub cut_requests: u64,
    /// Answers that exceeded a bound.
    pub cut_answers: u64,
}

/// Compiles `message_limits`.
pub(crate) struct MessageLimitsRule;

/// The resolved settings of `message_limits`.
#[derive(Clone)]
pub(crate) struct Resolved {
    config: Option<MessageLimitsConfig>,
    /// The operation has bounds of its own, and so its own counts.
    is_own: bool,
    reporter: Arc<Reporter>,
}

// === impl MessageLimitsRule ===

impl Concern for MessageLimitsRule {
    type Written = Switch<MessageLimitsPatch>;
    type Resolved = Resolved;
    type Rule = Option<Arc<MessageLimits>>;

    fn none() -> Self::Rule {
        None
    }

    fn default_of(_: Side) -> Option<Self::Written> {
        Some(Switch::Off)
    }

    fn unwritten(level: &Level<'_>) -> Resolved {
        Resolved { config: None, is_own: false, reporter: level.reporter() }
    }

    fn overlay(resolved: &mut Resolved, written: &Self::Written, level: &mut Level<'_>) {
        resolved.config = Switch::over(Some(written), resolved.config.take());
        resolved.is_own = level.is_operation();
        if let Some(Err((key, message))) = resolved.config.as_ref().map(MessageLimitsConfig::check) {
            level.problem(&format!(".{key}"), message);
        }
    }

    fn rule(resolved: &Resolved, binding: &mut Binding<'_>) -> Self::Rule {
        let config = resolved.config.clone().filter(MessageLimitsConfig::is_on)?;
        let of = if resolved.is_own { Of::Operation } else { Of::Service };
        let cuts = binding.state(of, "message_limits", Cuts::default);
        let (side, service, reporter) = (binding.side, binding.service.clone(), resolved.reporter.clone());
        Some(Arc::new(MessageLimits { config, cuts, side, service, reporter }))
    }
}

impl Visible for MessageLimitsRule {
    type View = MessageLimitsView;

    fn view(rule: &Self::Rule, look: &mut Look<'_>) -> Vec<MessageLimitsView> {
        let Some(limits) = rule.as_ref().filter(|limits| look.is_first(&limits.cuts)) else {
            return Vec::new();
        };
        let (config, Cuts([requests, answers])) = (&limits.config, &*limits.cuts);
        vec![MessageLimitsView {
            service: look.service.to_owned(),
            operation: look.operation.to_owned(),
            answer_bytes: config.answer_bytes.on().map(ToString::to_string),
            request_messages: config.request_messages.on().map(|most| most.get()),
            request_rate: config.request_rate.on().map(ToString::to_string),
            answer_messages: config.answer_messages.on().map(|most| most.get()),
            answer_rate: config.answer_rate.on().map(ToString::to_string),
            cut_requests: requests.load(Relaxed),
            cut_answers: answers.load(Relaxed),
        }]
    }
}

// === impl MessageLimits ===

impl MessageLimits {
    /// The bounds of one direction.
    pub(super) fn bounds(&self, direction: Direction) -> Bounds {
        match direction {
            Direction::Request => self.config.request(),
            Direction::Answer => self.config.answer(),
        }
    }

    /// Counts and reports a call that exceeds a bound; returns the error that ends it.
    #[cold]
    pub(super) fn over(&self, direction: Direction, bound: Bound) -> Error {
        self.cuts.0[direction as usize].fetch_add(1, Relaxed);
        let config = &self.config;
        let (key, most) = match (direction, bound) {
            (_, Bound::Bytes) => ("answer_bytes", text(&config.answer_bytes)),
            (Direction::Request, Bound::Messages) => ("request_messages", text(&config.request_messages)),
            (Direction::Request, Bound::Rate) => ("request_rate", text(&config.request_rate)),
            (Direction::Answer, Bound::Messages) => ("answer_messages", text(&config.answer_messages)),
            (Direction::Answer, Bound::Rate) => ("answer_rate", text(&config.answer_rate)),
        };
        let (what, service) = (direction.name(), &self.service);
        let reason = match bound {
            Bound::Bytes | Bound::Messages => Reason::TooLarge,
            Bound::Rate => Reason::RateLimited,
        };
        let message = format!("{service}: the {what} is over the bound `{key}: {most}`");
        let rule = format!("message_limits.{key}");
        self.reporter.emit_throttled(Instant::now(), || Event::Refusing {
            side: self.side,
            service: service.clone(),
            reason,
            rule: rule.clone(),
        });
        let error = Error::local(reason, message).with_rule(rule).with_maybe_executed(true);
        // The request of the caller is not too large.
        match (self.side, direction) {
            (Side::Server, Direction::Answer) => {
                error.with_details(Details { status: Some(500), body: None })
            }
            _ => error,
        }
    }
}

fn text<T: std::fmt::Display>(bound: &Switch<T>) -> String {
    bound.on().map(ToString::to_string).unwrap_or_default()
}

// === impl Direction ===

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Request => "request",
            Direction::Answer => "answer",
        }
    }
}
