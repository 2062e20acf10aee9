//! The pages of the surface, by their paths.

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Index,
    Probe(Probe),
    Metrics,
    Version,
    Status,
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
const PAGES: [(&str, Page, Class, &str); 9] = [
    ("/livez", Page::Probe(Probe::Live), Class::Open, "does the process answer"),
    ("/readyz", Page::Probe(Probe::Ready), Class::Open, "does it want calls; ?verbose for every check"),
    ("/startupz", Page::Probe(Probe::Startup), Class::Open, "is its start over"),
    ("/healthz", Page::Probe(Probe::Health), Class::Open, "up, degraded or down"),
    ("/metrics", Page::Metrics, Class::Open, "for Prometheus"),
    ("/version", Page::Version, Class::Open, "of the program and of chassis"),
    ("/admin/v1/status", Page::Status, Class::Read, "the process, its listeners and its health"),
    ("/", Page::Index, Class::Read, "this list"),
    ("/admin", Page::Index, Class::Read, "this list"),
];

// === impl Page ===

impl Page {
    /// The page at `path`, and whose requests it answers.
    pub(crate) fn at(path: &str) -> Option<(Page, Class)> {
        PAGES.iter().find(|(at, ..)| *at == path).map(|(_, page, class, _)| (*page, *class))
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
        assert_eq!(Page::at("/admin/v1/status"), Some((Page::Status, Class::Read)));
        for path in
            ["", "/livez/", "//livez", "/LIVEZ", "/admin/v1", "/admin/../livez", "/admin/v1/status%00"]
        {
            assert_eq!(Page::at(path), None, "{path}");
        }
    }
}
