//! A subscription without a group. A thread fetches as much as may be out; what is given back comes again here, and nothing
//! is kept of it anywhere else.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};
use tokio::sync::{Notify, oneshot};

use super::{Place, assign, config, partitions, spans};
use crate::{
    broker::{
        BatchMax, BrokerError, Count, Deliveries, Delivery, KeepAlive, Settler, Start, Subscribe, Subscription, Tag,
        kafka::{
            client::{self, Watched},
            group::{Common, NoLease, is_pattern},
            metadata::{Topics, code},
            threads::{Ends, Threads},
            wire,
        },
    },
    message::{Address, FailedAttempt, Position, ReasonCode, Settlement, now_ms, remember},
};

/// Bytes of messages that wait for the engine, from which on no more are fetched.
const AHEAD_BYTES: usize = 16 << 20;
/// How long one poll waits, and how soon it is seen that there is room again.
const POLL: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug)]
pub(in crate::broker::kafka) struct AssignedSubscription(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There may be something.
    some: Notify,
    prefetch: usize,
    place: Arc<str>,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Delivery>,
    /// Given back: in the order of arrival, ahead of those.
    again: BTreeMap<Tag, Delivery>,
    later: BTreeMap<(Instant, Tag), Delivery>,
    bytes: usize,
    out: HashSet<Tag>,
    last: Tag,
    /// Its reader is gone, or the broker is closed.
    is_over: bool,
    failed: Option<BrokerError>,
}

impl AssignedSubscription {
    /// Finds out where to begin, and begins there.
    ///
    /// # Errors
    /// [`BrokerError::NotFound`], [`BrokerError::Unreachable`].
    pub(in crate::broker::kafka) async fn begin(
        common: &Common,
        topics: &Topics,
        request: &Subscribe,
        threads: &Threads,
    ) -> Result<Self, BrokerError> {
        let consumer: BaseConsumer<Watched> = config(&common.settings)
            .create_with_context(Watched(Arc::clone(&common.condition)))
            .map_err(|error| client::refused(&error))?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            some: Notify::new(),
            prefetch: request.prefetch.max(1),
            place: Arc::clone(&request.from.name),
        });
        let (begun, answer) = oneshot::channel();
        let reader = Reader {
            shared: Arc::clone(&shared),
            consumer,
            known: HashSet::new(),
            timeout: topics.timeout(),
            look_every: common.settings.metadata_interval,
        };
        let start = request.start;
        let spawned = thread::Builder::new().name("kafka-reader".to_owned()).spawn(move || reader.run(start, begun));
        let thread = spawned.map_err(|error| BrokerError::Refused {
            reason: format!("there is no thread to read Kafka with: {error}"),
            code: ReasonCode::ConsumeFailed,
        })?;
        threads.keep(thread, Arc::clone(&shared) as _);
        let subscription = Self(shared);
        match answer.await {
            Ok(Ok(true)) => Ok(subscription),
            Ok(Ok(false)) => Err(BrokerError::NotFound(Address::topic(Arc::clone(&request.from.name)))),
            Ok(Err(error)) => Err(topics.failed(&request.from.name, code(&error))),
            Err(_) => Err(BrokerError::Closed),
        }
    }
}

/// The thread's side.
struct Reader {
    shared: Arc<Shared>,
    consumer: BaseConsumer<Watched>,
    known: HashSet<Place>,
    timeout: Duration,
    look_every: Duration,
}

impl Reader {
    fn run(mut self, start: Start, begun: oneshot::Sender<Result<bool, KafkaError>>) {
        let found = self.begin(start);
        let is_reading = matches!(found, Ok(true));
        // Whoever asked may have gone.
        if begun.send(found).is_err() || !is_reading {
            return;
        }
        let mut look_at = Instant::now() + self.look_every;
        loop {
            let has_room = {
                let state = self.shared.lock();
                if state.is_over {
                    return;
                }
                state.ready.len() < self.shared.prefetch && state.bytes < AHEAD_BYTES
            };
            if Instant::now() >= look_at {
                self.grow();
                look_at = Instant::now() + self.look_every;
            }
            if !has_room {
                thread::sleep(PAUSE);
                continue;
            }
            match self.consumer.poll(POLL) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Ok(record)) => self.shared.came(&record),
                Some(Err(error)) => match code(&error) {
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::BrokerTransportFailure => {
                        tracing::debug!(source = &*self.shared.place, "reading waits: {error}");
                    }
                    RDKafkaErrorCode::TopicAuthorizationFailed => {
                        let reason = format!(
                            "Kafka does not let us read {}: allow the user Read on the topic",
                            self.shared.place
                        );
                        return self.shared.fail(BrokerError::Refused { reason, code: ReasonCode::ConsumeFailed });
                    }
                    _ => tracing::debug!(source = &*self.shared.place, "reading goes on: {error}"),
                },
            }
        }
    }

    /// False: there is no such topic.
    fn begin(&mut self, start: Start) -> Result<bool, KafkaError> {
        let Some(found) = partitions(&self.consumer, &self.shared.place, self.timeout)? else { return Ok(false) };
        if found.is_empty() && !is_pattern(&self.shared.place) {
            return Ok(false);
        }
        let spans = spans(&self.consumer, &found, start, self.timeout)?;
        assign(&self.consumer, spans.iter())?;
        self.known.extend(found);
        Ok(true)
    }

    /// Reads partitions that were not there before, from their beginning: all of it is new.
    fn grow(&mut self) {
        let Ok(Some(found)) = partitions(&self.consumer, &self.shared.place, self.timeout) else { return };
        let new: Vec<_> = found.into_iter().filter(|one| !self.known.contains(one)).collect();
        let mut list = TopicPartitionList::new();
        let listed = new
            .iter()
            .all(|(topic, partition)| list.add_partition_offset(topic, *partition, Offset::Beginning).is_ok());
        if new.is_empty() || !listed {
            return;
        }
        match self.consumer.incremental_assign(&list) {
            Ok(()) => self.known.extend(new),
            Err(error) => tracing::debug!(source = &*self.shared.place, "new partitions are not read yet: {error}"),
        }
    }
}

