//! One client pipeline called by two threads, relative to two pipelines that share nothing: this shows
//! contention of threads within a call, and nothing else. There is no network: the leaf answers at once.
use std::time::{Duration, Instant};

use chassis::{Runtime, pipeline::Pipeline};

use super::{
    Gate, Options, Row, Setup, Worker,
    place::Place,
    rounds::{self, Slice},
};
use crate::{
    Result,
    layers::{
        echo::{PAYLOAD, drain},
        settings::ON,
    },
    micro::{leaf::Maker, pipelines},
};

/// The name of the peer: two threads with a pipeline each.
pub(super) const PEER: &str = "share_nothing";

/// A caller on each of two threads.
struct Callers([Option<Worker>; 2]);

/// Calls after which the caller yields to other tasks of the thread.
const TURN: u64 = 64;

/// Measures one row.
pub(super) fn measure(options: &Options, setup: Setup, cores: &[usize]) -> Result<Vec<Row>> {
    let places = [Place::new("first", cores[0])?, Place::new("second", cores[1])?];
    let shared = places[0].run(pipelines::client_pipeline(ON))?;
    let mut sides = vec![Callers([Some(caller(shared.clone())), Some(caller(shared))])];
    for _ in ["the peer", "its control"] {
        let [first, second] = &places;
        let apart = [first.run(pipelines::client_pipeline(ON))?, second.run(pipelines::client_pipeline(ON))?];
        sides.push(Callers(apart.map(|pipeline| Some(caller(pipeline)))));
    }
    let slices = rounds::turns(options, &mut sides, |side| side.run(&places, options.slice))?;
    Ok(rounds::rows(setup, &[PEER], &slices))
}

/// A worker that makes one call after the other.
fn caller((pipeline, runtime): (Pipeline, Runtime)) -> Worker {
    let maker = Maker::new();
    Box::new(move |gate| {
        let (pipeline, maker, _runtime) = (pipeline.clone(), maker.clone(), runtime.clone());
        Box::pin(async move {
            let mut calls = 0;
            while gate.is_open() {
                let reply = pipeline.run(maker.call()).await?;
                if drain(reply.into_body()).await <= PAYLOAD {
                    return Err("a short answer came back".into());
                }
                calls += 1;
                if calls % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Ok(calls)
        })
    })
}

// === impl Callers ===

impl Callers {
    fn run(&mut self, places: &[Place; 2], length: Duration) -> Result<Slice> {
        let cpu = || -> Result<Duration> { Ok(places[0].cpu()? + places[1].cpu()?) };
        let (before, gate, start) = (cpu()?, Gate::default(), Instant::now());
        let mut waiting = Vec::new();
        for (worker, place) in self.0.iter_mut().zip(places) {
            let (mut own, gate) = (worker.take().ok_or("a slice before had failed")?, gate.clone());
            waiting.push(place.begin(async move {
                let calls = own(gate).await;
                (own, calls)
            }));
        }
        std::thread::sleep(length);
        gate.close();
        let mut calls = 0;
        for (worker, done) in self.0.iter_mut().zip(waiting) {
            let (own, counted) = done.recv()?;
            *worker = Some(own);
            calls += counted?;
        }
        let time = start.elapsed();
        Ok(Slice { calls, time, client: cpu()? - before, server: Duration::ZERO })
    }
}
