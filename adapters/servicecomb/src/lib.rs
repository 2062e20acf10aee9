//! ServiceComb service center as a registry of chassis, and ServiceComb kie as a config center, which go-chassis and the
//! Java chassis use too.
//!
//! - [`ServiceCombRegistry`]: `registry: { kind: servicecomb }`. It calls version 4 of the REST API, over chassis' own HTTP
//!   client, and has changes pushed over a WebSocket.
//! - [`ServiceCombContracts`]: descriptors and OpenAPI texts as schemas, by `registry: { kind: servicecomb, contracts: true }`;
//! - [`KieSource`]: `config: { centers: [ { kind: kie, labels: { app: shop, service: orders } } ] }`. It calls version 1 of
//!   the REST API, and follows changes by long polls.
//!
//! # An instance in service center
//!
//! | in service center | of the instance |
//! | --- | --- |
//! | `appId`, `environment` of the service | those of the settings |
//! | `serviceName` | the service. A name that service center would not take stands in hexadecimal digits behind `chassis-x-` |
//! | `version` of the service | the numbers that the version begins with; `0.0.1` without any |
//! | `endpoints` | `rest://` and the address of the listener `http`; of another listener its own name |
//! | `hostName` | the host; that of the first address if it is not known |
//! | `status` | the status: `UP`, `OUTOFSERVICE`, `STARTING`, `DOWN` |
//! | `dataCenterInfo` | region and zone |
//! | `properties` | each label |
//! | `properties` `chassis-id` | the id. An entry without it was written by another program |
//! | `properties` `chassis-generation` | of two entries with the same id the later one counts |
//! | `properties` `chassis-more` | JSON of what has no other place: the weight, sockets, odd labels |
//!
//! Of an entry of another program the id is `instanceId`, and properties are labels. Endpoints with `sslEnabled=true`
//! are left out.
#![cfg_attr(docsrs, feature(doc_cfg))]
mod access;
mod client;
mod contracts;
mod entry;
mod follow;
mod kie;
mod link;
mod owner;
mod registry;
mod service;
mod settings;

pub use chassis_http::connector::TlsConfig;

pub use self::{
    contracts::ServiceCombContracts,
    kie::{KieSource, KieSourceConfig},
    registry::ServiceCombRegistry,
    settings::ServiceCombConfig,
};
