//! Settings that no service may put in force: classes of mistakes, with endless variations of each.
use chassis_config::Code;
use chassis_core::Random;

/// A text of settings that every service must refuse, whatever its kinds and sections are.
///
/// [`seeded`](BadSettings::seeded) draws them; a test pushes them through a config center, and finds with
/// [`check`](BadSettings::check) whether a refusal explains the mistake. All texts are YAML of at most 64 KiB, which every
/// center takes. One class is blank texts: a service refuses them where the center had settings before.
///
/// ```
/// use chassis::{Document, document, testing::BadSettings};
/// use chassis_core::config::{Format, Text};
///
/// let bad = BadSettings::seeded(1).find(|bad| bad.class == "time without unit").expect("the classes take turns");
/// let (content, origin) = (bad.yaml.clone(), "center:orders".to_owned());
/// let text = Text { content, format: Format::Yaml, origin, revision: None };
/// let tree = document::parse(&text, document::tree::Layer::Center).expect("it is YAML");
/// let problems: Vec<_> = Document::read(&tree).1.iter().map(ToString::to_string).collect();
/// assert_eq!(bad.check("center:orders", &problems), Ok(()));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BadSettings {
    /// The class of the mistake.
    pub class: &'static str,
    /// The text.
    pub yaml: String,
    /// The code of the problem.
    pub code: Code,
    /// Words of its message: the reason, or the form that is allowed.
    pub says: &'static str,
}

/// A class of mistakes.
struct Class {
    name: &'static str,
    code: Code,
    says: &'static str,
    make: fn(&Draw) -> String,
}

/// Draws the parts of a text that do not matter.
struct Draw(Random);

const NAMES: [&str; 8] = ["stock", "price", "carts", "billing", "users", "search", "mail", "ledger"];

// === impl BadSettings ===

impl BadSettings {
    /// The number of classes.
    pub const CLASSES: usize = CLASSES.len();

    /// Draws texts without end: the classes take turns, and every text of a class has other names, numbers and
    /// positions. The same seed gives the same texts.
    pub fn seeded(seed: u64) -> impl Iterator<Item = BadSettings> {
        let draw = Draw(Random::seeded(seed));
        CLASSES.iter().cycle().map(move |class| {
            let Class { name, code, says, make } = *class;
            BadSettings { class: name, yaml: make(&draw), code, says }
        })
    }

    /// Whether the problems of a refusal, as they are printed (`Event::ConfigRefused` has them so), explain the mistake:
    /// one of them has its code, a position in the text called `origin`, and the reason or what is allowed.
    ///
    /// # Errors
    /// The refusal, and what it lacks.
    pub fn check(&self, origin: &str, problems: &[impl AsRef<str>]) -> Result<(), String> {
        let all = || problems.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\n");
        let lacks = |what: String| Err(format!("{} ({}): no {what} in\n{}", self.class, self.yaml, all()));
        let code = format!("error[{}]: {origin}", self.code);
        let mut coded = problems.iter().map(AsRef::as_ref).filter(|said| said.starts_with(&code)).peekable();
        if coded.peek().is_none() {
            return lacks(format!("`{code}`"));
        }
        // Some centers add a revision to the name.
        let is_placed = |said: &&str| {
            let head = said.lines().next().unwrap_or_default();
            let place = head.split("  ").next().unwrap_or_default();
            let mut numbers = place.rsplit(':').map(|number| number.parse::<usize>().is_ok_and(|n| n > 0));
            numbers.next() == Some(true) && numbers.next() == Some(true)
        };
        let mut placed = coded.filter(is_placed).peekable();
        if placed.peek().is_none() {
            return lacks("line and column".to_owned());
        }
        match placed.any(|said| said.contains(self.says)) {
            true => Ok(()),
            false => lacks(format!("`{}`", self.says)),
        }
    }
}

// === impl Draw ===

impl Draw {
    fn of<T: Copy>(&self, all: &[T]) -> T {
        all[self.0.below(all.len())]
    }

