//! A user's own settings of layers and services: sections of the document, and the switch of each layer.
use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis::{
    CallError, Chassis, ChassisBuilder, Context, Error, Invocation, LiveSection, Next, Reply, Section, Stage,
    StartError, document::Environment, from_fn, settings::Problem,
};
use serde::Deserialize;

use crate::mesh::{Act, Ask, Gate, Kind, Mesh, Pushed, Stream, Wire, both, until};

/// A section with a number that the pushed settings also contain as the timeout of retries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Audit {
    number: u64,
    note: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    discount: u8,
}

/// The value that a section is compiled to, in place of its text.
struct Words(Vec<String>);

/// Calls that the layer received, and calls whose section belonged to another version than their rules.
#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    torn: AtomicUsize,
    last: AtomicU64,
}

fn shop() -> Section<Shop> {
    Section::<Shop>::new("shop").check(|shop| match shop.discount {
        0..=100 => Ok(()),
        more => Err(vec![Problem::new("discount", format!("{more} percent is more than the price"))]),
    })
}

/// A layer that compares its section with a setting of chassis: the timeout in milliseconds is 1000 more.
fn watching(seen: &Arc<Seen>) -> impl FnOnce(ChassisBuilder) -> ChassisBuilder + 'static {
    let seen = seen.clone();
    let audit = move |call: Invocation, next: Next| {
        let audit = call.policy().extension::<Audit>().expect("it was registered");
        let timeout = call.policy().timeout().unwrap_or_default();
        seen.calls.fetch_add(1, Relaxed);
        seen.last.store(audit.number, Relaxed);
        if timeout != Duration::from_millis(1_000 + audit.number) {
            seen.torn.fetch_add(1, Relaxed);
        }
        async move { next.run(call).await }
    };
    move |builder| {
        let builder = builder.section(Section::<Audit>::new("x-audit")).section(shop());
        builder.layer(Stage::Call, "audit", from_fn(audit))
    }
}

fn settings(number: u64) -> String {
    format!(
        "x-audit: {{ number: {number} }}\nshop: {{ discount: {} }}\noutbound: {{ defaults: {{ timeout: {}ms }} }}\n",
        number % 100,
        1_000 + number
    )
}

both! {
    async fn a_section_is_of_the_version_of_the_rules(wire: Wire) {
        let mesh = Mesh::new();
        let _stock = mesh.start("stock", "stock-1").await;
        let seen = Arc::<Seen>::default();
        let caller = mesh.server("tests", "tests").config(&settings(1)).with(watching(&seen)).caller().await;
        let shop = caller.app.settings::<Shop>("shop").unwrap();
        let load = tokio::spawn({
            let caller = caller.clone();
            async move {
                loop {
                    assert!(caller.call(wire, Ask::to("stock")).await.instance.is_some());
                    tokio::time::sleep(Duration::from_millis(1)).await; // the paused clock moves on
                }
            }
        });
        for number in 2..40 {
            let before = seen.calls.load(Relaxed);
            caller.push(&settings(number)).await.applied();
            assert_eq!(u64::from(shop.get().discount), number % 100);
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(seen.calls.load(Relaxed) > before + 5, "calls go on");
            assert_eq!(seen.last.load(Relaxed), number);
        }
        load.abort();
        assert_eq!(seen.torn.load(Relaxed), 0, "of {} calls", seen.calls.load(Relaxed));
    }
}

both! {
    /// If any section is invalid, no setting of that version takes effect.
    async fn a_section_that_is_refused_keeps_the_version_in_force(wire: Wire) {
        let mesh = Mesh::new();
        let _stock = mesh.start("stock", "stock-1").await;
        let seen = Arc::<Seen>::default();
        let caller = mesh.server("tests", "tests").config(&settings(1)).with(watching(&seen)).caller().await;
        let shop = caller.app.settings::<Shop>("shop").unwrap();
        let version = caller.runtime().policies().get().version();
        for (wrong, place, why) in [
            ("x-audit: { number: 2 }\nshop: { discount: 101 }", "pushed:2:19  shop.discount", "101 percent is more"),
            ("x-audit: { number: two }\nshop: {}", "pushed:1:20  x-audit.number", "a whole number belongs here"),
            ("x-audit: { nmuber: 2 }", "pushed:1:12  x-audit.nmuber", "did you mean `number`?"),
            ("x-audit: [2]", "pushed:1:10  x-audit", "a map belongs here, not a list"),
        ] {
            let wrong = format!("{wrong}\noutbound: {{ defaults: {{ timeout: 9s }} }}\n");
            let Pushed::Refused(problems) = caller.push(&wrong).await else { panic!("{wrong} was accepted") };
            assert!(problems[0].contains(place) && problems[0].contains(why), "{problems:?}");
            assert!(caller.call(wire, Ask::to("stock")).await.instance.is_some());
            assert_eq!((shop.get().discount, seen.last.load(Relaxed)), (1, 1));
        }
        // A valid section has no effect either if another table is invalid.
        let Pushed::Refused(_) = caller.push("shop: { discount: 7 }\noutbound: { defaults: { timeuot: 1s } }").await
        else { panic!("it was accepted") };
        assert_eq!((shop.get().discount, seen.torn.load(Relaxed)), (1, 0));
        assert_eq!(caller.runtime().policies().get().version(), version);
    }
}

