//! The metrics as text: in Prometheus' format, which its crate writes, and in OpenMetrics 1.0.
use std::{
    borrow::Cow,
    fmt::{self, Write},
    io::Write as _,
};

use bytes::Bytes;
use chassis_core::tasks::catch;
use flate2::{Compression, write::GzEncoder};
use http::HeaderValue;
use prometheus::{
    Registry, TextEncoder,
    proto::{LabelPair, Metric, MetricFamily, MetricType},
};

use crate::negotiation::Exposition;

/// Writes families in OpenMetrics.
struct OpenMetrics(String);

/// The end of each exposition in OpenMetrics: without it, it was cut off.
const END: &str = "# EOF\n";

// === impl Exposition ===

impl Exposition {
    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Exposition::Text => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }
}

/// The metrics of `registry` in this form, compressed by gzip if so asked.
///
/// # Errors
/// A collector of the program panicked, or made a family that cannot be written.
pub(crate) fn expose(registry: &Registry, form: Exposition, by_gzip: bool) -> Result<Bytes, String> {
    let families = catch(|| registry.gather()).map_err(|panicked| panicked.to_string())?;
    let text = match form {
        Exposition::Text => {
            TextEncoder::new().encode_to_string(&families).map_err(|error| error.to_string())?
        }
        Exposition::OpenMetrics => open_metrics(&families),
    };
    if !by_gzip {
        return Ok(text.into());
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    written.map(Bytes::from).map_err(|error| error.to_string())
}

fn open_metrics(families: &[MetricFamily]) -> String {
    let mut out = OpenMetrics(String::new());
    for family in families {
        out.family(family);
    }
    out.0.push_str(END);
    out.0
}

// === impl OpenMetrics ===

/// Writing to a string never fails.
impl OpenMetrics {
    fn family(&mut self, family: &MetricFamily) {
        // The name of a counter's family has no suffix; that of its samples has.
        let is_counter = family.get_field_type() == MetricType::COUNTER;
        let name = match is_counter {
            true => family.name().strip_suffix("_total").unwrap_or(family.name()),
            false => family.name(),
        };
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            MetricType::SUMMARY => "summary",
            MetricType::UNTYPED => "unknown",
        };
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if !family.help().is_empty() {
            let _ = writeln!(self.0, "# HELP {name} {}", escaped(family.help()));
        }
        for metric in family.get_metric() {
            self.metric(name, family.get_field_type(), metric);
        }
    }

    fn metric(&mut self, name: &str, kind: MetricType, metric: &Metric) {
        let labels = metric.get_label();
        match kind {
            MetricType::COUNTER => {
                self.sample(name, "_total", labels, None, metric.get_counter().get_value())
            }
            MetricType::GAUGE => self.sample(name, "", labels, None, metric.get_gauge().get_value()),
            // The crate's text format has no value of such a metric either.
            MetricType::UNTYPED => {}
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let count = histogram.get_sample_count() as f64;
                let finite = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
                for bucket in finite {
                    let bound = Some(("le", bucket.upper_bound()));
                    self.sample(name, "_bucket", labels, bound, bucket.cumulative_count() as f64);
                }
                self.sample(name, "_bucket", labels, Some(("le", f64::INFINITY)), count);
                self.sample(name, "_count", labels, None, count);
                self.sample(name, "_sum", labels, None, histogram.get_sample_sum());
            }
            MetricType::SUMMARY => {
                let summary = metric.get_summary();
                for quantile in summary.get_quantile() {
                    self.sample(name, "", labels, Some(("quantile", quantile.quantile())), quantile.value());
                }
                self.sample(name, "_count", labels, None, summary.sample_count() as f64);
                self.sample(name, "_sum", labels, None, summary.sample_sum());
            }
        }
    }

    /// `bound` is a label whose value is a number.
    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[LabelPair],
        bound: Option<(&str, f64)>,
        value: f64,
    ) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        let mut mark = '{';
        for label in labels {
            let _ = write!(self.0, "{mark}{}=\"{}\"", label.name(), escaped(label.value()));
            mark = ',';
        }
        if let Some((name, bound)) = bound {
            let _ = write!(self.0, "{mark}{name}=\"{}\"", Canonical(bound));
            mark = ',';
        }
        if mark == ',' {
            self.0.push('}');
        }
        let _ = match value.fract() == 0.0 {
            true => writeln!(self.0, " {value}"),
            false => writeln!(self.0, " {}", Canonical(value)),
        };
    }
}

