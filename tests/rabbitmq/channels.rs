//! The server closes a channel or ends a consumer, and keeps the connection: reading goes on by itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use helixmq::{
    broker::rabbitmq::topology::{
        Argument, Queue,
        QueueKind::{self, Classic, Quorum},
    },
    handler::Call,
    message::{Address, Outcome, Settlement},
};

use crate::{
    raw::ack_frame,
    reader,
    server::Server,
    site::{Site, WORK},
    support::{
        eventually,
        ledger::{Publishing, send},
        proxy::Proxy,
        soon,
    },
};

fn done(_: &Call<'_>) -> Outcome {
    Outcome::Done(Vec::new())
}

/// A channel of its own for reading: closing it is felt by nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_on_after_the_server_closed_its_channel_for_an_unknown_delivery() {
    let server = Server::shared();
    let proxy = Proxy::start(server.amqp()).await;
    let site = Site::new(&server, Quorum).await.through(&proxy);
    let engine = site.handling().await;
    let mut sent = send(&engine.broker, &Address::queue(WORK), 10).await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    let (connections, vhost) = (proxy.accepted(), site.vhost.name());
    let consumer = async || server.management().consumers(vhost, WORK).first().copied();
    let (port, channel) = eventually("there is a consumer", consumer).await;
    proxy.slip_in(port, &ack_frame(channel, 999_999));
    let other = async || consumer().await.filter(|now| *now != (port, channel)).map(|(now, _)| now);
    let now = eventually("there is another consumer", other).await;
    sent.extend(send(&engine.broker, &Address::queue(WORK), 10).await);
    assert!(site.ends(engine, &sent).await.is_empty());
    assert_eq!((now, proxy.accepted()), (port, connections), "the connection is the same");
}

