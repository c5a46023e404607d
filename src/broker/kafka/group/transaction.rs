//! Publishing and committing in one transaction, one at a time for each subscription. What a transaction covers is what is
//! published to Kafka in it and how far the group is; nothing that a handler does elsewhere.
//!
//! The group's own view of us goes with the offsets: a member that has lost its partitions is refused by the server, whatever
//! the name of its producer (KIP-447).

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer},
};

use super::{
    Common,
    context::GroupContext,
    part::{Now, PartId, named},
    progress::Commit,
    retries::Retries,
};
use crate::{
    broker::{
        BrokerError, Delivery, PublishError, TransactionError,
        kafka::{client, condition::Condition, publisher, wire},
    },
    message::{Address, Message, ReasonCode, Settlement},
};

/// How long each request of a transaction may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How often it is tried again where the server asks for that.
const TRIES: usize = 5;

/// The transactions of one subscription.
#[derive(Debug)]
pub(super) struct Transactions {
    work: Arc<Work>,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
}

/// What the thread needs that carries one out.
struct Work {
    common: Common,
    context: Arc<GroupContext>,
    consumer: Weak<BaseConsumer<GroupContext>>,
    retries: Option<Arc<Retries>>,
    id: String,
    /// `None`: to be made.
    producer: Mutex<Option<Arc<Transactional>>>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("id", &self.id).finish_non_exhaustive()
    }
}

type Transactional = ThreadedProducer<Reports, NoCustomPartitioner>;

/// What became of the records of the transaction.
struct Reports {
    condition: Arc<Condition>,
    failed: Mutex<Vec<(usize, KafkaError)>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.condition.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.condition.failed(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Self::DeliveryOpaque) {
        if let Err((error, _)) = result {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((*place, error.clone()));
        }
    }
}

/// One record, and what of the transaction it is.
struct Sent {
    to: Arc<str>,
    record: wire::Record,
    /// Place of its address and under it; `None`: a copy for the retry topic.
    place: Option<(usize, usize)>,
}

impl Transactions {
    pub(super) fn new(
        common: &Common,
        context: Arc<GroupContext>,
        consumer: Weak<BaseConsumer<GroupContext>>,
        retries: Option<Arc<Retries>>,
    ) -> Self {
        let settings = &common.settings;
        // Of its own for each process, unless somebody sees to that: the group's view fences us either way.
        let own = settings.transactional_id.clone().unwrap_or_else(|| {
            format!("{}-{:016x}", settings.client_id, crate::message::random64())
        });
        let id = format!("{own}.{}.{}", context.reading.group, context.reading.place);
        let work = Work {
            common: common.clone(),
            context,
            consumer,
            retries,
            id,
            producer: Mutex::default(),
        };
        Self { work: Arc::new(work), turn: tokio::sync::Mutex::default() }
    }

    /// Publishes and settles, all of it or nothing.
    pub(super) async fn run(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        let work = &self.work;
        if let Some((to, _)) = published.iter().find(|(to, _)| to.kind != crate::message::Kind::Topic) {
            return Err(BrokerError::Invalid(format!("{to} is no topic of Kafka: a transaction cannot reach it")).into());
        }
        let mut sent = Vec::new();
        for (place, (to, messages)) in published.iter().enumerate() {
            sent.extend(messages.iter().enumerate().map(|(under, message)| Sent {
                to: Arc::clone(&to.name),
                record: wire::outgoing(message, work.common.settings.format, None),
                place: Some((place, under)),
            }));
        }
        if let Some(retries) = &work.retries {
            let copies = settled.iter().filter_map(|(delivery, how)| retries.copy(delivery, how));
            sent.extend(copies.map(|record| Sent { to: Arc::clone(&retries.address().name), record, place: None }));
        }
        let is_done = |delivery: &Delivery, how: &Settlement| match how {
            Settlement::Accept | Settlement::DeadLetter { .. } => true,
            Settlement::Redeliver { .. } => {
                work.retries.as_ref().is_some_and(|retries| retries.copy(delivery, how).is_some())
            }
            Settlement::Release { .. } => false,
        };
        let done: Vec<(PartId, u64)> = settled
            .iter()
            .filter(|(delivery, how)| is_done(delivery, how))
            .map(|(delivery, _)| named(delivery.tag))
            .collect();
        let _turn = self.turn.lock().await;
        let (blocking, done_there) = (Arc::clone(work), done.clone());
        let ran = tokio::task::spawn_blocking(move || blocking.carry_out(&sent, &done_there));
        let committed = ran
            .await
            .map_err(|error| BrokerError::Lost(format!("a transaction ended without a result: {error}")))
            .map_err(TransactionError::from)
            .and_then(|result| result);
        work.context.reading.meters.transaction(if committed.is_ok() { "committed" } else { "aborted" });
        let committed = committed?;
        work.context.share.settled(settled, &done, committed, Now::read());
        Ok(())
    }
}