    fn name(&self) -> &'static str {
        self.of(&NAMES)
    }

    /// A number from `from` to below `to`.
    fn number(&self, from: usize, to: usize) -> usize {
        from + self.0.below(to - from)
    }

    /// A few lines that change nothing.
    fn above(&self) -> String {
        let line = |_| match self.0.below(3) {
            0 => "\n".to_owned(),
            1 => format!("# {} {}\n", self.name(), self.0.below(1_000)),
            _ => format!("x-{}-{}: {{ note: {} }}\n", self.name(), self.0.next_u64(), self.0.below(1_000)),
        };
        (0..self.0.below(4)).map(line).collect()
    }

    /// `text` below these lines.
    fn text(&self, text: impl AsRef<str>) -> String {
        format!("{}{}\n", self.above(), text.as_ref())
    }

    /// Settings of outgoing calls, at one of the levels.
    fn outbound(&self, settings: impl AsRef<str>) -> String {
        let (settings, service, other) = (settings.as_ref(), self.name(), self.number(1, 999));
        self.text(match self.0.below(4) {
            0 => format!("outbound: {{ defaults: {{ {settings} }} }}"),
            1 => format!(
                "outbound:\n  services: {{ {service}: {{ total_timeout: {other}s }} }}\n  defaults:\n    {settings}"
            ),
            2 => format!("outbound:\n  services:\n    {service}: {{ {settings} }}"),
            _ => format!(
                "outbound:\n  services:\n    {service}:\n      operations: {{ shop.v1.Shop/Buy{other}: {{ {settings} \
                 }} }}"
            ),
        })
    }

    /// Settings of one called service.
    fn service(&self, settings: impl AsRef<str>) -> String {
        let settings = settings.as_ref();
        self.text(match self.0.below(2) {
            0 => format!("outbound: {{ services: {{ {}: {{ {settings} }} }} }}", self.name()),
            _ => format!("outbound:\n  services:\n    {}:\n      {settings}", self.name()),
        })
    }

    /// Settings of incoming calls.
    fn inbound(&self, settings: impl AsRef<str>) -> String {
        let settings = settings.as_ref();
        self.text(match self.0.below(3) {
            0 => format!("inbound: {{ {settings} }}"),
            1 => format!("inbound:\n  {settings}"),
            _ => format!("inbound:\n  operations: {{ 'GET /{}': {{ {settings} }} }}", self.name()),
        })
    }
}

const fn class(name: &'static str, code: Code, says: &'static str, make: fn(&Draw) -> String) -> Class {
    Class { name, code, says, make }
}