/// A delivery is held for longer than the server allows, and handed out again: by then it counts as tried.
async fn outlives_a_consumer_timeout(kind: QueueKind) {
    let server = Server::strict().await;
    let is_recent = server.management().version() >= (4, 3);
    if is_recent && kind == Classic {
        // There is no such timeout for them any more. Source: RabbitMQ 4.3.0, release notes, "Breaking Changes".
        return;
    }
    let site = Site::new(&server, kind).await;
    let held = Arc::new(AtomicBool::new(true));
    let holds = Arc::clone(&held);
    // As a handler does that takes too long, the first time.
    let engine = site
        .engine(5, move |call| {
            while call.attempt == 1 && holds.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            done(call)
        })
        .await;
    let sent = send(&engine.broker, &Address::queue(WORK), 1).await;
    let again = async || site.ledger.calls().values().any(|attempts| attempts.len() > 1).then_some(());
    eventually("the server gave it to the other lane", again).await;
    held.store(false, Ordering::SeqCst);
    let missing = site.ledger.handles(&sent).await;
    assert!(missing.is_empty());
    engine.stop().await;
    let calls: Vec<_> = site.ledger.calls().into_values().flatten().collect();
    // From 4.3 on the queue takes it back before the channel is closed, may give it to the same consumer once more, and counts
    // that as well.
    let again = if is_recent { 2..=3 } else { 2..=2 };
    assert!(calls[0] == 1 && again.contains(&calls[1]), "{calls:?}");
    assert!(site.accounts(&sent, 5).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counts_what_outlived_the_consumer_timeout_on_classic_queues() {
    outlives_a_consumer_timeout(Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counts_what_outlived_the_consumer_timeout_on_quorum_queues() {
    outlives_a_consumer_timeout(Quorum).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn makes_a_queue_again_that_somebody_deleted_and_reads_on() {
    let server = Server::shared();
    for kind in [Classic, Quorum] {
        let site = Site::new(&server, kind).await;
        let engine = site.handling().await;
        let mut sent = send(&engine.broker, &Address::queue(WORK), 20).await;
        assert!(site.ledger.handles(&sent).await.is_empty());
        let raw = site.raw().await;
        raw.delete(WORK).await;
        eventually("it is there again", async || raw.depth(WORK).await).await;
        sent.extend(send(&engine.broker, &Address::queue(WORK), 20).await);
        assert!(site.ends(engine, &sent).await.is_empty(), "{kind:?}");
    }
}

/// Nothing that the engine made: it cannot make it again, and waits until somebody does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_a_queue_of_somebody_else_again_once_it_is_there_again() {
    let server = Server::shared();
    let site = Site::new(&server, Quorum).await;
    let raw = site.raw().await;
    raw.queue("theirs", "classic", &[]).await;
    let broker = site.broker().await;
    let mut subscription = reader::subscribe(&broker, "theirs").await;
    raw.publish("theirs", b"one", Default::default()).await;
    let one = reader::next(&mut subscription).await;
    assert_eq!(&*one.as_slice()[0].message.payload, b"one");
    raw.delete("theirs").await;
    // Too late, and no harm.
    one.settle(vec![Settlement::Accept]).await.ok();
    let reading = async {
        let two = reader::next(&mut subscription).await;
        let payload = two.as_slice()[0].message.payload.clone();
        two.settle(vec![Settlement::Accept]).await.expect("settled");
        payload
    };
    let making = async {
        raw.queue("theirs", "quorum", &[]).await;
        raw.publish("theirs", b"two", Default::default()).await;
    };
    let (payload, ()) = soon("the second", async { tokio::join!(reading, making) }).await;
    assert_eq!(&*payload, b"two");
    soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_a_queue_that_somebody_has_for_himself() {
    let server = Server::shared();
    let site = Site::new(&server, Classic).await;
    let broker = site.broker_with_queues().await;
    let raw = site.raw().await;
    let (channel, mut theirs) = raw.consume(WORK, true, 100).await;
    let engine = site.engine_on(broker, 3, done).await;
    let sent = send(&engine.broker, &Address::queue(WORK), 10).await;
    for _ in 0..10 {
        soon("a delivery", theirs.next()).await.expect("a consumer").expect("a delivery");
    }
    assert!(site.ledger.calls().is_empty());
    drop(theirs);
    channel.close(200, "".into()).await.expect("closed");
    assert!(site.ends(engine, &sent).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_over_from_a_single_active_consumer_that_stops() {
    let server = Server::shared();
    for kind in [Classic, Quorum] {
        let mut site = Site::new(&server, kind).await;
        let raw = site.raw().await;
        let single = ("x-single-active-consumer".to_owned(), Argument::Flag(true));
        site.settings.topology.queues.insert("single".into(), Queue::durable(kind, [single].into()));
        let (one, two) = (site.broker().await, site.broker().await);
        let mut active = reader::subscribe(&one, "single").await;
        let mut waiting = reader::subscribe(&two, "single").await;
        for text in [b"first", b"other"] {
            raw.publish("single", text, Default::default()).await;
        }
        let first = reader::next(&mut active).await;
        assert_eq!(&*first.as_slice()[0].message.payload, b"first");
        let idle = tokio::time::timeout(
            Duration::from_millis(200),
            waiting.next(helixmq::broker::BatchMax { count: 9, bytes: 999 }),
        );
        assert!(idle.await.is_err(), "{kind:?}: two are active");
        drop((first, active));
        soon("the broker closes", one.close()).await;
        let mut taken = Vec::new();
        while taken.len() < 2 {
            let next = reader::next(&mut waiting).await;
            taken.extend(next.as_slice().iter().map(|delivery| delivery.message.payload.to_vec()));
            let how = vec![Settlement::Accept; next.len()];
            next.settle(how).await.expect("settled");
        }
        assert_eq!(taken, [b"first".to_vec(), b"other".to_vec()], "{kind:?}");
        soon("the broker closes", two.close()).await;
    }
}

/// While the connection for reading is ended again and again, publishing on the other connection is not disturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_undisturbed_while_reading_is_interrupted() {
    let server = Server::shared();
    let proxy = Proxy::start(server.amqp()).await;
    let site = Site::new(&server, Quorum).await.through(&proxy);
    let engine = site.handling().await;
    let vhost = site.vhost.name();
    let publishing = Publishing::start(&engine.broker, &Address::queue(WORK), 4, 20, 10);
    for _ in 0..3 {
        let consumer = async || server.management().consumers(vhost, WORK).first().copied();
        let before = eventually("there is a consumer", consumer).await;
        // The server ends the whole connection, as an operator may tell it to.
        server.management().delete(&format!("connections/{}", connection_name(&server, before.0)));
        let other = async || consumer().await.filter(|now| *now != before);
        eventually("there is another consumer", other).await;
    }
    let sent = publishing.end().await;
    assert!(site.ends(engine, &sent).await.is_empty());
}

/// The server's name for the connection that comes from this port.
fn connection_name(server: &Server, port: u16) -> String {
    format!("127.0.0.1:{port} -> {}", server.amqp()).replace(' ', "%20").replace('>', "%3E")
}
