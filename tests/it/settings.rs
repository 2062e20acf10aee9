//! Settings that reach their mechanism, and those that are refused at the start.
use chassis::StartError;

use crate::mesh::{Ask, Mesh, Wire};

#[tokio::test(start_paused = true)]
async fn a_name_of_listen_behind_which_nothing_is_served_is_refused() {
    let app = chassis::Chassis::builder("stock")
        .without_file()
        .settings(
            serde_json::json!({ "registry": { "kind": "memory" }, "listen": { "htpp": "127.0.0.1:0" } }),
        )
        .build()
        .await
        .expect("a router may be served there yet");
    let Err(StartError::Settings(why)) = app.serve_http(axum::Router::new()).start().await else {
        panic!("nothing is served at `htpp`");
    };
    assert!(why.contains("listen.htpp") && why.contains("did you mean `http`?"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn answers_are_read_up_to_the_clients_max_body() {
    let mesh = Mesh::new();
    let _stock = mesh.start("stock", "stock-1").await;
    let read = async |config: &str| {
        let caller = mesh.caller(config).await;
        caller.call(Wire::Rest, Ask::to("stock")).await
    };
    assert!(read("client: { max_body: 64KiB }").await.is_ok());
    let refused = read("client: { max_body: 8B }").await;
    assert!(refused.message.contains("longer than 8 bytes"), "{refused:?}");
}
