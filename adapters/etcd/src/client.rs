//! Calls etcd over chassis' own gRPC channel to all members, with the token of the user.
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use chassis_core::{
    Random, Runtime,
    adapter::FixedAddresses,
    pipeline,
    settings::Settings,
    tasks::Tasks,
    units::{PositiveSpan, Span, Switch},
};
use chassis_grpc::{Channel, GrpcTransport, RequestExt};
use chassis_http::{
    ClientConfig, HttpVersion,
    connector::{Connector, TlsConfig},
};
use tokio::sync::Mutex;
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{Ascii, AsciiMetadataValue, MetadataValue},
};

use crate::{
    proto::{self, auth_client, kv_client, lease_client, watch_client},
    settings::ConnectionConfig,
};

/// Calls etcd; clones share connections and token.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    addresses: Vec<String>,
    connector: Arc<dyn Connector>,
    config: ConnectionConfig,
    connected: OnceLock<Connected>,
    /// `None`: not requested yet, or no longer valid.
    token: Mutex<Option<Token>>,
}

/// Created by the first call, within the runtime of the process.
struct Connected {
    runtime: Runtime,
    channel: Channel,
    tasks: Tasks,
}

/// The token that a call carries; `None` where authentication is off.
type Token = Option<MetadataValue<Ascii>>;

/// Keys from `start` up to but not including `end`; an empty `end` means the key `start` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

/// One page of a list.
pub(crate) struct Page {
    pub(crate) all: Vec<proto::KeyValue>,
    pub(crate) more: bool,
    pub(crate) revision: i64,
    pub(crate) cluster: u64,
}

/// The result of a put that must not replace the entry of another process.
pub(crate) enum Claim {
    /// The entry exists since this revision.
    Put { revision: i64 },
    /// An entry with this lease exists since this revision.
    Taken { lease: i64, revision: i64 },
}

/// The name of etcd in the pipeline, and in its messages.
const ETCD: &str = "etcd";
/// The timeout of a call.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A call without an answer for so long is sent once more beside the first, up to [`ATTEMPTS`] times. A member passes
/// writes on to its leader; if that has just ended, they are lost, and the member never answers.
const PATIENCE: Duration = Duration::from_millis(600);
const ATTEMPTS: usize = 3;
/// Entries of a page may have any size that etcd allows: 1.5 MiB by default.
const MAX_MESSAGE: usize = 32 << 20;
const TOKEN: &str = "token";

// === impl Client ===

impl Client {
    /// Connects with the first call.
    pub(crate) fn new(config: ConnectionConfig) -> Result<Self, String> {
        let addresses = config.addresses()?;
        let connector = TlsConfig::network(config.tls.as_ref(), HttpVersion::Two)?;
        let (connected, token) = (OnceLock::new(), Mutex::default());
        Ok(Client(Arc::new(Inner { addresses, connector, config, connected, token })))
    }

    /// The members, for messages.
    pub(crate) fn name(&self) -> String {
        format!("etcd at {}", self.0.addresses.join(", "))
    }

