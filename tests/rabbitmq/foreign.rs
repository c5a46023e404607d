//! Messages of somebody else's, with whatever AMQP allows: handled, tried again, and kept as they were.

use std::collections::BTreeSet;

use helixmq::{
    broker::rabbitmq::topology::QueueKind::{Classic, Quorum},
    handler::Call,
    message::{Address, Outcome},
};
use lapin::{
    BasicProperties, ExchangeKind,
    types::{AMQPValue, FieldArray, FieldTable},
};

use crate::{
    raw::{Raw, table, text},
    server::Server,
    site::{DEAD, Site, WORK, letters, queue},
    support::{
        eventually,
        ledger::Publishing,
        proxy::{Flow, Proxy, Way},
    },
};

/// Asks for another attempt once, so that a copy is made; then handles it, or refuses it for good.
fn once_more(call: &Call<'_>) -> Outcome {
    match (call.attempt, &*call.message.payload) {
        (1, _) => Outcome::Retry { reason: "not yet".into(), delay: None },
        (_, b"poison") => Outcome::Reject { reason: "never".into(), code: None },
        _ => Outcome::Done(Vec::new()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_messages_without_an_id_each_for_itself() {
    for kind in [Classic, Quorum] {
        let site = Site::new(&Server::shared(), kind).await;
        let broker = site.broker_with_queues().await;
        let raw = site.raw().await;
        for payload in [&b"one"[..], b"two", b""] {
            raw.publish(WORK, payload, BasicProperties::default()).await;
        }
        let engine = site.engine_on(broker, 3, once_more).await;
        let all = async || (site.ledger.handled().len() == 3).then_some(());
        eventually("all are handled", all).await;
        engine.stop().await;
        let calls = site.ledger.calls();
        assert!(calls.values().all(|attempts| *attempts == [1, 2]), "{kind:?}: the same id on each attempt: {calls:?}");
        assert!(raw.drain(WORK).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_two_that_are_alike_and_have_no_id() {
    for kind in [Classic, Quorum] {
        let site = Site::new(&Server::shared(), kind).await;
        let broker = site.broker_with_queues().await;
        let raw = site.raw().await;
        for _ in 0..2 {
            raw.publish(WORK, b"alike", BasicProperties::default()).await;
        }
        let engine = site.engine_on(broker, 3, once_more).await;
        let twice = async || {
            let calls: Vec<_> = site.ledger.calls().into_values().flatten().collect();
            (calls.iter().filter(|attempt| **attempt == 2).count() == 2).then_some(calls)
        };
        let calls = eventually("both are handled", twice).await;
        engine.stop().await;
        assert_eq!(calls.len(), 4, "{kind:?}: {calls:?}");
        assert!(raw.drain(WORK).await.is_empty() && raw.drain(DEAD).await.is_empty());
    }
}

/// Every type that a table can have, and tables in tables.
fn headers() -> FieldTable {
    let list = FieldArray::from(vec![AMQPValue::LongInt(-1), text("two"), AMQPValue::Void, AMQPValue::Boolean(false)]);
    let inner = table(&[("list", AMQPValue::FieldArray(list.clone())), ("n", AMQPValue::Double(0.5))]);
    table(&[
        ("bool", AMQPValue::Boolean(true)),
        ("bytes", AMQPValue::ByteArray(vec![0, 0xff, 0xfe].into())),
        ("i8", AMQPValue::ShortShortInt(-8)),
        ("i16", AMQPValue::ShortInt(-16)),
        ("i32", AMQPValue::LongInt(-32)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("f32", AMQPValue::Float(1.5)),
        ("time", AMQPValue::Timestamp(1_700_000_000)),
        ("void", AMQPValue::Void),
        ("list", AMQPValue::FieldArray(list)),
        ("table", AMQPValue::FieldTable(inner)),
        ("plain", text("text")),
        ("x-vendor", text("theirs")),
    ])
}

fn everything() -> BasicProperties {
    BasicProperties::default()
        .with_message_id("their-id".into())
        .with_content_type("application/x-theirs".into())
        .with_content_encoding("gzip".into())
        .with_headers(headers())
        .with_delivery_mode(2)
        .with_priority(7)
        .with_correlation_id("their-correlation".into())
        .with_reply_to("their-replies".into())
        .with_timestamp(1_600_000_000)
        .with_type("their.type".into())
        .with_user_id("guest".into())
        .with_app_id("their-app".into())
}

/// A dead letter is a message that the engine publishes: what it was is still there, down to the type of each value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_every_property_and_header_of_what_it_publishes_again() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = site.broker_with_queues().await;
    let raw = site.raw().await;
    raw.publish(WORK, b"poison", everything()).await;
    let engine = site.engine_on(broker, 3, once_more).await;
    eventually("it is dead", async || raw.depth(DEAD).await.filter(|depth| *depth == 1)).await;
    engine.stop().await;
    let found = raw.drain(DEAD).await.remove(0).properties;
    let was = everything();
    let sent = |properties: &BasicProperties| {
        (
            properties.message_id().clone(),
            properties.content_type().clone(),
            properties.content_encoding().clone(),
            *properties.delivery_mode(),
            *properties.priority(),
            properties.correlation_id().clone(),
            properties.reply_to().clone(),
            *properties.timestamp(),
            properties.kind().clone(),
            properties.app_id().clone(),
        )
    };
    assert_eq!(sent(&found), sent(&was));
    let found = found.headers().clone().expect("headers");
    for (name, value) in headers().inner() {
        assert_eq!(found.inner().get(name), Some(value), "{name}");
    }
    assert_eq!(site.ledger.calls().into_iter().collect::<Vec<_>>(), [("their-id".to_owned(), vec![1, 2])]);
}

/// Ids are bytes to the server. The client library has text, so a proxy makes bytes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_ids_that_are_no_text() {
    let server = Server::shared();
    let site = Site::new(&server, Quorum).await;
    let broker = site.broker_with_queues().await;
    let proxy = Proxy::start(server.amqp()).await;
    proxy.set(Way::ToServer, Flow::Replaced(b"bytes-of-16-long", b"\xff\xfe\x00\x80 not utf-8 \xc0"));
    let theirs = Raw::connect_to(&format!("amqp://guest:guest@{}/{}", proxy.address(), site.vhost.name())).await;
    let id = "bytes-of-16-long";
    let properties = BasicProperties::default().with_message_id(id.into()).with_correlation_id(id.into());
    theirs.publish(WORK, b"with bytes", properties).await;
    let engine = site.engine_on(broker, 3, once_more).await;
    eventually("it is handled", async || (site.ledger.handled().len() == 1).then_some(())).await;
    // And nobody else is disturbed.
    let sent = Publishing::start(&engine.broker, &Address::queue(WORK), 1, 1, 5).end().await;
    assert!(site.ledger.handles(&sent).await.is_empty());
    engine.stop().await;
    assert!(site.ledger.calls().values().all(|attempts| *attempts == [1, 2]), "{:?}", site.ledger.calls());
}

fn death(queue: &str, reason: &str, count: i64) -> AMQPValue {
    AMQPValue::FieldTable(table(&[
        ("queue", text(queue)),
        ("reason", text(reason)),
        ("exchange", text("")),
        ("count", AMQPValue::LongLongInt(count)),
        ("routing-keys", AMQPValue::FieldArray(FieldArray::from(vec![text(queue)]))),
        ("time", AMQPValue::Timestamp(1_700_000_000)),
    ]))
}

/// Where it died before is no attempt of ours, and is still known afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_a_history_of_deaths_and_does_not_count_it() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = site.broker_with_queues().await;
    let raw = site.raw().await;
    let deaths = FieldArray::from(vec![death("theirs", "rejected", 7), death("older", "expired", 3)]);
    let headers =
        table(&[("x-death", AMQPValue::FieldArray(deaths)), ("x-delivery-count", AMQPValue::LongLongInt(99))]);
    let properties = BasicProperties::default().with_message_id("dead-before".into()).with_headers(headers);
    raw.publish(WORK, b"poison", properties).await;
    let engine = site.engine_on(broker, 3, once_more).await;
    eventually("it is dead", async || raw.depth(DEAD).await.filter(|depth| *depth == 1)).await;
    engine.stop().await;
    assert_eq!(site.ledger.calls().into_values().collect::<Vec<_>>(), [vec![1, 2]]);
    let (letter, message) = letters(&site, 1).await.remove(0);
    assert_eq!((letter.source.as_str(), letter.attempts.len()), ("queue:work", 2), "{letter:?}");
    let deaths = message.headers.get("x-death").expect("its history");
    for part in ["theirs", "older", "rejected", "expired"] {
        assert!(deaths.contains(part), "{part} in {deaths}");
    }
}

/// The server itself gives up messages: it says so in `x-death` alone, and they are dead letters all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_what_the_server_dead_lettered_as_a_dead_letter() {
    let site = Site::new(&Server::shared(), Classic).await;
    let broker = site.broker().await;
    broker.declare(&[queue(DEAD)]).await.expect("declared");
    let raw = site.raw().await;
    raw.exchange("dlx", ExchangeKind::Fanout, DEAD, "").await;
    let to_dlx = ("x-dead-letter-exchange", text("dlx"));
    raw.queue("brief", "classic", &[to_dlx.clone(), ("x-message-ttl", AMQPValue::LongInt(20))]).await;
    raw.queue("short", "classic", &[to_dlx, ("x-max-length", AMQPValue::LongInt(0))]).await;
    for queue in ["brief", "short"] {
        raw.publish(queue, b"{}", BasicProperties::default().with_message_id(queue.into())).await;
    }
    let read: BTreeSet<_> = letters(&site, 2)
        .await
        .into_iter()
        .map(|(letter, message)| (message.id.to_string(), letter.source, letter.code.as_str()))
        .collect();
    let wanted = [("brief", "queue:brief", "MESSAGE_EXPIRED"), ("short", "queue:short", "QUEUE_OVERFLOW")];
    assert_eq!(read, wanted.map(|(id, source, code)| (id.to_owned(), source.to_owned(), code)).into());
}
