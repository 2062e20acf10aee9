//! Records the durations and the outcomes of an operation's calls.
//!
//! A handle is resolved when the first call ends with a new outcome, and then kept: later calls look up no
//! label.
use std::sync::{Arc, OnceLock};

use crate::{
    Live,
    metrics::{CallGauge, Durations, Metrics, ProtocolDurations},
    plugin::protocol::Protocol,
    types::{CallLabels, Code, Origin, Reason, Side, Verdict},
};

/// The handles of one operation on one side.
pub(crate) struct CallMetrics {
    metrics: Metrics,
    side: Side,
    service: Arc<str>,
    operation: Arc<str>,
    /// Few operations are called over more than one protocol.
    first: OnceLock<ProtocolMetrics>,
    further: Live<Vec<Arc<ProtocolMetrics>>>,
    in_flight: CallGauge,
}

/// The handles of one operation over one protocol.
struct ProtocolMetrics {
    protocol: &'static dyn Protocol,
    durations: Arc<ProtocolDurations>,
    /// The first outcome, usually a success.
    usual: OnceLock<(Verdict, Durations)>,
    others: Live<Vec<(Verdict, Durations)>>,
}

// === impl CallMetrics ===

impl CallMetrics {
    /// The handles of `operation` of `service`, for calls on one side.
    pub(crate) fn new(metrics: &Metrics, side: Side, service: &Arc<str>, operation: &Arc<str>) -> Self {
        CallMetrics {
            metrics: metrics.clone(),
            side,
            service: service.clone(),
            operation: operation.clone(),
            first: OnceLock::new(),
            further: Live::new(Vec::new()),
            in_flight: metrics.in_flight(side, service),
        }
    }

    /// Records the start of a call.
    pub(crate) fn started(&self) {
        self.in_flight.inc();
    }

    /// Records that no part of a call is under way any more.
    pub(crate) fn ended(&self) {
        self.in_flight.dec();
    }

    /// Records that a call over `protocol` ended with `verdict` after `nanos` nanoseconds.
    pub(crate) fn record(&self, protocol: &'static dyn Protocol, verdict: Verdict, nanos: u64) {
        let first = self.first.get_or_init(|| self.of(protocol));
        match first.protocol.name() == protocol.name() {
            true => self.record_of(first, verdict, nanos),
            false => self.record_of(&self.further(protocol), verdict, nanos),
        }
    }

    fn of(&self, protocol: &'static dyn Protocol) -> ProtocolMetrics {
        ProtocolMetrics {
            protocol,
            durations: self.metrics.durations_of_calls(protocol),
            usual: OnceLock::new(),
            others: Live::new(Vec::new()),
        }
    }

    #[cold]
    fn further(&self, protocol: &'static dyn Protocol) -> Arc<ProtocolMetrics> {
        let find = |all: &[Arc<ProtocolMetrics>]| {
            all.iter().find(|of| of.protocol.name() == protocol.name()).cloned()
        };
        if let Some(found) = self.further.with(|all| find(all)) {
            return found;
        }
        let made = Arc::new(self.of(protocol));
        self.further.update(|all| {
            let mut all = all.clone();
            if find(&all).is_none() {
                all.push(made.clone());
            }
            all
        });
        self.further.with(|all| find(all)).unwrap_or(made)
    }

    fn record_of(&self, of: &ProtocolMetrics, verdict: Verdict, nanos: u64) {
        let same =
            |v: &Verdict| (v.code, v.status, v.reason) == (verdict.code, verdict.status, verdict.reason);
        let (usual, histogram) = of.usual.get_or_init(|| (verdict, self.histogram(of, verdict)));
        if same(usual) {
            histogram.observe(nanos);
        } else {
            self.record_other(of, verdict, nanos, same);
        }
        // A cancelled call was not refused.
        if verdict.origin == Origin::Local
            && let Some(reason) = verdict.reason.filter(|reason| *reason != Reason::Cancelled)
        {
            self.metrics.rejected(self.side, &self.service, reason);
        }
    }

    fn record_other(
        &self,
        of: &ProtocolMetrics,
        verdict: Verdict,
        nanos: u64,
        same: impl Fn(&Verdict) -> bool,
    ) {
        let known = of.others.with(|all| {
            let found = all.iter().find(|(v, _)| same(v));
            found.map(|(_, histogram)| histogram.observe(nanos)).is_some()
        });
        if !known {
            let histogram = self.histogram(of, verdict);
            histogram.observe(nanos);
            of.others.update(|all| {
                let mut all = all.clone();
                all.push((verdict, histogram.clone()));
                all
            });
        }
    }

    fn histogram(&self, of: &ProtocolMetrics, verdict: Verdict) -> Durations {
        let status = of.protocol.status_label(&verdict);
        let failed = match self.side {
            Side::Client => !verdict.is_success(),
            Side::Server => of.protocol.is_server_error(&verdict),
        };
        let error = match (failed, verdict.reason) {
            (false, _) => "",
            (true, Some(reason)) => reason.name(),
            (true, None) => &status,
        };
        let labels = CallLabels {
            side: self.side,
            service: &self.service,
            operation: &self.operation,
            verdict,
            status: &status,
            error,
        };
        let values = of.protocol.label_values(&labels);
        let histogram = of.durations.of(self.side, &values).unwrap_or_else(|error| {
            // A protocol of another crate: its calls are counted, and not exported.
            tracing::warn!(%error, protocol = of.protocol.name(), "a protocol does not fill its labels");
            Durations::detached()
        });
        let has_failed = failed || verdict.code == Code::Cancelled;
        self.metrics.sum_up(self.side, has_failed, &histogram);
        histogram
    }
}