impl Work {
    /// Carries one out, on a thread that may wait. Gives what has been committed.
    fn carry_out(&self, sent: &[Sent], done: &[(PartId, u64)]) -> Result<Vec<(PartId, Commit)>, TransactionError> {
        let producer = self.producer()?;
        let result = self.try_out(&producer, sent, done);
        let Err(error) = result else { return result };
        let fatal = producer.client().fatal_error();
        if fatal.is_none()
            && let Err(error) = producer.abort_transaction(REQUEST)
        {
            tracing::debug!(id = self.id, "a transaction was not ended in good order, its time limit ends it: {error}");
            self.forget();
        } else if let Some((code, text)) = fatal {
            // Fenced, or the server has ended it: only a new producer helps.
            tracing::warn!(id = self.id, "the transactional producer is made anew: {code:?}: {text}");
            self.forget();
        }
        Err(error)
    }

    fn forget(&self) {
        *self.producer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn producer(&self) -> Result<Arc<Transactional>, BrokerError> {
        let mut known = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(producer) = &*known {
            return Ok(Arc::clone(producer));
        }
        let settings = &self.common.settings;
        let mut config = publisher::config(settings);
        config
            .set("transactional.id", &self.id)
            .set("transaction.timeout.ms", settings.transaction_timeout.as_millis().to_string())
            .set("message.timeout.ms", settings.publish_timeout.min(settings.transaction_timeout).as_millis().to_string());
        let reports = Reports { condition: Arc::clone(&self.common.condition), failed: Mutex::default() };
        let producer: Transactional = config.create_with_context(reports).map_err(|error| client::refused(&error))?;
        producer.init_transactions(REQUEST).map_err(|error| self.failed("begin", &error))?;
        Ok(Arc::clone(known.insert(Arc::new(producer))))
    }

    fn try_out(
        &self,
        producer: &Transactional,
        sent: &[Sent],
        done: &[(PartId, u64)],
    ) -> Result<Vec<(PartId, Commit)>, TransactionError> {
        let failed = &producer.context().failed;
        failed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        producer.begin_transaction().map_err(|error| self.failed("begin", &error))?;
        self.send(producer, sent)?;
        let reports = std::mem::take(&mut *failed.lock().unwrap_or_else(PoisonError::into_inner));
        if !reports.is_empty() {
            return Err(self.not_published(sent, &reports));
        }
        let (offsets, commits) = self.offsets(done)?;
        let consumer = self.consumer.upgrade().ok_or(BrokerError::Closed)?;
        let group = consumer.group_metadata().ok_or_else(|| BrokerError::Lost("the group has been left".to_owned()))?;
        drop(consumer);
        self.retried("send its offsets", || producer.send_offsets_to_transaction(&offsets, &group, REQUEST))?;
        self.retried("commit", || producer.commit_transaction(REQUEST))?;
        Ok(commits)
    }

    /// Hands all records to the producer and waits for what becomes of them. (Its own flush, which committing begins with,
    /// looks only every 100 ms.)
    fn send(&self, producer: &Transactional, sent: &[Sent]) -> Result<(), TransactionError> {
        let until = Instant::now() + self.common.settings.publish_timeout + Duration::from_secs(1);
        for (at, one) in sent.iter().enumerate() {
            let mut next = Some(record(one, at));
            while let Some(record) = next.take() {
                match producer.send(record) {
                    Ok(()) => {}
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(1));
                        next = Some(back);
                    }
                    Err((error, _)) => return Err(self.not_published(sent, &[(at, error)])),
                }
            }
        }
        while producer.in_flight_count() > 0 {
            if Instant::now() >= until {
                return Err(BrokerError::Lost("a transaction took too long to publish".to_owned()).into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Where the group will be, with these done.
    fn offsets(&self, done: &[(PartId, u64)]) -> Result<(TopicPartitionList, Vec<(PartId, Commit)>), BrokerError> {
        let mut offsets = TopicPartitionList::new();
        let mut commits = Vec::new();
        let state = self.context.share.lock();
        let mut ids: Vec<PartId> = done.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let lost = || BrokerError::Lost("a partition went to another member meanwhile".to_owned());
            let part = state.part(id).ok_or_else(lost)?;
            let mut of_part: Vec<u64> = done.iter().filter(|(of, _)| *of == id).map(|(_, offset)| *offset).collect();
            of_part.sort_unstable();
            let Some(commit) = part.progress.commit_with(&of_part) else { continue };
            let mut one = offsets.add_partition(&part.topic, part.partition);
            one.set_metadata(commit.metadata.as_str());
            one.set_offset(Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX)))
                .map_err(|error| self.failed("name its offsets", &error))?;
            commits.push((id, commit));
        }
        Ok((offsets, commits))
    }

