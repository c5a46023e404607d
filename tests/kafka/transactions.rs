//! Publishing and settling in one transaction: all of it is there, or nothing is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use helixmq::{
    broker::{
        BatchMax, Broker, BrokerError, Deliveries, PublishError, Start, Subscribe, Subscription, TransactionError,
    },
    message::{Address, FailedAttempt, Message, ReasonCode, Settlement, now_ms},
};

use crate::{
    raw::Record,
    server::Server,
    site::{Site, topic},
    support::{eventually, soon},
};

const ALL: BatchMax = BatchMax { count: 1000, bytes: usize::MAX };

/// A topic with so many messages in one partition, one for what comes of them, and somebody who reads.
struct Scene {
    site: Site,
    broker: Arc<dyn Broker>,
    reader: Box<dyn Subscription>,
    out: Address,
}

impl Scene {
    async fn new(server: &Server, count: usize) -> Self {
        let site = Site::new(server).await;
        let broker = site.broker().await;
        let out = Address::topic(server.name("out"));
        broker.declare(&[topic(&site.work, 1), topic(&out, 2)]).await.unwrap();
        site.raw().publish(&site.work.name, (0..count).map(|n| Record::new(n.to_string())).collect()).await;
        let reader = subscribe(&site, &broker).await;
        Self { site, broker, reader, out }
    }

    async fn take(&mut self, count: usize) -> Deliveries {
        let mut taken = Deliveries::none();
        while taken.len() < count {
            let max = BatchMax { count: count - taken.len(), ..ALL };
            let more = soon("messages", self.reader.next(max)).await.unwrap().unwrap();
            taken.append(more).unwrap();
        }
        taken
    }

    /// What there is of results, by name, as somebody sees it who reads what is committed.
    async fn results(&self) -> BTreeMap<String, usize> {
        let mut results = BTreeMap::new();
        for record in self.site.raw().read(&self.out.name).await {
            *results.entry(String::from_utf8(record.value.unwrap()).unwrap()).or_default() += 1;
        }
        results
    }

    /// Where the group will go on.
    async fn committed(&self) -> Option<i64> {
        let committed = self.site.raw().committed(&self.site.group, &self.site.work.name).await;
        committed.get(&0).map(|(offset, _)| *offset)
    }
}

async fn subscribe(site: &Site, broker: &Arc<dyn Broker>) -> Box<dyn Subscription> {
    let request = Subscribe {
        from: site.work.clone(),
        group: site.group.as_str().into(),
        start: Start::Earliest,
        prefetch: 1000,
        workers: 1,
        aside: Default::default(),
    };
    broker.subscribe(request).await.unwrap()
}

/// A result for each.
fn results_of(deliveries: &Deliveries) -> Vec<Arc<Message>> {
    let result = |payload: &bytes::Bytes| Arc::new(Message::new("result", payload.clone(), now_ms()));
    deliveries.as_slice().iter().map(|delivery| result(&delivery.message.payload)).collect()
}

#[tokio::test]
async fn results_are_there_together_with_the_progress() {
    let mut scene = Scene::new(&Server::shared(), 10).await;
    let taken = scene.take(10).await;
    let published = [(scene.out.clone(), results_of(&taken))];
    let mut how = vec![Settlement::Accept; 10];
    // One of them is to come again: it stays a gap.
    let failure = FailedAttempt { attempt: 1, at: now_ms(), code: ReasonCode::HandlerTimeout, text: "slow".to_owned() };
    how[4] = Settlement::Redeliver { after: Duration::from_millis(50), failure: Box::new(failure) };
    taken.transact(&published, &how).await.map_err(|(_, error)| error).unwrap();
    assert_eq!(scene.results().await.len(), 10);
    assert_eq!(scene.committed().await, Some(4));
    let again = scene.take(1).await;
    assert_eq!((&again.as_slice()[0].message.payload[..], again.as_slice()[0].attempt), (&b"4"[..], 2));
    again.transact(&[], &[Settlement::Accept]).await.map_err(|(_, error)| error).unwrap();
    assert_eq!(scene.committed().await, Some(10));
    scene.broker.close().await;
}

