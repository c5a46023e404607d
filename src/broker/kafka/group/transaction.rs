//! Publishing and committing in one transaction, one at a time for each subscription. What a transaction covers is what is
//! published to Kafka in it and how far the group is; nothing that a handler does elsewhere.
//!
//! The group's own view of us goes with the offsets: a member that has lost its partitions is refused by the server, whatever
//! the name of its producer (KIP-447).

use std::{
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{Producer, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use tokio::runtime::Handle;

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
        kafka::{
            client::{self, Watched},
            publisher::{self, Publisher, Reports},
            wire,
        },
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
    /// Knows what errors mean.
    publisher: Arc<Publisher>,
    id: String,
    /// `None`: to be made.
    producer: Mutex<Option<Arc<Transactional>>>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("id", &self.id).finish_non_exhaustive()
    }
}

type Transactional = ThreadedProducer<Reports>;

/// What goes to one topic.
struct ToTopic {
    to: Address,
    records: Vec<wire::Record>,
    /// Where the messages stand among those that are to be published; `None`: a copy for the retry topic.
    places: Vec<Option<(usize, usize)>>,
}

/// A record that was not published.
struct NotSent {
    /// Where its message stands; `None`: it is a copy for the retry topic.
    place: Option<(usize, usize)>,
    error: PublishError,
    bytes: usize,
    /// It may be others in its request that were too large.
    is_shared: bool,
}

impl Transactions {
    pub(super) fn new(
        common: &Common,
        context: Arc<GroupContext>,
        consumer: Weak<BaseConsumer<GroupContext>>,
        retries: Option<Arc<Retries>>,
        publisher: Arc<Publisher>,
    ) -> Self {
        let settings = &common.settings;
        // Of its own for each process, unless somebody sees to that: the group's view fences us either way.
        let own = settings
            .transactional_id
            .clone()
            .unwrap_or_else(|| format!("{}-{:016x}", settings.client_id, crate::message::random64()));
        let id = format!("{own}.{}.{}", context.reading.group, context.reading.place);
        let work =
            Work { common: common.clone(), context, consumer, retries, publisher, id, producer: Mutex::default() };
        Self { work: Arc::new(work), turn: tokio::sync::Mutex::default() }
    }