    fn retried(&self, what: &'static str, mut ask: impl FnMut() -> Result<(), KafkaError>) -> Result<(), BrokerError> {
        for _ in 1..TRIES {
            match ask() {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && !error.txn_requires_abort() => {}
                result => return result.map_err(|error| self.failed(what, &error)),
            }
        }
        ask().map_err(|error| self.failed(what, &error))
    }

    fn failed(&self, what: &str, error: &KafkaError) -> BrokerError {
        let text = format!("a transaction of {} could not {what}: {error}", self.context.reading.place);
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed,
            ) => BrokerError::Refused { reason: text, code: ReasonCode::PublishFailed },
            _ => BrokerError::Lost(text),
        }
    }

    /// What cannot be published as it is fails by itself; anything else is the transaction's failure.
    fn not_published(&self, sent: &[Sent], errors: &[(usize, KafkaError)]) -> TransactionError {
        let mut named = Vec::new();
        for (at, error) in errors {
            let Some(one) = sent.get(*at) else { continue };
            let size = one.record.value.as_ref().map_or(0, bytes::Bytes::len);
            let to = Address::topic(Arc::clone(&one.to));
            let error = publisher::publish_error(error, &to, size, &self.common.settings);
            match one.place {
                Some((place, under)) if !error.is_retryable() && error != PublishError::Closed => {
                    named.push((place, under, error));
                }
                _ => {}
            }
        }
        if named.is_empty() {
            let cause = errors.first().map(|(_, error)| error.to_string()).unwrap_or_default();
            return BrokerError::Lost(format!("a transaction's messages were not confirmed: {cause}")).into();
        }
        named.sort_by_key(|(place, under, _)| (*place, *under));
        TransactionError::Publish(named)
    }
}

fn record(one: &Sent, at: usize) -> BaseRecord<'_, [u8], [u8], Box<usize>> {
    let mut record = BaseRecord::with_opaque_to(&one.to, Box::new(at)).headers(one.record.headers.clone());
    if let Some(value) = &one.record.value {
        record = record.payload(&value[..]);
    }
    if let Some(key) = &one.record.key {
        record = record.key(&key[..]);
    }
    if let Some(partition) = one.record.partition {
        record = record.partition(partition);
    }
    if one.record.timestamp > 0 {
        record = record.timestamp(one.record.timestamp);
    }
    record
}
