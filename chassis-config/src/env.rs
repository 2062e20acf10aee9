//! Settings from environment variables: `CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT=2s`.
use std::{collections::BTreeMap, sync::Arc};

use crate::{
    code::Code,
    parse,
    problem::{Problem, Severity},
    tree::{Entry, Layer, Node, Origin, Path, Segment, Span, Value},
};

/// The prefix of every variable's name.
const PREFIX: &str = "CHASSIS_";

/// The layer of environment variables; it overrides all other layers.
///
/// `__` separates levels; letter case does not matter. A level matches a key of the lower layers in any
/// spelling: `PAYMENT_GATEWAY` means `payment-gateway`. A service that no lower layer names is spelt with
/// hyphens too, because names in registries are mostly DNS names, without underscores; set a service called
/// `my_price` with `CHASSIS_OUTBOUND__SERVICES={ my_price: … }`. Values that start with `[`, `{` or a quote are
/// YAML; all others are plain words. Items of a list have no names here: write the whole list.
///
/// ```
/// use chassis_config::{Environment, merge};
///
/// let environment = Environment::of([("CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT", "2s"), ("HOME", "/root")]);
/// let (tree, problems) = environment.over(&merge([]));
/// assert_eq!(tree.value.to_string(), "{ outbound: { defaults: { timeout: 2s } } }");
/// assert!(problems.is_empty());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// All variables, for `${env:NAME}`.
    all: Arc<BTreeMap<String, String>>,
}

// === impl Environment ===

