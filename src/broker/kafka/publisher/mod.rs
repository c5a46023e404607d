//! Records to the servers, each confirmed or known to have failed. One producer carries all of them, as many in flight as is
//! configured; publishers beyond that wait.
//!
//! A topic that is not there is known before anything is sent (`metadata.rs`): the client library would look for it until
//! the time of the message is up. Start at [`Publisher::publish`]; [`send`] is for whoever has a producer of his own.

mod report;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rdkafka::{
    ClientConfig,
    producer::{Producer, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use tokio::{sync::Semaphore, task::spawn_blocking};

pub(super) use report::{Failure, OnPublished, Reports, Sent, send};
use report::{Room, send_within};

use super::{
    Settings,
    client::{self, Watched},
    condition::Condition,
    metadata::Topics,
    settings::{Acks, Compression},
    threads::LEAVE,
    wire::Record,
};
use crate::{
    broker::{BrokerError, PublishError, PublishFailures},
    message::Address,
    telemetry::metrics,
};

/// Most records of one publish that share a report.
const CHUNK_MAX: usize = 1024;
/// Bytes from which on a chunk is full.
const CHUNK_BYTES: usize = 4 << 20;
/// Most bytes of all records that are in flight, in KiB: the client library has a copy of each.
const IN_FLIGHT_KIB: usize = 256 << 10;

/// See the module.
pub(super) struct Publisher {
    settings: Arc<Settings>,
    condition: Arc<Condition>,
    topics: Arc<Topics>,
    on_published: OnPublished,
    /// `None` once it has been closed.
    producer: Mutex<Option<ThreadedProducer<Reports>>>,
    messages: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// What a producer is configured with. Names: librdkafka, CONFIGURATION.md.
pub(super) fn config(settings: &Settings) -> ClientConfig {
    let mut config = client::config(settings);
    let publish_ms = settings.publish_timeout.as_millis().clamp(2, i32::MAX as u128);
    let compression = match settings.compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    };
    let acks = match settings.required_acks {
        Acks::All => "all",
        Acks::Leader => "1",
        Acks::None => "0",
    };
    // It has to be shorter than a message may take.
    let linger_ms = (settings.linger.as_secs_f64() * 1000.0).min((publish_ms - 1) as f64);
    config
        .set("acks", acks)
        .set("enable.idempotence", (settings.idempotent && settings.required_acks == Acks::All).to_string())
        .set("compression.type", compression)
        // As Java clients do, so that both find the same key in the same partition.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", linger_ms.to_string())
        .set("message.max.bytes", settings.message_bytes_max.clamp(1000, 1_000_000_000).to_string())
        .set("message.timeout.ms", publish_ms.to_string())
        .set("request.timeout.ms", (publish_ms / 2).clamp(1, 900_000).to_string())
        // A connection on which nothing comes is given up while there is time for another one.
        .set("socket.timeout.ms", (publish_ms / 2).clamp(1000, 300_000).to_string())
        // A topic that is gone is not waited for as if it were just being made.
        .set("topic.metadata.propagation.max.ms", "3000");
    for (name, value) in &settings.extra {
        config.set(name, value);
    }
    // What is in flight is bounded by us, who can wait; the library could only refuse.
    config.set("queue.buffering.max.messages", "0").set("queue.buffering.max.kbytes", i32::MAX.to_string());
    config
}

impl Publisher {
    /// Makes a producer, which connects by itself. Nothing is asked of the servers.
    pub(super) fn start(
        settings: &Arc<Settings>,
        condition: Arc<Condition>,
        topics: Arc<Topics>,
        on_published: OnPublished,
    ) -> Result<Self, BrokerError> {
        let producer = Mutex::new(Some(produce(settings, &condition, &on_published)?));
        let messages = Arc::new(Semaphore::new(settings.in_flight_max.clamp(1, Semaphore::MAX_PERMITS)));
        let kib = Arc::new(Semaphore::new(IN_FLIGHT_KIB));
        let settings = Arc::clone(settings);
        Ok(Self { settings, condition, topics, on_published, producer, messages, kib })
    }

    /// Whether there is such a topic, as far as anybody can say now.
    pub(super) async fn finds(&self, topic: &str) -> bool {
        !matches!(self.topics.partitions(topic).await, Ok(None))
    }

    /// How many records are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.settings.in_flight_max.saturating_sub(self.messages.available_permits())
    }

    /// Publishes records to a topic in this order, and waits until all are confirmed or known to have failed. `to` is what
    /// errors call the topic.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped half-way, any of them may or may not be published.
    pub(super) async fn publish(
        &self,
        topic: &str,
        to: &Address,
        records: impl IntoIterator<Item = Record, IntoIter: ExactSizeIterator + Send>,
    ) -> Result<(), PublishFailures> {
        let mut records = records.into_iter().peekable();
        let count = records.len();
        let refused = match self.topics.partitions(topic).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(PublishError::NotFound(to.clone())),
            Err(BrokerError::Closed) => Some(PublishError::Closed),
            Err(error) => Some(PublishError::Unavailable(match &error {
                BrokerError::Unreachable { cause, .. } => format!("{error}: {cause}"),
                error => error.to_string(),
            })),
        };
        if let Some(error) = refused {
            return failures((0..count).map(|place| (place, error.clone())).collect());
        }
        let _timer = metrics().kafka_publish_latency.start_timer();
        let topic: Arc<str> = topic.into();
        let was_away = self.condition.why_away().is_some();
        let mut sent = Vec::new();
        let mut failed = Vec::new();
        let mut place = 0;
        while records.peek().is_some() {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while chunk.len() < CHUNK_MAX.min(self.settings.in_flight_max.max(1))
                && bytes < CHUNK_BYTES
                && let Some(record) = records.next_if(|next| chunk.is_empty() || bytes + size(next) <= CHUNK_BYTES)
            {
                bytes += size(&record);
                chunk.push(record);
            }
            let (first, length) = (place, chunk.len());
            place += length;
            let sizes: Vec<_> = chunk.iter().map(size).collect();
            match self.send(&topic, chunk, bytes).await {
                Some(report) => sent.push((first, sizes, report)),
                None => failed.extend((first..first + length).map(|place| (place, PublishError::Closed))),
            }
        }
        for (first, sizes, report) in sent {
            for mut failure in report.failures().await {
                let at = failure.place;
                let bytes = sizes.get(failure.place).copied().unwrap_or(0);
                let code = failure.code;
                let shared = failure.shared.take();
                let error = match shared {
                    Some(record) => self.send_alone(&topic, *record, bytes).await,
                    None => Some(Ok(failure)),
                };
                let error = match error {
                    None => continue,
                    Some(Ok(failure)) => self.error(to, &failure, bytes, was_away),
                    Some(Err(closed)) => closed,
                };
                failed.push((first + at, error));
                self.learn(&topic, code).await;
            }
        }
        count_sent(&topic, count, failed.iter().map(|(_, error)| error));
        failures(failed)
    }

