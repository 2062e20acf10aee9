//! The contract of [`Contracts`].
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use crate::contracts::{
    Contract, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing, FILE_DESCRIPTOR_SET,
    MAX_CONTENT, MAX_CONTRACTS, OPENAPI_JSON, OPENAPI_YAML,
};

/// The time limit of an answer: far more than any implementation needs.
const CAP: Duration = Duration::from_secs(30);

/// Checks what [`Contracts`] promises; panics with the name of a promise that is broken.
///
/// `make` returns an empty port with its default bounds that only the test writes to; it is called once for each promise.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{contracts::Contracts, testing::contract};
///
/// /// To be called by a test, with something like `async || Arc::new(MyContracts::new()) as _`.
/// async fn keeps_the_contract(make: impl AsyncFn() -> Arc<dyn Contracts>) {
///     contract::contracts::contracts(make).await;
/// }
/// ```
pub async fn contracts<F>(make: F)
where
    F: AsyncFn() -> Arc<dyn Contracts>,
{
    an_unknown_owner_has_none(make().await).await;
    a_contract_comes_back_as_it_was_published(make().await).await;
    an_etag_changes_with_the_content(make().await).await;
    an_existing_one_is_replaced_or_kept(make().await).await;
    owners_do_not_mix(make().await).await;
    versions_are_listed(make().await).await;
    a_bad_one_is_refused_and_nothing_is_published(make().await).await;
    the_largest_are_taken(make().await).await;
    publishers_at_once_lose_nothing(make().await).await;
}

type Port = Arc<dyn Contracts>;

fn stock() -> ContractOwner {
    ContractOwner::new("stock", "1.4.0")
}

fn text(name: &str, content: &str) -> Contract {
    Contract::new(name, "text/plain", content.to_owned())
}

async fn bounded<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(CAP, answer).await.unwrap_or_else(|_| panic!("no answer in {CAP:?}: {what}"))
}

async fn publish(port: &Port, of: &ContractOwner, contracts: &[Contract]) {
    let published = bounded("publish", port.publish(of, contracts, Existing::Replace)).await;
    published.unwrap_or_else(|e| panic!("sound contracts are published, but: {e}"));
}

async fn fetch(port: &Port, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
    bounded("fetch", port.fetch(of, name)).await
}

/// The etags by name.
async fn list(port: &Port, of: &ContractOwner) -> BTreeMap<String, String> {
    let listed =
        bounded("list", port.list(of)).await.unwrap_or_else(|e| panic!("contracts are listed, but: {e}"));
    let names: Vec<_> = listed.iter().map(|entry| entry.name.clone()).collect();
    assert!(names.is_sorted_by(|a, b| a < b), "contracts are listed once, in the order of names: {names:?}");
    listed.into_iter().map(|entry| (entry.name, entry.etag)).collect()
}

async fn names(port: &Port, of: &ContractOwner) -> Vec<String> {
    list(port, of).await.into_keys().collect()
}

async fn an_unknown_owner_has_none(port: Port) {
    assert!(!port.name().is_empty(), "a port has a name");
    assert_eq!(names(&port, &stock()).await, [""; 0], "an unknown owner has no contracts");
    let versions = bounded("versions", port.versions("stock", "")).await.expect("versions are listed");
    assert_eq!(versions, [""; 0], "an unknown service has no versions");
    for _ in 0..2 {
        let error = fetch(&port, &stock(), "api").await.expect_err("an unknown contract is an error");
        assert_eq!(error.kind(), ContractsErrorKind::NotFound, "an unknown contract: {error}");
        publish(&port, &stock(), &[text("other", "x")]).await;
    }
}

