//! Callers of both protocols, and what they know.
use std::time::Duration;

use chassis::{Chassis, inspect::NodeView};
use tokio::time::{Instant, sleep, timeout};

use super::super::fleet::Addresses;
use crate::{
    Result,
    drive::{Class, Drive, Load, Operation, Options, Protocol, Report},
    echo::{CallRequest, echo_client::EchoClient},
};

/// The results of the callers of both protocols.
pub(super) struct Calls([Report; 2]);

/// The service that is called.
pub(super) const SERVICE: &str = "stock";
/// A limit for each wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time between two looks.
const LOOK: Duration = Duration::from_millis(1);

// === impl Calls ===

impl Calls {
    /// Calls from `callers`, half of them over gRPC and half over REST, for this time.
    pub(super) async fn make(
        app: &Chassis,
        callers: usize,
        time: Duration,
        idempotent: bool,
    ) -> Result<Calls> {
        let drive = |protocol| {
            let load = Load::Closed { callers: callers / 2 };
            let operation = Operation::Call;
            let to = SERVICE.to_owned();
            Drive::new(app, Options { to, protocol, operation, load, time, idempotent, ..Options::default() })
        };
        let (grpc, http) = (drive(Protocol::Grpc)?, drive(Protocol::Http)?);
        let (grpc, http) = tokio::join!(grpc.run(), http.run());
        Ok(Calls([grpc, http]))
    }

    /// The number of calls.
    pub(super) fn count(&self) -> f64 {
        self.sum(|report| report.calls)
    }

    /// The number of calls that did not succeed. The first message of each kind is printed.
    pub(super) fn failed(&self) -> f64 {
        for report in &self.0 {
            for (why, message) in &report.messages {
                eprintln!("{:?}: {why}: {message}", report.protocol);
            }
            for (slot, at) in report.timeline.iter().zip(0..).filter(|(slot, _)| slot.calls > slot.ok) {
                eprintln!(
                    "{:?}: {} failed at {:.1} s",
                    report.protocol,
                    slot.calls - slot.ok,
                    f64::from(at) / 10.0
                );
            }
        }
        self.sum(|report| report.calls - report.class(Class::Ok))
    }

    /// The number of calls that got no answer in time, and no error either.
    pub(super) fn hanging(&self) -> f64 {
        self.sum(|report| report.class(Class::Hang))
    }

    /// The 99th percentile of the slower protocol, in milliseconds.
    pub(super) fn p99(&self) -> f64 {
        self.0.iter().map(|report| report.latency_ms.p99).fold(0.0, f64::max)
    }

    /// The longest call, in milliseconds.
    pub(super) fn longest(&self) -> f64 {
        self.0.iter().map(|report| report.latency_ms.max).fold(0.0, f64::max)
    }

    fn sum(&self, of: impl Fn(&Report) -> u64) -> f64 {
        self.0.iter().map(of).sum::<u64>() as f64
    }
}

/// Follows the instances of a service from now on, as the first call to it does.
pub(super) fn follow(app: &Chassis, service: &str) {
    let mut client = EchoClient::new(app.grpc(service));
    tokio::spawn(async move { drop(client.call(CallRequest::default()).await) });
}

/// Is it a node of the instance at these addresses?
pub(super) fn is_at(node: &NodeView, at: &Addresses) -> bool {
    node.address == at.grpc || node.address == at.http
}

/// All nodes that a caller knows.
pub(super) fn nodes(app: &Chassis) -> Vec<NodeView> {
    app.runtime().inspect().services.into_iter().flat_map(|service| service.nodes).collect()
}

/// Waits until `holds`; how long that took.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<Duration> {
    let begun = Instant::now();
    let waited = timeout(PATIENCE, async {
        while !holds() {
            sleep(LOOK).await;
        }
    });
    waited.await.map_err(|_| format!("after {} s not yet: {what}", PATIENCE.as_secs()))?;
    Ok(begun.elapsed())
}

/// Waits until a caller of both protocols knows these instances, and no others.
pub(super) async fn know(app: &Chassis, all: &[&Addresses]) -> Result<Duration> {
    let mut expected: Vec<_> = all.iter().flat_map(|at| [at.grpc.as_str(), at.http.as_str()]).collect();
    expected.sort_unstable();
    let known = until("its instances are known", || {
        let nodes = nodes(app);
        let mut known: Vec<_> = nodes.iter().map(|node| node.address.as_str()).collect();
        known.sort_unstable();
        known == expected
    });
    known.await
}

/// The number of successful attempts at the instance at these addresses.
pub(super) fn answered_by(app: &Chassis, at: &Addresses) -> u64 {
    nodes(app).iter().filter(|node| is_at(node, at)).map(|node| node.successes).sum()
}

/// The same of a condition that takes time.
pub(super) async fn until_async(
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<Duration> {
    let begun = Instant::now();
    let waited = timeout(PATIENCE, async {
        while !holds().await? {
            sleep(LOOK).await;
        }
        Ok(begun.elapsed())
    });
    waited.await.map_err(|_| format!("after {} s not yet: {what}", PATIENCE.as_secs()))?
}
