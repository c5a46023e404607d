//! Queues in front of a system of topics, tried on topics of the embedded broker.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use helixmq::{
    broker::{
        BatchMax, Broker, BrokerError, Browse, BrowseAt, Declaration, Deliveries, PublishError, QueueSettings,
        Queueless, Start, Subscribe,
        embedded::{Embedded, Settings},
    },
    message::{Address, Kind, Message, Settlement, now_ms},
};

use crate::system::{ALL, PATIENCE};

fn queueless() -> (Queueless, Arc<dyn Broker>) {
    let topics: Arc<dyn Broker> = Arc::new(Embedded::new("topics", Settings::default()).unwrap());
    (Queueless::new(Arc::clone(&topics), "engines".into()), topics)
}

fn request(from: &Address, group: &str) -> Subscribe {
    Subscribe {
        from: from.clone(),
        group: group.into(),
        start: Start::Latest,
        prefetch: 100,
        workers: 1,
        aside: Default::default(),
    }
}

async fn next(reader: &mut Box<dyn helixmq::broker::Subscription>, count: usize) -> Deliveries {
    let batch = BatchMax { count, ..ALL };
    tokio::time::timeout(PATIENCE, reader.next(batch)).await.unwrap().unwrap().unwrap()
}

fn messages(count: u64) -> Vec<Arc<Message>> {
    (0..count).map(|number| Arc::new(Message::new("task", number.to_string(), now_ms()))).collect()
}

async fn declared(broker: &Queueless, settings: QueueSettings) -> Address {
    let queue = Address::queue("work");
    broker.declare(&[Declaration::Queue(Arc::clone(&queue.name), settings)]).await.unwrap();
    queue
}

#[tokio::test(start_paused = true)]
async fn each_message_of_a_queue_goes_to_one_of_its_readers() {
    let (broker, topics) = queueless();
    let queue = declared(&broker, QueueSettings::default()).await;
    // What was there before anybody read is not lost, whatever the reader asks for.
    broker.publish(&queue, messages(40)).await.unwrap();
    let mut readers = [
        broker.subscribe(request(&queue, "one")).await.unwrap(),
        broker.subscribe(request(&queue, "other")).await.unwrap(),
    ];
    let mut seen = BTreeSet::new();
    while seen.len() < 40 {
        for reader in &mut readers {
            let Ok(taken) = tokio::time::timeout(Duration::from_secs(1), reader.next(ALL)).await else { continue };
            let taken = taken.unwrap().unwrap();
            for delivery in taken.as_slice() {
                assert!(seen.insert(delivery.message.payload.clone()), "twice: {delivery:?}");
            }
            let how = vec![Settlement::Accept; taken.len()];
            taken.settle(how).await.unwrap();
        }
    }
    let stats = broker.stats().into_iter().find(|stats| stats.address == queue).unwrap();
    assert_eq!((stats.ready, stats.unsettled, stats.lag.len()), (0, 0, 0));
    assert!(topics.stats().iter().any(|stats| stats.address == Address::topic("work")));
    assert!(!broker.capabilities().priority);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_counted_and_shown() {
    let (broker, _) = queueless();
    let queue = declared(&broker, QueueSettings::default()).await;
    broker.publish(&queue, messages(5)).await.unwrap();
    let ready = || broker.stats().into_iter().find(|stats| stats.address == queue).unwrap().ready;
    assert_eq!(ready(), 5);
    let mut reader = broker.subscribe(request(&queue, "")).await.unwrap();
    let taken = next(&mut reader, 1).await;
    assert_eq!(ready(), 4, "without what is out");
    taken.settle(vec![Settlement::Accept]).await.unwrap();
    assert_eq!(ready(), 4);
    let page = broker.browse(Browse { from: queue.clone(), at: BrowseAt::Start(Start::Earliest), limit: 10 }).await;
    assert_eq!(page.unwrap().items.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_queue_for_one_reader_has_no_group() {
    let (broker, topics) = queueless();
    let queue = declared(&broker, QueueSettings { exclusive: true, ..QueueSettings::default() }).await;
    let mut reader = broker.subscribe(request(&queue, "")).await.unwrap();
    broker.publish(&queue, messages(1)).await.unwrap();
    next(&mut reader, 1).await.settle(vec![Settlement::Accept]).await.unwrap();
    drop(reader);
    let stats = topics.stats().into_iter().find(|stats| stats.address.name == queue.name).unwrap();
    assert!(stats.lag.iter().all(|(group, _)| &**group != "engines"), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn errors_name_the_queue_that_was_asked_for() {
    let topics = Embedded::new("topics", Settings { auto_create: false, ..Settings::default() }).unwrap();
    let broker = Queueless::new(Arc::new(topics), "engines".into());
    let queue = Address::queue("nowhere");
    let failures = broker.publish(&queue, messages(1)).await.unwrap_err();
    assert!(matches!(&failures.0[0].1, PublishError::NotFound(address) if *address == queue), "{failures:?}");
    let error = broker.subscribe(request(&queue, "")).await.unwrap_err();
    assert!(matches!(&error, BrokerError::NotFound(address) if *address == queue), "{error:?}");
    let wanted = [Declaration::Queue("work".into(), QueueSettings::default())];
    broker.declare(&wanted).await.unwrap();
    let other = QueueSettings { lease: Duration::from_secs(1), ..QueueSettings::default() };
    let error = broker.declare(&[Declaration::Queue("work".into(), other)]).await.unwrap_err();
    assert!(matches!(&error, BrokerError::Mismatch { address, .. } if address.kind == Kind::Queue), "{error:?}");
}
