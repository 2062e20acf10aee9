//! Alternating slices, and the ratios within one round.
use std::{fmt, time::Duration};

use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Gate, Options, Setup, Side, Worker, place::Place};
use crate::{Error, Result};

/// Chassis relative to one peer, in one setting.
#[derive(Clone, Debug)]
pub struct Row {
    /// The setting.
    pub setup: Setup,
    /// The peer.
    pub peer: &'static str,
    /// Calls per second, chassis over peer: more is better.
    pub throughput: Pair,
    /// Client CPU time per call, chassis over peer: less is better.
    pub client_cpu: Pair,
    /// Server CPU time per call.
    pub server_cpu: Pair,
    /// CPU time of both per call.
    pub total_cpu: Pair,
    /// The peer's CPU time per call, client and server: as a plausibility check.
    pub peer_cpu: Duration,
}

/// A ratio, and that of the control: the first peer over itself.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The ratio of chassis to the peer.
    pub ratio: Spread,
    /// 1.0, except for the inaccuracy of the method.
    pub control: Spread,
}

/// The distribution of the rounds' ratios.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Half of them are below.
    pub median: f64,
    /// The upper quartile minus the lower.
    pub between_quartiles: f64,
}

/// One slice of one side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub(super) calls: u64,
    pub(super) time: Duration,
    /// CPU time of the client's thread.
    pub(super) client: Duration,
    /// CPU time of the server's thread.
    pub(super) server: Duration,
}

/// A connected side.
struct Ready {
    name: &'static str,
    workers: Option<Vec<Worker>>,
}

/// Slices before the rounds, not counted: connections open, caches fill.
const WARM_UP: usize = 2;

/// Measures `ours` and `peers` in one setting and returns a row for each peer.
pub(super) fn measure(
    options: &Options,
    setup: Setup,
    ours: &dyn Side,
    peers: &[&dyn Side],
    cores: &[usize],
) -> Result<Vec<Row>> {
    let server = Place::new("server", cores[0])?;
    let client = Place::new("client", cores[setup.cores - 1])?;
    let mut sides = Vec::new();
    // The first peer once more at the end: the control.
    for side in [ours].iter().chain(peers).chain(&peers[..1]) {
        let failed = |error: Error| Error::from(format!("{}: {error}", side.name()));
        let at = server.run(side.serve(setup))?.map_err(failed)?;
        let workers = client.run(side.connect(setup, at))?.map_err(failed)?;
        sides.push(Ready { name: side.name(), workers: Some(workers) });
    }
    let names: Vec<_> = peers.iter().map(|peer| peer.name()).collect();
    let slices = turns(options, &mut sides, |side| {
        let slice = side.run(&client, &server, options.slice);
        slice.map_err(|error| format!("{}: {error}", side.name).into())
    })?;
    Ok(rows(setup, &names, &slices))
}

/// Runs a slice of each side per round, in rotating order. Returns the slices of each side without the
/// warm-up.
pub(super) fn turns<S>(
    options: &Options,
    sides: &mut [S],
    mut run: impl FnMut(&mut S) -> Result<Slice>,
) -> Result<Vec<Vec<Slice>>> {
    let mut slices = vec![Vec::new(); sides.len()];
    for round in 0..WARM_UP + options.rounds {
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len();
            let slice = run(&mut sides[side])?;
            if slice.calls == 0 {
                return Err("no call ended within a slice".into());
            }
            if round >= WARM_UP {
                slices[side].push(slice);
            }
        }
    }
    Ok(slices)
}

