//! A broker that keeps messages and forgets how often it delivered them, as some do, with the ledger in front of it: notes
//! for its queues, marks for its topics.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use helixmq::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerError, Browse, Capabilities, Count, Counted, Declaration, Deliveries,
        KeepAlive, Page, PublishFailures, QueueSettings, Subscribe, Subscription, TopicSettings,
        embedded::{Embedded, Settings},
    },
    message::{Address, Message, Settlement},
    store::{self, Store},
};
use tempfile::TempDir;

use crate::system::*;

/// Says of every delivery that it is the first.
#[derive(Debug)]
struct Forgetful(Embedded);

#[async_trait]
impl Broker for Forgetful {
    fn name(&self) -> &str {
        "forgetful"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { delivery_count: false, ..self.0.capabilities() }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.0.publish(to, messages).await
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.0.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        Ok(Box::new(Forgets(self.0.subscribe(request).await?)))
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        self.0.evict(from, max).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.0.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.0.stats()
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

#[derive(Debug)]
struct Forgets(Box<dyn Subscription>);

#[async_trait]
impl Subscription for Forgets {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let next = self.0.next(max).await?;
        Ok(next.map(|deliveries| {
            deliveries.edited(|delivery| {
                (delivery.attempt, delivery.count) = (1, Count::AtLeast);
                delivery.failures.clear();
            })
        }))
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.0.keep_alive()
    }
}

/// One test's brokers, each with a store of its own.
#[derive(Default)]
pub(crate) struct WithLedger {
    directories: Mutex<Vec<TempDir>>,
}

impl WithLedger {
    fn open(&self, auto_create: bool) -> Arc<dyn Broker> {
        let directory = TempDir::new().unwrap();
        let inner = Forgetful(Embedded::new("inner", Settings { auto_create, ..Settings::default() }).unwrap());
        let store = Store::open(store::Settings::new(directory.path())).unwrap();
        self.directories.lock().unwrap().push(directory);
        Arc::new(Counted::new(Arc::new(inner), store))
    }
}

#[async_trait]
impl System for WithLedger {
    async fn connect(&self) -> Arc<dyn Broker> {
        self.open(false)
    }

    async fn connect_creating(&self) -> Option<Arc<dyn Broker>> {
        Some(self.open(true))
    }

    fn span(&self, time: Duration) -> Duration {
        time / 20
    }

    async fn pass(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn unclaimed(&self) -> &'static [&'static str] {
        &["durable"]
    }
}

/// The server keeps the messages; the engine is killed four times with them out, and its ledger is all that counts.
#[tokio::test]
async fn counts_attempts_that_ended_with_the_engine() {
    let inner: Arc<dyn Broker> = Arc::new(Forgetful(Embedded::new("inner", Settings::default()).unwrap()));
    let queue = Address::queue("counted");
    let lease = Duration::from_secs(600);
    let declaration = Declaration::Queue(Arc::clone(&queue.name), QueueSettings { lease, ..QueueSettings::default() });
    inner.declare(&[declaration]).await.unwrap();
    inner.publish(&queue, numbered(0..3).map(Arc::new).collect()).await.unwrap();
    let mut directory = TempDir::new().unwrap();
    for kill in 1..=4 {
        let store = Store::open(store::Settings::new(directory.path())).unwrap();
        let counted = Counted::new(Arc::clone(&inner), store);
        let request = Subscribe {
            from: queue.clone(),
            group: "group".into(),
            start: helixmq::broker::Start::Earliest,
            prefetch: 100,
            workers: 1,
            aside: Default::default(),
        };
        let mut reader = Reader(counted.subscribe(request).await.unwrap());
        let taken = reader.take(3).await;
        assert_eq!((names(&taken), attempts(&taken)), (number_names(0..3), vec![kill; 3]));
        assert_eq!(taken.as_slice()[2].failures.len() as u32, kill - 1, "each attempt has its end");
        let left = TempDir::new().unwrap();
        for file in std::fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), left.path().join(file.file_name())).unwrap();
        }
        // The server takes them back when the connection is gone.
        drop((taken, reader, counted));
        directory = left;
    }
    let store = Store::open(store::Settings::new(directory.path())).unwrap();
    let counted = Counted::new(Arc::clone(&inner), Arc::clone(&store));
    let request = Subscribe {
        from: queue.clone(),
        group: "g".into(),
        start: helixmq::broker::Start::Earliest,
        prefetch: 100,
        workers: 1,
        aside: Default::default(),
    };
    let mut reader = Reader(counted.subscribe(request).await.unwrap());
    let mut taken = reader.take(3).await;
    assert_eq!(attempts(&taken), [5; 3]);
    accept(taken.take_front(1)).await;
    settle(taken.take_front(1), redeliver(Duration::ZERO, 5)).await;
    settle(taken, Settlement::Release { after: Duration::ZERO }).await;
    let again = reader.take(2).await;
    assert_eq!((names(&again), attempts(&again)), (number_names(1..3), vec![6, 5]));
    accept(again).await;
    store.flush().await.unwrap();
    let left = store.read_async(|reader| reader.ledger("forgetful/queue:counted")).await.unwrap();
    assert!(left.is_empty(), "what has ended is forgotten: {left:?}");
}

