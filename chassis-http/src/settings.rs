//! The settings of the transport: connections of a client, and limits of a server.
use std::num::{NonZeroU32, NonZeroUsize};

use chassis_core::{
    settings,
    units::{PositiveSpan, Ratio, Size, Span, Switch},
};
use http::HeaderName;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::wire::TIMEOUT;

settings! {
    /// How a client reaches one endpoint.
    ///
    /// ```
    /// use chassis_http::ClientConfig;
    ///
    /// let config = ClientConfig { connections: 2.try_into().unwrap(), ..ClientConfig::default() };
    /// assert_eq!(config.connect_timeout.get().as_secs(), 1);
    /// ```
    pub struct ClientConfig, ClientPatch {
        /// The time until a connection is usable: TCP, TLS, and over HTTP/2 the server's settings. Default
        /// `1s`.
        pub connect_timeout: PositiveSpan = PositiveSpan::from_millis(1_000),
        /// The longest pause between two attempts to connect to an unreachable endpoint, ± 20 %. The first
        /// pause is 50 to 100 ms, the second 1 s if that is less. Default `2m`.
        pub max_backoff: PositiveSpan = PositiveSpan::from_millis(120_000),
        /// The version of HTTP for REST endpoints: `"1"` or `"2"`. Default `"1"`.
        pub http_version: HttpVersion = HttpVersion::One,
        /// HTTP/2 connections that are kept open to each endpoint. Default 1.
        pub connections: NonZeroUsize = nonzero(1),
        /// HTTP/2 connections to each endpoint while the streams of `connections` are used up. Default 8.
        pub max_connections: NonZeroUsize = nonzero(8),
        /// Streams on one HTTP/2 connection; a lower limit of the server applies. Default 1000.
        pub max_streams: NonZeroUsize = nonzero(1_000),
        /// HTTP/1.1 connections to each endpoint; a call waits for one, within its deadline. Default 64.
        pub pool: NonZeroUsize = nonzero(64),
        /// Connections without a call for this long are closed; keep it below the server's. Default `50s`.
        pub idle_timeout: PositiveSpan = PositiveSpan::from_millis(50_000),
        /// An HTTP/2 connection without incoming bytes for this time is pinged, also without calls. `0s`:
        /// never. Doubled for an endpoint that answers `too_many_pings`. Default `10s`.
        pub keep_alive_interval: Span = Span(std::time::Duration::from_secs(10)),
        /// The time in which a ping must be answered. Default `5s`.
        pub keep_alive_timeout: PositiveSpan = PositiveSpan::from_millis(5_000),
        /// Bytes of an answer's headers. Default `16KiB`.
        pub max_header_list: Size = HEADER_LIST,
        /// Bytes of one stream that may be in flight to this side. Default `1MiB`.
        pub stream_window: Size = STREAM_WINDOW,
        /// The same for one connection. Default `4MiB`.
        pub connection_window: Size = CONNECTION_WINDOW,
        /// The header in which REST calls send the caller's remaining time in milliseconds; servers must read
        /// the same. Default `x-request-timeout-ms`.
        pub timeout_header: Header = Header(TIMEOUT),
        /// Bytes of a body that the REST client reads into memory at once. Default `4MiB`.
        pub max_body: Size = Size::from_kib(4 * 1024),
        /// Bytes of one message of a gRPC answer. A stub has a limit of its own, also 4 MiB: raise both.
        /// Default `4MiB`.
        pub max_message: Size = Size::from_kib(4 * 1024),
    }
}