/// A number in the form that labels have: with a decimal point.
struct Canonical(f64);

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            number if number.is_nan() => f.write_str("NaN"),
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            // `{:?}` always has a point or an exponent.
            number => write!(f, "{number:?}"),
        }
    }
}

fn escaped(text: &str) -> Cow<'_, str> {
    match text.contains(['\\', '"', '\n']) {
        true => text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use prometheus::{CounterVec, Gauge, Histogram, HistogramOpts, IntCounter, Opts, core::Collector};

    use super::*;

    fn registry() -> Registry {
        let registry = Registry::new();
        let calls =
            CounterVec::new(Opts::new("calls_total", "Calls \"in\".\nBy \\ code."), &["code"]).unwrap();
        calls.with_label_values(&["a\"b\\c\nd"]).inc_by(1.5);
        let bare = IntCounter::new("bare", "A counter without the suffix.").unwrap();
        bare.inc_by(1_000_000);
        let gauge = Gauge::new("load", "Load.").unwrap();
        gauge.set(f64::NAN);
        let histogram =
            Histogram::with_opts(HistogramOpts::new("seconds", "S.").buckets(vec![0.1, 1.0])).unwrap();
        histogram.observe(0.5);
        histogram.observe(7.0);
        let all: [Box<dyn Collector>; 4] =
            [Box::new(calls), Box::new(bare), Box::new(gauge), Box::new(histogram)];
        all.into_iter().for_each(|one| registry.register(one).unwrap());
        registry
    }

    #[test]
    fn open_metrics_are_written_as_specified() {
        let text = expose(&registry(), Exposition::OpenMetrics, false).unwrap();
        assert_eq!(
            std::str::from_utf8(&text).unwrap(),
            "# TYPE bare counter\n\
             # HELP bare A counter without the suffix.\n\
             bare_total 1000000\n\
             # TYPE calls counter\n\
             # HELP calls Calls \\\"in\\\".\\nBy \\\\ code.\n\
             calls_total{code=\"a\\\"b\\\\c\\nd\"} 1.5\n\
             # TYPE load gauge\n\
             # HELP load Load.\n\
             load NaN\n\
             # TYPE seconds histogram\n\
             # HELP seconds S.\n\
             seconds_bucket{le=\"0.1\"} 0\n\
             seconds_bucket{le=\"1.0\"} 1\n\
             seconds_bucket{le=\"+Inf\"} 2\n\
             seconds_count 2\n\
             seconds_sum 7.5\n\
             # EOF\n"
        );
        let none = expose(&Registry::new(), Exposition::OpenMetrics, false).unwrap();
        assert_eq!(&*none, b"# EOF\n");
    }

    #[test]
    fn gzip_is_the_same_text() {
        let registry = registry();
        let plain = expose(&registry, Exposition::Text, false).unwrap();
        assert!(plain.starts_with(b"# HELP bare A counter"), "{plain:?}");
        let zipped = expose(&registry, Exposition::Text, true).unwrap();
        let mut text = Vec::new();
        GzDecoder::new(&*zipped).read_to_end(&mut text).unwrap();
        assert_eq!(text, plain);
    }

    #[test]
    fn a_collector_that_panics_is_an_error() {
        struct Wrong(IntCounter);
        impl Collector for Wrong {
            fn desc(&self) -> Vec<&prometheus::core::Desc> {
                self.0.desc()
            }
            fn collect(&self) -> Vec<MetricFamily> {
                panic!("out of order")
            }
        }
        let registry = Registry::new();
        registry.register(Box::new(Wrong(IntCounter::new("wrong", "W.").unwrap()))).unwrap();
        let error = expose(&registry, Exposition::Text, false).unwrap_err();
        assert!(error.contains("out of order"), "{error}");
    }
}
