//! The server is killed, and comes back: what it confirmed is handled, whatever was on its way.

use std::time::Duration;

use helixmq::{
    broker::rabbitmq::topology::QueueKind::{self, Classic, Quorum},
    handler::Call,
    message::{Address, Outcome},
};

use crate::{
    server::Server,
    site::{DEAD, Site, WORK, ids},
    support::{
        eventually,
        ledger::{Publishing, send},
    },
};

/// Where a message waits that is to come again in two seconds.
const RUNG: &str = "helixagent.retry.2000";

/// Publishers and messages of each.
const PUBLISHERS: usize = 16;
const BATCHES: usize = 20;
const BATCH: usize = 10;

/// Kills it once with publishes and deliveries in flight, once more when it has just come back.
async fn loses_nothing(kind: QueueKind) {
    let server = Server::own().await;
    let site = Site::new(&server, kind).await;
    let engine = site.handling().await;
    site.vhost.remembers(kind, WORK).await;
    site.vhost.remembers(kind, DEAD).await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), PUBLISHERS, BATCHES, BATCH);
    let total = PUBLISHERS * BATCHES * BATCH;
    for part in [total / 4, total / 2] {
        let half_way = async || (publishing.confirmed() >= part && !site.ledger.handled().is_empty()).then_some(());
        eventually("messages are on their way", half_way).await;
        server.kill().await;
        let reason = engine.degraded().await;
        assert!(reason.contains("away"), "{reason}");
        server.up().await;
    }
    let sent = publishing.end().await;
    assert_eq!(sent.len(), total);
    let letters = site.ends(engine, &sent).await;
    assert!(letters.is_empty(), "a server that is killed is nobody's attempt: {letters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_with_classic_queues() {
    loses_nothing(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_with_quorum_queues() {
    loses_nothing(Quorum).await;
}

/// Messages wait to be tried again while the server is killed. Of what it had heard just before, it may have forgotten that a
/// delivery was acknowledged, and delivers that again beside its copy: each goes on by its own count, and none is lost.
async fn retries_outlive_the_server(kind: QueueKind) {
    let server = Server::own().await;
    let site = Site::new(&server, kind).await;
    let delay = Some(Duration::from_secs(2));
    let retry = move |_: &Call<'_>| Outcome::Retry { reason: "not yet".into(), delay };
    let engine = site.engine(3, retry).await;
    // So that the queue they wait in is there before it matters.
    let mut sent = send(&engine.broker, &Address::queue(WORK), 1).await;
    eventually("it waits", async || (site.ledger.calls().len() == 1).then_some(())).await;
    site.vhost.remembers(Quorum, RUNG).await;
    site.vhost.remembers(kind, WORK).await;
    site.vhost.remembers(kind, DEAD).await;
    sent.extend(send(&engine.broker, &Address::queue(WORK), 40).await);
    let raw = site.raw().await;
    // They leave together when the first has waited for long enough.
    eventually("they wait", async || raw.depth(RUNG).await.filter(|depth| *depth >= 40)).await;
    server.kill().await;
    server.up().await;
    let is_over = async || site.ledger.calls().values().all(|attempts| attempts.contains(&3)).then_some(());
    eventually("all were tried as often as allowed", is_over).await;
    let dead = async || (engine.broker.stats().iter().map(|one| one.dead_lettered).sum::<u64>() >= 41).then_some(());
    eventually("all are dead", dead).await;
    engine.stop().await;
    for (id, attempts) in site.ledger.calls() {
        let each = [1, 2, 3].map(|attempt| attempts.iter().filter(|one| **one == attempt).count());
        assert!(each.iter().all(|times| (1..=2).contains(times)), "{id} was tried as {attempts:?}");
    }
    let letters = site.accounts(&sent, 3).await;
    assert_eq!(ids(&letters), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_outlive_the_server_on_classic_queues() {
    retries_outlive_the_server(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_outlive_the_server_on_quorum_queues() {
    retries_outlive_the_server(Quorum).await;
}