settings! {
    /// The limits of a server.
    ///
    /// ```
    /// use chassis_http::ServerConfig;
    ///
    /// assert_eq!(ServerConfig::default().max_body.get(), 2 * 1024 * 1024);
    /// ```
    pub struct ServerConfig, ServerPatch {
        /// Connections at once; more are answered 503 and closed. Default 10000.
        pub max_connections: NonZeroUsize = nonzero(10_000),
        /// The time for TLS, or other steps before HTTP. Default `5s`.
        pub handshake_timeout: PositiveSpan = PositiveSpan::from_millis(5_000),
        /// The time from the first byte of a request, or from accept, to the end of its headers. Default `10s`.
        pub header_timeout: PositiveSpan = PositiveSpan::from_millis(10_000),
        /// A connection without a request for this time is closed; keep it above the clients'. It is checked
        /// with a precision of `header_timeout`. Default `75s`.
        pub idle_timeout: PositiveSpan = PositiveSpan::from_millis(75_000),
        /// Concurrent streams of an HTTP/2 connection. 256 is more than most clients open, and bounds the
        /// resources that a hostile client can hold. Default 256.
        pub max_streams: NonZeroU32 = NonZeroU32::new(256).expect("256 is not 0"),
        /// Bytes of a request's headers; more, or over 100 of them, is refused with 431. Default `16KiB`.
        pub max_header_list: Size = HEADER_LIST,
        /// Bytes of a REST request's body; more is refused with 413. gRPC has its own limit. Default `2MiB`.
        pub max_body: Size = Size::from_kib(2 * 1024),
        /// The header in which REST callers send their remaining time in milliseconds. Default
        /// `x-request-timeout-ms`.
        pub timeout_header: Header = Header(TIMEOUT),
        /// Bytes of one stream that may be in flight to this side. Default `1MiB`.
        pub stream_window: Size = STREAM_WINDOW,
        /// The same for one connection. Default `1152KiB`.
        pub connection_window: Size = SERVER_CONNECTION_WINDOW,
        /// The peer of a connection older than this is asked to close it: GOAWAY, or `Connection: close`. Its
        /// calls continue. `0s`: never. Default `30m`.
        pub max_age: Span = Span(std::time::Duration::from_secs(1_800)),
        /// The difference of `max_age` between connections, so that they do not all end at once. Default `10%`.
        pub max_age_jitter: Ratio = Ratio::percent(10),
        /// The time that calls on such a connection may still take; then they are cut. `0s`: no limit. Default
        /// `0s`.
        pub max_age_grace: Span = Span(std::time::Duration::ZERO),
        /// An HTTP/2 connection without incoming bytes for this time is pinged. `0s`: never. Default `20s`.
        pub keep_alive_interval: Span = Span(std::time::Duration::from_secs(20)),
        /// The time in which a ping must be answered. Default `10s`.
        pub keep_alive_timeout: PositiveSpan = PositiveSpan::from_millis(10_000),
        /// Whether HTTP/1.1 clients may close their side of the connection (FIN) while they wait for an answer.
        /// `false`: a FIN means that they have disconnected, and cancels their calls. `true`: only a reset, or
        /// an answer that cannot be written, cancels. If a client has sent more unread bytes than the
        /// connection's window holds, only a reset is noticed. Default `false`.
        pub half_close: bool = false,
        /// Bytes a second that a client must read, over 30 seconds in which data waits for it; otherwise the
        /// HTTP/2 stream is reset, or the connection closed. 1 to 4294967295, or `off`. Default 240.
        pub min_write_rate: Switch<NonZeroU32> = Switch::On(NonZeroU32::new(240).expect("240 is not 0")),
        /// Bytes of unread answers that one HTTP/2 connection holds, on all its streams together, in addition
        /// to data held by handlers and the first two frames of each answer. Above it a stream continues only
        /// while its window is open, by one frame of its body at a time, and with at least 16 KiB. Default
        /// `24MiB`.
        pub send_buffer: Size = SEND_BUFFER,
    }
}

/// The name of a header, as written in settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(pub HeaderName);

/// The version of HTTP for a REST endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[default]
    One,
    /// HTTP/2, by prior knowledge.
    Two,
}

/// Versions of HTTP and names of headers, as they are written.
#[cfg(feature = "schema")]
mod schema {
    use chassis_core::schema::{JsonSchema, Schema, SchemaGenerator};
    use schemars::json_schema;

    use super::{Header, HttpVersion};

    impl JsonSchema for HttpVersion {
        fn inline_schema() -> bool {
            true
        }
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "HttpVersion".into()
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "enum": ["1", "1.1", "2", 1, 1.1, 2] })
        }
    }

    impl JsonSchema for Header {
        fn inline_schema() -> bool {
            true
        }
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Header".into()
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$" })
        }
    }
}

impl Serialize for HttpVersion {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            HttpVersion::One => "1",
            HttpVersion::Two => "2",
        })
    }
}

impl<'de> Deserialize<'de> for HttpVersion {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "1" | "1.1" => Ok(HttpVersion::One),
            "2" => Ok(HttpVersion::Two),
            // Without TLS there is no ALPN, by which both sides could agree.
            "auto" => {
                Err(de::Error::custom("`auto` needs TLS, which agrees on a version; write \"1\" or \"2\""))
            }
            other => Err(de::Error::unknown_variant(other, &["1", "2"])),
        }
    }
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let parsed = HeaderName::try_from(name.as_str());
        parsed.map(Header).map_err(|_| de::Error::custom(format!("`{name}` can't be the name of a header")))
    }
}

/// 16 KiB, as in hyper; many times the need of a call, and small enough to hold for many calls.
const HEADER_LIST: Size = Size::from_kib(16);
/// h2 counts the overhead of small frames against the window: below 1 MiB, a slow reader of many small messages
/// would have its whole connection closed.
const STREAM_WINDOW: Size = Size::from_kib(1024);
/// Larger than the window of a stream, so that one unread stream does not stop the others.
const CONNECTION_WINDOW: Size = Size::from_kib(4 * 1024);
/// An eighth more than a stream's, for the same reason, and no more, because it paces clients: while a client
/// sends everything at once, the server has no work, and then the client has none. hyper's own is 1 MiB.
const SERVER_CONNECTION_WINDOW: Size = Size::from_kib(1152);
/// With 256 streams each may have 64 KiB in h2, as in other implementations of gRPC: the kernel's buffer holds
/// the data in transit, and this one only has to be refilled before that is empty.
const SEND_BUFFER: Size = Size::from_kib(24 * 1024);
/// The same for each stream of a client.
pub(crate) const CLIENT_SEND_BUFFER: usize = 64 * 1024;

const fn nonzero(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("the defaults are not 0")
}
