//! Calls of every kind, unary and streaming, over either protocol: begun, held open, finished or cancelled.
use std::sync::Arc;

use chassis::{Code, Reason};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Ask, Caller, Op, Outcome, Parts, Server, Wire, until};

/// The direction in which messages stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// No stream: one message each.
    Unary,
    Down,
    Up,
    Both,
}

/// A call in flight. Of an answer stream, the first message has arrived.
pub(crate) enum Stream {
    Unary(JoinHandle<Outcome>),
    Down(Parts),
    Up(mpsc::Sender<String>, JoinHandle<Outcome>),
    Both(mpsc::Sender<String>, Parts),
}

/// The failure of a call.
pub(crate) type Failed = (Code, Option<Reason>);

fn failed(outcome: &Outcome) -> Failed {
    (outcome.code, outcome.reason)
}

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Unary, Kind::Down, Kind::Up, Kind::Both];
    pub(crate) const STREAMS: [Kind; 3] = [Kind::Down, Kind::Up, Kind::Both];

    pub(crate) fn op(self) -> Op {
        match self {
            Kind::Unary => Op::Call,
            Kind::Down => Op::Download,
            Kind::Up => Op::Upload,
            Kind::Both => Op::Chat,
        }
    }

    /// Whether the head of the answer arrives before the handler performs its act.
    pub(crate) fn answers_early(self) -> bool {
        matches!(self, Kind::Down | Kind::Both)
    }

    /// A whole call, from its first message to its end, and its answers. A request stream has three messages;
    /// an answer stream has three, or none where `parts` is 0.
    pub(crate) async fn whole(
        self,
        caller: &Caller,
        wire: Wire,
        ask: Ask,
        parts: u32,
    ) -> Result<Vec<String>, Failed> {
        let (send, messages) = mpsc::channel(1);
        // No message is available as the call begins, so that its body is not sent as a complete one; no time
        // passes.
        tokio::spawn(async move {
            for message in ["one", "two", "three"] {
                tokio::task::yield_now().await;
                let _ = send.send(message.to_owned()).await; // a failed call accepts no more
            }
        });
        let mut answers = match self {
            Kind::Unary => return answer(caller.call(wire, ask).await),
            Kind::Up => return answer(caller.upload(wire, ask, messages).await),
            Kind::Down => caller.download(wire, ask, parts).await,
            Kind::Both => caller.chat(wire, ask, messages).await,
        }
        .map_err(|outcome| failed(&outcome))?;
        let mut all = Vec::new();
        while let Some(part) = answers.next().await {
            all.push(part.map_err(|outcome| failed(&outcome))?);
        }
        Ok(all)
    }
}

/// The one message of the answer; a fallback from the settings may have another shape.
fn answer(outcome: Outcome) -> Result<Vec<String>, Failed> {
    match outcome.is_ok() {
        true if outcome.body.is_empty() => Ok(vec![outcome.message]),
        true => Ok(vec![outcome.body.trim_end().to_owned()]),
        false => Err(failed(&outcome)),
    }
}

// === impl Stream ===

impl Stream {
    /// Begins a call that one of `servers` executes, or that is refused; no time passes. A download has three
    /// parts.
    pub(crate) async fn open(
        caller: &Arc<Caller>,
        servers: &[&Server],
        wire: Wire,
        kind: Kind,
        ask: Ask,
    ) -> Result<Stream, Failed> {
        let executed = || servers.iter().map(|server| server.executed()).sum::<u64>();
        let before = executed();
        let (send, parts) = mpsc::channel(1);
        match kind {
            Kind::Unary => {
                let call = caller.spawn(wire, ask);
                Ok(Stream::Unary(begun(call, || executed() > before).await?))
            }
            Kind::Down => {
                let mut parts = caller.download(wire, ask, 3).await.map_err(|outcome| failed(&outcome))?;
                first(&mut parts).await?;
                Ok(Stream::Down(parts))
            }
            Kind::Up => {
                let caller = caller.clone();
                let call = tokio::spawn(async move { caller.upload(wire, ask, parts).await });
                let _ = send.send("one".to_owned()).await;
                Ok(Stream::Up(send, begun(call, || executed() > before).await?))
            }
            Kind::Both => {
                let _ = send.send("one".to_owned()).await;
                let mut parts = caller.chat(wire, ask, parts).await.map_err(|outcome| failed(&outcome))?;
                assert_eq!(first(&mut parts).await?, "one");
                Ok(Stream::Both(send, parts))
            }
        }
    }

    /// Sends or reads the rest, up to a successful or failed end.
    pub(crate) async fn finish(self) -> Result<(), Failed> {
        match self {
            Stream::Unary(call) => {
                answer(call.await.unwrap())?;
            }
            Stream::Down(mut parts) => match parts.rest().await {
                (_, Some(outcome)) => return Err(failed(&outcome)),
                (left, None) => assert_eq!(left, 2),
            },
            Stream::Up(send, call) => {
                for _ in 0..20 {
                    let _ = send.send("more".to_owned()).await; // a failed call accepts no more
                }
                drop(send);
                let outcome = call.await.unwrap();
                if !outcome.is_ok() {
                    return Err(failed(&outcome));
                }
                assert_eq!(outcome.count, 21);
            }
            Stream::Both(send, mut parts) => {
                for _ in 0..20 {
                    let _ = send.send("more".to_owned()).await;
                    assert_eq!(first(&mut parts).await?, "more");
                }
                drop(send);
                if let Some(part) = parts.next().await {
                    panic!("one more than was sent: {:?}", part.map_err(|outcome| failed(&outcome))?);
                }
            }
        }
        Ok(())
    }

    /// The caller cancels.
    pub(crate) fn leave(self) {
        if let Stream::Up(_, call) | Stream::Unary(call) = self {
            call.abort();
        }
    }
}

/// A call that has reached a handler, or has ended.
async fn begun(call: JoinHandle<Outcome>, there: impl Fn() -> bool) -> Result<JoinHandle<Outcome>, Failed> {
    until("it is there or refused", || call.is_finished() || there()).await;
    if !call.is_finished() || there() {
        return Ok(call);
    }
    let outcome = call.await.unwrap();
    assert!(!outcome.is_ok(), "no handler executed it: {outcome:?}");
    Err(failed(&outcome))
}

async fn first(parts: &mut Parts) -> Result<String, Failed> {
    match parts.next().await {
        Some(Ok(part)) => Ok(part),
        Some(Err(outcome)) => Err(failed(&outcome)),
        None => panic!("it ended before its time"),
    }
}