/// Rows of `slices`: ours first, then those of each peer, then the first peer's once more, the control.
pub(super) fn rows(setup: Setup, peers: &[&'static str], slices: &[Vec<Slice>]) -> Vec<Row> {
    let (ours, bare, again) = (&slices[0], &slices[1], &slices[slices.len() - 1]);
    let row = |(peer, theirs): (&&'static str, &Vec<Slice>)| {
        let pair = |what: fn(&Slice) -> f64| Pair {
            ratio: Spread::of(ours, theirs, what),
            control: Spread::of(again, bare, what),
        };
        let cpu: f64 = theirs.iter().map(Slice::total_cpu).sum();
        Row {
            setup,
            peer,
            throughput: pair(Slice::throughput),
            client_cpu: pair(Slice::client_cpu),
            server_cpu: pair(Slice::server_cpu),
            total_cpu: pair(Slice::total_cpu),
            peer_cpu: Duration::from_secs_f64(cpu / theirs.len().max(1) as f64),
        }
    };
    peers.iter().zip(&slices[1..]).map(row).collect()
}

/// Runs all workers at once for `length`, and until each has its answer.
async fn slice(mut workers: Vec<Worker>, length: Duration) -> (Vec<Worker>, Result<(u64, Duration)>) {
    let (gate, start) = (Gate::default(), Instant::now());
    let mut tasks = JoinSet::new();
    for worker in &mut workers {
        tasks.spawn(worker(gate.clone()));
    }
    sleep(length).await;
    gate.close();
    let mut calls = Ok(0);
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.map_err(Error::from).flatten();
        calls = calls.and_then(|calls| Ok(calls + ended?));
    }
    let time = start.elapsed();
    (workers, calls.map(|calls| (calls, time)))
}

// === impl Ready ===

impl Ready {
    fn run(&mut self, client: &Place, server: &Place, length: Duration) -> Result<Slice> {
        let workers = self.workers.take().ok_or("a slice before had failed")?;
        let before = (client.cpu()?, server.cpu()?);
        let (workers, counted) = client.run(slice(workers, length))?;
        let after = (client.cpu()?, server.cpu()?);
        self.workers = Some(workers);
        let (calls, time) = counted?;
        Ok(Slice { calls, time, client: after.0 - before.0, server: after.1 - before.1 })
    }
}

// === impl Slice ===

impl Slice {
    fn throughput(&self) -> f64 {
        self.calls as f64 / self.time.as_secs_f64()
    }

    fn client_cpu(&self) -> f64 {
        self.client.as_secs_f64() / self.calls as f64
    }

    fn server_cpu(&self) -> f64 {
        self.server.as_secs_f64() / self.calls as f64
    }

    fn total_cpu(&self) -> f64 {
        self.client_cpu() + self.server_cpu()
    }
}

// === impl Spread ===

impl Spread {
    fn of(over: &[Slice], under: &[Slice], what: fn(&Slice) -> f64) -> Self {
        let mut ratios: Vec<f64> = over.iter().zip(under).map(|(a, b)| what(a) / what(b)).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = ratios.len().saturating_sub(1);
            ratios.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
        };
        Spread { median: at(0.5), between_quartiles: at(0.75) - at(0.25) }
    }
}

// === impl Pair ===

impl Pair {
    /// Whether the effect is larger than the inaccuracy of the method.
    pub fn is_seen(&self) -> bool {
        (self.ratio.median - 1.0).abs() > self.control.between_quartiles
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_seen() { ' ' } else { '?' };
        let Pair { ratio, control } = self;
        write!(
            f,
            "{:.3}{verdict} ({:.3} ±{:.3})",
            ratio.median,
            control.median,
            control.between_quartiles / 2.0
        )
    }
}

// === impl Row ===

impl Row {
    /// The row as `--json` prints it.
    pub fn as_json(&self) -> serde_json::Value {
        json!({
            "case": self.setup.case.to_string(),
            "peer": self.peer,
            "concurrency": self.setup.concurrency,
            "connections": self.setup.connections,
            "cores": self.setup.cores,
            "throughput_ratio": self.throughput.ratio.median,
            "client_cpu_ratio": self.client_cpu.ratio.median,
            "total_cpu_ratio": self.total_cpu.ratio.median,
            "control_spread": self.control_spread(),
        })
    }
}