/// Counts the calls that pass it.
fn counting(
    count: &Arc<AtomicUsize>,
) -> impl Fn(Invocation, Next) -> chassis::BoxFuture<'static, Result<Reply, Error>> + use<> {
    let count = count.clone();
    move |call, next| {
        count.fetch_add(1, Relaxed);
        next.run(call)
    }
}

both! {
    async fn a_layer_is_switched_off_and_on_while_calls_go_on(wire: Wire) {
        let mesh = Mesh::new();
        let [out, inward] = [Arc::<AtomicUsize>::default(), Arc::default()];
        let of_server = from_fn(counting(&inward));
        let plan = mesh.server("stock", "stock-1");
        let stock = plan.with(|builder| builder.layer(Stage::Handler, "gate", of_server)).start().await;
        let of_client = from_fn(counting(&out));
        let plan = mesh.server("tests", "tests");
        let caller = plan.with(|builder| builder.layer(Stage::Call, "audit", of_client)).caller().await;
        let passes = async || {
            let before = (out.load(Relaxed), inward.load(Relaxed));
            assert!(caller.call(wire, Ask::to("stock")).await.instance.is_some());
            (out.load(Relaxed) - before.0, inward.load(Relaxed) - before.1)
        };
        assert_eq!(passes().await, (1, 1));
        for (settings, expected) in [
            ("layers: { audit: off }", 0),
            ("layers: { audit: on }", 1),
            ("outbound: { services: { stock: { layers: { audit: off } } } }", 0),
            ("outbound: { services: { other: { layers: { audit: off } } } }", 1),
            ("layers: { audit: off }\noutbound: { services: { stock: { layers: { audit: on } } } }", 1),
            ("outbound: { defaults: { layers: { audit: off } } }", 0),
            ("shutdown: { delay: 0s }", 1),
        ] {
            caller.push(settings).await.applied();
            assert_eq!(passes().await.0, expected, "{settings}");
        }
        let (here, other) = match wire { Wire::Grpc => ("grpc", "http"), Wire::Rest => ("http", "grpc") };
        let operation = wire.operation(Ask::to("stock").op);
        for (settings, expected) in [
            ("inbound: { layers: { gate: off } }".to_owned(), 0),
            (format!("inbound: {{ listeners: {{ {here}: {{ layers: {{ gate: off }} }} }} }}"), 0),
            (format!("inbound: {{ listeners: {{ {other}: {{ layers: {{ gate: off }} }} }} }}"), 1),
            (format!("layers: {{ gate: off }}\ninbound: {{ listeners: {{ {here}: {{ layers: {{ gate: on }} }} }} }}"), 1),
            (format!("inbound: {{ operations: {{ '{operation}': {{ layers: {{ gate: off }} }} }} }}"), 0),
            ("shutdown: { delay: 0s }".to_owned(), 1),
        ] {
            stock.push(&settings).await.applied();
            assert_eq!(passes().await.1, expected, "{settings}");
        }
        let Pushed::Refused(why) = caller.push("layers: { adit: off }").await else { panic!("there is no such") };
        assert!(why[0].contains("pushed:1:11  layers.adit"), "{why:?}");
        assert!(why[0].contains("no layer of the program is called `adit`; did you mean `audit`?"), "{why:?}");
        let Pushed::Refused(why) = caller.push("layers: { audit: of }").await else { panic!("it is no word") };
        assert!(why[0].contains("`on` or `off` belongs here, not `of`"), "{why:?}");
        let wrong = "inbound: { listeners: { htpp: { layers: { gate: off } } } }";
        let Pushed::Refused(why) = stock.push(wrong).await else { panic!("there is no such listener") };
        assert!(why[0].contains("did you mean `http`?"), "{why:?}");
    }
}

