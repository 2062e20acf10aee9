//! The contract suite of quotas: a right implementation passes, and each wrong one is caught.
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    Events, contain,
    quota::{Quota, QuotaDecision, QuotaRequest},
    registry::RegistryError,
    testing::contract::quota::{Place, quota},
};

/// The instances of each service.
type Counts = Arc<Mutex<BTreeMap<String, u32>>>;

struct Counting {
    flaw: Flaw,
    counts: Counts,
    is_contained: bool,
}

struct Limit {
    flaw: Flaw,
    most: u32,
    counts: Counts,
    asked: AtomicU32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    OffByOne,
    /// Each question takes places.
    Reserves,
    /// Counts all services together.
    Mixes,
    Overflows,
    SaysNothing,
}

#[async_trait]
impl Place for Counting {
    fn quota(&self, most: u32) -> Arc<dyn Quota> {
        let (flaw, counts) = (self.flaw, self.counts.clone());
        let quota = Arc::new(Limit { flaw, most, counts, asked: AtomicU32::new(0) });
        match self.is_contained {
            true => contain::quota(quota, &Events::new(), Duration::from_secs(5)),
            false => quota,
        }
    }

    async fn has(&mut self, service: &str, instances: u32) {
        self.counts.lock().unwrap().insert(service.to_owned(), instances);
    }
}

#[async_trait]
impl Quota for Limit {
    fn name(&self) -> String {
        "limit".to_owned()
    }

    async fn ask(&self, request: &QuotaRequest) -> Result<QuotaDecision, RegistryError> {
        let counts = self.counts.lock().unwrap();
        let mut used = match self.flaw {
            Flaw::Mixes => counts.values().sum(),
            _ => counts.get(&request.service).copied().unwrap_or(0),
        };
        if self.flaw == Flaw::Reserves {
            used += self.asked.fetch_add(request.instances.min(10), SeqCst);
        }
        let wanted = match self.flaw {
            Flaw::Overflows => used.wrapping_add(request.instances),
            Flaw::OffByOne => used.saturating_add(request.instances).saturating_sub(1),
            _ => used.saturating_add(request.instances),
        };
        if request.instances == 0 || wanted <= self.most {
            return Ok(QuotaDecision::Allowed);
        }
        let why =
            if self.flaw == Flaw::SaysNothing { String::new() } else { format!("{wanted} are too many") };
        Ok(QuotaDecision::Refused { why })
    }
}

async fn check(flaw: Flaw, is_contained: bool) {
    quota(Counting { flaw, counts: Counts::default(), is_contained }).await;
}

#[tokio::test]
async fn a_right_quota_keeps_the_contract() {
    check(Flaw::None, false).await;
    check(Flaw::None, true).await;
}

/// Each wrong quota fails with the promise that it breaks.
macro_rules! caught {
    ($($name:ident: $flaw:ident, $promise:literal;)*) => {$(
        #[tokio::test(start_paused = true)]
        #[should_panic(expected = $promise)]
        async fn $name() {
            check(Flaw::$flaw, false).await;
        }
    )*};
}

caught! {
    one_too_many_is_caught: OffByOne, "more than the limit are refused";
    a_question_that_reserves_is_caught: Reserves, "a question reserves nothing";
    services_that_mix_are_caught: Mixes, "services do not mix";
    an_overflow_is_caught: Overflows, "any number can be asked for";
    a_refusal_without_a_reason_is_caught: SaysNothing, "a refusal says why";
}
