//! Another server takes over: by an operator who moves it, or because the first one is gone. What was confirmed is handled.

use helixmq::{
    handler::Call,
    message::{Address, Outcome},
};
use redis::Value;

use crate::{
    raw::Raw,
    server::Server,
    site::{Site, WORK, host},
    support::{
        eventually,
        ledger::{Publishing, send},
    },
};

const PUBLISHERS: usize = 8;
const BATCHES: usize = 40;
const BATCH: usize = 10;

/// A server and a copy of it, which has caught up.
async fn pair() -> (Server, Server) {
    let primary = Server::own().await;
    let replica = Server::own_with(&format!("replicaof 127.0.0.1 {}", primary.plain().port())).await;
    let raw = Raw::connect(&replica).await;
    let is_up = async || (raw.info("master_link_status").await == "up").then_some(());
    eventually("the replica has what there is", is_up).await;
    (primary, replica)
}

/// A site that knows both.
fn site(primary: &Server, replica: &Server) -> Site {
    let mut site = Site::new(primary);
    site.settings.hosts = vec![host(primary.plain()), host(replica.plain())];
    site
}

fn slowly(_: &Call<'_>) -> Outcome {
    std::thread::sleep(std::time::Duration::from_micros(500));
    Outcome::Done(Vec::new())
}

/// `FAILOVER`: the first one becomes the copy, in the middle of everything, and answers READONLY from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_when_the_servers_change_places() {
    let (primary, replica) = pair().await;
    let mut site = site(&primary, &replica);
    let engine = site.engine(3, slowly).await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), PUBLISHERS, BATCHES, BATCH);
    let total = PUBLISHERS * BATCHES * BATCH;
    let mut servers = [&primary, &replica];
    for part in [total / 4, total / 2] {
        let some = async || (publishing.confirmed() >= part && !site.ledger.handled().is_empty()).then_some(());
        eventually("messages are on their way", some).await;
        let [from, to] = servers.map(|server| server.plain().port());
        let raw = Raw::connect(servers[0]).await;
        let _: Value = raw.ask(&format!("FAILOVER TO 127.0.0.1 {to}")).await;
        let role = async || (raw.info("role").await == "slave").then_some(());
        eventually(&format!("{from} copies {to}"), role).await;
        servers.reverse();
    }
    let sent = publishing.end().await;
    site.server = servers[0].clone();
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "servers that change places are nobody's attempt: {dead:?}");
}

/// The first one is gone for good, and an operator promotes the other: with `min_replicas: 1` that one has all that was
/// confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_has_confirmed_outlives_the_server() {
    let (primary, replica) = pair().await;
    let mut site = site(&primary, &replica);
    site.settings.min_replicas = 1;
    let engine = site.engine(3, slowly).await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), PUBLISHERS, BATCHES, BATCH);
    let some = async || (publishing.confirmed() >= 800 && !site.ledger.handled().is_empty()).then_some(());
    eventually("messages are on their way", some).await;
    primary.kill().await;
    engine.degraded().await;
    let raw = Raw::connect(&replica).await;
    // Nobody else copies it, so publishes would wait for a second one.
    let third = Server::own_with(&format!("replicaof 127.0.0.1 {}", replica.plain().port())).await;
    let _: Value = raw.ask("REPLICAOF NO ONE").await;
    let sent = publishing.end().await;
    site.server = replica.clone();
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "{dead:?}");
    drop(third);
}

/// A replica that is too far away is said to the publisher, who may have it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_too_few_have_is_not_confirmed() {
    let (primary, replica) = pair().await;
    let mut site = Site::new(&primary);
    site.settings.min_replicas = 1;
    site.settings.publish_timeout = std::time::Duration::from_millis(500);
    let broker = site.broker_with_queues().await;
    send(&broker, &Address::queue(WORK), 1).await;
    replica.freeze();
    let message = std::sync::Arc::new(crate::support::ledger::message(2));
    let failed = broker.publish(&Address::queue(WORK), vec![message]).await.expect_err("one has it");
    let text = failed.to_string();
    assert!(failed.0[0].1.is_retryable() && text.contains("replica"), "{text}");
    replica.thaw();
    send(&broker, &Address::queue(WORK), 1).await;
    broker.close().await;
}