impl Row {
    /// The head of a table of Markdown.
    pub const MARKDOWN: &str = "\
| case | callers | connections | cores | peer | throughput | client CPU | server CPU | total CPU | control |
|---|---:|---:|---:|---|---:|---:|---:|---:|---:|";

    /// The row as a line of that table.
    pub fn as_markdown(&self) -> String {
        let Row { setup: Setup { case, concurrency, connections, cores }, peer, .. } = self;
        let cell = |pair: &Pair| match pair.is_seen() {
            _ if pair.ratio.median.is_nan() => "".to_owned(),
            true => format!("{:.2}", pair.ratio.median),
            false => format!("({:.2})", pair.ratio.median),
        };
        let [throughput, client, server, total] =
            [&self.throughput, &self.client_cpu, &self.server_cpu, &self.total_cpu].map(cell);
        let control = format!("{:.2} ± {:.2}", self.total_cpu.control.median, self.control_spread() / 2.0);
        format!(
            "| `{case}` | {concurrency} | {connections} | {cores} | {peer} | {throughput} | {client} | {server} | {total} | {control} |"
        )
    }

    /// The largest spread of the control's ratios.
    fn control_spread(&self) -> f64 {
        let pairs = [&self.throughput, &self.client_cpu, &self.total_cpu];
        pairs.map(|pair| pair.control.between_quartiles).into_iter().fold(0.0, f64::max)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { setup, peer, throughput, client_cpu, server_cpu, total_cpu, peer_cpu } = self;
        let micros = peer_cpu.as_secs_f64() * 1e6;
        write!(f, "{setup}  ÷ {peer:16} throughput {throughput}  client CPU {client_cpu}  ")?;
        write!(f, "server CPU {server_cpu}  total CPU {total_cpu}  peer {micros:.1} µs/call")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Case;

    fn slice(calls: u64, client: u64, server: u64) -> Slice {
        let [client, server] = [client, server].map(Duration::from_millis);
        Slice { calls, time: Duration::from_millis(100), client, server }
    }

    const SETUP: Setup = Setup { case: Case::GrpcUnary128, concurrency: 64, connections: 1, cores: 2 };

    #[test]
    fn ratios_are_those_of_one_round() {
        // The machine becomes slower by half, and all sides with it.
        let ours = [slice(200, 20, 10), slice(100, 20, 10), slice(50, 20, 10)].to_vec();
        let peer = [slice(100, 20, 10), slice(50, 20, 10), slice(25, 20, 10)].to_vec();
        let rows = rows(SETUP, &["peer"], &[ours, peer.clone(), peer]);
        let [row] = &rows[..] else { panic!("a row for each peer") };
        assert_eq!((row.throughput.ratio.median, row.throughput.ratio.between_quartiles), (2.0, 0.0));
        assert_eq!((row.client_cpu.ratio.median, row.total_cpu.ratio.median), (0.5, 0.5));
        assert_eq!(row.total_cpu.control.median, 1.0);
        assert_eq!(row.as_json()["throughput_ratio"], 2.0);
    }

    #[test]
    fn an_effect_within_the_spread_of_the_control_has_no_verdict() {
        let spread = |median, between_quartiles| Spread { median, between_quartiles };
        let seen = |effect| Pair { ratio: spread(effect, 0.0), control: spread(1.0, 0.1) }.is_seen();
        assert!(seen(0.85) && seen(1.2));
        assert!(!seen(0.95) && !seen(1.05));
    }

    #[test]
    fn sides_take_turns_in_an_order_that_rotates() {
        let options = Options { rounds: 2, slice: Duration::ZERO, setups: Vec::new() };
        let (mut order, mut sides) = (String::new(), ['a', 'b', 'c']);
        let slices = turns(&options, &mut sides, |side| {
            order.push(*side);
            Ok(slice(1, 1, 1))
        });
        assert_eq!(order, "abcbcacababc");
        assert!(slices.unwrap().iter().all(|slices| slices.len() == 2));
    }
}
