//! Topics: a stream that keeps what was published, and a queue for each group that reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use helixmq::{
    broker::{
        Broker, Browse, BrowseAt, Declaration, Deliveries, Start, Subscribe, Subscription, TopicSettings,
        rabbitmq::topology::{Exchange, QueueKind::Quorum},
    },
    message::{Address, FailedAttempt, Message, ReasonCode, Settlement, UnixMs, now_ms},
};
use lapin::{options::QueueBindOptions, types::FieldTable};

use crate::{
    reader,
    server::Server,
    site::Site,
    support::{eventually, soon},
};

const TOPIC: &str = "orders.placed";
const HOUR: UnixMs = 3_600_000;

async fn with_topic(site: &Site) -> Arc<dyn Broker> {
    let broker = site.broker().await;
    broker.declare(&[Declaration::Topic(TOPIC.into(), TopicSettings::default())]).await.expect("declared");
    broker
}

async fn join(broker: &Arc<dyn Broker>, group: &str, start: Start) -> Box<dyn Subscription> {
    let from = Address::topic(TOPIC);
    let request = Subscribe { from, group: group.into(), start, prefetch: 100, workers: 1, aside: Default::default() };
    soon("a subscription", broker.subscribe(request)).await.expect("a subscription")
}

/// Publishes these numbers, all of them with one time.
async fn publish(broker: &Arc<dyn Broker>, numbers: std::ops::Range<usize>, at: UnixMs) {
    let messages = numbers.map(|number| Arc::new(Message::new("placed", number.to_string().into_bytes(), at)));
    let to = Address::topic(TOPIC);
    let published = broker.publish(&to, messages.collect());
    soon("a confirmation", published).await.expect("published");
}

fn number(message: &Message) -> usize {
    std::str::from_utf8(&message.payload).expect("text").parse().expect("a number")
}

async fn accept(deliveries: Deliveries) {
    let how = vec![Settlement::Accept; deliveries.len()];
    deliveries.settle(how).await.expect("settled");
}

/// Takes and accepts so many: their numbers, and where they are.
async fn take(subscription: &mut Box<dyn Subscription>, count: usize) -> Vec<(usize, Option<u64>)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = reader::next(subscription).await;
        let each = next.as_slice().iter();
        taken.extend(each.map(|one| (number(&one.message), one.position.as_ref().map(|position| position.offset))));
        accept(next).await;
    }
    taken
}

/// As a stream has them.
fn with_offsets(numbers: std::ops::Range<usize>) -> Vec<(usize, Option<u64>)> {
    numbers.map(|number| (number, Some(number as u64))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gives_each_group_every_message() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = with_topic(&site).await;
    let mut groups = [join(&broker, "billing", Start::Earliest).await, join(&broker, "mail", Start::Earliest).await];
    publish(&broker, 0..30, now_ms()).await;
    for group in &mut groups {
        let numbers: Vec<_> = take(group, 30).await.into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, (0..30).collect::<Vec<_>>());
    }
    drop(groups);
    soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_the_messages_of_a_group_among_its_readers() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = with_topic(&site).await;
    let mut one = join(&broker, "billing", Start::Earliest).await;
    let mut two = join(&broker, "billing", Start::Earliest).await;
    publish(&broker, 0..30, now_ms()).await;
    // Nothing is settled, so each has its own.
    let (mut held, mut numbers, mut readers) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut hold = |reader, next: Deliveries| {
        readers.insert(reader);
        numbers.extend(next.as_slice().iter().map(|one| number(&one.message)));
        held.push(next);
        (numbers.len(), readers.len())
    };
    // Each may have ten out, and one more that came before it took so many.
    let mut so_far = (0, 0);
    while so_far.0 < 20 || so_far.1 < 2 {
        so_far = tokio::select! {
            next = reader::next(&mut one) => hold(1, next),
            next = reader::next(&mut two) => hold(2, next),
        };
    }
    let different: BTreeSet<_> = numbers.iter().collect();
    assert_eq!(different.len(), numbers.len(), "twice: {numbers:?}");
    assert!(numbers.len() <= 22, "{} are out", numbers.len());
    drop((held, one, two));
    soon("the broker closes", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_without_a_group_from_wherever_it_is_told() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = with_topic(&site).await;
    let now = now_ms();
    publish(&broker, 0..5, now - HOUR).await;
    publish(&broker, 5..10, now).await;
    for (start, numbers) in [(Start::Earliest, 0..10), (Start::Offset(4), 4..10), (Start::Time(now - HOUR / 2), 5..10)]
    {
        let mut subscription = join(&broker, "", start).await;
        assert_eq!(take(&mut subscription, numbers.len()).await, with_offsets(numbers), "{start:?}");
    }
    let mut from_now_on = join(&broker, "", Start::Latest).await;
    publish(&broker, 10..12, now).await;
    assert_eq!(take(&mut from_now_on, 2).await, with_offsets(10..12));
    drop(from_now_on);
    soon("the broker closes", broker.close()).await;
}

/// Reading is not consuming: it is all there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shows_a_topic_page_by_page() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = with_topic(&site).await;
    publish(&broker, 0..5, now_ms()).await;
    for _ in 0..2 {
        let mut at = BrowseAt::Start(Start::Earliest);
        let mut seen = Vec::new();
        while seen.len() < 5 {
            let request = Browse { from: Address::topic(TOPIC), at: at.clone(), limit: 2 };
            let page = soon("a page", broker.browse(request)).await.expect("a page");
            assert!(page.items.len() <= 2);
            seen.extend(page.items.iter().map(|one| (number(&one.message), one.position.as_ref().map(|p| p.offset))));
            at = BrowseAt::Cursor(page.next);
        }
        assert_eq!(seen, with_offsets(0..5));
        let request = Browse { from: Address::topic(TOPIC), at, limit: 2 };
        let page = soon("a page", broker.browse(request)).await.expect("a page");
        assert_eq!((page.items.len(), page.next.as_str()), (0, "5"), "behind the last");
    }
    soon("the broker closes", broker.close()).await;
}

