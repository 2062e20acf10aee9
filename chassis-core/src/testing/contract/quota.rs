//! The contract of [`Quota`].
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use crate::quota::{Quota, QuotaDecision, QuotaRequest};

/// A place whose instances a quota counts, as a test can change it.
#[async_trait]
pub trait Place: Send {
    /// A quota that allows `most` instances of each service.
    fn quota(&self, most: u32) -> Arc<dyn Quota>;

    /// Makes it so that `service` has this many instances.
    async fn has(&mut self, service: &str, instances: u32);
}

/// The time limit of an answer: far more than any quota needs.
const CAP: Duration = Duration::from_secs(30);

/// Checks what [`Quota`] promises: the limit holds exactly, a question reserves nothing, what went makes room, services do
/// not mix, and a refusal says why.
///
/// # Panics
/// If a promise is broken, with its name.
pub async fn quota(mut place: impl Place) {
    let quota = place.quota(3);
    assert!(!quota.name().is_empty(), "a quota has a name");
    check(&quota, "stock", 3, true, "as many as the limit are allowed").await;
    check(&quota, "stock", 4, false, "more than the limit are refused").await;
    for _ in 0..10 {
        check(&quota, "stock", 1, true, "a question reserves nothing").await;
    }
    place.has("stock", 2).await;
    check(&quota, "stock", 1, true, "the last place is allowed").await;
    check(&quota, "stock", 2, false, "what is registered counts").await;
    place.has("stock", 3).await;
    check(&quota, "stock", 1, false, "a full service is refused").await;
    check(&quota, "stock", u32::MAX, false, "any number can be asked for").await;
    check(&quota, "stock", 0, true, "no instances are always allowed").await;
    check(&quota, "billing", 3, true, "services do not mix").await;
    place.has("stock", 2).await;
    check(&quota, "stock", 1, true, "what went makes room").await;
    let none = place.quota(0);
    check(&none, "other", 1, false, "a limit of 0 refuses all").await;
}

async fn check(quota: &Arc<dyn Quota>, service: &str, instances: u32, is_allowed: bool, promise: &str) {
    let request = QuotaRequest { instances, ..QuotaRequest::one(service) };
    let answer = timeout(CAP, quota.ask(&request)).await;
    let answer = answer.unwrap_or_else(|_| panic!("no answer in {CAP:?}: {promise}"));
    let decision = answer.unwrap_or_else(|error| panic!("{promise}, but: {error}"));
    assert_eq!(decision.is_allowed(), is_allowed, "{promise}: {instances} of `{service}`");
    if let QuotaDecision::Refused { why } = decision {
        assert!(!why.is_empty(), "a refusal says why: {promise}");
    }
}