async fn joined(counted: &Counted, topic: &Address) -> Reader {
    let request = Subscribe {
        from: topic.clone(),
        group: "group".into(),
        start: helixmq::broker::Start::Earliest,
        prefetch: 100,
        workers: 1,
        aside: Default::default(),
    };
    Reader(counted.subscribe(request).await.unwrap())
}

/// What was out of a topic may have ended the engine: it comes alone, as the next attempt, and what was not out as the first.
#[tokio::test]
async fn tries_what_was_out_of_a_log_alone() {
    let inner: Arc<dyn Broker> = Arc::new(Forgetful(Embedded::new("inner", Settings::default()).unwrap()));
    let topic = Address::topic("log");
    let lease = Duration::from_secs(600);
    let settings = TopicSettings { partitions: 1, lease, ..TopicSettings::default() };
    inner.declare(&[Declaration::Topic(Arc::clone(&topic.name), settings)]).await.unwrap();
    inner.publish(&topic, numbered(0..8).map(Arc::new).collect()).await.unwrap();
    let mut directory = TempDir::new().unwrap();
    for kill in 0..3 {
        let store = Store::open(store::Settings::new(directory.path())).unwrap();
        let counted = Counted::new(Arc::clone(&inner), store);
        let mut reader = joined(&counted, &topic).await;
        // The first of five takes the engine with it, time after time.
        let taken = match kill {
            0 => reader.take(5).await,
            _ => reader.batch(ALL).await,
        };
        assert_eq!(attempts(&taken), vec![kill + 1; if kill == 0 { 5 } else { 1 }]);
        assert_eq!(taken.as_slice()[0].failures.len() as u32, kill, "each attempt has its end");
        let left = copied(directory.path());
        drop((taken, reader, counted));
        directory = left;
    }
    let store = Store::open(store::Settings::new(directory.path())).unwrap();
    let counted = Counted::new(Arc::clone(&inner), Arc::clone(&store));
    let mut reader = joined(&counted, &topic).await;
    for number in 0..5 {
        let alone = reader.batch(ALL).await;
        let attempt = if number == 0 { 4 } else { 2 };
        assert_eq!((names(&alone), attempts(&alone)), (number_names(number..number + 1), vec![attempt]));
        reader.expect_nothing().await;
        accept(alone).await;
    }
    let others = reader.batch(ALL).await;
    assert_eq!((names(&others), attempts(&others)), (number_names(5..8), vec![1; 3]));
    accept(others).await;
    drop(reader);
    counted.close().await;
    let left = store.read_async(|reader| {
        let place = "forgetful/topic:log/group";
        Ok((reader.ledger(place)?, reader.marks(place)?))
    });
    assert_eq!(left.await.unwrap(), (Vec::new(), Vec::new()), "what has ended is forgotten");
}

/// One that may have ended the engine, and whose handler is away, waits: the others go on without it after a while.
#[tokio::test]
async fn does_not_wait_for_ever_for_what_was_out() {
    let inner: Arc<dyn Broker> = Arc::new(Forgetful(Embedded::new("inner", Settings::default()).unwrap()));
    let topic = Address::topic("log");
    let lease = Duration::from_secs(600);
    let settings = TopicSettings { partitions: 1, lease, ..TopicSettings::default() };
    inner.declare(&[Declaration::Topic(Arc::clone(&topic.name), settings)]).await.unwrap();
    inner.publish(&topic, numbered(0..4).map(Arc::new).collect()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let counted = Counted::new(Arc::clone(&inner), Store::open(store::Settings::new(directory.path())).unwrap());
    let mut reader = joined(&counted, &topic).await;
    let taken = reader.take(2).await;
    let left = copied(directory.path());
    drop((taken, reader, counted));
    let counted = Counted::new(Arc::clone(&inner), Store::open(store::Settings::new(left.path())).unwrap());
    let mut reader = joined(&counted, &topic).await;
    let waits = reader.batch(ALL).await;
    assert_eq!(names(&waits), number_names(0..1));
    reader.expect_nothing().await;
    let next = reader.batch(ALL).await;
    assert_eq!(names(&next), number_names(1..2), "though the first is still out");
    accept(next).await;
    assert_eq!(reader.consume(2).await, number_names(2..4));
    accept(waits).await;
}