async fn a_contract_comes_back_as_it_was_published(port: Port) {
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    let all = [
        Contract::new("descriptors", FILE_DESCRIPTOR_SET, bytes),
        Contract::new("in-json", OPENAPI_JSON, "{ \"openapi\": \"3.1.0\" }"),
        Contract::new("in-yaml", OPENAPI_YAML, "openapi: 3.1.0\r\ninfo:\n  title: \"π\" \u{1F600}\n\n"),
        Contract::new("other", "text/plain; charset=ascii", "data:text/plain,eA=="),
        Contract::new("n".repeat(80), format!("a/{}", "b".repeat(126)), "\0"),
    ];
    publish(&port, &stock(), &all).await;
    for contract in &all {
        let fetched = fetch(&port, &stock(), &contract.name).await.expect("a published contract is fetched");
        assert_eq!(fetched, *contract, "a contract comes back as it was published");
    }
    assert_eq!(names(&port, &stock()).await.len(), all.len(), "all are listed");
}

async fn an_etag_changes_with_the_content(port: Port) {
    publish(&port, &stock(), &[text("a", "1"), text("b", "1")]).await;
    let first = list(&port, &stock()).await;
    assert!(!first["a"].is_empty(), "an entry has an etag");
    publish(&port, &stock(), &[text("a", "1"), text("b", "2")]).await;
    let second = list(&port, &stock()).await;
    assert_eq!(first["a"], second["a"], "an unchanged contract keeps its etag");
    assert_ne!(first["b"], second["b"], "a changed contract has another etag");
}

async fn an_existing_one_is_replaced_or_kept(port: Port) {
    publish(&port, &stock(), &[text("a", "1"), text("b", "1")]).await;
    let more = [text("a", "2"), text("c", "2")];
    let kept = bounded("publish", port.publish(&stock(), &more, Existing::Keep)).await;
    kept.expect("a contract that is there is no error");
    let content = async |name: &str| {
        let contract = fetch(&port, &stock(), name).await.expect("it is published");
        String::from_utf8_lossy(&contract.content).into_owned()
    };
    assert_eq!(content("a").await, "1", "`Keep` does not replace a contract");
    assert_eq!(content("c").await, "2", "`Keep` publishes a missing contract");
    publish(&port, &stock(), &more).await;
    assert_eq!(content("a").await, "2", "`Replace` replaces a contract");
    assert_eq!(names(&port, &stock()).await, ["a", "b", "c"], "contracts of other names stay");
    assert_eq!(content("b").await, "1", "contracts of other names stay");
    let typed = Contract { media_type: "text/other".to_owned(), ..text("b", "1") };
    publish(&port, &stock(), std::slice::from_ref(&typed)).await;
    let fetched = fetch(&port, &stock(), "b").await.expect("it is published");
    assert_eq!(fetched, typed, "`Replace` replaces the media type too");
}

async fn owners_do_not_mix(port: Port) {
    let mut owners = Vec::new();
    for service in
        ["stock", "stock2", "../stock", "..", "a b", "%2e", "naïve 名", "\"'\\", "new\nline", "a/b?c#d"]
    {
        for version in ["1", "2.0", ""] {
            for environment in ["", "staging", "π"] {
                owners.push(ContractOwner::new(service, version).in_environment(environment));
            }
        }
    }
    for (n, owner) in owners.iter().enumerate() {
        publish(&port, owner, &[text("api", &n.to_string())]).await;
    }
    for (n, owner) in owners.iter().enumerate() {
        let fetched = fetch(&port, owner, "api").await.unwrap_or_else(|e| panic!("{owner:?}: {e}"));
        assert_eq!(fetched.content, n.to_string(), "owners do not mix: {owner:?}");
        assert_eq!(names(&port, owner).await, ["api"], "owners do not mix: {owner:?}");
    }
}

