//! The kind `composite`: a registry that consists of registries of other kinds.
use std::sync::Arc;

use chassis_config::{
    Code, Finding, Problem, read_part,
    tree::{Node, Path, Segment, Value},
};
use chassis_core::registry::Registry;
use chassis_registry::{CompositeRegistry, MemberMode};
use serde::Deserialize;

use super::{Chosen, Described, FIXED_REGISTRY, KIND, REGISTRY, ReadKind, Table, value_of, wrong_type};

/// Reads the members by their own kinds.
pub(super) struct CompositeKind;

/// An entry of `members`.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct MemberConfig {
    /// Its name in messages and in `inspect`. Default: its kind.
    name: Option<String>,
    /// The use of it. Default `read_write`.
    mode: MemberMode,
    /// A table with a `kind`, which the kind reads.
    #[serde(rename = "registry")]
    #[cfg_attr(feature = "cli", schemars(with = "serde_json::Value"))]
    _registry: serde::de::IgnoredAny,
}

/// A member as it is written.
struct Written {
    name: String,
    mode: MemberMode,
    chosen: Chosen,
}

const MEMBERS: &str = "members";

// === impl CompositeKind ===

impl CompositeKind {
    fn member(
        kinds: &Table<Arc<dyn Registry>>,
        tree: &Node,
        part: &Path,
        earlier: &[Written],
    ) -> Result<Written, Vec<Problem>> {
        let (config, mut problems) = read_part::<MemberConfig>(tree, part, &[]);
        let of = part.then(Segment::Key(REGISTRY.to_owned()));
        let chosen = match value_of(tree, &of) {
            Some(_) => kinds.read(tree, &of, &[]).map_err(|wrong| problems.extend(wrong)).ok(),
            None => {
                let missing = Finding::error("", "missing `registry`").within(part).place(tree);
                problems.push(missing.coded(Code::Missing));
                None
            }
        };
        let (Some(MemberConfig { name, mode, .. }), Some(chosen)) = (config, chosen) else {
            return Err(problems);
        };
        let name = name.unwrap_or_else(|| chosen.kind().to_owned());
        if earlier.iter().any(|other| other.name == name) {
            let message = format!("another member is called `{name}`; give one of them a `name`");
            return Err(vec![Finding::error("", message).within(part).place(tree)]);
        }
        Ok(Written { name, mode, chosen })
    }
}

impl ReadKind<Arc<dyn Registry>> for CompositeKind {
    fn name(&self) -> &str {
        "composite"
    }

    fn described(&self) -> Described {
        let mut member = crate::cli::schema_of!(MemberConfig);
        member["properties"][REGISTRY] = serde_json::json!({
            "description": "Its registry, a table with a `kind`.",
            "$ref": FIXED_REGISTRY,
        });
        member["required"] = serde_json::json!([REGISTRY]);
        let members = serde_json::json!({
            "description": "The registries that it consists of; the order is the precedence.",
            "type": "array",
            "minItems": 1,
            "items": member,
        });
        let schema = serde_json::json!({
            "type": "object",
            "properties": { MEMBERS: members },
            "required": [MEMBERS],
            "additionalProperties": false,
        });
        Described { name: "composite".to_owned(), schema, live: Vec::new(), renamed: Vec::new() }
    }

    fn read(
        self: Arc<Self>,
        kinds: &Table<Arc<dyn Registry>>,
        tree: &Node,
        part: &Path,
        beside: &[&str],
    ) -> Result<Chosen, Vec<Problem>> {
        let mut problems = Vec::new();
        for entry in tree.at(part).into_iter().flat_map(Node::entries) {
            let is_known = [KIND, MEMBERS].contains(&&*entry.key) || beside.contains(&&*entry.key);
            if !is_known && !entry.key.starts_with("x-") {
                let at = part.then(Segment::Key(entry.key.clone()));
                let unknown = Problem::error(at, Some(entry.key_at.clone()), "unknown key");
                problems.push(unknown.coded(Code::UnknownKey).instead(&entry.key, [MEMBERS, KIND]));
            }
        }
        let part = part.then(Segment::Key(MEMBERS.to_owned()));
        let mut members: Vec<Written> = Vec::new();
        match value_of(tree, &part) {
            Some((_, Value::List(entries))) if !entries.is_empty() => {
                for at in 0..entries.len() {
                    match Self::member(kinds, tree, &part.then(Segment::Index(at)), &members) {
                        Ok(member) => members.push(member),
                        Err(wrong) => problems.extend(wrong),
                    }
                }
            }
            Some((node, _)) => {
                problems.push(wrong_type(node, part, "a list of members, each a map with a `registry`,"))
            }
            None => problems
                .push(Finding::error("", "missing `members`").within(&part).place(tree).coded(Code::Missing)),
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let make = move || {
            let mut made = CompositeRegistry::new();
            for Written { name, mode, chosen } in &members {
                let member = chosen.make_fixed().map_err(|error| format!("`{name}`: {error}"))?;
                made = made.member(name, *mode, member);
            }
            Ok(Arc::new(made) as Arc<dyn Registry>)
        };
        Ok(Chosen::fixed("composite", make))
    }
}
