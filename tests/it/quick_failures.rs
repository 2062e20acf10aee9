//! One node of three that fails or refuses faster than the others answer.
use std::time::Duration;

use chassis::{Code, Event};

use crate::mesh::{Act, Ask, Mesh, Wire, both};

const CALLERS: usize = 64;
const CALLS: usize = 30;

/// Many callers with default settings, from the first call on; the bad node answers with `code` at once.
/// Returns the share of successful calls, the bad node's share of all, and the number of circuit changes.
async fn with_one_that_answers(wire: Wire, code: Code) -> (f64, f64, usize) {
    let mesh = Mesh::new();
    let mut good = Vec::new();
    for id in ["stock-1", "stock-2"] {
        let server = mesh.start("stock", id).await;
        server.does(Act::Delay(Duration::from_millis(20)));
        good.push(server);
    }
    let bad = mesh.start("stock", "stock-3").await;
    bad.does(Act::Fail(code));
    let caller = mesh.caller("").await;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let caller = caller.clone();
        running.spawn(async move { caller.calls(wire, CALLS, || Ask::to("stock").safe()).await });
    }
    let outcomes: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    let well = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as f64 / outcomes.len() as f64;
    let all: u64 = good.iter().map(|server| server.executed()).sum::<u64>() + bad.executed();
    let moved = |event: &Event| matches!(event, Event::CircuitMoved { .. });
    let events = caller.runtime().events().past();
    let moves = events.iter().filter(|(_, event)| moved(event)).count();
    (well, bad.executed() as f64 / all as f64, moves)
}

both! {
    async fn one_that_fails_is_passed_over(wire: Wire) {
        let (well, of_bad, moves) = with_one_that_answers(wire, Code::Unavailable).await;
        assert!(well >= 0.99 && of_bad < 0.1, "{well} went well, {of_bad} went to the bad one");
        assert_eq!(moves, 0, "its failures are its own");
    }
}

both! {
    async fn one_that_refuses_gets_no_more_than_its_share(wire: Wire) {
        for code in [Code::Unimplemented, Code::NotFound, Code::Unauthenticated, Code::ResourceExhausted] {
            let (well, of_bad, moves) = with_one_that_answers(wire, code).await;
            assert!(of_bad <= 0.5 && well >= 0.5, "{code}: {of_bad} went to the bad one");
            assert_eq!(moves, 0, "{code}");
        }
    }
}
