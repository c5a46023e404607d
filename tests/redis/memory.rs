//! The server has no memory left: publishers are told, nothing that it took is lost, and what waits is handled.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use helixmq::{
    broker::{Broker, BrokerStatus, ConnectionState, PublishError, PublishFailures},
    message::{Address, Message, Outcome, now_ms},
};
use redis::Value;

use crate::{
    server::Server,
    site::{Site, WORK},
    support::{eventually, ledger::Publishing, soon},
};

/// Room for messages that a server is left with.
const ROOM: u64 = 4 << 20;
const MESSAGE_BYTES: usize = 16 << 10;

/// Leaves the server with little more memory than it has taken.
async fn starve(site: &Site) {
    let raw = site.raw().await;
    let used: u64 = raw.info("used_memory").await.parse().unwrap();
    let _: Value = raw.ask(&format!("CONFIG SET maxmemory {}", used + ROOM)).await;
}

async fn feed(site: &Site) {
    let _: Value = site.raw().await.ask("CONFIG SET maxmemory 0").await;
}

/// Publishes until the server has no room. The ids of what it took, and why it took no more.
async fn fill(broker: &Arc<dyn Broker>) -> (BTreeSet<String>, PublishError) {
    let mut sent = BTreeSet::new();
    loop {
        let message = Arc::new(Message::new("test.large", vec![b'x'; MESSAGE_BYTES], now_ms()));
        let published = soon("an answer", broker.publish(&Address::queue(WORK), vec![Arc::clone(&message)])).await;
        match published {
            Ok(()) => sent.insert(message.id.to_string()),
            Err(PublishFailures(failures)) => {
                let (_, error) = failures.into_iter().next().expect("an error");
                return (sent, error);
            }
        };
        assert!((sent.len() * MESSAGE_BYTES) as u64 <= 2 * ROOM, "it takes more than it has room for");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_publishers_what_to_do_and_goes_on_when_there_is_room() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let broker = site.broker_with_queues().await;
    starve(&site).await;
    let (mut sent, error) = fill(&broker).await;
    assert!(matches!(error, PublishError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    assert!(error.is_retryable());
    assert_eq!(site.ids(WORK).await, sent, "what it took is there, and nothing else");
    // Whoever goes on trying gets through once there is room.
    let publishing = Publishing::start(&broker, &Address::queue(WORK), 2, 2, 5);
    feed(&site).await;
    sent.extend(publishing.end().await);
    let engine = site.handling().await;
    let dead = site.ends(engine, &sent).await;
    assert!(dead.is_empty(), "{dead:?}");
    soon("the broker closes", broker.close()).await;
}

/// Taking, settling and giving back need no memory that is not there, and what is settled makes room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_what_waits_without_memory_and_takes_messages_again() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let first_fails = move |call: &helixmq::handler::Call<'_>| {
        if !gate.load(Ordering::Relaxed) {
            return Outcome::Retry { reason: "not yet".into(), delay: Some(Duration::from_millis(200)) };
        }
        assert!(call.attempt <= 1_000);
        Outcome::Done(Vec::new())
    };
    let engine = site.engine(1_000, first_fails).await;
    starve(&site).await;
    let (mut sent, error) = fill(&engine.broker).await;
    assert!(error.to_string().contains("maxmemory"), "{error}");
    open.store(true, Ordering::Relaxed);
    assert!(site.ledger.handles(&sent).await.is_empty(), "what waits is handled");
    // Though nobody gave it more.
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), 2, 2, 5);
    sent.extend(publishing.end().await);
    assert!(site.ledger.handles(&sent).await.is_empty());
    engine.ready().await;
    engine.stop().await;
    site.accounts(&sent, 1_000).await;
    eventually("nothing is left", async || site.ids(WORK).await.is_empty().then_some(())).await;
}

/// People see it, whether anybody publishes or not. Nobody here waits for it to pass: what is handled makes room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_blocked_while_it_has_no_memory() {
    let server = Server::own().await;
    let site = Site::new(&server);
    let broker = site.broker_with_queues().await;
    let is = async |wanted: ConnectionState| {
        eventually(wanted.as_str(), async || (broker.systems()[0].state == wanted).then_some(())).await;
    };
    is(ConnectionState::Ready).await;
    let _: Value = site.raw().await.ask("CONFIG SET maxmemory 1").await;
    is(ConnectionState::Blocked).await;
    let BrokerStatus::Degraded { reason } = broker.status() else { panic!("{:?}", broker.status()) };
    assert!(reason.contains("maxmemory"), "{reason}");
    assert_eq!(broker.connection(), ConnectionState::Ready, "what holds back work");
    feed(&site).await;
    is(ConnectionState::Ready).await;
    assert_eq!(broker.status(), BrokerStatus::Ready);
    starve(&site).await;
    fill(&broker).await;
    is(ConnectionState::Blocked).await;
    feed(&site).await;
    is(ConnectionState::Ready).await;
    soon("the broker closes", broker.close()).await;
}
