//! Queues on a system that has topics only: a queue is a topic of its name that one group reads. In: any broker with topics.
//! Out: the same, with queues. Priorities and limits of queues are not kept; what waits longer than a topic keeps it is gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, ConnectionState, Declaration,
    Deliveries, Delivery, KeepAlive, Page, PublishError, PublishFailures, QueueSettings, Settler, Start, Subscribe,
    Subscription, System, TopicSettings, TransactionError,
};
use crate::message::{Address, FailedAttempt, Kind, Message, Settlement};

/// Parts of a topic that stands for a queue: so many engines can share it.
pub const QUEUE_PARTITIONS: u32 = 4;
/// How long what waits in it is kept, at least.
pub const QUEUE_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// The same, where it is for one reader alone, who is gone when nobody reads it.
const RETENTION_ALONE: Duration = Duration::from_secs(3600);

/// Queues in front of a broker of topics.
#[derive(Debug)]
pub struct Queueless {
    inner: Arc<dyn Broker>,
    /// Reads what stands for queues.
    group: Arc<str>,
    /// Queues that were seen, and whether each is for one reader alone.
    queues: Mutex<BTreeMap<Arc<str>, bool>>,
}

impl Queueless {
    /// Puts queues in front of `inner`, each read by `group`.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>, group: Arc<str>) -> Self {
        Self { inner, group, queues: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, bool>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self, address: &Address) {
        if address.kind == Kind::Queue {
            self.lock().entry(Arc::clone(&address.name)).or_insert(false);
        }
    }

    fn as_queue(&self, mut stats: AddressStats, is_alone: bool) -> AddressStats {
        stats.address.kind = Kind::Queue;
        // What a group that nobody knows of has not settled is all there is.
        let waiting = stats.lag.iter().find(|(group, _)| *group == self.group).map(|(_, lag)| *lag);
        stats.ready = match waiting {
            Some(lag) => lag.saturating_sub(stats.unsettled),
            None if is_alone => 0,
            None => stats.ready,
        };
        stats.lag.clear();
        stats
    }
}

/// The topic that stands for a queue; a topic itself.
fn topic(address: &Address) -> Address {
    Address::topic(Arc::clone(&address.name))
}

fn settings(queue: &QueueSettings) -> TopicSettings {
    let (partitions, kept) = if queue.exclusive { (1, RETENTION_ALONE) } else { (QUEUE_PARTITIONS, QUEUE_RETENTION) };
    let retention = queue.ttl.map_or(kept, |ttl| ttl.max(kept));
    TopicSettings {
        storage: queue.storage,
        partitions,
        retention: Some(retention),
        retention_bytes: None,
        lease: queue.lease,
    }
}

/// An error about a topic, as one about what was asked for.
fn asked(error: BrokerError, about: &Address) -> BrokerError {
    match error {
        BrokerError::NotFound(_) => BrokerError::NotFound(about.clone()),
        BrokerError::Mismatch { differences, .. } => BrokerError::Mismatch { address: about.clone(), differences },
        other => other,
    }
}

/// The same of a message.
fn asked_of_one(error: PublishError, about: &Address) -> PublishError {
    let address = about.clone();
    match error {
        PublishError::NotFound(_) => PublishError::NotFound(address),
        PublishError::Full { limit, .. } => PublishError::Full { address, limit },
        PublishError::NoSpace { reason, .. } => PublishError::NoSpace { address, reason },
        PublishError::TooLarge { bytes, max, .. } => PublishError::TooLarge { address, bytes, max },
        PublishError::Unroutable(_) => PublishError::Unroutable(address),
        other => other,
    }
}

#[async_trait]
impl Broker for Queueless {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn name_of(&self, address: &Address) -> Arc<str> {
        self.inner.name_of(&topic(address))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { priority: false, ..self.inner.capabilities() }
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.seen(to);
        let published = self.inner.publish(&topic(to), messages).await;
        published.map_err(|failures| {
            PublishFailures(failures.0.into_iter().map(|(place, error)| (place, asked_of_one(error, to))).collect())
        })
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        let mut topics = Vec::new();
        for declaration in what {
            topics.push(match declaration {
                Declaration::Queue(name, queue) => {
                    self.lock().insert(Arc::clone(name), queue.exclusive);
                    Declaration::Topic(Arc::clone(name), settings(queue))
                }
                Declaration::Topic(..) => declaration.clone(),
            });
        }
        let named = |error: BrokerError| match &error {
            BrokerError::Mismatch { address, .. } if self.lock().contains_key(&address.name) => {
                let queue = Address::queue(Arc::clone(&address.name));
                asked(error, &queue)
            }
            _ => error,
        };
        self.inner.declare(&topics).await.map_err(named)
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        self.seen(&request.from);
        let from = request.from.clone();
        let inner = if from.kind == Kind::Queue {
            let is_alone = self.lock().get(&from.name).is_some_and(|is_alone| *is_alone);
            // Nobody goes on where a reader was who is alone.
            let group = if is_alone { "".into() } else { Arc::clone(&self.group) };
            Subscribe { from: topic(&from), group, start: Start::Earliest, ..request }
        } else {
            request
        };
        let inner = self.inner.subscribe(inner).await.map_err(|error| asked(error, &from))?;
        Ok(Box::new(QueuelessSubscription { inner, settler: None }))
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        self.inner.evict(&topic(from), max).await
    }