impl Environment {
    /// The variables of this process. Read them once, early: later changes are not seen.
    pub fn of_process() -> Self {
        Self::of(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// These variables. Those that do not start with `CHASSIS_` are no settings; `${env:NAME}` reads them all.
    pub fn of(variables: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>) -> Self {
        let ours = |name: &str| name.get(..PREFIX.len()).is_some_and(|p| p.eq_ignore_ascii_case(PREFIX));
        let all: BTreeMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let settings = all.iter().filter(|(name, _)| ours(name));
        Environment { variables: settings.map(|(k, v)| (k.clone(), v.clone())).collect(), all: Arc::new(all) }
    }

    /// The value of any variable of exactly this name.
    pub fn any(&self, name: &str) -> Option<&str> {
        self.all.get(name).map(String::as_str)
    }

    /// The value of a variable, whatever the case of its letters.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Without variables that are not settings, such as the path of the file.
    pub fn without(mut self, names: &[&str]) -> Self {
        self.variables.retain(|name, _| !names.iter().any(|n| n.eq_ignore_ascii_case(name)));
        self
    }

    /// Builds this layer with the spelling of `base`. Warns of every value of a file or a config center that it
    /// overrides, and reports an error where two variables set the same value.
    pub fn over(&self, base: &Node) -> (Node, Vec<Problem>) {
        let mut layer = Node::empty(Origin::new("environment", Layer::Environment, ""));
        let mut problems = Vec::new();
        for (name, text) in &self.variables {
            let origin = Origin::new("environment", Layer::Environment, format!("{name}={text}"));
            let value = parse::value(&origin, text, name.chars().count() + 1);
            let steps = steps(&origin, name, base);
            let path = Path(steps.iter().map(|(key, _)| Segment::Key(key.clone())).collect());
            if let Some(hidden) =
                base.at(&path).filter(|hidden| pushed(hidden) && hidden.value != value.value)
            {
                problems.push(hides(&path, hidden, name, &value));
            }
            if let Err((at, other)) = insert(&mut layer, &steps, value) {
                let message = format!("two variables are about one value; the other is `{other}`");
                problems.push(Problem::error(path, Some(at), message).coded(Code::VariableTwice));
            }
        }
        stand_in(&mut layer, base);
        (layer, problems)
    }
}

/// Gives each map that only leads to a variable's value the position that it has in the lower layers.
pub(crate) fn stand_in(layer: &mut Node, base: &Node) {
    let (Value::Map(entries), Value::Map(_)) = (&mut layer.value, &base.value) else { return };
    layer.at = base.at.clone();
    for entry in entries {
        let below = base.entry(&entry.key).filter(|b| matches!(b.node.value, Value::Map(_)));
        if let (Some(below), Value::Map(_)) = (below, &entry.node.value) {
            entry.key_at = below.key_at.clone();
            stand_in(&mut entry.node, &below.node);
        }
    }
}

fn pushed(node: &Node) -> bool {
    matches!(node.at.origin.layer, Layer::File | Layer::Center)
}

fn hides(path: &Path, hidden: &Node, name: &str, value: &Node) -> Problem {
    let message = match path.is_secret() {
        true => format!("hidden by `{name}` in the environment"),
        false => format!("hidden by `{name}` in the environment: `{}` holds", value.value),
    };
    Problem::warning(path.clone(), Some(hidden.at.clone()), message).coded(Code::Hidden)
}

/// The keys that a name means, with their positions in the name.
fn steps(origin: &Arc<Origin>, name: &str, base: &Node) -> Vec<(String, Span)> {
    let (mut column, mut node) = (PREFIX.len() + 1, Some(base));
    let mut steps: Vec<(String, Span)> = Vec::new();
    for part in name[PREFIX.len()..].split("__") {
        let exact = part.to_lowercase();
        let known = node.and_then(|n| {
            n.entry(&exact).or_else(|| n.entries().iter().find(|e| spelt(&e.key) == part.to_uppercase()))
        });
        let at = Span { origin: origin.clone(), line: 1, column, length: part.chars().count().max(1) };
        column += part.chars().count() + 2;
        node = known.map(|e| &e.node);
        let is_service = matches!(&*steps, [(a, _), (b, _)] if *a == "outbound" && *b == "services");
        let new = || if is_service { exact.replace('_', "-") } else { exact.clone() };
        steps.push((known.map_or_else(new, |e| e.key.clone()), at));
    }
    steps
}

/// The key as a variable can spell it.
fn spelt(key: &str) -> String {
    key.to_uppercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// Inserts a value. If another variable has set it already: the position, and that variable's name.
fn insert(node: &mut Node, steps: &[(String, Span)], value: Node) -> Result<(), (Span, String)> {
    let Some(((key, key_at), below)) = steps.split_first() else { return Ok(()) };
    let variable = |at: &Span| at.origin.content.split('=').next().unwrap_or_default().to_string();
    let taken = (key_at.clone(), variable(&node.at));
    let Value::Map(entries) = &mut node.value else { return Err(taken) };
    let index = entries.iter().position(|e| e.key == *key);
    match (index, below) {
        (Some(index), []) => Err((key_at.clone(), variable(&entries[index].key_at))),
        (Some(index), below) => insert(&mut entries[index].node, below, value),
        (None, []) => {
            entries.push(Entry { key: key.clone(), key_at: key_at.clone(), node: value });
            Ok(())
        }
        (None, below) => {
            let mut inner = Node::new(Value::Map(Vec::new()), key_at.clone());
            let done = insert(&mut inner, below, value);
            entries.push(Entry { key: key.clone(), key_at: key_at.clone(), node: inner });
            done
        }
    }
}

/// Turns an unknown key in the environment into a warning that suggests the full variable name.
pub(crate) fn unknown(problem: Problem) -> Problem {
    let meant = problem.nearest.as_ref().zip(problem.at.as_ref()).map(|(nearest, at)| {
        let name: Vec<char> = at.origin.content.split('=').next().unwrap_or_default().chars().collect();
        let (start, end) = (at.column - 1, at.column - 1 + at.length);
        let part = |range: &[char]| range.iter().collect::<String>();
        let before = part(&name[..start.min(name.len())]);
        format!("{before}{}{}", spelt(nearest), part(&name[end.min(name.len())..]))
    });
    Problem {
        severity: Severity::Warning,
        message: "no setting has this name".to_owned(),
        nearest: meant,
        ..problem
    }
    .coded(Code::UnknownVariable)
}

/// Removes the keys that [`unknown`] warned of from `tree`: they are not in force, so they do not belong to the
/// version.
pub(crate) fn without_unknown(tree: &mut Node, problems: &[Problem]) {
    for problem in problems.iter().filter(|problem| problem.code == Code::UnknownVariable) {
        remove(tree, &problem.path.0);
    }
}

/// Removes the value at `path`, and the maps on the way that only the environment created.
fn remove(node: &mut Node, path: &[Segment]) {
    let (Some((Segment::Key(key), below)), Value::Map(entries)) = (path.split_first(), &mut node.value)
    else {
        return;
    };
    let Some(index) = entries.iter().position(|entry| entry.key == *key) else { return };
    if !below.is_empty() {
        remove(&mut entries[index].node, below);
    }
    let left = &entries[index].node;
    let is_ours = left.at.origin.layer == Layer::Environment;
    if below.is_empty() || (is_ours && matches!(&left.value, Value::Map(inner) if inner.is_empty())) {
        entries.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use super::*;

    fn base(content: &str) -> Node {
        let text =
            Text { content: content.into(), format: Format::Yaml, origin: "c.yaml".into(), revision: None };
        parse::parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(below: &str, variables: &[(&str, &str)], expected: &str, problems: &[&str]) {
        let (layer, found) = Environment::of(variables.iter().copied()).over(&base(below));
        assert_eq!(layer.value.to_string(), expected);
        assert_eq!(found.iter().map(Problem::without_code).collect::<Vec<_>>(), problems);
    }

    #[test]
    fn names_are_spelt_as_the_document_spells_them() {
        let below = "services: { payment-gateway: { operations: { 'a.B/C': {} } } }";
        let name = "CHASSIS_SERVICES__PAYMENT_GATEWAY__OPERATIONS__A_B_C__TIMEOUT";
        let expected = "{ services: { payment-gateway: { operations: { a.B/C: { timeout: 2s } } } } }";
        check(below, &[(name, "2s")], expected, &[]);
    }

    #[test]
    fn a_service_that_nothing_names_is_spelt_as_in_dns() {
        let (name, set) = ("CHASSIS_OUTBOUND__SERVICES__MY_PRICE__TIMEOUT", "{ timeout: 2s } } } }");
        check("", &[(name, "2s")], &format!("{{ outbound: {{ services: {{ my-price: {set}"), &[]);
        let below = "outbound: { services: { my_price: {} } }";
        check(below, &[(name, "2s")], &format!("{{ outbound: {{ services: {{ my_price: {set}"), &[]);
    }

    #[test]
    fn values_are_words_unless_they_look_like_more() {
        check("", &[("CHASSIS_LISTEN__HTTP", "[::]:80")], "{ listen: { http: [::]:80 } }", &[]);
        check("", &[("CHASSIS_FAULTS", "[{ name: a }]")], "{ faults: [{ name: a }] }", &[]);
        check("", &[("CHASSIS_A", "*"), ("CHASSIS_B", "'1'")], "{ a: *, b: 1 }", &[]);
    }

    #[test]
    fn it_is_said_what_hides_what() {
        let hidden = "c.yaml:1:14 a.timeout: hidden by `CHASSIS_A__TIMEOUT` in the environment: `2s` holds";
        check("a: {timeout: 1s}", &[("CHASSIS_A__TIMEOUT", "2s")], "{ a: { timeout: 2s } }", &[hidden]);
        check("a: {timeout: 2s}", &[("CHASSIS_A__TIMEOUT", "2s")], "{ a: { timeout: 2s } }", &[]);
    }

    #[test]
    fn two_variables_for_one_value_are_refused() {
        let twice = "environment a: two variables are about one value; the other is `CHASSIS_A`";
        check("", &[("CHASSIS_A", "1"), ("chassis_a", "2")], "{ a: 1 }", &[twice]);
        let within = "environment a.b: two variables are about one value; the other is `CHASSIS_A`";
        check("", &[("CHASSIS_A", "1"), ("CHASSIS_A__B", "2")], "{ a: 1 }", &[within]);
    }
}
