//! The handlers of an instance, and the calls they received.
use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis::{Code, Context, Problem, clock::Instant};
use chassis_protos::echo::EchoReply;
use http::HeaderMap;
use tokio::sync::watch;
use tonic::Status;

use super::{Ask, Clients, Ledger, Op, Outcome, Wire};

/// The action of a handler for a received call.
#[derive(Clone)]
pub(crate) enum Act {
    Answer,
    /// Fails with this code, or with the HTTP status for it.
    Fail(Code),
    /// Fails with the result of this function: for headers and details of its own.
    FailWith(Arc<dyn Fn() -> Failure + Send + Sync>),
    Hang,
    Delay(Duration),
    /// Continues when the gate is open.
    Wait(Gate),
    Panic,
    /// Runs this function first.
    Run(Arc<dyn Fn(Arc<Echo>, Seen) -> Work + Send + Sync>),
}

/// Work of a test inside a handler.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// The failure of a handler.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "failures of tests are few")]
pub(crate) enum Failure {
    Grpc(Status),
    Rest(Problem),
}

/// Closed until a test opens it.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

/// The handlers of an instance.
pub(crate) struct Echo {
    pub(crate) id: String,
    acts: Mutex<Acts>,
    executed: AtomicU64,
    running: Arc<AtomicU64>,
    seen: Mutex<VecDeque<Seen>>,
    ledger: Ledger,
    clients: HashMap<String, Clients>,
}

pub(super) struct Acts {
    next: VecDeque<Act>,
    then: Act,
}

/// A handler's view of a call.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) wire: Wire,
    pub(crate) op: Op,
    pub(crate) message: String,
    pub(crate) headers: HeaderMap,
    pub(crate) remaining: Option<Duration>,
    pub(crate) at: Instant,
}

/// Counts a running handler.
pub(super) struct Working(Arc<AtomicU64>);

pub(super) const CALL_ID: &str = "x-call-id";
pub(super) const INSTANCE: &str = "x-instance";
pub(super) const VIA: &str = "x-via";
/// Number of recorded calls.
const SEEN: usize = 100;

// === impl Gate ===

impl Gate {
    pub(crate) fn shut() -> Self {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn passed(&self) {
        let mut open = self.0.subscribe();
        open.wait_for(|open| *open).await.expect("the gate itself holds the sender");
    }
}

// === impl Echo ===

impl Echo {
    pub(super) fn new(id: &str, ledger: &Ledger, clients: HashMap<String, Clients>) -> Self {
        Echo {
            id: id.to_owned(),
            acts: Mutex::new(Acts { next: VecDeque::new(), then: Act::Answer }),
            executed: AtomicU64::new(0),
            running: Arc::default(),
            seen: Mutex::default(),
            ledger: ledger.clone(),
            clients,
        }
    }

    /// Acts like this for every call from now on.
    pub(crate) fn does(&self, act: Act) {
        let mut acts = self.acts.lock().unwrap();
        acts.next.clear();
        acts.then = act;
    }

    /// Acts like these for the next calls, in order, before the act for all calls.
    pub(crate) fn does_next(&self, acts: impl IntoIterator<Item = Act>) {
        self.acts.lock().unwrap().next.extend(acts);
    }

    /// The number of calls that reached a handler.
    pub(crate) fn executed(&self) -> u64 {
        self.executed.load(SeqCst)
    }

    /// The number of calls in a handler, including open answer streams.
    pub(crate) fn running(&self) -> u64 {
        self.running.load(SeqCst)
    }

    /// The last calls, oldest first.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().cloned().collect()
    }