#[tokio::test]
async fn nothing_of_a_transaction_is_there_that_could_not_publish_all() {
    let mut scene = Scene::new(&Server::shared(), 6).await;
    let taken = scene.take(6).await;
    let mut messages = results_of(&taken);
    messages[3] = Arc::new(Message::new("result", vec![b'x'; 2_000_000], now_ms()));
    let missing = Address::topic("kafka-tests.nowhere");
    let stray = (missing.clone(), vec![Arc::new(Message::new("a", "b", now_ms()))]);
    let published = [(scene.out.clone(), messages.clone()), stray];
    let refused = taken.transact(&published, &[const { Settlement::Accept }; 6]).await;
    let Err((taken, TransactionError::Publish(failures))) = refused else { panic!("{refused:?}") };
    assert_eq!(failures, [(1, 0, PublishError::NotFound(missing))]);
    let published = [(scene.out.clone(), messages)];
    let refused = taken.transact(&published, &[const { Settlement::Accept }; 6]).await;
    let Err((taken, TransactionError::Publish(failures))) = refused else { panic!("{refused:?}") };
    assert!(matches!(failures[..], [(0, 3, PublishError::TooLarge { .. })]), "{failures:?}");
    assert_eq!((scene.results().await.len(), scene.committed().await), (0, None));
    // They are still out: without those, all the rest.
    let mut messages = results_of(&taken);
    messages.remove(3);
    let how = vec![Settlement::Accept; 6];
    taken.transact(&[(scene.out.clone(), messages)], &how).await.map_err(|(_, error)| error).unwrap();
    assert_eq!((scene.results().await.len(), scene.committed().await), (5, Some(6)));
    scene.broker.close().await;
}

#[tokio::test]
async fn who_has_lost_the_partition_commits_nothing() {
    let mut scene = Scene::new(&Server::shared(), 4).await;
    let taken = scene.take(4).await;
    let published = [(scene.out.clone(), results_of(&taken))];
    // Somebody else has joined the group, and the topic is not to be read here any more.
    scene.broker.close().await;
    let refused = taken.transact(&published, &[const { Settlement::Accept }; 4]).await;
    assert!(matches!(refused, Err((_, TransactionError::Broker(BrokerError::Closed)))));
    assert_eq!(scene.results().await.len(), 0);
}

/// The server is killed again and again while transactions are under way: each result is there once in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_result_is_there_once_whatever_the_server_does() {
    const COUNT: usize = 600;
    let server = Server::own().await;
    let mut scene = Scene::new(&server, COUNT).await;
    let killer = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            server.kill().await;
            server.up().await;
        }
    };
    let worker = async {
        let mut done = 0;
        let mut aborted = 0;
        while done < COUNT {
            let taken =
                match tokio::time::timeout(Duration::from_secs(60), scene.reader.next(BatchMax { count: 10, ..ALL }))
                    .await
                {
                    Ok(Ok(Some(taken))) => taken,
                    Ok(Err(_)) => {
                        scene.reader = subscribe(&scene.site, &scene.broker).await;
                        continue;
                    }
                    other => panic!("{other:?} after {done}, {aborted} aborted"),
                };
            let count = taken.len();
            let published = [(scene.out.clone(), results_of(&taken))];
            match taken.transact(&published, &vec![Settlement::Accept; count]).await {
                Ok(()) => done += count,
                // Given back, they come again.
                Err((taken, TransactionError::Broker(_))) => {
                    aborted += 1;
                    drop(taken);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err((_, error)) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        aborted
    };
    let ((), aborted) = tokio::join!(killer, worker);
    let all = eventually("every result can be read", async || {
        let results = scene.results().await;
        (results.len() == COUNT).then_some(results)
    });
    let all = all.await;
    let twice: Vec<_> = all.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "{aborted} were aborted, and these are there more than once: {twice:?}");
    assert_eq!(scene.committed().await, Some(COUNT as i64));
    scene.broker.close().await;
}