    /// An owner of tasks that end with the last clone of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.connected().tasks
    }

    pub(crate) fn random(&self) -> &Random {
        self.connected().runtime.random()
    }

    /// Up to `limit` keys of `range`, all of one revision: `revision`, or the newest if that is 0.
    pub(crate) async fn page(
        &self,
        range: &Range,
        limit: usize,
        revision: i64,
        keys_only: bool,
    ) -> Result<Page, Status> {
        let Range { start, end } = range.clone();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let message = proto::RangeRequest { key: start, range_end: end, limit, revision, keys_only };
        let answer = self.unary(message, |channel, request| async move { kv(channel).range(request).await });
        let proto::RangeResponse { header, kvs, more } = answer.await?;
        let proto::ResponseHeader { cluster_id, revision } = header.unwrap_or_default();
        Ok(Page { all: kvs, more, revision, cluster: cluster_id })
    }

    /// A lease of `ttl`, rounded up to seconds.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64, Status> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let message = proto::LeaseGrantRequest { ttl: i64::try_from(seconds).unwrap_or(i64::MAX) };
        let answer = self.unary(message, |channel, request| async move {
            lease_client::LeaseClient::new(channel).lease_grant(request).await
        });
        Ok(answer.await?.id)
    }

    /// Ends a lease, and deletes its keys. A lease that has expired is no error.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), Status> {
        let message = proto::LeaseRevokeRequest { id: lease };
        let answer = self.unary(message, |channel, request| async move {
            lease_client::LeaseClient::new(channel).lease_revoke(request).await
        });
        match answer.await {
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    /// Renews a lease. `false` if it has expired.
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<bool, Status> {
        let answer = self.unary(lease, |channel, request| async move {
            let request = request.map(|id| {
                // The stream stays open until the answer arrives: etcd would treat its end as the end of the
                // whole stream.
                tokio_stream::once(proto::LeaseKeepAliveRequest { id }).chain(tokio_stream::pending())
            });
            let mut answers = lease_client::LeaseClient::new(channel).lease_keep_alive(request).await?;
            let answer = answers.get_mut().message().await?;
            let answer = answer.ok_or_else(|| Status::unavailable("etcd ended the renewal of a lease"))?;
            Ok(Response::new(answer))
        });
        match answer.await {
            Ok(answer) => Ok(answer.ttl > 0),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Puts `value` at `key` under `lease`, if there is no entry, or one with a lease of `ours`.
    pub(crate) async fn claim(
        &self,
        key: &[u8],
        value: &[u8],
        lease: i64,
        ours: Option<i64>,
    ) -> Result<Claim, Status> {
        use proto::{compare, request_op::Request as Op, response_op::Response as Done};
        let (target, union) = match ours {
            Some(ours) => (compare::CompareTarget::Lease, compare::TargetUnion::Lease(ours)),
            None => (compare::CompareTarget::Version, compare::TargetUnion::Version(0)),
        };
        let put = proto::PutRequest { key: key.into(), value: value.into(), lease };
        let look = proto::RangeRequest { key: key.into(), ..Default::default() };
        let message = proto::TxnRequest {
            compare: vec![proto::Compare {
                result: compare::CompareResult::Equal.into(),
                target: target.into(),
                key: key.into(),
                target_union: Some(union),
            }],
            success: vec![proto::RequestOp { request: Some(Op::RequestPut(put)) }],
            failure: vec![proto::RequestOp { request: Some(Op::RequestRange(look)) }],
        };
        let answer = self.txn(message).await?;
        let revision = answer.header.unwrap_or_default().revision;
        if answer.succeeded {
            return Ok(Claim::Put { revision });
        }
        let found = answer.responses.into_iter().find_map(|op| match op.response {
            Some(Done::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        match found {
            Some(found) => Ok(Claim::Taken { lease: found.lease, revision: found.mod_revision }),
            // The comparison found a lease, but there is no entry.
            None => Err(Status::aborted("the entry was removed while it was being replaced")),
        }
    }

    /// Puts `value` at `key` under `lease`, replacing any entry. Returns the revision.
    pub(crate) async fn put(&self, key: &[u8], value: &[u8], lease: i64) -> Result<i64, Status> {
        let put = proto::PutRequest { key: key.into(), value: value.into(), lease };
        let put = proto::RequestOp { request: Some(proto::request_op::Request::RequestPut(put)) };
        let answer = self.txn(proto::TxnRequest { success: vec![put], ..Default::default() }).await?;
        Ok(answer.header.unwrap_or_default().revision)
    }

    /// Deletes `key` if it has this lease. Returns the revision of the deletion.
    pub(crate) async fn delete(&self, key: &[u8], lease: i64) -> Result<Option<i64>, Status> {
        use proto::compare;
        let delete = proto::DeleteRangeRequest { key: key.into() };
        let delete = proto::request_op::Request::RequestDeleteRange(delete);
        let message = proto::TxnRequest {
            compare: vec![proto::Compare {
                result: compare::CompareResult::Equal.into(),
                target: compare::CompareTarget::Lease.into(),
                key: key.into(),
                target_union: Some(compare::TargetUnion::Lease(lease)),
            }],
            success: vec![proto::RequestOp { request: Some(delete) }],
            failure: Vec::new(),
        };
        let answer = self.txn(message).await?;
        Ok(answer.succeeded.then(|| answer.header.unwrap_or_default().revision))
    }

    /// Watches `range` from the revision `start`. A member that loses its leader ends the watch.
    pub(crate) async fn watch(
        &self,
        range: &Range,
        start: i64,
    ) -> Result<Streaming<proto::WatchResponse>, Status> {
        let Range { start: key, end: range_end } = range.clone();
        let create = proto::WatchCreateRequest {
            key,
            range_end,
            start_revision: start,
            progress_notify: true,
            fragment: true,
        };
        let create = proto::watch_request::RequestUnion::CreateRequest(create);
        let create = proto::WatchRequest { request_union: Some(create) };
        let token = self.token().await?;
        let messages = tokio_stream::once(create).chain(tokio_stream::pending());
        let client = watch_client::WatchClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let answer = { client }.watch(signed(Request::new(messages), &token)).await;
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => {
                self.forget_token_of(&status, &token).await;
                Err(status)
            }
        }
    }

    /// Drops the token if `status` means that etcd rejects it.
    pub(crate) async fn is_refused(&self, status: &Status) {
        if is_bad_token(status) {
            *self.0.token.lock().await = None;
        }
    }

    async fn txn(&self, message: proto::TxnRequest) -> Result<proto::TxnResponse, Status> {
        let answer = self.unary(message, |channel, request| async move { kv(channel).txn(request).await });
        answer.await
    }

    /// Makes one call; repeats it with a new token if etcd rejects the current one. Each call may be executed more than
    /// once: of a lease that was granted twice, one expires; an entry that was put twice has the lease that it should
    /// have; the rest changes nothing the second time.
    async fn unary<M, A, F, Fut>(&self, message: M, send: F) -> Result<A, Status>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let mut is_second = false;
        loop {
            let token = self.token().await?;
            let attempt = || {
                let mut request = signed(Request::new(message.clone()), &token);
                request.set_timeout(TIMEOUT);
                send(self.channel(), request)
            };
            let sent = tokio::time::timeout(TIMEOUT, insistent(attempt)).await;
            match sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd has not answered within 2 s")))
            {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => {
                    let is_again = self.forget_token_of(&status, &token).await;
                    if !is_again || std::mem::replace(&mut is_second, true) {
                        return Err(status);
                    }
                }
            }
        }
    }

    /// The token; authenticates if there is none. Calls that arrive meanwhile wait for the same token.
    async fn token(&self) -> Result<Token, Status> {
        let Some(user) = &self.0.config.user else { return Ok(None) };
        let mut token = self.0.token.lock().await;
        if let Some(token) = &*token {
            return Ok(token.clone());
        }
        let password = self.0.config.password.read().await.map_err(Status::unauthenticated)?;
        let password = password.ok_or_else(|| Status::unauthenticated("there is no password"))?;
        let mut request =
            Request::new(proto::AuthenticateRequest { name: user.clone(), password }).detached();
        request.set_timeout(TIMEOUT);
        let answer = auth_client::AuthClient::new(self.channel()).authenticate(request).await;
        let new = match answer {
            Ok(answer) => {
                let new: Result<AsciiMetadataValue, _> = answer.into_inner().token.parse();
                let mut new = new.map_err(|_| Status::internal("etcd's token can't be sent back"))?;
                new.set_sensitive(true);
                Some(new)
            }
            // Authentication is off: etcd answers calls without a token.
            Err(status) if status.code() == Code::FailedPrecondition => None,
            Err(status) => return Err(status),
        };
        *token = Some(new.clone());
        Ok(new)
    }

    /// Whether `status` means that `used` is no longer valid. Then the next call gets a new token.
    async fn forget_token_of(&self, status: &Status, used: &Token) -> bool {
        if self.0.config.user.is_none() || !is_bad_token(status) {
            return false;
        }
        let mut token = self.0.token.lock().await;
        if token.as_ref() == Some(used) {
            *token = None;
        }
        true
    }

    fn channel(&self) -> Channel {
        self.connected().channel.clone()
    }

    fn connected(&self) -> &Connected {
        self.0.connected.get_or_init(|| Connected::new(&self.0.addresses, &self.0.connector))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.addresses).finish()
    }
}

/// The first success of up to [`ATTEMPTS`] attempts, which begin [`PATIENCE`] apart; or the last failure once each
/// attempt so far has failed.
async fn insistent<T, Fut>(attempt: impl Fn() -> Fut) -> Result<T, Status>
where
    Fut: Future<Output = Result<T, Status>>,
{
    let mut attempts: Vec<Pin<Box<Fut>>> = vec![Box::pin(attempt())];
    let mut begun = 1;
    loop {
        let ended = poll_fn(|cx| {
            let mut failed = None;
            attempts.retain_mut(|one| match (&failed, one.as_mut().poll(cx)) {
                (Some(Ok(_)), _) | (_, Poll::Pending) => true,
                (_, Poll::Ready(ended)) => {
                    failed = Some(ended);
                    false
                }
            });
            match failed {
                Some(ended) if ended.is_ok() || attempts.is_empty() => Poll::Ready(ended),
                _ => Poll::Pending,
            }
        });
        tokio::select! {
            ended = ended => return ended,
            () = tokio::time::sleep(PATIENCE), if begun < ATTEMPTS => {
                attempts.push(Box::pin(attempt()));
                begun += 1;
            }
        }
    }
}

fn kv(channel: Channel) -> kv_client::KvClient<Channel> {
    kv_client::KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// A member that has lost its leader refuses the call and does not answer with outdated data. The call inherits
/// nothing from a call that is being handled.
fn signed<M>(request: Request<M>, token: &Token) -> Request<M> {
    let mut request = request.detached();
    request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert(TOKEN, token.clone());
    }
    request
}

/// The token is unknown or has expired; or users were changed since; or none was needed at first.
fn is_bad_token(status: &Status) -> bool {
    let says = |words| status.message().contains(words);
    says("invalid auth token") || says("revision of auth store is old") || says("user name is empty")
}

/// Whether etcd has dropped the requested revision.
pub(crate) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

/// Whether the page is too large for a message.
pub(crate) fn is_too_large(status: &Status) -> bool {
    let too_large = matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange);
    too_large && !is_compacted(status) && status.message().contains("message")
}

// === impl Connected ===

impl Connected {
    fn new(addresses: &[String], connector: &Arc<dyn Connector>) -> Self {
        let members = FixedAddresses::new(ETCD, "grpc", addresses);
        let runtime = Runtime::builder(ETCD).registry(Arc::new(members)).build();
        let runtime = runtime.expect("the names of metrics are free in a registry of one's own");
        let mut settings = Settings::default();
        // Callers wait by themselves; a breaker would only delay the detection of a recovery.
        settings.outbound.defaults.breaker = Some(Switch::Off);
        if let Err(problems) = runtime.apply(&settings, 1, "etcd") {
            unreachable!("the settings have no names and no numbers: {problems:?}");
        }
        let config = ClientConfig {
            // An entry must exist again 2 s after etcd is back.
            max_backoff: PositiveSpan::from_millis(500),
            // etcd closes connections that are pinged more often than every 5 s.
            keep_alive_interval: Span(Duration::from_secs(6)),
            keep_alive_timeout: PositiveSpan::from_millis(3_000),
            ..ClientConfig::default()
        };
        let transport = Arc::new(GrpcTransport::new(connector.clone(), config));
        let channel =
            Channel::new(ETCD, pipeline::client(&runtime, ETCD, &transport)).max_message(MAX_MESSAGE);
        Connected { runtime, channel, tasks: Tasks::new() }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

// === impl Range ===

impl Range {
    pub(crate) fn key(key: impl Into<Vec<u8>>) -> Self {
        Range { start: key.into(), end: Vec::new() }
    }

    /// All keys that begin with `prefix`.
    pub(crate) fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let mut end = start.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Range { start, end };
            }
        }
        Range { start, end: vec![0] } // no key is above it, so the range has no end
    }

    /// The part of the range after `key`.
    pub(crate) fn after(&self, key: &[u8]) -> Self {
        let mut start = key.to_vec();
        start.push(0);
        Range { start, end: self.end.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attempts by what they do: after how many milliseconds they end, and whether well.
    async fn insist(all: &[(u64, bool)]) -> (Result<usize, Code>, u128, usize) {
        let (begun, sent) = (tokio::time::Instant::now(), std::cell::Cell::new(0));
        let ended = insistent(|| {
            let n = sent.replace(sent.get() + 1);
            async move {
                let (after, is_ok) = all[n];
                tokio::time::sleep(Duration::from_millis(after)).await;
                if is_ok { Ok(n) } else { Err(Status::unavailable("no leader")) }
            }
        });
        (ended.await.map_err(|status| status.code()), begun.elapsed().as_millis(), sent.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_lost_is_sent_again_beside_the_first() {
        const NEVER: u64 = 1_000_000;
        assert_eq!(insist(&[(5, true)]).await, (Ok(0), 5, 1));
        assert_eq!(insist(&[(5, false)]).await, (Err(Code::Unavailable), 5, 1));
        assert_eq!(insist(&[(NEVER, true), (5, true)]).await, (Ok(1), 605, 2));
        assert_eq!(insist(&[(700, true), (NEVER, true)]).await, (Ok(0), 700, 2));
        assert_eq!(insist(&[(NEVER, true), (NEVER, true), (5, true)]).await, (Ok(2), 1_205, 3));
        assert_eq!(insist(&[(700, false), (300, true)]).await, (Ok(1), 900, 2));
        assert_eq!(insist(&[(700, false), (300, false)]).await, (Err(Code::Unavailable), 900, 2));
        assert_eq!(insist(&[(3_000, true), (NEVER, true), (NEVER, true)]).await, (Ok(0), 3_000, 3));
    }

    #[test]
    fn a_prefix_has_an_end() {
        for (prefix, end) in
            [(&b"/a/"[..], &b"/a0"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")]
        {
            assert_eq!(Range::prefix(prefix).end, end, "{prefix:?}");
        }
    }
}
