//! How the durations of a protocol's calls are named in metrics.
use std::borrow::Cow;

use super::{Side, Verdict};

/// The two histograms that count the durations of a protocol's calls: of those that go out, and of those that
/// come in.
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
    /// Of calls that go out.
    pub client: Family,
    /// Of calls that come in.
    pub server: Family,
    /// The names of their labels.
    pub labels: &'static [&'static str],
    /// The label whose value is the service, if one is: series of services that are gone are removed by it.
    pub service: Option<&'static str>,
}

/// A histogram of seconds, as Prometheus names it.
#[derive(Debug)]
pub struct Family {
    /// Its name, unique in the process.
    pub name: &'static str,
    /// One sentence on what it counts.
    pub help: &'static str,
}

/// One kind of outcome of an operation's calls: what the labels of a series are made of.
#[derive(Clone, Copy, Debug)]
pub struct CallLabels<'a> {
    /// Does the call go out or come in?
    pub side: Side,
    /// The service that is called.
    pub service: &'a str,
    /// The operation: a method, a template, or `_OTHER`.
    pub operation: &'a str,
    /// How the calls ended.
    pub verdict: Verdict,
    /// The status by the name or number that the protocol gives it.
    pub status: &'a str,
    /// The reason, or else the status, of a call that failed; empty for others. On the server only failures of
    /// its own count.
    pub error: &'a str,
}

impl DurationFamilies {
    /// For protocols that no convention names: by protocol, service, operation and code.
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
    /// The values of [`DurationFamilies::NEUTRAL`] over `protocol`.
    pub fn neutral(&self, protocol: &'static str) -> Vec<Cow<'a, str>> {
        let code = self.verdict.code.name();
        vec![protocol.into(), self.service.into(), self.operation.into(), code.into()]
    }
}
