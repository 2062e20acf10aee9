//! Any HTTP server as a config center of chassis: `config: { centers: [ { kind: http, url: … } ] }`.
//!
//! [`HttpSource`] reads one document by GET, and finds its changes in one of three ways:
//!
//! | `watch` | the server |
//! | --- | --- |
//! | `{ poll: 10s }`, the default | answers GET. With an `etag` it is asked with `if-none-match`, and may answer 304 |
//! | `{ long_poll: 60s }` | also obeys `prefer: wait=60` (RFC 7240): it answers a request whose `if-none-match` is current when the document changes, or with 304 after that many seconds |
//! | `{ events: 60s }` | answers `accept: text/event-stream` with server-sent events: the `data` of each is the whole document, its `id` the revision. The first event is the current document, unless `last-event-id` is current; the event `delete` says that there is none. It sends at least one line in that time, also a comment |
//!
//! The format is that of the `content-type` (`application/yaml`, `application/toml`, `application/json` and the like), and
//! of the ending of the path where that names none; YAML otherwise.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod answer;
mod client;
mod follow;
mod settings;
mod source;
mod url;

pub use chassis_http::connector::TlsConfig;

pub use self::{
    settings::{HttpSourceConfig, Watch},
    source::HttpSource,
};
