//! Connections that break at every byte: each statement of an error about its call must be true.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use chassis_core::protocol::Leaf;
use chassis_http::{ClientConfig, H1Leaf, H2Leaf, ServerConfig, connector::Fate};

use crate::support::{Client, World, echo};

/// More bytes than any of these conversations has, in either direction.
const FAR: usize = 700;

/// Breaks the connection after each number of bytes, in one direction and then in the other.
async fn cut_everywhere<L: Leaf>(make: impl Fn(&World) -> Client<L>) -> u32 {
    let (mut broken, mut answered, mut unsent) = (0, 0, 0);
    for at in 0..FAR {
        for to_server in [true, false] {
            let world = World::new();
            let executed = Arc::new(AtomicU64::new(0));
            let count = executed.clone();
            let service = echo(move |_, body| {
                count.fetch_add(u64::from(body == "one"), SeqCst);
                String::from("done")
            });
            let _server = world.serve(ServerConfig::default(), service);
            let at = Some(at);
            world.memory.faults("stock", move |_| match to_server {
                true => Fate::Cut { to_server: at, to_client: None },
                false => Fate::Cut { to_server: None, to_client: at },
            });
            let client = make(&world);
            client.leaf.wake();
            while client.link.connection() as u8 == 0 {
                client.link.changed().await;
            }
            // The wait is bounded, because some connections never get ready.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let outcome = client.post("/order", "one").await;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let executed = executed.load(SeqCst);
            assert!(executed <= 1, "executed {executed} times, cut at {at:?}");
            match outcome {
                Ok(answer) => {
                    assert_eq!((answer.as_str(), executed), ("200 done", 1));
                    answered += 1;
                }
                Err(error) if error.maybe_executed() => broken += 1,
                Err(error) => {
                    assert_eq!(
                        executed, 0,
                        "executed, but {error:?}, cut at {at:?} to the server: {to_server}"
                    );
                    unsent += 1;
                }
            }
        }
    }
    assert!(answered > 50 && broken > 50, "{answered} answered, {broken} broken, {unsent} unsent");
    unsent
}

#[tokio::test(start_paused = true)]
async fn http2_never_claims_too_much() {
    let unsent = cut_everywhere(|world| {
        world.leaf(
            |link, connector, config| H2Leaf::new(link, connector, config, true),
            ClientConfig::default(),
        )
    })
    .await;
    assert!(unsent > 0, "before the server's settings there is no connection");
}

#[tokio::test(start_paused = true)]
async fn http1_never_claims_too_much() {
    cut_everywhere(|world| world.leaf(H1Leaf::new, ClientConfig::default())).await;
}