    /// Of a queue, what has been handled is shown as well, as long as its topic keeps it.
    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.seen(&request.from);
        let about = request.from.clone();
        let inner = Browse { from: topic(&about), ..request };
        self.inner.browse(inner).await.map_err(|error| asked(error, &about))
    }

    fn stats(&self) -> Vec<AddressStats> {
        let queues = self.lock().clone();
        let stats = self.inner.stats().into_iter();
        stats
            .map(|stats| match queues.get(&stats.address.name) {
                Some(is_alone) => self.as_queue(stats, *is_alone),
                None => stats,
            })
            .collect()
    }

    fn status(&self) -> BrokerStatus {
        self.inner.status()
    }

    fn connection(&self) -> ConnectionState {
        self.inner.connection()
    }

    async fn answers(&self) -> Result<(), BrokerError> {
        self.inner.answers().await
    }

    fn systems(&self) -> Vec<System> {
        self.inner.systems()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[derive(Debug)]
struct QueuelessSubscription {
    inner: Box<dyn Subscription>,
    settler: Option<Arc<QueuelessSettler>>,
}

#[async_trait]
impl Subscription for QueuelessSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let Some(fetched) = self.inner.next(max).await? else { return Ok(None) };
        Ok(Some(fetched.settled_by(|_, inner| {
            // One for each of the broker's own, as deliveries of one can be joined.
            let same = self.settler.as_ref().filter(|settler| Arc::ptr_eq(&settler.inner, &inner));
            let settler = same.map(Arc::clone).unwrap_or_else(|| Arc::new(QueuelessSettler { inner }));
            self.settler = Some(Arc::clone(&settler));
            settler
        })))
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Settles with the broker, whose transactions know no queues.
#[derive(Debug)]
struct QueuelessSettler {
    inner: Arc<dyn Settler>,
}

#[async_trait]
impl Settler for QueuelessSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        self.inner.settle(settled).await
    }

    async fn transact(
        &self,
        published: &[(Address, Vec<Arc<Message>>)],
        settled: &[(&Delivery, &Settlement)],
    ) -> Result<(), TransactionError> {
        let topics: Vec<_> = published.iter().map(|(to, messages)| (topic(to), messages.clone())).collect();
        self.inner.transact(&topics, settled).await.map_err(|error| match error {
            TransactionError::Publish(failures) => {
                let named = failures.into_iter().map(|(address, message, error)| {
                    let asked = published.get(address).map(|(to, _)| to);
                    (address, message, asked.map_or(error.clone(), |to| asked_of_one(error, to)))
                });
                TransactionError::Publish(named.collect())
            }
            TransactionError::Broker(error) => TransactionError::Broker(error),
        })
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        self.inner.count_attempt(delivery, failure).await
    }

    fn lost(&self, deliveries: &[Delivery]) -> Vec<usize> {
        self.inner.lost(deliveries)
    }

    fn release(&self, released: Vec<Delivery>) {
        self.inner.release(released);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says what it was given, and refuses the first message.
    #[derive(Debug)]
    struct Refusing;

    #[async_trait]
    impl Settler for Refusing {
        async fn settle(&self, _: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
            Ok(())
        }

        async fn transact(
            &self,
            published: &[(Address, Vec<Arc<Message>>)],
            _: &[(&Delivery, &Settlement)],
        ) -> Result<(), TransactionError> {
            assert_eq!(published[0].0, Address::topic("work"));
            Err(TransactionError::Publish(vec![(0, 0, PublishError::NotFound(published[0].0.clone()))]))
        }

        async fn count_attempt(&self, _: &Delivery, _: FailedAttempt) -> Result<(), BrokerError> {
            Ok(())
        }

        fn release(&self, _: Vec<Delivery>) {}
    }

    #[tokio::test]
    async fn a_transaction_publishes_to_queues_as_topics() {
        let settler = QueuelessSettler { inner: Arc::new(Refusing) };
        let published = [(Address::queue("work"), vec![Arc::new(Message::new("task", "", 0))])];
        let error = settler.transact(&published, &[]).await.unwrap_err();
        let TransactionError::Publish(failures) = error else { panic!("{error:?}") };
        assert!(matches!(&failures[0], (0, 0, PublishError::NotFound(to)) if *to == published[0].0), "{failures:?}");
    }
}
