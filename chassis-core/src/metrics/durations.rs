//! Histograms of call durations, which each thread counts on a cache line of its own.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus::{
    Opts,
    core::{Describer, Metric, MetricVec, MetricVecBuilder},
    proto,
};

use crate::{
    striped::StripedCells,
    types::{DurationFamilies, Family, Side},
};

/// Bucket bounds of durations in seconds, as recommended by the semantic conventions for RPC and HTTP.
pub(super) const DURATION_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A histogram over [`DURATION_BUCKETS`]; clones share it.
///
/// `prometheus`' own histogram counts everything in one place, so threads compete for its cache line.
#[derive(Clone)]
pub(crate) struct Durations(Arc<Counted>);

/// Histograms by their labels.
pub(super) type DurationsVec = MetricVec<Make>;

#[derive(Clone)]
pub(super) struct Make;

/// The durations of outgoing and incoming calls, in the families of one protocol, or of several that share
/// them.
pub(crate) struct ProtocolDurations {
    pub(super) names: &'static DurationFamilies,
    pub(super) sides: [DurationsVec; 2],
}

struct Counted {
    labels: Vec<proto::LabelPair>,
    cells: StripedCells<Counts>,
}

/// As many counters as fit into a cache line.
#[derive(Default)]
struct Counts {
    /// Not cumulative; the last bucket counts durations above the last bound.
    buckets: [AtomicU64; DURATION_BUCKETS.len() + 1],
    /// The sum in nanoseconds, which is enough for 584 years.
    nanos: AtomicU64,
}

/// The bounds in nanoseconds.
const BOUNDS: [u64; DURATION_BUCKETS.len()] = {
    let mut bounds = [0; DURATION_BUCKETS.len()];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = (DURATION_BUCKETS[i] * 1e9 + 0.5) as u64;
        i += 1;
    }
    bounds
};

// === impl Durations ===

impl Durations {
    /// Histograms with the name `name`, by `labels`.
    fn by(name: &str, help: &str, labels: &[&str]) -> Result<DurationsVec, prometheus::Error> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        MetricVec::create(proto::MetricType::HISTOGRAM, Make, Opts::new(name, help).variable_labels(labels))
    }

    /// A histogram outside any family.
    pub(crate) fn detached() -> Self {
        Durations(Arc::new(Counted { labels: Vec::new(), cells: StripedCells::new() }))
    }

    /// Counts a call of this duration.
    pub(crate) fn observe(&self, nanos: u64) {
        let counts = self.0.cells.cell();
        let bucket = BOUNDS.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS.len());
        counts.buckets[bucket].fetch_add(1, Relaxed);
        counts.nanos.fetch_add(nanos, Relaxed);
    }

    /// The number of calls in each bucket; not cumulative.
    pub(super) fn counts(&self) -> [u64; DURATION_BUCKETS.len() + 1] {
        let mut sums = [0; BOUNDS.len() + 1];
        for counts in self.0.cells.cells() {
            for (sum, count) in sums.iter_mut().zip(&counts.buckets) {
                *sum += count.load(Relaxed);
            }
        }
        sums
    }

    /// The address of its counts: no other histogram has it while this one is held.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Whether there is no clone of it.
    pub(super) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Metric for Durations {
    fn metric(&self) -> proto::Metric {
        let (buckets, mut nanos) = (self.counts(), 0u64);
        for counts in self.0.cells.cells() {
            nanos = nanos.wrapping_add(counts.nanos.load(Relaxed));
        }
        let mut passed = 0;
        let bounded = DURATION_BUCKETS.iter().zip(&buckets).map(|(bound, count)| {
            passed += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_cumulative_count(passed);
            bucket.set_upper_bound(*bound);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(bounded.collect());
        histogram.set_sample_count(buckets.iter().sum());
        histogram.set_sample_sum(nanos as f64 / 1e9);
        let mut metric = proto::Metric::from_label(self.0.labels.clone());
        metric.set_histogram(histogram);
        metric
    }
}

impl MetricVecBuilder for Make {
    type M = Durations;
    type P = Opts;

    fn build<V: AsRef<str>>(&self, opts: &Opts, values: &[V]) -> Result<Durations, prometheus::Error> {
        let names = opts.describe()?.variable_labels;
        let mut labels: Vec<_> = names
            .into_iter()
            .zip(values)
            .map(|(name, value)| {
                let mut label = proto::LabelPair::default();
                label.set_name(name);
                label.set_value(value.as_ref().to_owned());
                label
            })
            .collect();
        labels.sort();
        Ok(Durations(Arc::new(Counted { labels, cells: StripedCells::new() })))
    }
}

// === impl ProtocolDurations ===

impl ProtocolDurations {
    pub(super) fn new(names: &'static DurationFamilies) -> Result<Self, prometheus::Error> {
        let make = |family: &Family| Durations::by(family.name, family.help, names.labels);
        Ok(ProtocolDurations { names, sides: [make(&names.client)?, make(&names.server)?] })
    }

    /// The families for a protocol whose names are invalid.
    pub(super) fn unnamed() -> Self {
        ProtocolDurations::new(&DurationFamilies::NEUTRAL).expect("these names are sound")
    }

    /// The histogram of calls on `side` with these label `values`; an error names the missing or superfluous
    /// ones.
    pub(crate) fn of(
        &self,
        side: Side,
        values: &[impl AsRef<str> + std::fmt::Debug],
    ) -> Result<Durations, prometheus::Error> {
        self.sides[side as usize].get_metric_with_label_values(values)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{Histogram, HistogramOpts, Registry, TextEncoder};

    use super::*;

    fn text(collector: impl prometheus::core::Collector + 'static) -> String {
        let registry = Registry::new();
        registry.register(Box::new(collector)).unwrap();
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    /// The text is that of `prometheus`' own histogram.
    #[test]
    fn says_what_a_histogram_says() {
        let theirs = Histogram::with_opts(
            HistogramOpts::new("took", "Took.")
                .buckets(DURATION_BUCKETS.to_vec())
                .const_label("b", "2")
                .const_label("a", "1"),
        )
        .unwrap();
        let ours = Durations::by("took", "Took.", &["b", "a"]).unwrap();
        let one = ours.with_label_values(&["2", "1"]);
        for millis in [0, 1, 5, 6, 10, 100, 101, 9_999, 10_000, 10_001, 1 << 20] {
            let took = Duration::from_millis(millis);
            theirs.observe(took.as_secs_f64());
            one.observe(took.as_nanos() as u64);
        }
        assert_eq!(text(ours), text(theirs));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let took = Durations::by("took", "Took.", &[]).unwrap();
        let one = took.with_label_values(&[] as &[&str]);
        one.observe(5_000_000);
        one.observe(5_000_001);
        one.observe(u64::MAX);
        let metric = one.metric();
        let counts: Vec<u64> =
            metric.get_histogram().get_bucket().iter().map(|b| b.cumulative_count()).collect();
        assert_eq!((counts[0], counts[1], counts[13]), (1, 2, 2));
        assert_eq!(metric.get_histogram().get_sample_count(), 3);
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let took = Durations::by("took", "Took.", &[]).unwrap();
        let one = took.with_label_values(&[] as &[&str]);
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..5_000).for_each(|i| one.observe(i % 20 * 1_000_000)));
            }
        });
        let metric = one.metric();
        let histogram = metric.get_histogram();
        assert_eq!(histogram.get_sample_count(), 100_000);
        assert!((histogram.get_sample_sum() - 100_000.0 * 0.0095).abs() < 1e-6);
        assert_eq!(histogram.get_bucket()[0].cumulative_count(), 30_000);
    }
}