    /// The last call.
    #[track_caller]
    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().back().cloned().expect("it was called")
    }

    /// The clients of a service that its handlers call.
    pub(crate) fn clients(&self, service: &str) -> &Clients {
        self.clients.get(service).unwrap_or_else(|| panic!("{}: name `{service}` in Plan::calls", self.id))
    }

    /// Records a received call.
    pub(super) fn begin(
        &self,
        wire: Wire,
        op: Op,
        message: &str,
        headers: &HeaderMap,
    ) -> (Seen, Act, Working) {
        self.executed.fetch_add(1, SeqCst);
        if let Some(id) = headers.get(CALL_ID) {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.entry(id.to_str().unwrap().to_owned()).or_default().push(self.id.clone());
        }
        let now = Instant::now();
        let deadline = Context::with(|context| context.deadline).flatten();
        let remaining = deadline.map(|at| at.saturating_duration_since(now));
        let (message, headers) = (message.to_owned(), headers.clone());
        let seen = Seen { wire, op, message, headers, remaining, at: now };
        let mut all = self.seen.lock().unwrap();
        if all.len() == SEEN {
            all.pop_front();
        }
        all.push_back(seen.clone());
        let mut acts = self.acts.lock().unwrap();
        let act = acts.next.pop_front().unwrap_or_else(|| acts.then.clone());
        self.running.fetch_add(1, SeqCst);
        (seen, act, Working(self.running.clone()))
    }

    pub(crate) async fn perform(self: &Arc<Self>, act: Act, seen: &Seen) -> Result<(), Failure> {
        match act {
            Act::Answer => Ok(()),
            Act::Fail(code) => Err(self.failure(seen.wire, code)),
            Act::FailWith(failure) => Err(failure()),
            Act::Hang => std::future::pending().await,
            Act::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Act::Wait(gate) => {
                gate.passed().await;
                Ok(())
            }
            Act::Panic => panic!("as asked for"),
            Act::Run(run) => run(self.clone(), seen.clone()).await,
        }
    }

    fn failure(&self, wire: Wire, code: Code) -> Failure {
        let words = format!("{} fails as asked", self.id);
        match wire {
            Wire::Grpc => {
                let mut status = Status::new(tonic::Code::from_i32(i32::from(code.number())), words);
                status.metadata_mut().insert(INSTANCE, self.id.parse().unwrap());
                Failure::Grpc(status)
            }
            Wire::Rest => Failure::Rest(Problem::new(code.http_status()).detail(words).with_code(code)),
        }
    }

    /// Answers a unary call.
    pub(super) async fn answer(
        self: &Arc<Self>,
        wire: Wire,
        op: Op,
        message: String,
        headers: &HeaderMap,
    ) -> Result<EchoReply, Failure> {
        let (seen, act, _working) = self.begin(wire, op, &message, headers);
        self.perform(act, &seen).await?;
        let mut hops = vec![self.id.clone()];
        hops.extend(self.go_on(&seen).await?);
        let remaining_ms = seen.remaining.map_or(0, |left| left.as_millis() as u64);
        let instance = self.id.clone();
        Ok(EchoReply { message, instance, count: 1, hops, remaining_ms, ..EchoReply::default() })
    }

    /// Calls the next service of a chain, and returns the instances that the call passed.
    async fn go_on(&self, seen: &Seen) -> Result<Vec<String>, Failure> {
        let Some(via) = seen.headers.get(VIA) else { return Ok(Vec::new()) };
        let via = via.to_str().unwrap();
        let (hop, rest) = via.split_once(',').unwrap_or((via, ""));
        let (wire, service) = hop.split_once(' ').unwrap();
        let wire = if wire == "grpc" { Wire::Grpc } else { Wire::Rest };
        let mut ask = Ask::to(service);
        if !rest.is_empty() {
            ask = ask.header(VIA, rest);
        }
        let outcome = self.clients(service).call(wire, ask).await;
        if outcome.is_ok() {
            return Ok(outcome.hops);
        }
        let Outcome { code, message, .. } = outcome;
        Err(match seen.wire {
            Wire::Grpc => {
                Failure::Grpc(Status::new(tonic::Code::from_i32(i32::from(code.number())), message))
            }
            Wire::Rest => Failure::Rest(Problem::new(code.http_status()).detail(message).with_code(code)),
        })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