impl Shared {
    fn came(&self, record: &BorrowedMessage<'_>) {
        let incoming = wire::incoming(record);
        let position = Position {
            partition: u32::try_from(record.partition()).unwrap_or_default(),
            offset: u64::try_from(record.offset()).unwrap_or_default(),
        };
        let mut delivery = Delivery {
            message: Arc::new(incoming.message),
            tag: 0,
            attempt: 1,
            topic: (*self.place != *record.topic()).then(|| record.topic().into()),
            position: Some(position),
            count: Count::Exact,
            failures: Vec::new(),
        };
        if let Some(text) = incoming.poison {
            // As one whose attempts are used up it goes to the dead letters.
            delivery.attempt = u32::MAX;
            delivery.failures =
                vec![FailedAttempt { attempt: 1, at: now_ms(), code: ReasonCode::MessageInvalid, text }];
        }
        let mut state = self.lock();
        state.last += 1;
        delivery.tag = state.last;
        let due = delivery.message.not_before.unwrap_or(0).saturating_sub(now_ms());
        state.wait(delivery, Duration::from_millis(due));
        drop(state);
        self.some.notify_one();
    }

    fn fail(&self, error: BrokerError) {
        let mut state = self.lock();
        (state.failed, state.is_over) = (Some(error), true);
        drop(state);
        self.some.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Keeps a delivery that has never been out.
    fn wait(&mut self, delivery: Delivery, after: Duration) {
        self.bytes += delivery.message.size();
        match Instant::now().checked_add(after).filter(|_| !after.is_zero()) {
            Some(due) => drop(self.later.insert((due, delivery.tag), delivery)),
            None => self.ready.push_back(delivery),
        }
    }

    /// Keeps one that was given back.
    fn back(&mut self, delivery: Delivery, after: Duration) {
        self.bytes += delivery.message.size();
        match Instant::now().checked_add(after).filter(|_| !after.is_zero()) {
            Some(due) => drop(self.later.insert((due, delivery.tag), delivery)),
            None => drop(self.again.insert(delivery.tag, delivery)),
        }
    }

    /// What may be handed out now; else when there will be something.
    fn take(&mut self, max: BatchMax, prefetch: usize) -> Result<Vec<Delivery>, Option<Instant>> {
        let now = Instant::now();
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, tag), delivery) = entry.remove_entry();
            self.again.insert(tag, delivery);
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < max.count && self.out.len() < prefetch {
            let next = self.again.first_key_value().map(|(_, delivery)| delivery).or_else(|| self.ready.front());
            let Some(size) = next.map(|delivery| delivery.message.size()) else { break };
            if !taken.is_empty() && bytes + size > max.bytes {
                break;
            }
            let next = self.again.pop_first().map(|(_, delivery)| delivery).or_else(|| self.ready.pop_front());
            let Some(delivery) = next else { break };
            bytes += size;
            self.bytes = self.bytes.saturating_sub(size);
            self.out.insert(delivery.tag);
            taken.push(delivery);
        }
        if taken.is_empty() { Err(self.later.keys().next().map(|(due, _)| *due)) } else { Ok(taken) }
    }
}

#[async_trait]
impl Subscription for AssignedSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        loop {
            let due = {
                let mut state = self.0.lock();
                if let Some(error) = state.failed.take() {
                    return Err(error);
                }
                if state.is_over {
                    return Ok(None);
                }
                match state.take(max, self.0.prefetch) {
                    Ok(taken) => return Ok(Some(Deliveries::new(taken, Arc::clone(&self.0) as _))),
                    Err(due) => due,
                }
            };
            match due {
                Some(due) => tokio::select! {
                    () = self.0.some.notified() => {}
                    () = tokio::time::sleep_until(due.into()) => {}
                },
                None => self.0.some.notified().await,
            }
        }
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        Arc::new(NoLease)
    }
}

impl Drop for AssignedSubscription {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Ends for Shared {
    fn close(&self) {
        let mut state = self.lock();
        state.is_over = true;
        (state.ready, state.again, state.later) = Default::default();
        drop(state);
        self.some.notify_one();
    }
}

#[async_trait]
impl Settler for Shared {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        let mut state = self.lock();
        for (mut delivery, how) in settled {
            if !state.out.remove(&delivery.tag) || state.is_over {
                continue;
            }
            match how {
                Settlement::Accept | Settlement::DeadLetter { .. } => {}
                Settlement::Redeliver { after, failure } => {
                    delivery.attempt = delivery.attempt.saturating_add(1);
                    remember(&mut delivery.failures, *failure);
                    state.back(delivery, after);
                }
                Settlement::Release { after } => state.back(delivery, after),
            }
        }
        drop(state);
        self.some.notify_one();
        Ok(())
    }

    async fn count_attempt(&self, _: &Delivery, _: FailedAttempt) -> Result<(), BrokerError> {
        Ok(())
    }

    fn release(&self, released: Vec<Delivery>) {
        let mut state = self.lock();
        for delivery in released {
            if state.out.remove(&delivery.tag) && !state.is_over {
                state.back(delivery, Duration::ZERO);
            }
        }
        drop(state);
        self.some.notify_one();
    }
}