    /// Sends a chunk as soon as there is room for it; `None` once this has been closed.
    async fn send(&self, topic: &Arc<str>, chunk: Vec<Record>, bytes: usize) -> Option<Sent> {
        let count = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let kib = u32::try_from((bytes / 1024 + 1).min(IN_FLIGHT_KIB)).unwrap_or(u32::MAX);
        let room = Room {
            _messages: Arc::clone(&self.messages).acquire_many_owned(count).await.ok()?,
            _bytes: Arc::clone(&self.kib).acquire_many_owned(kib).await.ok()?,
        };
        let producer = self.lock().clone()?;
        Some(send_within(&producer, topic, chunk, Some(room)))
    }

    /// A record whose request was too large is sent once more, with no others of its publish.
    async fn send_alone(
        &self,
        topic: &Arc<str>,
        record: Record,
        bytes: usize,
    ) -> Option<Result<Failure, PublishError>> {
        match self.send(topic, vec![record], bytes).await {
            Some(report) => report.failures().await.pop().map(Ok),
            None => Some(Err(PublishError::Closed)),
        }
    }

    /// What a failure says beside its record.
    async fn learn(&self, topic: &str, code: RDKafkaErrorCode) {
        match code {
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition => self.topics.forget(topic),
            _ => {}
        }
        let dead = {
            let mut producer = self.lock();
            let fatal = producer.as_ref().and_then(|producer| producer.client().fatal_error());
            let Some((_, reason)) = fatal else { return };
            match produce(&self.settings, &self.condition, &self.on_published) {
                Ok(new) => {
                    tracing::warn!("a producer of Kafka could not go on, and another one takes its place: {reason}");
                    producer.replace(new)
                }
                // The next one that fails tries again.
                Err(error) => {
                    tracing::warn!("a producer of Kafka cannot go on ({reason}), and there is no other: {error}");
                    None
                }
            }
        };
        end(dead).await;
    }