/// Whoever is bound to it gets it: a queue of somebody else, and the groups of the engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_to_a_topic_that_is_a_fanout_exchange_of_the_configuration() {
    let mut site = Site::new(&Server::shared(), Quorum).await;
    site.settings.topology.exchanges.insert(TOPIC.into(), Exchange::durable("fanout"));
    let broker = site.broker().await;
    let raw = site.raw().await;
    raw.queue("theirs", "classic", &[]).await;
    let bind = raw.channel.queue_bind(
        "theirs".into(),
        TOPIC.into(),
        "".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.expect("a binding");
    let mut group = join(&broker, "billing", Start::Earliest).await;
    publish(&broker, 0..3, now_ms()).await;
    assert_eq!(take(&mut group, 3).await, [(0, None), (1, None), (2, None)]);
    let theirs = raw.drain("theirs").await;
    let from: BTreeMap<_, _> =
        theirs.iter().map(|one| (one.data.clone(), (one.exchange.to_string(), one.routing_key.to_string()))).collect();
    let wanted = [b"0", b"1", b"2"].map(|data| (data.to_vec(), (TOPIC.to_owned(), "placed".to_owned())));
    assert_eq!(from, wanted.into());
    drop(group);
    soon("the broker closes", broker.close()).await;
}

/// A group that failed tries again, at once or later, and no other group notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_again_in_the_group_that_failed() {
    let site = Site::new(&Server::shared(), Quorum).await;
    let broker = with_topic(&site).await;
    let mut fails = join(&broker, "fails", Start::Earliest).await;
    let mut works = join(&broker, "works", Start::Earliest).await;
    publish(&broker, 0..1, now_ms()).await;
    let mut attempts = Vec::new();
    for after in [Duration::ZERO, Duration::from_millis(100)] {
        let next = reader::next(&mut fails).await;
        let [one] = next.as_slice() else { panic!("{next:?}") };
        attempts.push(one.attempt);
        let failure = FailedAttempt {
            attempt: one.attempt,
            at: now_ms(),
            code: ReasonCode::HandlerTrapped,
            text: "not yet".to_owned(),
        };
        next.settle(vec![Settlement::Redeliver { after, failure: Box::new(failure) }]).await.expect("settled");
    }
    let last = reader::next(&mut fails).await;
    attempts.extend(last.as_slice().iter().map(|one| one.attempt));
    assert_eq!((attempts, last.as_slice()[0].failures.len()), (vec![1, 2, 3], 2));
    accept(last).await;
    publish(&broker, 1..2, now_ms()).await;
    assert_eq!(take(&mut works, 2).await, [(0, None), (1, None)]);
    assert_eq!(take(&mut fails, 1).await, [(1, None)]);
    let raw = site.raw().await;
    // What was acknowledged last may still be on its way.
    for group in ["fails", "works"] {
        let queue = format!("{TOPIC}@{group}");
        eventually("it is empty", async || (raw.depth(&queue).await == Some(0)).then_some(())).await;
    }
    drop((fails, works));
    soon("the broker closes", broker.close()).await;
}
