//! The names of a protocol's call durations in metrics.
use std::borrow::Cow;

use super::{Side, Verdict};

/// The two histograms of a protocol's call durations: one for outgoing and one for incoming calls.
///
/// ```
/// use chassis_core::protocol::{DurationFamilies, Family};
///
/// static LINE: DurationFamilies = DurationFamilies {
///     client: Family { name: "line_client_duration_seconds", help: "Duration of lines sent." },
///     server: Family { name: "line_server_duration_seconds", help: "Duration of lines served." },
///     labels: &["service", "verb", "code"],
///     service: Some("service"),
/// };
/// ```
#[derive(Debug)]
pub struct DurationFamilies {
    /// Outgoing calls.
    pub client: Family,
    /// Incoming calls.
    pub server: Family,
    /// The names of their labels.
    pub labels: &'static [&'static str],
    /// The label that holds the service, if there is one: it identifies the series of services that are
    /// removed.
    pub service: Option<&'static str>,
}

/// A Prometheus histogram in seconds.
#[derive(Debug)]
pub struct Family {
    /// Its name, unique in the process.
    pub name: &'static str,
    /// One sentence that describes it.
    pub help: &'static str,
}

/// One kind of outcome of an operation's calls: the values for the labels of a series.
#[derive(Clone, Copy, Debug)]
pub struct CallLabels<'a> {
    /// Whether the calls are outgoing or incoming.
    pub side: Side,
    /// The service that is called.
    pub service: &'a str,
    /// The operation: a method, a template, or `_OTHER`.
    pub operation: &'a str,
    /// The outcome.
    pub verdict: Verdict,
    /// The status as the protocol writes it, a name or a number.
    pub status: &'a str,
    /// The reason, or else the status, of a failed call; empty for others. On the server only failures of the
    /// server itself count.
    pub error: &'a str,
}

impl DurationFamilies {
    /// For protocols without a naming convention: by protocol, service, operation and code.
    pub const NEUTRAL: DurationFamilies = DurationFamilies {
        client: Family {
            name: "chassis_client_call_duration_seconds",
            help: "Duration of other outgoing calls.",
        },
        server: Family {
            name: "chassis_server_call_duration_seconds",
            help: "Duration of other incoming calls.",
        },
        labels: &["protocol", "service", "operation", "code"],
        service: Some("service"),
    };
}

impl<'a> CallLabels<'a> {
    /// The label values of [`DurationFamilies::NEUTRAL`] for `protocol`.
    pub fn neutral(&self, protocol: &'static str) -> Vec<Cow<'a, str>> {
        let code = self.verdict.code.name();
        vec![protocol.into(), self.service.into(), self.operation.into(), code.into()]
    }
}
