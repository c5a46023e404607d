//! The consumer that one writes by hand with the client library: what the benchmark measures the engine against. It asks the
//! same of the server (offsets stored once a message is handled, and committed in the background; results confirmed before
//! that) and nothing of what the engine adds: no attempts, no time limits, no sandbox. In: records. Out: what a function
//! makes of them.
//!
//! Start at [`ByHand`]. Nothing of the engine uses this.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientContext, Message as _, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    config::ClientConfig,
    consumer::{BaseConsumer, CommitMode, Consumer, DefaultConsumerContext},
    error::KafkaError,
    message::{DeliveryResult, Headers},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};

use super::{client, settings::Settings};
use crate::broker::BrokerError;

/// Messages whose offsets are stored together, once their results are confirmed.
const BATCH: usize = 500;
/// How long a poll waits.
const POLL: Duration = Duration::from_millis(50);
/// How long requests for topics may take.
const REQUEST: Duration = Duration::from_secs(20);

/// What a message became.
#[derive(Debug)]
pub(crate) struct Handled {
    /// Its number.
    pub(crate) number: u64,
    /// To be published, and confirmed, before its offset is stored.
    pub(crate) result: Option<Vec<u8>>,
}

/// The loop, as a member of a group of its own.
pub(crate) struct ByHand {
    consumer: BaseConsumer<DefaultConsumerContext>,
    results: Option<(String, ThreadedProducer<Confirms>)>,
    confirms: Arc<Counts>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    confirmed: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone)]
struct Confirms(Arc<Counts>);

impl ClientContext for Confirms {}

impl ProducerContext for Confirms {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = if result.is_ok() { &self.0.confirmed } else { &self.0.failed };
        count.fetch_add(1, Ordering::Release);
    }
}

impl ByHand {
    /// Joins `group` to read `topic`; results go to another topic.
    ///
    /// # Errors
    /// The client library refuses its settings.
    pub(crate) fn connect(
        settings: &Settings,
        topic: &str,
        group: &str,
        results: Option<&str>,
    ) -> Result<Self, BrokerError> {
        let made = || {
            let consumer: BaseConsumer = reading(settings, group).create()?;
            consumer.subscribe(&[topic])?;
            let confirms = Arc::new(Counts::default());
            let mut config = client::config(settings);
            config
                .set("enable.idempotence", "true")
                .set("acks", "all")
                .set("linger.ms", settings.linger.as_millis().to_string())
                .set("compression.type", "lz4");
            let producer = |topic: &str| {
                let producer = config.create_with_context(Confirms(Arc::clone(&confirms)))?;
                Ok::<_, KafkaError>((topic.to_owned(), producer))
            };
            let results = results.map(producer).transpose()?;
            Ok(Self { consumer, results, confirms, stop: AtomicBool::new(false) })
        };
        made().map_err(|error: KafkaError| client::refused(&error))
    }

    /// Reads until it is told to stop. `handle` gets the id and the payload of each message; `note` the numbers of those
    /// whose offsets were stored.
    ///
    /// # Errors
    /// Whatever goes wrong: nothing is tried again.
    pub(crate) fn run(
        &self,
        handle: impl Fn(&str, &[u8]) -> Handled,
        note: impl Fn(&[u64]),
    ) -> Result<(), BrokerError> {
        self.read(handle, note).map_err(|error| BrokerError::Lost(error.to_string()))
    }

    fn read(&self, handle: impl Fn(&str, &[u8]) -> Handled, note: impl Fn(&[u64])) -> Result<(), KafkaError> {
        let (mut batch, mut sent) = (Vec::with_capacity(BATCH), 0);
        let mut offsets = TopicPartitionList::new();
        while !self.stop.load(Ordering::Relaxed) {
            let wait = if batch.is_empty() { POLL } else { Duration::ZERO };
            let record = match self.consumer.poll(wait) {
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error),
                // The client library sees to it itself.
                Some(Err(_)) => continue,
                Some(Ok(record)) => Some(record),
                None => None,
            };
            if let Some(record) = &record {
                let headers = record.headers().into_iter().flat_map(Headers::iter);
                let id = headers.into_iter().find(|header| header.key == "x-helix-id").and_then(|header| header.value);
                let id = id.and_then(|id| std::str::from_utf8(id).ok()).unwrap_or_default();
                let Handled { number, result } = handle(id, record.payload().unwrap_or_default());
                batch.push(number);
                if let (Some((topic, producer)), Some(result)) = (&self.results, &result) {
                    self.send(producer, topic, id, result)?;
                    sent += 1;
                }
                let next = rdkafka::Offset::Offset(record.offset() + 1);
                match offsets.find_partition(record.topic(), record.partition()) {
                    Some(mut there) => there.set_offset(next)?,
                    None => offsets.add_partition_offset(record.topic(), record.partition(), next)?,
                }
            }
            if batch.len() >= BATCH || (record.is_none() && !batch.is_empty()) {
                while self.confirms.confirmed.load(Ordering::Acquire) < sent {
                    if self.confirms.failed.load(Ordering::Acquire) > 0 || self.stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                self.consumer.store_offsets(&offsets)?;
                note(&batch);
                batch.clear();
                offsets = TopicPartitionList::new();
            }
        }
        match self.consumer.commit_consumer_state(CommitMode::Sync) {
            // All of it was committed in the background.
            Err(KafkaError::ConsumerCommit(rdkafka::types::RDKafkaErrorCode::NoOffset)) => Ok(()),
            committed => committed,
        }
    }

    /// Hands one result to the library; waits while its queue is full.
    fn send(
        &self,
        producer: &ThreadedProducer<Confirms>,
        topic: &str,
        id: &str,
        payload: &[u8],
    ) -> Result<(), KafkaError> {
        let mut record = BaseRecord::to(topic).key(id).payload(payload);
        while let Err((error, back)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                return Err(error);
            }
            record = back;
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Ends the loop, which commits what it has stored.
    pub(crate) fn close(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some((_, producer)) = &self.results {
            // What is not confirmed by now was not counted.
            producer.flush(POLL).ok();
        }
    }
}

fn reading(settings: &Settings, group: &str) -> ClientConfig {
    let mut config = client::config(settings);
    config
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        // As the engine has it, so that both are fed alike.
        .set("queued.max.messages.kbytes", (settings.fetch_bytes_max >> 10).to_string())
        .set("fetch.wait.max.ms", settings.fetch_wait.as_millis().to_string())
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "100")
        .set("auto.commit.interval.ms", settings.commit_interval.as_millis().to_string());
    config
}

/// Removes the topics of a run.
///
/// # Errors
/// What the servers say against it: they are still there.
pub(crate) async fn remove(settings: &Settings, topics: &[&str]) -> Result<(), BrokerError> {
    let admin: AdminClient<DefaultClientContext> =
        client::config(settings).create().map_err(|error| client::refused(&error))?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST));
    let removed = admin.delete_topics(topics, &options).await;
    let removed = removed.map_err(|error| BrokerError::Lost(error.to_string()))?;
    match removed.into_iter().find_map(Result::err) {
        Some((topic, code)) => Err(BrokerError::Lost(format!("the topic {topic} is not removed: {code}"))),
        None => Ok(()),
    }
}
