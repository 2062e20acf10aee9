//! The work for each call, over either protocol.
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use chassis::{Chassis, Code, Context, Live, Operation, Random, Target, clock::Instant};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{Behaviour, Slots, Upstream, upstream::Client};
use crate::{Result, echo::Hop};

/// The work of a service; clones share it.
#[derive(Clone)]
pub struct Work(Arc<Inner>);

struct Inner {
    state: Live<State>,
    random: Random,
    service: String,
    instance: String,
    version: String,
    upstreams: Vec<Client>,
    executed: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone)]
struct State {
    behaviour: Behaviour,
    slots: Option<Slots>,
}

/// The behaviour of the service and its counts: the answer of `GET /behaviour`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The current behaviour.
    pub behaviour: Behaviour,
    /// Calls that reached the handler.
    pub executed: u64,
    /// Calls that it failed.
    pub failed: u64,
}

/// The failure of a call: by its behaviour, or forwarded from an upstream.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The gRPC status code.
    pub code: Code,
    /// For people.
    pub message: String,
}

// === impl Work ===

impl Work {
    /// The work of `app`'s service.
    pub fn new(app: &Chassis, behaviour: Behaviour, upstreams: &[Upstream]) -> Self {
        let runtime = app.runtime();
        // Calls carry the version as a label; where both are set, the label wins.
        let mut me = Target::new(runtime.service().clone(), Operation::OTHER);
        me.caller = runtime.caller();
        Work(Arc::new(Inner {
            state: Live::new(State::new(behaviour)),
            random: runtime.random().clone(),
            service: runtime.service().to_string(),
            instance: app.instance().to_owned(),
            version: me.caller_label("version").unwrap_or_default().to_owned(),
            upstreams: upstreams.iter().map(|upstream| Client::new(app, upstream)).collect(),
            executed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }))
    }

    /// Executes one call with the current behaviour, and returns its hops: this service first, then those of
    /// the upstreams.
    pub async fn work(&self, attempt: u32) -> Result<Vec<Hop>, Failure> {
        let Inner { state, random, executed, failed, .. } = &*self.0;
        executed.fetch_add(1, Relaxed);
        let mut hops = vec![self.hop(attempt)];
        let State { behaviour, slots } = &*state.get();
        if random.chance(behaviour.hang.0) {
            std::future::pending::<()>().await;
        }
        let latency = behaviour.latency.draw(random);
        match slots {
            Some(slots) => slots.work(latency).await,
            None if latency.is_zero() => {}
            None => sleep(latency).await,
        }
        if random.chance(behaviour.errors.share.0) {
            failed.fetch_add(1, Relaxed);
            let message = format!("{} fails {} of its calls", self.0.service, behaviour.errors.share.0);
            return Err(Failure { code: behaviour.errors.code, message });
        }
        for upstream in &self.0.upstreams {
            hops.extend(upstream.call().await?);
        }
        Ok(hops)
    }

    /// The behaviour and the counts.
    pub fn status(&self) -> Status {
        let behaviour = self.0.state.get().behaviour.clone();
        Status { behaviour, executed: self.0.executed.load(Relaxed), failed: self.0.failed.load(Relaxed) }
    }

    /// Changes the fields that `changes` names; calls in flight are not affected.
    pub fn change(&self, changes: BTreeMap<String, serde_json::Value>) -> Result<Behaviour> {
        let old = self.0.state.get();
        let mut all = serde_json::to_value(&old.behaviour)?;
        for (key, value) in changes {
            all[&key] = value;
        }
        let behaviour: Behaviour = serde_json::from_value(all)?;
        let mut state = State::new(behaviour.clone());
        if behaviour.slots == old.behaviour.slots {
            state.slots.clone_from(&old.slots); // otherwise calls in flight would not count
        }
        self.0.state.set(state);
        Ok(behaviour)
    }

    fn hop(&self, attempt: u32) -> Hop {
        let left = Context::with(|context| context.deadline).flatten();
        let left = left.map(|at| at.saturating_duration_since(Instant::now()).as_millis());
        Hop {
            service: self.0.service.clone(),
            instance: self.0.instance.clone(),
            version: self.0.version.clone(),
            attempt,
            remaining_ms: left.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
        }
    }
}

// === impl State ===

impl State {
    fn new(behaviour: Behaviour) -> Self {
        let slots = (behaviour.slots > 0).then(|| Slots::new(behaviour.slots));
        State { behaviour, slots }
    }
}
