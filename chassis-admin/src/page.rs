//! The pages of the surface, by their paths.

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Index,
    Probe(Probe),
    Metrics,
    Version,
    Read(Read),
    /// `outbound/{service}`.
    Outbound(String),
}

/// A part of the state of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Status,
    Inbound,
    Outbound,
    Breakers,
    Limits,
    Budgets,
    Routes,
    Faults,
    Registry,
    Config,
    Versions,
    Diff,
    Schema,
    Events,
}

/// A question of an orchestrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Does the process answer?
    Live,
    /// Does it want calls?
    Ready,
    /// Is its start over?
    Startup,
    /// How well is it: up, degraded or down?
    Health,
}

/// Whose requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Everybody's.
    Open,
    /// Those of peers on this machine, or with a token.
    Read,
}

/// Every page: its path, its class, and its purpose.
static PAGES: [(&str, Page, Class, &str); 22] = [
    ("/livez", Page::Probe(Probe::Live), Class::Open, "does the process answer"),
    ("/readyz", Page::Probe(Probe::Ready), Class::Open, "does it want calls; ?verbose for every check"),
    ("/startupz", Page::Probe(Probe::Startup), Class::Open, "is its start over"),
    ("/healthz", Page::Probe(Probe::Health), Class::Open, "up, degraded or down"),
    ("/metrics", Page::Metrics, Class::Open, "for Prometheus"),
    ("/version", Page::Version, Class::Open, "of the program and of chassis"),
    ("/admin/v1/status", Page::Read(Read::Status), Class::Read, "the process, its listeners and its health"),
    ("/admin/v1/inbound", Page::Read(Read::Inbound), Class::Read, "incoming calls: operations and limits"),
    (
        "/admin/v1/outbound",
        Page::Read(Read::Outbound),
        Class::Read,
        "services that are called; /{service} for one",
    ),
    ("/admin/v1/breakers", Page::Read(Read::Breakers), Class::Read, "circuits"),
    ("/admin/v1/limits", Page::Read(Read::Limits), Class::Read, "rates, concurrency, messages"),
    ("/admin/v1/budgets", Page::Read(Read::Budgets), Class::Read, "budgets of retries"),
    ("/admin/v1/routes", Page::Read(Read::Routes), Class::Read, "route rules with hits"),
    ("/admin/v1/faults", Page::Read(Read::Faults), Class::Read, "injected faults"),
    (
        "/admin/v1/registry",
        Page::Read(Read::Registry),
        Class::Read,
        "this process and others in the registry",
    ),
    ("/admin/v1/config", Page::Read(Read::Config), Class::Read, "settings in force, each with its origin"),
    ("/admin/v1/config/versions", Page::Read(Read::Versions), Class::Read, "past versions of the settings"),
    ("/admin/v1/config/diff", Page::Read(Read::Diff), Class::Read, "?from=7&to=9: their differences"),
    ("/admin/v1/config/schema", Page::Read(Read::Schema), Class::Read, "JSON Schema of the settings"),
    (
        "/admin/v1/events",
        Page::Read(Read::Events),
        Class::Read,
        "events, as they happen (server-sent events)",
    ),
    ("/", Page::Index, Class::Read, "this list"),
    ("/admin", Page::Index, Class::Read, "this list"),
];

// === impl Page ===

impl Page {
    /// The page at `path`, and whose requests it answers.
    pub(crate) fn at(path: &str) -> Option<(Page, Class)> {
        if let Some((_, page, class, _)) = PAGES.iter().find(|(at, ..)| *at == path) {
            return Some((page.clone(), *class));
        }
        let service = path.strip_prefix("/admin/v1/outbound/").filter(|service| !service.is_empty())?;
        let service = percent_encoding::percent_decode_str(service).decode_utf8().ok()?;
        Some((Page::Outbound(service.into_owned()), Class::Read))
    }

    /// All pages, for readers.
    pub(crate) fn list() -> String {
        PAGES.iter().map(|(path, _, _, purpose)| format!("{path:32}{purpose}\n")).collect()
    }
}

// === impl Probe ===

impl Probe {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Probe::Live => "livez",
            Probe::Ready => "readyz",
            Probe::Startup => "startupz",
            Probe::Health => "healthz",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_exact() {
        assert_eq!(Page::at("/livez"), Some((Page::Probe(Probe::Live), Class::Open)));
        assert_eq!(Page::at("/admin/v1/status"), Some((Page::Read(Read::Status), Class::Read)));
        for path in
            ["", "/livez/", "//livez", "/LIVEZ", "/admin/v1", "/admin/../livez", "/admin/v1/status%00"]
        {
            assert_eq!(Page::at(path), None, "{path}");
        }
        let of = |service: &str| Some((Page::Outbound(service.to_owned()), Class::Read));
        assert_eq!(Page::at("/admin/v1/outbound/stock"), of("stock"));
        assert_eq!(Page::at("/admin/v1/outbound/stock%3Aops"), of("stock:ops"));
        assert_eq!(Page::at("/admin/v1/outbound/"), None);
        assert_eq!(Page::at("/admin/v1/outbound/%ff"), None);
    }
}
