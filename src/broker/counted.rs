//! Attempts counted for a broker that does not count them: before a delivery is handed over, the ledger on disk says so,
//! and forgets it when the message has ended. A host that dies with the message out has used up the attempt, as on
//! brokers that count by themselves. In: any broker. Out: the same, with `delivery_count`.
//!
//! Where the broker's own count of a delivery is exact, nothing is written: only what it does not know is noted, an attempt
//! that was made without giving the message back, or one that failed and comes again at once.
//!
//! A message is known by its place in a topic, or by its id in a queue. What is in the ledger is also in memory: only
//! messages that are out, or that failed before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{
    AddressStats, BatchMax, Broker, BrokerError, BrokerStatus, Browse, Capabilities, Count, Declaration, Deliveries,
    Delivery, KeepAlive, Page, PublishFailures, Settler, Subscribe, Subscription, Tag,
    commit::{Answer, Safe, answering, safely},
};
use crate::{
    message::{Address, FailedAttempt, Kind, Message, ReasonCode, Settlement, now_ms, remember},
    store::{Batch, Change, LedgerKey, Need, Note, Store},
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
    async fn ledger(&self, place: Arc<str>) -> Result<Arc<Ledger>, BrokerError> {
        let there = |ledgers: &HashMap<Arc<str>, Arc<Ledger>>| ledgers.get(&place).cloned();
        if let Some(ledger) = there(&self.lock()) {
            return Ok(ledger);
        }
        let of = Arc::clone(&place);
        let known = self.store.read_async(move |reader| reader.ledger(&of)).await;
        let known = known.map_err(|error| BrokerError::Storage(Arc::new(error)))?.into_iter().collect();
        let mut ledgers = self.lock();
        // Another may have been as quick.
        let ledger = there(&ledgers).unwrap_or_else(|| {
            Arc::new(Ledger {
                place: Arc::clone(&place),
                is_carried: self.inner.capabilities().delivery_count,
                store: Arc::clone(&self.store),
                known: Mutex::new(known),
            })
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

    fn name_of(&self, address: &Address) -> &str {
        self.inner.name_of(address)
    }

    async fn publish(&self, to: &Address, messages: Vec<Arc<Message>>) -> Result<(), PublishFailures> {
        self.inner.publish(to, messages).await
    }

    async fn declare(&self, what: &[Declaration]) -> Result<(), BrokerError> {
        self.inner.declare(what).await
    }

    async fn subscribe(&self, request: Subscribe) -> Result<Box<dyn Subscription>, BrokerError> {
        let place = match request.from.kind {
            Kind::Queue => format!("{}/{}", self.inner.name(), request.from),
            // Each group tries for itself.
            Kind::Topic => format!("{}/{}/{}", self.inner.name(), request.from, request.group),
        };
        let ledger = self.ledger(place.into()).await?;
        Ok(Box::new(CountedSubscription {
            inner: self.inner.subscribe(request).await?,
            ledger,
            settler: None,
            begun: None,
        }))
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
        if let Err(error) = self.store.flush().await {
            tracing::warn!(broker = self.inner.name(), "the last attempts may be counted once too few: {error}");
        }
    }
}

/// What is noted of the messages of one place.
#[derive(Debug)]
struct Ledger {
    place: Arc<str>,
    /// The broker itself keeps attempt and failures of what it is to deliver later.
    is_carried: bool,
    store: Arc<Store>,
    known: Mutex<HashMap<String, Note>>,
}

impl Ledger {
    /// Notes something of some messages; `None`: they have ended. In the order of the calls.
    fn write(&self, notes: impl IntoIterator<Item = (String, Option<Note>)>, answer: Option<Answer>) {
        let mut known = self.lock();
        let mut changes = Vec::new();
        for (message, note) in notes {
            match &note {
                Some(note) => known.insert(message.clone(), note.clone()),
                None => known.remove(&message),
            };
            changes.push(Change::Attempts { of: LedgerKey { place: Arc::clone(&self.place), message }, note });
        }
        let then = answer.map(answering);
        self.store.submit(Batch { changes, need: Need::MustHappen, permit: None, then });
    }

    /// The attempt that a delivery is, with what went wrong before; `None` where the broker's own count is all there is
    /// to know.
    fn begin(&self, delivery: &Delivery) -> Option<(String, Note)> {
        let known = self.lock();
        if delivery.count == Count::Exact && known.is_empty() {
            return None;
        }
        let message = identity(delivery);
        let note = known.get(&message).cloned();
        drop(known);
        if delivery.count == Count::Exact && note.is_none() {
            return None;
        }
        let mut note = note.unwrap_or_else(|| fresh(delivery));
        if note.out {
            note.crashes = note.crashes.saturating_add(1);
            let text = "it came again unsettled: the engine or its connection ended while it was out".to_owned();
            let failure =
                FailedAttempt { attempt: note.attempt, at: now_ms(), code: ReasonCode::OperationCanceled, text };
            failed(&mut note, failure);
        }
        note.attempt = note.attempt.max(delivery.attempt);
        note.out = true;
        Some((message, note))
    }

    /// What is noted of a delivery, or what would be.
    fn note(&self, delivery: &Delivery) -> (String, Note) {
        let message = identity(delivery);
        let note = self.lock().get(&message).cloned().unwrap_or_else(|| fresh(delivery));
        (message, note)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Note>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What names a message at its place.
fn identity(delivery: &Delivery) -> String {
    match delivery.position {
        Some(position) => format!("{}@{}", position.partition, position.offset),
        None => delivery.message.id.to_string(),
    }
}

/// The first note of a delivery.
fn fresh(delivery: &Delivery) -> Note {
    Note { attempt: delivery.attempt, failures: delivery.failures.clone(), ..Note::default() }
}

/// The attempt did not succeed: the next one begins.
fn failed(note: &mut Note, failure: FailedAttempt) {
    remember(&mut note.failures, failure);
    note.attempt = note.attempt.saturating_add(1);
}

/// Deliveries that wait for their attempts to be on disk.
type Begun = (Deliveries, Safe);

#[derive(Debug)]
struct CountedSubscription {
    inner: Box<dyn Subscription>,
    ledger: Arc<Ledger>,
    settler: Option<Arc<CountingSettler>>,
    /// Kept where the caller goes away while it waits.
    begun: Option<Begun>,
}

impl CountedSubscription {
    /// The attempts that these deliveries are, noted where the broker's own count is not enough. With `None` for the wait,
    /// none of them had to be.
    fn begin(&mut self, fetched: Deliveries) -> (Deliveries, Option<Safe>) {
        let notes: Vec<Option<(String, Note)>> =
            fetched.as_slice().iter().map(|delivery| self.ledger.begin(delivery)).collect();
        let fetched = fetched.settled_by(|_, inner| {
            // One for each of the broker's own, as deliveries of one can be joined.
            let same = self.settler.as_ref().filter(|settler| Arc::ptr_eq(&settler.inner, &inner));
            let settler = same.map(Arc::clone).unwrap_or_else(|| {
                Arc::new(CountingSettler { inner, ledger: Arc::clone(&self.ledger), out: Mutex::default() })
            });
            self.settler = Some(Arc::clone(&settler));
            settler
        });
        if notes.iter().all(Option::is_none) {
            return (fetched, None);
        }
        let mut each = notes.iter();
        let deliveries = fetched.edited(|delivery| {
            let Some(Some((message, note))) = each.next() else { return };
            (delivery.attempt, delivery.failures) = (note.attempt, note.failures.clone());
            if let Some(settler) = &self.settler {
                settler.lock().insert(message.clone(), delivery.tag);
            }
        });
        let (answer, safe) = oneshot::channel();
        let notes = notes.into_iter().flatten().map(|(message, note)| (message, Some(note)));
        self.ledger.write(notes, Some(answer));
        (deliveries, Some(safe))
    }
}

#[async_trait]
impl Subscription for CountedSubscription {
    async fn next(&mut self, max: BatchMax) -> Result<Option<Deliveries>, BrokerError> {
        if self.begun.is_none() {
            let Some(fetched) = self.inner.next(max).await? else { return Ok(None) };
            match self.begin(fetched) {
                (deliveries, None) => return Ok(Some(deliveries)),
                (deliveries, Some(safe)) => self.begun = Some((deliveries, safe)),
            }
        }
        if let Some((_, safe)) = &mut self.begun {
            let written = safely(safe).await;
            let begun = self.begun.take();
            // Dropped, they go back.
            written?;
            return Ok(begun.map(|(deliveries, _)| deliveries));
        }
        Err(BrokerError::Closed)
    }

    fn keep_alive(&self) -> Arc<dyn KeepAlive> {
        self.inner.keep_alive()
    }
}

/// Settles with the broker, and in the ledger.
#[derive(Debug)]
struct CountingSettler {
    inner: Arc<dyn Settler>,
    ledger: Arc<Ledger>,
    /// The latest delivery of each message that is noted and out. What is said of an earlier one comes too late, for the
    /// broker as well.
    out: Mutex<HashMap<String, Tag>>,
}

impl CountingSettler {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Tag>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another delivery of the message is out.
    fn is_late(&self, message: &str, delivery: &Delivery) -> bool {
        self.lock().get(message).is_some_and(|tag| *tag != delivery.tag)
    }

    /// What is to be noted of a message that comes back.
    fn back(&self, delivery: &Delivery, failure: Option<&FailedAttempt>) -> Option<(String, Option<Note>)> {
        let (message, mut note) = self.ledger.note(delivery);
        if self.is_late(&message, delivery) {
            return None;
        }
        let was_noted = self.lock().remove(&message).is_some();
        if let Some(failure) = failure {
            failed(&mut note, failure.clone());
        } else if !was_noted {
            // The same attempt again, which the broker counts.
            return None;
        }
        note.out = false;
        Some((message, Some(note)))
    }

    /// The message of a delivery that has ended, where something is noted of it.
    fn ended(&self, delivery: &Delivery) -> Option<String> {
        if self.ledger.lock().is_empty() {
            return None;
        }
        let message = identity(delivery);
        if self.is_late(&message, delivery) || !self.ledger.lock().contains_key(&message) {
            return None;
        }
        self.lock().remove(&message);
        Some(message)
    }
}

#[async_trait]
impl Settler for CountingSettler {
    async fn settle(&self, settled: Vec<(Delivery, Settlement)>) -> Result<(), BrokerError> {
        // What is tried again is counted before the broker may deliver it; what has ended is forgotten after the broker
        // has, so that no attempt is ever uncounted.
        let (mut back, mut ended) = (Vec::new(), Vec::new());
        for (delivery, how) in &settled {
            match how {
                Settlement::Accept | Settlement::DeadLetter { .. } => ended.extend(self.ended(delivery)),
                // The broker says with the copy what it is.
                Settlement::Redeliver { after, .. } if self.ledger.is_carried && !after.is_zero() => {
                    ended.extend(self.ended(delivery));
                }
                Settlement::Redeliver { failure, .. } => back.extend(self.back(delivery, Some(failure))),
                Settlement::Release { .. } => back.extend(self.back(delivery, None)),
            }
        }
        if !back.is_empty() {
            self.ledger.write(back, None);
        }
        self.inner.settle(settled).await?;
        if !ended.is_empty() {
            self.ledger.write(ended.into_iter().map(|message| (message, None)), None);
        }
        Ok(())
    }

    async fn count_attempt(&self, delivery: &Delivery, failure: FailedAttempt) -> Result<(), BrokerError> {
        let (message, mut note) = self.ledger.note(delivery);
        if !self.is_late(&message, delivery) {
            failed(&mut note, failure.clone());
            note.out = true;
            self.lock().insert(message.clone(), delivery.tag);
            let (answer, safe) = oneshot::channel();
            self.ledger.write([(message, Some(note))], Some(answer));
            safely(safe).await?;
        }
        self.inner.count_attempt(delivery, failure).await
    }

    fn release(&self, released: Vec<Delivery>) {
        let back: Vec<_> = released.iter().filter_map(|delivery| self.back(delivery, None)).collect();
        if !back.is_empty() {
            self.ledger.write(back, None);
        }
        self.inner.release(released);
    }
}
