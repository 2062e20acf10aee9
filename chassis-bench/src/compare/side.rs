//! The parts that a side of a comparison must supply.
use std::{
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tonic::{
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, StdError},
};

use crate::{
    Error, Result,
    echo::{CallRequest, echo_client::EchoClient},
};

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// One side of a comparison: a client and its server.
pub trait Side: Send + Sync {
    /// The name in rows.
    fn name(&self) -> &'static str;

    /// Whether it supports this case.
    fn does(&self, case: Case) -> bool;

    /// Whether a comparison in this setting makes sense. Default: wherever it supports the case.
    fn fits(&self, setup: Setup) -> bool {
        self.does(setup.case)
    }

    /// Starts the server on the server's runtime; it runs as long as that.
    fn serve(&self, setup: Setup) -> BoxFuture<Result<SocketAddr>>;

    /// Connects on the client's runtime: one worker for each caller.
    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>>;
}

/// Calls again and again while the gate is open, and returns the number of calls.
pub type Worker = Box<dyn FnMut(Gate) -> BoxFuture<Result<u64>> + Send>;

/// Open during a slice.
#[derive(Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

/// The kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// gRPC, one message of 128 bytes in each direction.
    GrpcUnary128,
    /// The same with 16 KiB.
    GrpcUnary16k,
    /// gRPC, an answer of 32 messages of 128 bytes.
    GrpcServerStreaming,
    /// HTTP/1.1 GET of a short text.
    RestGet,
    /// HTTP/1.1 POST of a short JSON document, which the answer repeats.
    RestPost,
    /// The client's pipeline without a network, called by two threads.
    ClientPipeline,
}

/// The conditions of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The kind of call.
    pub case: Case,
    /// Callers, each with one call in flight.
    pub concurrency: usize,
    /// Connections that they share; over HTTP/1.1 each caller has one.
    pub connections: usize,
    /// 1: client and server on one core; 2: on one each.
    pub cores: usize,
}

/// Messages of a stream.
pub const MESSAGES: u32 = 32;
/// The servers' limit of concurrent streams; hyper's default is below our 256 callers.
pub const STREAMS: u32 = 1024;

/// A worker that makes one call after another with `call`.
pub fn worker<F, Fut>(call: F) -> Worker
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result> + Send,
{
    Box::new(move |gate| {
        let call = call.clone();
        Box::pin(async move {
            let mut calls = 0;
            while gate.is_open() {
                let call = call();
                call.await?;
                calls += 1;
            }
            Ok(calls)
        })
    })
}

/// Workers that call over `stubs` in turn.
pub fn grpc_workers<T>(setup: Setup, stubs: &[EchoClient<T>]) -> Vec<Worker>
where
    T: GrpcService<Body> + Clone + Send + 'static,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    T::Future: Send,
{
    let payload = Bytes::from(vec![b'x'; setup.case.payload()]);
    let one = |index: usize| -> Worker {
        let (stub, payload) = (stubs[index % stubs.len()].clone(), payload.clone());
        Box::new(move |gate| Box::pin(calls(stub.clone(), setup.case, payload.clone(), gate)))
    };
    (0..setup.concurrency).map(one).collect()
}

async fn calls<T>(mut stub: EchoClient<T>, case: Case, payload: Bytes, gate: Gate) -> Result<u64>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    let mut calls = 0;
    while gate.is_open() {
        let request = CallRequest { payload: payload.clone(), repeat: MESSAGES };
        if case == Case::GrpcServerStreaming {
            let mut replies = stub.download(request).await?.into_inner();
            let mut got = 0;
            while replies.message().await?.is_some() {
                got += 1;
            }
            if got != MESSAGES {
                return Err(Error::from(format!("{got} messages came, not {MESSAGES}")));
            }
        } else {
            let reply = stub.call(request).await?.into_inner();
            if reply.payload.len() != payload.len() {
                return Err("another payload came back".into());
            }
        }
        calls += 1;
    }
    Ok(calls)
}

// === impl Gate ===

impl Gate {
    /// Whether another call may begin.
    pub fn is_open(&self) -> bool {
        !self.0.load(Relaxed)
    }

    pub(super) fn close(&self) {
        self.0.store(true, Relaxed);
    }
}

// === impl Case ===

impl Case {
    /// All cases.
    pub const ALL: [Case; 6] = [
        Case::GrpcUnary128,
        Case::GrpcUnary16k,
        Case::GrpcServerStreaming,
        Case::RestGet,
        Case::RestPost,
        Case::ClientPipeline,
    ];

    /// Whether it uses gRPC.
    pub fn is_grpc(self) -> bool {
        matches!(self, Case::GrpcUnary128 | Case::GrpcUnary16k | Case::GrpcServerStreaming)
    }

    /// Whether it uses REST.
    pub fn is_rest(self) -> bool {
        matches!(self, Case::RestGet | Case::RestPost)
    }

    /// The bytes of a message.
    pub fn payload(self) -> usize {
        if self == Case::GrpcUnary16k { 16 * 1024 } else { 128 }
    }

    fn name(self) -> &'static str {
        match self {
            Case::GrpcUnary128 => "grpc_unary_128",
            Case::GrpcUnary16k => "grpc_unary_16k",
            Case::GrpcServerStreaming => "grpc_server_streaming",
            Case::RestGet => "rest_get",
            Case::RestPost => "rest_post",
            Case::ClientPipeline => "client_pipeline",
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Case::ALL.into_iter().find(|case| case.name() == text);
        found.ok_or_else(|| format!("there is no case `{text}`"))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

// === impl Setup ===

impl Setup {
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for case in Case::ALL.into_iter().filter(|case| case.is_grpc() || case.is_rest()) {
            for cores in [1, 2] {
                for concurrency in [64, 256] {
                    let connections: &[usize] = if case.is_grpc() { &[1, 4] } else { &[concurrency] };
                    let setup = |&connections| Setup { case, concurrency, connections, cores };
                    all.extend(connections.iter().map(setup));
                }
            }
        }
        all.push(Setup { case: Case::ClientPipeline, concurrency: 2, connections: 0, cores: 2 });
        all
    }

    pub(super) fn few() -> Vec<Self> {
        let mut few = Self::all();
        few.retain(|setup| match setup.case {
            Case::GrpcUnary128 => setup.connections == 1,
            Case::RestGet | Case::RestPost => setup.concurrency == 64,
            Case::GrpcUnary16k | Case::GrpcServerStreaming => false,
            Case::ClientPipeline => true,
        });
        few
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { case, concurrency, connections, cores } = self;
        write!(f, "{case:21} {concurrency:3} callers {connections:3} connections {cores} cores")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_called_what_they_say() {
        for case in Case::ALL {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        assert!("grpc_unary".parse::<Case>().is_err());
    }

    #[test]
    fn every_case_is_looked_at_in_every_setting() {
        let all = Setup::all();
        let of = |case| all.iter().filter(|setup| setup.case == case).count();
        assert_eq!(Case::ALL.map(of), [8, 8, 8, 4, 4, 1]);
        assert!(Setup::few().iter().any(|setup| setup.case.is_rest()));
    }
}
