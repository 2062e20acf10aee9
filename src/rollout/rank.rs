//! The instances that apply new settings first. Every process computes the same ones, without a coordinator.
use chassis_config::tree::{Layer, Node, Path, Segment, Value};
use chassis_core::units::Ratio;

/// The offset basis and the prime of FNV-1a with 64 bits.
const OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const PRIME: u64 = 0x0100_0000_01B3;

/// Tables that describe the process itself.
const OWN: [&str; 2] = ["service", "listen"];

/// The hash of the settings that a process shares with others, by which they recognise the same version: those in files and
/// config centers, as they are written there, without the tables `service` and `listen`. The environment, the command line,
/// the program, and what `${…}` stands for differ from process to process.
pub(super) fn shared(tree: &Node) -> String {
    let is_own = |path: &Path| matches!(path.0.first(), Some(Segment::Key(key)) if OWN.contains(&&**key));
    let leaf = |(path, node): (Path, &Node)| {
        if !matches!(node.at.origin.layer, Layer::File | Layer::Center) || is_own(&path) {
            return None;
        }
        match node.shown().as_ref() {
            Value::Plain(text) | Value::Quoted(text) => Some(format!("{path}={text}")),
            Value::Map(_) => Some(format!("{path}={{}}")),
            Value::List(_) => Some(format!("{path}=[]")),
            Value::Null => None, // it changes nothing
        }
    };
    let mut leaves: Vec<_> = tree.leaves().into_iter().filter_map(leaf).collect();
    leaves.sort_unstable();
    let bytes = leaves.iter().flat_map(|leaf| leaf.bytes().chain([0xff]));
    format!("{:016x}", fnv(bytes))
}

fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(OFFSET, |state, byte| (state ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The rank of the instance `id` for the settings with this hash: FNV-1a with 64 bits of the hash, a slash and the id,
/// whose bits are mixed by the function of SplitMix64. The hash is part of it so that other settings have other instances
/// first. Releases of chassis must not change it: processes of several releases have to agree.
pub(super) fn rank(hash: &str, id: &str) -> u64 {
    let bytes = hash.bytes().chain([b'/']).chain(id.bytes());
    let mut rank = fnv(bytes);
    rank = (rank ^ (rank >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    rank = (rank ^ (rank >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    rank ^ (rank >> 31)
}

/// The ids, those with the lowest ranks for the settings with this hash before the others.
pub(super) fn ranked<'a>(
    hash: &str,
    ids: impl IntoIterator<Item = &'a str>,
) -> impl Iterator<Item = &'a str> {
    let mut ranked: Vec<_> = ids.into_iter().map(|id| (rank(hash, id), id)).collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.into_iter().map(|(_, id)| id)
}

/// How many of so many instances apply settings first: the `share` of them, rounded up, and at least one.
pub(super) fn count(members: usize, share: Ratio) -> usize {
    // The share is stored in binary digits: 7% of 100 is a little more than 7.
    (share.get() * members as f64 - 1e-9).ceil().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use chassis_config::merge;
    use chassis_core::config::{Format, Text};

    use super::*;

    /// Those of these instances that are first.
    fn first<'a>(hash: &str, ids: impl IntoIterator<Item = &'a str>, share: Ratio) -> Vec<&'a str> {
        let ids: Vec<_> = ids.into_iter().collect();
        let count = count(ids.len(), share);
        ranked(hash, ids).take(count).collect()
    }

    /// A text of a layer.
    fn text(layer: Layer, content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        chassis_config::parse(&text, layer).expect("the test's YAML is sound")
    }

    #[test]
    fn settings_of_one_process_do_not_count() {
        let center = "inbound: { timeout: 1s }\nlayers: { a: off }";
        let of = |texts: &[(Layer, &str)]| {
            let texts: Vec<_> = texts.iter().map(|(layer, content)| text(*layer, content)).collect();
            shared(&merge(&texts))
        };
        let expected = of(&[(Layer::Center, center)]);
        // Releases of chassis must not change it.
        assert_eq!(expected, "3c9bd4dffbe52809");
        let same = [
            vec![(Layer::File, center)],
            vec![(Layer::Center, "# same\nlayers: { a: 'off' }\ninbound: { timeout: 1s, concurrency: }")],
            vec![(Layer::Builder, "listen: { http: 'a:1' }\nshop: 1"), (Layer::Center, center)],
            vec![(Layer::File, "listen: { http: 'a:1' }\nservice: { zone: a }"), (Layer::Center, center)],
            vec![(Layer::Center, center), (Layer::Environment, "shop: 1"), (Layer::Set, "shop: 2")],
        ];
        for texts in same {
            assert_eq!(of(&texts), expected, "{texts:?}");
        }
        for other in
            ["inbound: { timeout: 2s }\nlayers: { a: off }", "inbound: { timeout: 1s }", "layers: {}"]
        {
            assert_ne!(of(&[(Layer::Center, other)]), expected, "{other}");
        }
    }

    /// Processes of other releases must agree about them.
    #[test]
    fn ranks_are_the_same_everywhere() {
        let ranks = [("", ""), ("a", "b"), ("cbf29ce484222325", "stock-1"), ("cbf29ce484222325", "stock-2")]
            .map(|(hash, id)| rank(hash, id));
        let expected =
            [0x7fac_e396_ae05_4c7d, 0x7a90_cb64_4b87_bd2d, 0x1e7f_951a_ddd6_edb5, 0xca87_9114_1456_45ef];
        assert_eq!(ranks, expected);
    }

    #[track_caller]
    fn check(share: &str, members: usize, expected: usize) {
        let ids: Vec<_> = (0..members).map(|n| format!("stock-{n}")).collect();
        let first = first("hash", ids.iter().map(String::as_str), share.parse().unwrap());
        assert_eq!(first.len(), expected, "{share} of {members}");
    }

    #[test]
    fn the_share_is_rounded_up_and_never_none() {
        check("10%", 10, 1);
        check("10%", 11, 2);
        check("7%", 100, 7);
        check("0%", 10, 1);
        check("100%", 10, 10);
        check("50%", 1, 1);
        check("33.33333333%", 3, 1);
        check("10%", 0, 0);
    }

    /// Each instance is first for about its share of the versions, in whatever order a registry lists them.
    #[test]
    fn other_settings_have_other_instances_first() {
        let ids: Vec<_> = (0..10).map(|n| format!("stock-{n}")).collect();
        let share = Ratio::percent(10);
        let mut counts = vec![0; 10];
        for version in 0..1_000 {
            let hash = format!("{version:016x}");
            let one = first(&hash, ids.iter().map(String::as_str), share);
            assert_eq!(one, first(&hash, ids.iter().rev().map(String::as_str), share));
            counts[ids.iter().position(|id| id == one[0]).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count: &i32| (60..140).contains(count)), "{counts:?}");
    }
}