/// All classes. The codes stand in the order of their numbers.
const CLASSES: &[Class] = &[
    // Texts that are no YAML.
    class("blank text", Code::Syntax, "`{}` removes all of them", |d| {
        d.of(&["", " ", "\n", "\t\n"]).repeat(d.number(1, 99))
    }),
    class("bracket never closed", Code::Syntax, "this bracket is never closed", |d| {
        d.text(format!("outbound: {{ services: {{ {}: {{ timeout: {}ms }}", d.name(), d.number(1, 999)))
    }),
    class("list never closed", Code::Syntax, "bracket", |d| d.text(format!("propagate: [ x-{}", d.name()))),
    class("quote never closed", Code::Syntax, "this quote is never closed", |d| {
        d.text(format!("service: {{ zone: \"{} }}", d.name()))
    }),
    class("tab as indentation", Code::Syntax, "a tab can't indent YAML; use spaces", |d| {
        d.text(format!("outbound:\n\tdefaults: {{ timeout: {}ms }}", d.number(1, 999)))
    }),
    class("crooked indentation", Code::Syntax, "indented unlike", |d| {
        d.text(format!("outbound:\n  defaults:\n    timeout: {}ms\n   retry: off", d.number(1, 999)))
    }),
    class("key twice", Code::Syntax, "is here twice", |d| {
        let n = d.number(1, 999);
        d.text(format!("inbound:\n  timeout: {n}ms\n  concurrency: {n}\n  timeout: {}ms", n + 1))
    }),
    class("table twice", Code::Syntax, "is here twice", |d| {
        d.text(format!("outbound: {{}}\nshutdown: {{ deadline: {}s }}\noutbound: {{}}", d.number(1, 99)))
    }),
    class("two documents", Code::Syntax, "a second document starts here", |d| {
        d.text(format!("inbound: {{ timeout: {0}s }}\n---\ninbound: {{ timeout: {0}s }}", d.number(1, 99)))
    }),
    class("tag", Code::Syntax, "tags such as", |d| {
        d.outbound(format!("timeout: !time {}s", d.number(1, 99)))
    }),
    class("unknown anchor", Code::Syntax, "anchor", |d| d.outbound(format!("retry: *{}", d.name()))),
    class("alias within its anchor", Code::Syntax, "alias", |d| {
        let name = d.name();
        d.text(format!("outbound: &{name} {{ defaults: *{name} }}"))
    }),
    class("key without colon", Code::Syntax, "`:` is missing", |d| {
        d.text(format!("inbound:\n  timeout: {}s\noutbound\nshutdown: {{}}", d.number(1, 99)))
    }),
    class("colon without space", Code::Syntax, "the document is a map", |d| {
        format!("timeout:{}s\n", d.number(1, 99))
    }),
    class("list of settings", Code::Syntax, "the document is a map", |d| {
        format!("- inbound: {{ timeout: {}s }}\n", d.number(1, 99))
    }),
    class("word", Code::Syntax, "the document is a map", |d| format!("{}\n", d.name())),
    class("page of an error", Code::Syntax, "the document is a map of `key: value`", |d| {
        let status = d.of(&["502 Bad Gateway", "503 Service Unavailable", "404 Not Found"]);
        format!(
            "<html>\n<head><title>{status}</title></head>\n<body>\n<center>{status}</center>\n</body>\n</html>\n"
        )
    }),
    class("JSON cut off", Code::Syntax, "bracket", |d| {
        format!("{{\n  \"inbound\": {{ \"timeout\": \"{}s\" }},\n  \"outbound\": {{\n", d.number(1, 99))
    }),
    class("conflict of a merge", Code::Syntax, "a `:` is missing after this key", |d| {
        let n = d.number(1, 99);
        d.text(format!(
            "inbound:\n<<<<<<< HEAD\n  timeout: {n}s\n=======\n  timeout: {}s\n>>>>>>> {}",
            n + 1,
            d.name()
        ))
    }),
    class("TOML", Code::Syntax, "this is no YAML", |d| {
        format!("[outbound.defaults]\ntimeout = \"{}s\"\n", d.number(1, 99))
    }),
    class("control character in a key", Code::Syntax, "control character", |d| {
        d.text(format!("outbound: {{ services: {{ \"{}\\a\": {{}} }} }}", d.name()))
    }),
    class("list as key", Code::Syntax, "a key is a word", |d| d.text(format!("? [{}]\n: {{}}", d.name()))),
    // Keys and words.
    class("unknown table", Code::UnknownKey, "did you mean `outbound`?", |d| {
        let word = d.of(&["outbond", "oubound", "outbount", "outboundd"]);
        d.text(format!("{word}: {{ defaults: {{ timeout: {}s }} }}", d.number(1, 99)))
    }),
    class("unknown key", Code::UnknownKey, "did you mean `attempts`?", |d| {
        let word = d.of(&["atempts", "attemps", "attempt", "attempst"]);
        d.outbound(format!("retry: {{ {word}: {} }}", d.number(1, 5)))
    }),
    class("key of another table", Code::UnknownKey, "allowed: ", |d| {
        d.outbound(format!("breaker: {{ attempts: {} }}", d.number(1, 5)))
    }),
    class("key in another case", Code::UnknownKey, "did you mean `", |d| {
        d.outbound(format!(
            "breaker: {{ {}: {} }}",
            d.of(&["minCalls", "MIN_CALLS", "min-calls"]),
            d.number(1, 99)
        ))
    }),
    class("unknown word", Code::UnknownWord, "did you mean `safe`?", |d| {
        d.outbound(format!("retry: {{ when: {} }}", d.of(&["saef", "save", "saf", "Safe"])))
    }),
    class("unknown kind of registry", Code::UnknownWord, "allowed: ", |d| {
        d.text(format!(
            "registry: {{ kind: {}{} }}",
            d.of(&["memroy", "fiel", "eureka", "zookeeper"]),
            d.number(1, 99)
        ))
    }),
    class("unknown condition", Code::UnknownWord, "allowed: ", |d| {
        d.service(format!("fallback: {{ status: 200, on: [{}, connct] }}", d.number(500, 504)))
    }),
    class("unknown test of a match", Code::UnknownWord, "allowed: ", |d| {
        d.text(format!("matches: {{ {}: {{ header: {{ x-v: {{ prefx: a }} }} }} }}", d.name()))
    }),
    // Missing.
    class("rule without name", Code::Missing, "missing `name`", |d| {
        d.text(format!("faults:\n  - {{ share: {}%, delay: 1s }}", d.number(1, 99)))
    }),
    class("table without kind", Code::Missing, "missing `kind`", |d| {
        d.text(format!("registry: {{ path: /etc/{}.json }}", d.name()))
    }),
    class("kind without a required key", Code::Missing, "missing `path`", |d| {
        d.text("registry: { kind: file }")
    }),
    class("rate limit without rate", Code::Missing, "missing `rate`", |d| {
        d.inbound(format!("rate_limits: [ {{ name: {}, burst: {} }} ]", d.name(), d.number(1, 99)))
    }),
    // Types.
    class("list for a map", Code::WrongType, "a map belongs here, not a list", |d| {
        d.text(format!("outbound: {{ defaults: [ {{ timeout: {}s }} ] }}", d.number(1, 99)))
    }),
    class("map for a list", Code::WrongType, "a list", |d| {
        d.text(format!("faults: {{ name: {}, delay: 1s }}", d.name()))
    }),
    class("map for a time", Code::WrongType, "not a map", |d| {
        d.outbound(format!("timeout: {{ seconds: {} }}", d.number(1, 99)))
    }),
    class("list for a number", Code::WrongType, "a whole number above 0 belongs here, not a list", |d| {
        d.outbound(format!("retry: {{ attempts: [{}] }}", d.number(1, 99)))
    }),
    class("word for a map", Code::WrongType, "a map", |d| d.text(format!("outbound: {}", d.name()))),
    // Values.
    class("time without unit", Code::WrongValue, "has no unit; write", |d| {
        d.outbound(format!("timeout: {}", d.number(1, 9_999)))
    }),
    class("unknown unit of time", Code::WrongValue, "write us, ms, s, m or h", |d| {
        d.outbound(format!("timeout: {}{}", d.number(1, 99), d.of(&["sec", "minutes", "d", "S", "mss"])))
    }),
    class("negative time", Code::WrongValue, "is negative", |d| {
        d.outbound(format!("timeout: -{}ms", d.number(1, 999)))
    }),
    class("time of zero", Code::WrongValue, "is nothing; write more", |d| {
        d.outbound(format!("retry: {{ backoff: 0{} }}", d.of(&["s", "ms", "us", "m", "h"])))
    }),
    class("time that is too long", Code::WrongValue, "is longer than a year", |d| {
        d.outbound(format!("timeout: {}{}h", d.number(10, 99), "9".repeat(d.number(5, 20))))
    }),
    class("time that is no number", Code::WrongValue, "is no length of time; write", |d| {
        d.outbound(format!("timeout: {}", d.of(&["NaNs", ".nan", ".inf", "infs", "1.2.3s", "s"])))
    }),
    class("share without unit", Code::WrongValue, "write a share as 20%", |d| {
        d.text(format!("telemetry: {{ sample: 0.{} }}", d.number(1, 999)))
    }),
    class("share over the whole", Code::WrongValue, "it goes from 0% to 100%", |d| {
        d.outbound(format!("breaker: {{ failure_ratio: {}% }}", d.number(101, 9_999)))
    }),
    class("negative share", Code::WrongValue, "it goes from 0% to 100%", |d| {
        d.outbound(format!("breaker: {{ failure_ratio: -{}% }}", d.number(1, 99)))
    }),
    class("share that is no number", Code::WrongValue, "share", |d| {
        d.outbound(format!(
            "breaker: {{ failure_ratio: {} }}",
            d.of(&["NaN%", "nan%", "inf%", "half", "'%'", "1e999%"])
        ))
    }),
    class("zero attempts", Code::WrongValue, "write a whole number above 0", |d| {
        d.outbound(format!("retry: {{ attempts: 0, backoff: {}ms }}", d.number(1, 99)))
    }),
    class("negative number", Code::WrongValue, "write a whole number above 0", |d| {
        d.outbound(format!("retry: {{ attempts: -{} }}", d.number(1, 99)))
    }),
    class("fraction for a whole number", Code::WrongType, "a whole number above 0 belongs here", |d| {
        d.outbound(format!("retry: {{ attempts: 2.{} }}", d.number(1, 99)))
    }),
    class(
        "number that is too large",
        Code::WrongValue,
        "is out of range; write a whole number above 0",
        |d| {
            d.outbound(format!("retry: {{ attempts: {}{} }}", d.number(10, 99), "9".repeat(d.number(10, 17))))
        },
    ),
    class("word for a number", Code::WrongType, "a whole number above 0 belongs here", |d| {
        d.outbound(format!("breaker: {{ min_calls: {} }}", d.of(&["NaN", "many", "ten", "\"5 \"", "0x"])))
    }),
    class("no concurrency", Code::WrongValue, "write `off` to lift it", |d| d.inbound("concurrency: 0")),
    class("rate without unit", Code::WrongValue, "has no unit; write", |d| {
        d.inbound(format!("rate_limits: [ {{ name: {}, rate: {}, burst: 1 }} ]", d.name(), d.number(1, 99)))
    }),
    class("rate that is no number", Code::WrongValue, "write 100/s, 5/m or 2/h", |d| {
        let rate = d.of(&["many/s", "-1/s", "NaN/s", "1e999/s", "1/week", "/s"]);
        d.inbound(format!("rate_limits: [ {{ name: {}, rate: {rate}, burst: 1 }} ]", d.name()))
    }),
    class("key of a limit without a name", Code::WrongValue, "needs a name; write", |d| {
        d.inbound(format!("rate_limits: [ {{ name: {}, rate: 1/s, burst: 1, key: header }} ]", d.name()))
    }),
    class("unknown unit of size", Code::WrongValue, "write 64KiB", |d| {
        d.outbound(format!("retry: {{ replay_bytes: {}XB }}", d.number(1, 99)))
    }),
    class("size that is too large", Code::WrongValue, "2GiB", |d| {
        d.outbound(format!("retry: {{ replay_bytes: {}GiB }}", d.number(3, 9_999)))
    }),
    class("another word for off", Code::WrongValue, "write `off`", |d| {
        d.outbound(format!("retry: {}", d.of(&["no", "none", "disabled"])))
    }),
    class("address without port", Code::WrongValue, "has no port", |d| {
        d.text(format!("listen: {{ http: {}.local }}", d.name()))
    }),
    class("port out of range", Code::WrongValue, "from 1 to 65535", |d| {
        d.text(format!("listen: {{ http: '0.0.0.0:{}' }}", d.number(65_536, 9_999_999)))
    }),
    class("header that can't be a header", Code::WrongValue, "can't be the name of a header", |d| {
        d.text(format!("propagate: [ 'x {}' ]", d.name()))
    }),
    class("header of one hop", Code::WrongValue, "is about one hop", |d| {
        d.text(format!("propagate: [ x-{}, {} ]", d.name(), d.of(&["te", "connection", "upgrade"])))
    }),
    class("half a fault", Code::WrongValue, "from, to", |d| {
        d.text(format!("faults: [ {{ name: {}, delay: {{ from: 1s, too: 2s }} }} ]", d.name()))
    }),
    class("end of a fault that is no time", Code::WrongValue, "is no end; write a time as", |d| {
        d.text(format!(
            "faults: [ {{ name: {}, until: {} }} ]",
            d.name(),
            d.of(&["tomorrow", "2026-13-01", "later"])
        ))
    }),
    class("regular expression", Code::Conflict, "is no regular expression", |d| {
        let regex = d.of(&["a(", "[a-", "*a", "a{2,1}", "(?P<n>a", "\\\\p{Nonesuch}"]);
        d.text(format!("matches: {{ {}: {{ header: {{ x-v: {{ regex: \"{regex}\" }} }} }} }}", d.name()))
    }),
    class("regular expression that is too large", Code::Conflict, "is too large a regular expression", |d| {
        let regex = format!("((a{{{}}}){{1000}}){{1000}}", d.number(900, 1_000));
        d.text(format!(
            "matches: {{ {}: {{ path: /a, header: {{ x-v: {{ regex: '{regex}' }} }} }} }}",
            d.name()
        ))
    }),
    class("operation that is none", Code::Conflict, "no operation is called", |d| {
        d.text(format!("inbound: {{ operations: {{ /{}: {{ timeout: 1s }} }} }}", d.name()))
    }),
    class("glob", Code::Conflict, "has more than two `*` in a row", |d| {
        d.text(format!("matches: {{ {}: {{ operation: [ 'a***b' ], path: '/{{id' }} }}", d.name()))
    }),
    // Values that do not fit together.
    class("split of nothing", Code::Conflict, "a split needs a share above 0", |d| {
        d.service("routes: [ { name: split, split: {}, by: track } ]")
    }),
    class("split of zeros", Code::Conflict, "a split needs a share above 0", |d| {
        d.service(format!(
            "routes: [ {{ name: {}, split: {{ stable: 0, canary: 0 }}, by: track }} ]",
            d.name()
        ))
    }),
    class("two rules of one name", Code::Conflict, "each rule needs its own name", |d| {
        let name = d.name();
        d.text(format!("faults: [ {{ name: {name}, delay: 1s }}, {{ name: {name}, delay: 2s }} ]"))
    }),
    class("unknown match", Code::Conflict, "no match is named", |d| {
        d.service(format!("routes: [ {{ name: a, match: {}, to: {{ track: canary }} }} ]", d.name()))
    }),
    class("unknown picker", Code::Conflict, "did you mean `p2c`?", |d| d.service("balance: p2")),
    class("unknown listener", Code::Conflict, "`listen` has no such name", |d| {
        d.text(format!("inbound: {{ listeners: {{ {}: {{ layers: {{}} }} }} }}", d.name()))
    }),
    class("two values for one address", Code::Conflict, "two values for one address", |d| {
        let port = d.number(1_024, 65_535);
        d.text(format!("listen: {{ grpc: '0.0.0.0:{port}', http: '127.0.0.1:{port}' }}"))
    }),
    class("service without name", Code::Conflict, "a service has a name", |d| {
        d.text("service: { name: '' }")
    }),
    class("name that is no name", Code::Conflict, "can't be the name of a service", |d| {
        d.text(format!("service: {{ name: '{}{}x' }}", d.name(), d.of(&[";", ":", " ", "é"])))
    }),
    // References.
    class("variable of the process", Code::Reference, "env", |d| {
        d.text(format!(
            "service: {{ zone: '${{env:{}}}' }}",
            d.of(&["HOME", "PATH", "AWS_SECRET_ACCESS_KEY"])
        ))
    }),
    class("file of the process", Code::Reference, "file", |d| {
        d.text(format!("service: {{ labels: {{ {}: '${{file:/etc/passwd}}' }} }}", d.name()))
    }),
    class("cipher that is unknown", Code::Reference, "write `$${` for the characters themselves", |d| {
        d.text(format!("service: {{ zone: '${{nonesuch:{}}}' }}", d.name()))
    }),
    class("reference never closed", Code::Reference, "is never closed", |d| {
        d.text(format!("service: {{ zone: '${{env:{}' }}", d.name()))
    }),
    // Sizes.
    class("too deep", Code::TooLarge, "nested deeper than 64 levels", |d| {
        let depth = d.number(70, 2_000);
        d.text(format!("x-{}: {}{}", d.name(), "[".repeat(depth), "]".repeat(depth)))
    }),
    class("aliases that multiply", Code::TooLarge, "values, aliases written out", |d| {
        let line = |i: usize| format!("x-{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
        d.text(format!("x-0: &a0 {}\n{}", d.name(), (1..d.number(8, 20)).map(line).collect::<String>()))
    }),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn classes_have_names_of_their_own_and_small_texts() {
        let names: BTreeSet<_> = CLASSES.iter().map(|class| class.name).collect();
        assert_eq!((names.len(), names.len() >= 40), (CLASSES.len(), true));
        let texts: Vec<_> = BadSettings::seeded(1).take(CLASSES.len() * 10).map(|bad| bad.yaml).collect();
        assert!(texts.iter().all(|text| text.len() <= 64 << 10));
        let different: BTreeSet<_> = texts.iter().collect();
        assert!(different.len() > texts.len() * 9 / 10, "{}", different.len());
        assert_eq!(BadSettings::seeded(1).nth(77).map(|bad| bad.yaml), Some(texts[77].clone()));
    }

    #[test]
    fn a_refusal_without_code_position_or_reason_explains_nothing() {
        let bad = BadSettings { class: "c", yaml: String::new(), code: Code::WrongValue, says: "write 20%" };
        let check =
            |said: &str| bad.check("center:a", &[said]).map_err(|why| why.lines().next().map(str::to_owned));
        assert_eq!(check("error[C006]: center:a@7:1:2  b\n  write 20%"), Ok(()));
        let lacks = |what: &str| Err(Some(format!("c (): no {what} in")));
        assert_eq!(check("error[C005]: center:a:1:2  b\n  write 20%"), lacks("`error[C006]: center:a`"));
        assert_eq!(check("error[C006]: center:a  b\n  write 20%"), lacks("line and column"));
        assert_eq!(check("error[C006]: center:a:1:2  b\n  20"), lacks("`write 20%`"));
    }
}
