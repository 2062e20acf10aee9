//! What `message_limits` are compiled to.
//!
//! State: how often a bound cut a call off. Its key is the service, or the operation that has bounds of its own. What
//! a call has carried so far lives with the call, under the bounds that it began with.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::Serialize;

use super::{Bound, Bounds, MessageLimitsConfig, MessageLimitsPatch};
use crate::{
    clock::Instant,
    event::Event,
    rule::{Binding, Concern, Level, Look, Of, Visible},
    site::Site,
    types::{Details, Error, Reason, Side, units::Switch},
};

/// The bounds one policy lives under, and where it counts what is over them.
pub struct MessageLimits {
    /// What is in force.
    pub config: MessageLimitsConfig,
    cuts: Arc<Cuts>,
    side: Side,
    service: Arc<str>,
    site: Arc<Site>,
}

/// Which half of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the caller to the handler.
    Request,
    /// From the handler to the caller.
    Answer,
}

/// How often a bound cut off a request, and an answer.
#[derive(Default)]
struct Cuts([AtomicU64; 2]);

/// Bounds on messages, as `inspect` shows them; `None` is off.
#[derive(Clone, Debug, Serialize)]
pub struct MessageLimitsView {
    /// The service called, or this one.
    pub service: String,
    /// The operation, where the bounds are the operation's own.
    pub operation: String,
    /// The most bytes of an answer.
    pub answer_bytes: Option<String>,
    /// The most messages of a request.
    pub request_messages: Option<u32>,
    /// How quickly the messages of a request may come.
    pub request_rate: Option<String>,
    /// The most messages of an answer.
    pub answer_messages: Option<u32>,
    /// How quickly the messages of an answer may come.
    pub answer_rate: Option<String>,
    /// Requests that were over a bound.
    pub cut_requests: u64,
    /// Answers that were over a bound.
    pub cut_answers: u64,
}

/// Compiles `message_limits`.
pub(crate) struct MessageLimitsRule;

/// What holds of `message_limits`, everything inherited.
#[derive(Clone)]
pub(crate) struct Resolved {
    config: Option<MessageLimitsConfig>,
    /// The operation has bounds, and so figures, of its own.
    is_own: bool,
    site: Arc<Site>,
}

// === impl MessageLimitsRule ===

impl Concern for MessageLimitsRule {
    type Written = Switch<MessageLimitsPatch>;
    type Resolved = Resolved;
    type Rule = Option<Arc<MessageLimits>>;

    fn none() -> Self::Rule {
        None
    }

    fn unwritten(level: &Level<'_>) -> Resolved {
        Resolved { config: None, is_own: false, site: level.site() }
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
        let (side, service, site) = (binding.side, binding.service.clone(), resolved.site.clone());
        Some(Arc::new(MessageLimits { config, cuts, side, service, site }))
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
    /// The bounds of one half of a call.
    pub(super) fn bounds(&self, direction: Direction) -> Bounds {
        match direction {
            Direction::Request => self.config.request(),
            Direction::Answer => self.config.answer(),
        }
    }

    /// Counts a call that is over a bound, and reports it: why the call ends.
    #[cold]
    pub(super) fn over(&self, direction: Direction, bound: Bound) -> Error {
        self.cuts.0[direction as usize].fetch_add(1, Relaxed);
        let config = &self.config;
        let (key, most) = match (direction, bound) {
            (_, Bound::Bytes) => ("answer_bytes", told(&config.answer_bytes)),
            (Direction::Request, Bound::Messages) => ("request_messages", told(&config.request_messages)),
            (Direction::Request, Bound::Rate) => ("request_rate", told(&config.request_rate)),
            (Direction::Answer, Bound::Messages) => ("answer_messages", told(&config.answer_messages)),
            (Direction::Answer, Bound::Rate) => ("answer_rate", told(&config.answer_rate)),
        };
        let (what, service) = (direction.name(), &self.service);
        let reason = match bound {
            Bound::Bytes | Bound::Messages => Reason::TooLarge,
            Bound::Rate => Reason::RateLimited,
        };
        let message = format!("{service}: the {what} is over the bound `{key}: {most}`");
        let rule = format!("message_limits.{key}");
        self.site.pulse(Instant::now(), || Event::Refusing {
            side: self.side,
            service: service.clone(),
            reason,
            rule: rule.clone(),
        });
        let error = Error::local(reason, message).with_rule(rule).with_maybe_executed(true);
        // It is not the caller's request that is too large.
        match (self.side, direction) {
            (Side::Server, Direction::Answer) => {
                error.with_details(Details { status: Some(500), body: None })
            }
            _ => error,
        }
    }
}

fn told<T: std::fmt::Display>(bound: &Switch<T>) -> String {
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
