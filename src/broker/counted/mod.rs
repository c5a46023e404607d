//! Attempts counted for a broker that does not count them: before a delivery is handed over, the ledger on disk says so,
//! and forgets it when the message has ended. A host that dies with the message out has used up the attempt, as on
//! brokers that count by themselves. In: any broker. Out: the same, with `delivery_count`.
//!
//! Where the broker's own count of a delivery is exact, nothing is written: only what it does not know is noted, an attempt
//! that was made without giving the message back, or one that failed and comes again at once.
//!
//! A message is known by its place in a topic, or by its id in a queue. What is in the ledger is also in memory: only
//! messages that are out, or that failed before.
//!
//! Of a log, what is handed over for the first time is marked, a range of offsets for each partition, and noted only when
//! it fails, comes back, or may have ended the process: `known.rs` and `marks.rs` say what that means, `marked.rs` writes
//! the marks ahead of the deliveries. Queues and other topics: `noted.rs`. Both settle by `settler.rs`.

mod known;
mod ledger;
mod marked;
mod marks;
mod noted;
mod settler;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use self::{known::Known, ledger::Ledger, marked::MarkedSubscription, noted::NotedSubscription};
use super::{
    AddressStats, Aside, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, ConnectionState,
    Declaration, Deliveries, Page, PublishFailures, Subscribe, Subscription,
};
use crate::{
    message::{Address, Kind, Message, now_ms},
    store::Store,
};

/// A broker whose attempts are counted in a store.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Broker>,
    store: Arc<Store>,
    /// One for each place that was read from: subscriptions share it, as they share its messages.
    ledgers: Mutex<HashMap<Arc<str>, Arc<Ledger>>>,
}

impl Counted {
    /// Counts for `inner`, in a store that belongs to this engine.
    #[must_use]
    pub fn new(inner: Arc<dyn Broker>, store: Arc<Store>) -> Self {
        Self { inner, store, ledgers: Mutex::default() }
    }

    /// The ledger of a place, with what was noted there before.
    async fn ledger(&self, place: Arc<str>, is_log: bool) -> Result<Arc<Ledger>, BrokerError> {
        let there = |ledgers: &HashMap<Arc<str>, Arc<Ledger>>| ledgers.get(&place).cloned();
        if let Some(ledger) = there(&self.lock()) {
            return Ok(ledger);
        }
        let of = Arc::clone(&place);
        let found = self.store.read_async(move |reader| Ok((reader.ledger(&of)?, reader.marks(&of)?))).await;
        let (notes, marks) = found.map_err(|error| BrokerError::Storage(Arc::new(error)))?;
        let mut ledgers = self.lock();
        // Another may have been as quick.
        let ledger = there(&ledgers).unwrap_or_else(|| {
            let known = Known::new(Arc::clone(&place), is_log, notes, marks, now_ms());
            Arc::new(Ledger::new(known, Some(Arc::clone(&self.store))))
        });
        ledgers.insert(place, Arc::clone(&ledger));
        Ok(ledger)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Ledger>>> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Broker for Counted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { delivery_count: true, ..self.inner.capabilities() }
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

    fn name_of(&self, address: &Address) -> Arc<str> {
        self.inner.name_of(address)
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.inner.publish(to, messages).await
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let capabilities = self.inner.capabilities();
        let place = match request.from.kind {
            Kind::Queue => format!("{}/{}", self.inner.name(), request.from),
            // Each group tries for itself.
            Kind::Topic => format!("{}/{}/{}", self.inner.name(), request.from, request.group),
        };
        let is_log = capabilities.log && request.from.kind == Kind::Topic;
        let ledger = match is_log && request.group.is_empty() {
            // A group that ends with its subscription leaves nothing behind.
            true => Arc::new(Ledger::new(Known::new(place.into(), is_log, Vec::new(), Vec::new(), now_ms()), None)),
            false => self.ledger(place.into(), is_log).await?,
        };
        let is_carried = capabilities.delivery_count || (is_log && request.aside == Aside::Topic);
        let inner = self.inner.subscribe(request).await?;
        Ok(match is_log {
            true => Box::new(MarkedSubscription::new(inner, ledger, is_carried)),
            false => Box::new(NotedSubscription::new(inner, ledger, is_carried)),
        })
    }

    async fn evict(&self, from: &Address, max: BatchMax) -> Result<Deliveries, BrokerError> {
        self.inner.evict(from, max).await
    }

    async fn browse(&self, request: Browse) -> Result<Page, BrokerError> {
        self.inner.browse(request).await
    }

    fn stats(&self) -> Vec<AddressStats> {
        self.inner.stats()
    }

    async fn close(&self) {
        self.inner.close().await;
        let ledgers: Vec<_> = self.lock().values().cloned().collect();
        // What has ended since the last of them was written.
        ledgers.iter().for_each(|ledger| ledger.write_marks());
        if let Err(error) = self.store.flush().await {
            tracing::warn!(broker = self.inner.name(), "the last attempts may be counted once too few: {error}");
        }
    }
}