/// The chains and the inspection show a layer that is off, and where it is.
#[tokio::test(start_paused = true)]
async fn layers_that_are_off_are_shown_as_off() {
    let mesh = Mesh::new();
    let [audit, gate] =
        [Arc::<AtomicUsize>::default(), Arc::default()].map(|count| from_fn(counting(&count)));
    let plan = mesh.server("tests", "tests").with(|builder| {
        let builder = builder.layer(Stage::Call, "audit", audit);
        builder.layer(Stage::Handler.of("tests"), "gate", gate)
    });
    let caller = plan.caller().await;
    let brackets = |chain: &str| {
        let own = chain.split(" → ").filter(|layer| layer.starts_with('['));
        own.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let rows = || {
        let all = caller.runtime().inspect().layers.into_iter().map(|row| {
            let of = row.operation.or(row.listener).map(|of| format!(" {of}")).unwrap_or_default();
            format!("{} {}{of} {} {}", row.side, row.service, row.layer, if row.on { "on" } else { "off" })
        });
        all.filter(|row| !row.starts_with("client _OTHER")).collect::<Vec<_>>()
    };
    for (settings, stock, ledger, inward, expected) in [
        ("shutdown: { delay: 1s }", "[audit]", "[audit]", "[gate]", &[][..]),
        (
            "outbound: { services: { stock: { layers: { audit: off } } } }",
            "[audit: off]",
            "[audit]",
            "[gate]",
            &["client stock audit off"],
        ),
        (
            "outbound: { services: { stock: { operations: { a: { layers: { audit: off } } } } } }",
            "[audit]",
            "[audit]",
            "[gate]",
            &["client stock a audit off"],
        ),
        (
            "layers: { gate: off, audit: off }\noutbound: { defaults: { layers: { audit: on } } }",
            "[audit]",
            "[audit]",
            "[gate: off]",
            &["server tests audit off", "server tests gate off"],
        ),
        (
            "inbound: { listeners: { http: { layers: { gate: off } } } }",
            "[audit]",
            "[audit]",
            "[gate: off at http]",
            &["server tests http gate off"],
        ),
        (
            "inbound: { layers: { gate: off }, listeners: { http: { layers: { gate: on } } } }",
            "[audit]",
            "[audit]",
            "[gate: off, on at http]",
            &["server tests gate off", "server tests http gate on"],
        ),
    ] {
        caller.push(settings).await.applied();
        let chains =
            ["stock", "ledger"].map(|service| caller.app.chains(service).map(|chain| brackets(&chain)));
        assert_eq!(chains, [[stock, inward], [ledger, inward]], "{settings}");
        assert_eq!(rows(), expected, "{settings}");
    }
}

#[tokio::test(start_paused = true)]
async fn sections_are_compiled_and_found_by_name_and_type() {
    let builder = || {
        Chassis::builder("tests")
            .without_file()
            .environment(Environment::default())
            .settings(serde_json::json!({ "registry": { "kind": "memory" }, "x-words": "a b", "layers": {} }))
    };
    let words = || {
        Section::compiled("x-words", |text: String| Ok(Words(text.split(' ').map(str::to_owned).collect())))
    };
    let app = builder().section(words()).section(shop()).build().await.unwrap();
    assert_eq!(app.settings::<Words>("x-words").unwrap().get().0, ["a", "b"]);
    assert_eq!(app.settings::<Shop>("shop").unwrap().get().discount, 0, "it is not written");
    let Err(StartError::Settings(why)) = app.settings::<Shop>("shpo") else { panic!("there is none") };
    assert!(
        why.contains("no section `shpo`") && why.contains("there are: client, server, admin, x-words, shop"),
        "{why}"
    );

    let Err(StartError::Settings(why)) = builder().section(shop()).section(shop()).build().await else {
        panic!("two of a name")
    };
    assert_eq!(why, "two sections are called `shop`");
}

/// The handle on a section, for code that is registered before the service is built.
type Late = Arc<OnceLock<LiveSection<Shop>>>;

both! {
    /// A handler, the stream of its answer and tasks that it spawns in its context read the version that the call has,
    /// also after a newer one was put in force.
    async fn a_handler_reads_the_version_of_its_call(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let plan = mesh.server("stock", "stock-1").with(|builder| builder.section(shop()));
            let stock = plan.config("shop: { discount: 1 }").start().await;
            let caller = mesh.caller("").await;
            let shop = stock.running.settings::<Shop>("shop").unwrap();
            let (gate, seen) = (Gate::shut(), Arc::new(Mutex::new(Vec::new())));
            let act = {
                let (shop, gate, seen) = (shop.clone(), gate.clone(), seen.clone());
                Act::Run(Arc::new(move |_, _| {
                    let (shop, gate, seen) = (shop.clone(), gate.clone(), seen.clone());
                    Box::pin(async move {
                        gate.passed().await;
                        let read = |shop: LiveSection<Shop>| async move { shop.get().discount };
                        let taken_along = tokio::spawn(Context::current().scope(read(shop.clone())));
                        let apart = tokio::spawn(read(shop.clone()));
                        let values = [taken_along.await.unwrap(), apart.await.unwrap(), shop.newest().discount];
                        seen.lock().unwrap().push((shop.get().discount, values));
                        Ok(())
                    })
                }))
            };
            stock.does_next([act.clone()]);
            let stream = Stream::open(&caller, &[&stock], wire, kind, Ask::to("stock")).await.unwrap();
            stock.push("shop: { discount: 2 }").await.applied();
            gate.open();
            stream.finish().await.unwrap_or_else(|why| panic!("{kind:?}: {why:?}"));
            stock.does_next([act]);
            kind.whole(&caller, wire, Ask::to("stock"), 3).await.unwrap();
            assert_eq!(*seen.lock().unwrap(), [(1, [1, 2, 2]), (2, [2, 2, 2])], "{kind:?}");
            assert_eq!(shop.get().discount, 2);
        }
    }
}