    /// Why a record was not published, for whoever published it.
    pub(super) fn error(&self, to: &Address, failure: &Failure, bytes: usize, was_away: bool) -> PublishError {
        use RDKafkaErrorCode as Code;
        let max = self.settings.message_bytes_max;
        let reason = || match self.condition.why_away() {
            Some(away) => away,
            None => format!("Kafka: {}", failure.code),
        };
        match failure.code {
            // The library counts what surrounds a record, too; the topic may have a limit of its own.
            Code::MessageSizeTooLarge if failure.is_unsent || bytes > max => {
                PublishError::TooLarge { address: to.clone(), bytes, max }
            }
            Code::MessageSizeTooLarge => {
                PublishError::TooLarge { address: to.clone(), bytes, max: max.min(bytes.saturating_sub(1)) }
            }
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::InvalidTopic => {
                PublishError::NotFound(to.clone())
            }
            Code::UnknownPartition => {
                PublishError::NotFound(Address::topic(format!("{}, partition asked for", to.name)))
            }
            Code::InvalidMessage
            | Code::InvalidTimestamp
            | Code::InvalidRecord
            | Code::PolicyViolation
            | Code::UnsupportedCompressionType => {
                PublishError::Rejected { address: to.clone(), reason: failure.code.to_string() }
            }
            Code::NotEnoughReplicas | Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                PublishError::Unavailable(reason())
            }
            Code::PurgeQueue => PublishError::Unavailable("the producer has been closed".to_owned()),
            Code::MessageTimedOut if was_away && self.condition.why_away().is_some() => {
                PublishError::Unavailable(reason())
            }
            Code::MessageTimedOut => PublishError::Unconfirmed(match self.condition.why_away() {
                Some(away) => away,
                None => format!("Kafka did not confirm within {:?}", self.settings.publish_timeout),
            }),
            _ if failure.is_unsent => PublishError::Unavailable(reason()),
            _ => PublishError::Unconfirmed(reason()),
        }
    }

    /// Takes nothing more, waits for what is in flight as long as a publish may take, but not longer than for groups to be
    /// left, and ends.
    pub(super) async fn close(&self) {
        self.messages.close();
        self.kib.close();
        let Some(producer) = self.lock().take() else { return };
        let records = producer.in_flight_count();
        if records > 0 {
            tracing::info!(records, "waiting for Kafka to confirm what was sent");
        }
        let at_most = self.settings.publish_timeout.min(LEAVE);
        let flushed = spawn_blocking(move || {
            let flushed = producer.flush(at_most);
            // The thread that polls ends here.
            drop(producer);
            flushed
        });
        match tokio::time::timeout(LEAVE + LEAVE / 10, flushed).await {
            Ok(Ok(Err(error))) => tracing::warn!("Kafka has not confirmed everything that was sent: {error}"),
            Ok(_) => {}
            Err(_) => tracing::warn!("the producer of Kafka does not end; its thread is left behind"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ThreadedProducer<Reports>>> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what became of so many records to a topic that is there.
pub(super) fn count_sent<'a>(topic: &str, mut count: usize, failed: impl Iterator<Item = &'a PublishError>) {
    for error in failed {
        count = count.saturating_sub(1);
        metrics().kafka_errors.with_label_values(&[topic, error.code().as_str()]).inc();
    }
    metrics().kafka_sent.with_label_values(&[topic]).inc_by(count as u64);
}

fn produce(
    settings: &Settings,
    condition: &Arc<Condition>,
    on_published: &OnPublished,
) -> Result<ThreadedProducer<Reports>, BrokerError> {
    let context = Reports::new(Watched(Arc::clone(condition)), Arc::clone(on_published));
    config(settings).create_with_context(context).map_err(|error| client::refused(&error))
}

/// Ends a producer where its thread may be waited for.
async fn end(producer: Option<ThreadedProducer<Reports>>) {
    if let Some(producer) = producer {
        drop(spawn_blocking(move || drop(producer)).await);
    }
}

fn size(record: &Record) -> usize {
    record.key.as_ref().map_or(0, bytes::Bytes::len) + record.value.as_ref().map_or(0, bytes::Bytes::len)
}

fn failures(mut failed: Vec<(usize, PublishError)>) -> Result<(), PublishFailures> {
    if failed.is_empty() {
        return Ok(());
    }
    failed.sort_unstable_by_key(|(place, _)| *place);
    Err(PublishFailures(failed))
}
