//! The packages of the workspace and their dependencies, from `cargo metadata`.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde::Deserialize;

/// Every package that any member needs for any platform, with all cargo features and dev-dependencies.
pub(crate) struct Graph {
    packages: Vec<Package>,
    nodes: HashMap<String, Node>,
}

/// A package, as its manifest describes it.
#[derive(Deserialize)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    #[serde(rename = "license")]
    pub(crate) licence: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) edition: String,
    pub(crate) rust_version: Option<String>,
    /// Whether it is a member of the workspace.
    #[serde(skip)]
    pub(crate) member: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

/// `kind` is absent for a normal dependency, else "build" or "dev".
#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

// === impl Graph ===

impl Graph {
    /// Reads the graph, once per test process; offline if everything it needs is present.
    pub(crate) fn load() -> &'static Graph {
        static GRAPH: OnceLock<Graph> = OnceLock::new();
        GRAPH.get_or_init(|| {
            let offline = metadata(&["--offline"]);
            let output = if offline.status.success() { offline } else { metadata(&[]) };
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "cargo metadata failed: {complaint}");
            let metadata = serde_json::from_slice(&output.stdout);
            Graph::new(metadata.expect("cargo metadata prints JSON of this shape"))
        })
    }

    fn new(metadata: Metadata) -> Self {
        let mut packages = metadata.packages;
        for package in &mut packages {
            package.member = metadata.workspace_members.contains(&package.id);
        }
        let nodes = metadata.resolve.nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
        Self { packages, nodes }
    }

    /// All packages, including the members.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter()
    }

    /// The names of the packages that `member` itself needs to build and run, without its tests.
    pub(crate) fn direct(&self, member: &str) -> BTreeSet<String> {
        self.needs(self.id(member)).map(|id| self.name(id).to_owned()).collect()
    }

    /// The names of all packages that `member` needs to build and run, directly or not, without its tests.
    pub(crate) fn closure(&self, member: &str) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        let mut open = vec![self.id(member)];
        while let Some(id) = open.pop() {
            open.extend(self.needs(id).filter(|needed| reached.insert(*needed)));
        }
        reached.into_iter().map(|id| self.name(id).to_owned()).collect()
    }

    /// The cargo features of `package`, in any of its versions, that anything in the graph enables.
    pub(crate) fn features(&self, package: &str) -> BTreeSet<String> {
        let versions = self.packages.iter().filter(|it| it.name == package);
        versions.flat_map(|it| self.nodes[&it.id].features.iter().cloned()).collect()
    }

    fn needs(&self, id: &str) -> impl Iterator<Item = &str> {
        let test_only = |edge: &Edge| edge.dep_kinds.iter().all(|it| it.kind.as_deref() == Some("dev"));
        self.nodes[id].deps.iter().filter(move |edge| !test_only(edge)).map(|edge| edge.pkg.as_str())
    }

    fn id(&self, member: &str) -> &str {
        let found = self.packages.iter().find(|package| package.member && package.name == member);
        &found.unwrap_or_else(|| panic!("{member} is no member of the workspace")).id
    }

    fn name(&self, id: &str) -> &str {
        let found = self.packages.iter().find(|package| package.id == id);
        &found.expect("every node of the graph is a package").name
    }
}

/// The crates that a default build of `member` compiles on this platform, itself included.
pub(crate) fn default_build(member: &str) -> BTreeSet<String> {
    tree(&["--package", member, "--edges", "normal,build"])
}

/// The crates that all members compile on any platform, with all features and tests. Of the packages that
/// `cargo metadata` lists, some are only named by features that are off.
pub(crate) fn whole_build() -> BTreeSet<String> {
    tree(&["--workspace", "--all-features", "--edges", "all", "--target", "all"])
}

fn tree(flags: &[&str]) -> BTreeSet<String> {
    let tree = |more: &[&str]| {
        let mut cargo = cargo();
        cargo.args(["tree", "--prefix", "none", "--locked"]).args(flags).args(more);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.output().expect("cargo runs, since it runs this test")
    };
    let offline = tree(&["--offline"]);
    let output = if offline.status.success() { offline } else { tree(&[]) };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree failed: {complaint}");
    let lines = String::from_utf8_lossy(&output.stdout);
    lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn metadata(flags: &[&str]) -> Output {
    let mut cargo = cargo();
    cargo.args(["metadata", "--format-version", "1", "--locked", "--all-features"]).args(flags);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs, since it runs this test")
}