/// The values that layers have read: their stage, the section of the policy, and the section by its handle.
type Reads = Arc<Mutex<Vec<(&'static str, u8, u8)>>>;

/// A layer that reads the section after the call, by its handle, and by the policy of the call.
fn reading<E: CallError>(
    stage: &'static str,
    shop: &Late,
    seen: &Reads,
) -> impl Fn(Invocation, Next<E>) -> chassis::BoxFuture<'static, Result<Reply, E>> + use<E> {
    let (shop, seen) = (shop.clone(), seen.clone());
    move |call, next| {
        let (shop, seen) = (shop.get().cloned().expect("it is set before the first call"), seen.clone());
        let (of_call, at_once) = (call.policy().extension::<Shop>().unwrap().discount, shop.get().discount);
        assert_eq!(of_call, at_once, "{stage}: before its future");
        Box::pin(async move {
            let reply = next.run(call).await;
            seen.lock().unwrap().push((stage, of_call, shop.get().discount));
            reply
        })
    }
}

both! {
    /// A layer reads the version of the call that it handles: of the outgoing one, also within a handler.
    async fn a_layer_reads_the_version_of_its_call(wire: Wire) {
        let (mesh, seen) = (Mesh::new(), Reads::default());
        let gate = Gate::shut();
        let ledger = mesh.start("ledger", "ledger-1").await;
        ledger.does_next([Act::Wait(gate.clone())]);
        let shop_of_stock = Late::default();
        let (late, all) = (shop_of_stock.clone(), seen.clone());
        let plan = mesh.server("stock", "stock-1").calls(&["ledger"]).with(move |builder| {
            builder
                .section(shop())
                .layer(Stage::ServerCall, "a", from_fn(reading("server", &late, &all)))
                .layer(Stage::Handler, "b", from_fn(reading("handler", &late, &all)))
                .layer(Stage::Call, "c", from_fn(reading("call", &late, &all)))
                .layer(Stage::Attempt, "d", from_fn(reading("attempt", &late, &all)))
                .layer(Stage::Node, "e", from_fn(reading("node", &late, &all)))
        });
        let stock = plan.config("shop: { discount: 1 }").start().await;
        shop_of_stock.set(stock.running.settings::<Shop>("shop").unwrap()).unwrap();
        let caller = mesh.caller("").await;
        let call = caller.spawn(wire, Ask::to("stock").via(&[(wire, "ledger")]));
        until("it is in the last handler", || ledger.executed() == 1).await;
        stock.push("shop: { discount: 2 }").await.applied();
        gate.open();
        assert!(call.await.unwrap().is_ok());
        let first: Vec<_> = std::mem::take(&mut *seen.lock().unwrap());
        let stages = ["node", "attempt", "call", "handler", "server"];
        assert_eq!(first, stages.map(|stage| (stage, 1, 1)));
        assert!(caller.call(wire, Ask::to("stock").via(&[(wire, "ledger")])).await.is_ok());
        assert_eq!(*seen.lock().unwrap(), stages.map(|stage| (stage, 2, 2)));
    }
}
