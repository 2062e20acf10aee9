//! The data of calls, rules and errors; it depends on nothing above it.
mod answer;
mod body;
mod choice;
mod code;
mod durations;
mod error;
mod failures;
mod hop;
mod labels;
pub mod matching;
mod reason;
#[cfg(feature = "schema")]
pub mod schema;
mod side;
mod target;
mod trace;
pub mod units;
mod verdict;
pub mod wire;

pub use self::{
    answer::{Answer, FixedAnswer, InvalidAnswer},
    body::{Abort, Aborted, Body, Failure, Reader, Replay},
    code::Code,
    durations::{CallLabels, DurationFamilies, Family},
    error::{Details, Error},
    failures::FailureSet,
    hop::Hop,
    labels::{LabelSet, TextMap},
    reason::{Origin, Reason},
    side::Side,
    target::{Operation, Target},
    trace::TraceContext,
    verdict::Verdict,
};
pub(crate) use self::{
    body::BoxBody,
    choice::{Choice, Fallback},
    failures::{Ended, ended},
};