async fn versions_are_listed(port: Port) {
    for (version, environment) in [("1.4.0", ""), ("2", ""), ("2", "staging"), ("2.10.3", "staging")] {
        let owner = ContractOwner::new("stock", version).in_environment(environment);
        publish(&port, &owner, &[text("a", "1"), text("b", "1")]).await;
    }
    publish(&port, &ContractOwner::new("billing", "7"), &[text("a", "1")]).await;
    for (environment, expected) in [("", &["1.4.0", "2"][..]), ("staging", &["2", "2.10.3"]), ("other", &[])]
    {
        let mut versions =
            bounded("versions", port.versions("stock", environment)).await.expect("they are listed");
        versions.sort();
        assert_eq!(versions, expected, "the versions of an environment: `{environment}`");
    }
}

async fn a_bad_one_is_refused_and_nothing_is_published(port: Port) {
    use ContractsErrorKind::{Invalid, TooLarge};
    let long = Contract::new("long", "text/plain", vec![b'x'; MAX_CONTENT + 1]);
    for (bad, kind) in [
        (long, TooLarge),
        (text("empty", ""), Invalid),
        (text("", "x"), Invalid),
        (text("../up", "x"), Invalid),
        (text("good", "twice"), Invalid),
        (Contract { media_type: "none\r\nx: y".to_owned(), ..text("a", "x") }, Invalid),
    ] {
        let name = bad.name.clone();
        for all in [[text("good", "x"), bad.clone()], [bad.clone(), text("good", "x")]] {
            let refused = bounded("publish", port.publish(&stock(), &all, Existing::Replace)).await;
            let error = refused.expect_err(&format!("a bad contract is refused: `{name}`"));
            assert_eq!(error.kind(), kind, "a bad contract is refused: {error}");
        }
    }
    let many: Vec<_> = (0..=MAX_CONTRACTS).map(|n| text(&n.to_string(), "x")).collect();
    assert!(port.publish(&stock(), &many, Existing::Replace).await.is_err(), "too many are refused");
    let unnamed = ContractOwner::new("", "1");
    assert!(
        port.publish(&unnamed, &[text("a", "x")], Existing::Replace).await.is_err(),
        "an owner has a service"
    );
    assert_eq!(names(&port, &stock()).await, [""; 0], "nothing is published beside a bad contract");
    for odd in ["", "../up", "a/b", "a\r\nb"] {
        let error = fetch(&port, &stock(), odd).await.expect_err("an odd name is an error");
        let kind = error.kind();
        assert!(matches!(kind, ContractsErrorKind::NotFound | Invalid), "`{odd:?}` is no contract: {error}");
    }
}

async fn the_largest_are_taken(port: Port) {
    // Bytes that are no text.
    let large = Contract::new("large", FILE_DESCRIPTOR_SET, vec![0xff; MAX_CONTENT]);
    publish(&port, &stock(), std::slice::from_ref(&large)).await;
    let fetched = fetch(&port, &stock(), "large").await.expect("the largest contract is fetched");
    assert!(fetched == large, "the largest contract comes back as it was published");
    let many: Vec<_> = (0..MAX_CONTRACTS - 1).map(|n| text(&format!("n{n}"), "x")).collect();
    publish(&port, &stock(), &many).await;
    assert_eq!(names(&port, &stock()).await.len(), MAX_CONTRACTS, "as many as allowed are taken");
}

async fn publishers_at_once_lose_nothing(port: Port) {
    let mut publishers = JoinSet::new();
    for n in 0..8 {
        let port = port.clone();
        publishers.spawn(async move {
            let shared = text("shared", &n.to_string().repeat(10_000));
            for _ in 0..3 {
                publish(&port, &stock(), &[text(&format!("own-{n}"), "x"), shared.clone()]).await;
            }
        });
    }
    while let Some(ended) = publishers.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    assert_eq!(names(&port, &stock()).await.len(), 9, "publishers at once lose nothing");
    let shared = fetch(&port, &stock(), "shared").await.expect("it is published").content;
    let is_whole = shared.len() == 10_000 && shared.iter().all(|byte| *byte == shared[0]);
    assert!(is_whole, "of two publishers at once one wins, whole");
}
