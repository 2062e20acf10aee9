//! W3C trace context.
//!
//! Headers are parsed and formatted here, directly: a general propagator costs several times as much.
use std::fmt::Write;

use http::{HeaderMap, HeaderValue};

use super::wire::{LONGEST_CARRIED as LONGEST, TRACEPARENT, TRACESTATE, find};

/// The trace of a call, and the parent span of the calls that are made for it.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext {
    /// The whole trace; never 0.
    pub trace_id: u128,
    /// The current span; never 0.
    pub span_id: u64,
    /// The known flags of `traceparent`: bit 0 means sampled, bit 1 that the trace's id is random.
    pub flags: u8,
    /// The state of other tracers, which is passed on.
    pub state: Option<HeaderValue>,
}

/// Sampled (0x01) and random (0x02). Unknown flags are set to zero, as W3C requires.
const KNOWN_FLAGS: u8 = 0x03;

// === impl TraceContext ===

impl TraceContext {
    /// A new, sampled trace. `draw` gives 64 random bits: three times.
    pub fn root(mut draw: impl FnMut() -> u64) -> Self {
        let trace_id = u128::from(draw()) << 64 | u128::from(draw().max(1));
        TraceContext { trace_id, span_id: draw().max(1), flags: 1, state: None }
    }

    /// A span below this one. `draw` gives 64 random bits: once.
    pub fn child(&self, mut draw: impl FnMut() -> u64) -> Self {
        TraceContext { span_id: draw().max(1), ..self.clone() }
    }

    /// Reads `traceparent` and `tracestate`. As W3C requires, a malformed parent counts as none, and several
    /// parents do too.
    pub fn read(metadata: &HeaderMap) -> Option<Self> {
        let (trace_id, span_id, flags) = parse(find(metadata, &TRACEPARENT)?.as_bytes())?;
        let is_repeated = || metadata.get_all(TRACEPARENT).iter().count() > 1;
        if metadata.len() > metadata.keys_len() && is_repeated() {
            return None;
        }
        Some(TraceContext { trace_id, span_id, flags: flags & KNOWN_FLAGS, state: state(metadata) })
    }

    /// Reads and removes them; an invalid parent is not passed on, nor is its state.
    pub(crate) fn take(metadata: &mut HeaderMap) -> Option<Self> {
        let parent = TraceContext::read(metadata);
        if parent.is_none() {
            metadata.remove(TRACEPARENT);
            metadata.remove(TRACESTATE);
        }
        parent
    }

    /// Writes the headers; `span_id` is the span of the attempt.
    pub fn write(&self, span_id: u64, metadata: &mut HeaderMap) {
        let mut text = String::with_capacity(55);
        // Writing to a string can't fail, and hex digits are a valid header value.
        let _ = write!(text, "00-{:032x}-{span_id:016x}-{:02x}", self.trace_id, self.flags);
        if let Ok(value) = HeaderValue::try_from(text) {
            metadata.insert(TRACEPARENT, value);
        }
        if let Some(state) = &self.state {
            metadata.insert(TRACESTATE, state.clone());
        }
    }
}

/// Joins several headers to one list.
fn state(metadata: &HeaderMap) -> Option<HeaderValue> {
    let mut all = metadata.get_all(TRACESTATE).iter();
    let (first, more) = (all.next()?, all.map(HeaderValue::as_bytes));
    let whole = std::iter::once(first.as_bytes()).chain(more).collect::<Vec<_>>().join(&b","[..]);
    (whole.len() <= LONGEST).then(|| HeaderValue::from_bytes(&whole).ok()).flatten()
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may have further fields.
fn parse(value: &[u8]) -> Option<(u128, u64, u8)> {
    let hex = |part: &[u8]| {
        let lower = part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        lower.then(|| u128::from_str_radix(std::str::from_utf8(part).ok()?, 16).ok()).flatten()
    };
    let dashes = value.len() >= 55 && [2, 35, 52].iter().all(|i| value[*i] == b'-');
    if !dashes {
        return None;
    }
    let version = hex(&value[..2])?;
    let whole = version != 0xff && (value.len() == 55 || (version > 0 && value[55] == b'-'));
    let (trace, span, flags) = (hex(&value[3..35])?, hex(&value[36..52])? as u64, hex(&value[53..55])? as u8);
    (whole && trace != 0 && span != 0).then_some((trace, span, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_parents_are_parents() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            parse(good.as_bytes()),
            Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, 1))
        );
        assert!(parse(good.replacen("00", "01", 1).as_bytes()).is_some());
        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn of_several_parents_none_is_and_unknown_flags_end_here() {
        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";
        let read = |flags: &[&str]| {
            let parents = flags.iter().map(|f| HeaderValue::try_from(format!("{PARENT}{f}")).unwrap());
            let mut metadata: HeaderMap = parents.map(|parent| (TRACEPARENT, parent)).collect();
            metadata.insert(TRACESTATE, HeaderValue::from_static("a=1"));
            let flags = TraceContext::take(&mut metadata).map(|parent| parent.flags);
            (flags, metadata.len())
        };
        for (said, known) in [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0), ("05", 1)] {
            assert_eq!(read(&[said]), (Some(known), 2), "{said}");
        }
        assert_eq!(read(&["01", "01"]), (None, 0));
        assert_eq!(read(&["01-more"]), (None, 0));
    }

    #[test]
    fn states_are_one_list_of_a_bounded_length() {
        let read = |states: &[&str]| {
            let states = states.iter().map(|s| (TRACESTATE, HeaderValue::from_str(s).unwrap()));
            state(&states.collect()).map(|state| state.to_str().unwrap().to_owned())
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["a=1", "b=2"]).as_deref(), Some("a=1,b=2"));
        assert_eq!(read(&["a=1", &"b".repeat(LONGEST)]), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut root = TraceContext::root(|| 0x1234_5678_9abc_def0);
        root.state = Some(HeaderValue::from_static("a=b"));
        let mut metadata = HeaderMap::new();
        root.write(7, &mut metadata);
        assert_eq!(TraceContext::read(&metadata), Some(TraceContext { span_id: 7, ..root }));
    }
}