    /// Ends what a process of the same name has left open. Only a name that was given is the same.
    pub(super) fn ender(&self) -> Option<impl Fn() + Send + Sync + 'static> {
        self.work.common.settings.transactional_id.as_ref()?;
        let work = Arc::downgrade(&self.work);
        Some(move || {
            if let Some(Err(error)) = work.upgrade().map(|work| work.producer()) {
                tracing::debug!("what is left of a transaction could not be ended: {error}");
            }
        })
    }

    /// Publishes and settles, all of it or nothing.
    pub(super) async fn run(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        let work = &self.work;
        if let Some((to, _)) = published.iter().find(|(to, _)| to.kind != crate::message::Kind::Topic) {
            return Err(
                BrokerError::Invalid(format!("{to} is no topic of Kafka: a transaction cannot reach it")).into()
            );
        }
        let mut sent = Vec::new();
        let mut missing = Vec::new();
        for (place, (to, messages)) in published.iter().enumerate() {
            if !work.publisher.finds(&to.name).await {
                // The client library would look for it until the time of the transaction is up.
                let not_found = |under| (place, under, PublishError::NotFound(to.clone()));
                missing.extend((0..messages.len()).map(not_found));
                continue;
            }
            let format = work.common.settings.format;
            sent.push(ToTopic {
                to: to.clone(),
                records: messages.iter().map(|message| wire::outgoing(message, format, None)).collect(),
                places: (0..messages.len()).map(|under| Some((place, under))).collect(),
            });
        }
        if !missing.is_empty() {
            return Err(TransactionError::Publish(missing));
        }
        if let Some(retries) = &work.retries {
            let records: Vec<_> = settled.iter().filter_map(|(delivery, how)| retries.copy(delivery, how)).collect();
            let places = vec![None; records.len()];
            sent.push(ToTopic { to: retries.address().clone(), records, places });
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
        work.context.reading.transacts.store(true, Relaxed);
        let (blocking, done_there) = (Arc::clone(work), done.clone());
        let runtime = tokio::runtime::Handle::current();
        let ran = tokio::task::spawn_blocking(move || blocking.carry_out(&runtime, sent, &done_there));
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
    fn carry_out(
        &self,
        runtime: &Handle,
        sent: Vec<ToTopic>,
        done: &[(PartId, u64)],
    ) -> Result<Vec<(PartId, Commit)>, TransactionError> {
        let producer = self.producer()?;
        let result = self.try_out(&producer, runtime, sent, done);
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
            .set(
                "message.timeout.ms",
                settings.publish_timeout.min(settings.transaction_timeout).as_millis().to_string(),
            );
        let reports = Reports::new(Watched(Arc::clone(&self.common.condition)), Arc::new(|_, _, _| {}));
        let producer: Transactional = config.create_with_context(reports).map_err(|error| client::refused(&error))?;
        producer.init_transactions(REQUEST).map_err(|error| self.failed("begin", &error))?;
        Ok(Arc::clone(known.insert(Arc::new(producer))))
    }

    fn try_out(
        &self,
        producer: &Transactional,
        runtime: &Handle,
        sent: Vec<ToTopic>,
        done: &[(PartId, u64)],
    ) -> Result<Vec<(PartId, Commit)>, TransactionError> {
        producer.begin_transaction().map_err(|error| self.failed("begin", &error))?;
        let (mut reports, mut counts) = (Vec::new(), Vec::new());
        for ToTopic { to, records, places } in sent {
            counts.push((Arc::clone(&to.name), records.len()));
            let sizes: Vec<usize> =
                records.iter().map(|record| record.value.as_ref().map_or(0, bytes::Bytes::len)).collect();
            reports.push((publisher::send(producer, &to.name, records), to, sizes, places));
        }
        let mut failures = Vec::new();
        for (report, to, sizes, places) in reports {
            for failure in runtime.block_on(report.failures()) {
                let bytes = sizes.get(failure.place).copied().unwrap_or_default();
                let error = self.publisher.error(&to, &failure, bytes, false);
                publisher::count_sent(&to.name, 0, std::iter::once(&error));
                let place = places.get(failure.place).copied().flatten();
                failures.push(NotSent { place, error, bytes, is_shared: failure.shared.is_some() });
            }
        }
        if !failures.is_empty() {
            return Err(self.not_published(failures));
        }
        // Committing flushes, and that looks only every 100 ms whether there is nothing left.
        let until = Instant::now() + REQUEST;
        while producer.in_flight_count() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(50));
        }
        // Of the group as it was when these were ours: a rebalance in between is refused by the server.
        let consumer = self.consumer.upgrade().ok_or(BrokerError::Closed)?;
        let group = consumer.group_metadata().ok_or_else(|| BrokerError::Lost("the group has been left".to_owned()))?;
        drop(consumer);
        let (offsets, commits) = self.offsets(done)?;
        retried(|| producer.send_offsets_to_transaction(&offsets, &group, REQUEST))
            .map_err(|error| self.failed("send its offsets", &error))?;
        if let Err(error) = retried(|| producer.commit_transaction(REQUEST)) {
            let is_aborted = matches!(&error, KafkaError::Transaction(error) if error.txn_requires_abort());
            if !is_aborted {
                // It may be committed all the same. What is known here holds no more: the group is asked where it is.
                let place = &self.context.reading.place;
                let text = format!("nobody knows whether a transaction of {place} was committed: it is read anew");
                self.context.share.forget_all(BrokerError::Lost(text));
            }
            return Err(self.failed("commit", &error).into());
        }
        counts.iter().for_each(|(topic, count)| publisher::count_sent(topic, *count, std::iter::empty()));
        Ok(commits)
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
    fn not_published(&self, mut failures: Vec<NotSent>) -> TransactionError {
        let cause = failures.first().map(|failure| failure.error.to_string()).unwrap_or_default();
        if failures.iter().all(|failure| failure.is_shared) {
            // Their requests were too large: the largest of them is to blame, the others may have been beside it.
            failures.sort_by_key(|failure| std::cmp::Reverse(failure.bytes));
            failures.truncate(1);
        }
        let is_its_own = |error: &PublishError| !error.is_retryable() && *error != PublishError::Closed;
        let named = failures.into_iter().filter_map(|NotSent { place, error, .. }| {
            let (place, under) = place.filter(|_| is_its_own(&error))?;
            Some((place, under, error))
        });
        let mut named: Vec<_> = named.collect();
        if named.is_empty() {
            let place = &self.context.reading.place;
            let text = format!("messages of a transaction of {place} were not confirmed: {cause}");
            return BrokerError::Lost(text).into();
        }
        named.sort_by_key(|(place, under, _)| (*place, *under));
        TransactionError::Publish(named)
    }
}

/// Asks again as long as the server wants that.
fn retried(mut ask: impl FnMut() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    for _ in 1..TRIES {
        match ask() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && !error.txn_requires_abort() => {}
            result => return result,
        }
    }
    ask()
}
