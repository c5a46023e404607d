//! The server is killed, and comes back: what it confirmed is handled, whatever was on its way.

use helixmq::{
    broker::rabbitmq::topology::QueueKind::{self, Classic, Quorum},
    message::Outcome,
};

use crate::{
    ledger::Publishing,
    server::Server,
    site::{DEAD, Site, WORK},
    support::eventually,
};

/// Publishers and messages of each.
const PUBLISHERS: usize = 16;
const BATCHES: usize = 20;
const BATCH: usize = 10;

/// Kills it once with publishes and deliveries in flight, once more when it has just come back.
async fn loses_nothing(kind: QueueKind) {
    let server = Server::own().await;
    let site = Site::new(&server, kind).await;
    let engine = site.handling().await;
    if kind == Quorum {
        site.vhost.remembers(WORK).await;
        site.vhost.remembers(DEAD).await;
    }
    let publishing = Publishing::start(&engine.broker, WORK, PUBLISHERS, BATCHES, BATCH);
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

/// Messages wait to be tried again while the server is killed.
async fn retries_outlive_the_server(kind: QueueKind) {
    let server = Server::own().await;
    let site = Site::new(&server, kind).await;
    let retry = |_: &helixmq::handler::Call<'_>| Outcome::Retry {
        reason: "not yet".into(),
        delay: Some(std::time::Duration::from_secs(2)),
    };
    let engine = site.engine(3, retry).await;
    // So that the queue they wait in is there before it matters.
    let first = Publishing::start(&engine.broker, WORK, 1, 1, 1).end().await;
    eventually("it waits", async || (site.ledger.calls().len() == 1).then_some(())).await;
    site.vhost.remembers("helixagent.retry.2000").await;
    if kind == Quorum {
        site.vhost.remembers(WORK).await;
        site.vhost.remembers(DEAD).await;
    }
    let mut sent = Publishing::start(&engine.broker, WORK, 4, 1, 10).end().await;
    sent.extend(first);
    eventually("all were tried", async || (site.ledger.calls().len() == sent.len()).then_some(())).await;
    server.kill().await;
    server.up().await;
    let tried = async || site.ledger.calls().values().all(|attempts| attempts.len() >= 3).then_some(());
    eventually("all were tried as often as allowed", tried).await;
    let raw = site.raw().await;
    eventually("all are dead", async || (raw.depth(DEAD).await >= Some(41)).then_some(())).await;
    engine.stop().await;
    let calls = site.ledger.calls();
    let wrong: Vec<_> = calls.iter().filter(|(_, attempts)| **attempts != [1, 2, 3]).collect();
    assert!(wrong.is_empty(), "{} of {} were tried otherwise: {wrong:?}", wrong.len(), calls.len());
    let letters = site.accounts(&sent, 3).await;
    assert_eq!(letters.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_outlive_the_server_with_exact_attempts_on_classic_queues() {
    retries_outlive_the_server(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_outlive_the_server_with_exact_attempts_on_quorum_queues() {
    retries_outlive_the_server(Quorum).await;
}
