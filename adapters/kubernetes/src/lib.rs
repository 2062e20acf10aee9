//! Kubernetes as a registry and a config center of chassis, from 1.21 on.
//!
//! - [`KubernetesRegistry`]: `registry: { kind: kubernetes }`;
//! - [`KubernetesSource`]: `config: { centers: [ { kind: kubernetes, config_map: orders, key: chassis.yaml } ] }`.
//!
//! It lists and watches the EndpointSlices of each called Service, a ConfigMap or a Secret, over chassis' own HTTP client. The types of the API
//! are its own: of five kinds a few fields are read, and an entry that is malformed is refused by itself.
//!
//! # An instance in a slice
//!
//! | of the instance | in the slice |
//! | --- | --- |
//! | service | the label `kubernetes.io/service-name` |
//! | id | the name of the pod and the first 8 characters of its uid; of an endpoint without a pod, its address |
//! | addresses | the first address, with the TCP port of each listener |
//! | zone, hostname | the fields of these names |
//! | labels | those of the pod, where `pod_labels` chooses some |
//! | status | `up`: it is ready, or this is not known; `out_of_service`: it terminates and still serves |
#![cfg_attr(docsrs, feature(doc_cfg))]
mod client;
mod follow;
mod place;
mod pods;
mod registry;
mod settings;
mod slices;
mod source;

pub use chassis_http::connector::{Pem, TlsConfig};

pub use self::{
    registry::KubernetesRegistry,
    settings::{KubernetesConfig, KubernetesSourceConfig, PodLabels},
    source::KubernetesSource,
};
