//! Somebody else's client: publishes what the engine would not, and looks into topics and groups behind its back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::KafkaError,
    message::{DeliveryResult, Header, Headers as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};
use tokio::task::spawn_blocking;

use crate::{
    server::Server,
    support::{PATIENCE, eventually, soon},
};

/// A record to be published.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    pub(crate) fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    pub(crate) fn key(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(crate) fn on(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), Some(value.into())));
        self
    }
}

/// A record as it lies in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) timestamp: Option<i64>,
}

impl Read {
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(of, _)| of == name)?.1.as_deref()
    }

    /// The id that the engine gave the message.
    pub(crate) fn id(&self) -> Option<String> {
        Some(String::from_utf8_lossy(self.header("x-helix-id")?).into_owned())
    }
}

/// A client without a memory: each call connects, asks, and goes.
#[derive(Clone, Debug)]
pub(crate) struct Raw(ClientConfig);

impl Raw {
    pub(crate) fn new(server: &Server) -> Self {
        Self::with(&[("bootstrap.servers", &server.bootstrap())])
    }

    /// With settings as librdkafka names them.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        let mut config = ClientConfig::new();
        config.set("reconnect.backoff.max.ms", "200").set("allow.auto.create.topics", "false");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        Self(config)
    }

    /// Makes a topic, and waits until it can be used.
    pub(crate) async fn topic(&self, name: &str, partitions: i32) {
        self.topic_with(name, partitions, &[]).await;
    }

    /// The same with settings of the topic.
    pub(crate) async fn topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        topic.config = settings.to_vec();
        let made = soon("a topic", self.admin().create_topics([&topic], &options())).await.expect("an answer");
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let is_there = async || (self.partitions(name).await == Some(partitions as usize)).then_some(());
        eventually("the topic is there", is_there).await;
    }

    pub(crate) async fn delete(&self, topic: &str) {
        let gone = soon("an answer", self.admin().delete_topics(&[topic], &options())).await.expect("an answer");
        assert!(gone.iter().all(Result::is_ok), "{gone:?}");
        eventually("it is gone", async || self.partitions(topic).await.is_none().then_some(())).await;
    }

    /// Raises the number of partitions.
    pub(crate) async fn grow(&self, topic: &str, partitions: usize) {
        let grown = NewPartitions::new(topic, partitions);
        let grown = soon("an answer", self.admin().create_partitions([&grown], &options())).await.expect("an answer");
        assert!(grown.iter().all(Result::is_ok), "{grown:?}");
        let is_there = async || (self.partitions(topic).await == Some(partitions)).then_some(());
        eventually("they are there", is_there).await;
    }

    /// Deletes the records of a partition that come before an offset.
    pub(crate) async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut places = TopicPartitionList::new();
        places.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
        let gone = soon("an answer", self.admin().delete_records(&places, &options())).await.expect("an answer");
        assert!(gone.elements().iter().all(|one| one.error().is_ok()), "{gone:?}");
    }

    /// How many partitions a topic has; `None`: there is no such topic.
    pub(crate) async fn partitions(&self, topic: &str) -> Option<usize> {
        let topic = topic.to_owned();
        self.ask(&[], move |client| {
            let metadata = client.fetch_metadata(None, PATIENCE).expect("which topics there are");
            let found = metadata.topics().iter().find(|one| one.name() == topic)?;
            Some(found.partitions().len())
        })
        .await
    }

    /// Where each partition begins, and where the next record will be.
    pub(crate) async fn ends(&self, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let count = self.partitions(topic).await.expect("a topic");
        let topic = topic.to_owned();
        self.ask(&[], move |client| {
            let ends = |partition| client.fetch_watermarks(&topic, partition, PATIENCE).expect("watermarks");
            (0..count as i32).map(|partition| (partition, ends(partition))).collect()
        })
        .await
    }

    /// Where a group will go on, and what it noted there, by partition; those without a place are left out.
    pub(crate) async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, (i64, String)> {
        let count = self.partitions(topic).await.expect("a topic");
        let topic = topic.to_owned();
        self.ask(&[("group.id", group)], move |client| {
            let mut places = TopicPartitionList::new();
            places.add_partition_range(&topic, 0, count as i32 - 1);
            let committed = client.committed_offsets(places, PATIENCE).expect("committed offsets");
            let place = |one: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match one.offset() {
                Offset::Offset(offset) => Some((one.partition(), (offset, one.metadata().to_owned()))),
                _ => None,
            };
            committed.elements().iter().filter_map(place).collect()
        })
        .await
    }

    /// Commits for a group that nobody is a member of.
    pub(crate) async fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let (topic, metadata) = (topic.to_owned(), metadata.to_owned());
        self.ask(&[("group.id", group)], move |client| {
            let mut places = TopicPartitionList::new();
            let mut place = places.add_partition(&topic, partition);
            place.set_offset(Offset::Offset(offset)).expect("an offset");
            place.set_metadata(metadata.as_str());
            client.commit(&places, CommitMode::Sync).expect("committed");
        })
        .await;
    }

    /// Waits until a group has nothing left to do in a topic.
    pub(crate) async fn commits_all(&self, group: &str, topic: &str) {
        eventually("everything is committed", async || {
            let (ends, committed) = (self.ends(topic).await, self.committed(group, topic).await);
            let is_done = |(partition, (low, high)): (&i32, &(i64, i64))| {
                low == high || committed.get(partition).is_some_and(|(offset, _)| offset >= high)
            };
            ends.iter().all(is_done).then_some(())
        })
        .await;
    }

    /// Publishes all, and waits until they are confirmed. Gives the partition and offset of each.
    pub(crate) async fn publish(&self, topic: &str, records: Vec<Record>) -> Vec<(i32, i64)> {
        let config = self.0.clone();
        let topic = topic.to_owned();
        spawn_blocking(move || {
            let producer: BaseProducer<Reports> = config.create_with_context(Reports::default()).expect("a producer");
            send(&producer, &topic, &records);
            producer.flush(PATIENCE).expect("confirmed in time");
            producer.context().places(records.len())
        })
        .await
        .expect("no panic")
    }

    /// Reads all that is in a topic, in the order of each partition. What open transactions hold back is not read, nor what
    /// was aborted.
    pub(crate) async fn read(&self, topic: &str) -> Vec<Read> {
        let topic = topic.to_owned();
        let ends = self.ends(&topic).await;
        // It commits nothing; a group has to have a name.
        self.ask(&[("group.id", "nobody"), ("enable.partition.eof", "true")], move |client| {
            let mut places = TopicPartitionList::new();
            for (partition, (low, high)) in &ends {
                if low < high {
                    places.add_partition_offset(&topic, *partition, Offset::Offset(*low)).expect("an offset");
                }
            }
            let mut open = places.count();
            client.assign(&places).expect("assigned");
            let (begin, mut read) = (Instant::now(), Vec::new());
            while open > 0 {
                assert!(begin.elapsed() < PATIENCE, "{topic} has no end");
                match client.poll(Duration::from_millis(100)) {
                    Some(Ok(record)) => read.push(Read::from(&record)),
                    Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
                    Some(Err(error)) => panic!("{topic}: {error}"),
                    None => {}
                }
            }
            read.sort_by_key(|one| (one.partition, one.offset));
            read
        })
        .await
    }

    /// The ids of the messages in a topic, and how many records there are.
    pub(crate) async fn ids(&self, topic: &str) -> (BTreeSet<String>, usize) {
        let read = self.read(topic).await;
        (read.iter().map(|one| one.id().expect("a message of the engine's")).collect(), read.len())
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.0.create().expect("an administrator")
    }

    async fn ask<T: Send + 'static>(
        &self,
        more: &[(&str, &str)],
        question: impl FnOnce(&BaseConsumer) -> T + Send + 'static,
    ) -> T {
        let mut config = self.0.clone();
        for (name, value) in more {
            config.set(*name, *value);
        }
        config.set("enable.auto.commit", "false");
        spawn_blocking(move || question(&config.create().expect("a client"))).await.expect("no panic")
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

/// Hands all to the producer, in order.
fn send(producer: &BaseProducer<Reports>, topic: &str, records: &[Record]) {
    for (number, record) in records.iter().enumerate() {
        let mut sending = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, number);
        sending.partition = record.partition;
        sending.key = record.key.as_deref();
        sending.payload = record.value.as_deref();
        sending.timestamp = record.timestamp;
        if !record.headers.is_empty() {
            let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
                headers.insert(Header { key: name, value: value.as_ref() })
            });
            sending.headers = Some(headers);
        }
        producer.send(sending).map_err(|(error, _)| error).expect("room for it");
        producer.poll(Duration::ZERO);
    }
}

/// What became of what was published, by its number.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<BTreeMap<usize, (i32, i64)>>>);

impl Reports {
    fn places(&self, count: usize) -> Vec<(i32, i64)> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(places.len(), count, "not all were confirmed");
        places.values().copied().collect()
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Ok(record) = result {
            let place = (record.partition(), record.offset());
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number, place);
        }
    }
}

impl From<&rdkafka::message::BorrowedMessage<'_>> for Read {
    fn from(record: &rdkafka::message::BorrowedMessage<'_>) -> Self {
        let header = |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
        Self {
            partition: record.partition(),
            offset: record.offset(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            headers: record.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
            timestamp: record.timestamp().to_millis(),
        }
    }
}
