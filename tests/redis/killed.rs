//! The server is killed or frozen, and comes back: what it confirmed is handled, whatever was on its way.

use std::time::Duration;

use helixmq::{
    handler::Call,
    message::{Address, Outcome},
};

use crate::{
    server::Server,
    site::{Engine, Site, WORK},
    support::{
        eventually,
        ledger::{Publishing, send},
    },
};

/// Publishers and messages of each.
const PUBLISHERS: usize = 8;
const BATCHES: usize = 40;
const BATCH: usize = 10;
const TOTAL: usize = PUBLISHERS * BATCHES * BATCH;

/// Kills it, waits until the engine has noticed, and starts it again.
async fn kill_and_restart(server: &Server, engine: &Engine) {
    server.kill().await;
    let reason = engine.degraded().await;
    assert!(reason.contains("Redis"), "{reason}");
    server.up().await;
}

fn slowly(_: &Call<'_>) -> Outcome {
    std::thread::sleep(Duration::from_millis(1));
    Outcome::Done(Vec::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_in_the_middle_of_publishing_and_reading() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let engine = site.handling().await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), PUBLISHERS, BATCHES, BATCH);
    // Once with everything in flight, once more when it has just come back.
    for part in [TOTAL / 4, TOTAL / 2] {
        let half_way = async || (publishing.confirmed() >= part && !site.ledger.handled().is_empty()).then_some(());
        eventually("messages are on their way", half_way).await;
        kill_and_restart(&server, &engine).await;
    }
    let sent = publishing.end().await;
    assert_eq!(sent.len(), TOTAL);
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "a server that is killed is nobody's attempt: {dead:?}");
    assert!(site.ids(WORK).await.is_empty(), "what was handled is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_skipped_while_handlers_are_at_work() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let engine = site.engine(3, slowly).await;
    let sent = send(&engine.broker, &Address::queue(WORK), 2_000).await;
    for part in [300, 1_000] {
        let half_way = async || (site.ledger.handled().len() >= part).then_some(());
        eventually("some are handled", half_way).await;
        kill_and_restart(&server, &engine).await;
    }
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "a server that is killed is nobody's attempt: {dead:?}");
    // What was settled while it was away is not handled again without end: those that were out at a kill, at most once each.
    let again = site.ledger.calls().values().filter(|attempts| attempts.len() > 3).count();
    assert_eq!(again, 0, "handled more often than the server was killed");
}

/// It holds its connections and says nothing: longer than the engine believes it, and longer than a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_a_server_that_is_frozen() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let engine = site.engine(3, slowly).await;
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), PUBLISHERS, BATCHES, BATCH);
    let some = async || (publishing.confirmed() >= 200 && site.ledger.handled().len() >= 50).then_some(());
    eventually("messages are on their way", some).await;
    server.freeze();
    let reason = engine.degraded().await;
    assert!(reason.contains("Redis"), "{reason}");
    server.thaw();
    let sent = publishing.end().await;
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "a server that is frozen is nobody's attempt: {dead:?}");
}

/// Messages wait to be tried again while the server is killed: each is tried as often as it may be, and not more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_outlive_the_server() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let delay = Some(Duration::from_secs(2));
    let retry = move |_: &Call<'_>| Outcome::Retry { reason: "not yet".into(), delay };
    let engine = site.engine(3, retry).await;
    let sent = send(&engine.broker, &Address::queue(WORK), 40).await;
    let (raw, due) = (site.raw().await, format!("ZCARD {}queue:{{{WORK}}}:due", site.settings.key_prefix));
    eventually("they wait", async || (raw.ask::<u64>(&due).await == 40).then_some(())).await;
    kill_and_restart(&server, &engine).await;
    eventually("all are dead", async || (site.ids(crate::site::DEAD).await == sent).then_some(())).await;
    engine.stop().await;
    site.accounts(&sent, 3).await;
    for (id, attempts) in site.ledger.calls() {
        assert_eq!(attempts, [1, 2, 3], "{id}");
    }
}

/// A message that waits for its time is there after the server was killed, and comes when its time has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_outlives_the_server() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let engine = site.handling().await;
    let mut message = crate::support::ledger::message(1);
    let due = helixmq::message::now_ms() + 3_000;
    message.not_before = Some(due);
    let id = message.id.to_string();
    engine.broker.publish(&Address::queue(WORK), vec![std::sync::Arc::new(message)]).await.expect("published");
    kill_and_restart(&server, &engine).await;
    eventually("it is handled", async || site.ledger.handled().contains(&id).then_some(())).await;
    assert!(helixmq::message::now_ms() >= due, "before its time");
    engine.stop().await;
}
