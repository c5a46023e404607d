//! Counts messages at the far end, by a number in their id: distinct ones, and those seen twice. It knows nothing of the
//! engine's own counters, and sits in front of the broker: a message counts when the broker is told to accept it.

#[cfg(feature = "kafka")]
use std::time::Duration;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    broker::{
        AddressStats, BatchMax, Broker, BrokerError, Browse, Capabilities, Declaration, Deliveries, Delivery,
        KeepAlive, Page, PublishFailures, Settler, Subscribe, Subscription, Tag,
    },
    message::{Address, FailedAttempt, Message, MessageId, Settlement},
};

/// Which numbers were seen.
#[derive(Debug)]
pub(super) struct Ledger {
    seen: Vec<AtomicU64>,
    distinct: AtomicU64,
    doubled: AtomicU64,
    /// When each was published and when it was first seen, where that is of interest.
    times: Vec<[OnceLock<Instant>; 2]>,
}

impl Ledger {
    pub(super) fn new(numbers: u64) -> Self {
        let words = usize::try_from(numbers / 64 + 1).unwrap_or(usize::MAX);
        Self {
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            distinct: AtomicU64::new(0),
            doubled: AtomicU64::new(0),
            times: Vec::new(),
        }
    }

    /// One that knows how long each was under way.
    #[cfg(feature = "kafka")]
    pub(super) fn timed(numbers: u64) -> Self {
        Self { times: (0..numbers).map(|_| Default::default()).collect(), ..Self::new(numbers) }
    }

    fn time(&self, number: u64) -> Option<&[OnceLock<Instant>; 2]> {
        self.times.get(usize::try_from(number).ok()?)
    }

    /// These are published now.
    #[cfg(feature = "kafka")]
    pub(super) fn published(&self, numbers: std::ops::Range<u64>) {
        let now = Instant::now();
        for [published, _] in numbers.filter_map(|number| self.time(number)) {
            published.get_or_init(|| now);
        }
    }

    /// How long each was under way, from that number on.
    #[cfg(feature = "kafka")]
    pub(super) fn under_way(&self, from: u64) -> Vec<Duration> {
        let times = self.times.iter().skip(usize::try_from(from).unwrap_or(usize::MAX));
        times.filter_map(|[published, seen]| Some(seen.get()?.saturating_duration_since(*published.get()?))).collect()
    }

    /// Notes many at once.
    pub(super) fn note(&self, numbers: impl Iterator<Item = u64>) {
        let (mut distinct, mut doubled) = (0, 0);
        let now = (!self.times.is_empty()).then(Instant::now);
        for number in numbers {
            if let (Some(now), Some([_, seen])) = (now, self.time(number)) {
                seen.get_or_init(|| now);
            }
            let word = usize::try_from(number / 64).ok().and_then(|place| self.seen.get(place));
            let bit = 1_u64 << (number % 64);
            match word.map(|word| word.fetch_or(bit, Ordering::Relaxed)) {
                Some(before) if before & bit == 0 => distinct += 1,
                _ => doubled += 1,
            }
        }
        self.distinct.fetch_add(distinct, Ordering::Release);
        if doubled > 0 {
            self.doubled.fetch_add(doubled, Ordering::Relaxed);
        }
    }

    pub(super) fn distinct(&self) -> u64 {
        self.distinct.load(Ordering::Acquire)
    }

    pub(super) fn doubled(&self) -> u64 {
        self.doubled.load(Ordering::Relaxed)
    }
}

/// An id that carries a number.
pub(super) fn numbered(number: u64) -> MessageId {
    MessageId::Uuid(Uuid::from_u64_pair(0x0199_0000_0000_8000, number))
}

/// The number an id carries.
pub(super) fn number(id: &MessageId) -> Option<u64> {
    match id {
        MessageId::Uuid(uuid) => Some(uuid.as_u64_pair().1),
        MessageId::Text(_) => None,
    }
}

/// A broker in front of another that notes what is accepted from one address.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) inner: Arc<dyn Broker>,
    pub(super) of: Address,
    pub(super) ledger: Arc<Ledger>,
}

#[async_trait]
impl Broker for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.inner.publish(to, messages).await
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let counted = request.from == self.of;
        let inner = self.inner.subscribe(request).await?;
        if !counted {
            return Ok(inner);
        }
        Ok(Box::new(CountingSubscription { inner, ledger: Arc::clone(&self.ledger) }))
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.inner.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.inner.stats()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[derive(Debug)]
struct CountingSubscription {
    inner: Box<dyn Subscription>,
    ledger: Arc<Ledger>,
}

#[async_trait]
impl Subscription for CountingSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        let ledger = &self.ledger;
        Ok(self.inner.next(max).await?.map(|deliveries| {
            deliveries.settled_by(|items, inner| {
                let numbers =
                    items.iter().map(|item| (item.tag, number(&item.message.id).unwrap_or(u64::MAX))).collect();
                Arc::new(CountingSettler { inner, ledger: Arc::clone(ledger), numbers })
            })
        }))
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Settles one batch.
#[derive(Debug)]
struct CountingSettler {
    inner: Arc<dyn Settler>,
    ledger: Arc<Ledger>,
    /// Of each delivery of the batch, in order.
    numbers: Vec<(Tag, u64)>,
}

#[async_trait]
impl Settler for CountingSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        // In the order of the batch, so that looking up is one step; some may be missing.
        let mut rest = self.numbers.iter();
        let accepted: Vec<u64> = settled
            .iter()
            .filter(|(_, how)| matches!(how, Settlement::Accept))
            .filter_map(|(delivery, _)| rest.find(|(other, _)| *other == delivery.tag).map(|(_, number)| *number))
            .collect();
        self.inner.settle(settled).await?;
        self.ledger.note(accepted.into_iter());
        Ok(())
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
